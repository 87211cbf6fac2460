"""Large tensors in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_VALUES = 1 << 24
"""Values converted at once: 64 MiB in float32."""


def row_blocks(tensor: torch.Tensor, values: int = BLOCK_VALUES) -> Iterator[torch.Tensor]:
    """Views of consecutive rows, at most about `values` numbers each (one row at least)."""
    if tensor.ndim == 0 or tensor.numel() <= values:
        yield tensor
        return
    rows = max(1, values * tensor.shape[0] // tensor.numel())
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows]
