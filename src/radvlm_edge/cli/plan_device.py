"""`radvlm-edge plan --device`: one row a machine, everything in it derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.errors import BundleError
from radvlm_edge.export.quantisation import SUPER_BLOCK, rule_for
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime.crops import Layout
from radvlm_edge.runtime.devices import DEVICES, Device
from radvlm_edge.runtime.roofline import BITS, GIB, PUBLISHED, Network, estimate, network_of

COLUMNS = ("device", "artefacts", "needs", "has", "fits", "vision", "prefill", "decode", "first", "next")


def estimates(
    names: tuple[str, ...],
    folder: Path | None,
    geometry: str | None,
    layout: Layout,
    vision: str | None,
    language: str | None,
) -> list[dict[str, Any]]:
    """One JSON object a device, in the order asked for."""
    bundle = None if geometry else Bundle.open(folder or demo_bundle())
    network = network_of(bundle) if bundle else PUBLISHED[geometry or ""]
    shapes = bundle.manifest.geometry if bundle else GEOMETRIES[geometry or ""]
    rows = []
    for name in names:
        device = DEVICES[name]
        if bundle:
            artefacts = bundle.artefact("vision", vision), bundle.artefact("language", language)
            precisions = tuple(a.precision for a in artefacts)
            sizes = tuple(a.bytes for a in artefacts)
        else:
            whole = shapes.embed_dim % SUPER_BLOCK == 0
            precisions = vision or "fp16", language or _fitting(device, network, whole)
            sizes = _bytes("vision", precisions[0], network), _bytes("language", precisions[1], network)
        result = estimate(
            device,
            shapes,
            network,
            image_tokens=layout.image_tokens,
            crops=layout.crops,
            vision_bytes=sizes[0],
            language_bytes=sizes[1],
        )
        rows.append({"name": name, "vision": precisions[0], "language": precisions[1], **result.as_json()})
    return rows


def _fitting(device: Device, network: Network, whole: bool) -> str:
    return rule_for(network.language_weights, whole, device.kind).order[0]


def _bytes(role: str, precision: str, network: Network) -> int:
    known = [name for name in BITS if name.startswith("fp") == (role == "vision")]
    if precision not in known:
        raise BundleError(f"--{role} {precision}: its size is not known; choose from {', '.join(known)}")
    count = network.vision_weights if role == "vision" else network.language_weights
    return round(count * BITS[precision] / 8)


def table(rows: list[dict[str, Any]]) -> str:
    """The estimates as text, GiB and seconds, with their sources."""
    lines = [COLUMNS]
    for row in rows:
        need = sum(row[f"{part}_bytes"] for part in ("vision", "language", "kv", "workspace"))
        seconds = (
            row[f"{part}_s"] for part in ("vision", "prefill", "decode", "first_answer", "next_answer")
        )
        lines.append(
            (
                row["name"],
                f"{row['vision']} {row['language']}",
                f"{need / GIB:.2f} GiB",
                f"{row['available_bytes'] / GIB:.2f} GiB",
                "yes" if row["fits"] else "NO",
                *(f"{value:.2f} s" for value in seconds),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["", "derived, not measured: one film, an answer of 30 tokens, then another question"]
    text += [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    text += [f"{row['name']}: {row['source']}" for row in rows]
    return "\n".join(text)
