"""Replay: streams a recording through the real SDK, over HTTP, as the live run did.

A recording is a Parquet file with one row group per batch; `lab/recordings/README.md` describes it. Rows keep their
order and the columns are those of the live run, so the summaries the service makes are the same bit for bit.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tailwatch_collectors as tailwatch
from tailwatch_collectors.batch import SEQUENCE_DTYPES, STRING_COLUMNS, TOKEN_DTYPES
from tailwatch_collectors.collector import Collector
from tailwatch_service.errors import SettingsError

SCHEMA = "1"
"""Version of the recordings that are read."""

_CONFIG = ("model_class", "precision", "temperature", "top_p", "logprobs_mode", "staleness_bound")
_PER_BATCH = ("step", "rank", "train_version")
_KNOWN = {*TOKEN_DTYPES, *SEQUENCE_DTYPES, *STRING_COLUMNS}
_IN_FLIGHT = 16
_FLUSH_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What a recording says about itself."""

    path: Path
    project: str
    run: str
    framework: str | None
    settings: Mapping[str, Any]
    scalars: Mapping[int, Mapping[str, float]]
    """Values by name, by step."""
    events: Mapping[int, list[Mapping[str, Any]]]
    """`kind` and `payload`, by step; they belong before the step's batch."""
    batches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a replay is."""

    run: str
    done: int
    """Batches handed over."""
    total: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a replay."""

    run: str
    stored: int
    """Items acknowledged, duplicates included."""
    lost: int
    """Items refused or dropped."""
    batches: int


def open_recording(path: Path) -> Recording:
    """Read what a recording says about itself.

    Raises:
        SettingsError: no such file, or not a recording of this schema.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
            batches = file.num_row_groups
        if metadata.get("schema") != SCHEMA:
            raise SettingsError(f"{path} is not a recording: its schema is {metadata.get('schema')!r}, not {SCHEMA!r}")
        scalars: dict[int, dict[str, float]] = {}
        for row in json.loads(metadata["scalars"]):
            scalars.setdefault(row["step"], {}).update(row["values"])
        events: dict[int, list[Mapping[str, Any]]] = {}
        for row in json.loads(metadata["events"]):
            events.setdefault(row["step"], []).append(row)
        return Recording(
            path=path,
            project=metadata["project"],
            run=metadata["run"],
            framework=metadata.get("framework"),
            settings=json.loads(metadata["settings"]),
            scalars=scalars,
            events=events,
            batches=batches,
        )
    except FileNotFoundError as error:
        raise SettingsError(f"{path} does not exist") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"{path} is not a recording: {reason:.200}") from error


def batches(recording: Recording) -> Iterator[dict[str, Any]]:
    """The batches in recorded order: `step`, `rank`, `train_version`, `cu_seqlens`, and the columns of `record`."""
    with pq.ParquetFile(recording.path) as file:
        for index in range(file.num_row_groups):
            yield _batch(file.read_row_group(index))


def replay(
    recording: Recording,
    *,
    url: str,
    api_key: str | None = None,
    project: str | None = None,
    run: str | None = None,
    steps_per_second: float = 0.0,
    stop: threading.Event | None = None,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Outcome:
    """Stream a recording into a service.

    Args:
        recording: what to stream.
        url: root of the service.
        api_key: bearer key.
        project: project to file it under; None: the recording's.
        run: name of the run; None: the recording's.
        steps_per_second: pace; 0: as fast as the service takes it.
        stop: set to break off.
        progress: told after every batch.
    """
    stop = stop or threading.Event()
    name = run or recording.run
    collectors: dict[int, Collector] = {}
    session: str | None = None
    last_step: int | None = None
    broken_off = False
    due = time.monotonic()
    try:
        for done, batch in enumerate(batches(recording), start=1):
            step, rank = batch["step"], batch.pop("rank")
            if rank not in collectors:
                collectors[rank] = _connect(recording, url, api_key, project, name, rank, session)
                session = collectors[rank].session
            if step != last_step:
                due += 1.0 / steps_per_second if steps_per_second and last_step is not None else 0.0
                broken_off = stop.wait(max(0.0, due - time.monotonic()))
            if broken_off or stop.is_set():
                broken_off = True
                break
            _send(collectors[rank], recording, batch, first=step != last_step)
            last_step = step
            if done % _IN_FLIGHT == 0:
                # The SDK drops what its queue cannot hold; a replay has the time to wait instead.
                _settle(collectors[rank], stop)
            progress(Progress(run=name, done=done, total=recording.batches, step=step))
        if not broken_off:
            for collector in collectors.values():
                _settle(collector, stop)
            broken_off = stop.is_set()
    finally:
        for collector in collectors.values():
            collector.close(0.5 if broken_off else _FLUSH_S, finished=not broken_off)
    stats = [collector.stats for collector in collectors.values()]
    return Outcome(
        run=name,
        stored=sum(one.sent + one.duplicates for one in stats),
        lost=sum(one.rejected + sum(one.dropped.values()) for one in stats),
        batches=recording.batches,
    )


def _connect(
    recording: Recording, url: str, api_key: str | None, project: str | None, run: str, rank: int, session: str | None
) -> Collector:
    settings = recording.settings
    return tailwatch.connect(
        project=project or recording.project,
        run=run,
        url=url,
        api_key=api_key,
        session=session,
        rank=rank,
        world_size=settings.get("world_size"),
        framework=recording.framework,
        config={name: settings[name] for name in _CONFIG if settings.get(name) is not None},
        # A replay, not a training: what is lost is replayed again, and it may take all the time there is.
        spool_dir="off",
        overhead_budget=0,
        sigterm_timeout=0,
    )


def _settle(collector: Collector, stop: threading.Event) -> None:
    """Wait until everything handed over is settled, or the replay is broken off."""
    deadline = time.monotonic() + _FLUSH_S
    while not stop.is_set() and time.monotonic() < deadline:
        if collector.flush(0.25):
            return


def _send(collector: Collector, recording: Recording, batch: dict[str, Any], *, first: bool) -> None:
    """One batch; before the first of a step its events, and its scalars after it."""
    step = batch["step"]
    if first:
        for event in recording.events.get(step, ()):
            collector.event(event["kind"], step=step, payload=event["payload"])
    collector.record(**batch)
    if first and step in recording.scalars:
        collector.scalars(step=step, values=recording.scalars[step])


def _batch(table: pa.Table) -> dict[str, Any]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    offsets = columns["infer_logprobs"].offsets.to_numpy().astype(np.int64)
    batch: dict[str, Any] = {name: columns[name][0].as_py() for name in _PER_BATCH if name in columns}
    batch["cu_seqlens"] = offsets - offsets[0]
    for name, column in columns.items():
        if name in _PER_BATCH or name not in _KNOWN:
            continue
        if pa.types.is_list(column.type):
            batch[name] = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_numpy(
                zero_copy_only=False
            )
        elif name in STRING_COLUMNS:
            batch[name] = column.to_pylist()
        else:
            batch[name] = column.to_numpy(zero_copy_only=False)
    return batch
