"""transformers' Trainer with our loss, rates per part, states whole or absent, and figures as JSON lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback

from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.training.finetune_loss import weighted_loss
from radvlm_edge.training.finetune_model import groups
from radvlm_edge.training.finetune_recipe import FinetuneRecipe
from radvlm_edge.training.loop import Progress

WHOLE = "whole"
"""A file that is written into a state's folder last: a state without it was cut off."""
STATE = "checkpoint-"
"""How Trainer names a state, before its step."""


class FilmTrainer(Trainer):  # type: ignore[misc]
    """Trains in the run's order; a step's loss is the weighted mean over its films on all processes."""

    optimizer: Any

    def __init__(self, *, recipe: FinetuneRecipe, preprocessing: Mapping[str, Any], **given: Any) -> None:
        super().__init__(**given)
        self.recipe, self._preprocessing = recipe, preprocessing
        # `training_step` then leaves the loss as `compute_loss` gives it: divided by the whole step's weight
        self.model_accepts_loss_kwargs = True
        self.cut = 0
        """Tokens of this process that did not fit into the context."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_optimizer(self) -> Any:
        """AdamW with a rate for each part, made by us because Trainer knows one rate."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups(self.model, self.recipe), **settings)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of one step, and the weight they have together on all processes."""
        try:
            samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except RecipeError as error:  # a worker's comes with the worker's traceback in its text
            raise RecipeError(str(error).rpartition("RecipeError: ")[2].strip()) from error
        own = sum((one["weights"].sum() for one in samples), start=torch.zeros(()))
        self.cut += int(sum(int(one["cut"].sum()) for one in samples))
        return samples, self.accelerator.gather(own.to(device).reshape(1)).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        total = weighted_loss(model, inputs, self._preprocessing)
        own = inputs["weights"].sum() if num_items_in_batch is None else num_items_in_batch
        # processes' gradients are averaged, so that each one's share has to be as many times larger
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = total * scale / own.clamp(min=1e-12)
        return (loss, None) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A state's weights under the names in memory: under those of files Trainer reads back nothing."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.recipe.lora:
            save_adapter(self.model, folder, state_dict)
            return
        state = dict(self.model.state_dict() if state_dict is None else state_dict)
        if self.model.config.text_config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        held = {name: value.detach().contiguous().cpu() for name, value in state.items()}
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A state that does not fill the model is an error, not a warning."""
        missing = set(load_result.missing_keys) - set(self.model._tied_weights_keys or ())
        if missing or load_result.unexpected_keys:
            raise OutputError(
                f"{self.args.output_dir}: the state does not fit the model (missing {sorted(missing)[:3]}, "
                f"unknown {load_result.unexpected_keys[:3]}); choose another folder"
            )


def save_adapter(model: Any, folder: Path, state: Any = None) -> None:
    """peft's files; embeddings are not asked about, which would be asked of the hub."""
    model.save_pretrained(folder, state_dict=state, safe_serialization=True, save_embedding_layers=False)


def last_state(folder: Path) -> Path | None:
    """The newest whole state; ones that were cut off are removed."""
    found = sorted(folder.glob(f"{STATE}*"), key=lambda path: int(path.name.removeprefix(STATE)))
    for path in found:
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return whole[-1] if whole else None


class Journal(TrainerCallback):  # type: ignore[misc]
    """Figures to metrics.jsonl and progress to stderr, on the first process; states marked whole."""

    def __init__(self, path: Path, first: bool) -> None:
        self._path, self._first = path, first
        self._progress: Progress | None = None
        self._rates: dict[str, float] = {}
        self.trainer: FilmTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Lines behind the state that is gone on from are dropped: their steps are done again."""
        if not self._first:
            return
        self._progress = Progress("finetune", state.global_step, state.max_steps)
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            partial = self._path.with_name(self._path.name + ".partial")
            partial.write_text("".join(kept))
            partial.replace(self._path)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """The rates of the update to come; behind it the schedule has moved on."""
        assert self.trainer is not None
        groups_now = self.trainer.optimizer.param_groups
        self._rates = {group["part"]: group["lr"] for group in groups_now if "part" in group}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """One line: step, loss, gradient norm, each part's rate, tokens cut off by this process so far."""
        if not self._first or not logs or "loss" not in logs:
            return
        assert self.trainer is not None and self._progress is not None
        line: dict[str, Any] = {"stage": "finetune", "step": state.global_step, "loss": logs["loss"]}
        if "grad_norm" in logs:
            line["grad_norm"] = float(logs["grad_norm"])
        line |= {f"rate_{part}": rate for part, rate in self._rates.items()}
        if self.trainer.cut:
            line["cut"] = self.trainer.cut
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._progress.say(
            state.global_step, {"loss": logs["loss"]}, force=state.global_step == state.max_steps
        )

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        assert self.trainer is not None
        self.trainer.accelerator.wait_for_everyone()
        if self._first:
            (Path(args.output_dir) / f"{STATE}{state.global_step}" / WHOLE).touch()
