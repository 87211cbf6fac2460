"""`radvlm-edge serve`: the OpenAI-compatible API and the viewer, on one address."""

from __future__ import annotations

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


@click.command()
@reader_options
@film_options
@study_options
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; others need a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Clients must send this token; without it RADVLM_EDGE_TOKEN is used, if set.",
)
@click.option(
    "--tls-cert", type=click.Path(path_type=Path), metavar="PEM", help="Certificate chain; HTTPS alone."
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="Its unencrypted private key."
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that may wait; more get 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time of a request, waiting and answering.",
)
@click.option(
    "--upload-limit",
    callback=parse_size,
    metavar="SIZE",
    default="64MiB",
    show_default=True,
    help="Largest film.",
)
@click.option(
    "--studies",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Films kept for further questions.",
)
@click.option(
    "--study-minutes",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Forget films nobody asked about for this long.",
)
@audit_option
def serve(
    bundle: Path | None,
    host: str,
    port: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    queue: int,
    timeout: float,
    upload_limit: int,
    studies: int,
    study_minutes: float,
    audit: Path | None,
    **options: Any,
) -> None:
    """Serve a bundle: an OpenAI-compatible API and a page to look at films with (docs/serving.md).

    One model answers one request at a time. Reachable from this machine alone unless --host says otherwise;
    then a token is required. Nothing is ever fetched from, or sent to, another machine. Ctrl-C or SIGTERM
    ends it when the requests under way are answered.

    \b
      radvlm-edge serve
      radvlm-edge serve --bundle radvlm.bundle --host 0.0.0.0 --token-file TOKEN --tls-cert C --tls-key K
    """
    need("serve", "starlette", "uvicorn")
    from radvlm_edge.serve.server import run
    from radvlm_edge.serve.settings import Settings, load_token

    settings = Settings(
        host=host,
        port=port,
        token=load_token(token_file),
        tls_cert=tls_cert,
        tls_key=tls_key,
        queue=queue,
        timeout_s=timeout,
        upload_bytes=upload_limit,
        studies=studies,
        study_s=study_minutes * 60,
        audit=audit,
    )
    settings.check()
    if not settings.loopback and settings.tls_cert is None:
        click.echo(
            "radvlm-edge: no TLS: token, films and answers cross the network in the clear; pass "
            "--tls-cert and --tls-key, or put a proxy with TLS in front",
            err=True,
        )
    with open_reader(bundle, **options) as reader:
        run(reader, settings, lambda url: click.echo(f"radvlm-edge: serving on {url}", err=True))
        click.echo(notice(reader.bundle.manifest), err=True)
