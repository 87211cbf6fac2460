"""`radvlm-edge audit`: is an audit log what was written, and what does it say of a film?"""

from __future__ import annotations

import json
from pathlib import Path

import click

log_argument = click.argument("log", metavar="LOG", type=click.Path(path_type=Path))


@click.group()
def audit() -> None:
    """Check and search an audit log: what the other commands write with --audit (docs/audit.md)."""


@audit.command()
@log_argument
@click.option(
    "--head",
    "anchor",
    metavar="SHA256",
    help="A digest this command printed earlier, noted elsewhere: its line must still be there.",
)
def verify(log: Path, anchor: str | None) -> None:
    """Follow the chain of LOG from its first line to its last; exit 1 at the first that is not as written.

    Prints the number of lines and the digest of the last: keep it where the log's writers cannot write.
    """
    from radvlm_edge.audit_check import verify as follow

    found = follow(log, anchor=anchor)
    for number in found.torn:
        click.echo(
            f"radvlm-edge: {log}: line {number} was cut short by a crash; line {number + 1} says so", err=True
        )
    if found.unfinished:
        number = found.head.lines + 1
        click.echo(
            f"radvlm-edge: {log}: line {number} is a beginning only: a crash while it was written", err=True
        )
    if found.uncounted:
        click.echo(
            f"radvlm-edge: {log}: the last {found.uncounted} lines are not counted in {log.name}.head: a "
            "process ended between the two",
            err=True,
        )
    click.echo(f"{log}: {found.head.lines} lines, each as written; head {found.head.sha256}")


@audit.command()
@log_argument
@click.option("--uid", metavar="UID", help="Lines about the film with this SOP Instance UID.")
@click.option("--answer", metavar="TEXT", help="Lines where exactly this answer was given.")
def find(log: Path, uid: str | None, answer: str | None) -> None:
    """Print the lines of LOG about a film, or with an answer, as JSON; needs LOG.salt."""
    if (uid is None) == (answer is None):
        raise click.UsageError("pass either --uid UID or --answer TEXT")
    from radvlm_edge.audit import concealed, load_salt
    from radvlm_edge.audit_check import records
    from radvlm_edge.audit_check import verify as follow

    follow(log)
    salt = load_salt(log)
    field, value = (
        ("film", concealed(salt, "uid", uid)) if uid else ("answer", concealed(salt, "answer", answer or ""))
    )
    for record in records(log):
        if record.get(field) == value:
            click.echo(json.dumps(record, ensure_ascii=False))
