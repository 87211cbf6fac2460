"""The service's answers are in the audit log before anybody has them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="comes with the official client (extra `dev`)")
from tests.service import serving  # noqa: E402

from radvlm_edge.audit import AuditLog, concealed, load_salt  # noqa: E402
from radvlm_edge.audit_check import records, verify  # noqa: E402
from radvlm_edge.errors import AuditError  # noqa: E402
from radvlm_edge.serve.noting import noted  # noqa: E402

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
PATIENCE_S = 600.0


def test_every_answer_has_its_line_and_without_one_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    with serving(audit=path, max_tokens=8) as running:
        headers = {"Content-Type": "application/dicom"}
        film = httpx.post(
            f"{running.url}/v1/studies", content=FILM.read_bytes(), headers=headers, timeout=PATIENCE_S
        )
        image = {"type": "image_url", "image_url": {"url": f"study:{film.json()['id']}"}}
        message = {"role": "user", "content": [image, {"type": "text", "text": "any effusion?"}]}
        request: dict[str, Any] = {"model": "radvlm-nano", "messages": [message]}

        def ask(**more: Any) -> Any:
            url = f"{running.url}/v1/chat/completions"
            return httpx.post(url, json={**request, **more}, timeout=PATIENCE_S)

        text = ask(user="reader 7").json()["choices"][0]["message"]["content"]
        assert ask(stream=True).text.rstrip().endswith("[DONE]")
        told = list(records(path))
        assert [one["event"] for one in told] == ["opened", "answered", "asked", "answered"]
        assert told[1]["who"] == {"address": "127.0.0.1", "user": "reader 7"} and told[1]["via"] == "serve"
        digest = concealed(load_salt(path), "answer", text)
        assert told[1]["answer"] == told[3]["answer"] == digest and "answer" not in told[2]
        assert told[1]["film"] == told[2]["film"] and told[1]["question"] == "any effusion?"

        def full(*_: object, **__: object) -> int:
            raise AuditError("audit.log: the audit log cannot be written (No space left on device)")

        monkeypatch.setattr(AuditLog, "note", full)
        for more in ({}, {"stream": True}):
            refused = ask(**more)
            assert refused.status_code == 500 and text not in refused.text
            assert "cannot be written" in refused.json()["error"]["message"]
        monkeypatch.undo()
        assert ask().status_code == 200
    assert verify(path).head.lines == 5


def test_an_answer_whose_client_left_is_noted_as_far_as_it_was_written() -> None:
    told: list[tuple[str, str]] = []

    class Log:
        def answered(self, study: object, question: str, text: str, *, event: str, **_: object) -> None:
            told.append((event, text))

    def writing() -> Generator[str, None, Any]:
        yield "Yes,"
        yield " there"
        raise AssertionError("it went on after the client had left")

    asked = SimpleNamespace(stream=True, question="a?", turns=(), shape=None)
    pieces = noted(Log(), None, asked, None, writing())  # type: ignore[arg-type]
    assert [next(pieces), next(pieces)] == ["Yes,", " there"]
    pieces.close()
    assert told == [("asked", ""), ("left", "Yes, there")]
