"""Fixtures every test may use, and the rule that no test reaches the network."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.tiny import make_checkpoint, write_film

if TYPE_CHECKING:
    from tests.int8 import Tower

    from radvlm_edge.bundle import Bundle
    from radvlm_edge.export.int8_table import Table


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("RADVLM_EDGE_DATA"):
        skip = pytest.mark.skip(reason="RADVLM_EDGE_DATA is unset; it names the folder of real films")
        for item in items:
            if "realdata" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def first_threads() -> int | None:
    """Torch's threads before any test or fixture has set them; a process started by a test has as many."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


@pytest.fixture(autouse=True)
def own_threads(first_threads: int | None) -> Iterator[None]:
    """What sets torch's threads does so for its process, and sums differ in their last digits by them."""
    if first_threads is not None:
        sys.modules["torch"].set_num_threads(first_threads)
    yield
    if first_threads is not None:
        sys.modules["torch"].set_num_threads(first_threads)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache, or another test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded random checkpoint of RadVLM's class, tied, as transformers 4.57 writes it."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its export, with every parity gate passed."""
    from radvlm_edge.export.exporter import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tiny_checkpoint.parent / "tiny.bundle").folder


@pytest.fixture(scope="session")
def named_films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three films whose files are named after a patient, as many are."""
    folder = tmp_path_factory.mktemp("films")
    return [write_film(folder / f"Doe^Jane-{seed}.png", seed, 60, 50 + 10 * seed) for seed in range(3)]


@pytest.fixture(scope="session")
def cold(tiny_bundle: Path, named_films: list[Path]) -> list[list[tuple[list[int], list[float]]]]:
    """Answers to QUESTIONS about two of them, each film looked at by a reader of its own."""
    from tests.studies import QUESTIONS, bits, reader_on

    found = []
    for film in named_films[:2]:
        with reader_on(tiny_bundle) as reader:
            study = reader.look(film)
            assert study.cache == "off"
            found.append([bits(study.ask(question)) for question in QUESTIONS])
    return found


@pytest.fixture(scope="session")
def tower(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    """The tiny checkpoint with its fp32 vision graph."""
    from tests.int8 import make_tower

    return make_tower(tiny_checkpoint, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="session")
def int8_table(tower: Tower) -> Table:
    """A calibration in which one group stayed in float."""
    from tests.int8 import phantoms

    made = tower.calibrate(phantoms(), tower.graph.with_name("unfinished"))
    return replace(made, float_groups=("blocks.1.fc1",))


@pytest.fixture(scope="session")
def int8_graphs(tower: Tower, int8_table: Table) -> dict[str, Path]:
    """Both INT8 graphs of it, and the float one."""
    from radvlm_edge.export.vision_int8 import write_int8

    paths = {"fp32": tower.graph}
    for precision in ("int8", "int8-trt"):
        paths[precision] = tower.graph.with_name(f"{precision}.onnx")
        write_int8(tower.checkpoint, int8_table, precision, paths[precision])
    return paths


@pytest.fixture(scope="session")
def int8_bundle(tower: Tower, int8_table: Table) -> Bundle:
    """An export with fp16 and INT8 vision."""
    from radvlm_edge.export.exporter import export_checkpoint

    return export_checkpoint(
        tower.checkpoint.folder,
        tower.graph.with_name("b"),
        vision=("fp16", "int8"),
        language=("F16",),
        calibration=lambda *_: int8_table,
    )


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small index files of every source of instruction data, in their published layouts, and their films."""
    from tests.datasets import SCALE
    from tools.synthetic_index import Index

    folder = tmp_path_factory.mktemp("collections")
    Index(folder, SCALE, films=True).write()
    return folder


@pytest.fixture(scope="session")
def built_set(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set built of them."""
    from tests.datasets import small

    from radvlm_edge.training.conversation_template import TemplateWriter
    from radvlm_edge.training.dataset_build import build

    out = tmp_path_factory.mktemp("built") / "set"
    build(small(), collections, out, TemplateWriter())
    return out
