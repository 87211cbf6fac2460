"""Fine-tuning: runs that are killed, split over processes, adapted, frozen, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the torch world (extra `train`)")
pytest.importorskip("accelerate", reason="needs the torch world (extra `train`)")

import torch
from accelerate.state import AcceleratorState
from tests.tiny import make_checkpoint
from tools.synthetic_index import Index

from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry, SourcePlan
from radvlm_edge.training.finetune import RUN, arguments, run
from radvlm_edge.training.finetune_model import load_model, part_of
from radvlm_edge.training.finetune_recipe import FinetuneRecipe, Lora, Rates
from radvlm_edge.training.finetune_trainer import WHOLE, FilmTrainer, last_state

pytestmark = pytest.mark.torch
ALL = Rates(1e-3, 1e-3, 1e-3)
STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up films of 24 in one collection."""
    folder = tmp_path_factory.mktemp("collections")
    index = Index(folder, 0.0002, films=True)
    index.n["nih"] = 24
    index.nih()
    return folder


def data_recipe(**changes: Any) -> DataRecipe:
    entries = Entry("classify", "nih-cxr14", repeats=3), Entry("abnormality", "nih-cxr14", weight=0.5)
    plans = {"nih-cxr14": SourcePlan(splits="patients")}
    return DataRecipe("tiny", entries, sources=plans, longest_px=None, **changes)


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(data_recipe(), root, out, TemplateWriter())
    return out


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint", dtype=torch.float32)


Recipes = Callable[..., FinetuneRecipe]


@pytest.fixture(scope="module")
def recipe(root: Path, data: Path, start: Path) -> Recipes:
    def make(**changes: Any) -> FinetuneRecipe:
        plain = FinetuneRecipe(
            kind="finetune",
            name="tiny",
            rates=ALL,
            start=str(start),
            data=str(data),
            root=str(root),
            steps=STEPS,
            batch=4,
            per_device=2,
            pack=2,
            warmup=0.0,
            save_every=2,
            log_every=1,
            save_as="float32",
        )
        return replace(plain, **changes)

    return make


def tensors(folder: Path, lora: Path | None = None) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(folder, lora=lora)
    return {name: opened.tensor(name).float() for name in opened.where}


def figures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes started here: sums are the same to the bit only in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_precision_of_another_run() -> None:
    """transformers and accelerate keep a run's precision for the process; a command has but one run."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def straight(recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on one process."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(recipe(), out, resume=False)
    return out


def test_every_part_moves_and_what_never_runs_does_not(straight: Path, start: Path) -> None:
    before, after = tensors(start), tensors(straight / "checkpoint")
    assert before.keys() == after.keys()
    for name in before:
        moved = not torch.equal(before[name], after[name])
        # a key's bias moves no attention: its gradient is nothing but rounding
        assert moved != ("post_layernorm" in name) or name.endswith("k_proj.bias"), name
    lines = figures(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) >= {"loss", "grad_norm", "rate_tower", "rate_projector", "rate_language"}


def test_the_checkpoint_says_what_it_is_and_holds_everything(straight: Path, start: Path) -> None:
    folder = straight / "checkpoint"
    tuned = json.loads((folder / "radvlm_edge.json").read_text())
    assert tuned["redistributable"] is False
    assert tuned["trained_on"]["tuned"]["start_sha256"] == open_checkpoint(start).sha256()
    one, other = open_checkpoint(start), open_checkpoint(folder)
    assert one.prompting == other.prompting and one.tokenizer == other.tokenizer
    assert one.config.geometry == other.config.geometry and one.processor == other.processor
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    _, found = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>") == one.config.image_token_id


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from radvlm_edge.training.finetune import run_recipe
from radvlm_edge.training.finetune_trainer import FilmTrainer
step = FilmTrainer.training_step
def dying(self, *given, **named):
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *given, **named)
FilmTrainer.training_step = dying
run_recipe(Path(sys.argv[2]), Path(sys.argv[3]), resume=True, start=None, data=None, root=None)
"""
ROOT = Path(__file__).parents[1]


def write_recipe(path: Path, given: FinetuneRecipe) -> Path:
    import dataclasses

    path.write_text(json.dumps(dataclasses.asdict(given)))  # JSON is YAML
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def same_run(one: Path, other: Path) -> None:
    first, second = tensors(one / "checkpoint"), tensors(other / "checkpoint")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert figures(one) == figures(other)


