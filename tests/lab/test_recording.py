from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lab.recording import Provenance, RecordingWriter, batches, read_recording
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

PROVENANCE = Provenance(
    project="lab",
    run="test",
    command="python -m lab.train --seed 3",
    seed=3,
    commit="abc1234",
    framework="lab",
    settings={"engine": "fp8", "world_size": 2},
)


def _batch(step: int, *, rank: int = 0, lengths: tuple[int, ...] = (3, 1, 5)) -> Batch:
    rng = np.random.default_rng([step, rank])
    tokens, sequences = sum(lengths), len(lengths)
    # Any float32 must survive, also those a policy never produces.
    infer = rng.integers(0, 2**32, tokens, np.uint32).view(np.float32)
    train = (-rng.exponential(size=tokens)).astype(np.float32)
    train[:2] = [-0.0, np.float32(-1e-45)]
    return Batch(
        meta=BatchMeta(
            step=step,
            rank=rank,
            world_size=2,
            train_version=2 * step,
            framework="lab",
            project="lab",
            run="test",
        ),
        offsets_B1=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        infer_logprobs_N=infer,
        train_logprobs_N=train,
        token_ids_N=rng.integers(0, 16, tokens, np.int32),
        advantage_B=rng.normal(size=sequences).astype(np.float32),
        reward_B=np.ones(sequences, np.float32),
        infer_version_B=np.full(sequences, 2 * step - 1, np.int64),
        seq_id=tuple(f"{step}-{row}" for row in range(sequences)),
        prompt_id=("a",) * sequences,
    )


def _same_bits(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())
    return type(left) is type(right) and repr(left) == repr(right)


def _write(path: Path, recorded: list[Batch]) -> None:
    with RecordingWriter(path, provenance=PROVENANCE) as writer:
        for batch in recorded:
            writer.batch(batch)
            writer.scalars(batch.meta.step, values={"reward": 0.5 + batch.meta.step})
        writer.event("weight_sync", step=7, payload={"version": 14})


def test_round_trip_is_bit_exact_and_keeps_the_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.parquet"
    recorded = [_batch(7, rank=1), _batch(7), _batch(2, lengths=(4,)), _batch(9, lengths=(0, 2))]
    _write(path, recorded)
    read = list(batches(path))
    assert [(b.meta.step, b.meta.rank) for b in read] == [(7, 1), (7, 0), (2, 0), (9, 0)]
    for before, after in zip(recorded, read, strict=True):
        assert after.check() == []
        for field in fields(Batch):
            assert _same_bits(getattr(before, field.name), getattr(after, field.name)), field.name


def test_metadata_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    _write(path, [_batch(0), _batch(1)])
    recording = read_recording(path)
    assert recording.provenance == PROVENANCE
    assert (recording.steps, recording.sequences) == (2, 6)
    assert recording.series("reward") == {0: 0.5, 1: 1.5}
    assert recording.series("eval_accuracy") == {}
    assert recording.events == [{"step": 7, "kind": "weight_sync", "payload": {"version": 14}}]


def test_one_row_group_per_batch(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    _write(path, [_batch(0), _batch(1, lengths=(2,) * 300)])
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 300]


def test_a_run_that_fails_leaves_no_file(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "run.parquet", provenance=PROVENANCE)
    writer.batch(_batch(0))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_batch_without_a_column_is_refused(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "run.parquet", provenance=PROVENANCE)
    with pytest.raises(ValueError, match="step 0: no token_ids"), writer:
        writer.batch(replace(_batch(0), token_ids_N=None))


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(ValueError, match="schema is None"):
        read_recording(path)
