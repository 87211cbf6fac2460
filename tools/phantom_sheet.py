"""Draw phantoms beside real films on one sheet, for the eye: docs/nano-sheet.jpg.

    python tools/phantom_sheet.py NIH_CXR14 OUT.jpg [FIRST_SEED]

NIH_CXR14 is the folder that holds images/ of NIH ChestX-ray14 (three of its films go into the sheet,
with the attribution docs/nano-task.md gives).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from radvlm_edge.training.phantom import make_phantom

CELL, COLUMNS, ROWS = 300, 4, 3
REAL = ("00003324_000.jpg", "00001460_004.jpg", "00010308_011.jpg")
"""PA without finding, portable AP without finding, PA with effusion and infiltration."""


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    phantoms = [Image.fromarray(make_phantom(first + k).pixels) for k in range(COLUMNS * ROWS - len(REAL))]
    real = [Image.open(folder / "images" / name).convert("L") for name in REAL]
    films = [*phantoms[: COLUMNS * (ROWS - 1)], *real, phantoms[-1]]
    sheet = Image.new("L", (COLUMNS * CELL, ROWS * CELL))
    for index, film in enumerate(films):
        row, column = divmod(index, COLUMNS)
        fitted = film.resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (column * CELL, row * CELL))
    sheet.save(out, quality=72, optimize=True)


if __name__ == "__main__":
    main()
