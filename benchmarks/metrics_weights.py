"""Report scores that need a model of their own: computed where its weights are given, else named.

Each is run as the paper runs it (radvlm/evaluation/vilmedic, eval_green.py) and gives one row of counts a
report, so that intervals come from the same resampling as all others. Nothing is fetched.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.metrics_counts import Floats, Formula, Sums, mean_of, zero_ratio
from radvlm_edge.errors import BackendError

Row = dict[str, float]
Score = Callable[[Path, Sequence[str], Sequence[str]], list[Row]]
"""(weights, answers, references) → a row a report."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
CHEXBERT = (
    "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "lung lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural effusion", "pleural other", "fracture",
    "support devices", "no finding",
)  # fmt: skip
"""The labeller's heads, in its order."""
CHEXBERT_5 = ("cardiomegaly", "edema", "consolidation", "atelectasis", "pleural effusion")
_LONGEST = 512


@dataclass(frozen=True)
class Weighted:
    """One such score."""

    title: str
    package: str
    """Python package it needs; `""`: only the torch world."""
    holds: str
    """What the folder must hold."""
    score: Score
    formulas: Mapping[str, Formula]


def compute(
    given: Mapping[str, Path], answers: Sequence[str], true: Sequence[str]
) -> tuple[list[Row], dict[str, Formula], dict[str, str]]:
    """Rows and formulas of every score whose weights are given, and why each other was not computed.

    Raises BackendError for an unknown name, a path that is not there, or weights that do not load.
    """
    unknown = sorted(given.keys() - WEIGHTED.keys())
    if unknown:
        raise BackendError(f"--weights {unknown[0]}: unknown; choose of {', '.join(WEIGHTED)}")
    rows: list[Row] = [{} for _ in answers]
    formulas: dict[str, Formula] = {}
    missing: dict[str, str] = {}
    for name, one in WEIGHTED.items():
        if name not in given:
            missing[one.title] = f"no weights given: --weights {name}=DIR ({one.holds})"
        elif one.package and importlib.util.find_spec(one.package) is None:
            missing[one.title] = f"the Python package {one.package} is not installed"
        elif answers:
            for row, own in zip(rows, _scored(one, given[name], answers, true), strict=True):
                row.update(own)
            formulas |= one.formulas
    return rows, formulas, missing


