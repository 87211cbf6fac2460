"""What a kit holds: complete for its target, the same bytes every time, licences kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging import tags as python_tags
from packaging.requirements import Requirement
from tests.kits import COMPILING, HERE, PIP, make_bundle, make_wheel, make_wheels

from radvlm_edge.bundle import Bundle
from radvlm_edge.cli.pack import pack as pack_command
from radvlm_edge.errors import KitError, OutputError
from radvlm_edge.kit.closure import close
from radvlm_edge.kit.distributions import in_folders
from radvlm_edge.kit.pack import Wanted, pack
from radvlm_edge.kit.targets import TARGETS, environment, pythons_for, tags

pytestmark = pytest.mark.skipif(PIP is None, reason="this Python has no bundled pip (ensurepip)")
X86 = TARGETS["x86_64"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny.bundle")


def wanted(wheels: Path, **options: object) -> Wanted:
    return Wanted(**{"target": COMPILING, "wheels": (wheels,), "index": False, **options})  # type: ignore[arg-type]


def held(kit: Path) -> dict[str, bytes]:
    """Name below the top folder → content."""
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(kit.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert all(member.isfile() for member in archive)
        return {m.name.partition("/")[2]: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def test_a_kit_lists_every_file_and_is_the_same_every_time(
    wheels: Path, bundle: Bundle, tmp_path: Path
) -> None:
    pack(bundle, wanted(wheels), tmp_path / "one.tar.zst")
    for path in wheels.iterdir():
        os.utime(path, (1, 1))
    pack(bundle, wanted(wheels), tmp_path / "two.tar.zst")
    assert (tmp_path / "one.tar.zst").read_bytes() == (tmp_path / "two.tar.zst").read_bytes()
    files = held(tmp_path / "one.tar.zst")
    lines = [line.split("  ", 1) for line in files.pop("SHA256SUMS").decode().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    assert {f"bundle/{p.relative_to(bundle.folder)}" for p in bundle.folder.rglob("*") if p.is_file()} <= set(
        files
    )
    packed = {name.removeprefix("wheels/").partition("-")[0] for name in files if name.startswith("wheels/")}
    assert packed == {"radvlm_edge", "tinydep", "llama_cpp_python", "tinybackend", "pip"}
    locked = files[f"requirements/{HERE}.txt"].decode()
    assert "tinydep==1.5" in locked and "tinybackend" not in locked and "gone" not in locked
    assert b"ggml authors" in files["licences/llama.cpp/LICENSE"]
    assert files["licences/tinydep-1.5/LICENSE"] == b"Licence of tinydep\n"
    assert bundle.sha256 in files["MODEL_CARD.md"].decode()


def test_the_bill_of_materials_is_cyclonedx(wheels: Path, bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, wanted(wheels), tmp_path / "kit.tar.zst")
    files = held(tmp_path / "kit.tar.zst")
    text = files["sbom.cdx.json"].decode()
    trouble = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert trouble is None, trouble
    bill = json.loads(text)
    by_name = {part["name"]: part for part in bill["components"]}
    for name, part in by_name.items():
        if part["type"] == "library":
            (place,) = [p["value"] for p in part["properties"] if p["name"] == "radvlm-edge:file"]
            assert part["hashes"][0]["content"] == hashlib.sha256(files[place]).hexdigest(), name
    assert by_name["radvlm-edge"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert by_name["tinydep"]["components"][0]["name"] == "tinydep.libs/libtiny-0a.so.1"
    assert by_name["tiny"]["modelCard"] and by_name["tiny"]["hashes"][0]["content"] == bundle.sha256
    depends = {part["ref"]: part["dependsOn"] for part in bill["dependencies"]}
    own = by_name["radvlm-edge"]["bom-ref"]
    assert {ref.partition("-")[0] for ref in depends[own]} == {"llama_cpp_python", "tinydep"}


def test_what_may_not_be_passed_on_is_refused_or_marked(wheels: Path, tmp_path: Path) -> None:
    sealed = make_bundle(tmp_path / "closed.bundle", redistributable=False)
    with pytest.raises(KitError, match="--i-hold-the-license"):
        pack(sealed, wanted(wheels), tmp_path / "kit.tar.zst")
    assert not (tmp_path / "kit.tar.zst").exists()
    facts = pack(sealed, wanted(wheels, licence_held=True), tmp_path / "kit.tar.zst")
    files = held(tmp_path / "kit.tar.zst")
    assert facts["folder"].endswith("-restricted") and b"Credentialed" in files["DO-NOT-PASS-ON.txt"]
    assert json.loads(files["kit.json"])["redistributable"] is False
    properties = json.loads(files["sbom.cdx.json"])["components"][-1]["properties"]
    assert {"name": "radvlm-edge:redistributable", "value": "false"} in properties


def test_an_altered_bundle_is_not_packed(wheels: Path, tmp_path: Path) -> None:
    sealed = make_bundle(tmp_path / "altered.bundle")
    (sealed.folder / "language" / "F16.gguf").write_text("weighty")
    result = CliRunner().invoke(
        pack_command,
        f"{sealed.folder} --target x86_64 --no-index --wheels {wheels} -o {tmp_path}/kit.tar.zst".split(),
    )
    assert result.exception is not None and "F16.gguf was altered" in str(result.exception)
    assert not list(tmp_path.glob("*kit*"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="packs for x86 from wheels of this machine")
def test_the_x86_kit_takes_a_llama_for_any_cpu_only(wheels: Path, bundle: Bundle, tmp_path: Path) -> None:
    facts = pack(bundle, wanted(wheels, target=X86), tmp_path / "kit.tar.zst")
    assert facts["glibc"] == 17 and not facts["compiled"]
    folder = tmp_path / "native"
    folder.mkdir()
    for path in wheels.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (old,) = folder.glob("llama_cpp_python-*.whl")
    one_cpu = {"llama_cpp/lib/libggml-cpu.so": "machine code"}
    make_wheel(folder, "llama-cpp-python", old.name.split("-")[1], one_cpu, tag="py3-none-linux_x86_64")
    with pytest.raises(KitError, match="compiled for one CPU"):
        pack(bundle, wanted(folder, target=X86), tmp_path / "native.tar.zst")


@pytest.mark.parametrize(
    ("gone", "named"),
    [("tinydep-1.5*", "tinydep>=1"), ("tinybackend*", "tinybackend>=1"), ("*.tar.gz", "no sdist")],
)
def test_what_is_missing_is_named(
    wheels: Path, bundle: Bundle, tmp_path: Path, gone: str, named: str
) -> None:
    for path in wheels.iterdir():
        if not path.match(gone):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(KitError, match=named):
        pack(bundle, wanted(tmp_path), tmp_path / "kit.tar.zst")
    assert not list(tmp_path.glob("*kit*"))


def test_wrong_wishes_cost_no_work(wheels: Path, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="NAME.tar.zst"):
        pack(bundle, wanted(wheels), tmp_path / "kit.zip")
    (tmp_path / "kit.tar").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        pack(bundle, wanted(wheels), tmp_path / "kit.tar")
    with pytest.raises(KitError, match=r"Python 3\.9"):
        pythons_for(X86, ("3.9",))
    assert (tmp_path / "kit.tar").read_text() == "mine"


def test_a_target_takes_what_its_python_would() -> None:
    """Against the tags packaging computes of this very interpreter, where that is an x86 Linux."""
    if (platform.machine(), sys.implementation.name) != ("x86_64", "cpython"):
        pytest.skip("this interpreter is no x86 CPython")
    ours = tags(X86, HERE)
    newer = [f"manylinux_2_{minor}_x86_64" for minor in range(29, 80)]
    expected = [tag for tag in python_tags.sys_tags() if tag.platform not in newer]
    assert set(ours) == set(expected)
    without = [tag for tag in expected if not tag.platform.startswith("linux_")]  # its rank has changed once
    assert [tag for tag in sorted(ours, key=ours.__getitem__) if tag in set(without)] == without


def test_markers_are_the_targets(tmp_path: Path) -> None:
    make_wheel(
        tmp_path,
        "app",
        "1",
        requires=('backport; python_version < "3.11"', 'cuda; platform_machine == "aarch64"'),
    )
    for name in ("backport", "cuda"):
        make_wheel(tmp_path, name, "1")
    files = in_folders([tmp_path])
    for target, python, more in (("x86_64", "3.10", {"backport"}), ("aarch64-jp7", "3.12", {"cuda"})):
        one = TARGETS[target]
        closure = close([Requirement("app")], files, environment(one, python), tags(one, python))
        assert set(closure.chosen) == {"app"} | more and not closure.missing


@settings(max_examples=30, deadline=None)
@given(st.permutations(["a", "b"]), st.integers(1, 3))
def test_a_specifier_met_late_counts(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], most: int
) -> None:
    """Whatever order packages are met in, all that is asked of a package holds."""
    folder = tmp_path_factory.mktemp("late")
    make_wheel(folder, "a", "1", requires=("c",))
    make_wheel(folder, "b", "1", requires=(f"c<={most}",))
    for version in ("1", "2", "3"):
        make_wheel(folder, "c", version)
    files = in_folders([folder])
    closure = close(map(Requirement, order), files, environment(X86, "3.12"), tags(X86, "3.12"))
    assert str(closure.chosen["c"].version) == str(most) and not closure.missing


def test_install_script_is_clean_shell() -> None:
    script = Path(__file__).parents[1] / "src/radvlm_edge/kit/files/install.sh"
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("no shellcheck here; it is in the extra `dev`")
    result = subprocess.run([checker, "--shell=sh", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
