"""The shapes an answer depends on, and the two the paper's models have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes read from a checkpoint's config.json; everything the runtime must know about shapes.

    Crops are `[n, 3, S, S]` with S = `crop_px`; each becomes `tokens_per_crop` image tokens of
    width `embed_dim`.
    """

    crop_px: int
    """Side S of a crop in pixels."""
    patch_px: int
    """Side of one tower patch in pixels."""
    pinpoints: tuple[tuple[int, int], ...]
    """Canvas sizes (height, width) in pixels a film may be fitted into."""
    max_crops: int
    """N of `anyres_max_N`: more tokens than N crops' worth are interpolated down."""
    embed_dim: int
    """Width d of an image token, the language model's hidden size."""
    layers: int
    """Language model layers."""
    kv_heads: int
    head_dim: int
    context: int
    """Longest sequence the language model was trained for, in tokens."""
    vocab: int
    """Rows of the embedding matrix, padding rows included."""

    @property
    def side(self) -> int:
        """Image tokens along one side of a crop."""
        return self.crop_px // self.patch_px

    @property
    def tokens_per_crop(self) -> int:
        return self.side * self.side

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V one token keeps in f16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def max_image_tokens(self) -> int:
        """Upper bound of the image tokens of any film.

        Features are only interpolated above 1.1 times the side of `max_crops` crops, and every
        row adds one newline token.
        """
        rows = max(height for height, _ in self.pinpoints) // self.patch_px
        columns = max(width for _, width in self.pinpoints) // self.patch_px
        capped = int(1.21 * self.max_crops * self.tokens_per_crop)
        return self.tokens_per_crop + min(rows * columns, capped) + rows


def _anyres(crop_px: int, most: int) -> tuple[tuple[int, int], ...]:
    sides = [crop_px * k for k in range(1, most + 1)]
    return tuple((height, width) for height in sides for width in sides)


GEOMETRIES = {
    "radvlm-7b": Geometry(384, 14, _anyres(384, 6), 9, 3584, 28, 4, 128, 32768, 152128),
    "radvlm-0.5b": Geometry(384, 14, _anyres(384, 6), 9, 896, 24, 2, 64, 32768, 152000),
}
"""SigLIP so400m with Qwen2-7B (the paper's) and Qwen2-0.5B."""
