"""`radvlm-edge node`: films by C-STORE, structured reports back by C-STORE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import (
    audit_option,
    film_options,
    need,
    notice,
    open_reader,
    parse_size,
    reader_options,
    study_options,
)

FILE = click.Path(path_type=Path)


@click.command()
@reader_options
@film_options
@study_options
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--ae", default="RADVLM", show_default=True, help="Own AE title.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; others need --allow.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=11112, show_default=True, help="0: any free one."
)
@click.option("--to", metavar="AE@HOST:PORT", help="The PACS results go to; nothing else is connected to.")
@click.option("--allow", multiple=True, metavar="AE", help="AE title that may send films. Repeatable.")
@click.option(
    "--questions",
    type=FILE,
    metavar="FILE",
    help="What every film is asked, one a line: a question, or @TASK.  [default: @checklist and @detect]",
)
@click.option(
    "--folder",
    type=FILE,
    metavar="DIR",
    help="Queue, films and results; patient data.  [default: ~/.local/state/radvlm-edge/node]",
)
@click.option("--capture", is_flag=True, help="Also send a secondary capture with the boxes drawn in.")
@click.option("--any-view", is_flag=True, help="Answer laterals and other body parts, too.")
@click.option("--forget", is_flag=True, help="Keep no K/V state of films worked off.")
@click.option("--tls-cert", type=FILE, metavar="PEM", help="Certificate chain; TLS alone is spoken.")
@click.option("--tls-key", type=FILE, metavar="PEM", help="Its unencrypted private key.")
@click.option("--tls-clients", type=FILE, metavar="PEM", help="Authorities senders' certificates come from.")
@click.option(
    "--to-tls", type=FILE, metavar="PEM", help="TLS to the PACS, whose certificate comes from these."
)
@click.option(
    "--queue", type=click.IntRange(1), default=10_000, show_default=True, help="Films that may wait."
)
@click.option(
    "--reserve",
    callback=parse_size,
    metavar="SIZE",
    default="512MiB",
    show_default=True,
    help="Disk space left free; films are refused before it is used.",
)
@click.option(
    "--give-up-hours",
    type=click.FloatRange(0, min_open=True),
    default=72.0,
    show_default=True,
    help="Results undeliverable for so long become dead letters.",
)
@audit_option
@click.option("--status", is_flag=True, help="Say what is in the folder as JSON, and end.")
@click.option("--revive", is_flag=True, help="With --status: let dead letters be sent again.")
def node(
    bundle: Path | None,
    to: str | None,
    folder: Path | None,
    questions: Path | None,
    any_view: bool,
    forget: bool,
    status: bool,
    revive: bool,
    audit: Path | None,
    **options: Any,
) -> None:
    """Be a DICOM node: read every film that is stored here and store a report at the PACS (docs/node.md).

    A film (CR or DX) is acknowledged when it is on disk. It is asked the standard questions; a Comprehensive
    3D SR (TID 1500), unverified, and where there are boxes a presentation state go to --to, in new series of
    the film's study. A film that cannot be read gets a report that says so. SIGTERM ends it; so does SIGKILL,
    without losing a film.

    \b
      radvlm-edge node --to PACS@127.0.0.1:4242
      radvlm-edge node --host 0.0.0.0 --allow CR1 --allow CR2 --to PACS@pacs.local:104 --detail 768
      radvlm-edge node --status
    """
    need("node", "pynetdicom", "highdicom")
    from radvlm_edge.audit import AuditLog
    from radvlm_edge.listening import is_loopback
    from radvlm_edge.node.folder import default_folder
    from radvlm_edge.node.node import run
    from radvlm_edge.node.node import status as look_at
    from radvlm_edge.node.questions import Questions
    from radvlm_edge.node.settings import Peer, Settings
    from radvlm_edge.node.trouble import log_to_stderr

    folder = folder or default_folder()
    if status or revive:
        click.echo(json.dumps(look_at(folder, revive=revive), indent=1))
        return
    if to is None:
        raise click.UsageError("--to AE@HOST:PORT is needed: the PACS results are sent to")
    own = {
        name: options.pop(name)
        for name in ("ae", "host", "port", "capture", "queue", "tls_cert", "tls_key", "tls_clients", "to_tls")
    }
    settings = Settings(
        to=Peer.parse(to),
        folder=folder,
        allow=options.pop("allow"),
        reserve_bytes=options.pop("reserve"),
        give_up_s=options.pop("give_up_hours") * 3600,
        **own,
    )
    settings.check()
    if settings.tls_cert is None and not is_loopback(settings.host):
        click.echo("radvlm-edge: no TLS: films cross the network in the clear; pass --tls-cert", err=True)
    asked = Questions.load(questions)
    if not forget and options["study_cache"] is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options["study_cache"] = folder / "studies"
    stderr = log_to_stderr()
    log = AuditLog(audit) if audit is not None else None
    with open_reader(bundle, **options) as reader:

        def ready(port: int) -> None:
            click.echo(f"radvlm-edge: {settings.ae} takes films on {settings.host}:{port}", file=stderr)

        run(reader, settings, asked, ready, any_view=any_view, audit=log)
        click.echo(notice(reader.bundle.manifest), err=True)
