"""The tail: takes the files of one directory to the service, step by step, each sequence exactly once.

A unit (the files of one training step) is taken once it is whole. It is cut into batches by its content alone, so a
batch has the same key and the same content however often it is sent; what was acknowledged is noted in the cursor,
and what was acknowledged but not yet noted when the process died is a duplicate at the service. All ranks of a step
go out as one sender (rank 0 of 1), for one process reads them: the step closes with its last batch.

A unit that changes after it was sent was written by a resumed launch of the trainer: from there on batches belong to
a new session, which is a new attempt at the service. A file that only grew is read on.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tailwatch_collectors.adapters import rows as adapted
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.files.cursor import Cursor, Entry, Print
from tailwatch_collectors.files.format import Format, Problem, Unit
from tailwatch_collectors.files.service import Outcome, Service
from tailwatch_collectors.types import BatchMeta

PART_TOKENS = 2**18
"""Tokens after which a batch is full. Part of what makes batches repeatable: changing it needs a new cursor version."""

PART_ROWS = 8192
"""Sequences after which a batch is full."""

SETTLE_S = 10.0
"""Time without a change after which a file without a marker is taken as whole, seconds."""

POLL_S = 1.0
"""Time between two looks at the directory, seconds."""


@dataclass(slots=True)
class Totals:
    """What has become of everything read so far."""

    units: int = 0
    """Steps taken."""
    sequences: int = 0
    tokens: int = 0
    batches: dict[Literal["stored", "duplicate", "refused"], int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    """How often each kind of problem came up."""
    lost: int = 0
    """Problems that cost sequences."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One batch on its way."""

    step: int
    left: int
    """Units that are there and not taken yet, this one included."""
    totals: Totals


