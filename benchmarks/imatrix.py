"""Does an importance matrix help, and must it see images? KLD at one precision, from one checkpoint.

`python -m radvlm_edge.benchmarks.imatrix CKPT [PRECISION]` writes JSON: the same F16 file quantised without
a matrix, with a text-only one and with image-bearing ones of several weights, compared with F16 over prompts
about films none of them saw. Needs the extra `export`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radvlm_edge.export.fidelity_metrics import divergence
from radvlm_edge.runtime.language import LanguageModel

if TYPE_CHECKING:
    from radvlm_edge.export.imatrix_file import ImportanceMatrix
    from radvlm_edge.export.shared_prefix import Sequences

TEXT_SHARES = (0.1, 0.5, 0.9)


def compare(
    folder: Path, precision: str = "Q4_K_M", *, calibration_films: int = 16, test_films: int = 12
) -> dict[str, Any]:
    """KLD from F16 (nats, mean and p99) and top-1 agreement of each variant, over answers' tokens."""
    from radvlm_edge.calibration.dialogues import dialogues, without_images
    from radvlm_edge.calibration.imatrix import FIRST_SEED, collect_from
    from radvlm_edge.export import language, probe_films
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.fidelity_prompts import FIRST_SEED as TEST_SEED
    from radvlm_edge.export.imatrix_file import as_llama

    checkpoint = open_checkpoint(folder)
    geometry = checkpoint.config.geometry
    seen = dialogues(checkpoint, probe_films.phantoms(calibration_films, FIRST_SEED, geometry))
    unseen = dialogues(checkpoint, probe_films.phantoms(test_films, TEST_SEED, geometry), seed=1)
    variants: dict[str, ImportanceMatrix | None] = {
        "none": None,
        "text only": collect_from(checkpoint, without_images(seen), ["text"]),
    }
    for share in TEXT_SHARES:
        variants[f"image-bearing, text {share}"] = collect_from(checkpoint, seen, ["images"], share)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as spare:
        exact = Path(spare) / "F16.gguf"
        language.write_f16(checkpoint, exact)
        used = ~checkpoint.unused  # the GGUF masks the others
        expected = _logits(exact, unseen, geometry.context)[:, used]
        for name, matrix in variants.items():
            path = Path(spare) / "quantised.gguf"
            importances, _kept = as_llama(matrix, checkpoint) if matrix else (None, None)
            language.quantise(exact, path, precision, imatrix=importances)
            given = _logits(path, unseen, geometry.context)[:, used]
            kld = divergence(expected, given)
            results[name] = {
                "kld_mean": float(kld.mean()),
                "kld_p99": float(np.quantile(kld, 0.99)),
                "top1": float((expected.argmax(axis=1) == given.argmax(axis=1)).mean()),
            }
    return {"precision": precision, "tokens": len(expected), "films": test_films, "variants": results}


def _logits(path: Path, films: list[Sequences], context: int) -> Any:
    """Logits `[tokens, vocab]` behind every tail token of every prompt, decoded one at a time."""
    rows = []
    model = LanguageModel(path, context=context)
    try:
        for film in films:
            model.start([film.head, film.image])
            for tail in film.tails:
                for count in range(1, len(tail)):
                    model.prefill(tail[:count], reuse=count > 1)
                    rows.append(model.logits())
    finally:
        model.close()
    return np.stack(rows)


if __name__ == "__main__":
    result = compare(Path(sys.argv[1]), *sys.argv[2:3])
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
