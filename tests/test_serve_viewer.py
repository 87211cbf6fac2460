"""The viewer in a real browser: what a person does with it, and what it may load."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Options, Reader

pytest.importorskip("starlette", reason="needs the extra `serve`")
playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser (extra `dev`)")
pytest.importorskip("openai", reason="the official client (extra `dev`)")
from tests.service import Running, chromium, serving  # noqa: E402

ROOT = Path(__file__).parents[1]
FILM = ROOT / "examples" / "chest.dcm"
PAGE = ROOT / "src" / "radvlm_edge" / "serve" / "page"
TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    where = chromium()
    if where is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in RADVLM_EDGE_CHROMIUM")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with (
        Reader.open(options=Options(max_tokens=64, threads=1)) as reader,
        serving(reader, token=TOKEN) as service,
    ):
        yield service


def until(page: Any, condition: str) -> None:
    """Wait for an expression to hold; Playwright's own wait polls with eval, which the page forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


class Visit:
    """A page open on the service, with all it asked for and complained of."""

    def __init__(self, browser: Any, running: Running, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(120_000)  # a slow machine is no failure
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(running.url)
        self.page.fill("#token", TOKEN)
        self.page.press("#token", "Enter")
        self.page.wait_for_selector("#model:has-text('radvlm-nano')", state="attached")

    def open(self) -> None:
        self.page.set_input_files("#file", FILM)
        self.page.wait_for_selector("#question:enabled")

    def ask(self, question: str) -> str:
        """Ask; the answer of the newest card."""
        count = self.page.locator(".card").count()
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        until(self.page, f"document.querySelectorAll('.card').length === {count + 1}")
        self.page.wait_for_selector("#send:enabled")
        return str(self.page.locator(".card .answer").last.inner_text()).strip()

    def greys(self) -> Any:
        """What the canvas shows `[h, w]`."""
        picture = self.page.locator("#canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(int)


def test_a_film_is_opened_asked_about_and_seen(browser: Any, running: Running) -> None:
    visit = Visit(browser, running, viewport={"width": 1280, "height": 800})
    page = visit.page
    assert page.get_by_text("Research use only · not for diagnosis").is_visible()
    visit.open()
    question = "Are there any abnormalities on this Chest X-ray?"
    with Reader.open(options=Options(max_tokens=64, threads=1)) as reader:
        study = reader.look(FILM)
        answer = study.ask(question)
        assert visit.ask(question) == answer.text
        wanted = study.task("locate=left lung").boxes[0].xyxy_fraction
    assert page.locator(".chips li").all_inner_texts() == list(answer.labels) and answer.labels
    assert re.search(r"first word .* tokens .* in all", page.locator(".card .meta").first.inner_text())
    page.fill("#locate", "left lung")
    page.press("#locate", "Enter")
    page.wait_for_selector("#overlay rect.box", state="attached")
    box = page.locator("#overlay rect.box").bounding_box()
    stage = page.locator("#stage").bounding_box()
    side = min(stage["width"], stage["height"])  # the film is square and fits the stage
    left, top = (stage["width"] - side) / 2 + stage["x"], (stage["height"] - side) / 2 + stage["y"]
    seen = [
        (box["x"] - left) / side,
        (box["y"] - top) / side,
        (box["x"] + box["width"] - left) / side,
        (box["y"] + box["height"] - top) / side,
    ]
    assert seen == pytest.approx(wanted, abs=0.01)
    page.click("[data-task=checklist]")
    page.wait_for_selector("table.decisions")
    assert page.locator("table.decisions tr").count() == 13
    page.reload()
    page.wait_for_selector("table.decisions")
    assert page.locator(".card h2").all_inner_texts()[0] == question  # the study's history
    page.click("#forget")
    page.wait_for_selector("#empty:visible")
    assert page.locator(".card").count() == 0
    assert all(url.startswith((running.url, "blob:")) for url in visit.asked)
    assert [line for line in visit.complaints if "401" not in line] == []
    page.close()


def test_window_level_invert_and_zoom_by_keyboard(browser: Any, running: Running) -> None:
    visit = Visit(browser, running, viewport={"width": 1280, "height": 800})
    page = visit.page
    visit.open()
    film = load_film(FILM).pixels
    page.evaluate(
        "document.querySelectorAll('.corner, .marker').forEach((n) => { n.style.visibility = 'hidden'; })"
    )
    plain = visit.greys()
    middle = slice(plain.shape[0] // 4, -plain.shape[0] // 4)
    assert abs(plain[middle, plain.shape[1] // 2].mean() - film[128:-128, 256].mean()) < 3
    page.focus("#stage")
    page.keyboard.press("i")
    page.wait_for_selector("#invert[aria-pressed=true]")
    page.wait_for_timeout(100)
    centre = (middle, slice(plain.shape[1] // 2 - 40, plain.shape[1] // 2 + 40))
    assert np.abs(visit.greys()[centre] + plain[centre] - 255).max() <= 1
    page.keyboard.press("r")
    for _ in range(10):
        page.keyboard.press("[")
    until(page, "document.getElementById('width-out').textContent === '155'")
    page.wait_for_timeout(100)
    wanted = np.clip((plain[centre] - 127.5) / 155 + 0.5, 0, 1) * 255
    assert np.abs(visit.greys()[centre] - wanted).max() <= 1.5
    zoom = "parseInt(document.getElementById('reading').textContent.match(/(\\d+) %/)[1])"
    before = page.evaluate(zoom)
    page.keyboard.press("+")
    until(page, f"{zoom} > {before * 1.2}")
    page.keyboard.press("0")
    until(page, f"{zoom} === {before}")
    page.keyboard.press("?")
    assert page.get_by_role("heading", name="Keyboard and mouse").is_visible()
    page.keyboard.press("Escape")
    page.focus("#stage")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.close()


def test_stopping_stops_and_what_is_no_film_is_said(browser: Any, running: Running, tmp_path: Path) -> None:
    visit = Visit(browser, running, viewport={"width": 1280, "height": 800})
    page = visit.page
    bad = tmp_path / "notes.dcm"
    bad.write_bytes(b"no film at all")
    page.set_input_files("#file", bad)
    page.wait_for_selector("#alert:has-text('neither DICOM nor a picture')")
    visit.open()
    assert page.locator("#alert").is_hidden()
    page.evaluate(  # hold the answer's stream open, so that there is time to stop it
        """const real = window.fetch;
        window.fetch = (url, options) => String(url).includes("chat")
          ? new Promise((_, no) => { options.signal.onabort = () => no(new DOMException("", "AbortError")); })
          : real(url, options)"""
    )
    page.fill("#question", "any effusion?")
    page.press("#question", "Enter")
    page.click("#stop")
    page.wait_for_selector(".card .meta:has-text('stopped')")
    assert page.locator("#send").is_enabled()
    page.close()


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(browser: Any, running: Running, width: int) -> None:
    size = {"width": width, "height": 700}
    visit = Visit(browser, running, viewport=size, is_mobile=True, has_touch=True, device_scale_factor=2)
    page = visit.page
    visit.open()
    visit.ask("any effusion?")
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth)"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width, wide
    assert page.evaluate("window.innerWidth") == width
    assert page.locator("#stage").bounding_box()["y"] >= 0  # the film stays in sight
    small = page.evaluate(
        """[...document.querySelectorAll('.bar button, .tasks button, #send')]
        .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 36).map((b) => b.id)"""
    )
    assert small == []
    page.close()


def test_every_control_has_a_name(browser: Any, running: Running) -> None:
    visit = Visit(browser, running)
    page = visit.page
    visit.open()
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, [tabindex="0"], meter')].filter((node) =>
          !node.textContent.trim() && !node.ariaLabel && !node.labels?.length
          && !node.closest('[aria-hidden]'))
          .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.get_by_role("textbox", name="Question about the film").is_enabled()
    assert page.get_by_role("log", name="Answers").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    page.close()


def test_the_pages_files_name_no_other_host_and_carry_no_inline_code() -> None:
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]", text), path
        if ".html" in path.name:
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", text), path
        assert "innerHTML" not in text and "eval(" not in text, path
