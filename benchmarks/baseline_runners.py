"""Baselines' models at work: through transformers, or through the code a local folder brings.

Greedy, one answer at a time. None of these weights were at hand when this was written; docs/evaluation.md
says what was tested.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.benchmarks.baseline_forms import (
    MEDGEMMA_SYSTEM,
    chexagent1_prompt,
    mistral_prompt,
    vicuna_prompt,
)
from radvlm_edge.runtime.prompts import Turn


class Runner(Protocol):
    """A loaded model of one family."""

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        """The model's own words, tags and all, for the last of the turns; film is grey."""
        ...


def placed(device: str) -> tuple[str, Any]:
    """Device and floating type: bfloat16 on a GPU, float32 on the CPU."""
    import torch

    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return wanted, torch.bfloat16 if wanted.startswith("cuda") else torch.float32


def padded(film: Image.Image) -> Image.Image:
    """A film in the middle of a black square; `medgemma_places` undoes it."""
    side = max(film.size)
    square = Image.new(film.mode, (side, side))
    square.paste(film, ((side - film.size[0]) // 2, (side - film.size[1]) // 2))
    return square


class LlavaRunner:
    """LLaVA-Med in transformers' Llava layout."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "llava":
            raise ValueError(
                f"config.json says model_type {kind!r}, `llava` is needed: convert LLaVA-Med's own layout "
                "with transformers' convert_llava_weights_to_hf.py first"
            )
        self.device, dtype = placed(device)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
        self.model = model.to(self.device).eval()

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        inputs = self.processor(images=film.convert("RGB"), text=mistral_prompt(turns), return_tensors="pt")
        return _written(self.model, inputs.to(self.device, self.model.dtype), self.processor, most)


class GemmaRunner:
    """MedGemma, instruction-tuned, through its own chat template; a film for boxes is padded to a square."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device, dtype = placed(device)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        self.model = model.to(self.device).eval()

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        image = (padded(film) if task == "region" else film).convert("RGB")
        inputs = self.processor.apply_chat_template(
            gemma_messages(image, turns),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return _written(self.model, inputs.to(self.device, self.model.dtype), self.processor, most)


def gemma_messages(image: Any, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages as the model card writes them: the expert's role, then turns, the image in the first."""
    messages = [{"role": "system", "content": [{"type": "text", "text": MEDGEMMA_SYSTEM}]}]
    for at, turn in enumerate(turns):
        shown: list[dict[str, Any]] = [{"type": "image", "image": image}] if at == 0 else []
        messages.append({"role": "user", "content": [{"type": "text", "text": turn.question}, *shown]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


class MairaRunner:
    """MAIRA-2: its processor writes both prompts."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device, dtype = placed(device)
        self.processor, self.model = _own_code(folder, self.device, dtype, "AutoProcessor")

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        colour = film.convert("RGB")
        if task == "report":
            absent = dict.fromkeys(
                ("current_lateral", "prior_frontal", "indication", "technique", "comparison", "prior_report")
            )
            inputs = self.processor.format_and_preprocess_reporting_input(
                current_frontal=colour, **absent, return_tensors="pt", get_grounding=False
            )
        else:
            inputs = self.processor.format_and_preprocess_phrase_grounding_input(
                frontal_image=colour, phrase=turns[-1].question, return_tensors="pt"
            )
        return _written(self.model, inputs.to(self.device), self.processor, most)


class CheXagent2Runner:
    """CheXagent-2: its tokenizer reads films by path, so they lie in a private folder for the while."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device, dtype = placed(device)
        self.tokenizer, self.model = _own_code(folder, self.device, dtype, "AutoTokenizer")

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        import torch

        with tempfile.TemporaryDirectory() as private:
            path = Path(private) / "film.png"
            film.save(path)
            query = self.tokenizer.from_list_format([{"image": str(path)}, {"text": turns[-1].question}])
            said = [
                {"from": "system", "value": "You are a helpful assistant."},
                {"from": "human", "value": query},
            ]
            ids = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt")
            with torch.inference_mode():
                output = self.model.generate(
                    ids.to(self.device), do_sample=False, num_beams=1, max_new_tokens=most
                )
        return str(self.tokenizer.decode(output[0][ids.shape[1] :])).replace("</s>", "").strip()


class CheXagentRunner:
    """CheXagent's first version."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device, self.dtype = placed(device)
        self.processor, self.model = _own_code(folder, self.device, self.dtype, "AutoProcessor")

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        text = chexagent1_prompt(turns[-1].question)
        inputs = self.processor(images=[film.convert("RGB")], text=text, return_tensors="pt")
        return _written(self.model, inputs.to(self.device, self.dtype), self.processor, most, prompt=False)


class RaDialogRunner:
    """RaDialog: the folder of its repository, LLAVA_Biovil inside, its base model under `llava-v1.5-7b`."""

    def __init__(self, folder: Path, device: str) -> None:
        import importlib
        import sys

        self.device, self.dtype = placed(device)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        builder = importlib.import_module("LLAVA_Biovil.llava.model.builder")
        self.tools = importlib.import_module("LLAVA_Biovil.llava.mm_utils")
        self.image_id = importlib.import_module("LLAVA_Biovil.llava.constants").IMAGE_TOKEN_INDEX
        loaded = builder.load_pretrained_model(
            folder,
            model_base=str(folder / "llava-v1.5-7b"),
            model_name="llava-v1.5-7b-task-lora_radialog_instruct",
            load_8bit=False,
            load_4bit=False,
            device_map=self.device,
        )
        self.tokenizer, self.model = loaded[0], loaded[1]

    def generate(self, film: Image.Image, task: str, turns: Sequence[Turn], about: str, most: int) -> str:
        import torch

        ids = self.tools.tokenizer_image_token(
            vicuna_prompt(turns), self.tokenizer, self.image_id, return_tensors="pt"
        )
        image = torch.from_numpy(biovil_view(film))[None].to(self.device, self.dtype)
        with torch.inference_mode():
            output = self.model.generate(
                ids[None].to(self.device), images=image, do_sample=False, max_new_tokens=most
            )
        return str(self.tokenizer.decode(output[0, ids.shape[0] :])).replace("</s>", "").strip()


def biovil_view(film: Image.Image, short: int = 512, crop: int = 448) -> npt.NDArray[np.float32]:
    """`[3, crop, crop]`, 0 to 1: stretched to the full range, shorter side 512, the middle 448 cut out.

    Source: RaDialog's inference transform (Resize, CenterCrop, ToTensor, one channel thrice).
    """
    values = np.asarray(film.convert("L"), np.float64)
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-9) * 255
    grey = Image.fromarray(values.astype(np.uint8))
    scale = short / min(grey.size)
    size = max(short, int(grey.width * scale)), max(short, int(grey.height * scale))
    grey = grey.resize(size, Image.Resampling.BILINEAR)
    left, top = round((grey.width - crop) / 2), round((grey.height - crop) / 2)
    cut = np.asarray(grey.crop((left, top, left + crop, top + crop)), np.float32) / 255
    return np.repeat(cut[None], 3, axis=0)


def _own_code(folder: Path, device: str, dtype: Any, reader: str) -> tuple[Any, Any]:
    """Tokenizer or processor, and model, of a folder that brings its own classes."""
    import transformers

    own: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    read = getattr(transformers, reader).from_pretrained(folder, **own)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype, **own)
    return read, model.to(device).eval()


def _written(model: Any, inputs: Any, reader: Any, most: int, *, prompt: bool = True) -> str:
    """Greedy answer; `prompt`: the output begins with the prompt's ids, which are left out."""
    import torch

    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=most)[0]
    new = output[inputs["input_ids"].shape[-1] :] if prompt else output
    tokenizer = getattr(reader, "tokenizer", reader)
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


RUNNERS: dict[str, Callable[[Path, str], Runner]] = {
    "llava": LlavaRunner,
    "gemma": GemmaRunner,
    "maira-2": MairaRunner,
    "chexagent-2": CheXagent2Runner,
    "chexagent": CheXagentRunner,
    "radialog": RaDialogRunner,
}
