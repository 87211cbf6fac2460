"""One optimisation stage: seeded steps, saved states, figures, progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from transformers import get_cosine_schedule_with_warmup

Losses = dict[str, torch.Tensor]
"""Named scalar losses; `loss` is the one that is minimised."""


class Progress:
    """A line on stderr every few seconds: step, losses, time left."""

    def __init__(self, stage: str, done: int, steps: int) -> None:
        self.stage, self.first, self.steps = stage, done, steps
        self.began = self.spoke = time.monotonic()

    def say(self, step: int, figures: dict[str, float], force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.spoke < 5:
            return
        self.spoke = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        minutes, seconds = divmod(round(left), 60)
        click.echo(f"{self.stage} {step}/{self.steps}  {shown}  ETA {minutes}:{seconds:02d}", err=True)


def write_atomically(write: Callable[[Path], object], path: Path) -> None:
    """A file that is either the old one or the new one, whenever the process is killed."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)


class Stage:
    """Trains modules for a number of steps and can go on where a killed run stopped.

    Every step draws its batch from a generator seeded with (seed, stage, step), so a resumed run
    repeats what an uninterrupted one would have done.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        modules: dict[str, torch.nn.Module],
        groups: Iterable[dict[str, Any]],
        steps: int,
        save_every: int,
        decay_over: int = 0,
    ) -> None:
        self.name, self.out, self.modules = name, out, modules
        self.steps, self.save_every = steps, save_every
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        optimiser = torch.optim.AdamW(list(groups), betas=(0.9, 0.98), weight_decay=0.02)
        warm = max(1, min(50, steps // 10))
        schedule = get_cosine_schedule_with_warmup(optimiser, warm, max(1, decay_over or steps))
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self.schedule = schedule
        for key, module in modules.items():
            modules[key] = self.accelerator.prepare_model(module)

    @property
    def state_file(self) -> Path:
        return self.out / f"{self.name}.state.pt"

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict() if step < self.steps else None,
            "schedule": self.schedule.state_dict(),
        }
        write_atomically(lambda path: torch.save(state, path), self.state_file)

    def _load(self) -> int:
        if not self.state_file.exists():
            return 0
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        if state["step"] < self.steps:
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
        return int(state["step"])

    def run(self, compute: Callable[[int], Losses]) -> None:
        """Minimise `compute(step)["loss"]`; saves every `save_every` steps and at the end."""
        done = self._load()
        progress = Progress(self.name, done, self.steps)
        parameters = [one for group in self.optimiser.param_groups for one in group["params"]]
        means: dict[str, float] = {}
        for step in range(done, self.steps):
            losses = compute(step)
            self.accelerator.backward(losses["loss"])
            norm = self.accelerator.clip_grad_norm_(parameters, 1.0)
            if math.isfinite(float(norm)):
                self.optimiser.step()
            self.schedule.step()
            self.optimiser.zero_grad()
            for key, loss in losses.items():
                value = float(loss.detach())
                means[key] = value if key not in means else 0.95 * means[key] + 0.05 * value
            progress.say(step + 1, means, force=step + 1 == self.steps)
            if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                self._save(step + 1)
                self._log(step + 1, means)

    def _log(self, step: int, means: dict[str, float]) -> None:
        line = {"stage": self.name, "step": step} | {key: round(value, 5) for key, value in means.items()}
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
