"""RadVLM on the device: a sealed bundle and a chest film in, an answer out, offline.

reader = Reader.open("radvlm.bundle")
study = reader.look("xray.dcm")
answer = study.ask("any effusion?")
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from radvlm_edge.errors import RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.answer import Answer
    from radvlm_edge.runtime.reader import Options, Reader, Study

__all__ = ["Answer", "Options", "RadvlmError", "Reader", "Study", "__version__"]

__version__ = version("radvlm-edge")

# onnxruntime's Linux wheels of 1.32 keep a device id and report CPU, system and program path to their maker.
# The variable must be set before onnxruntime is imported; its disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> Any:
    """Load the engines only when the reader is first used."""
    if name in __all__:
        from radvlm_edge.runtime import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
