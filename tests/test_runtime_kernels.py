"""Kernels that a build of llama.cpp keeps as modules are loaded from its own folder, or the error says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import llama


class Modules:
    """libllama's three functions, as ctypes shows them, of a build whose kernels are modules."""

    _name = "/opt/llama/lib/libllama.so"

    def __init__(self, fitting: int) -> None:
        self.asked: list[bytes] = []
        self.ggml_backend_reg_count: Any = _Function(lambda: fitting if self.asked else 0)
        self.ggml_backend_load_all_from_path = lambda path: self.asked.append(path.value)


class _Function:
    def __init__(self, call: Any) -> None:
        self._call, self.restype = call, None

    def __call__(self) -> Any:
        return self._call()


@pytest.mark.parametrize("fitting", [0, 1])
def test_modules_are_loaded_from_the_folder_of_the_library(
    monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    library = Modules(fitting)
    monkeypatch.setattr(llama, "llama_cpp", SimpleNamespace(_lib=library))
    if fitting:
        llama._load_modules()
        llama._load_modules()
    else:
        with pytest.raises(BackendError, match="no kernels for this CPU"):
            llama._load_modules()
    assert library.asked == [b"/opt/llama/lib"]


def test_a_build_with_its_kernels_linked_in_loads_nothing_more() -> None:
    count = llama.llama_cpp._lib.ggml_backend_reg_count
    before = count()
    llama.quiet()
    assert count() == before if before else count() > 0
