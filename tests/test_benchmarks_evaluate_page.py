"""The evaluation's page in a real browser: what it loads, what it says, how it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluating import Told, write_lines

from radvlm_edge.benchmarks.evaluate import Settings, evaluate
from radvlm_edge.benchmarks.evaluate_items import read_items
from radvlm_edge.benchmarks.evaluate_page import render_page

playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser (extra `dev`)")
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def test_the_page_asks_for_nothing_and_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((300, 400)).save(tmp_path / "film.png")
    line = {"image": "film.png", "task": "phrase", "about": "mass", "boxes": [[0.1, 0.1, 0.5, 0.6]]}
    data = write_lines(tmp_path / "data.jsonl", [{**line, "id": str(at)} for at in range(3)])
    model = Told(lambda question, about: "Its location is given by [0.2, 0.1, 0.6, 0.6].")
    items = list(read_items(data, "phrase"))
    found = evaluate(model, items, "phrase", tmp_path / "a.jsonl", Settings("strict", draws=20))
    for pictures in (False, True):
        path = tmp_path / f"{pictures}.html"
        path.write_text(render_page(found, pictures=pictures), encoding="utf-8")
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(120_000)  # a slow machine is no failure
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on(
            "console",
            lambda one, complaints=complaints: complaints.append(one.text) if one.type == "error" else None,
        )
        page.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] and not complaints
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("svg image").count() == (3 if pictures else 0)
        assert page.locator(".case rect").count() == (6 if pictures else 0)
        assert page.locator("h1").inner_text() == "told: phrase"
        page.screenshot(path=tmp_path / f"{pictures}.png", full_page=True)
        page.close()
