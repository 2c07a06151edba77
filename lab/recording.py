"""Recordings: all log-probs of a run in one Parquet file, bit for bit, with what is needed to make it again.

One row per sequence in sampling order, one row group per batch in the order in which they were recorded; scalars,
events and provenance in the file's key-value metadata. `lab/recordings/README.md` is the format's description: the
replay in the service reads it from there, without this module. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

SCHEMA = "1"
"""Version of the file layout."""

_COLUMNS = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("train_version", pa.int64(), nullable=False),
        pa.field("infer_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("train_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("infer_version", pa.int64(), nullable=False),
        pa.field("seq_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
    ]
)
_LOGPROBS = ("infer_logprobs.list.element", "train_logprobs.list.element")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a recording comes from: enough to make it again."""

    project: str
    """Project the run belongs to."""
    run: str
    """Name of the run."""
    command: str
    """Command line, from the repository root, that makes this file."""
    seed: int
    """Seed of the run."""
    commit: str
    """Short hash of the commit whose code ran."""
    framework: str
    """Name of the trainer, as sent live."""
    settings: Mapping[str, Any]
    """What the run was told, and what the service wants to know of it (precision, world_size, ...)."""


class RecordingWriter:
    """A sink that writes a recording. The file appears when the run is over; a run that fails leaves none."""

    def __init__(self, path: Path, *, provenance: Provenance) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._provenance = provenance
        self._scalars: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._writer = pq.ParquetWriter(
            self._partial,
            _COLUMNS,
            compression="zstd",
            compression_level=19,
            use_dictionary=["token_ids.list.element"],
            column_encoding=dict.fromkeys(_LOGPROBS, "BYTE_STREAM_SPLIT"),
            write_statistics=["step"],
        )

    def batch(self, batch: Batch) -> None:
        """Write one batch as one row group.

        Raises:
            ValueError: the batch lacks a column; a recording has them all.
        """
        self._writer.write_table(_table(batch), row_group_size=max(batch.sequences, 1))

    def scalars(self, step: int, *, values: Mapping[str, float]) -> None:
        """Keep the scalars of one step."""
        self._scalars.append({"step": step, "values": dict(values)})

    def event(self, kind: str, *, step: int, payload: Mapping[str, Any]) -> None:
        """Keep one event."""
        self._events.append({"step": step, "kind": kind, "payload": dict(payload)})

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._writer.add_key_value_metadata(self._metadata())
        self._writer.close()
        if error is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def _metadata(self) -> dict[str, str]:
        origin = self._provenance
        return {
            "schema": SCHEMA,
            "project": origin.project,
            "run": origin.run,
            "command": origin.command,
            "seed": str(origin.seed),
            "commit": origin.commit,
            "framework": origin.framework,
            "settings": json.dumps(dict(origin.settings)),
            "scalars": json.dumps(self._scalars),
            "events": json.dumps(self._events),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What a recording says about itself; its tokens come from `batches`."""

    provenance: Provenance
    """Where it comes from."""
    scalars: list[dict[str, Any]]
    """`{"step": .., "values": {name: number}}`, in recorded order."""
    events: list[dict[str, Any]]
    """`{"step": .., "kind": .., "payload": {..}}`, in recorded order."""
    steps: int
    """Number of batches."""
    sequences: int
    """Number of rows."""

    def series(self, name: str) -> dict[int, float]:
        """One scalar by step; steps at which it was not measured are absent."""
        return {row["step"]: row["values"][name] for row in self.scalars if name in row["values"]}


def read_recording(path: Path) -> Recording:
    """Read the metadata of a recording.

    Raises:
        ValueError: the file is not a recording of this schema.
    """
    with pq.ParquetFile(path) as file:
        return _recording(file, path)


def batches(path: Path) -> Iterator[Batch]:
    """Yield the batches of a recording in recorded order, bit for bit as they were recorded."""
    with pq.ParquetFile(path) as file:
        recording = _recording(file, path)
        for row_group in range(file.num_row_groups):
            yield _batch(file.read_row_group(row_group), recording.provenance)


def _recording(file: Any, path: Path) -> Recording:
    metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
    if metadata.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema is {metadata.get('schema')!r}, expected {SCHEMA!r}")
    provenance = Provenance(
        project=metadata["project"],
        run=metadata["run"],
        command=metadata["command"],
        seed=int(metadata["seed"]),
        commit=metadata["commit"],
        framework=metadata["framework"],
        settings=json.loads(metadata["settings"]),
    )
    return Recording(
        provenance=provenance,
        scalars=json.loads(metadata["scalars"]),
        events=json.loads(metadata["events"]),
        steps=file.num_row_groups,
        sequences=file.metadata.num_rows,
    )


def _table(batch: Batch) -> pa.Table:
    per_batch = {
        "step": batch.meta.step,
        "rank": batch.meta.rank,
        "train_version": batch.meta.train_version,
    }
    per_token = {
        "infer_logprobs": batch.infer_logprobs_N,
        "train_logprobs": batch.train_logprobs_N,
        "token_ids": batch.token_ids_N,
    }
    per_sequence = {
        "advantage": batch.advantage_B,
        "reward": batch.reward_B,
        "infer_version": batch.infer_version_B,
        "seq_id": batch.seq_id,
        "prompt_id": batch.prompt_id,
    }
    given: dict[str, Any] = per_batch | per_token | per_sequence
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"step {batch.meta.step}: no {', '.join(missing)}; a recording has every column")
    offsets = pa.array(batch.offsets_B1.astype(np.int32))
    columns = {name: np.full(batch.sequences, value) for name, value in per_batch.items()}
    columns |= {name: pa.ListArray.from_arrays(offsets, value) for name, value in per_token.items()}
    return pa.table(columns | per_sequence, schema=_COLUMNS)


def _batch(table: pa.Table, provenance: Provenance) -> Batch:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    infer = columns["infer_logprobs"]
    meta = BatchMeta(
        step=columns["step"][0].as_py(),
        rank=columns["rank"][0].as_py(),
        world_size=provenance.settings["world_size"],
        train_version=columns["train_version"][0].as_py(),
        framework=provenance.framework,
        project=provenance.project,
        run=provenance.run,
    )
    return Batch(
        meta=meta,
        offsets_B1=infer.offsets.to_numpy().astype(np.int64),
        infer_logprobs_N=infer.values.to_numpy(),
        train_logprobs_N=columns["train_logprobs"].values.to_numpy(),
        token_ids_N=columns["token_ids"].values.to_numpy(),
        advantage_B=columns["advantage"].to_numpy(),
        reward_B=columns["reward"].to_numpy(),
        infer_version_B=columns["infer_version"].to_numpy(),
        seq_id=tuple(columns["seq_id"].to_pylist()),
        prompt_id=tuple(columns["prompt_id"].to_pylist()),
    )
