"""Bundle and target in, kit out: every part gathered, listed, hashed and, with a key, signed."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import KitError
from radvlm_edge.integrity import SIGNATURE, SUMS, digests, read_sums, sums_text
from radvlm_edge.kit import archive
from radvlm_edge.kit.card import card
from radvlm_edge.kit.sbom import sbom
from radvlm_edge.kit.targets import Target, pythons_for
from radvlm_edge.kit.wheels import Gathered, gather

SCHEMA = 1
"""Version of kit.json; install.sh refuses others."""
FILES = ("install.sh", "README.txt", "units/radvlm-edge-serve.service", "units/radvlm-edge-node@.service")
"""What ships as it lies in this folder's `files/`."""
RESTRICTED = "DO-NOT-PASS-ON.txt"
BASE_MIB, FILMS_MIB = 1024, 2560
"""Interpreter and engines with their scratch memory; what the service keeps of films at most
(docs/serving.md: 512 MiB of pixels, 2 GiB of K/V states)."""
COMPILING_MIB = 2048
"""Scratch space of a build on the target; a guess, none was run there."""
_NAME = re.compile(r"[A-Za-z0-9._+@-]+(?:/[A-Za-z0-9._+@-]+)*")


@dataclass(frozen=True)
class Wanted:
    """What the caller wants of a kit."""

    target: Target
    pythons: tuple[str, ...] = ()
    wheels: tuple[Path, ...] = ()
    """Folders of ready wheels, looked at before anything is built or fetched."""
    index: bool = True
    """False: nothing is fetched."""
    licence_held: bool = False
    """The caller may pass on a bundle that is not redistributable, within its licence."""
    model_card: Path | None = None
    key: Path | None = None
    """Ed25519 private key in PEM that signs the kit."""


