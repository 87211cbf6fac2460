"""`radvlm-edge verify`: is this the bundle that was sealed, and does it compute what it should?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--self-test", is_flag=True, help="Also run golden.npz through this machine's engines.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the self-test.")
def verify(bundle: Path, self_test: bool, threads: int | None) -> None:
    """Recompute every digest of a bundle."""
    from radvlm_edge.bundle import Bundle

    opened = Bundle.open(bundle)
    total = opened.verify()
    click.echo(f"{bundle}: {opened.manifest.name}, {total / 2**20:.1f} MiB, every file as sealed")
    if self_test:
        from radvlm_edge.runtime.selftest import self_test as run

        for line in run(opened, threads):
            click.echo(line)
