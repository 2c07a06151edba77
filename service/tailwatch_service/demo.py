"""The demo: the service on a fresh directory, and every recording replayed into it at once through the real SDK.

The main thread serves; one thread per recording replays. The replay is paced so that the curves visibly move and the
longest recording is through after `seconds`.
"""

from __future__ import annotations

import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tailwatch_collectors.errors import TailwatchError
from tailwatch_service import server
from tailwatch_service.app import create_app
from tailwatch_service.errors import SettingsError
from tailwatch_service.replay import Outcome, Progress, Recording, open_recording
from tailwatch_service.replay import replay as stream
from tailwatch_service.settings import Settings

SECONDS = 40.0
"""How long the longest recording takes, where nothing else is said."""

_START_S = 30.0
_REPORT_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What to show, and how."""

    recordings: Path
    """Directory of recordings, or one recording."""
    seconds: float = SECONDS
    """How long the longest recording takes."""
    stop_after_s: float | None = None
    """Ends the demo by itself; None: Ctrl-C does."""


def find_recordings(path: Path) -> list[Recording]:
    """The recordings of a directory, by name; or the one file.

    Raises:
        SettingsError: there is none, or one cannot be read.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise SettingsError(f"there is no recording in {path}: no *.parquet file")
    return [open_recording(file) for file in files]


def stop_after(environ: Mapping[str, str]) -> float | None:
    """`TAILWATCH_DEMO_SECONDS`, seconds; None where it is not set.

    Raises:
        SettingsError: it is no positive number.
    """
    text = environ.get("TAILWATCH_DEMO_SECONDS", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e9:
        raise SettingsError(f"TAILWATCH_DEMO_SECONDS is {text!r:.40}, not a positive number")
    return seconds


def run(demo: Demo, *, settings: Settings, keep_data: bool) -> int:
    """Run the demo until Ctrl-C, or until its time is over; the exit code.

    Args:
        demo: what to show.
        settings: where to listen; `data_dir` is used only with `keep_data`.
        keep_data: use the settings' data directory, which stays; else a temporary one, which does not.

    Raises:
        SettingsError: a busy port, or no recordings.
    """
    found = find_recordings(demo.recordings)
    listener = server.listen(settings.host, settings.port)
    try:
        if keep_data:
            return _serve(demo, settings, found, listener)
        with tempfile.TemporaryDirectory(prefix="tailwatch-demo-") as fresh:
            return _serve(demo, replace(settings, data_dir=Path(fresh)), found, listener)
    finally:
        listener.close()


def _serve(demo: Demo, settings: Settings, found: list[Recording], listener: socket.socket) -> int:
    url = server.url_of(listener)
    serving = server.make(create_app(settings), settings)
    stop = threading.Event()
    show = _Show(demo, found, url, serving, stop)
    driver = threading.Thread(target=show.run, name="tailwatch-demo", daemon=True)
    driver.start()
    try:
        serving.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has stopped in order and then repeats the signal
        pass
    finally:
        stop.set()
        driver.join(5.0)
    if not serving.started:
        return 1
    return 1 if show.failed else 0


class _Show:
    """The part of the demo beside the server: the replays and what is printed."""

    def __init__(
        self, demo: Demo, found: list[Recording], url: str, serving: server.Server, stop: threading.Event
    ) -> None:
        self._demo = demo
        self._found = found
        self._url = url
        self._serving = serving
        self._stop = stop
        self._progress: dict[str, Progress] = {}
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self.failed = False

    def run(self) -> None:
        """Wait for the server, replay, report, and end the demo when its time is over."""
        if not self._wait_for_start():
            return
        started = time.monotonic()
        print(f"Tailwatch is running at {self._url}", flush=True)
        print(f"Replaying {len(self._found)} recorded runs; Ctrl-C ends the demo.", flush=True)
        # What the SDK has to say while the demo is being stopped is of no interest.
        logging.getLogger("tailwatch").setLevel(logging.ERROR)
        threads = [threading.Thread(target=self._replay, args=(one,), daemon=True) for one in self._found]
        for thread in threads:
            thread.start()
        ends = None if self._demo.stop_after_s is None else started + self._demo.stop_after_s
        replaying = threading.Thread(target=self._tell_after, args=(threads,), daemon=True)
        replaying.start()
        while not self._stop.is_set() and (ends is None or time.monotonic() < ends):
            if replaying.is_alive():
                self._report()
            self._stop.wait(_REPORT_S if ends is None else max(0.0, min(_REPORT_S, ends - time.monotonic())))
        self._stop.set()
        for thread in (*threads, replaying):
            thread.join(3.0)
        self._serving.should_exit = True

    def _wait_for_start(self) -> bool:
        deadline = time.monotonic() + _START_S
        while not self._serving.started:
            if self._stop.wait(0.05) or time.monotonic() > deadline:
                return False
        return True

    def _replay(self, recording: Recording) -> None:
        longest = max(one.batches for one in self._found)
        pace = longest / self._demo.seconds
        try:
            outcome = stream(recording, url=self._url, steps_per_second=pace, stop=self._stop, progress=self._note)
        except TailwatchError as error:
            self.failed = True
            print(f"{recording.run}: {error}", file=sys.stderr, flush=True)
            return
        with self._lock:
            self._outcomes.append(outcome)

    def _note(self, progress: Progress) -> None:
        with self._lock:
            self._progress[progress.run] = progress

    def _report(self) -> None:
        with self._lock:
            parts = [f"{one.run} {one.done}/{one.total}" for one in self._progress.values()]
        if parts:
            print(f"  steps sent: {', '.join(sorted(parts))}", flush=True)

    def _tell_after(self, threads: list[threading.Thread]) -> None:
        """Say what became of the recordings, once all are through."""
        for thread in threads:
            thread.join()
        if self._stop.is_set():
            return
        lost = sum(outcome.lost for outcome in self._outcomes)
        stored = sum(outcome.stored for outcome in self._outcomes)
        self.failed = self.failed or lost > 0
        print(f"All recordings are in: {stored} records stored, {lost} lost. Still serving {self._url}", flush=True)