def test_a_killed_run_goes_on_to_the_same_weights(straight: Path, recipe: Recipes, tmp_path: Path) -> None:
    file, out = write_recipe(tmp_path / "r.yaml", recipe()), tmp_path / "run"
    command = [sys.executable, "-c", KILLED, ROOT, file, out]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (out / "checkpoint").exists() and len(figures(out)) == 3
    run(recipe(), out, resume=True)
    same_run(straight, out)


def test_a_state_that_was_cut_off_is_not_gone_on_from(
    straight: Path, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    save = FilmTrainer._save

    def cut(self: FilmTrainer, output_dir: str | None = None, state_dict: Any = None) -> None:
        save(self, output_dir, state_dict)
        if self.state.global_step == STEPS:  # weights are written, optimiser and random state are not
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(FilmTrainer, "_save", cut)
        with pytest.raises(KilledError):
            run(recipe(), tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "states" / "checkpoint-4" / "model.safetensors").exists()
    run(recipe(), tmp_path / "run", resume=True)
    same_run(straight, tmp_path / "run")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_agree_with_one(straight: Path, recipe: Recipes, tmp_path: Path) -> None:
    """accelerate launch, gloo, on the CPU: the same losses, gradients and weights up to summation order."""
    file, out = write_recipe(tmp_path / "r.yaml", recipe()), tmp_path / "run"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(
            "--main_process_port",
            str(free_port()),
            str(Path(sys.executable).with_name("radvlm-edge")),
            "train",
            str(file),
        ),
        *("-o", str(out)),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert (
        json.loads((out / "states" / "checkpoint-4" / "trainer_state.json").read_text())["max_steps"] == STEPS
    )
    assert len(list((out / "states" / "checkpoint-4").glob("rng_state_*.pth"))) == 2, "two processes ran"
    for one, other in zip(figures(straight), figures(out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    first, second = tensors(straight / "checkpoint"), tensors(out / "checkpoint")
    for name in first:
        if not name.endswith("k_proj.bias"):  # whose gradient is rounding, which Adam scales up
            torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=1e-3)


def test_a_run_folder_is_left_alone(straight: Path, recipe: Recipes, tmp_path: Path) -> None:
    assert run(recipe(), straight, resume=True) == straight / "checkpoint"
    with pytest.raises(OutputError, match="holds a run already"):
        run(recipe(), straight, resume=False)
    with pytest.raises(OutputError, match="another recipe"):
        run(recipe(seed=1), straight, resume=True)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        run(recipe(), tmp_path, resume=True)
    assert (straight / RUN).is_file() and "/" not in json.loads((straight / RUN).read_text())["data"]


def test_states_that_were_cut_off_are_removed(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    assert last_state(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_freezing_recomputing_and_bf16(straight: Path, start: Path, recipe: Recipes, tmp_path: Path) -> None:
    """A frozen tower stays to the bit; activations recomputed change nothing; bf16 little."""
    run(recipe(rates=Rates(language=1e-3), steps=1), tmp_path / "frozen", resume=False)
    before, after = tensors(start), tensors(tmp_path / "frozen" / "checkpoint")
    for name in before:
        part = part_of(name)
        assert torch.equal(before[name], after[name]) == (part != "language") or "k_proj.bias" in name, name
    first = figures(straight)[0]
    run(recipe(checkpointing=True, steps=1), tmp_path / "recomputed", resume=False)
    line = figures(tmp_path / "recomputed")[0]
    assert line["loss"] == first["loss"] and line["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    run(recipe(precision="bf16", steps=1), tmp_path / "half", resume=False)
    assert 0 < abs(figures(tmp_path / "half")[0]["loss"] / first["loss"] - 1) < 0.03


def test_an_adapter_merges_to_what_peft_merges(start: Path, recipe: Recipes, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra `train`)")
    lora = Lora(rank=4, alpha=8.0, parts=("tower", "language"))
    adapter = run(recipe(lora=lora, steps=2), tmp_path / "adapter", resume=False)
    merged = run(recipe(lora=replace(lora, merge=True), steps=2), tmp_path / "merged", resume=False)
    assert adapter.name == "adapter" and str(tmp_path) not in (adapter / "adapter_config.json").read_text()
    ours, theirs, before = tensors(start, adapter), tensors(merged), tensors(start)
    changed = {name for name in before if not torch.equal(before[name], ours[name])}
    assert {part_of(name) for name in changed} == {"tower", "projector", "language"}
    assert not any("embed" in name or "norm" in name for name in changed)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


def test_adapters_go_on_exactly_too(recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra `train`)")
    from safetensors.torch import load_file

    given = recipe(lora=Lora(rank=4, alpha=8.0, dropout=0.1))
    straight = run(given, tmp_path / "straight", resume=False)

    class KilledError(Exception):
        pass

    step = FilmTrainer.training_step

    def dying(self: FilmTrainer, *inputs: Any, **named: Any) -> Any:
        if self.state.global_step == 3:
            raise KilledError
        return step(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(FilmTrainer, "training_step", dying)
        with pytest.raises(KilledError):
            run(given, tmp_path / "killed", resume=False)
    resumed = run(given, tmp_path / "killed", resume=True)
    first, second = (load_file(one / "adapter_model.safetensors") for one in (straight, resumed))
    assert any("lora_B" in name for name in first) and any("projector" in name for name in first)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_film_that_is_gone_is_one_line(
    root: Path, recipe: Recipes, straight: Path, tmp_path: Path, workers: int
) -> None:
    """Read in this process or in a worker; with all films there a worker changes nothing."""
    import shutil

    fewer = tmp_path / "collections"
    shutil.copytree(root, fewer)
    if workers:
        run(recipe(root=str(fewer), workers=1, steps=1), tmp_path / "whole", resume=False)
        assert figures(tmp_path / "whole")[0]["loss"] == figures(straight)[0]["loss"]
    for film in fewer.glob("NIH-CXR14/images/*.png"):
        film.unlink()
    with pytest.raises(RecipeError, match=r"nih-cxr14/.*: no such file") as caught:
        run(recipe(root=str(fewer), workers=workers), tmp_path / "run", resume=False)
    assert "\n" not in str(caught.value)


def test_four_bits_need_a_gpu(start: Path, recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="NVIDIA GPU"):
        load_model(open_checkpoint(start), recipe(lora=Lora(quantised=True)))


@pytest.mark.parametrize("spelling", ["LLaVA-NeXT training", "transformers 5 files"])
def test_every_layout_is_tuned(spelling: str, recipe: Recipes, tmp_path: Path) -> None:
    """LLaVA-OneVision 0.5B and 7B come in these layouts; one step from each gives a checkpoint that opens."""
    folder = make_checkpoint(tmp_path / "c", spelling=spelling, tied=False, dtype=torch.float32)
    given = recipe(start=str(folder), steps=1, batch=2)
    checkpoint = open_checkpoint(folder)
    loaded = load_model(checkpoint, given).state_dict()
    from radvlm_edge.export.reference import in_memory

    assert all(torch.equal(loaded[in_memory(name)], checkpoint.tensor(name)) for name in checkpoint.where)
    after = tensors(run(given, tmp_path / "run", resume=False))
    head = "language_model.lm_head.weight"
    assert not torch.equal(after[head], checkpoint.tensor(head))
    unused = [
        name for name in after if f"layers.{checkpoint.config.tower.used_layers}." in name and "tower" in name
    ]
    assert bool(unused) == (spelling == "LLaVA-NeXT training")
    assert all(torch.equal(after[name], checkpoint.tensor(name)) for name in unused)


def test_processes_must_divide_the_batch(recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no multiple of 1 processes x 3"):
        arguments(recipe(per_device=3), tmp_path)


def test_the_tuned_checkpoint_exports_and_answers(straight: Path, tmp_path: Path) -> None:
    from radvlm_edge import Reader
    from radvlm_edge.export.exporter import export_checkpoint

    bundle = export_checkpoint(
        straight / "checkpoint", tmp_path / "bundle", vision=("fp32",), language=("F16",)
    )
    film = tmp_path / "film.png"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 60), dtype=np.uint8)).save(film)
    answer = Reader.open(bundle.folder).look(str(film)).ask("any effusion?")
    assert isinstance(answer.text, str)
