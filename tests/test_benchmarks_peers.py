"""Peers do the same work and are told apart; what was measured is kept, judged and written as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radvlm_edge.benchmarks import peers, peers_child, targets
from radvlm_edge.benchmarks.bench_cases import FIRST_QUESTION, SECOND_QUESTION
from radvlm_edge.benchmarks.bench_film import drawn_film
from radvlm_edge.benchmarks.peers_ours import infer_peak
from radvlm_edge.benchmarks.peers_setup import Peer, Setup, Written
from radvlm_edge.bundle import demo_bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import crops

ROOT = Path(__file__).parents[1]
FILM = drawn_film(400, 330)
ANSWER = Written(24, stop=True)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    work = tmp_path_factory.mktemp("work")
    (work / "film.dcm").write_bytes(FILM)
    return Setup(
        checkpoint=str(ROOT / "training" / "nano"),
        bundle=str(demo_bundle()),
        work=str(work),
        film=str(work / "film.dcm"),
        answer_tokens=3,
        decode_tokens=5,
        checklist_tokens=3,
        repeats=1,
        options={"language": "F16"},
    )


@pytest.fixture(scope="module")
def theirs(setup: Setup) -> Iterator[dict[str, Peer]]:
    """Every peer but ours, loaded."""
    peers._write_mmproj(setup)
    opened = {name: peers_child.open_peer(name, setup) for name in peers.PEERS[1:]}
    yield opened
    for peer in opened.values():
        peer.close()


@pytest.fixture(scope="module")
def ours(setup: Setup) -> Iterator[Any]:
    peer = peers_child.open_peer(peers.OURS, setup)
    yield peer
    peer.close()


@pytest.mark.torch
def test_transformers_answers_as_we_do_in_both_ways(ours: Any, theirs: dict[str, Peer]) -> None:
    expected = ours.cold(FILM, FIRST_QUESTION, ANSWER), ours.again(SECOND_QUESTION, ANSWER)
    tokens = ours.study.layout.image_tokens
    for name in ("transformers, fp32", "transformers, fp32 kept"):
        peer = theirs[name]
        found = peer.cold(FILM, FIRST_QUESTION, ANSWER), peer.again(SECOND_QUESTION, ANSWER)
        assert [one.text for one in found] == [one.text for one in expected], name
        assert peer.describe()["image_tokens"] == tokens
        again = peer.again(FIRST_QUESTION, ANSWER)
        assert again.text == expected[0].text, "the cache was put back as it was"
        for one in (*found, again):
            assert 0 < one.first_ms <= one.total_ms and one.tokens > 1
    three = ours, theirs["transformers, fp32"], theirs["transformers, fp32 kept"]
    assert [peer.again(SECOND_QUESTION, Written(7)).tokens for peer in three] == [7, 7, 7]


@pytest.mark.torch
def test_bf16_and_llama_cpps_own_path_answer_too(setup: Setup, theirs: dict[str, Peer]) -> None:
    assert theirs["transformers, bf16"].describe()["precision"] == "bfloat16"
    peer = theirs["llama.cpp multimodal"]
    first = peer.cold(FILM, FIRST_QUESTION, ANSWER)
    assert first.text.split(",")[0] in ("Yes", "No")
    assert peer.again(FIRST_QUESTION, ANSWER).text == first.text
    layout = crops.plan(400, 330, setup.geometry)
    # Base view and all tiles, the padding's tokens too, and no newline.
    assert peer.describe()["image_tokens"] == layout.crops * layout.tokens_per_crop


def test_one_peers_whole_measurement(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    found = peers_child.measure(peers.OURS, replace(setup, accuracy_films=1))
    assert found["cold"]["tokens"] == found["second"][0]["tokens"] == 3 and len(found["second"]) == 1
    assert found["accuracy"]["questions"] == len(found["accuracy"]["words"]) == 5
    assert set(found["accuracy"]["words"]) <= {"yes", "no"}
    extras = found["extras"]
    assert extras["checklist"]["questions"] == 14 and extras["decode"]["steps"] == 4
    assert extras["python"]["calls"]["llama_decode"] == extras["python"]["steps"]
    assert 0 < extras["python"]["share"] < 1 and extras["infer"]["peak_bytes"] > 50e6
    assert extras["processes"]["second process"]["peak_bytes"] > 50e6
    assert json.loads(json.dumps(found)) == found


def test_the_commands_peak_is_its_own(setup: Setup) -> None:
    ours = np.ones(60 << 20)  # 480 MiB of this process are none of that one's
    found = infer_peak(setup, Path(setup.film))
    assert 50e6 < found["peak_bytes"] < ours.nbytes
    with pytest.raises(BackendError, match=r"infer ended with code 1: .*no-such.*no such file"):
        infer_peak(setup, Path("no-such.dcm"))


def record(peer: str, cold_ms: float, second_ms: float, rate: float) -> dict[str, Any]:
    return {
        "peer": peer,
        "machine": {"load_average": [0.5]},
        "load_ms": 5.0,
        "cold": {"first_ms": cold_ms, "total_ms": cold_ms + 10, "tokens": 3},
        "second": [{"first_ms": second_ms, "total_ms": second_ms + 5, "tokens": 3}],
        "decode_tokens_per_s": rate,
        "peak_bytes": 1 << 30,
        "about": {"image_tokens": 318},
    }


FIGURES = {
    peers.OURS: (1000.0, 20.0, 30.0),
    "transformers, fp32": (4000.0, 4000.0, 10.0),
    "transformers, fp32 kept": (3000.0, 100.0, 12.0),
}
EXTRAS = {
    "decode": {"ours_tokens_per_s": {"median": 29.0}, "bare_tokens_per_s": {"median": 30.0}},
    "checklist": {
        f"{kind}_{way}_ms": {"median": ms}
        for kind, way, ms in (
            ("text", "one_by_one", 800.0),
            ("text", "together", 100.0),
            ("choice", "one_by_one", 140.0),
            ("choice", "together", 100.0),
        )
    },
    "python": {"share": 0.04},
    "processes": {"first process": {"ms": {"median": 2000.0}}, "second process": {"ms": {"median": 90.0}}},
    "infer": {"peak_bytes": 2 << 30},
}


def test_rounds_are_kept_and_only_what_is_missing_is_run(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, bool]] = []

    def run(name: str, setup: Setup, out: Path, memory: int, limit_s: float, *, extras: bool) -> None:
        ran.append((name, extras))
        if name == "transformers, bf16":
            raise BackendError("took longer than 1 minutes")
        found = record(name, *FIGURES[name]) | ({"extras": EXTRAS} if extras else {})
        out.write_text(json.dumps(found))

    monkeypatch.setattr(peers, "_run", run)
    monkeypatch.setattr(peers, "_write_mmproj", lambda setup: None)
    names = (*FIGURES, "transformers, bf16")
    first = peers.measure(setup, peers=names, rounds=1)
    again = peers.measure(setup, peers=names, rounds=2)
    assert ran == [*[(n, True) for n in names], ("transformers, bf16", True), *[(n, False) for n in FIGURES]]
    assert list(first["peers"]) == list(FIGURES) and first["peers"][peers.OURS]["rounds"] == 1
    assert again["peers"][peers.OURS]["rounds"] == 2 and again["peers"][peers.OURS]["extras"] == EXTRAS
    assert again["failed"] == {"transformers, bf16": "took longer than 1 minutes"}
    peers.measure(replace(setup, answer_tokens=4), peers=(peers.OURS,), rounds=1)
    assert ran[-1] == (peers.OURS, True), "another setup is another measurement"

    judged = targets.judge(again, startup={"ms": {"median": 250.0}})
    assert [row["measured"] for row in judged] == [
        0.9667, 2.5, 2.9802, 0.02, 200.0, 0.045, 8.0, 1.4, 2.0, 0.25, 0.04,
    ]  # fmt: skip
    assert [row["reached"] for row in judged] == [True] * 7 + [False, False, True, True]
    alone = targets.judge({"peers": {}})
    assert all(row["measured"] is None and row["reached"] is None for row in alone)

    page = Path(setup.work) / "page.md"
    table = [sys.executable, ROOT / "tools" / "peers_table.py", page]
    page.write_text("before\n<!-- figures: tools/peers_table.py -->\n<!-- end of figures -->\nbehind\n")
    subprocess.run(table, check=True)
    assert page.read_text().count("not measured yet") == 2 * len(targets.TARGETS) + 2
    assert subprocess.run([*table, "--check"], check=False).returncode == 0
    again |= {"targets": judged, "machine": {"cpu": "A CPU"}}
    (page.parent / "peers-nano.json").write_text(json.dumps(again))
    assert subprocess.run([*table, "--check"], check=False, capture_output=True).returncode == 1
    subprocess.run(table, check=True)
    text = page.read_text()
    assert "| 1.5 times | not measured yet | 1.4 times (missed) |" in text.replace("at least ", "")
    assert "| transformers, bf16 | failed: took longer" in text and text.endswith("behind\n")


def test_a_peer_that_cannot_is_one_line(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no bundle.json") as error:
        peers._run(
            peers.OURS, replace(setup, bundle=str(tmp_path)), tmp_path / "o.json", 4 << 30, 60, extras=False
        )
    assert "\n" not in str(error.value) and not (tmp_path / "o.json").exists()
    with pytest.raises(BackendError, match="took longer than 0 minutes"):
        peers._run(peers.OURS, setup, tmp_path / "o.json", 4 << 30, 0.01, extras=False)


def test_memory_is_bounded() -> None:
    code = (
        "from radvlm_edge.benchmarks.peers_child import bound_memory\n"
        "bound_memory(400 << 20)\n"
        "import numpy\n"
        "numpy.ones(600 << 17)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "MemoryError" in done.stderr.splitlines()[-1]


def test_a_start_stops_at_its_first_useful_work(tmp_path: Path) -> None:
    from radvlm_edge.benchmarks.startup import measure

    (tmp_path / "film.dcm").write_bytes(FILM)
    found = measure(tmp_path / "film.dcm", repeats=1)
    assert found["modules"] < 450 and found["ms"]["min"] > 0
