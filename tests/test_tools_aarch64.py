"""An aarch64 machine gets the base install: by pip's own resolver, on its index and on one made up here."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tools.aarch64_wheels import (
    JETPACKS,
    SOURCE_ONLY,
    Machine,
    NoWheelError,
    base_requirements,
    resolve,
    sources,
    wheels_wanted,
)
from tools.same_answers import apart, differences

ORIN = JETPACKS[0]


@pytest.fixture(scope="module")
def index() -> None:
    """Skips where the index that installing this project needs cannot be asked now."""
    asking = [sys.executable, "-m", "pip", "--retries=0", "--timeout=10", "index", "versions", "pip"]
    asked = subprocess.run(asking, capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip("pip reaches no package index from here")


@pytest.mark.parametrize("machine", JETPACKS, ids=lambda one: one.name)
def test_every_distribution_of_the_base_install_has_a_wheel(machine: Machine, index: None) -> None:
    wanted = wheels_wanted(base_requirements())
    found = resolve(machine, wanted)
    for one in found:
        assert one.file.endswith(("-any.whl", "aarch64.whl")), one
        glibc = re.findall(r"manylinux_2_(\d+)_", one.file)
        assert not glibc or min(map(int, glibc)) <= machine.glibc, one
    names = {re.sub(r"[-_.]+", "-", one.name).lower() for one in found}
    assert {re.split(r"[^\w.-]", one)[0].lower() for one in wanted} - {"typing-extensions"} <= names
    native = {one.name for one in found if one.file.endswith("aarch64.whl")}
    assert {"numpy", "onnxruntime", "pillow", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls"} <= native


def test_llama_cpp_python_is_there_as_source(index: None) -> None:
    (requirement,) = (one for one in base_requirements() if one.startswith(SOURCE_ONLY))
    assert "0.3.36" in sources(requirement)
    with pytest.raises(NoWheelError, match=r"No matching distribution found for llama-cpp-python"):
        resolve(ORIN, [requirement])


def wheel(folder: Path, name: str, tag: str, *requires: str) -> None:
    """An empty distribution for machines of a tag."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
    about += "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(folder / f"{name}-1-{tag}.whl", "w") as file:
        file.writestr(f"{name}-1.dist-info/METADATA", about)
        file.writestr(
            f"{name}-1.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n"
        )
        file.writestr(f"{name}-1.dist-info/RECORD", "")


def test_what_has_no_wheel_for_the_machine_is_named(tmp_path: Path) -> None:
    wheel(tmp_path, "everywhere", "py3-none-any", "native")
    wheel(tmp_path, "native", "cp310-abi3-manylinux_2_28_aarch64")
    wheel(tmp_path, "newest", "cp310-cp310-manylinux_2_39_aarch64")
    wheel(tmp_path, "elsewhere", "cp310-cp310-manylinux_2_17_x86_64")
    wheel(tmp_path, "above", "py3-none-any", "elsewhere")
    here = ["--no-index", f"--find-links={tmp_path}"]
    found = resolve(ORIN, ["everywhere"], here)
    assert [one.file for one in found] == [
        "everywhere-1-py3-none-any.whl",
        "native-1-cp310-abi3-manylinux_2_28_aarch64.whl",
    ]
    for wanted, missing in (("newest", "newest"), ("elsewhere", "elsewhere"), ("above", "elsewhere")):
        with pytest.raises(NoWheelError, match=f"No matching distribution found for {missing}"):
            resolve(ORIN, [wanted], here)


def test_answers_are_compared_field_by_field() -> None:
    answer = {
        "question": "any effusion?",
        "text": "Yes.",
        "boxes": [{"label": "effusion", "xyxy_fraction": [0.1, 0.2, 0.3, 0.4]}],
        "labels": ["effusion"],
        "tokens": 3,
        "stop": "eos",
        "prefill_tokens": 300,
        "confidence": {"value": 0.75},
        "timing_ms": {"decode": 3.0},
    }
    record = {"image": {"height": 5, "width": 4, "crops": 2, "image_tokens": 9}, "answers": [answer]}
    slower = copy.deepcopy(record)
    slower["answers"][0] |= {"timing_ms": {"decode": 900.0}, "confidence": {"value": 0.5}}  # type: ignore[index]
    assert differences(record, slower) == [] and apart(record, slower) == 0.25
    for key in ("question", "text", "boxes", "labels", "tokens", "stop", "prefill_tokens"):
        other = copy.deepcopy(record)
        other["answers"][0][key] = []  # type: ignore[index]
        assert differences(record, other) == [f"answer 1: {key}"]
    for key in record["image"]:
        other = copy.deepcopy(record)
        other["image"][key] = 0  # type: ignore[index]
        assert differences(record, other) == [key]
    assert differences(record, record | {"answers": []}) == ["number of answers"]
