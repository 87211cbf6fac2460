"""RadVLM on the device: a sealed bundle and a chest film in, an answer out, offline.

reader = Reader.open("radvlm.bundle")
study = reader.look("xray.dcm")
answer = study.ask("any effusion?")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from radvlm_edge.errors import RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.answer import Answer
    from radvlm_edge.runtime.reader import Options, Reader, Study

    __version__: str

# ONNX Runtime's Linux builds from 1.29 on keep a device id and report models, hardware and program path to
# their maker. The variable must be set before they are loaded; disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["Answer", "Options", "RadvlmError", "Reader", "Study", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the engines only when the reader is first used, and look the version up when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("radvlm-edge")
    if name in __all__:
        from radvlm_edge.runtime import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
