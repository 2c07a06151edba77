"""The pages in Debian's Chromium, on a real service in a process of its own: what a person sees, moves and presses.

Timings are measured and printed (`pytest -s`), and asserted only with a wide margin.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RECORDING = Path(__file__).parents[2] / "lab" / "recordings" / "collapsing.parquet"
API = "/api/v1"
START_S = 240.0
PATIENCE_MS = 60_000
FIGURES = 7
expect.set_options(timeout=PATIENCE_MS)
GENEROUS_S = 5.0
"""The target is 1 s; a shared machine may be slow."""


@dataclass
class Service:
    """A service that can be stopped and started again on its port and data."""

    port: int
    data_dir: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tailwatch_service", "serve", "--port", str(self.port), "--keep-tokens", "all"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
        self.process = subprocess.Popen([*command, "--data-dir", str(self.data_dir)], env=environ)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the service ended by itself"
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"no answer from {self.url} within {START_S} s")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(30.0) == 0
        self.process = None

    def run(self, name: str, **fields: Any) -> str:
        answer = httpx.post(f"{self.url}{API}/runs", json={"project": "browser", "name": name, **fields})
        return str(answer.json()["run_id"])

    def send(self, run: str, step: int, *, spread: float = 0.02, invalid: float = 0.0) -> dict[str, Any]:
        """Send a step and wait until it is closed; the step."""
        rng = np.random.default_rng(step)
        infer = -rng.exponential(1.0, 1600).astype(np.float32)
        train = np.minimum(infer + rng.normal(0, spread, 1600), 0.0).astype(np.float32)
        infer[: int(invalid * 1600)] = np.nan
        batch = Batch.from_arrays(
            BatchMeta(step=step, world_size=1, train_version=step),
            infer_logprobs=infer,
            train_logprobs=train,
            cu_seqlens=np.arange(0, 1601, 50),
            infer_version=np.full(32, step - step % 3),
            reward=rng.random(32).astype(np.float32),
        )
        headers = {"content-type": wire.CONTENT_TYPE}
        sent = httpx.post(f"{self.url}{API}/runs/{run}/batches", content=wire.encode(batch), headers=headers)
        assert sent.status_code < 300, sent.text
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            answer = httpx.get(f"{self.url}{API}/runs/{run}/steps/{step}")
            if answer.status_code == 200 and answer.json()["closed"]:
                return cast(dict[str, Any], answer.json())
            time.sleep(0.02)
        raise AssertionError(f"step {step} did not close")


@dataclass
class Seen:
    """What pages did that they must not: console errors, and requests that leave this machine."""

    wrong: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.wrong.append(f"console {kind}: {text}")

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname != "127.0.0.1":
            self.wrong.append(f"request left the machine: {url}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = Service(port, tmp_path_factory.mktemp("browser") / "data")
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def recorded(service: Service) -> str:
    """The collapsing recording, replayed; its run id."""
    command = [sys.executable, "-m", "tailwatch_service", "replay", str(RECORDING), "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = httpx.get(f"{service.url}{API}/runs").json()["runs"]
    return str(next(run["run_id"] for run in runs if run["name"] == "collapsing"))


Opened = Callable[..., Page]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    yield made
    made.close()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def opened(context: BrowserContext, service: Service, seen: Seen) -> Iterator[Opened]:
    """Opens a path of the service; at the end nothing may have gone wrong on any page."""

    def show(path: str) -> Page:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        seen.watch(page)
        page.goto(service.url + path)
        return page

    yield show
    assert seen.wrong == []


def drawn(page: Page) -> Page:
    """The page, once all its figures are drawn."""
    expect(page.locator(".plot-frame.ready")).to_have_count(FIGURES, timeout=PATIENCE_MS)
    return page


def last_step(page: Page) -> Any:
    return page.locator("#verdict .facts div", has_text="Last step").locator("dd")


def axe(page: Page) -> list[str]:
    """Serious and critical violations of the page as it stands."""
    script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {[node['target'] for node in one['nodes']][:4]}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]


def test_an_empty_service_says_how_to_begin(opened: Opened) -> None:
    page = opened("/")
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    expect(page.get_by_text("pip install tailwatch-collectors")).to_be_visible()
    assert axe(page) == []


def test_an_unknown_run_is_a_page_with_a_search(opened: Opened, seen: Seen) -> None:
    page = opened("/runs/nothing")
    expect(page.get_by_role("heading", name="No such run")).to_be_visible()
    expect(page.get_by_label("Search the runs")).to_be_visible()
    assert axe(page) == []
    # Chromium reports the page's own 404 in the console.
    seen.wrong = [one for one in seen.wrong if "404" not in one]


def test_a_recorded_run_is_drawn(opened: Opened, service: Service, recorded: str) -> None:
    listed = opened("/")
    row = listed.locator("#rows tr", has_text="collapsing")
    expect(row.locator(".state .word")).to_have_text("unhealthy")
    row.get_by_role("link", name="collapsing").click()
    page = drawn(listed)
    assert page.url == f"{service.url}/runs/{recorded}"
    expect(page.locator(".verdict")).to_have_attribute("data-state", "unhealthy")
    expect(page.locator("#alerts")).to_contain_text("KlSpike")
    policy = httpx.get(page.url).headers["content-security-policy"]
    assert "'unsafe" not in policy
    assert "default-src 'none'" in policy


def test_first_paint_is_quick(opened: Opened, recorded: str) -> None:
    for path in ("/", f"/runs/{recorded}"):
        page = opened(path)
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        sys.stdout.write(f"\nfirst contentful paint of {path[:6]}: {paint:.3f} s\n")
        assert paint < GENEROUS_S


def test_a_closed_step_appears_by_itself(opened: Opened, service: Service) -> None:
    run = service.run("live")
    page = opened(f"/runs/{run}")
    expect(page.get_by_role("heading", name="No steps yet")).to_be_visible()
    service.send(run, 0)
    drawn(page)
    waits = []
    for step in range(1, 4):
        page.wait_for_timeout(700)  # the page asks at most twice a second
        watched = page.evaluate_handle(
            """step => { window.shown = new Promise(done => { const look = () => {
                 const terms = [...document.querySelectorAll("#verdict dt")];
                 const value = terms.find(term => term.textContent === "Last step").nextElementSibling.textContent;
                 if (value === String(step)) done(Date.now() / 1000);
                 else requestAnimationFrame(look); }; look(); }); }""",
            step,
        )
        closed = service.send(run, step)
        waits.append(page.evaluate("() => window.shown") - closed["closed_at"])
        watched.dispose()
    sys.stdout.write(f"\nclosed step to visible: {', '.join(f'{wait:.3f}' for wait in waits)} s\n")
    assert max(waits) < GENEROUS_S
    expect(page.locator("#live .live-word")).to_have_text("live")


def test_slider_keyboard_and_deep_link(opened: Opened, service: Service, recorded: str) -> None:
    page = drawn(opened(f"/runs/{recorded}"))
    slider = page.locator("#step-slider")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.locator("#step-number")).to_have_value("62")
    expect(page.locator("#step-latest")).to_have_attribute("aria-pressed", "false")
    page.wait_for_url(f"{service.url}/runs/{recorded}?step=62")
    expect(page.locator('[data-csv="envelope"]')).to_have_attribute(
        "href", f"/runs/{recorded}/figures/envelope.csv?step=62"
    )
    page.get_by_role("button", name="Previous step").press("Enter")
    expect(page.locator("#step-number")).to_have_value("61")
    linked = drawn(opened(f"/runs/{recorded}?step=17"))
    expect(linked.locator("#step-number")).to_have_value("17")
    expect(linked.locator("#worst h2")).to_contain_text("step 17")
    linked.locator("#alerts a[data-step]").first.click()
    expect(linked.locator("#step-number")).not_to_have_value("17")
    linked.get_by_role("button", name="Latest").click()
    expect(linked.locator("#step-number")).to_have_value("63")


def test_what_if_answers_to_its_sliders(opened: Opened, recorded: str) -> None:
    page = drawn(opened(f"/runs/{recorded}?step=40"))
    result = page.locator("#whatif-result")
    expect(result.locator("h3")).to_have_text("Token TIS")
    page.get_by_role("radio", name="Token TIS").focus()
    page.keyboard.press("ArrowDown")
    expect(result.locator("h3")).to_have_text("IcePop")
    before = result.locator(".big").first.inner_text()
    page.get_by_role("slider", name="Upper bound").press("Home")
    expect(result.locator(".big").first).not_to_have_text(before)
    expect(result).to_contain_text("above 1.01")
    page.get_by_label("lower bound of IcePop").fill("0.25")
    expect(result).to_contain_text("below 0.25")
    page.get_by_role("radio", name="GSPO").check()
    expect(result).to_contain_text("By sign of the advantage")


def test_a_worst_token_opens_its_sequence(opened: Opened, recorded: str) -> None:
    page = drawn(opened(f"/runs/{recorded}?step=40"))
    page.locator("#worst [data-sequence]").first.click()
    panel = page.locator("#sequence")
    expect(panel.locator(".tok[aria-current]")).to_have_count(1)
    assert "down-" in (panel.locator(".tok[aria-current]").get_attribute("class") or "")
    assert panel.locator("ol .tok").count() > 5
    assert axe(page) == []


def test_the_theme_switch_redraws_everything(opened: Opened, recorded: str) -> None:
    page = drawn(opened(f"/runs/{recorded}"))
    line = "document.getElementById('plot-kl').data[0].line.color"
    light = page.evaluate(line)
    button = page.locator("#theme-switch")
    button.click()
    button.click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.wait_for_function(f"() => {line} !== {light!r}")
    staleness = "document.getElementById('plot-staleness').layout.template.layout.font.color"
    page.wait_for_function(f"() => {staleness} === '#e6e9ed'")
    assert axe(page) == []
    again = drawn(opened(f"/runs/{recorded}"))
    expect(again.locator("html")).to_have_attribute("data-theme", "dark")


def test_an_alert_is_acknowledged_and_silenced_from_the_page(opened: Opened, service: Service) -> None:
    run = service.run("invalid")
    for step in range(3):
        service.send(run, step, invalid=0.3)
    page = drawn(opened(f"/runs/{run}"))
    alert = page.locator("#alerts li", has_text="LogprobInvalid").first
    alert.get_by_role("button", name="Acknowledge").click()
    expect(alert.locator(".alert-state")).to_contain_text("acknowledged")
    alert.get_by_role("button", name="for an hour").click()
    expect(alert.locator(".alert-state")).to_contain_text("silenced until")
    states = {one["state"] for one in httpx.get(f"{service.url}{API}/runs/{run}/alerts").json()["alerts"]}
    assert "silenced" in states
    assert axe(page) == []


def test_log_probs_without_a_number_are_said_not_drawn(opened: Opened, service: Service) -> None:
    run = service.run("nothing-finite")
    for step in range(2):
        service.send(run, step, invalid=1.0)
    page = drawn(opened(f"/runs/{run}"))
    expect(page.locator("#plot-kl")).to_contain_text("No KL estimate yet")
    expect(page.locator("#worst")).to_contain_text("No token differs")
    expect(page.locator("#whatif-result")).to_contain_text("no valid tokens")


def test_silence_is_called_stale(opened: Opened, service: Service, context: BrowserContext) -> None:
    run = service.run("quiet")
    service.send(run, 0)
    context.clock.install(time=time.time() + 900)
    page = opened(f"/runs/{run}")
    expect(page.locator("#seen")).to_contain_text("stale: 15 min ago")


def test_a_restart_of_the_service_leaves_no_gap(opened: Opened, service: Service, seen: Seen) -> None:
    run = service.run("restarted")
    for step in range(3):
        service.send(run, step)
    page = drawn(opened(f"/runs/{run}"))
    service.stop()
    try:
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("#live")).to_have_attribute("data-live", "disconnected")
    finally:
        service.start()
    for step in range(3, 6):
        service.send(run, step)
    expect(last_step(page)).to_have_text("5", timeout=30_000)
    # The browser tries again after some seconds of its own choosing.
    expect(page.locator("#live")).to_have_attribute("data-live", "live", timeout=30_000)
    expect(page.locator("#banner")).to_be_hidden()
    page.wait_for_function("() => document.getElementById('plot-kl').data[0].x.length === 6")
    assert list(page.evaluate("[...document.getElementById('plot-kl').data[0].x]")) == list(range(6))
    seen.wrong = [one for one in seen.wrong if "ERR_" not in one]


def test_on_a_phone_nothing_scrolls_sideways(opened: Opened, context: BrowserContext, recorded: str) -> None:
    for path in ("/", f"/runs/{recorded}", "/definitions"):
        page = opened(path)
        page.set_viewport_size({"width": 390, "height": 844})
        if recorded in path:
            drawn(page)
        wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window, path
        assert axe(page) == []