def pack(
    bundle: Bundle,
    wanted: Wanted,
    out: Path,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a kit; return its kit.json and, as `bytes`, its size.

    Raises KitError for a bundle that may not be passed on, BundleError for one that is not as sealed,
    OutputError where the kit cannot be written; nothing is left behind then.
    """
    _may_pass_on(bundle, wanted)
    archive.check_name(out, force=force)
    key = _load_key(wanted.key)
    bundle.verify()
    pythons = pythons_for(wanted.target, wanted.pythons)
    with tempfile.TemporaryDirectory(prefix="radvlm-kit-") as work:
        gathered = gather(
            wanted.target, pythons, list(wanted.wheels), Path(work), index=wanted.index, say=say
        )
        facts = describe(bundle, wanted.target, pythons, gathered)
        contents = assemble(bundle, wanted, facts, gathered)
        sums = sums_text(_digests(contents)).encode()
        contents[SUMS] = sums
        if key is not None:
            contents[SIGNATURE] = key.sign(sums)
        say("writing the archive")
        size = archive.write(out, facts["folder"], contents, force=force)
    return {**facts, "bytes": size}


def describe(bundle: Bundle, target: Target, pythons: tuple[str, ...], gathered: Gathered) -> dict[str, Any]:
    """kit.json: what install.sh has to know, one fact a line."""
    manifest, version = bundle.manifest, str(gathered.own.version)
    restricted = "" if manifest.redistributable else "-restricted"
    weights = sum(path.stat().st_size for path in _bundle_files(bundle).values())
    packed = sum(one.path.stat().st_size for one in gathered.files.values())
    return {
        "schema": SCHEMA,
        "folder": f"radvlm-edge-{version}-{_safe(manifest.name)}-{target.name}{restricted}",
        "version": version,
        "target": target.name,
        "arch": target.arch,
        "glibc": gathered.glibc,
        "pythons": " ".join(pythons),
        "jetson": target.jetson,
        "compiled": " ".join(sorted(target.sources)),
        "bundle": _safe(manifest.name),
        "bundle_sha256": bundle.sha256,
        "redistributable": manifest.redistributable,
        "demonstration": manifest.demonstration,
        "memory_mib": memory_mib(bundle),
        "disk_mib": (4 * packed + weights >> 20) + COMPILING_MIB * len(target.sources) + 64,
    }


def memory_mib(bundle: Bundle) -> int:
    """MemoryMax of the service in MiB: half more than the largest artefact of each role, and what it keeps.

    A bundle whose tower or context takes more needs a drop-in (docs/offline.md).
    """
    largest: dict[str, int] = {}
    for artefact in bundle.manifest.artefacts:
        largest[artefact.role] = max(largest.get(artefact.role, 0), artefact.bytes)
    geometry = bundle.manifest.geometry
    context = geometry.kv_bytes_per_token * geometry.context
    return (3 * sum(largest.values()) // 2 + context >> 20) + BASE_MIB + FILMS_MIB


def assemble(
    bundle: Bundle, wanted: Wanted, facts: Mapping[str, Any], gathered: Gathered
) -> dict[str, Path | bytes]:
    """Every file of a kit but SHA256SUMS and its signature: name → file, or content made here."""
    contents: dict[str, Path | bytes] = {}
    shipped = resources.files("radvlm_edge.kit") / "files"
    for name in FILES:
        contents[name] = shipped.joinpath(*name.split("/")).read_bytes()
    contents["licences/llama.cpp/LICENSE"] = (shipped / "licences" / "llama.cpp.txt").read_bytes()
    contents["kit.json"] = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
    for name, path in _bundle_files(bundle).items():
        contents[f"bundle/{name}"] = path
    for name, one in gathered.files.items():
        contents[f"wheels/{name}"] = one.path
        for inside, text in one.licence_texts().items():
            contents[f"licences/{one.name}-{one.version}/{_plain(inside)}"] = text
    for python, lock in gathered.locks.items():
        contents[f"requirements/{python}.txt"] = lock.encode()
    identity = {"name": "radvlm-edge-kit", "version": facts["version"], "target": facts["target"]}
    bill = sbom(identity, gathered.files.values(), gathered.needs, bundle)
    contents["sbom.cdx.json"] = (json.dumps(bill, indent=1, ensure_ascii=False) + "\n").encode()
    contents["MODEL_CARD.md"] = card(bundle, _given_card(wanted.model_card)).encode()
    if not bundle.manifest.redistributable:
        contents[RESTRICTED] = _restriction(bundle).encode()
    return contents


def _may_pass_on(bundle: Bundle, wanted: Wanted) -> None:
    if not bundle.manifest.redistributable and not wanted.licence_held:
        raise KitError(
            f"{bundle.folder}: its licence ({bundle.manifest.licence}) does not let it be passed on; if you "
            "hold the licence and the kit stays with those who do, pass --i-hold-the-license"
        )


def _load_key(path: Path | None) -> Any:
    """The signing key, before any work is done for a kit that could not be signed."""
    if path is None:
        return None
    from radvlm_edge.signing import load_private

    return load_private(path)


def _digests(contents: Mapping[str, Path | bytes]) -> dict[str, str]:
    files = {name: part for name, part in contents.items() if isinstance(part, Path)}
    made = {
        name: hashlib.sha256(part).hexdigest() for name, part in contents.items() if isinstance(part, bytes)
    }
    for name in contents:
        if not _NAME.fullmatch(name) or ".." in name.split("/"):
            raise KitError(
                f"{name}: letters, digits and . _ + - @ alone may make up a kit's file names; rename it"
            )
    return digests(files) | made


def _bundle_files(bundle: Bundle) -> dict[str, Path]:
    """Files of a verified bundle by name, its sums and signature included."""
    names = [*read_sums(bundle.folder), SUMS, *([SIGNATURE] if bundle.signed else [])]
    return {name: bundle.folder / name for name in names}


def _given_card(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: no model card that can be read ({error}); pass a Markdown file") from error


def _plain(inside: str) -> str:
    """A licence's path inside its wheel as a kit may hold it."""
    parts = inside.split("/")
    kept = parts[1:] if ".dist-info" in parts[0] else parts
    return "/".join(_safe(part) for part in kept if part not in ("", ".", "..", "licenses"))


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)


def _restriction(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return (
        f"This kit holds {manifest.name}, whose licence does not let it be passed on:\n\n"
        f"    {manifest.licence}\n\n"
        "Whoever packed it declared to hold that licence. Install it only where the licence allows,\n"
        "give it to nobody else, and delete the medium it came on.\n"
    )
