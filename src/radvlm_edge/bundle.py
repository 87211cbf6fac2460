"""The bundle: the sealed folder where the torch world and the numpy world meet.

bundle.json      what the bundle says about itself (this file's dataclasses)
SHA256SUMS       digest of every other file, in sha256sum's own format
SHA256SUMS.sig   optional: Ed25519 signature over it (signing.py)
vision/          uint8 crops in, projected tokens out; image_newline.npy; int8.json: calibration of INT8
language/        GGUF: language model, tokenizer, chat template; phrases.txt: answers to guess from
prefill/         optional: the language model's prefill as a graph for other engines; int8.json as in vision/
parity.json      how each artefact compares with the checkpoint
fidelity.json    optional: how answers of each combination of artefacts compare (export/fidelity.py)
confidence.json  optional: how a temperature was fitted and what it gave (calibration/confidence.py)
golden.npz       small tensors for a self-test on the target
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from radvlm_edge.errors import BundleError, OutputError
from radvlm_edge.geometry import Geometry
from radvlm_edge.integrity import SIGNATURE, SUMS, Memory, Progress, digests, problems, read_sums, sums_text
from radvlm_edge.integrity import digest as digest
from radvlm_edge.manifest_check import problem

SCHEMA = 1
"""Version of bundle.json; a reader refuses newer ones."""

MANIFEST = "bundle.json"

PHRASES = "language/phrases.txt"
"""Optional: answers that may be redistributed, one a line, which the runtime guesses from (drafting.py)."""

LIMITS = {"flip_rate": 0.01, "box_iou_loss": 0.02}
"""How far answers may be from the checkpoint's where a bundle declares no other limits: fraction of
yes/no answers that turn round, and 1 minus the mean overlap of boxes."""


@dataclass(frozen=True)
class Artefact:
    """One file of weights, or a graph."""

    role: str
    """`vision`, `language` or `prefill`."""
    precision: str
    """`fp32`, `fp16`, `int8`, `int8-trt` for vision, the first three for prefill; for language a llama.cpp
    file type (`F16`, …)."""
    backend: str
    """`onnx` or `gguf`."""
    path: str
    """Relative to the bundle, with `/`."""
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Prompting:
    """What the checkpoint's tokenizer and generation config say about prompts."""

    chat_template: str
    """Jinja source, as the checkpoint ships it."""
    image_token: str
    stop_ids: tuple[int, ...]
    """Token ids that end an answer."""
    special_tokens: tuple[str, ...]
    """Spellings that must not occur in a question."""


@dataclass(frozen=True)
class Manifest:
    """bundle.json."""

    schema: int
    name: str
    demonstration: bool
    """True for a model that only shows the software; every answer says so."""
    redistributable: bool
    licence: str
    render: str
    """How films are rendered unless the caller says otherwise: `voi`, `minmax` or `mimic`."""
    source: dict[str, Any]
    """The checkpoint: `sha256` over its files, `architecture`, `files`."""
    geometry: Geometry
    preprocessing: dict[str, Any]
    """`mean`, `std`, `rescale`: inside the vision graph, recorded for the reader."""
    prompting: Prompting
    artefacts: tuple[Artefact, ...]
    defaults: dict[str, str]
    """Precision used for each role when the caller names none."""
    tools: dict[str, str]
    """Versions of what wrote the bundle."""
    calibration: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint says about its own training."""
    limits: dict[str, float] = field(default_factory=lambda: dict(LIMITS))
    """Declared limits of the answers' distance from the checkpoint's, as `LIMITS`."""
    fidelity: dict[str, Any] | None = None
    """Verdict of each measured combination `VISION+LANGUAGE`: the limits it is `beyond`, and `ever_beyond`,
    combinations that were once; `None` where nothing was measured. `detail`, if it was measured: the same of
    each combination with less of every film. Figures are in fidelity.json."""
    confidence: dict[str, Any] | None = None
    """Of each calibrated combination: `temperature`, `calibrated_on`, `detail`. Figures: confidence.json."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what it says."""

    folder: Path
    manifest: Manifest
    sha256: str
    """Digest of bundle.json, which lists every artefact's digest."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest without touching its weights.

        Raises BundleError when it is missing, incomplete, malformed or of a newer schema.
        """
        folder = Path(folder)
        try:
            raw = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"{folder}: no {MANIFEST} there; a bundle is made by `radvlm-edge export`"
            ) from None
        except OSError as error:
            raise BundleError(f"{folder / MANIFEST}: cannot be read: {error.strerror}") from error
        return cls(folder, _parse(raw, folder), hashlib.sha256(raw).hexdigest())

    def artefact(self, role: str, precision: str | None = None) -> Artefact:
        """Find an artefact by role and precision (`None`: the bundle's default)."""
        wanted = precision or self.manifest.defaults[role]
        held = {a.precision: a for a in self.manifest.artefacts if a.role == role}
        if wanted not in held:
            raise BundleError(
                f"{self.folder}: no {role} artefact {wanted!r}; this bundle has {', '.join(held) or 'none'}"
            )
        return held[wanted]

    def path(self, artefact: Artefact) -> Path:
        return self.folder / artefact.path

    def verify(self, progress: Progress | None = None) -> int:
        """Recompute every digest, in parallel; return the number of bytes read.

        Raises BundleError naming the files that are missing, altered or not listed.
        """
        self._judge(problems(self.folder, progress))
        return sum((self.folder / name).stat().st_size for name in read_sums(self.folder))

    def check(self) -> int:
        """As `verify`, but files that look as they did when last hashed are not read; return how many were.

        Raises BundleError as `verify`.
        """
        try:
            memory = Memory(self.folder, self.sha256)
        except OSError as error:
            raise BundleError(f"{self.folder / SUMS}: missing; copy the bundle again") from error
        before = memory.looks()
        known = memory.unchanged() & before.keys()
        self._judge(problems(self.folder, known=known))
        if known != before.keys():
            memory.remember(before)
        return len(before) - len(known)

    def _judge(self, found: list[str]) -> None:
        listed = read_sums(self.folder)
        if listed.get(MANIFEST) != self.sha256:
            found.append(f"{MANIFEST} changed since it was read")
        found += [
            f"{artefact.path}: {MANIFEST} and {SUMS} disagree"
            for artefact in self.manifest.artefacts
            if listed.get(artefact.path) != artefact.sha256
        ]
        if found:
            raise BundleError(
                f"{self.folder}: not the bundle that was sealed: {'; '.join(found)}; "
                "copy it again or export anew"
            )

    @property
    def signed(self) -> bool:
        """True if a signature lies beside SHA256SUMS; `verify --trust` says whose."""
        return (self.folder / SIGNATURE).exists()


