"""The few llama.cpp calls the language stage is made of, as Python values.

Everything ctypes stays in this file, so that another build or engine replaces it alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.gguf_check import check_header
from radvlm_edge.runtime.llama_library import llama_cpp
from radvlm_edge.runtime.llama_settings import settings_for
from radvlm_edge.runtime.versions import version_of

if TYPE_CHECKING:
    from radvlm_edge.runtime.overlap import Coming


@lru_cache(maxsize=1)
def _silent() -> Any:
    """A callback that says nothing: llama.cpp logs hundreds of lines a load; what matters is an error."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def quiet() -> None:
    """Keep llama.cpp from writing to stderr, and ready its backends."""
    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    _load_modules()
    llama_cpp.llama_backend_init()


def _load_modules() -> None:
    """Load the kernels a build for any CPU keeps as modules; llama.cpp takes the best for this one.

    It would look beside the Python interpreter. Raises BackendError where none fits this CPU.
    """
    library = llama_cpp._lib
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count():
        return
    folder = Path(library._name).parent
    library.ggml_backend_load_all_from_path(ctypes.c_char_p(os.fsencode(folder)))
    if not library.ggml_backend_reg_count():
        raise BackendError(f"{folder}: llama.cpp has no kernels for this CPU; install a build that has")


Buffer = bytes | bytearray | memoryview

PREFIX, TAIL, FIRST_BRANCH, BRANCHES = 0, 1, 2, 16
"""Sequences of a context: what all questions share, the question in hand, and questions asked together."""

ENDS_BYTES = 4 << 20
"""Of a library larger than twice this (CUDA kernels), only both ends and the size are hashed."""


def build_identity() -> dict[str, object]:
    """What K/V states depend on besides model and input: the libraries this process loaded, by content,
    the instructions they use on this CPU, and the version of the states' format.
    """
    fields = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text("utf-8").splitlines())
    mapped = {Path(field[5]) for field in fields if len(field) == 6}
    sha = hashlib.sha256()
    for path in sorted(path for path in mapped if path.name.startswith(("libllama.", "libggml"))):
        size = path.stat().st_size
        with path.open("rb") as file:
            sha.update(f"{path.name} {size} ".encode() + file.read(ENDS_BYTES))
            file.seek(max(size - ENDS_BYTES, ENDS_BYTES))
            sha.update(file.read())
    return {
        "libraries": sha.hexdigest(),
        "version": version_of("llama-cpp-python"),
        "system": llama_cpp.llama_print_system_info().decode(),
        "state": llama_cpp.LLAMA_STATE_SEQ_VERSION,
    }


class Row(NamedTuple):
    """One token of a batch that several sequences share."""

    token: int
    position: int
    sequence: int
    logits: bool
    """Whether logits are wanted after it."""


