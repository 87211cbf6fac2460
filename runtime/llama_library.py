"""llama-cpp-python's low-level bindings, loaded when the first of them is used, and without the rest of it.

`import llama_cpp` also brings chat formats, a disk cache, a database and a template engine, which take three
times as long as the bindings themselves. Those are two files that need nothing of the package around them.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from radvlm_edge.errors import BackendError

PACKAGE = "llama_cpp"
FILES = ("_ctypes_extensions", "llama_cpp")
"""Of the package, in the order they need each other."""
_lock = threading.RLock()


def load() -> ModuleType:
    """The module `llama_cpp.llama_cpp`, the one that `import llama_cpp` uses before or afterwards.

    Raises BackendError where it is not installed or does not load.
    """
    with _lock:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise BackendError(
                "the language model needs llama-cpp-python, not installed here; see docs/deployment.md"
            )
        (folder,) = map(Path, spec.submodule_search_locations)
        try:
            for name in FILES:
                _load_file(f"{PACKAGE}.{name}", folder / f"{name}.py")
        except (OSError, RuntimeError) as error:  # its library does not fit this machine
            raise BackendError(f"llama-cpp-python does not load: {str(error).splitlines()[0]}") from error
        return sys.modules[f"{PACKAGE}.{FILES[-1]}"]


def _load_file(name: str, path: Path) -> None:
    """Run one file of a package under its own name, unless it has been: its package is not run."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OSError(f"{path}: no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


class _Library:
    """The bindings' names; each is kept once it has been looked up."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(load(), name)
        setattr(self, name, value)
        return value


llama_cpp: Any = _Library()
