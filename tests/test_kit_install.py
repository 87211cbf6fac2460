"""install.sh: what was altered is refused, nothing touched; a failed upgrade leaves the old version."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.kits import COMPILING, HERE, PIP, PLAIN, make_bundle, make_wheels

from radvlm_edge.cli import cli
from radvlm_edge.kit.pack import Wanted, pack

pytestmark = [
    pytest.mark.skipif(PIP is None, reason="this Python has no bundled pip (ensurepip)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the tiny kit declares a compiler needed: no g++"),
]


UNITS = Path(__file__).parents[1] / "src" / "radvlm_edge" / "kit" / "files" / "units"


class Kits:
    """Three kits of the same software, signed: one that compiles, one that may not be passed on, and one
    whose self-test fails.
    """

    def __init__(self, folder: Path) -> None:
        self.key, self.public, self.foreign = folder / "key.pem", folder / "pub.pem", folder / "foreign.pem"
        other = folder / "other.pem"
        for key, public in ((self.key, self.public), (other, self.foreign)):
            subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
            subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
        wheels = make_wheels(folder / "wheels")
        self.folder = folder
        for name, weights in (("old", "old weights"), ("new", "new weights"), ("broken", "BROKEN")):
            bundle = make_bundle(folder / f"{name}.bundle", weights=weights, redistributable=name != "new")
            wanted = Wanted(
                COMPILING if name == "old" else PLAIN,
                wheels=(wheels,),
                index=False,
                licence_held=True,
                key=self.key,
            )
            pack(bundle, wanted, folder / f"{name}.tar")

    def unpack(self, name: str, into: Path) -> Path:
        with tarfile.open(self.folder / f"{name}.tar") as archive:
            archive.extractall(into / name, filter="data")
        (kit,) = (into / name).iterdir()
        return kit


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


def run(kit: Path, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", kit / "install.sh", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}, timeout=600
    )


def shown(prefix: Path) -> str:
    """What the installed version's bundle holds, through the link users use."""
    return (prefix / "current" / "bundle" / "language" / "F16.gguf").read_text()


def test_every_altered_missing_or_added_file_is_refused(kits: Kits, tmp_path: Path) -> None:
    kit = kits.unpack("old", tmp_path)
    assert run(kit, "check").returncode == 0
    names = [p for p in sorted(kit.rglob("*")) if p.is_file() and not p.name.startswith("SHA256SUMS.sig")]
    assert len(names) > 20
    for path in names:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        result = run(kit, "check", "--trust", kits.public)
        path.write_bytes(before)
        assert result.returncode == 1 and "nothing was touched" in result.stderr, (path, result.stderr)
    (kit / "units" / "more.service").write_text("")
    assert "not listed: units/more.service" in run(kit, "check").stderr
    (kit / "units" / "more.service").unlink()
    (kit / "README.txt").unlink()
    refused = run(kit, "install", "--prefix", tmp_path / "opt", "--no-systemd")
    assert refused.returncode == 1 and "missing: README.txt" in refused.stderr
    (kit / "README.txt").symlink_to("/etc/hostname")
    assert "./README.txt: neither a file nor a folder" in run(kit, "check").stderr
    assert not (tmp_path / "opt").exists()


def test_a_signature_is_demanded_and_must_be_the_trusted_keys(kits: Kits, tmp_path: Path) -> None:
    kit = kits.unpack("old", tmp_path)
    assert "pass --trust" in run(kit, "check").stderr
    assert run(kit, "check", "--trust", kits.public).returncode == 0
    assert "not of the key" in run(kit, "check", "--trust", kits.foreign).stderr
    (kit / "SHA256SUMS.sig").unlink()
    assert "not signed" in run(kit, "check", "--trust", kits.public).stderr


def test_another_machine_is_refused(kits: Kits, tmp_path: Path) -> None:
    """Of a kit packed for it, unsigned, so that its own sums can be rewritten."""
    kit = kits.unpack("old", tmp_path)
    facts = json.loads((kit / "kit.json").read_text())
    for change, told in (
        ({"arch": "riscv64"}, "packed for riscv64"),
        ({"glibc": 999}, "glibc 2.999 is needed"),
        ({"disk_mib": 10**9}, "1000000000 are needed"),
        ({"schema": 2}, "schema 2"),
    ):
        (kit / "kit.json").write_text(json.dumps({**facts, **change}, indent=1, sort_keys=True) + "\n")
        names = "find . -type f ! -path './SHA256SUMS*' | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum"
        sums = subprocess.run(["sh", "-c", names], cwd=kit, capture_output=True, check=True).stdout
        (kit / "SHA256SUMS").write_bytes(sums)
        result = run(kit, "install", "--prefix", tmp_path / "opt", "--no-systemd")
        assert result.returncode == 1 and told in result.stderr, result.stderr
        assert "nothing was touched" in result.stderr
    assert not (tmp_path / "opt").exists()


