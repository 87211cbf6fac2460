"""`radvlm-edge verify`: is this the bundle that was sealed, by whom, and does it compute what it should?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--trust", type=click.Path(path_type=Path), metavar="PUB.pem", help="Demand a signature by this key."
)
@click.option(
    "--sign", type=click.Path(path_type=Path), metavar="KEY.pem", help="Sign it, once it is found whole."
)
@click.option("--self-test", is_flag=True, help="Also run golden.npz through this machine's engines.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the self-test.")
def verify(bundle: Path, trust: Path | None, sign: Path | None, self_test: bool, threads: int | None) -> None:
    """Recompute every digest of a bundle, whatever is remembered from earlier openings.

    Keys are Ed25519 in PEM, as `openssl genpkey -algorithm ed25519` makes them (extra `sign`).
    """
    from radvlm_edge.bundle import Bundle

    opened = Bundle.open(bundle)
    if trust is not None:
        from radvlm_edge.signing import check_signature, load_public

        check_signature(bundle, load_public(trust))
    with _bar() as progress:
        total = opened.verify(progress)
    click.echo(f"{bundle}: {opened.manifest.name}, {total / 2**20:.1f} MiB, every file as sealed")
    if sign is not None:
        from radvlm_edge import signing

        signing.sign(bundle, signing.load_private(sign))
        click.echo(f"{bundle}: signed by the key in {sign}")
    elif opened.signed:
        click.echo(
            f"{bundle}: signed by the key in {trust}"
            if trust
            else f"{bundle}: signed; pass --trust PUB.pem to check by whom"
        )
    if opened.manifest.fidelity is not None:
        _say_fidelity(bundle, opened.manifest.fidelity)
    if self_test:
        from radvlm_edge.runtime.selftest import self_test as run

        for line in run(opened, threads):
            click.echo(line)


def _say_fidelity(bundle: Path, fidelity: dict[str, dict[str, list[str]]]) -> None:
    for name, beyond in fidelity["beyond"].items():
        verdict = f"beyond its limits: {'; '.join(beyond)}" if beyond else "within its limits"
        click.echo(f"{bundle}: {name} answers {verdict}")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """Progress in bytes on a terminal's stderr; none elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label="hashing", file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(done - bar.pos)

        yield show
