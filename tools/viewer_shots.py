"""Pictures of the viewer as it answers about the example film: `tools/viewer_shots.py FOLDER`.

Needs extra `dev` and a Chromium (`RADVLM_EDGE_CHROMIUM`, or Debian's); `docs/viewer.jpg` is one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.service import chromium, serving  # noqa: E402 - tests/ is no package of the wheel

SIZES = {"desktop": (1360, 850, 1.0), "phone": (390, 844, 2.0)}


def consult(page: Page) -> None:
    """Open the film, ask, locate."""
    page.set_input_files("#file", ROOT / "examples" / "chest.dcm")
    page.wait_for_selector("#question:enabled")
    for question in ("any effusion?", "Is there cardiomegaly?"):
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("#send:enabled")
    page.fill("#locate", "left lung")
    page.press("#locate", "Enter")
    page.wait_for_selector("#overlay rect.box", state="attached")
    page.wait_for_timeout(300)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with serving() as running, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name, (width, height, scale) in SIZES.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                has_touch=name == "phone",
                is_mobile=name == "phone",
            )
            page.set_default_timeout(120_000)  # a slow machine is no failure
            page.goto(running.url)
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{name}-empty.png")
            consult(page)
            page.screenshot(path=folder / f"{name}.png", full_page=name == "phone")
            page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=82)
            page.click("[data-task=checklist]")
            page.wait_for_selector("table.decisions")
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}-checklist.png")
            page.click("#invert")
            page.click("#help")
            page.screenshot(path=folder / f"{name}-help.png")
            page.goto(f"{running.url}/docs")
            page.screenshot(path=folder / f"{name}-docs.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
