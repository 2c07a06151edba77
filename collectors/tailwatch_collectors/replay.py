"""Sending a spool by hand: what runs without a URL, or for a service that has moved, left on disk.

    python -m tailwatch_collectors replay [DIR] --url http://127.0.0.1:8321

Sends every shelf that no process works on, whatever service it was meant for, oldest first, until nothing is left or
the service has been away for too long. What is acknowledged leaves the disk; running it again goes on where it ended.
"""

# ruff: noqa: T201  # a command line prints

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tailwatch_collectors.breaker import Breaker
from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.items import request_of
from tailwatch_collectors.segment import Record
from tailwatch_collectors.sender import API, is_batch, judge
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.spool import Spool
from tailwatch_collectors.transport import Answer, HttpTransport, Transport

PATIENCE = 60.0
"""Longest time without an answer before it gives up, seconds."""

_UNBOUNDED = 2**62


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of the records."""

    sent: int = 0
    duplicates: int = 0
    rejected: int = 0
    """Refused for good by the service; they leave the disk."""
    damaged: int = 0
    """Places on disk that held no record."""
    failure: str | None = None
    """Why it stopped before the end."""


class _GaveUpError(Exception):
    """The service has been away for too long."""


class Replayer:
    """Sends the records of one spool."""

    def __init__(
        self,
        root: Path,
        *,
        transport: Transport,
        patience: float = PATIENCE,
        timeout: float = 10.0,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._spool = Spool(root, nbytes=_UNBOUNDED, fsync="never", run={}, url=None)
        self._transport = transport
        self._patience = patience
        self._timeout = timeout
        self._report = report
        self._breaker = Breaker()
        self._runs: dict[str, str] = {}
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Send everything; what became of it."""
        self._spool.adopt(any_service=True)
        try:
            while (entry := self._spool.head()) is not None:
                self._send(entry.record)
                self._spool.settle(entry)
        except _GaveUpError as error:
            self._outcome.failure = str(error)
        self._spool.close()
        self._outcome.damaged = self._spool.damaged
        return self._outcome

    def _send(self, record: Record) -> None:
        recreated = False
        while True:
            run_id = self._run_of(record.run)
            if run_id is None:
                self._outcome.rejected += 1
                return
            path, headers = request_of(record)
            answer = self._ask(f"/runs/{quote(run_id, safe='')}/{path}", record.body, headers, batch=is_batch(record))
            if judge(answer, batch=is_batch(record)) == "accepted":
                if (answer.content or {}).get("status") == "duplicate":
                    self._outcome.duplicates += 1
                else:
                    self._outcome.sent += 1
                return
            if answer.status == 404 and not recreated:
                recreated = True
                self._runs.clear()
                continue
            self._report(f"refused: HTTP {answer.status}: {answer.content or answer.failure}")
            self._outcome.rejected += 1
            return

    def _run_of(self, fields: Mapping[str, Any]) -> str | None:
        """The run's id; None where the service refuses it."""
        key = json.dumps(dict(fields), sort_keys=True)
        if key not in self._runs:
            headers = {"Content-Type": "application/json"}
            answer = self._ask("/runs", json.dumps(dict(fields)).encode(), headers, batch=False)
            run_id = (answer.content or {}).get("run_id")
            if not isinstance(run_id, str):
                self._report(f"the run {fields.get('name')!r} is refused: HTTP {answer.status}: {answer.content}")
                return None
            self._runs[key] = run_id
            self._report(f"run {fields.get('project')}/{fields.get('name')}, session {fields.get('session')}")
        return self._runs[key]

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str], *, batch: bool) -> Answer:
        """An answer that is final: everything that may pass is waited for.

        Raises:
            _GaveUpError: it has not passed in time.
        """
        until = time.monotonic() + self._patience
        while True:
            answer = self._transport.post(API + path, body=body, headers=headers, timeout=self._timeout)
            verdict = judge(answer, batch=batch)
            if verdict in {"accepted", "rejected", "missing"}:
                self._breaker.succeeded()
                return answer
            wait = self._breaker.failed(retry_after=answer.retry_after)
            if verdict == "slowly" or time.monotonic() + wait > until:
                what = "no answer" if answer.status is None else f"HTTP {answer.status}"
                raise _GaveUpError(f"{what}: {answer.failure or answer.content or ''}")
            time.sleep(wait)


# --- the command -------------------------------------------------------------------------------------------------


def add_replay(commands: Any) -> None:
    """Add the command `replay` to a parser's commands."""
    parser = commands.add_parser(
        "replay",
        help="send what a spool holds",
        description="Send what runs left on disk, oldest first. What is acknowledged leaves the disk.",
    )
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the spool (default TAILWATCH_SPOOL_DIR)")
    # The key is read from the environment only: a command line is seen by everybody on the machine.
    parser.add_argument("--url", help="root of the service (default TAILWATCH_URL)")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds to wait for a service that is away")
    parser.set_defaults(run=replay)


def replay(parsed: argparse.Namespace) -> int:
    """Send a spool: 0 where all of it was sent, 1 where something is left or was refused, 2 for wrong arguments."""
    try:
        settings = Settings.read(os.environ, project="replay", run="replay", url=parsed.url, spool_dir=parsed.directory)
        if settings.url is None or settings.spool_dir is None:
            raise ConfigurationError("no url: pass --url or set TAILWATCH_URL (and no spool named off)")
    except ConfigurationError as error:
        print(f"tailwatch: {error}", file=sys.stderr)
        return 2
    transport = HttpTransport(url=settings.url, api_key=settings.api_key)
    try:
        outcome = Replayer(
            settings.spool_dir,
            transport=transport,
            patience=parsed.patience,
            timeout=settings.timeout,
            report=lambda line: print(line, flush=True),
        ).run()
    finally:
        transport.close()
    counts = (outcome.sent, outcome.duplicates, outcome.rejected, outcome.damaged)
    print("{} sent, {} duplicates, {} refused, {} damaged places skipped".format(*counts))
    if outcome.failure is not None:
        print(f"tailwatch: stopped: {outcome.failure}; the rest is still on disk", file=sys.stderr)
    return int(outcome.failure is not None or outcome.rejected > 0)
