"""verify's keys, plan's devices and fidelity, as a user meets them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.test_bundle import write

from radvlm_edge.cli import cli
from radvlm_edge.errors import BundleError
from radvlm_edge.runtime.devices import DEVICES


def test_signing_and_trusting(tmp_path: Path) -> None:
    write(tmp_path / "b")
    for name in ("key", "other"):
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / f"{name}.pem"], check=True
        )
        made = ["openssl", "pkey", "-in", tmp_path / f"{name}.pem", "-pubout", "-out"]
        subprocess.run([*made, tmp_path / f"{name}.pub"], check=True)
    verify = ["verify", str(tmp_path / "b")]
    run = CliRunner()
    assert isinstance(run.invoke(cli, [*verify, "--trust", str(tmp_path / "key.pub")]).exception, BundleError)
    signed = run.invoke(cli, [*verify, "--sign", str(tmp_path / "key.pem")])
    assert signed.exit_code == 0 and "signed by the key in" in signed.output
    assert "pass --trust PUB.pem" in run.invoke(cli, verify).output
    assert run.invoke(cli, [*verify, "--trust", str(tmp_path / "key.pub")]).exit_code == 0
    refused = run.invoke(cli, [*verify, "--trust", str(tmp_path / "other.pub")]).exception
    assert isinstance(refused, BundleError) and "not of the trusted key" in str(refused)


def test_plan_derives_for_every_device() -> None:
    options = [part for name in DEVICES for part in ("--device", name)]
    found = CliRunner().invoke(cli, ["plan", "--geometry", "radvlm-7b", "--json", *options])
    record = json.loads(found.output)
    assert (record["crops"], record["image_tokens"]) == (31, 7241)
    assert [row["name"] for row in record["devices"]] == list(DEVICES)
    assert all(row["kind"] == "derived" for row in record["devices"])
    text = CliRunner().invoke(cli, ["plan", "--geometry", "radvlm-7b", "--device", "thor"]).output
    assert "derived, not measured" in text and "thor: TensorRT Edge-LLM" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["plan", "--geometry", "radvlm-7b"], "Missing argument"), (["fidelity", "x"], "--against")],
)
def test_what_is_missing_is_said(arguments: list[str], complaint: str) -> None:
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 2 and complaint in found.output
