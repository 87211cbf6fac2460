"""Archives: one row an answer, the same bytes whatever ends the run in the middle."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
import pyarrow
from pyarrow import parquet

from radvlm_edge.audit_check import records, verify
from radvlm_edge.batch import processes
from radvlm_edge.batch.answering import Answering
from radvlm_edge.batch.films import gather
from radvlm_edge.batch.job import Job, Progress, part_path
from radvlm_edge.batch.rows import SCHEMA, digest_path, read_part, table_of, write_part
from radvlm_edge.bundle import demo_bundle
from radvlm_edge.errors import BundleError, FilmError, OutputError
from radvlm_edge.runtime.reader import Options, Reader

CLI = Path(sys.executable).with_name("radvlm-edge")
FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
QUESTIONS = ("any effusion?", "Is there a pacemaker?")
OPTIONS = Options(threads=1, prefill_backend="llama", max_tokens=24)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five films, one of them none, and one that is not there."""
    folder = tmp_path_factory.mktemp("films")
    for name in "abde":
        (folder / f"{name}.dcm").write_bytes(FILM.read_bytes())
    (folder / "c.dcm").write_bytes(b"not a film")
    return [*(str(folder / f"{name}.dcm") for name in "abcde"), str(folder / "none.dcm")]


def job_of(films: list[str], **more: Any) -> Job:
    return Job(tuple(films), QUESTIONS, None, demo_bundle(), OPTIONS, part_films=2, **more)


@pytest.fixture(scope="module")
def tables(films: list[str]) -> list[pyarrow.Table]:
    """The parts of the job, computed in this process by one reader."""
    with Reader.open(options=OPTIONS) as reader:
        answering = Answering(job_of(films), reader)
        return [table_of(answering.part(part, {})) for part in range(3)]


