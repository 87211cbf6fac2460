"""Fine-tuning's data: what is learned, packing against transformers' own loss, order, shards, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the torch world (extra `train`)")
pytest.importorskip("accelerate", reason="needs the torch world (extra `train`)")

import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import make_checkpoint
from tools.synthetic_index import Index

from radvlm_edge.cli import cli
from radvlm_edge.errors import RecipeError
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry, SourcePlan
from radvlm_edge.training.finetune_batch import Collator, Look, block_mask
from radvlm_edge.training.finetune_films import Films
from radvlm_edge.training.finetune_loss import weighted_loss
from radvlm_edge.training.finetune_model import load_model
from radvlm_edge.training.finetune_order import Order, chosen, one_epoch, repeated, whole_run
from radvlm_edge.training.finetune_pairs import Pairs, write_table
from radvlm_edge.training.finetune_recipe import (
    FinetuneRecipe,
    Lora,
    Rates,
    check,
    kind_of,
    load_finetune_recipe,
)
from radvlm_edge.training.finetune_text import Speaker, Speech

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[1]
TURNS = [
    Turn("any effusion?", "Yes, there is a left pleural effusion."),
    Turn("where?", "[0.1, 0.25, 0.5, 1.0]"),
]
PLAIN = FinetuneRecipe(kind="finetune", name="t", rates=Rates(1e-3, 1e-3, 1e-3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = make_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint", dtype=torch.float32)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def speaker(checkpoint: Checkpoint) -> Speaker:
    return Speaker(checkpoint.prompting, checkpoint.tokenizer)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of the folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint.folder)


def test_answers_and_what_ends_them_are_taught_and_nothing_else(speaker: Speaker, reference: Any) -> None:
    """By hand: the ids of every piece, and whether it is learned."""
    pieces = (
        ("\nany effusion?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes, there is a left pleural effusion.", True),
        ("<|im_end|>", True),
        ("\n<|im_start|>user\nwhere?<|im_end|>\n<|im_start|>assistant\n", False),
        ("[0.1, 0.25, 0.5, 1.0]", True),
        ("<|im_end|>", True),
    )
    ids, taught = list[int](), list[bool]()
    for text, learned in pieces:
        new = reference.encode(text, add_special_tokens=False)
        ids, taught = ids + new, taught + [learned] * len(new)
    speech = speaker.speech(TURNS)
    assert speech.ids == ids and speech.taught == taught


def test_a_conversation_is_what_transformers_template_writes(
    checkpoint: Checkpoint, speaker: Speaker, reference: Any
) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": 'Say "so".'}]}]
    for index, turn in enumerate(TURNS):
        image = [] if index else [{"type": "image"}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    for told, own in (
        (messages[1:], speaker),
        (messages, Speaker(checkpoint.prompting, checkpoint.tokenizer, 'Say "so".')),
    ):
        text = reference.apply_chat_template(
            told, chat_template=checkpoint.prompting.chat_template, tokenize=False
        )
        image_id = checkpoint.config.image_token_id
        assert reference.encode(text) == [
            *own.head,
            image_id,
            *own.speech(TURNS).ids,
            *reference.encode("\n"),
        ]


@pytest.mark.parametrize("text", ["a <image> here", "ends<|im_end|>", ""])
def test_control_tokens_and_empty_answers_are_refused(speaker: Speaker, text: str) -> None:
    with pytest.raises(RecipeError, match="pair 7"):
        speaker.speech([Turn("any effusion?", text)], name="pair 7")


def looks_of(checkpoint: Checkpoint, speaker: Speaker) -> list[Look]:
    """Two films of different sizes; three conversations about one, two about the other."""
    rng = np.random.default_rng(0)
    looks = []
    for size, said in (((61, 75), 3), ((90, 40), 2)):
        crops, layout = cut(rng.integers(0, 255, size, dtype=np.uint8), checkpoint.config.geometry)
        speeches = [speaker.speech(TURNS[: 1 + index % 2], weight=1 + index) for index in range(said)]
        looks.append(Look(crops[:, 0], layout, tuple(speeches)))
    return looks


def collator(checkpoint: Checkpoint, speaker: Speaker, loss: str, context: int = 4096) -> Collator:
    return Collator(speaker.head, checkpoint.config.image_token_id, 0, context, loss)


@pytest.mark.parametrize("loss", ["pairs", "tokens"])
def test_packed_losses_and_gradients_are_transformers_own(
    checkpoint: Checkpoint, speaker: Speaker, loss: str
) -> None:
    """Five conversations behind two films in one batch, against one plain forward for each."""
    model = load_model(checkpoint, PLAIN)
    looks = looks_of(checkpoint, speaker)
    batch = collator(checkpoint, speaker, loss)(looks)
    assert batch["attention_mask"].ndim == 4 and len(set(batch["image_sizes"][:, 0].tolist())) == 2
    packed = weighted_loss(model, batch, checkpoint.preprocessing)
    watched = model.model.multi_modal_projector.linear_1.weight
    (gradient,) = torch.autograd.grad(packed, watched)
    alone, gradients = torch.zeros(()), torch.zeros_like(watched)
    for look in looks:
        for speech in look.speeches:
            one = plain_loss(model, checkpoint, speaker, look, speech)
            one = one * speech.weight * (speech.targets if loss == "tokens" else 1)
            alone = alone + one.detach()
            gradients += torch.autograd.grad(one, watched)[0]
    torch.testing.assert_close(packed.detach(), alone, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, gradients, atol=1e-4, rtol=1e-3)


def plain_loss(model: Any, checkpoint: Checkpoint, speaker: Speaker, look: Look, speech: Speech) -> Any:
    """The mean that transformers computes from labels, of one conversation on its own, padding around it."""
    image = [checkpoint.config.image_token_id] * look.layout.image_tokens
    ids = [*speaker.head, *image, *speech.ids, 0, 0]
    labels = [-100] * (len(ids) - len(speech.ids) - 2)
    labels += [one if learned else -100 for one, learned in zip(speech.ids, speech.taught, strict=True)]
    mean, std = (torch.tensor(checkpoint.preprocessing[name])[:, None, None] for name in ("mean", "std"))
    pixels = (torch.from_numpy(look.crops)[:, None] / 255 - mean) / std
    mask = torch.tensor([[1] * (len(ids) - 2) + [0, 0]])
    return model(
        input_ids=torch.tensor([ids]),
        attention_mask=mask,
        labels=torch.tensor([[*labels, -100, -100]]),
        pixel_values=pixels[None],
        image_sizes=torch.tensor([(look.layout.height, look.layout.width)]),
    ).loss


def test_one_conversation_a_film_needs_no_block_mask(checkpoint: Checkpoint, speaker: Speaker) -> None:
    looks = [Look(one.crops, one.layout, one.speeches[:1]) for one in looks_of(checkpoint, speaker)]
    batch = collator(checkpoint, speaker, "pairs")(looks)
    assert batch["attention_mask"].ndim == 2
    assert batch["weights"].sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert int(batch["cut"].sum()) == 0


def test_what_does_not_fit_is_cut_off_and_counted(checkpoint: Checkpoint, speaker: Speaker) -> None:
    (look, _) = looks_of(checkpoint, speaker)
    whole = len(speaker.head) + look.layout.image_tokens + len(look.speeches[1].ids)
    batch = collator(checkpoint, speaker, "tokens", whole - 4)(
        [Look(look.crops, look.layout, look.speeches[1:2])]
    )
    assert batch["input_ids"].shape[1] == whole - 4 and batch["cut"].tolist() == [4]
    assert int((batch["weights"] > 0).sum()) == look.speeches[1].targets - 4


def test_block_mask_by_hand() -> None:
    seen = block_mask(torch.tensor([[0, 0, 1, 2, -1]]))[0, 0]
    by_hand = ["10000", "11000", "11100", "11010", "00001"]
    assert ["".join(str(int(one)) for one in row) for row in seen] == by_hand


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_an_epoch_holds_every_pair_once(films: list[int], most: int, seed: int, epoch: int) -> None:
    of = np.array(films)
    used = np.flatnonzero(np.arange(len(of)) % 3 != 1) if len(of) > 1 else np.array([0])
    order = one_epoch(used, of, most, seed, epoch)
    packs = [order.pack(index) for index in range(len(order))]
    assert sorted(np.concatenate(packs).tolist()) == used.tolist()
    assert all(1 <= len(pack) <= most and len(set(of[pack].tolist())) == 1 for pack in packs)
    fewest = sum(-(-int((of[used] == film).sum()) // most) for film in set(of[used].tolist()))
    assert len(packs) == fewest
    again = one_epoch(used, of, most, seed, epoch)
    assert np.array_equal(order.pairs, again.pairs) and np.array_equal(order.bounds, again.bounds)


def test_a_run_is_cut_to_whole_steps() -> None:
    films = np.arange(10)
    order, steps = whole_run(films, films, 1, 0, batch=4, epochs=1.0, steps=None)
    assert steps == 2 and len(order) == 8
    order, steps = whole_run(films, films, 1, 0, batch=4, epochs=1.0, steps=6)
    assert steps == 6 and len(order) == 24 and isinstance(order, Order)
    assert sorted(order.pairs[:10].tolist()) == films.tolist(), "the first ten are an epoch"
    with pytest.raises(RecipeError, match="fewer than the batch of 16"):
        whole_run(films, films, 1, 0, batch=16, epochs=1.0, steps=None)


def test_smaller_shares_are_part_of_larger_ones() -> None:
    ids, tasks = [f"pair {index}" for index in range(200)], np.arange(200) % 2
    drawn = [chosen(ids, tasks, ["a", "b"], {"a": share, "b": 1.0}, 0) for share in (0.01, 0.1, 1.0)]
    one, ten, all_of = ({int(at) for at in some if tasks[at] == 0} for some in drawn)
    assert one < ten < all_of and (len(one), len(ten), len(all_of)) == (1, 10, 100)
    assert all(sum(tasks[some] == 1) == 100 for some in drawn)
    assert set(tasks[chosen(ids, tasks, ["a", "b"], {"b": 0.5}, 0)].tolist()) == {1}
    twice = repeated(np.array([0, 1, 3]), tasks, ["a", "b"], {"b": 2})
    assert twice.tolist() == [0, 1, 1, 3, 3]
    with pytest.raises(RecipeError, match="no pair of 'c'"):
        chosen(ids, tasks, ["a", "b"], {"c": 1.0}, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections")
    index = Index(folder, 0.0002, films=True)
    index.n["nih"] = 12
    index.nih()
    return folder


FORMS: tuple[dict[str, Any], ...] = ({}, {"embed": True}, {"format": "webdataset"})


def pairs_of(root: Path, out: Path, **form: Any) -> Pairs:
    entries = (Entry("classify", "nih-cxr14", repeats=2, weight=0.25),)
    plan = DataRecipe(
        "t", entries, sources={"nih-cxr14": SourcePlan(splits="patients")}, shard_pairs=5, **form
    )
    build(plan, root, out, TemplateWriter())
    write_table(out, out.with_suffix(".arrow"))
    return Pairs(out.with_suffix(".arrow"), out, root if not form else None)


def test_all_forms_of_shards_give_the_same_looks(
    root: Path, tmp_path: Path, checkpoint: Checkpoint, speaker: Speaker
) -> None:
    """Films by path, in Parquet and in a tar; cut as the runtime cuts them."""
    looks = []
    for index, form in enumerate(FORMS):
        pairs = pairs_of(root, tmp_path / str(index), **form)
        order = Order(np.arange(len(pairs)), np.arange(len(pairs) + 1))
        films = Films(pairs, order, speaker, checkpoint.config.geometry, "voi")
        looks.append([films[at] for at in range(len(films))])
    assert len(looks[0]) == len(looks[1]) == len(looks[2]) >= 12
    for one, *others in zip(*looks, strict=True):
        assert one.speeches[0].weight == 0.25
        assert all(
            np.array_equal(one.crops, other.crops) and one.speeches == other.speeches for other in others
        )
    first = Pairs(tmp_path / "0.arrow", tmp_path / "0", None)
    with pytest.raises(RecipeError, match="pass --root"):
        first.film(first.row(0))


def test_a_damaged_shard_and_an_unfinished_build_are_refused(root: Path, tmp_path: Path) -> None:
    pairs_of(root, tmp_path / "d", format="webdataset")
    victim = sorted((tmp_path / "d").glob("*.tar"))[0]
    content = bytearray(victim.read_bytes())
    content[600] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(RecipeError, match="not what was built"):
        write_table(tmp_path / "d", tmp_path / "again.arrow")
    assert not (tmp_path / "again.arrow").exists()
    (tmp_path / "d" / "dataset.json").unlink()
    with pytest.raises(RecipeError, match="finished"):
        write_table(tmp_path / "d", tmp_path / "again.arrow")


def test_the_papers_recipe_differs_in_values_only() -> None:
    import yaml

    files = [ROOT / "recipes" / name for name in ("finetune-open.yaml", "radvlm-finetune.yaml")]
    keys = [list(yaml.safe_load(path.read_text())) for path in files]
    assert keys[0] == keys[1]
    paper = load_finetune_recipe(files[1])
    assert (paper.batch, paper.rates) == (256, Rates(2e-6, 1e-5, 1e-5)) and paper.warmup == 0.03
    assert kind_of(files[0]) == "finetune" and kind_of(ROOT / "recipes" / "nano.yaml") == "scratch"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rates": {"tower": "fast"}}, "rates, tower is 'fast'; float is needed"),
        ({"rates": {"head": 1e-5}}, "unknown key 'head'"),
        ({"rates": {}}, "names no part"),
        ({"rates": None}, "expected a mapping"),
        ({"batch": 0}, "batch is 0"),
        ({"loss": "films"}, "choose one of pairs, tokens"),
        ({"warmup": 2}, "a share from 0 to 1"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"lora": {"parts": ["tower"]}, "rates": {"language": 1e-5}}, "lora names tower"),
        ({"lora": {"parts": ["tower"]}}, "language has a rate and no adapters"),
        ({"lora": {"parts": ["tower", "language"], "quantised": True, "merge": True}}, "merge: false"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "kind": "finetune",
        "name": "t",
        "rates": dict.fromkeys(("tower", "language"), 1e-5),
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(given | change))
    with pytest.raises(RecipeError, match=said) as caught:
        load_finetune_recipe(path)
    assert "\n" not in str(caught.value)


def test_exponents_are_numbers_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("{kind: finetune, name: t, rates: {tower: 1e-5, language: 2.5E-6}}")
    assert load_finetune_recipe(tmp_path / "r.yaml").rates == Rates(1e-5, None, 2.5e-6)


def test_a_projector_may_be_trained_in_full_beside_adapters() -> None:
    check(FinetuneRecipe(kind="finetune", name="t", rates=Rates(None, 1e-4, 1e-4), lora=Lora()), "here")


def test_folders_are_for_fine_tuning_alone() -> None:
    result = CliRunner().invoke(cli, ["train", str(ROOT / "recipes" / "nano.yaml"), "--start", "x"])
    assert result.exit_code == 2 and "for recipes of kind finetune" in result.output


@pytest.mark.parametrize("name", ["one-gpu", "fsdp", "deepspeed"])
def test_accelerates_configurations_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By accelerate's own reader and launcher; none has been run."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")
    config = load_config_from_file(path)
    assert config.mixed_precision == "bf16"
    arguments = launch_command_parser().parse_args(["--config_file", path, "radvlm-edge", "train", "r.yaml"])
    told, _, _ = _validate_launch_command(arguments)
    assert (told.use_fsdp, told.use_deepspeed) == (name == "fsdp", name == "deepspeed")
    if name == "fsdp":
        assert told.fsdp_transformer_layer_cls_to_wrap == "Qwen2DecoderLayer,SiglipEncoderLayer"
        assert told.fsdp_state_dict_type == "FULL_STATE_DICT"
    if name == "deepspeed":
        assert told.zero_stage == 3 and told.zero3_save_16bit_model
