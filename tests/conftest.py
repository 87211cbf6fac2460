"""Fixtures every test may use, and the rule that no test reaches the network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import make_checkpoint


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("RADVLM_EDGE_DATA"):
        skip = pytest.mark.skip(reason="RADVLM_EDGE_DATA is unset; it names the folder of real films")
        for item in items:
            if "realdata" in item.keywords:
                item.add_marker(skip)


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
