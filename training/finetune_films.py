"""Packs of pairs → films as the runtime crops them, with what is said about each."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from radvlm_edge.errors import FilmError, RecipeError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.film import load_film
from radvlm_edge.training.finetune_batch import Look
from radvlm_edge.training.finetune_order import Order
from radvlm_edge.training.finetune_pairs import Pairs
from radvlm_edge.training.finetune_text import Speaker


class Films(Dataset[Look]):
    """Item i is pack i of the run's order, whichever process asks for it."""

    def __init__(self, pairs: Pairs, order: Order, speaker: Speaker, geometry: Geometry, render: str) -> None:
        self._pairs, self._order, self._speaker = pairs, order, speaker
        self._geometry, self._render = geometry, render

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Look:
        """Raises RecipeError, naming the pair, for a film or a text that cannot be used."""
        rows = [self._pairs.row(int(one)) for one in self._order.pack(index)]
        crops, layout = cut(self._pixels(rows[0]), self._geometry)
        speeches = tuple(
            self._speaker.speech(row["turns"], float(row["weight"]), str(row["id"])) for row in rows
        )
        return Look(crops[:, 0], layout, speeches)

    def _pixels(self, row: dict[str, Any]) -> Any:
        try:
            return load_film(self._pairs.film(row), render=self._render, name=str(row["image"])).pixels
        except FilmError as error:
            raise RecipeError(f"{row['id']}: {error}") from error
