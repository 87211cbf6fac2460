"""Which GPU is seen, what llama.cpp makes of it, and which options of it are refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.gpus import (
    CLASSES,
    Gpu,
    build_flags,
    driver_version,
    language_verdict,
    rebuild_line,
    seen,
)
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.llama_settings import FLASH, KV_TYPES, settings_for

ORIN_RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n"
)
PROC_VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
PROC_GPU = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 16\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_jetson_is_named_by_its_release_and_device_tree(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "etc/nv_tegra_release": ORIN_RELEASE,
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0",
        },
    )
    orin = Gpu("NVIDIA Jetson AGX Orin Developer Kit", "8.7", "L4T 36.4.3", jetson=True)
    assert seen(root, smi=lambda: None) == [orin] and driver_version(root) == "L4T 36.4.3"


def test_a_workstation_is_named_by_nvidia_smi_or_by_its_driver_alone(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/driver/nvidia/version": PROC_VERSION,
            "proc/driver/nvidia/gpus/0000:01:00.0/information": PROC_GPU,
        },
    )
    answer = "NVIDIA H100 80GB HBM3, 9.0, 550.54.15\nTesla K80, [N/A], 550.54.15\n\n"
    h100, old = seen(root, smi=lambda: answer)
    assert h100 == Gpu("NVIDIA H100 80GB HBM3", "9.0", "550.54.15") and old.compute is None
    assert seen(root, smi=lambda: None) == [Gpu("NVIDIA H100 80GB HBM3", None, "550.54.15")]
    assert driver_version(root) == "550.54.15"


def test_without_a_driver_nothing_is_asked(tmp_path: Path) -> None:
    def never() -> str | None:
        raise AssertionError("nvidia-smi was run")

    assert seen(tmp_path, smi=never) == [] and driver_version(tmp_path) is None


@pytest.mark.parametrize(
    ("found", "offload", "cuda_build", "said"),
    [
        ([], False, False, "no NVIDIA GPU is seen here"),
        ([Gpu("H100", "9.0", "550")], True, True, "layers offloaded to the GPU (H100)"),
        ([Gpu("H100", "9.0", "550")], False, False, "the H100 is idle; CMAKE_ARGS=\"-DGGML_CUDA=on "
         "-DCMAKE_CUDA_ARCHITECTURES=90 -DGGML_CUDA_NCCL=OFF\" pip install --no-binary llama-cpp-python"),
        ([Gpu("H100", "9.0", "550")], False, True, "built for CUDA but cannot use the H100 (driver 550"),
        ([], True, True, "not an NVIDIA one"),
    ],
)  # fmt: skip
def test_doctor_says_whether_llama_cpp_uses_the_gpu(
    found: list[Gpu], offload: bool, cuda_build: bool, said: str
) -> None:
    line = language_verdict(found, offload=offload, cuda_build=cuda_build)
    assert said in line and "\n" not in line


def test_a_gpu_outside_the_table_is_built_for_by_its_own_number() -> None:
    assert "ARCHITECTURES=121 " in rebuild_line(Gpu("GB10", "12.1", "580"))
    assert "ARCHITECTURES=native " in rebuild_line(Gpu("?", None, "580"))


def wheel_tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "llama_wheel.py"
    spec = importlib.util.spec_from_file_location("llama_wheel", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wheel_builder_knows_the_same_gpus_and_keys_by_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = wheel_tool()
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    assert {name: one.architecture for name, one in CLASSES.items()} == tool.CUDA_ARCHITECTURES
    flags = [tool.flags_for(["--gpu", name]) for name in CLASSES]
    assert flags == [build_flags(one.architecture) for one in CLASSES.values()]
    folders = {tool.cache_folder(one) for one in [*flags, tool.DEFAULT_FLAGS]}
    assert len(folders) == len(CLASSES) + 1
    plain = tool.cache_folder(flags[0])
    monkeypatch.setattr(tool, "toolkit", lambda: "Cuda compilation tools, release 12.6, V12.6.85")
    assert tool.cache_folder(flags[0]) != plain, "another CUDA toolkit makes another wheel"
    assert "ARCHITECTURES=101" in tool.flags_for(["--gpu", "thor"])
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1")
    assert tool.flags_for(["--gpu", "orin"]) == "-DX=1"


def test_the_wheel_builder_refuses_what_it_does_not_know() -> None:
    tool = Path(__file__).parents[1] / "tools" / "llama_wheel.py"
    result = subprocess.run(
        [sys.executable, tool, "--gpu", "voodoo"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": ""},
    )
    assert result.returncode == 1 and "--gpu voodoo: write --gpu and one of turing, a100" in result.stderr


def test_settings_are_what_llama_cpp_calls_them() -> None:
    cpu = settings_for(None, None, None, offload=False)
    assert (cpu.gpu_layers, cpu.flash, cpu.kv_type) == (-1, FLASH["off"], KV_TYPES["f16"])
    assert settings_for(None, "auto", None, offload=True).flash == FLASH["auto"]
    assert settings_for(0, "auto", None, offload=True).flash == FLASH["off"]
    assert settings_for(None, None, "q8_0", offload=False).flash == FLASH["on"]
    assert settings_for(12, "on", "f16", offload=True).gpu_layers == 12
    assert settings_for(0, None, None, offload=False).gpu_layers == 0


@pytest.mark.parametrize(
    ("layers", "flash", "kv", "said"),
    [
        (-1, None, None, "--gpu-layers all: .* sees no GPU it can use"),
        (3, None, None, "--gpu-layers 3: .*--gpu-layers 0 runs on the CPU"),
        (None, "maybe", None, "--flash-attention maybe: choose one of auto, on, off"),
        (None, None, "q4_0", "--kv-type q4_0: choose one of f16, q8_0"),
        (None, "off", "q8_0", "q8_0 needs flash attention"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    layers: int | None, flash: str | None, kv: str | None, said: str
) -> None:
    with pytest.raises(BackendError, match=said):
        settings_for(layers, flash, kv, offload=False)


def state_and_logits(path: Path, **options: str) -> tuple[int, np.ndarray, dict[str, object]]:
    model = LanguageModel(path, context=128, threads=1, **options)  # type: ignore[arg-type]
    try:
        model.start([list(range(5, 69))])
        held = model.prefix_bytes()
        model.prefill([3, 4, 5])
        return held, model.logits(), model.identity()
    finally:
        model.close()


def test_q8_0_really_halves_k_and_v_and_flash_attention_is_really_used() -> None:
    bundle = Bundle.open(demo_bundle())
    path = bundle.path(bundle.artefact("language", "F16"))
    plain, logits, identity = state_and_logits(path)
    flash, flash_logits, flash_identity = state_and_logits(path, flash_attention="on")
    half, half_logits, half_identity = state_and_logits(path, kv_type="q8_0")
    assert half / plain == pytest.approx(34 / 64, rel=0.02)  # 32 numbers in 34 bytes instead of 64
    assert flash == plain and not np.array_equal(flash_logits, logits)
    real = logits > -1e20
    deviation = logits[real].std()
    for other in (flash_logits, half_logits):
        assert np.abs(other - logits)[real].max() < 0.2 * deviation
    # Saved states of one setting must not be found under another.
    assert len({str(one) for one in (identity, flash_identity, half_identity)}) == 3


@pytest.mark.parametrize("value", ["-1", "some", "1.5"])
def test_layers_are_a_count_or_all(value: str) -> None:
    result = CliRunner().invoke(cli, ["infer", "x.png", "--ask", "a?", "--gpu-layers", value])
    assert result.exit_code == 2 and "write 0, 1, 2, … or all" in result.output