class Llama:
    """A model and one context: sequences of positions whose K and V are kept.

    Not thread-safe: one caller at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        gpu_layers: int | None = None,
        flash_attention: str | None = None,
        kv_type: str | None = None,
        repack: bool = True,
    ) -> None:
        quiet()
        offload = bool(llama_cpp.llama_supports_gpu_offload())
        wanted = settings_for(gpu_layers, flash_attention, kv_type, offload=offload)
        self.on_gpu = offload and wanted.gpu_layers != 0
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = wanted.gpu_layers
        options.use_extra_bufts = repack  # faster kernels on a copy of the weights, which costs their size
        check_header(path)
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise BackendError(
                f"{path}: llama.cpp cannot load this file; run `radvlm-edge verify` on its bundle"
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.embed_dim: int = llama_cpp.llama_model_n_embd(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = context, FIRST_BRANCH + BRANCHES, True
        params.n_batch = params.n_ubatch = self.batch = min(512, context)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        params.flash_attn_type = wanted.flash
        params.type_k = params.type_v = wanted.kv_type
        self.settings: dict[str, int] = {
            "type_k": params.type_k,
            "type_v": params.type_v,
            "ubatch": params.n_ubatch,
            "repack": int(repack),
            "gpu_layers": wanted.gpu_layers,
            "flash": wanted.flash,
        }
        """What K and V depend on, as given to llama.cpp."""
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise BackendError(
                f"{path}: llama.cpp has no memory for a context of {context} tokens, or "
                "cannot keep it as asked (--kv-type, --flash-attention)"
            )
        # llama.cpp rounds up; the caller's limit stays the limit.
        self.context: int = min(context, llama_cpp.llama_n_ctx(self._context))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._one: Any = None
        self._pieces: dict[int, bytes] = {}
        self._seen: tuple[int, npt.NDArray[np.float32]] | None = None

    def close(self) -> None:
        if self._context:
            if self._one is not None:
                llama_cpp.llama_batch_free(self._one)
            self._one = self._seen = None
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
            self._context = self._memory = self._vocab = self._model = None

    def _live(self, handle: Any) -> Any:
        """A pointer into llama.cpp, which would end the process where it has been freed."""
        if handle is None:
            raise BackendError("the reader has been closed; read its answers before that, or open it again")
        return handle

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; with `special`, spellings of special tokens become those tokens.

        Qwen2's tokenizer composes characters first (Unicode NFC), llama.cpp's does not.
        """
        raw = unicodedata.normalize("NFC", text).encode()
        ids = (llama_cpp.llama_token * (len(raw) + 2))()
        count = llama_cpp.llama_tokenize(
            self._live(self._vocab), raw, len(raw), ids, len(ids), False, special
        )
        if count < 0:
            raise BackendError(f"llama.cpp cannot tokenise a text of {len(raw)} bytes")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Bytes a token stands for; none for special tokens."""
        vocab, known = self._live(self._vocab), self._pieces.get(token)
        if known is not None:
            return known
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
        self._pieces[token] = buffer.raw[: max(count, 0)]
        return self._pieces[token]

    def decode(self, items: list[int] | npt.NDArray[np.float32] | Coming, start: int, sequence: int) -> None:
        """Run tokens (ids, or embeddings `[t, d]` float32) from position `start` of a sequence.

        Logits are computed for the last one only.
        """
        for offset in range(0, len(items), self.batch):
            part = items[offset : offset + self.batch]
            last = offset + len(part) == len(items)
            self._decode_batch(part, start + offset, sequence, last)

    def _decode_batch(
        self, items: list[int] | npt.NDArray[np.float32], start: int, sequence: int, want_logits: bool
    ) -> None:
        count = len(items)
        width = self.embed_dim if isinstance(items, np.ndarray) else 0
        batch = llama_cpp.llama_batch_init(count, width, 1)
        try:
            batch.n_tokens = count
            if isinstance(items, np.ndarray):
                source = np.ascontiguousarray(items, dtype=np.float32)
                ctypes.memmove(batch.embd, source.ctypes.data, source.nbytes)
            else:
                for i, token in enumerate(items):
                    batch.token[i] = token
            for i in range(count):
                batch.pos[i] = start + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = want_logits and i == count - 1
            self._run(batch, start)
        finally:
            llama_cpp.llama_batch_free(batch)

    def step(self, token: int, position: int, sequence: int) -> None:
        """Run one token; logits follow it. As `decode` of one, with a batch that is kept."""
        if self._one is None:
            self._one = llama_cpp.llama_batch_init(1, 0, 1)
            self._one.n_tokens, self._one.n_seq_id[0], self._one.logits[0] = 1, 1, True
        self._one.token[0], self._one.pos[0], self._one.seq_id[0][0] = token, position, sequence
        self._run(self._one, position)

    def run(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Run tokens of several sequences together; logits `[n, vocab]` of the rows that want them, in order.

        Tokens of a sequence must follow each other in ascending positions.
        """
        found = []
        for offset in range(0, len(rows), self.batch):
            part = rows[offset : offset + self.batch]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for i, row in enumerate(part):
                    batch.token[i], batch.pos[i] = row.token, row.position
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, row.sequence
                    batch.logits[i] = row.logits
                self._run(batch, part[0].position)
            finally:
                llama_cpp.llama_batch_free(batch)
            found += [self.logits(i) for i, row in enumerate(part) if row.logits]
        return np.stack(found)

    def _run(self, batch: Any, start: int) -> None:
        status = llama_cpp.llama_decode(self._live(self._context), batch)
        if status != 0:
            raise BackendError(
                f"llama.cpp could not run {batch.n_tokens} tokens at position {start} (status {status}); "
                f"its context holds {self.context}"
            )

    def logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """Logits `[vocab]` after a token of the last batch that wanted them (-1: the last; a copy)."""
        return self.peek(index).copy()

    def peek(self, index: int = -1) -> npt.NDArray[np.float32]:
        """As `logits`, where llama.cpp keeps them: only until the next batch is run."""
        pointer = llama_cpp.llama_get_logits_ith(self._live(self._context), index)
        address = ctypes.addressof(pointer.contents)
        if self._seen is None or self._seen[0] != address:  # llama.cpp writes to one place most of the time
            self._seen = address, np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))
        return self._seen[1]

    def fork(self, source: int, target: int) -> None:
        """Let sequence `target` share everything `source` holds."""
        llama_cpp.llama_memory_seq_rm(self._live(self._memory), target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._live(self._memory), source, target, -1, -1)

    def forget(self, sequence: int, start: int = -1) -> None:
        """Drop a sequence from position `start` on (-1: all of it)."""
        llama_cpp.llama_memory_seq_rm(self._live(self._memory), sequence, start, -1)

    def length(self, sequence: int) -> int:
        """Positions a sequence holds."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._live(self._memory), sequence)) + 1

    def state_bytes(self, sequence: int) -> int:
        """Size of what `save` would return."""
        return int(llama_cpp.llama_state_seq_get_size(self._live(self._context), sequence))

    def save(self, sequence: int) -> bytearray:
        """K and V of a sequence as llama.cpp serialises them."""
        size = self.state_bytes(sequence)
        state = bytearray(size)
        buffer = (ctypes.c_uint8 * size).from_buffer(state)  # no copy
        written = llama_cpp.llama_state_seq_get_data(self._live(self._context), buffer, size, sequence)
        del buffer  # it holds the length
        del state[written:]
        return state

    def restore(self, sequence: int, state: Buffer) -> None:
        """Put a saved sequence back; bitwise what it was."""
        source = np.frombuffer(state, np.uint8)  # no copy
        pointer = source.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not llama_cpp.llama_state_seq_set_data(self._live(self._context), pointer, len(source), sequence):
            raise BackendError("llama.cpp refused a saved K/V state; look at the film again")
