"""`radvlm-edge studies`: what a study cache holds, and emptying it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from radvlm_edge.runtime.studies import Entry

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def studies() -> None:
    """What a study cache (`infer --study-cache DIR`) holds, and emptying it.

    A kept study is patient data: a transform of the film, from which much of it can be told. No names,
    paths or identifiers are stored or shown.
    """


@studies.command("list")
@folder_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_studies(folder: Path, as_json: bool) -> None:
    """List kept studies, last used first; damaged and unfinished files are marked."""
    from radvlm_edge.runtime.studies import entries

    found = entries(folder)
    total = sum(entry.bytes for entry in found)
    if as_json:
        click.echo(json.dumps({"bytes": total, "studies": [_record(entry) for entry in found]}))
        return
    if found:
        click.echo(f"{'study':<14}{'MiB':>9}{'tokens':>8}  {'written':<17}{'last used':<17}{'':<11}bundle")
    for entry in found:
        row = _record(entry)
        state = "encrypted" if row["encrypted"] else "in clear" if row["whole"] else "not whole"
        click.echo(
            f"{row['study'][:12]:<14}{entry.bytes / 2**20:>9.1f}{row['tokens'] or '-':>8}  "
            f"{row['written'][:16]:<17}{row['used'][:16]:<17}{state:<11}{(row['bundle'] or '-')[:12]}"
        )
    click.echo(f"{folder}: {len(found)} files, {total / 2**20:.1f} MiB")


@studies.command()
@folder_argument
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Those written longer ago.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
def purge(folder: Path, older_than: float | None, everything: bool) -> None:
    """Remove kept studies; other files in the folder are left alone.

    Files are unlinked, not overwritten: on a disk that is not encrypted, use a key (--study-cache-key).
    """
    if everything == (older_than is not None):
        raise click.UsageError("pass either --older-than DAYS or --all")
    from radvlm_edge.runtime import studies as store

    count, size = store.purge(folder, older_than_days=older_than or 0.0)
    click.echo(f"{folder}: {count} files, {size / 2**20:.1f} MiB removed")


def _record(entry: Entry) -> dict[str, Any]:
    header = entry.header
    return {
        "study": entry.path.name.lstrip(".").partition(".")[0],
        "bytes": entry.bytes,
        "written": _iso(entry.written_s),
        "used": _iso(entry.used_s),
        "whole": header is not None,
        "encrypted": header is not None and header.nonce is not None,
        "tokens": header.tokens if header else None,
        "bundle": header.bundle if header else None,
    }


def _iso(seconds: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