def _scored(one: Weighted, path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    if not path.exists():
        raise BackendError(f"{path}: no such folder; {one.title} needs one with {one.holds}")
    for variable in OFFLINE:
        os.environ[variable] = "1"
    try:
        return one.score(path, answers, true)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise BackendError(f"{path}: {one.title} failed: {type(error).__name__}: {line}") from error


def bertscore(path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    """F1 of DistilBERT's fifth layer, rescaled with the package's English baseline, as the paper takes it."""
    package: Any = importlib.import_module("bert_score")
    folder = Path(package.__file__).parent
    scorer = package.BERTScorer(
        model_type=str(path),
        num_layers=5,
        lang="en",
        rescale_with_baseline=True,
        baseline_path=str(folder / "rescale_baseline" / "en" / "distilbert-base-uncased.tsv"),
    )
    _, _, f1 = scorer.score(cands=list(answers), refs=list(true))
    return [{"bertscore": float(value)} for value in f1]


def radgraph(path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    """RadGraph-XL's rewards, all three levels."""
    package: Any = importlib.import_module("radgraph")
    scorer = package.F1RadGraph(
        reward_level="all",
        model_type="radgraph-xl",
        model_cache_dir=str(path),
        tokenizer_cache_dir=str(path / "tokenizer"),
    )
    _, rewards, _, _ = scorer(refs=list(true), hyps=list(answers))
    levels = ("radgraph simple", "radgraph partial", "radgraph complete")
    return [dict(zip(levels, map(float, values), strict=True)) for values in zip(*rewards, strict=True)]


def green(path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    """GREEN of the 7B judge in a folder."""
    package: Any = importlib.import_module("green_score")
    scorer = package.GREEN(model_name=str(path), output_dir=str(path))
    _, _, scores, *_ = scorer(refs=list(true), hyps=list(answers))
    return [{"green": float(value)} for value in scores]


def ratescore(path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    """RaTEScore; 0.5 where one of the two texts names no entity, as the package has it."""
    import torch

    package: Any = importlib.import_module("RaTEScore")
    scorer = package.RaTEScore(
        bert_model=str(path / "RaTE-NER-Deberta"),
        eval_model=str(path / "BioLORD-2023-C"),
        use_gpu=torch.cuda.is_available(),
    )
    return [{"ratescore": float(value)} for value in scorer.compute_score(list(answers), list(true))]


def chexbert(path: Path, answers: Sequence[str], true: Sequence[str]) -> list[Row]:
    """Which of 14 labels CheXbert finds in both texts; uncertain counts as present (f1chexbert's `rrg`)."""
    labeller = ChexbertLabeller(path)
    rows = []
    for answer, reference in zip(answers, true, strict=True):
        said, there = labeller(answer), labeller(reference)
        row = {f"chexbert said {label}": 1.0 for label in said}
        row |= {f"chexbert there {label}": 1.0 for label in there}
        rows.append(row | {f"chexbert hit {label}": 1.0 for label in said & there})
    return rows


class ChexbertLabeller:
    """BERT with 14 heads on its first token (Smit et al. 2020).

    The folder holds `chexbert.pth` and, under `bert-base-uncased`, its encoder's config and vocabulary.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer, BertModel

        encoder = folder / "bert-base-uncased"
        self._tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
        config = AutoConfig.from_pretrained(encoder, local_files_only=True)
        stored = torch.load(folder / "chexbert.pth", map_location="cpu", weights_only=True)[
            "model_state_dict"
        ]
        state = {name.replace("module.", ""): value for name, value in stored.items()}
        self._bert = BertModel(config).eval()
        own = {name.removeprefix("bert."): value for name, value in state.items() if name.startswith("bert.")}
        missing, _ = self._bert.load_state_dict(own, strict=False)
        # Position ids are buffers that newer versions keep out of the file; anything else is another model.
        lacking = [name for name in missing if not name.endswith("position_ids")]
        if lacking:
            raise ValueError(f"chexbert.pth lacks {lacking[0]} and {len(lacking) - 1} more")
        self._heads = [
            (state[f"linear_heads.{at}.weight"], state[f"linear_heads.{at}.bias"])
            for at in range(len(CHEXBERT))
        ]

    def __call__(self, text: str) -> frozenset[str]:
        """Labels present or uncertain. The heads say 0 blank, 1 positive, 2 negative, 3 uncertain."""
        import torch

        ids = self._tokenizer(" ".join(text.split()), truncation=True, max_length=_LONGEST)["input_ids"]
        with torch.no_grad():
            first = self._bert(torch.tensor([ids])).last_hidden_state[0, 0]
            said = [int((weight @ first + bias).argmax()) for weight, bias in self._heads]
        return frozenset(label for label, value in zip(CHEXBERT, said, strict=True) if value in (1, 3))


def _chexbert_f1(labels: Sequence[str], *, macro: bool) -> Formula:
    def formula(sums: Sums) -> Floats:
        hit, said, there = (
            np.stack([sums[f"chexbert {kind} {label}"] for label in labels])
            for kind in ("hit", "said", "there")
        )
        if not macro:
            hit, said, there = (part.sum(axis=0, keepdims=True) for part in (hit, said, there))
        out: Floats = zero_ratio(2 * hit, said + there).mean(axis=0)
        return out

    return formula


WEIGHTED = {
    "bertscore": Weighted(
        "BERTScore", "bert_score", "distilbert-base-uncased", bertscore, {"BERTScore": mean_of("bertscore")}
    ),
    "radgraph": Weighted(
        "RadGraph F1",
        "radgraph",
        "radgraph-xl/ unpacked, and tokenizer/, a hub cache of its encoder",
        radgraph,
        {f"RadGraph F1 {level}": mean_of(f"radgraph {level}") for level in ("simple", "partial", "complete")},
    ),
    "chexbert": Weighted(
        "CheXbert F1",
        "",
        "chexbert.pth and bert-base-uncased/",
        chexbert,
        {
            f"CheXbert {name} F1 ({len(labels)})": _chexbert_f1(labels, macro=name == "macro")
            for labels in (CHEXBERT, CHEXBERT_5)
            for name in ("micro", "macro")
        },
    ),
    "green": Weighted("GREEN", "green_score", "GREEN-radllama2-7b", green, {"GREEN": mean_of("green")}),
    "ratescore": Weighted(
        "RaTEScore",
        "RaTEScore",
        "RaTE-NER-Deberta/ and BioLORD-2023-C/",
        ratescore,
        {"RaTEScore": mean_of("ratescore")},
    ),
}
