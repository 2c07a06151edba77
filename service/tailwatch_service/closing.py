"""Closing: when a step is complete, and the worker that closes it.

A step closes when every expected rank sent `final` for it or anything for a later step of the same series; else
after a grace. The rules are pure functions at the top of the file. The `Closer` below keeps nothing that matters: it
is woken by the pipeline, and sweeps for what other replicas, the grace or a crash left to do.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import statistics as order_statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.summary import Summary
from tailwatch_service.alerts.judging import Judge
from tailwatch_service.alerts.watch import Watch
from tailwatch_service.recent import RecentSummaries
from tailwatch_service.settings import Settings
from tailwatch_service.statistics import compute
from tailwatch_service.storage import chunks, pending, runs
from tailwatch_service.storage.batches import segments_in_use
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.pending import Merged, Parts, PendingStep
from tailwatch_service.storage.segments import Segments
from tailwatch_service.types import Event, SeriesKey

_log = logging.getLogger(__name__)

SUMMARIES_KEPT_S = 24 * 3600.0
"""How long after its last merge a step's batch summaries are kept, so that a late batch merges exactly."""

HOUSEKEEPING_S = 600.0
"""Seconds between two rounds of dropping summaries, sweeping segments and looking at everything that is pending."""

_LATE_S = 5.0

_PAUSE_S = 0.05
"""Between two looks at what is woken: a step of a thousand parts is looked at a few times, not a thousand."""


# --- rules ---


def expected_ranks(step: PendingStep, *, previous: frozenset[int] | None) -> int:
    """How many ranks a step waits for: the world size; else the ranks of the previous closed step; else those seen.

    A rank nobody expected is one more: coverage never exceeds 1.
    """
    seen = frozenset(step.finals)
    if step.world_size is not None:
        return max(step.world_size, len(seen))
    return len(seen | (previous or frozenset()))


def is_complete(step: PendingStep, *, previous: frozenset[int] | None) -> bool:
    """True where every expected rank sent `final` or has moved on to a later step."""
    done = step.moved_on | {rank for rank, final in step.finals.items() if final}
    seen = frozenset(step.finals)
    if not seen <= done:
        return False
    if step.world_size is None:
        return (previous or frozenset()) <= done
    # Ranks that joined after this step, in a larger world, do not stand in for one that is missing here.
    return len({rank for rank in done if rank < step.world_size or rank in seen}) >= step.world_size


def coverage(step: PendingStep, *, expected: int) -> float:
    """Ranks that delivered over ranks expected; an empty final batch counts, it says that the rank has nothing."""
    return len(step.finals) / expected


def grace_s(starts: Sequence[float], *, floor_s: float, factor: float) -> float:
    """Seconds to wait for missing ranks after the step's last batch: `factor` median step times, at least `floor_s`.

    Args:
        starts: times at which the newest closed steps began, by step.
        floor_s: shortest wait.
        factor: wait in step times.
    """
    times = [later - earlier for earlier, later in itertools.pairwise(starts) if later > earlier]
    return max(floor_s, factor * order_statistics.median(times)) if times else floor_s


def merge(
    parts: Parts, *, coverage: float, expected: int, read: Callable[[bytes], Summary] = summaries.from_bytes
) -> Merged:
    """Merge a step's summaries in their order and compute its metrics."""
    blobs = parts.summaries if parts.base is None else [parts.base, *parts.summaries]
    whole = summaries.merge(read(blob) for blob in blobs)
    computed = compute.metrics(whole)
    return Merged(
        coverage=coverage,
        expected_ranks=expected,
        tokens=whole.tokens,
        sequences=whole.sequences,
        metrics=computed.values,
        missing=computed.missing,
        summary=blobs[0] if len(blobs) == 1 else summaries.to_bytes(whole),
    )


# --- worker ---