class Tail:
    """One directory, one format, one run."""

    def __init__(
        self,
        root: Path,
        *,
        format: Format,  # noqa: A002  # the word of the command line
        service: Service | None,
        cursor: Cursor,
        source: str,
        stop: threading.Event,
        tell: Callable[[str], None],
        progress: Callable[[Progress], None] = lambda _progress: None,
        settle: float = SETTLE_S,
        rank: int = 0,
        world_size: int | None = 1,
        framework: str | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            root: the directory.
            format: how to read it.
            service: where to; None: nowhere, only read and count.
            cursor: what was done before.
            source: what `cursor` was loaded for.
            stop: set to break off between two batches.
            tell: says one line to whoever watches.
            progress: told after every batch.
            settle: as `SETTLE_S`.
            rank: sender, where several tails read parts of the same steps.
            world_size: how many of them there are.
            framework: noted with every batch.
        """
        self.totals = Totals()
        self._root = root
        self._format = format
        self._service = service
        self._cursor = cursor
        self._source = source
        self._stop = stop
        self._tell = tell
        self._progress = progress
        self._settle = settle
        self._rank, self._world_size, self._framework = rank, world_size, framework
        self._told: set[tuple[Path, str]] = set()
        self._step: int | None = None

    def run(self, *, follow: bool, poll: float = POLL_S) -> None:
        """Take what there is; with `follow`, and what is to come, until stopped.

        Without it, waits only for files that may still settle, and names what never became whole.

        Raises:
            Stopped: broken off while the service did not answer.
            OSError: the cursor cannot be kept.
        """
        while not self._stop.is_set():
            waiting = self.turn()
            if self._stop.is_set():
                return
            if not follow and not (waiting and self._format.settles):
                for unit in waiting:
                    reason = f"no {self._format.marker} yet; run again, or with --follow"
                    self._note(Problem(path=unit.paths[0], kind="incomplete", reason=reason))
                return
            if follow and self._service is not None:
                self._service.beat(step=self._step)
            self._stop.wait(poll)

    def turn(self) -> list[Unit]:
        """Take every unit that is whole, in order of steps; those that are not yet.

        Raises:
            Stopped: broken off while the service did not answer.
            OSError: the cursor cannot be kept.
        """
        pending = [unit for unit in self._units() if self._is_new(unit)]
        while pending and not self._stop.is_set() and self._ready(pending):
            self._take(pending[0], left=len(pending))
            pending.pop(0)
        return pending

    # --- which -----------------------------------------------------------------------------------------------------

    def _units(self) -> list[Unit]:
        """What the format finds; of several files that name one step, the first."""
        found: dict[int, Unit] = {}
        for unit in self._format.find(self._root):
            if found.setdefault(unit.step, unit) is not unit:
                reason = f"names step {unit.step}, as {found[unit.step].paths[0].name} does; it is left out"
                self._note(Problem(path=unit.paths[0], kind="unusable", reason=reason))
        return list(found.values())

    def _is_new(self, unit: Unit) -> bool:
        """Whether there is anything in a unit that has not been acknowledged."""
        entry = self._cursor.units.get(unit.step)
        if entry is None:
            return True
        names = {self._name(path) for path in unit.paths}
        changes = {entry.files[name].change(self._root / name) for name in names & set(entry.files)}
        if names <= set(entry.files) and changes <= {"none"}:
            return not entry.done
        grown = len(unit.paths) == 1 and changes == {"grown"} and self._format.settles
        if not grown and (entry.done or entry.parts):
            self._rewritten(unit, entry)
        elif grown:
            entry.done = False
        else:
            del self._cursor.units[unit.step]
        return True

    def _rewritten(self, unit: Unit, entry: Entry) -> None:
        """Forget a unit that another launch of the trainer wrote anew, which starts a session if none has yet."""
        if entry.session == self._cursor.session:
            self._cursor.generation += 1
            base = self._cursor.session.partition("~")[0]
            self._cursor.session = f"{base}~{self._cursor.generation}"
            if self._service is not None:
                self._service.open(session=self._cursor.session)
        del self._cursor.units[unit.step]
        self._save()
        reason = f"changed after it was sent; step {unit.step} goes into a new attempt"
        self._note(Problem(path=unit.paths[0], kind="rewritten", reason=reason))

    def _ready(self, pending: list[Unit]) -> bool:
        """Whether the first of the units can be taken."""
        unit, later = pending[0], pending[1:]
        state = self._format.state(unit)
        if state == "whole":
            return True
        if self._format.settles:
            # The next step's file means that this one was closed.
            return self._settled(unit) or (state == "looks_whole" and bool(later))
        abandoned = any(self._format.state(other) == "whole" for other in later)
        if abandoned:
            reason = f"no {self._format.marker}, and a later step has it: taken as it is"
            self._note(Problem(path=unit.paths[0], kind="incomplete", reason=reason))
        return abandoned

    def _settled(self, unit: Unit) -> bool:
        try:
            return time.time() - max(path.stat().st_mtime for path in unit.paths) >= self._settle
        except OSError:
            return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    # --- taking one --------------------------------------------------------------------------------------------------

    def _take(self, unit: Unit, *, left: int) -> None:
        """Send what has not been sent of one unit."""
        entry = self._cursor.units.get(unit.step)
        if entry is None or self._grew(unit, entry):
            done = entry or Entry(files={}, session=self._cursor.session)
            try:
                done.files = {self._name(path): Print.of(path) for path in unit.paths}
            except OSError as error:
                reason = f"cannot be read: {error.strerror or error}"
                self._note(Problem(path=unit.paths[0], kind="corrupt", reason=reason))
                return
            entry = self._cursor.units[unit.step] = done
        noted = sum(self.totals.problems.values())
        fresh = itertools.islice(self._rows(unit), entry.rows, None)
        for part, final in _with_last(parts(fresh)):
            self._send(unit, entry, part, final=final)
            self._progress(Progress(unit.step, left, self.totals))
            if self._stop.is_set() and not final:
                return
        if not entry.parts and noted == sum(self.totals.problems.values()):
            reason = "no sequence with log-probs of both sides; nothing sent"
            self._note(Problem(path=unit.paths[0], kind="no_logprobs", reason=reason))
        entry.done = True
        self._save()
        self.totals.units += 1

    def _grew(self, unit: Unit, entry: Entry) -> bool:
        return any(Print.change(entry.files[self._name(path)], path) == "grown" for path in unit.paths)

    def _rows(self, unit: Unit) -> Iterator[Row]:
        for item in self._format.read(unit):
            if isinstance(item, Problem):
                self._note(item)
            else:
                yield item

    def _send(self, unit: Unit, entry: Entry, part: list[Row], *, final: bool) -> None:
        outcome = self._post(unit, entry, part, final=final)
        if outcome.status == "refused":
            reason = f"part {entry.parts} of step {unit.step}, {len(part)} sequences: {outcome.reason}"
            self._note(Problem(path=unit.paths[0], kind="refused", reason=reason))
        else:
            self.totals.sequences += len(part)
            self.totals.tokens += adapted.tokens(part)
        self.totals.batches[outcome.status] = self.totals.batches.get(outcome.status, 0) + 1
        self._step = unit.step
        entry.parts += 1
        entry.rows += len(part)
        if not final:
            self._save()

    def _post(self, unit: Unit, entry: Entry, part: list[Row], *, final: bool) -> Outcome:
        meta = BatchMeta(
            step=unit.step,
            rank=self._rank,
            world_size=self._world_size,
            part=entry.parts,
            final=final,
            phase=self._format.phase,
            session=entry.session,
            framework=self._framework,
        )
        try:
            batch = Batch.from_arrays(meta, **adapted.columns(part))
        except BatchError as error:
            return Outcome(status="refused", reason=str(error))
        return Outcome(status="stored") if self._service is None else self._service.batch(batch)

    def _save(self) -> None:
        if self._service is not None:
            self._cursor.save(source=self._source)

    def _note(self, problem: Problem) -> None:
        """Count a problem; name it the first time in its file."""
        self.totals.problems[problem.kind] = self.totals.problems.get(problem.kind, 0) + 1
        self.totals.lost += problem.loses
        key = (problem.path, problem.kind)
        if key not in self._told:
            self._told.add(key)
            self._tell(str(problem))


def parts(found: Iterable[Row]) -> Iterator[list[Row]]:
    """Sequences cut into batches by what they hold alone: full ones, and never with unequal columns."""
    part: list[Row] = []
    count = 0
    for row in found:
        if part and (count >= PART_TOKENS or len(part) >= PART_ROWS or part[0].keys() != row.keys()):
            yield part
            part, count = [], 0
        part.append(row)
        count += len(row["infer_logprobs"])
    if part:
        yield part


def _with_last(found: Iterator[list[Row]]) -> Iterator[tuple[list[Row], bool]]:
    """Each batch with whether it is the last."""
    part = next(found, None)
    while part is not None:
        following = next(found, None)
        yield part, following is None
        part = following
