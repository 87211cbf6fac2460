"""The command line as a user meets it: a process with stdout, stderr and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny import write_film

CLI = Path(sys.executable).with_name("radvlm-edge")


def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
    result = subprocess.run([CLI, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    out, err = result.stdout.decode(), result.stderr.decode()
    assert "Traceback" not in err
    return result.returncode, out, err


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.png", 1, 60, 50)


@pytest.fixture(scope="module")
def base(tiny_bundle: Path) -> list[object]:
    return ["--bundle", tiny_bundle, "--max-tokens", 6, "--threads", 1]


def test_the_answer_alone_is_on_stdout(film: Path, base: list[object]) -> None:
    code, out, err = run("infer", film, "--ask", "any effusion?", *base)
    assert code == 0 and out.endswith("\n") and out.count("\n") == 1
    assert err.splitlines() == ["AI output for research, not for diagnosis."]


def test_timing_is_said_on_stderr_when_asked_for(film: Path, base: list[object]) -> None:
    code, out, err = run("infer", film, "--ask", "any effusion?", "--timing", *base)
    (line,) = [line for line in err.splitlines() if line.startswith(f"{film}: load ")]
    assert code == 0 and "prefill " in line and " total " in line and line.endswith(" ms")
    assert " ms" not in out
    assert "total" not in run("infer", film, "--ask", "any effusion?", *base)[2]


def test_json_has_every_field(film: Path, base: list[object]) -> None:
    code, out, _ = run("infer", film, "--ask", "a?", "--ask", "b?", "--task", "report", "--json", *base)
    record = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert list(record) == [
        "film",
        "bundle",
        "render",
        "cache",
        "vision",
        "prefill",
        "answers",
        "image",
        "timing_ms",
    ]
    assert set(record["bundle"]) == {"name", "sha256", "demonstration"}
    assert set(record["image"]) == {"height", "width", "crops", "image_tokens", "detail"}
    parts = {"load", "decode_film", "crops", "vision", "overlapped", "cache", "prefill", "prefill_other"}
    parts |= {"decode", "total"}
    assert record["prefill"]["backend"] == "llama.cpp"
    assert set(record["timing_ms"]) == parts
    assert all(record["timing_ms"][part] <= record["timing_ms"]["total"] for part in parts)
    assert len(record["answers"]) == 3
    fields = {
        "question",
        "text",
        "boxes",
        "labels",
        "confidence",
        "prefill_tokens",
        "tokens",
        "stop",
        "timing_ms",
    }
    for answer in record["answers"]:
        assert set(answer) == fields and set(answer["timing_ms"]) == {"prefill", "first_token", "decode"}
    first, *later = (answer["prefill_tokens"] for answer in record["answers"])
    assert first > record["image"]["image_tokens"] > max(later)


def test_one_bad_film_does_not_stop_the_others(film: Path, base: list[object], tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"not a film")
    code, out, err = run("infer", bad, film, tmp_path / "none.png", "--ask", "a?", "--json", *base)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [set(record) == {"film", "error"} for record in records] == [True, False, True]
    assert "bad.dcm" in records[0]["error"] and "none.png" in records[2]["error"]
    assert len([line for line in err.splitlines() if line.startswith("radvlm-edge: ")]) == 2


def test_a_film_from_stdin(film: Path, base: list[object]) -> None:
    _, expected, _ = run("infer", film, "--ask", "a?", *base)
    code, out, _ = run("infer", "-", "--ask", "a?", *base, stdin=film.read_bytes())
    assert (code, out) == (0, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to ask"),
        (["--ask", " "], "the question is empty"),
        (["--ask", "x" * 40000], "does not fit"),
        (["--task", "guess"], "choose one of report"),
        (["--ask", "a?", "--vision", "int4"], "no vision artefact 'int4'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    film: Path, base: list[object], arguments: list[str], complaint: str
) -> None:
    code, out, err = run("infer", film, *arguments, *base)
    assert code == 1 and out == ""
    lines = [line for line in err.splitlines() if line.startswith("radvlm-edge: ")]
    assert len(lines) == 1 and complaint in lines[0]


def test_a_missing_bundle_names_the_command_that_makes_one(film: Path, tmp_path: Path) -> None:
    code, _, err = run("infer", film, "--ask", "a?", "--bundle", tmp_path / "none")
    assert code == 1 and "radvlm-edge export" in err and err.count("\n") == 1


def test_overlay_is_the_film_and_is_written_whole_or_not(
    film: Path, base: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "overlay.png"
    assert run("infer", film, "--ask", "a?", "--overlay", out, *base)[0] == 0
    with Image.open(out) as picture:
        assert (picture.mode, picture.size) == ("RGB", (50, 60))
    code, _, err = run("infer", film, "--ask", "a?", "--overlay", out / "impossible.png", *base)
    assert code == 1 and "picture not written" in err
    assert [p.name for p in out.parent.iterdir()] == ["overlay.png"]


def test_chat_remembers_turns(film: Path, base: list[object]) -> None:
    code, out, err = run("chat", film, *base, stdin=b"any effusion?\n\nwhere?\n")
    assert code == 0 and out.count("\n") == 2
    assert "not for diagnosis" in err


def test_plan_prices_a_film_without_loading_weights(film: Path, tiny_bundle: Path) -> None:
    code, out, _ = run("plan", "2544x3056", "--geometry", "radvlm-7b", "--json")
    assert code == 0
    assert json.loads(out) == {
        "height": 3056,
        "width": 2544,
        "detail": "exact",
        "grid": [6, 5],
        "crops": 31,
        "image_tokens": 7241,
        "kv_bytes": 7241 * 57344,
    }
    code, out, _ = run("plan", film, "--bundle", tiny_bundle, "--json")
    assert code == 0 and json.loads(out)["height"] == 60
    assert run("plan", "nothing.dcm", "--bundle", tiny_bundle)[0] == 1


def test_verify_notices_a_changed_byte(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    code, out, _ = run("verify", tiny_bundle, "--self-test", "--threads", 1)
    assert code == 0 and "every file as sealed" in out
    shutil.copytree(tiny_bundle, tmp_path / "b")
    parity = tmp_path / "b" / "parity.json"
    parity.write_bytes(parity.read_bytes() + b" ")
    code, out, err = run("verify", tmp_path / "b")
    assert code == 1 and out == "" and "parity.json was altered" in err


def test_doctor_names_machine_and_engines_and_measures_them_once(
    tiny_bundle: Path, film: Path, base: list[object]
) -> None:
    arguments = ["doctor", "--bundle", tiny_bundle, "--threads", 1, "--json"]
    code, out, err = run(*arguments)
    report = json.loads(out)
    sections = ["machine", "packages", "engines", "demonstration bundle", "vision engines"]
    assert (code, err, list(report)) == (0, "", sections)
    assert report["packages"]["numpy"] == np.__version__
    assert "onnx on CPU" in report["engines"]["vision"]
    engines = report["vision engines"]
    assert engines["measured on"] == "tiny, fp16" and len(engines["turns"]) > 2
    again = json.loads(run(*arguments)[1])["vision engines"]
    assert "turns" not in again and again["kept"].startswith("since") and again["onnx"] == engines["onnx"]

    Path(engines["kept"]).write_text("{")
    record = run("infer", film, "--ask", "a?", "--json", *base)
    assert record[0] == 0 and f"{engines['kept']}: damaged, not used" in record[2]
    assert json.loads(record[1])["vision"]["chosen"].startswith("default; nothing measured")
    code, out, err = run(*arguments)
    assert code == 0 and err.strip().endswith("damaged, not used; measured anew")
    assert "turns" in json.loads(out)["vision engines"]
    code, out, _ = run("infer", film, "--ask", "a?", "--json", *base)
    assert code == 0 and json.loads(out)["vision"]["chosen"].startswith("measured best on 2")


def test_output_that_nobody_reads_is_no_traceback(film: Path, base: list[object]) -> None:
    command = f"{CLI} infer {film} {film} {film} --ask a? {' '.join(map(str, base))} | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_one_line(film: Path, base: list[object], form: list[str]) -> None:
    command = f"{CLI} infer {film} --ask a? {' '.join(map(str, [*base, *form]))} > /dev/full"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("radvlm-edge: ")]
    assert result.returncode == 1 and "Traceback" not in result.stderr and "ignored" not in result.stderr
    assert lines == ["radvlm-edge: the answer could not be read or written: No space left on device"]