class Closer:
    """Closes steps in one background thread, and keeps house in another, for a round of that may take long.

    Every action may be repeated, by anyone, without harm.
    """

    def __init__(
        self,
        db: Database,
        *,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        on_close: Callable[[Event], None] = lambda _event: None,
        segments: Segments | None = None,
        judge: Judge | None = None,
        watch: Watch | None = None,
        recent: RecentSummaries | None = None,
    ) -> None:
        """Make a closer.

        Args:
            db: the database.
            settings: grace, sweep interval, silence after which a run is lost.
            clock: Unix seconds.
            on_close: called in the closer's thread after an event of a step or of an alert is durable.
            segments: swept of orphans, where tokens may be kept.
            judge: judges each step in the transaction that closes it.
            watch: looks after alerts when the sweep comes by.
            recent: the summaries that the pipeline made a moment ago.
        """
        self._db = db
        self._settings = settings
        self._clock = clock
        self._on_close = on_close
        self._segments = segments
        self._judge = judge
        self._watch = watch
        self._recent = RecentSummaries() if recent is None else recent
        self._woken: set[SeriesKey] = set()
        self._unsealed: set[int] = set()
        self._signal = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="tailwatch-closer", daemon=True),
            threading.Thread(target=self._keep_house, name="tailwatch-housekeeper", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads; the first sweep repairs what a crash left behind."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop after the step at hand; what is left to do is found by the next sweep, here or elsewhere."""
        with self._signal:
            self._stopped.set()
            self._signal.notify()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def wake(self, series: SeriesKey) -> None:
        """Look at a series soon: a batch was stored for it."""
        with self._signal:
            self._woken.add(series)
            self._signal.notify()

    def close_series(self, series: SeriesKey) -> list[Event]:
        """Close and merge whatever is ready in one series, in step order; the events."""
        made: list[Event] = []
        page = pending.of_series(self._db, series)
        while page:
            for step in page:
                with _logged("closing step %s of %s", step.key.step, series):
                    event = self._close_step(step)
                    if event is not None:
                        made.append(event)
                        self._unsealed.add(step.series_id)
                        self._on_close(event)
            page = pending.of_series(self._db, series, after=page[-1].key.step)
        return made

    def sweep(self, *, everything: bool = False) -> None:
        """Close what is due, seal chunks and announce changed run states.

        Args:
            everything: look at every pending step, not only at those that were quiet for long; for the start.
        """
        now = self._clock()
        beyond = now + 1.0
        floor_s = self._settings.grace_floor_s
        due = pending.series_due(
            self._db,
            open_before=beyond if everything else now - floor_s,
            late_before=beyond if everything else now - min(_LATE_S, floor_s),
        )
        for series in due:
            self.close_series(series)
        if everything:
            self._unsealed.update(chunks.unsealed_series(self._db))
        while self._unsealed:
            chunks.seal(self._db, self._unsealed.pop())
        runs.announce_states(self._db, now=now, lost_after_s=self._settings.lost_after_s)
        if self._watch is not None:
            for event in self._watch.sweep(now=now):
                self._on_close(event)

    def housekeep(self) -> None:
        """Drop summaries of steps closed long ago, and segments that no row refers to."""
        now = self._clock()
        while not self._stopped.is_set():
            if not pending.drop_summaries(self._db, merged_before=now - SUMMARIES_KEPT_S):
                break
        if self._segments is not None:
            self._segments.sweep(lambda names: segments_in_use(self._db, names), now=now)

    def _close_step(self, step: PendingStep) -> Event | None:
        previous = pending.previous_ranks(self._db, step) if step.world_size is None else None
        if not step.closed and not is_complete(step, previous=previous) and not self._is_overdue(step):
            return None
        parts = pending.parts(self._db, step)
        if parts is None:
            return None
        expected = expected_ranks(step, previous=previous)
        covered = coverage(step, expected=expected)
        merged = merge(parts, coverage=covered, expected=expected, read=self._recent.from_bytes)
        now = self._clock()
        judge = self._judge
        if judge is None:
            return pending.commit(self._db, step, merged, now=now)
        return pending.commit(
            self._db, step, merged, now=now, judge=lambda connection: judge.closed(connection, step, merged, now=now)
        )

    def _is_overdue(self, step: PendingStep) -> bool:
        quiet_s = self._clock() - step.last_at
        floor_s = self._settings.grace_floor_s
        if quiet_s <= floor_s:
            return False
        starts = pending.recent_starts(self._db, step.series_id)
        return quiet_s > grace_s(starts, floor_s=floor_s, factor=self._settings.grace_factor)

    def _run(self) -> None:
        next_sweep = next_repair = 0.0
        while True:
            with self._signal:
                if not self._woken and not self._stopped.is_set():
                    self._signal.wait(max(0.0, next_sweep - time.monotonic()))
                if self._stopped.is_set():
                    return
                woken, self._woken = self._woken, set()
            for series in sorted(woken):
                with _logged("closing %s", series):
                    self.close_series(series)
            self._stopped.wait(_PAUSE_S)
            if time.monotonic() >= next_sweep:
                repair = time.monotonic() >= next_repair
                with _logged("the sweep"):
                    self.sweep(everything=repair)
                    if repair:
                        next_repair = time.monotonic() + HOUSEKEEPING_S
                next_sweep = time.monotonic() + self._settings.sweep_interval_s

    def _keep_house(self) -> None:
        while not self._stopped.is_set():
            with _logged("housekeeping"):
                self.housekeep()
            self._stopped.wait(HOUSEKEEPING_S)


@contextlib.contextmanager
def _logged(what: str, *values: object) -> Iterator[None]:
    """Keep the thread alive: what failed stays pending and is tried again by the next sweep."""
    try:
        yield
    # A step that cannot be closed, for whatever reason, must not keep the others open.
    except Exception:  # noqa: BLE001
        _log.exception("%s failed and will be tried again", what % values)
