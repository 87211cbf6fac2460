"""Report filtering, and conversations: the template writer, models' replies, and the check of both."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.answers import LABELS, parse_labels
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_check import check, denied_labels
from radvlm_edge.training.conversation_facts import ConversationError, Facts
from radvlm_edge.training.conversation_models import ModelWriter, Replies, endpoint, gguf, parse_conversation
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry
from radvlm_edge.training.dataset_render import Renderer
from radvlm_edge.training.report_filter import compares, filter_report, sentences
from radvlm_edge.training.report_sections import section_report
from radvlm_edge.training.source import Boxed, LabelState

FACTS = Facts(
    "There is a small right pleural effusion. No pneumothorax. The heart is normal in size.",
    LabelState(frozenset({"pleural effusion"}), frozenset({"pneumothorax", "cardiomegaly"})),
    (),
    "PA",
    "F",
)
GROUNDED = Facts("", None, (Boxed("Right pleural effusion", ((0.1, 0.5, 0.42, 0.904),)),), "PA", "")


@pytest.mark.parametrize(
    ("report", "kept"),
    [
        ("Unchanged small left effusion. No pneumothorax.", "Small left effusion. No pneumothorax."),
        ("Moderate cardiomegaly is unchanged.", "Moderate cardiomegaly."),
        ("The heart size is unchanged. Lungs are clear.", "Lungs are clear."),
        ("No new focal consolidation.", ""),
        ("Compared to the prior study, mild edema is again seen.", "Mild edema is seen."),
        ("Pleural effusion has increased since the prior radiograph. Cardiomegaly.", "Cardiomegaly."),
        ("PA and lateral views of the chest were obtained. No pneumothorax.", "No pneumothorax."),
        ("Findings were discussed with Dr. ___ at 3 p.m. Mild edema.", "Mild edema."),
        ("1. Small nodule. 2. Tube ends at 4.5 cm.", "Small nodule. Tube ends at 4.5 cm."),
        ("Increased opacity at the left base.", "Increased opacity at the left base."),
        ("XXXX opacity in the midlung. No effusion.", "No effusion."),
    ],
)  # fmt: skip
def test_what_is_left_of_a_report(report: str, kept: str) -> None:
    assert filter_report(report).text == kept


def test_what_is_dropped_has_its_reason() -> None:
    report = "AP view of the chest. No interval change. Discussed by telephone. Opacity at ___. Clear lungs."
    assert [why for _, why in filter_report(report).dropped] == [
        "view",
        "comparison",
        "communication",
        "blank",
    ]


WORDS = """no new unchanged stable effusion cardiomegaly edema is again seen since the prior study small
right left has increased mild compared to film and , interval pneumothorax lungs are clear worsened ___ Dr."""
word = st.sampled_from(WORDS.split())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(word, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=4))
def test_a_filtered_report_never_compares_never_adds_a_finding_and_stays(parts: list[str]) -> None:
    report = ". ".join(part.capitalize() for part in parts) + "."
    once = filter_report(report).text
    assert not any(compares(one) for one in sentences(once))
    assert set(parse_labels(once)) <= {label for label in LABELS if label in report.lower()}
    assert filter_report(once).text == once


@pytest.mark.realdata
def test_reports_in_mimics_style_keep_their_findings_and_lose_their_comparisons() -> None:
    """1,000 synthetic reports, many cut off: nothing compares any more, and most still say something."""
    path = Path(os.environ["RADVLM_EDGE_DATA"]) / "report_text" / "synthetic_reports.jsonl"
    reports = [section_report(json.loads(line)["text"]) for line in path.read_text().splitlines()]
    filtered = [filter_report(one).text for one in reports]
    assert not any(compares(one) for text in filtered for one in sentences(text))
    assert sum(bool(text) for text in filtered) > 0.8 * len(reports)


@pytest.mark.parametrize("facts", [FACTS, GROUNDED], ids=["standard", "grounded"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_template_conversations_pass_the_check_and_repeat(facts: Facts, seed: int) -> None:
    turns = TemplateWriter().write(facts, np.random.default_rng(seed))
    check(turns, facts)
    assert turns == TemplateWriter().write(facts, np.random.default_rng(seed))


states = st.lists(st.sampled_from(("present", "absent", "silent")), min_size=13, max_size=13)


@settings(deadline=None, max_examples=40)
@given(states, st.integers(0, 2**32))
def test_template_never_contradicts_any_labels(states: list[str], seed: int) -> None:
    named = {
        state: frozenset(n for n, s in zip(LABELS, states, strict=True) if s == state) for state in states
    }
    labels = LabelState(named.get("present", frozenset()), named.get("absent", frozenset()))
    facts = Facts("The bones are intact. Both lungs are well seen. Ribs are whole.", labels, (), "AP", "")
    check(TemplateWriter().write(facts, np.random.default_rng(seed)), facts)


BOX = "It is located at [0.1, 0.5, 0.42, 0.9]."
OPEN = Turn("What do you see?", "A small right pleural effusion.")


@pytest.mark.parametrize(
    ("facts", "turns", "why"),
    [
        (FACTS, [OPEN], "2 to 10 questions"),
        (FACTS, [OPEN, Turn("Anything else?", " ")], "empty"),
        (FACTS, [OPEN, Turn("And?", "It has improved since the prior film.")], "compares"),
        (FACTS, [OPEN, Turn("And?", "<|im_end|>")], "control token"),
        (FACTS, [OPEN, Turn("Any pneumothorax?", "Yes, there is a pneumothorax.")], "affirms pneumothorax"),
        (FACTS, [OPEN, Turn("Any pneumothorax?", "Yes.")], "affirms pneumothorax"),
        (FACTS, [OPEN, Turn("Any pleural effusion?", "No, there is no pleural effusion.")], "denies pleural"),
        (FACTS, [OPEN, Turn("Any pleural effusion?", "No.")], "denies pleural effusion"),
        (FACTS, [OPEN, Turn("Where?", BOX)], "the source does not have"),
        (GROUNDED, [OPEN, Turn("Where?", "At the right base.")], "no box"),
        (GROUNDED, [OPEN, Turn("Where?", "At [0.1, 0.5, 0.43, 0.9].")], "the source does not have"),
        (GROUNDED, [OPEN, Turn("Where?", "At [0.1, 0.5, 1.42, 0.9].")], "outside the film"),
        (GROUNDED, [OPEN, Turn("Where?", "At [0.42, 0.5, 0.1, 0.9].")], "outside the film"),
        (GROUNDED, [OPEN, Turn("Where?", "At [0.1, 0.5, 0.42].")], "no box"),
        (GROUNDED, [OPEN, Turn("Is it at [0.1, 0.5, 0.42, 0.9]?", BOX)], "in a question"),
    ],
)
def test_a_bad_conversation_is_refused_with_the_reason(facts: Facts, turns: list[Turn], why: str) -> None:
    with pytest.raises(ConversationError, match=why):
        check(turns, facts)


@pytest.mark.parametrize(
    ("facts", "turns"),
    [
        (GROUNDED, [OPEN, Turn("Where is it?", BOX)]),
        (GROUNDED, [OPEN, Turn("Where is it?", "At [0.10, 0.50, 0.42, 0.90].")]),
        (FACTS, [OPEN, Turn("No pneumothorax?", "Yes, there is no pneumothorax.")]),
        (FACTS, [OPEN, Turn("Is the film free of pneumothorax?", "Yes.")]),
        (FACTS, [OPEN, Turn("Any fracture?", "No, there is no fracture.")]),
    ],
)
def test_a_good_conversation_passes(facts: Facts, turns: list[Turn]) -> None:
    check(turns, facts)


def test_denied_labels() -> None:
    assert denied_labels("No pneumothorax, but a fracture.") == {"pneumothorax"}
    assert denied_labels("There is edema. No edema on the left.") == set()


TURNS = [
    {"from": "human", "value": "What do you see?"},
    {"from": "gpt", "value": "A small right pleural effusion."},
]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I cannot help with that.", "no JSON"),
        (json.dumps(TURNS[::-1]), "out of order"),
        (json.dumps(TURNS + TURNS[:1]), "out of order"),
        (json.dumps([TURNS[0], {"from": "gpt", "value": 3}]), "no text"),
        ('[{"from": "human"}]', "no JSON"),
        ("[]", "out of order"),
    ],
)
def test_a_models_text_that_is_no_conversation_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConversationError, match=why):
        parse_conversation(text)


def test_a_models_list_is_read_whatever_surrounds_it() -> None:
    assert parse_conversation(f"Sure:\n```json\n{json.dumps(TURNS)}\n```") == [OPEN]


@pytest.fixture
def service() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """An OpenAI-compatible service on this machine that says TURNS twice, and what it was asked."""
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if self.path != "/v1/chat/completions" or asked[-1]["model"] == "absent":
                self.send_error(404)
                return
            said = {"choices": [{"message": {"content": json.dumps(TURNS * 2)}}]}
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_an_endpoint_writes_conversations_and_is_asked_once(
    service: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    url, asked = service
    kept = tmp_path / "replies.jsonl"
    for _ in range(2):
        writer = ModelWriter("m", Replies(kept, endpoint(url, "m"), "m"))
        turns = writer.write(FACTS, np.random.default_rng(3))
        check(turns, FACTS)
        assert turns == [OPEN, OPEN]
    assert len(asked) == 1
    kept.write_text(kept.read_text()[:-9])  # a kill cut the last reply off
    ModelWriter("m", Replies(kept, endpoint(url, "m"), "m")).write(FACTS, np.random.default_rng(3))
    assert len(asked) == 2 and kept.read_text().count("\n") == 1


def test_an_endpoint_that_fails_is_one_error(service: tuple[str, list[dict[str, object]]]) -> None:
    with pytest.raises(BackendError, match="404"):
        endpoint(service[0], "absent")("system", "user", 0)


def test_a_missing_gguf_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"none\.gguf"):
        gguf(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BackendError, match="cannot load"):
        gguf(tmp_path / "bad.gguf")


def test_a_report_without_sections_never_gives_the_indication() -> None:
    report = "FINAL REPORT\n\n HISTORY: Fever.\n\n There is mild edema.\n\n INDICATION: Fever.\n"
    assert section_report(report) == "There is mild edema."
    assert section_report("INDICATION: Fever.\n\nCOMPARISON: None.\n") == ""


DEMO = Path(__file__).parents[1] / "src" / "radvlm_edge" / "demo.bundle" / "language"


def test_a_local_gguf_answers_and_repeats() -> None:
    """The demonstration model cannot write JSON; it is asked all the same, and refused with the reason."""
    complete = gguf(next(DEMO.glob("*.gguf")), context=1024, max_tokens=12)
    said = complete("You write.", "any effusion?", 3)
    assert said and complete("You write.", "any effusion?", 3) == said
    with pytest.raises(ConversationError):
        check(ModelWriter("demo", complete).write(FACTS, np.random.default_rng(0)), FACTS)


REPORT = "Unchanged right pleural effusion. No pneumothorax."


@pytest.mark.parametrize(
    ("reply", "kept", "refused"),
    [
        ("Right pleural effusion. No pneumothorax.", "Right pleural effusion. No pneumothorax.", 0),
        ("```\nA right pleural effusion.\n```", "A right pleural effusion.", 0),
        ("Unchanged right pleural effusion.", "Right pleural effusion. No pneumothorax.", 1),
        ("Right pleural effusion and edema.", "Right pleural effusion. No pneumothorax.", 1),
        ("Right pleural effusion. No edema.", "Right pleural effusion. No pneumothorax.", 1),
        ("", "Right pleural effusion. No pneumothorax.", 1),
    ],
)
def test_a_models_report_is_used_only_if_it_adds_nothing(reply: str, kept: str, refused: int) -> None:
    plan = DataRecipe("x", (Entry("report", "open-i"),), filter="model", writer="gguf")
    renderer = Renderer(plan, {}, ModelWriter("fake", lambda system, user, seed: reply))
    assert renderer.filtered(REPORT) == kept
    assert sum(renderer.notes.values()) == refused
