"""The study cache from the command line: a second process hits, and nothing tells whose film it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.studies import (
    CLI,
    QUESTIONS,
    total,
)


def run(*arguments: object) -> tuple[int, str, str]:
    result = subprocess.run([CLI, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def hidden(named_films: list[Path]) -> Iterator[list[str]]:
    """What must never lie in a cache or be shown of it."""
    yield ["Doe", "Jane", str(named_films[0].parent)]


def test_a_second_process_hits_and_the_listing_tells_nothing(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, hidden: list[str]
) -> None:
    cache = tmp_path / "cache"
    infer = ["infer", named_films[0], "--ask", QUESTIONS[0], "--json", "--bundle", tiny_bundle]
    infer += ["--max-tokens", 10, "--threads", 1]
    records = []
    for extra in ([], ["--study-cache", cache], ["--study-cache", cache, "--study-cache-limit", "1MB"]):
        code, out, _ = run(*infer, *extra)
        assert code == 0
        records.append(json.loads(out))
    assert [record["cache"] for record in records] == ["off", "miss", "hit"]
    answers = [record["answers"][0] for record in records]
    assert len({answer["text"] for answer in answers}) == 1
    image = records[0]["image"]["image_tokens"]
    assert answers[0]["prefill_tokens"] == answers[1]["prefill_tokens"] > image > answers[2]["prefill_tokens"]
    assert records[2]["timing_ms"]["vision"] == 0

    code, out, _ = run("studies", "list", cache, "--json")
    listed = json.loads(out)
    (one,) = listed["studies"]
    assert code == 0 and one["whole"] and not one["encrypted"] and one["tokens"] > image
    assert one["bundle"] == records[0]["bundle"]["sha256"] and listed["bytes"] == one["bytes"] == total(cache)
    code, text, _ = run("studies", "list", cache)
    assert code == 0 and one["study"][:12] in text
    content = next(cache.glob("*.kv")).read_bytes()
    assert not any(word in out + text or word.encode() in content for word in hidden)

    assert run("studies", "purge", cache)[0] == 2
    assert run("studies", "purge", cache, "--older-than", "1")[1].endswith("0 files, 0.0 MiB removed\n")
    assert "1 files" in run("studies", "purge", cache, "--all")[1] and not list(cache.iterdir())


def test_what_is_wrong_with_a_cache_is_one_line(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path
) -> None:
    infer = [
        "infer",
        named_films[0],
        "--ask",
        "a?",
        "--bundle",
        tiny_bundle,
        "--max-tokens",
        2,
        "--threads",
        1,
    ]
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    code, out, err = run(*infer, "--study-cache", shared)
    assert (code, out) == (1, "") and "chmod 700" in err and err.count("\n") == 1
    code, _, err = run(*infer, "--study-cache", tmp_path / "c", "--study-cache-limit", "8 apples")
    assert code == 2 and "8 apples" in err
    cache = tmp_path / "own"
    assert run(*infer, "--study-cache", cache)[0] == 0
    kept = next(cache.glob("*.kv"))
    kept.write_bytes(kept.read_bytes()[:-1])
    code, out, err = run(*infer, "--study-cache", cache)
    assert code == 0 and out
    assert len([line for line in err.splitlines() if line.startswith("radvlm-edge: ")]) == 1
    assert "damaged or incomplete" in err


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("8589934592", 8 << 30),
        ("8GiB", 8 << 30),
        ("1.5 mib", 3 << 19),
        ("2KB", 2000),
        ("3kib", 3072),
        ("4MB", 4 * 10**6),
        ("5GB", 5 * 10**9),
    ],
)
def test_sizes_are_read_as_written(written: str, expected: int) -> None:
    import click

    from radvlm_edge.cli.options import parse_size

    option = click.Option(["--size"])
    assert parse_size(click.Context(click.Command("x")), option, written) == expected
