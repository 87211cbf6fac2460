"""Evaluation: items in, answers kept, figures by hand, claims; the demonstration bundle end to end."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from tests.evaluating import Told, phantom_lines, write_lines

from radvlm_edge.benchmarks.evaluate import Evaluation, Settings, evaluate
from radvlm_edge.benchmarks.evaluate_compare import claims_of, compare
from radvlm_edge.benchmarks.evaluate_items import drawn, read_items
from radvlm_edge.benchmarks.evaluate_judge import ModelJudge, RuleJudge, open_judge, turn_score
from radvlm_edge.benchmarks.evaluate_models import open_model
from radvlm_edge.benchmarks.evaluate_page import render_page
from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import BackendError, OutputError, ParityError, RecipeError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.dataset_shards import Pair, write_shard


@pytest.fixture
def film(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((80, 100)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def lines_of(film: Path, *lines: dict[str, Any]) -> Path:
    return write_lines(film.parent / "data.jsonl", [{"image": "film.png", **line} for line in lines])


def run(model: Told, data: Path, task: str, out: Path, **settings: Any) -> Evaluation:
    return evaluate(model, list(read_items(data, task)), task, out, Settings(draws=50, **settings))


def value(found: Evaluation, name: str, part: str = "figures") -> float | None:
    return found.result[part][name]["value"]  # type: ignore[no-any-return]


def test_a_line_needs_little_and_the_rest_is_known(film: Path) -> None:
    data = lines_of(
        film,
        {"task": "region", "about": "right lung", "boxes": [[0.1, 0.2, 0.3, 0.4]]},
        {"task": "region", "question": "Where is the left lung?", "text": "At [0.5, 0.2, 0.9, 0.8]."},
        {"task": "classify", "text": "The following abnormalities are identified: edema and fracture."},
    )
    first, second = read_items(data, "region")
    assert first.questions == ("Where is the right lung located in this Chest X-ray?",)
    assert second.about == "left lung" and second.boxes == ((0.5, 0.2, 0.9, 0.8),)
    (labels,) = read_items(data, "classify")
    assert labels.labels == {"edema", "fracture"} and labels.group == "film.png"
    assert drawn([first, second], 1) == drawn([second, first], 1)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"task": "region", "boxes": [[0, 0, 1, 1]]}, "line 1: region needs `about`"),
        ({"task": "region", "about": "x"}, "region needs boxes or text"),
        ({"task": "region", "about": "x", "boxes": [[5, 0, 1, 1]]}, "is not left, top, right, bottom"),
        ({"task": "classify", "labels": ["flu"]}, "label 'flu' is unknown"),
        ({"task": "report"}, "report needs text"),
        ({"task": "conversation"}, "needs `turns`"),
        ({"task": "guess"}, "task 'guess' is unknown"),
        ({"task": "report", "text": "x", "labls": []}, "labls unknown"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(film: Path, line: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        list(read_items(lines_of(film, line), str(line["task"]) if line["task"] != "guess" else "report"))


@pytest.mark.parametrize(
    ("form", "embed"), [("parquet", True), ("parquet", False), ("webdataset", True)]
)  # which always holds its films
def test_pairs_come_back_from_shards(film: Path, form: str, embed: bool) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra `train`")
    turns = (
        Turn(
            "Where is the right lung?", "The right lung is located at the coordinates [0.1, 0.2, 0.3, 0.4]."
        ),
    )
    content = film.read_bytes() if embed else None
    pairs = [
        Pair(f"vindr/region/{at}", task, "vindr", f"f{at}", "p1", split, 1.0, turns, "film.png", content)
        for at, (task, split) in enumerate([("region", "test"), ("region", "train"), ("report", "test")])
    ]
    name = "00.parquet" if form == "parquet" else "00.tar"
    _, sha256, size = write_shard(film.parent / name, pairs, form)
    shards = [{"name": name, "sha256": sha256, "bytes": size}]
    (film.parent / "dataset.json").write_text(json.dumps({"shards": shards}))
    (item,) = read_items(film.parent, "region", split="test")
    assert item.key == "vindr/region/0" and item.group == "vindr/p1" and item.about == "right lung"
    assert item.boxes == ((0.1, 0.2, 0.3, 0.4),) and item.film() == (content or film)
    (film.parent / name).write_bytes(b"damaged")
    with pytest.raises(RecipeError, match="not what was built"):
        list(read_items(film.parent, "region"))


def test_boxes_are_scored_as_the_authors_do_and_corrected(film: Path) -> None:
    """Two films: one box right beside a second, one film without a box where none is said."""
    data = lines_of(
        film,
        {"task": "abnormality", "about": "mass", "boxes": [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45]]},
        {"task": "abnormality", "about": "node", "boxes": []},
    )
    says = {"mass": "At [0.0, 0.0, 0.5, 0.5] and [0.0, 0.0, 0.5, 0.5].", "node": "There is none."}
    model = Told(lambda question, about: says[about])
    paper = run(model, data, "abnormality", film.parent / "a.jsonl")
    assert value(paper, "mAP@0.5") == pytest.approx(0.25)  # the second box is a duplicate, and none counts 0
    assert value(paper, "mean IoU of all pairs") == pytest.approx((1 + 0.9) / 2)
    strict = run(model, data, "abnormality", film.parent / "a.jsonl", mode="strict")
    assert value(strict, "mAP@0.5") == 1 and value(strict, "mean IoU") == pytest.approx(0.95)
    assert value(strict, "none where there is none") == 1
    assert value(strict, "boxes said twice", "beside") == 0.5
    assert model.looks == 1 and len(model.asked) == 2  # the second scoring asked nothing


def test_labels_are_scored_as_the_authors_do_and_corrected(film: Path) -> None:
    data = lines_of(
        film, {"task": "classify", "labels": ["edema"]}, {"task": "classify", "labels": [], "id": "b"}
    )
    model = Told(lambda question, about: "There is edema. No pneumothorax.")
    paper = run(model, data, "classify", film.parent / "a.jsonl")
    assert value(paper, "micro precision (13)") == 0.25 and value(paper, "micro recall (13)") == 1
    strict = run(model, data, "classify", film.parent / "a.jsonl", mode="strict")
    assert value(strict, "micro precision (14)") == 0.5 and value(strict, "F1 pneumothorax") == 0
    assert value(strict, "all labels right") == 0.5
    assert strict.result["calibration"]["bins"][7] == {"confidence": 0.75, "right": 0.5, "count": 2}
    assert value(strict, "calibration error", "beside") == pytest.approx(0.25)


def test_reports_are_scored_and_what_has_no_weights_is_named(film: Path) -> None:
    data = lines_of(film, {"task": "report", "text": "There is a left pleural effusion. No edema."})
    model = Told(lambda question, about: "There is a right pleural effusion. There is edema.")
    found = run(model, data, "report", film.parent / "a.jsonl")
    assert set(found.result["not_computed"]) == {
        "BERTScore", "RadGraph F1", "CheXbert F1", "GREEN", "RaTEScore",
    }  # fmt: skip
    assert "--weights chexbert=DIR" in found.result["not_computed"]["CheXbert F1"]
    assert 0 < value(found, "ROUGE-L") < 1  # type: ignore[operator]
    assert value(found, "wrong side", "beside") == 1
    assert value(found, "absent, but affirmed", "beside") == 0.5
    with pytest.raises(BackendError, match="no such folder"):
        run(model, data, "report", film.parent / "a.jsonl", weights={"chexbert": film.parent / "nowhere"})


def test_a_task_a_model_cannot_do_is_marked_and_nothing_is_asked(film: Path) -> None:
    data = lines_of(film, {"task": "detect", "boxes": []})
    model = Told(lambda question, about: "", name="cannot")
    found = run(model, data, "detect", film.parent / "a.jsonl")
    assert found.result["unsupported"] == "it never learned to" and not model.asked
    assert "figures" not in found.result and "Not asked: it never learned to." in render_page(found)


def test_a_killed_evaluation_goes_on_where_it_was(film: Path) -> None:
    data = lines_of(film, *({"task": "report", "text": f"Film {at}.", "id": str(at)} for at in range(5)))
    kept = film.parent / "out" / "answers.jsonl"

    def dies(question: str, about: str) -> str:
        if len(model.asked) == 4:
            raise KeyboardInterrupt
        return f"Answer {len(model.asked)}."

    model = Told(dies)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, "report", kept)
    with kept.open("a") as file:
        file.write('{"key": "3", "said": [')  # what a kill left of a line
    again = Told(lambda question, about: "Later.")
    found = run(again, data, "report", kept)
    assert len(again.asked) == 2 and found.result["asked"]["answered"] == 5
    assert [case.text for case in found.cases] == ["Answer 1.", "Answer 2.", "Answer 3.", "Later.", "Later."]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert run(Told(lambda question, about: "x"), data, "report", kept).result == found.result
    with pytest.raises(OutputError, match="other conditions \\(model\\)"):
        run(Told(lambda question, about: "x", name="another"), data, "report", kept)
    other = lines_of(film, {"task": "report", "text": "Another."})
    with pytest.raises(OutputError, match="items"):
        run(Told(lambda question, about: "x"), other, "report", kept)


def test_films_that_cannot_be_read_are_counted_and_not_scored(film: Path) -> None:
    lines = [{"image": "film.png", "task": "report", "text": "Clear."}]
    lines.append({"image": "gone.png", "task": "report", "text": "Clear."})
    data = write_lines(film.parent / "data.jsonl", lines)
    found = run(Told(lambda question, about: "Clear."), data, "report", film.parent / "a.jsonl")
    assert found.result["asked"]["failed"] == {"FilmError": 1} and found.result["asked"]["answered"] == 1
    assert value(found, "ROUGE-L") == 1


def test_conversations_go_on_from_the_models_own_answers(film: Path) -> None:
    turns = [
        {"question": "Any effusion?", "answer": "Yes."},
        {"question": "Where?", "answer": "[0.1, 0.1, 0.5, 0.5]"},
    ]
    data = lines_of(film, {"task": "conversation", "turns": turns})
    model = Told(lambda question, about: "No." if question.startswith("Any") else "At [0.1, 0.1, 0.5, 0.5].")
    found = run(model, data, "conversation", film.parent / "a.jsonl")
    assert value(found, "score") == 5 and found.result["judge"] == {"name": "rules 1", "without_score": 0}
    (item,) = read_items(data, "conversation")
    silent = ModelJudge("m", lambda system, user, seed: "I would rather not.")
    spoken = ModelJudge("m", lambda system, user, seed: "Overall score: 3\nthen **Overall score:** 7.5")
    assert silent.score(item, ["", ""]).score is None and spoken.score(item, ["", ""]).score == 7.5
    unscored = run(model, data, "conversation", film.parent / "a.jsonl", judge=silent)
    assert value(unscored, "score") is None and unscored.result["judge"]["without_score"] == 1


def test_the_rules_judge_by_what_can_be_judged() -> None:
    assert turn_score("No, there is no edema.", "Yes, there is edema.") == 0
    assert turn_score("Yes, there is edema.", "Yes, there is edema.") == 1
    assert turn_score("[0.0, 0.0, 0.5, 0.5]", "At [0.0, 0.0, 0.5, 1.0].") == pytest.approx(0.5)
    assert RuleJudge.name and isinstance(open_judge("rules", None, None, Path("unused")), RuleJudge)
    with pytest.raises(BackendError, match="--judge-url URL and --judge-model NAME"):
        open_judge("openai", "gpt", None, Path("unused"))


def test_a_judge_on_a_service_is_asked_once(tmp_path: Path, film: Path) -> None:
    import http.server
    import threading

    asked: list[dict[str, Any]] = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": "Overall score: 6"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    data = lines_of(film, {"task": "conversation", "turns": [{"question": "Any edema?", "answer": "No."}]})
    (item,) = read_items(data, "conversation")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        for _ in range(2):
            judge = open_judge("openai", "some-model", url, tmp_path / "out" / "judge.jsonl")
            assert judge.score(item, ["Yes."]).score == 6
    finally:
        server.shutdown()
    assert len(asked) == 1 and "Expected answer: No." in asked[0]["messages"][1]["content"]
    silent = open_judge("openai", "some-model", url, tmp_path / "other.jsonl")
    server.server_close()
    with pytest.raises(BackendError, match="the judge openai some-model did not answer"):
        silent.score(item, ["Yes."])


def test_more_differences_than_a_bundle_claims_are_said(film: Path) -> None:
    bundle = Bundle.open(demo_bundle())
    turns = [{"question": f"{at}?", "answer": "Yes."} for at in range(40)]
    data = lines_of(film, {"task": "conversation", "turns": turns})
    same, other = (
        run(
            Told(lambda question, about, word=word: word), data, "conversation", film.parent / f"{word}.jsonl"
        )
        for word in ("Yes.", "No.")
    )
    good = compare(same, same, bundle, "fp16+Q8_0", draws=50)
    assert good["holds"] and good["changes"]["flips"] == {
        "of": 40, "value": 0.0, "interval_95": good["changes"]["flips"]["interval_95"],
        "claimed": bundle.manifest.limits["flip_rate"], "source": "declared limit", "beyond": False,
    }  # fmt: skip
    bad = compare(other, same, bundle, "fp16+Q8_0", draws=50)
    assert not bad["holds"] and bad["changes"]["flips"]["value"] == 1 and bad["changes"]["flips"]["beyond"]
    with pytest.raises(ParityError):
        compare(same, replace(same, cases=()), bundle, "fp16+Q8_0", draws=50)


def test_claims_come_from_the_fidelity_report_where_there_is_one(tmp_path: Path) -> None:
    bundle = Bundle.open(demo_bundle())
    figures = {
        "answers": {"asked": 100, "identical": 0.9},
        "labels": {"identical": None},
        "yes_no": {"decided": 80, "interval_95": [0.0, 0.046]},
        "boxes": {"box_iou_loss": 0.1},
    }
    (tmp_path / "fidelity.json").write_text(json.dumps({"combinations": {"fp16+Q8_0": figures}}))
    claims = claims_of(replace(bundle, folder=tmp_path), "fp16+Q8_0")
    assert claims["flips"].most == 0.046 and claims["boxes"].most == 0.1
    assert 0.1 < claims["answers"].most < 0.2 and "labels" not in claims
    assert claims_of(replace(bundle, folder=tmp_path), "int8+Q8_0")["flips"].source == "declared limit"


def test_pages_hold_nothing_of_a_film_unless_asked(film: Path) -> None:
    data = lines_of(film, {"task": "report", "text": "SECRET finding.", "patient": "P-4711"})
    found = run(
        Told(lambda question, about: "WHISPERED <b>answer</b>."), data, "report", film.parent / "a.jsonl"
    )
    plain, whole = render_page(found), render_page(found, pictures=True)
    for word in ("SECRET", "WHISPERED", "P-4711", "film.png", "data:image"):
        assert word not in plain and word not in json.dumps(found.result)
    assert "SECRET" in whole and "WHISPERED &lt;b&gt;answer" in whole and "data:image/jpeg" in whole
    assert "default-src 'none'" in plain and "<script" not in whole


def test_a_baseline_is_marked_before_it_is_loaded(film: Path) -> None:
    data = lines_of(film, {"task": "detect", "boxes": []})
    found = invoke(
        "maira-2=/nowhere", "--task", "detect", "--data", data, "--json", "-o", film.parent / "out"
    )
    result = json.loads(found.stdout)
    assert result["unsupported"] == "its grounded reports give sentences, not classes"
    assert result["model"] == {"kind": "maira-2", "name": "nowhere", "sha256": "not read"}
    loaded = invoke("maira-2=/nowhere", "--task", "phrase", "--data", data, "-o", film.parent / "out")
    assert isinstance(loaded.exception, BackendError) and "no config.json there" in str(loaded.exception)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_lines(tmp_path_factory.mktemp("phantoms"), 2)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def test_the_demonstration_bundle_end_to_end(phantoms: Path, tmp_path: Path) -> None:
    common = ("--data", phantoms, "-o", tmp_path / "out", "--draws", 20, "--threads", 1)
    page = tmp_path / "page.html"
    for task in ("region", "conversation"):
        found = invoke(
            demo_bundle(), "--task", task, *common, "--metrics", "strict", "--json", "--html", page
        )
        assert found.exit_code == 0, found.output
        result = json.loads(found.stdout)
        assert result["model"]["name"] == "radvlm-nano" and result["asked"]["failed"] == {}
        assert result["asked"]["groups"] == 2 and "not for diagnosis" in found.stderr
    assert 0 <= result["figures"]["score"]["value"] <= 10
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(kept) == 2 and all(name.startswith("bundle-radvlm-nano-fp16-Q8_0-") for name in kept)
    text = invoke(demo_bundle(), "--task", "region", *common)
    assert text.exit_code == 0 and "mAP@0.5" in text.stdout
    missing = invoke(demo_bundle(), "--task", "detect", *common)
    assert isinstance(missing.exception, RecipeError) and "no item of task detect" in str(missing.exception)
    assert invoke(demo_bundle(), "--task", "region", *common, "--pictures").exit_code == 2


@pytest.mark.torch
def test_nanos_bundle_and_checkpoint_differ_by_no_more_than_claimed(phantoms: Path, tmp_path: Path) -> None:
    """The command of docs/evaluation.md on two films: same questions, both models, the bundle's claims."""
    checkpoint = Path(__file__).parents[1] / "training" / "nano"
    how = ("--data", phantoms, "--draws", 20, "--threads", 1, "--language", "F16", "--device", "cpu")
    found = invoke(
        demo_bundle(), "--task", "conversation", *how, "-o", tmp_path, "--against", checkpoint, "--json"
    )
    assert found.exit_code == 0, found.output
    against = json.loads(found.stdout)["against"]
    assert against["holds"] and against["changes"]["flips"]["of"] == 4
    assert against["changes"]["flips"]["value"] == 0 and against["changes"]["answers"]["value"] <= 0.25
    assert abs(against["figures"]["score"]["value"]) <= 1


def test_a_checkpoint_without_the_torch_world_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for model in (str(tmp_path), f"medgemma={tmp_path}"):
        with pytest.raises(BackendError, match="needs torch, transformers, not installed here"):
            open_model(model)


def test_evaluating_a_bundle_loads_no_torch() -> None:
    modules = ("evaluate", "evaluate_page", "evaluate_compare", "baselines", "baseline_models")
    code = f"import sys\nfor one in {modules!r}: __import__('radvlm_edge.benchmarks.' + one)\n"
    code += "print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow"} & set(found.stdout.split())
