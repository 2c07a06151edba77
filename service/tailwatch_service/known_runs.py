"""What a batch needs to know of its run, remembered for a moment: its project, and the attempt of its launch.

A memo and nothing more, so that a batch costs no query for either. Only what was found is remembered; whether the run
is still there is settled by the writer, in the transaction that stores the batch. A run that moves to another project
is seen in the old one for 2 s more at most; the attempt of a launch never changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tailwatch_service.storage import runs
from tailwatch_service.storage.database import Database

_REMEMBER_S = 2.0
_REMEMBERED = 4096

_Launch = tuple[str, str | None, int | None]
"""Run, session, attempt, as a client names them."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class KnownRuns:
    """Projects and attempts of runs. Thread-safe."""

    def __init__(self, db: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = monotonic
        self._projects: dict[str, tuple[float, str]] = {}
        self._attempts: dict[_Launch, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def project_of(self, run_id: str, *, now: float) -> str:
        """Project of a run.

        Raises:
            NotFound: no such run.
        """
        found = self._projects.get(run_id)
        if found is not None and found[0] > self._clock():
            return found[1]
        project = runs.get(self._db, run_id, now=now).spec.project
        self._remember(self._projects, run_id, project)
        return project

    def attempt_of(self, run_id: str, *, now: float, session: str | None, attempt: int | None) -> int:
        """As `runs.attempt_of`.

        Raises:
            NotFound, Unprocessable: as `runs.attempt_of`.
        """
        launch = (run_id, session, attempt)
        found = self._attempts.get(launch)
        if found is not None and found[0] > self._clock():
            return found[1]
        number = runs.attempt_of(self._db, run_id, now=now, session=session, attempt=attempt)
        if session is not None or attempt is not None:  # the latest attempt may be another one at any moment
            self._remember(self._attempts, launch, number)
        return number

    def _remember(self, known: dict[_Key, tuple[float, _Value]], key: _Key, value: _Value) -> None:
        with self._lock:
            if len(known) >= _REMEMBERED:
                known.clear()
            known[key] = (self._clock() + _REMEMBER_S, value)
