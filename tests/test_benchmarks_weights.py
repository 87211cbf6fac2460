"""Scores with weights of their own: CheXbert on a tiny random labeller, the others' packages as published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from radvlm_edge.benchmarks.metrics_counts import Rows
from radvlm_edge.benchmarks.metrics_weights import CHEXBERT, WEIGHTED, ChexbertLabeller, compute
from radvlm_edge.errors import BackendError

ANSWERS, TRUE = ["no edema", "small effusion", ""], ["edema", "small effusion", "clear"]
PACKAGES = {
    # Stanford-AIMI/radgraph 0.1.x: F1RadGraph(reward_level, model_type, **kwargs)(refs, hyps)
    "radgraph": """
class F1RadGraph:
    def __init__(self, reward_level, model_type=None, model_cache_dir=None, tokenizer_cache_dir=None):
        assert (reward_level, model_type) == ("all", "radgraph-xl") and tokenizer_cache_dir
    def __call__(self, refs, hyps):
        same = [float(a == b) for a, b in zip(refs, hyps)]
        return (0, 0, 0), (same, [one / 2 for one in same], [one / 4 for one in same]), [], []
""",
    # Stanford-AIMI/GREEN: GREEN(model_name, output_dir)(refs=, hyps=) -> mean, std, scores, summary, table
    "green_score": """
class GREEN:
    def __init__(self, model_name=None, output_dir="."):
        assert model_name and output_dir
    def __call__(self, refs, hyps):
        return 0, 0, [float(a == b) for a, b in zip(refs, hyps)], "", None
""",
    # RaTEScore 0.6.0: scorer.py
    "RaTEScore": """
class RaTEScore:
    def __init__(self, bert_model="", eval_model="", batch_size=1, use_gpu=True):
        assert bert_model.endswith("RaTE-NER-Deberta") and eval_model.endswith("BioLORD-2023-C")
    def compute_score(self, candidate_list, reference_list):
        assert isinstance(candidate_list, list)
        return [float(a == b) for a, b in zip(candidate_list, reference_list)]
""",
    # bert-score 0.3.13: scorer.py
    "bert_score": """
class BERTScorer:
    def __init__(
        self, model_type=None, num_layers=None, lang=None, rescale_with_baseline=False, baseline_path=None
    ):
        assert (num_layers, lang, rescale_with_baseline) == (5, "en", True)
        assert baseline_path.endswith("rescale_baseline/en/distilbert-base-uncased.tsv")
    def score(self, cands, refs):
        return [], [], [float(a == b) for a, b in zip(cands, refs)]
""",
}


def test_packages_are_called_as_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in PACKAGES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    given = dict.fromkeys(("radgraph", "green", "ratescore", "bertscore"), tmp_path)
    rows, formulas, missing = compute(given, ANSWERS, TRUE)
    table = Rows()
    for at, row in enumerate(rows):
        table.add(str(at), {"items": 1, **row})
    found = {name: one.value for name, one in table.figures(formulas, draws=0).items()}
    assert found["RadGraph F1 simple"] == pytest.approx(1 / 3) and found["GREEN"] == pytest.approx(1 / 3)
    assert found["RadGraph F1 complete"] == pytest.approx(1 / 12)
    assert found["RaTEScore"] == found["BERTScore"] == pytest.approx(1 / 3)
    assert list(missing) == ["CheXbert F1"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, formulas, missing = compute({"radgraph": tmp_path}, ANSWERS, TRUE)
    assert not formulas and set(missing) == {one.title for one in WEIGHTED.values()}
    assert missing["RadGraph F1"] == "the Python package radgraph is not installed"
    with pytest.raises(BackendError, match="unknown; choose of bertscore"):
        compute({"bleurt": tmp_path}, ANSWERS, TRUE)


@pytest.mark.torch
def test_chexbert_reads_its_own_file(tmp_path: Path) -> None:
    """A tiny random labeller saved as CheXbert's file is; labels by the model it was saved from."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "edema", "small", "effusion", "clear"]
    encoder = tmp_path / "bert-base-uncased"
    encoder.mkdir()
    (encoder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), **sizes)
    config.save_pretrained(encoder)
    tokenizer = BertTokenizer(encoder / "vocab.txt")
    tokenizer.save_pretrained(encoder)
    torch.manual_seed(3)
    model = BertModel(config).eval()
    with torch.no_grad():
        for one in model.parameters():
            if one.ndim > 1:
                one.copy_(0.6 * torch.randn_like(one))
    heads = [torch.nn.Linear(16, 2 if label == "no finding" else 4) for label in CHEXBERT]
    state = {f"module.bert.{name}": one for name, one in model.state_dict().items()}
    for at, head in enumerate(heads):
        state |= {f"module.linear_heads.{at}.{name}": one for name, one in head.state_dict().items()}
    torch.save({"model_state_dict": state}, tmp_path / "chexbert.pth")
    labeller = ChexbertLabeller(tmp_path)
    seen = set()
    for text in ("no edema", "small effusion", "clear", "edema small clear no effusion"):
        with torch.no_grad():
            first = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[:, 0]
            said = [int(head(first).argmax()) for head in heads]
        assert labeller(text) == {name for name, one in zip(CHEXBERT, said, strict=True) if one in (1, 3)}
        seen.add(labeller(text))
    assert len(seen) > 1
    rows, formulas, _ = compute({"chexbert": tmp_path}, ["clear"], ["clear"])
    assert len(formulas) == 4 and any(name.startswith("chexbert hit") for name in rows[0])
    (tmp_path / "chexbert.pth").unlink()
    with pytest.raises(BackendError, match="CheXbert F1 failed: FileNotFoundError"):
        compute({"chexbert": tmp_path}, ["clear"], ["clear"])
