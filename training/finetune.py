"""Recipe, checkpoint and instruction data → a tuned checkpoint, on one process or many.

The loop is transformers' Trainer; docs/decisions/0024-finetuning.md says why.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.runtime.detail import capped
from radvlm_edge.training.finetune_batch import Collator
from radvlm_edge.training.finetune_films import Films
from radvlm_edge.training.finetune_model import counts, load_model, prepare
from radvlm_edge.training.finetune_order import chosen, repeated, whole_run
from radvlm_edge.training.finetune_pairs import Pairs, manifest_of, write_table
from radvlm_edge.training.finetune_recipe import FinetuneRecipe, load_finetune_recipe
from radvlm_edge.training.finetune_save import card, write_adapter, write_checkpoint
from radvlm_edge.training.finetune_text import Speaker
from radvlm_edge.training.finetune_trainer import FilmTrainer, Journal, last_state

RUN, METRICS, TABLE, STATES = "run.json", "metrics.jsonl", "pairs.arrow", "states"


def run_recipe(
    path: Path, out: Path, *, resume: bool, start: Path | None, data: Path | None, root: Path | None
) -> Path:
    """`run` for a recipe file, whose folders the caller may override. Raises RecipeError, OutputError and
    CheckpointError, one line each.
    """
    recipe = load_finetune_recipe(path)
    recipe = replace(
        recipe,
        start=str(start) if start else recipe.start,
        data=str(data) if data else recipe.data,
        root=str(root) if root else recipe.root,
    )
    return run(recipe, out, resume=resume)


def run(recipe: FinetuneRecipe, out: Path, *, resume: bool) -> Path:
    """Tune; returns `out/checkpoint`, or `out/adapter` for LoRA that is not merged.

    A killed run goes on from its last whole state with `resume`, and ends in the same weights.
    """
    for name in ("start", "data"):
        if not getattr(recipe, name):
            raise RecipeError(f"{recipe.name}: no {name} folder; pass --{name}, or name it in the recipe")
    data = Path(str(recipe.data))
    manifest = manifest_of(data)
    checkpoint = open_checkpoint(Path(str(recipe.start)))
    settings = arguments(recipe, out)
    adapter = recipe.lora is not None and not recipe.lora.merge
    final = out / ("adapter" if adapter else "checkpoint")
    with settings.main_process_first(local=False, desc="claim"):
        start_sha256 = ""
        if settings.process_index == 0:
            start_sha256 = checkpoint.sha256()
            _claim(out, recipe, {"start_sha256": start_sha256, "data": manifest["inputs"]}, resume)
            if not (out / TABLE).exists():
                write_table(data, out / TABLE)
            last_state(out / STATES)  # removes what was cut off
    if final.is_dir():
        return final
    films, collator, steps = _films(recipe, checkpoint, data, out / TABLE)
    settings.max_steps = steps
    trainer = _trainer(recipe, checkpoint, settings, films, collator, out)
    if settings.process_index == 0:
        shown = ", ".join(f"{part} {number:,}" for part, number in counts(trainer.model).items() if number)
        click.echo(f"{steps} steps of {recipe.batch} films; trained parameters: {shown}", err=True)
    state = last_state(out / STATES) if settings.process_index == 0 else None
    trainer.accelerator.wait_for_everyone()
    state = state or last_state(out / STATES)
    trainer.train(resume_from_checkpoint=str(state) if state else None)
    _finish(trainer, recipe, checkpoint, final, card(checkpoint, recipe, manifest, start_sha256))
    return final


def arguments(recipe: FinetuneRecipe, out: Path) -> TrainingArguments:
    """What Trainer is told; processes, FSDP and DeepSpeed come from `accelerate launch`'s environment.

    Raises RecipeError if the processes do not divide the batch.
    """
    cuda = torch.cuda.is_available()
    settings = TrainingArguments(
        output_dir=str(out / STATES),
        seed=recipe.seed,
        per_device_train_batch_size=recipe.per_device,
        learning_rate=max(rate for rate in dataclasses.astuple(recipe.rates) if rate),
        lr_scheduler_type=recipe.schedule,
        warmup_ratio=recipe.warmup,
        weight_decay=recipe.decay,
        max_grad_norm=recipe.clip,
        max_steps=1,
        bf16=recipe.precision == "bf16",
        tf32=True if cuda and recipe.precision == "bf16" else None,
        gradient_checkpointing=recipe.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.checkpointing else None,
        use_cpu=not cuda,
        ddp_backend=None if cuda or "LOCAL_RANK" not in os.environ else "gloo",
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
    )
    together = recipe.per_device * settings.world_size
    if recipe.batch % together:
        raise RecipeError(
            f"{recipe.name}: a batch of {recipe.batch} films is no multiple of {settings.world_size} "
            f"processes x {recipe.per_device} per_device; change batch or per_device"
        )
    settings.gradient_accumulation_steps = recipe.batch // together
    return settings


def _claim(out: Path, recipe: FinetuneRecipe, inputs: dict[str, Any], resume: bool) -> None:
    """Make `out` this run's folder, or check that it is; folders may have moved, their content may not."""
    said = dataclasses.asdict(recipe)
    for name in ("start", "data", "root", "workers", "log_every"):
        said.pop(name)
    text = json.dumps({"recipe": said} | inputs, indent=2, sort_keys=True) + "\n"
    noted = out / RUN
    if noted.exists():
        if not resume:
            raise OutputError(f"{out}: holds a run already; go on with --resume, or choose another folder")
        if noted.read_text() != text:
            raise OutputError(f"{out}: holds a run of another recipe, start or data; choose another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty and holds no run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    noted.write_text(text)


def _films(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, data: Path, table: Path
) -> tuple[Films, Collator, int]:
    """The run's films in order, what makes batches of them, and how many steps they are."""
    pairs = Pairs(table, data, Path(recipe.root) if recipe.root else None)
    tasks, names = pairs.codes("task")
    used = chosen(pairs.ids() if recipe.tasks else [""] * len(pairs), tasks, names, recipe.tasks, recipe.seed)
    used = repeated(used, tasks, names, recipe.repeats)
    films, _ = pairs.codes("image")
    order, steps = whole_run(used, films, recipe.pack, recipe.seed, recipe.batch, recipe.epochs, recipe.steps)
    geometry = capped(checkpoint.config.geometry, recipe.detail)
    speaker = Speaker(checkpoint.prompting, checkpoint.tokenizer, recipe.system)
    context = checkpoint.config.language.context
    if len(speaker.head) + geometry.max_image_tokens >= context:
        raise RecipeError(
            f"{checkpoint.folder}: a film may take {geometry.max_image_tokens} of {context} tokens of "
            "context, which leaves no room to answer; set detail"
        )
    collator = Collator(
        speaker.head, checkpoint.config.image_token_id, checkpoint.prompting.stop_ids[0], context, recipe.loss
    )
    render = recipe.render or str(checkpoint.facts["render"])
    return Films(pairs, order, speaker, geometry, render), collator, steps


def _trainer(
    recipe: FinetuneRecipe,
    checkpoint: Checkpoint,
    settings: TrainingArguments,
    films: Films,
    collator: Collator,
    out: Path,
) -> FilmTrainer:
    torch.manual_seed(recipe.seed)  # adapters are drawn before Trainer sets its seed
    model = prepare(load_model(checkpoint, recipe), recipe, checkpoint.config.tower.used_layers)
    journal = Journal(out / METRICS, settings.process_index == 0)
    trainer = FilmTrainer(
        recipe=recipe,
        preprocessing=checkpoint.preprocessing,
        model=model,
        args=settings,
        train_dataset=films,
        data_collator=collator,
        callbacks=[journal],
    )
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded and recipe.lora and recipe.lora.merge:
        raise RecipeError(
            f"{recipe.name}: adapters cannot be merged while weights are sharded (FSDP, DeepSpeed); set "
            "merge: false, and export the starting checkpoint with --lora"
        )
    journal.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # standard output is for the checkpoint's path alone
    trainer.remove_callback(ProgressCallback)
    return trainer


def _finish(
    trainer: FilmTrainer, recipe: FinetuneRecipe, checkpoint: Checkpoint, final: Path, about: dict[str, Any]
) -> None:
    """Gather the weights on the first process, which writes them."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    state = accelerator.get_state_dict(trainer.model_wrapped)  # of shards, by all processes together
    if accelerator.is_main_process:
        if recipe.lora is None:
            write_checkpoint(final, state, model.config, checkpoint, recipe.save_as, about)
        elif recipe.lora.merge:
            merged = model.merge_and_unload()
            write_checkpoint(final, merged.state_dict(), merged.config, checkpoint, recipe.save_as, about)
        else:
            write_adapter(final, model, state, checkpoint, about)
    accelerator.wait_for_everyone()
