"""The page in a real browser: Chromium, driven by Playwright; skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.serving.monitor import Monitor
from anyvla.watch.recordings import Episodes
from anyvla.watch.server import Live, WatchServer
from tests.conftest import write_episode
from tests.watch.test_watch import SCRIPT, a_moment

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install chromium, and playwright beside it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page whose errors fail the test."""
    page = browser.new_page(color_scheme=request.param, viewport={"width": 1100, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda sent: errors.append(sent.url) if "127.0.0.1" not in sent.url and "data:" not in sent.url else None
    )
    yield page
    page.close()
    assert errors == []


def test_live(page: Any) -> None:
    from playwright.sync_api import expect

    monitor = Monitor(NAV2, 0.4)  # silent for longer than 7.5 s is too long, on a busy machine too
    server = WatchServer(Live(monitor, "a robot"))
    try:
        page.goto(server.address)
        expect(page.locator("#status")).to_contain_text("waiting")
        monitor.show(a_moment())
        expect(page.locator("#status")).to_have_text("driving")
        # what a robot is told stands there as text; none of it is run
        assert page.locator("#instruction").inner_text() == SCRIPT
        assert page.locator("#instruction *").count() == 0
        assert page.title() == "a robot · AnyVLA"
        expect(page.locator(".camera img")).to_have_js_property("naturalWidth", 64)
        # the picture and what is drawn over it cover each other
        image, overlay = (page.locator(f".picture {name}").bounding_box() for name in ("img", "svg"))
        assert all(abs(image[key] - overlay[key]) < 1 for key in image)
        assert page.locator(".picture polyline.predicted").count() == 1
        assert page.locator("#map polyline.predicted").count() == 1
        assert page.locator("#curves figure").count() == 2
        monitor.show(a_moment("other", instruction="Stop.", stop="stale_<b>action</b>"))
        expect(page.locator("#status")).to_have_text("stopped: stale <b>action</b>")
        assert page.locator("#stops b").count() == 0
        page.select_option("#robots", label="robot")
        expect(page.locator("#instruction")).to_have_text(SCRIPT)
        expect(page.locator("#stops li")).to_have_count(1)
        # nothing new: the page says so
        expect(page.locator("#status")).to_contain_text("silent for", timeout=20_000)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        server.close()


def test_recorded(page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    for i in range(2):
        actions = np.tile([0.4, 0.2 * (1 - 2 * i), 0.0], (9, 1))
        write_episode(tmp_path / f"{i}_1box_hori_left.h5", 9, seed=i, actions=actions, instruction=f"{SCRIPT} {i}")
    server = WatchServer(Episodes(MobileH5Source(tmp_path, NAV2), "recorded"))
    try:
        page.goto(server.address)
        expect(page.locator("#at")).to_have_text("step 1 of 9")
        assert page.locator("#map polyline.recorded").count() == 1
        assert page.locator("#map polyline.predicted").count() == 0
        page.locator("#step").fill("5")
        expect(page.locator("#at")).to_have_text("step 6 of 9")
        page.select_option("#items", index=1)
        expect(page.locator("#instruction")).to_contain_text(" 1")
        page.click("#play")
        expect(page.locator("#at")).to_have_text("step 9 of 9", timeout=20_000)
        expect(page.locator("#play")).to_have_text("play")
    finally:
        server.close()