def demo_bundle() -> Path:
    """Folder of the demonstration bundle that ships with the package."""
    return Path(__file__).with_name("demo.bundle")


class BundleWriter:
    """Writes a bundle beside its destination and renames it there when sealed.

    As a context manager it removes what it wrote if anything fails, so nothing half-written is
    ever found under the destination's name.
    """

    def __init__(self, out: Path, *, force: bool = False) -> None:
        if out.exists() and not force:
            raise OutputError(f"{out} exists already; choose another -o or pass --force to replace it")
        self.out = out
        self.folder = out.parent / f".{out.name}.partial-{os.getpid()}"
        self.artefacts: list[Artefact] = []

    def __enter__(self) -> BundleWriter:
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{self.out.parent}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        raise_unwritten(self.out, error, "nothing was left behind")

    def path(self, name: str) -> Path:
        """Path for a file inside the unfinished bundle; its folder exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, role: str, precision: str, backend: str, name: str) -> Artefact:
        """Record a file already written at `path(name)` as an artefact."""
        path = self.folder / name
        artefact = Artefact(role, precision, backend, name, digest(path), path.stat().st_size)
        self.artefacts.append(artefact)
        return artefact

    def digests(self, files: Mapping[str, Path]) -> dict[str, str]:
        """SHA-256 of every file of the bundle by name; a subclass may know some already."""
        return digests(files)

    def write_manifest(self, manifest: Manifest) -> None:
        self.path(MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")

    def seal(self) -> Bundle:
        """Write SHA256SUMS and move the bundle to its destination."""
        files = {
            p.relative_to(self.folder).as_posix(): p
            for p in self.folder.rglob("*")
            if p.is_file() and p.name not in (SUMS, SIGNATURE)
        }
        (self.folder / SUMS).write_text(sums_text(self.digests(files)), encoding="utf-8")
        move_into_place(self.folder, self.out)
        return Bundle.open(self.out)


def raise_unwritten(out: Path, error: BaseException | None, left: str) -> None:
    """Raise OutputError where a disk's refusal ended the writing of `out`; `left` says what is there."""
    if isinstance(error, OSError) and error.errno is not None:
        raise OutputError(f"{out}: not written: {os.strerror(error.errno)}; {left}") from error


def move_into_place(new: Path, out: Path) -> None:
    """Rename a finished folder to `out`; one that is there already is removed after, put back on failure."""
    if not out.exists():
        new.rename(out)
        return
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def manifest_text(manifest: Manifest) -> str:
    """bundle.json's content; what was never declared or measured is left out."""
    data = asdict(manifest)
    if manifest.limits == LIMITS:
        del data["limits"]
    for name in ("fidelity", "confidence"):
        if data[name] is None:
            del data[name]
    return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _parse(raw: bytes, folder: Path) -> Manifest:
    try:
        data = json.loads(raw)
        schema = data["schema"]
        if not isinstance(schema, int):
            raise TypeError("schema is not a number")
        if schema > SCHEMA:
            raise BundleError(
                f"{folder}: bundle schema {schema} is newer than this program's {SCHEMA}; upgrade radvlm-edge"
            )
        geometry = dict(data.pop("geometry"))
        geometry["pinpoints"] = tuple((int(h), int(w)) for h, w in geometry["pinpoints"])
        prompting = dict(data.pop("prompting"))
        for key in ("stop_ids", "special_tokens"):
            prompting[key] = tuple(prompting[key])
        manifest = Manifest(
            geometry=Geometry(**geometry),
            prompting=Prompting(**prompting),
            artefacts=tuple(Artefact(**a) for a in data.pop("artefacts")),
            **data,
        )
        wrong = problem(manifest)
        if wrong is not None:
            raise ValueError(wrong)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(
            f"{folder / MANIFEST}: not a bundle manifest ({error!r}); copy the bundle again"
        ) from error
