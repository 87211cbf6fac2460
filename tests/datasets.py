"""What the tests of instruction data share: recipes, and what a build left in its folder."""

from __future__ import annotations

from pathlib import Path

from radvlm_edge.training.dataset_recipe import DataRecipe, Entry

ROOT = Path(__file__).parents[1]
SCALE = 0.0002
RADVLM = ROOT / "recipes" / "radvlm.yaml"


def recipe(*entries: Entry, **changes: object) -> DataRecipe:
    return DataRecipe("test", entries, **changes)  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small(form: str = "parquet", **changes: object) -> DataRecipe:
    return recipe(
        Entry("report", "mimic-cxr", take=7),
        Entry("region", "chest-imagenome", take=4),
        Entry("abnormality", "vindr-cxr", repeats=2),
        Entry("detect", "vindr-cxr", weight=0.5),
        Entry("phrase", "ms-cxr", splits=("train", "validate")),
        Entry("classify", "chexpert", take=5),
        Entry("conversation", "mimic-cxr", take=6),
        Entry("conversation-grounded", "padchest-gr", splits=("train", "validate"), repeats=2),
        shard_pairs=3,
        format=form,
        **changes,
    )


def rows_of(folder: Path) -> list[dict[str, object]]:
    from pyarrow import parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
