"""Screenshots of both pages at 390, 1440 and 2560 px, light and dark, from a running service.

    python scripts/screenshots.py http://127.0.0.1:8321 out/

Shoots the run list and every run it finds (or those named with --run). Fails, with what it saw, on a console error,
on a page that scrolls sideways, and on any request that leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

WIDTHS = (390, 1440, 2560)
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY_MS = 20_000
SETTLE_MS = 600
LOCAL = {"127.0.0.1", "localhost", "::1"}


@dataclass
class Findings:
    """What a page did that it must not."""

    seen: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.seen.append(f"console {message.type}: {message.text}")

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in LOCAL:
            self.seen.append(f"request left the machine: {request.url}")


def shoot(browser: Browser, url: str, target: Path, *, width: int, theme: Theme, height: int | None) -> list[str]:
    """One screenshot, of the whole page unless a height is given; what went wrong on the way."""
    page = browser.new_page(viewport={"width": width, "height": height or 900}, color_scheme=theme)
    found = Findings()
    page.on("console", found.console)
    page.on("pageerror", lambda error: found.seen.append(f"page error: {error}"))
    page.on("request", found.request)
    page.goto(url)
    wait_for_charts(page)
    sizes = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    if sizes[0] > sizes[1]:
        found.seen.append(f"scrolls sideways: {sizes[0]} px wide in {sizes[1]}")
    page.screenshot(path=target, full_page=height is None)
    page.close()
    return [f"{target.name}: {what}" for what in found.seen]


def wait_for_charts(page: Page) -> None:
    """Until every chart of a run with steps is drawn."""
    if page.locator("#content:not([hidden]) .plot-frame").count():
        page.locator(".plot-frame:not(.ready)").first.wait_for(state="detached", timeout=READY_MS)
    page.wait_for_timeout(SETTLE_MS)


def runs_of(base: str) -> dict[str, str]:
    """Names and ids of the runs the service lists."""
    with urllib.request.urlopen(f"{base}/api/v1/runs", timeout=10) as answer:
        return {run["name"]: run["run_id"] for run in json.load(answer)["runs"]}


def main() -> int:
    """Shoot everything; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="address of the service, for example http://127.0.0.1:8321")
    parser.add_argument("out", type=Path, help="folder for the PNG files")
    parser.add_argument("--run", action="append", help="name of a run; default: all listed")
    parser.add_argument("--width", action="append", type=int, help="window width; default: all")
    parser.add_argument("--height", type=int, help="only the top of the page, this high; default: all of it")
    chosen = parser.parse_args()
    base = chosen.base.rstrip("/")
    chosen.out.mkdir(parents=True, exist_ok=True)
    runs = runs_of(base)
    names = chosen.run or sorted(runs)
    targets = {"runs": f"{base}/", **{f"run-{name}": f"{base}/runs/{runs[name]}" for name in names}}
    findings: list[str] = []
    with sync_playwright() as playwright:
        executable = str(CHROMIUM) if CHROMIUM.exists() else None
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for name, url in targets.items():
            for width in chosen.width or WIDTHS:
                for theme in THEMES:
                    target = chosen.out / f"{name}-{width}-{theme}.png"
                    findings += shoot(browser, url, target, width=width, theme=theme, height=chosen.height)
                    print(target)
        browser.close()
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
