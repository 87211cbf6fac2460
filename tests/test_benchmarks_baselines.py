"""Each baseline's prompts and answers in their published forms, written by hand from the sources named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radvlm_edge.benchmarks.baseline_forms import (
    VICUNA_SYSTEM,
    chexagent1_prompt,
    maira2_places,
    medgemma_places,
    mistral_prompt,
    vicuna_prompt,
)
from radvlm_edge.benchmarks.baseline_models import BaselineModel, open_baseline
from radvlm_edge.benchmarks.baseline_runners import biovil_view, gemma_messages, padded
from radvlm_edge.benchmarks.baselines import BASELINES
from radvlm_edge.benchmarks.evaluate_items import TASKS
from radvlm_edge.cli.evaluate import KINDS
from radvlm_edge.cli.evaluate import TASKS as CLI_TASKS
from radvlm_edge.errors import BackendError, QuestionError
from radvlm_edge.runtime.prompts import Turn

SIZE = (2000, 1000)
"""Height and width: twice as tall as wide."""


def test_help_names_what_there_is() -> None:
    assert tuple(BASELINES) == KINDS and TASKS == CLI_TASKS


def test_tasks_are_those_of_the_table_in_radvlms_readme() -> None:
    """LLaVA-OV, LLaVA-Med: report, conversation; RaDialog: and classification; CheXagent-2: report,
    classification, grounding; MAIRA-2: report, grounding."""
    grounding = {"region", "abnormality", "phrase"}
    expected = {
        "llava-onevision": {"report", "conversation"},
        "llava-med": {"report", "conversation"},
        "radialog": {"report", "classify", "conversation"},
        "chexagent-2": {"report", "classify"} | grounding,
        "maira-2": {"report"} | grounding,
    }
    for name, tasks in expected.items():
        assert {task for task in TASKS if BASELINES[name].unsupported(task) is None} == tasks
    for one in BASELINES.values():
        reasons = [one.unsupported(task) for task in TASKS]
        assert all(reason is None or reason for reason in reasons) and any(reasons)


@pytest.mark.parametrize(
    "raw",
    [
        # CheXagent's own data, data_chexinstruct/dataset_processors/ms_cxr.py:
        "<|ref|>Left apical pneumothorax<|/ref|><|box|>(55,10),(90,42)<|/box|><|box|>(5,6),(7,8)<|/box|>",
        # As its tokenizer decodes them, which RadVLM's pattern expects:
        "<|ref|> Left apical pneumothorax <|/ref|> <|box|> (55,10),(90,42) <|/box|> "
        "<|box|> (5,6),(7,8) <|/box|></s>",
    ],
)  # fmt: skip
def test_chexagent_2_boxes_are_percent_of_the_film(raw: str) -> None:
    said = BASELINES["chexagent-2"].read(raw, "phrase", SIZE)
    assert said.boxes == ((0.55, 0.10, 0.90, 0.42), (0.05, 0.06, 0.07, 0.08))
    assert said.names == ("left apical pneumothorax",) * 2
    assert said.text == "Left apical pneumothorax [0.55, 0.1, 0.9, 0.42] and [0.05, 0.06, 0.07, 0.08]"
    assert said.raw == raw


def test_chexagent_2_is_asked_as_published() -> None:
    form = BASELINES["chexagent-2"]
    asked = form.question("phrase", "ours", "There is a left apical pneumothorax.")
    assert asked == "Please locate the following phrase: There is a left apical pneumothorax."
    assert "atelectasis, cardiomegaly" in form.question("classify", "ours", "")
    with pytest.raises(QuestionError, match="about"):
        form.question("region", "Where?", "")
    assert form.read("No pneumothorax detected.", "abnormality", SIZE).boxes == ()
    assert chexagent1_prompt("Is it?") == " USER: <s>Is it? ASSISTANT: <s>"


def test_maira_2_boxes_lie_in_the_central_square() -> None:
    """The example of its processor, on a film twice as tall as wide: its square is the middle half."""
    raw = "<obj>grounded phrase <box><x55><y45><x70><y56></box></obj><obj>ungrounded phrase</obj>"
    said = BASELINES["maira-2"].read(raw, "phrase", SIZE)
    assert said.names == ("grounded phrase",)
    assert said.boxes == ((0.555, (455 + 500) / 2000, 0.705, (565 + 500) / 2000),)
    assert said.text == "grounded phrase ungrounded phrase [0.56, 0.48, 0.7, 0.53]"


@given(st.tuples(*[st.integers(0, 99)] * 4), st.integers(50, 4000), st.integers(50, 4000))
def test_maira_2_boxes_put_back_as_its_processor_does(bins: tuple[int, ...], width: int, height: int) -> None:
    """`adjust_box_for_original_image_size`, written out again for one coordinate at a time."""
    raw = (
        "<obj>x<box>"
        + "".join(f"<{axis}{one}>" for axis, one in zip("xyxy", bins, strict=True))
        + "</box></obj>"
    )
    ((_, box),) = maira2_places(raw, (height, width))
    crop = min(width, height)
    for value, one, extent in zip(box, bins, (width, height) * 2, strict=True):
        assert value == int((one + 0.5) / 100 * crop + (extent - crop) // 2) / extent


def test_maira_2_reports_are_plain_text_and_phrases_go_as_they_are() -> None:
    form = BASELINES["maira-2"]
    assert form.read(" The lungs are clear. ", "report", SIZE).text == "The lungs are clear."
    assert form.question("abnormality", "Where is it?", "pleural effusion") == "pleural effusion"


def test_medgemma_boxes_are_y_first_thousandths_of_the_padded_square() -> None:
    """The answer quoted in cfcmadlad/cxr-grounding-benchmark, here for a square film."""
    raw = '```json\n[{"box_2d": [160, 150, 830, 900], "label": "right lung"}]\n```'
    said = BASELINES["medgemma"].read(raw, "region", (1000, 1000))
    assert said.boxes == ((0.15, 0.16, 0.9, 0.83),) and said.names == ("right lung",)
    assert said.text == "[0.15, 0.16, 0.9, 0.83]"


def test_medgemma_boxes_of_a_tall_film_lose_the_padding_again() -> None:
    """Of a film 1000 wide and 2000 tall, the columns 500 to 1500 of the square are film."""
    raw = '{"box_2d": [0, 250, 1000, 750], "label": "all of it"}'
    assert medgemma_places(raw, SIZE) == [("all of it", (0.0, 0.0, 1.0, 1.0))]
    square = padded(Image.new("L", (10, 20), 255))
    assert square.size == (20, 20) and square.getbbox() == (5, 0, 15, 20)


def test_medgemma_reasons_first_and_its_final_answer_counts() -> None:
    raw = (
        'The heart is around {"box_2d": [1, 2, 3, 4], "label": "a guess"}. Final Answer: '
        '```json[{"box_2d": [300, 200, 700, 600], "label": "heart"}]```'
    )
    said = BASELINES["medgemma"].read(raw, "region", (1000, 1000))
    assert said.boxes == ((0.2, 0.3, 0.6, 0.7),)
    assert BASELINES["medgemma"].read("I cannot see it.", "region", (9, 9)).boxes == ()
    asked = BASELINES["medgemma"].question("region", "", "right lung")
    assert asked.count("right lung") == 2 and "[y0, x0, y1, x1]" in asked


def test_boxes_off_the_film_are_cut_or_left_out() -> None:
    raw = '[{"box_2d": [0, 0, 100, 100], "label": "padding"}, {"box_2d": [0, 0, 1000, 500], "label": "half"}]'
    said = BASELINES["medgemma"].read(raw, "region", SIZE)
    assert said.names == ("half",) and said.boxes == ((0.0, 0.0, 0.5, 1.0),)


TURNS = [Turn("Any effusion?", "No."), Turn("Sure?")]


def test_llava_med_is_asked_as_its_mistral_instruct_conversation() -> None:
    """microsoft/LLaVA-Med, llava/conversation.py: no system, `[INST]`, `</s>` behind an answer."""
    assert mistral_prompt(TURNS[1:]) == "[INST] <image>\nSure? [/INST]"
    assert mistral_prompt(TURNS) == "[INST] <image>\nAny effusion? [/INST] No. </s>[INST] Sure? [/INST]"


def test_radialog_is_asked_as_vicuna_with_the_image_before_the_question() -> None:
    assert vicuna_prompt(TURNS) == (
        f"{VICUNA_SYSTEM} USER: <image>. Any effusion? ASSISTANT: No.</s>USER: Sure? ASSISTANT:"
    )
    view = biovil_view(Image.linear_gradient("L").resize((600, 900)))
    assert view.shape == (3, 448, 448) and 0 <= view.min() < view.max() <= 1
    assert BASELINES["radialog"].unsupported("region") == "it has no published form for boxes"


def test_medgemma_messages_hold_one_image_in_the_first_question() -> None:
    messages = gemma_messages("film", TURNS)
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user"]
    shown = [part for one in messages for part in one["content"] if part["type"] == "image"]
    assert shown == [{"type": "image", "image": "film"}] and messages[1]["content"][1] in shown


class Recording:
    """A runner that says what it was told to, and keeps what it was asked."""

    def __init__(self, says: str) -> None:
        self.says, self.asked = says, []  # type: ignore[var-annotated]

    def generate(self, film: Image.Image, task: str, turns: list[Turn], about: str, most: int) -> str:
        self.asked.append((film.size, task, turns, about, most))
        return self.says


def test_a_baseline_is_asked_its_own_question_and_answers_in_our_form(tmp_path: object) -> None:
    import io
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "config.json").write_text("{}")
    out = io.BytesIO()
    Image.new("L", (40, 60), 9).save(out, "PNG")
    runner = Recording("<|box|>(10,20),(30,40)<|/box|>")
    model = BaselineModel(BASELINES["chexagent-2"], runner, folder, "voi")
    said = model.look(out.getvalue()).answer("phrase", [], "Where?", "an effusion", 99)
    ((size, task, turns, about, most),) = runner.asked
    assert (size, task, about, most) == ((40, 60), "phrase", "an effusion", 99)
    assert turns == [Turn("Please locate the following phrase: an effusion")]
    assert said.boxes == ((0.1, 0.2, 0.3, 0.4),)
    before = model.describe()["sha256"]
    (folder / "config.json").write_text("{ }")
    assert model.describe()["sha256"] != before


def test_what_cannot_be_run_is_said_in_one_line(tmp_path: object) -> None:
    from pathlib import Path

    folder, how = Path(str(tmp_path)), {"render": "voi", "device": "cpu", "trust_code": False}
    with pytest.raises(BackendError, match="no config.json there; baselines are read from local folders"):
        open_baseline("maira-2", folder, **how)  # type: ignore[arg-type]
    (folder / "config.json").write_text('{"model_type": "llava_mistral"}')
    with pytest.raises(BackendError, match="--trust-code"):
        open_baseline("maira-2", folder, **how)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="unknown; choose one of llava-onevision"):
        open_baseline("gpt-9", folder, **how)  # type: ignore[arg-type]
