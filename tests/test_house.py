"""The house itself: two worlds, one package, the oldest Python, what a user's install holds."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("export", "runtime", "calibration", "training", "benchmarks")
TORCH_WORLD = {"torch", "transformers", "optimum", "accelerate", "onnx", "gguf", "safetensors"}
NUMPY_WORLD = [
    *ROOT.glob("src/radvlm_edge/*.py"),
    *ROOT.glob("src/radvlm_edge/cli/*.py"),
    *ROOT.glob("src/radvlm_edge/serve/*.py"),
    *ROOT.glob("src/radvlm_edge/batch/*.py"),
    *ROOT.glob("src/radvlm_edge/node/*.py"),
    *ROOT.glob("src/radvlm_edge/kit/*.py"),
    *ROOT.glob("runtime/*.py"),
    *ROOT.glob("benchmarks/*.py"),
]


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", ROOT.glob("runtime/*.py"), ids=lambda p: p.name)
def test_runtime_imports_nothing_of_the_torch_world(path: Path) -> None:
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & TORCH_WORLD
    allowed = ("radvlm_edge.runtime", "radvlm_edge.bundle", "radvlm_edge.errors", "radvlm_edge.geometry")
    ours = {name for name in names if name.startswith("radvlm_edge.")}
    assert all(name.startswith(allowed) for name in ours), ours


@pytest.mark.parametrize("path", ROOT.glob("src/radvlm_edge/serve/*.py"), ids=lambda p: p.name)
def test_the_service_stands_on_the_runtime_alone(path: Path) -> None:
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & TORCH_WORLD
    allowed = ("serve", "runtime", "bundle", "errors", "audit", "faults", "listening", "__version__")
    ours = {name for name in names if name.startswith("radvlm_edge.")}
    assert all(name.startswith(tuple(f"radvlm_edge.{part}" for part in allowed)) for name in ours), ours


@pytest.mark.parametrize("path", ROOT.glob("src/radvlm_edge/node/*.py"), ids=lambda p: p.name)
def test_the_node_stands_on_the_runtime_alone(path: Path) -> None:
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & TORCH_WORLD
    allowed = ("node", "audit", "listening", "runtime", "bundle", "errors", "__version__")
    ours = {name for name in names if name.startswith("radvlm_edge.")}
    assert all(name.startswith(tuple(f"radvlm_edge.{part}" for part in allowed)) for name in ours), ours


@pytest.mark.parametrize("path", ROOT.glob("src/radvlm_edge/kit/*.py"), ids=lambda p: p.name)
def test_kits_know_bundles_and_no_engine(path: Path) -> None:
    allowed = ("kit", "bundle", "errors", "integrity", "signing")
    ours = {name for name in imported(path) if name.startswith("radvlm_edge.")}
    assert all(name.startswith(tuple(f"radvlm_edge.{part}" for part in allowed)) for name in ours), ours


ROOMS_OF_THE_ROOT = tuple(f"src/radvlm_edge/{name}" for name in ("serve", "batch", "node", "kit"))


@pytest.mark.parametrize("room", [*ROOMS, *ROOMS_OF_THE_ROOT])
def test_nothing_imports_the_command_line(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        assert not any(name.startswith("radvlm_edge.cli") for name in imported(path)), path


def test_numpy_world_parses_and_runs_on_python_3_10() -> None:
    for path in NUMPY_WORLD:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    vermin = Path(sys.executable).with_name("vermin")
    options = ["--target=3.10-", "--violations", "--no-tips", "--eval-annotations"]
    result = subprocess.run([vermin, *options, *NUMPY_WORLD], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


HELP = """
import sys
sys.argv = ["radvlm-edge", "infer", "--help"]
from radvlm_edge.cli import main
try:
    main()
finally:
    print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize("code", ["import sys, radvlm_edge; print('LOADED', *sys.modules)", HELP])