def test_from_install_to_uninstall(kits: Kits, tmp_path: Path) -> None:
    old, new, broken = (kits.unpack(name, tmp_path) for name in ("old", "new", "broken"))
    prefix = tmp_path / "opt"
    python = tmp_path / "python"  # says its version, and can do nothing else
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {HERE}\n')
    python.chmod(0o755)
    failed = run(old, "install", "--prefix", prefix, "--no-systemd", "--python", python)
    assert failed.returncode == 1 and "not installed" in failed.stderr
    assert not prefix.exists()

    done = run(old, "install", "--prefix", prefix, "--no-systemd", "--trust", kits.public)
    assert done.returncode == 0, done.stderr
    assert shown(prefix) == "old weights" and "RAN verify" in done.stderr
    used = subprocess.run(
        [prefix / "bin" / "radvlm-edge", "infer"], capture_output=True, text=True, check=False
    )
    assert "RAN infer" in used.stderr
    assert "use upgrade" in run(new, "install", "--prefix", prefix, "--no-systemd").stderr

    first = (prefix / "current").readlink()
    failed = run(broken, "upgrade", "--prefix", prefix)
    assert failed.returncode == 1 and f"{first.name} goes on" in failed.stderr
    assert (prefix / "current").readlink() == first and shown(prefix) == "old weights"
    assert [p.name for p in (prefix / "versions").iterdir()] == [first.name]
    (new / "SHA256SUMS.sig").rename(tmp_path / "sig")
    assert "not signed" in run(new, "upgrade", "--prefix", prefix).stderr  # the first key is remembered
    (tmp_path / "sig").rename(new / "SHA256SUMS.sig")

    (prefix / "notes.txt").write_text("a user's own")
    done = run(new, "upgrade", "--prefix", prefix)
    assert done.returncode == 0 and "NOT TO BE PASSED ON" in done.stderr, done.stderr
    assert shown(prefix) == "new weights"
    assert not (prefix / "current" / "bundle").stat().st_mode & 0o077  # weights under a licence
    assert "current already" in run(new, "upgrade", "--prefix", prefix).stderr
    assert run(new, "rollback", "--prefix", prefix).returncode == 0
    assert shown(prefix) == "old weights"

    done = run(new, "uninstall", "--prefix", prefix)
    assert done.returncode == 0 and "left alone" in done.stderr and "notes.txt" in done.stderr
    assert [p.name for p in prefix.iterdir()] == ["notes.txt"]
    assert "nothing is installed" in run(new, "uninstall", "--prefix", prefix).stderr


SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    *is-active*) ! [ -e "$LOG.down" ] || { rm "$LOG.down"; exit 3; } ;;
    *show*) echo 0 ;;
esac
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="services are installed by root")
def test_services_that_do_not_stay_up_bring_the_old_version_back(kits: Kits, tmp_path: Path) -> None:
    """With a systemctl that notes what it is told, and says once that the service is down."""
    log, units, prefix = tmp_path / "log", tmp_path / "units", tmp_path / "opt"
    units.mkdir()
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "systemctl"
    stand_in.write_text(SYSTEMCTL)
    stand_in.chmod(0o755)
    env = {"LOG": str(log), "PATH": f"{stand_in.parent}:{os.environ['PATH']}", "RADVLM_KIT_SETTLE_S": "1"}
    old, new = (kits.unpack(name, tmp_path) for name in ("old", "new"))
    options = ("--prefix", prefix, "--unit-dir", units, "--user", "root")
    done = run(old, "install", *options, **env)
    assert done.returncode == 0, done.stderr
    service = (units / "radvlm-edge-serve.service").read_text()
    assert f"ExecStart={prefix}/current/venv/bin/radvlm-edge serve" in service
    assert not re.search("@[A-Z]+@", service)
    assert "enable radvlm-edge-serve.service" in log.read_text()

    log.with_name("log.down").write_text("")
    failed = run(new, "upgrade", "--prefix", prefix, **env)
    assert failed.returncode == 1 and "does not stay up; going back" in failed.stderr
    assert shown(prefix) == "old weights"
    assert log.read_text().count("\nrestart ") == 3

    log.write_text("")
    done = run(new, "uninstall", "--prefix", prefix, **env)
    assert done.returncode == 0 and not list(units.iterdir()) and not prefix.exists(), done.stderr
    assert "disable --now radvlm-edge-serve.service" in log.read_text()


@pytest.mark.parametrize("unit", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_units_call_commands_with_options_they_have(unit: Path) -> None:
    (line,) = re.findall("^ExecStart=(.*)", unit.read_text(), re.M)
    program, name, *arguments = shlex.split(line)
    assert program == "@PREFIX@/current/venv/bin/radvlm-edge"
    if name not in cli.commands:
        pytest.skip(f"this version has no command {name}")
    known = {option for parameter in cli.commands[name].params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_units_are_valid_and_exposed_little(tmp_path: Path) -> None:
    """systemd's own judgement; 10 is the most exposed, below 3 it says OK."""
    for template in sorted(UNITS.iterdir()):
        text = template.read_text()
        for mark, value in (("PREFIX", "/"), ("USER", "root"), ("MEMORY", "4096M")):
            text = text.replace(f"@{mark}@", value)
        text = text.replace("@DEVICES@", "PrivateDevices=yes").replace(
            "//current/venv/bin/radvlm-edge", "/bin/true"
        )
        unit = tmp_path / template.name
        unit.write_text(text)
        result = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0 and not result.stderr, result.stderr
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit]
        judged = subprocess.run(command, capture_output=True, text=True, check=False)
        assert judged.returncode == 0, judged.stdout
