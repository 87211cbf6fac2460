"""Baselines that transformers itself can run: a tiny LLaVA as LLaVA-Med is converted, LLaVA-OneVision."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from radvlm_edge.benchmarks.evaluate_models import open_model
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.prompts import Turn

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[1]


def tiny_llava(folder: Path) -> None:
    """A seeded random LLaVA of CLIP and Mistral, with its processor."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        MistralConfig,
        PreTrainedTokenizerFast,
    )

    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<image>",
        "[INST]",
        "[/INST]",
        "effusion",
        "edema",
        "no",
        "Any",
        "Where",
        "?",
    ]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        additional_special_tokens=["<image>"], model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    image = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        image, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **sizes),
        text_config=MistralConfig(vocab_size=len(words), num_key_value_heads=1, **sizes),
        image_token_index=words.index("<image>"),
    )
    torch.manual_seed(5)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(0.5 * torch.randn_like(one))
    model.save_pretrained(folder)


def test_llava_med_answers_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    tiny_llava(tmp_path)
    film = Image.linear_gradient("L").resize((60, 40))
    out = io.BytesIO()
    film.save(out, "PNG")
    model = open_model(f"llava-med={tmp_path}", device="cpu")
    looking = model.look(out.getvalue())
    history = [Turn("Any effusion ?", "no")]
    said = [looking.answer("report", [], "Any effusion ?", "", 6).text]
    said.append(looking.answer("conversation", history, "Where ?", "", 6).text)
    processor = AutoProcessor.from_pretrained(tmp_path)
    reference = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    prompts = [
        "[INST] <image>\nAny effusion ? [/INST]",
        "[INST] <image>\nAny effusion ? [/INST] no </s>[INST] Where ? [/INST]",
    ]
    for prompt, text in zip(prompts, said, strict=True):
        inputs = processor(images=film.convert("RGB"), text=prompt, return_tensors="pt")
        with torch.no_grad():
            ids = reference.generate(**inputs, do_sample=False, max_new_tokens=6)[0]
        expected = processor.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == expected.strip() != ""
    assert model.unsupported("region") == "it has no published form for boxes"
    (tmp_path / "config.json").write_text('{"model_type": "llava_mistral"}')
    with pytest.raises(BackendError, match="convert LLaVA-Med's own layout"):
        open_model(str(tmp_path), kind="llava-med", device="cpu")


def test_llava_onevision_is_a_checkpoint_asked_only_what_it_is_compared_in(tmp_path: Path) -> None:
    model = open_model(f"llava-onevision={ROOT / 'training' / 'nano'}", device="cpu")
    assert model.describe()["kind"] == "llava-onevision" and model.chat == "onevision"
    assert model.unsupported("report") is None and model.unsupported("classify")
    said = model.look(ROOT / "examples" / "chest.dcm").answer("report", [], "any effusion?", "", 12)
    assert said.text.startswith(("Yes", "No")) and 0 < (said.confidence or 0) <= 1
    with pytest.raises(BackendError, match="neither a bundle"):
        open_model(str(tmp_path))