@pytest.fixture(scope="module")
def whole(films: list[str], tables: list[pyarrow.Table], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Bytes of the finished file of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out.parquet"
    progress = Progress(job_of(films), out)
    for part, table in enumerate(tables):
        write_part(progress.path(part), table)
    assert progress.finish() == 2
    progress.close()
    return out.read_bytes()


def test_rows_are_answers_in_order_and_say_what_could_not_be_read(
    films: list[str], tables: list[pyarrow.Table]
) -> None:
    rows = pyarrow.concat_tables(tables).to_pylist()
    bad = {films[2]: "neither DICOM nor a picture", films[5]: "no such file"}
    assert [row["film"] for row in rows] == [film for film in films for _ in range(1 if film in bad else 2)]
    for row in rows:
        if row["film"] in bad:
            assert bad[row["film"]] in row["error"] and row["text"] is None and row["question"] is None
        else:
            assert row["error"] is None and row["sop_instance_uid"] and len(row["film_sha256"]) == 64
    with Reader.open(options=OPTIONS) as reader:
        expected = [answer.text for answer in reader.look(FILM).ask_many(QUESTIONS)]
    assert [row["text"] for row in rows[:2]] == expected


def test_a_killed_run_goes_on_to_the_same_bytes(films: list[str], whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    command = [CLI, "batch", *films, "-o", out, *(x for q in QUESTIONS for x in ("--ask", q))]
    command += ["--threads", "1", "--max-tokens", "24", "--part-films", "2", "--bundle", demo_bundle()]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    first = part_path(tmp_path / "out.parquet.parts", 0)
    end = time.monotonic() + 400
    while not digest_path(first).exists():
        assert time.monotonic() < end and killed.poll() is None, "no part was ever finished"
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not out.exists()
    table = read_part(part_path(tmp_path / "out.parquet.parts", 1))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert ("1 of 3 parts are done already" if table is None else "of 3 parts") in done.stderr
    assert f"{len(films)} films, 2 of them could not be answered" in done.stderr
    assert out.read_bytes() == whole and sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "exists already" in again.stderr and again.stderr.count("\n") == 1


@pytest.fixture
def progress(films: list[str], tmp_path: Path) -> Progress:
    return Progress(job_of(films), tmp_path / "out.parquet")


def test_damaged_and_foreign_parts_are_not_used(
    progress: Progress, tables: list[pyarrow.Table], whole: bytes, films: list[str]
) -> None:
    for part, table in enumerate(tables):
        write_part(progress.path(part), table)
    assert progress.missing() == []
    content = bytearray(progress.path(1).read_bytes())
    content[len(content) // 3] ^= 0x20
    progress.path(1).write_bytes(content)
    assert progress.missing() == [1]
    with pytest.raises(OutputError, match="damaged; run the same command again"):
        progress.finish()
    assert not progress.out.exists() and not list(progress.out.parent.glob(".*partial*"))
    write_part(progress.path(1), tables[1])
    with pytest.raises(OutputError, match="another process works on it"):
        Progress(progress.job, progress.out)
    progress.close()
    other = replace(progress.job, questions=("something else?",))
    with pytest.raises(OutputError, match="begun with other questions"):
        Progress(other, progress.out)
    again = Progress(progress.job, progress.out)
    again.finish()
    again.close()
    assert progress.out.read_bytes() == whole


def test_a_disk_that_refuses_is_one_line_and_loses_nothing(
    progress: Progress, tables: list[pyarrow.Table]
) -> None:
    write_part(progress.path(0), tables[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written .*finished parts are kept"):
            write_part(progress.path(1), tables[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert progress.missing() == [1, 2]
    assert not list(progress.folder.glob(".*")), "a partial file was left"


KILLER = """
import os, signal, radvlm_edge.batch.answering as answering
look = answering.Answering._film
def film(self, film):
    if film.endswith("d.dcm"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return look(self, film)
answering.Answering._film = film
"""


def test_a_film_that_ends_its_process_twice_gets_a_row(
    progress: Progress, tables: list[pyarrow.Table], films: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle part's second film ends whoever reads it, as a fault in a native decoder does."""
    for part in (0, 2):
        write_part(progress.path(part), tables[part])
    site = progress.folder.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(site))  # read by the children
    begun: list[int] = []
    processes.run(progress, processes.devices(1, 1, 0), lambda: begun.append(1))
    rows = table.to_pylist() if (table := read_part(progress.path(1))) else []
    assert [row["film"] for row in rows] == [films[2], films[3]]
    assert "ended twice (SIGSEGV)" in rows[1]["error"] and progress.deaths() == {3: "SIGSEGV"}
    assert progress.finish() == 3
    progress.close()


def test_a_bundle_that_cannot_be_loaded_ends_the_job(films: list[str], tmp_path: Path) -> None:
    job = replace(job_of(films), options=replace(OPTIONS, vision="int4"))
    progress = Progress(job, tmp_path / "out.parquet")
    with pytest.raises(BundleError, match="no vision artefact 'int4'"):
        processes.run(progress, processes.devices(1, 1, 0), lambda: None)
    progress.close()


def test_answers_are_in_the_audit_log_before_their_part_is_written(films: list[str], tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    with Reader.open(options=OPTIONS) as reader:
        rows = Answering(job_of(films, audit=log), reader).part(1, {})
    assert verify(log).head.lines == 1 + 1 + len(QUESTIONS)
    assert [one["event"] for one in records(log)] == ["opened", "refused", "answered", "answered"]
    assert len(rows) == 3


def test_which_films_are_meant(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "b/1.dcm", "a/3.png", "b/.hidden", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = tmp_path / "a" / "list.txt"
    listed.write_text(f"{tmp_path}/b/1.dcm\r\n\n/nowhere.dcm\n")
    found = gather((str(tmp_path / "b"), str(tmp_path / "b" / "2.dcm")), str(listed))
    assert found == [f"{tmp_path}/b/1.dcm", f"{tmp_path}/b/2.dcm", "/nowhere.dcm"]
    assert f"{tmp_path}/DICOMDIR" not in gather((str(tmp_path),), None)
    with pytest.raises(FilmError, match="no films"):
        gather((), None)


def test_devices() -> None:
    assert [device.gpu for device in processes.devices(None, None, 3)] == ["0", "1", "2"]
    assert [device.gpu for device in processes.devices(2, 1, 0)] == [None, None]
    assert [device.threads for device in processes.devices(2, 3, 1)] == [3, 3]


def test_the_file_says_what_it_is(whole: bytes) -> None:
    file = parquet.ParquetFile(pyarrow.BufferReader(whole))
    about = json.loads(file.schema_arrow.metadata[b"radvlm_edge"])
    assert about["questions"] == list(QUESTIONS) and len(about["bundle"]) == 64
    assert file.num_row_groups == 3 and file.schema_arrow.remove_metadata().equals(SCHEMA)


def test_ray_gives_the_same_bytes_on_two_workers(films: list[str], whole: bytes, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from radvlm_edge.batch import on_ray

    progress = Progress(job_of(films), tmp_path / "out.parquet")
    came: list[int] = []
    on_ray.run(progress, "local", workers=2, threads=1, gpus=0, answered=came.append)
    assert sum(came) == len(films) and progress.finish() == 2
    progress.close()
    assert progress.out.read_bytes() == whole
