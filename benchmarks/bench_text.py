"""What `bench` measured, as a table to read and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks import bench_cases as cases
from radvlm_edge.benchmarks import bench_child as processes
from radvlm_edge.benchmarks.plot import LINE_PX, Picture, bars

MIB = 2**20
ROW_PX = 28
PARTS = ("DICOM", "crops", "vision", "prefill", "decode", "detokenise", "start", "load", "cache")
"""Every part there is, in the order of the colours."""


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The figures as text."""
    host = result["machine"]
    yield f"{host['cpu']}, {host['cpus']} CPUs, {host['memory_bytes'] / 2**30:.1f} GiB; {result['film']}"
    ceilings = result["ceilings"]
    yield (
        f"at best: read {ceilings['read_bytes_per_s'] / 1e9:.1f} GB/s, copy "
        f"{ceilings['copy_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"fp32 {ceilings['fp32_operations_per_s'] / 1e9:.0f} Gop/s, "
        f"int8 {ceilings['int8_operations_per_s'] / 1e9:.0f} Gop/s"
    )
    for name, one in result["variants"].items():
        yield ""
        engines = ", ".join(f"{role} {engine}" for role, engine in one["engines"].items())
        yield f"{name}: {engines}; loaded in {one['load_ms']:.0f} ms"
        yield f"{'ms':<34}{'min':>10}{'median':>10}{'p95':>10}"
        for case, row in one["cases"].items():
            yield _row(case, row["ms"]["total"], _counts(row["counts"]))
            yield from (
                _row(f"  {part}", values, "") for part, values in row["ms"].items() if part != "total"
            )
        yield from _extras(one, result["energy"])


def _row(name: str, values: dict[str, float], note: str) -> str:
    return f"{name:<34}{values['min']:>10.1f}{values['median']:>10.1f}{values['p95']:>10.1f}  {note}".rstrip()


def _counts(counts: dict[str, int]) -> str:
    said = [f"{counts['prefilled']} tokens prefilled", f"{counts['steps']} steps"]
    if "peak_bytes" in counts:
        said += [f"peak {counts['peak_bytes'] / MIB:.0f} MiB", f"study {counts['study_bytes'] / MIB:.1f} MiB"]
    return ", ".join(said)


def _extras(one: dict[str, Any], energy: dict[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in one["bytes"].items())
    yield f"on disk: {sizes}"
    if "roofline" not in one:
        return
    for phase, row in one["roofline"].items():
        unit = "GB/s" if phase == "decode" else "Gop/s"
        share = (
            "ceiling not measured on a GPU"
            if row["fraction"] is None
            else f"{row['fraction']:.0%} of {row['ceiling']}"
        )
        yield f"{phase:<10}{row['per_s'] / 1e9:>10.1f} {unit}  {share}"
    if one["joules_per_study"]:
        for meter, row in one["joules_per_study"].items():
            yield f"energy a study, {meter}: {row['median']:.1f} J"
    else:
        why = "; ".join(f"{name}: {reason}" for name, reason in energy["missing"].items())
        yield f"energy: not measured ({why})"


def draw(result: dict[str, Any], path: Path) -> None:
    """Stacked bars of the medians: one panel a case, one bar a variant. Raises OutputError."""
    order = (*cases.CASES, processes.FIRST, processes.SECOND)
    panels = [case for case in order if any(case in one["cases"] for one in result["variants"].values())]
    rows = {
        case: {
            name: one["cases"][case]["ms"] for name, one in result["variants"].items() if case in one["cases"]
        }
        for case in panels
    }
    height = 60 + sum(6 * LINE_PX + ROW_PX * len(found) for found in rows.values())
    picture = Picture(1100, height)
    picture.text(
        24, 14, f"{result['bundle']['name']} on {result['machine']['cpu']}, {result['machine']['cpus']} CPUs"
    )
    top = 44
    for case, found in rows.items():
        picture.text(24, top, f"{case} (median ms of {result['repeats']})")
        bar_rows = [
            (name, {part: row["median"] for part, row in ms.items() if part != "total"})
            for name, ms in found.items()
        ]
        top = bars(picture, top + LINE_PX, bar_rows, "ms", PARTS)
    picture.save(path)