def test_starting_loads_no_engine(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = result.stdout.partition("LOADED")[2].split()
    assert "radvlm_edge" in loaded, result.stderr
    assert not {"torch", "transformers", "onnxruntime", "llama_cpp", "numpy"} & set(loaded)
    assert not {"jinja2", "PIL", "pydicom", "importlib.metadata"} & set(loaded)


FIRST_WORK = """
import sys, threading
from radvlm_edge.cli import cli
from radvlm_edge.runtime import film, reader

def tell(*_, **__):
    print("LOADED", *sys.modules, flush=True)
    print("THREAD", threading.current_thread().name, flush=True)
    import os
    os._exit(0)

reader.load_film = tell
cli.main(["infer", *sys.argv[1:]], standalone_mode=False)
"""


def test_a_film_is_being_read_before_any_engine_is_loaded() -> None:
    film = ROOT / "examples" / "chest.dcm"
    command = [sys.executable, "-c", FIRST_WORK, film, "--ask", "a?", "--overlap"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "THREAD film" in result.stdout, result.stderr
    loaded = set(result.stdout.partition("LOADED")[2].partition("THREAD")[0].split())
    assert {"numpy", "PIL.Image", "radvlm_edge.runtime.reader"} <= loaded
    late = {"onnxruntime", "openvino", "pydicom", "diskcache", "sqlite3", "requests"}
    late |= {"llama_cpp", "llama_cpp.llama", "torch"}
    assert not late & loaded


LIBRARY = """
from radvlm_edge.runtime.llama_library import llama_cpp, load
import sys
before = llama_cpp.llama_max_devices()
assert not {"llama_cpp", "diskcache", "llama_cpp.llama"} & set(sys.modules)
import llama_cpp as whole
assert whole.llama_cpp is load() if hasattr(whole, "llama_cpp") else True
assert sys.modules["llama_cpp.llama_cpp"] is load()
assert whole.llama_max_devices is load().llama_max_devices and whole.Llama is not None
from radvlm_edge.runtime.llama_settings import FLASH, KV_TYPES
assert FLASH == {"auto": whole.LLAMA_FLASH_ATTN_TYPE_AUTO, "on": whole.LLAMA_FLASH_ATTN_TYPE_ENABLED,
                 "off": whole.LLAMA_FLASH_ATTN_TYPE_DISABLED}
assert KV_TYPES == {"f16": whole.GGML_TYPE_F16, "q8_0": whole.GGML_TYPE_Q8_0}
from llama_cpp import mtmd_cpp
assert mtmd_cpp.mtmd_default_marker()
print("one library")
"""


def test_llama_cpps_bindings_are_loaded_alone_and_are_the_packages_own() -> None:
    result = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "one library", result.stderr


def test_links_for_type_checkers_point_at_the_rooms() -> None:
    for room in ROOMS:
        link = ROOT / "src" / "radvlm_edge" / room
        assert link.is_symlink() and link.resolve() == ROOT / room


def test_rooms_are_flat() -> None:
    nested = [p for room in ROOMS for p in (ROOT / room).rglob("*.py") if p.parent != ROOT / room]
    assert not nested, "packages inside a room are not found by setup.py's mapping"


@pytest.fixture(scope="module")
def base_bin() -> Path:
    """Folder of executables of an environment that holds the built wheel and its base install."""
    folder = os.environ.get("RADVLM_EDGE_BASE_BIN")
    if not folder:
        pytest.skip("RADVLM_EDGE_BASE_BIN is unset; `make test` builds the base install and sets it")
    return (ROOT / folder).absolute()


def test_wheel_holds_every_room_and_the_demonstration_bundle(base_bin: Path) -> None:
    (wheel,) = (ROOT / "dist").glob("radvlm_edge-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"radvlm_edge/{p.name}" for p in (ROOT / "src" / "radvlm_edge").glob("*.py")}
    wanted |= {f"radvlm_edge/cli/{p.name}" for p in (ROOT / "src" / "radvlm_edge" / "cli").glob("*.py")}
    wanted |= {f"radvlm_edge/{room}/{p.name}" for room in ROOMS for p in (ROOT / room).glob("*.py")}
    wanted |= {f"radvlm_edge/benchmarks/{p.name}" for p in (ROOT / "benchmarks").glob("*.json")}
    wanted |= {f"radvlm_edge/calibration/sets/{p.name}" for p in (ROOT / "calibration" / "sets").glob("*")}
    wanted |= {f"radvlm_edge/batch/{p.name}" for p in (ROOT / "src" / "radvlm_edge" / "batch").glob("*.py")}
    serve = ROOT / "src" / "radvlm_edge" / "serve"
    wanted |= {f"radvlm_edge/serve/{p.name}" for p in serve.glob("*.py")}
    wanted |= {f"radvlm_edge/serve/page/{p.name}" for p in (serve / "page").iterdir()}
    node = ROOT / "src" / "radvlm_edge" / "node"
    wanted |= {f"radvlm_edge/node/{p.name}" for p in node.glob("*.py")}
    kit = ROOT / "src" / "radvlm_edge" / "kit"
    wanted |= {f"radvlm_edge/kit/{p.name}" for p in kit.glob("*.py")}
    wanted |= {f"radvlm_edge/kit/{p.relative_to(kit)}" for p in (kit / "files").rglob("*") if p.is_file()}
    demo = ROOT / "src" / "radvlm_edge" / "demo.bundle"
    wanted |= {
        f"radvlm_edge/demo.bundle/{p.relative_to(demo).as_posix()}" for p in demo.rglob("*") if p.is_file()
    }
    wanted.add("radvlm_edge/py.typed")
    assert {name for name in held if name.startswith("radvlm_edge/")} == wanted


def test_base_install_is_small_and_loads_no_torch(base_bin: Path) -> None:
    code = (
        "import sys, sysconfig, radvlm_edge.runtime.reader\n"
        "print([m for m in ('torch', 'transformers', 'optimum', 'onnx') if m in sys.modules])\n"
        "print(sysconfig.get_path('purelib'))"
    )
    result = subprocess.run(
        [base_bin / "python", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded, site = result.stdout.splitlines()
    assert loaded == "[]"
    packages = {p.name.split("-")[0].lower() for p in Path(site).glob("*.dist-info")}
    assert not packages & TORCH_WORLD
    size = sum(p.stat().st_size for p in Path(site).rglob("*") if p.is_file() and not p.is_symlink())
    assert size < 400e6, f"{size / 1e6:.0f} MB"


def test_base_install_answers_without_a_network(base_bin: Path) -> None:
    command = [
        base_bin / "radvlm-edge",
        "infer",
        ROOT / "examples" / "chest.dcm",
        "--ask",
        "any effusion?",
        "--json",
    ]
    isolated = shutil.which("unshare") and os.geteuid() == 0
    result = subprocess.run(
        ["unshare", "--net", *command] if isolated else command, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (answer,) = json.loads(result.stdout)["answers"]
    assert answer["text"].split()[0].strip(",.") in ("Yes", "No")
    assert "not for diagnosis" in result.stderr and "synthetic films" in result.stderr
