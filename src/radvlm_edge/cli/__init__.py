"""The command line. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import os
import sys

import click

from radvlm_edge.cli.audit import audit
from radvlm_edge.cli.batch import batch
from radvlm_edge.cli.bench import bench
from radvlm_edge.cli.build import build
from radvlm_edge.cli.calibrate import calibrate
from radvlm_edge.cli.chat import chat
from radvlm_edge.cli.dataset import dataset
from radvlm_edge.cli.doctor import doctor
from radvlm_edge.cli.evaluate import evaluate
from radvlm_edge.cli.export import export
from radvlm_edge.cli.fidelity import fidelity
from radvlm_edge.cli.infer import infer
from radvlm_edge.cli.node import node
from radvlm_edge.cli.pack import pack
from radvlm_edge.cli.plan import plan
from radvlm_edge.cli.serve import serve
from radvlm_edge.cli.studies import studies
from radvlm_edge.cli.train import train
from radvlm_edge.cli.verify import verify
from radvlm_edge.errors import RadvlmError
from radvlm_edge.faults import keep_to_ourselves, where


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="radvlm-edge", message="%(version)s")
def cli() -> None:
    """RadVLM on the device: ask a chest film questions, offline.

    A RadVLM checkpoint goes in (`export`), a sealed bundle comes out, and `infer` turns that
    bundle and a film into an answer. Without --bundle a small demonstration model answers.

    AI output is for research, not for diagnosis.
    """


for command in (
    infer,
    chat,
    batch,
    serve,
    node,
    plan,
    calibrate,
    export,
    fidelity,
    evaluate,
    verify,
    pack,
    build,
    doctor,
    bench,
    studies,
    audit,
    dataset,
    train,
):
    cli.add_command(command)


FULL = "RADVLM_EDGE_TRACEBACK"
"""Set by developers: faults are shown whole, and the system may write core dumps."""


def main() -> None:
    """Run the command line; every error of ours becomes one line and exit code 1.

    A fault of the program becomes one line, too, without its text and without a core dump: both may hold
    what is in a film's header.
    """
    if not os.environ.get(FULL):
        keep_to_ourselves()
    try:
        code = cli.main(standalone_mode=False)  # click returns an Exit's code, or the command's value
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("radvlm-edge: interrupted", err=True)
        sys.exit(130)
    except RadvlmError as error:
        click.echo(f"radvlm-edge: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing more can be said to it
        sys.exit(1)
    except OSError as error:
        what = error.filename or "the answer"
        click.echo(f"radvlm-edge: {what} could not be read or written: {error.strerror}", err=True)
        # What is still buffered would fail again, loudly, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        if os.environ.get(FULL):
            raise
        click.echo(f"radvlm-edge: a fault of the program: {where(error)}; {FULL}=1 shows all of it", err=True)
        sys.exit(70)
