from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.errors import SettingsError
from tailwatch_service.replay import Progress, batches, open_recording, replay
from tailwatch_service.storage import events, runs, scalars, steps
from tests.service.served import Served, serve

STEPS = 5


def write_recording(path: Path, *, ranks: int = 1, schema: str = "1") -> list[Batch]:
    """A recording of a few steps, and the batches it was made of."""
    rng = np.random.default_rng(3)
    made: list[Batch] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for step in range(STEPS):
        for rank in range(ranks):
            lengths = rng.integers(1, 30, 6)
            N = int(lengths.sum())
            infer = -rng.exponential(1.0, N).astype(np.float32)
            train = (infer + rng.normal(0, 0.1, N)).astype(np.float32)
            offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            ids = rng.integers(0, 12, N).astype(np.int32)
            advantage = rng.normal(size=6).astype(np.float32)
            made.append(
                Batch.from_arrays(
                    BatchMeta(step=step, rank=rank, world_size=ranks, train_version=step),
                    infer_logprobs=infer,
                    train_logprobs=train,
                    cu_seqlens=offsets.astype(np.int64),
                    token_ids=ids,
                    advantage=advantage,
                    infer_version=np.full(6, max(0, step - 1), np.int64),
                    seq_id=[f"{step}-{i}" for i in range(6)],
                )
            )
            table = pa.table(
                {
                    "step": np.full(6, step, np.int64),
                    "rank": np.full(6, rank, np.int32),
                    "train_version": np.full(6, step, np.int64),
                    "infer_logprobs": pa.ListArray.from_arrays(offsets, infer),
                    "train_logprobs": pa.ListArray.from_arrays(offsets, train),
                    "token_ids": pa.ListArray.from_arrays(offsets, ids),
                    "advantage": advantage,
                    "infer_version": np.full(6, max(0, step - 1), np.int64),
                    "seq_id": [f"{step}-{i}" for i in range(6)],
                }
            )
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    assert writer is not None
    writer.add_key_value_metadata(
        {
            "schema": schema,
            "project": "lab",
            "run": "small",
            "framework": "lab",
            "settings": json.dumps({"world_size": ranks, "precision": "fp8", "lr": 1e-3}),
            "scalars": json.dumps([{"step": step, "values": {"reward": step / 4}} for step in range(STEPS)]),
            "events": json.dumps([{"step": 2, "kind": "weight_sync", "payload": {"version": 2}}]),
        }
    )
    writer.close()
    return made


def the_run(served: Served) -> Any:
    run = runs.find(served.services.db, project="lab", name="small", now=0.0)
    assert run is not None
    return run


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_replay_gives_the_summaries_of_the_live_run_bit_for_bit(tmp_path: Path, ranks: int) -> None:
    live = write_recording(tmp_path / "r.parquet", ranks=ranks)
    seen: list[Progress] = []
    with serve(tmp_path / "data") as served:
        outcome = replay(open_recording(tmp_path / "r.parquet"), url=served.url, progress=seen.append)

        assert outcome.lost == 0
        assert outcome.batches == STEPS * ranks
        run = the_run(served)
        assert run.spec.precision == "fp8"
        assert run.state == "finished"
        deadline = threading.Event()
        for step in range(STEPS):
            for _ in range(500):
                found = steps.get(served.services.db, run.run_id, step=step)
                if found is not None and found.closed:
                    break
                deadline.wait(0.02)
            assert found is not None
            parts = [summaries.summarise(batch) for batch in live if batch.meta.step == step]
            expected = summaries.to_bytes(summaries.merge(parts))
            assert found.summary == expected
        assert scalars.latest(served.services.db, run.run_id)["reward"] == (STEPS - 1, 1.0)
        kinds = [event.kind for event in events.last(served.services.db, run.run_id)]
        assert kinds.count("weight_sync") == 1
        assert [progress.done for progress in seen] == list(range(1, STEPS * ranks + 1))


def test_a_replay_can_be_broken_off(tmp_path: Path) -> None:
    write_recording(tmp_path / "r.parquet")
    stop = threading.Event()
    with serve(tmp_path / "data") as served:

        def break_off(_progress: object) -> None:
            deadline = time.monotonic() + 60.0
            while runs.find(served.services.db, project="mine", name="other", now=0.0) is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            stop.set()

        outcome = replay(
            open_recording(tmp_path / "r.parquet"),
            url=served.url,
            run="other",
            project="mine",
            steps_per_second=0.2,
            stop=stop,
            progress=break_off,
        )

        assert outcome.run == "other"
        run = runs.find(served.services.db, project="mine", name="other", now=0.0)
        assert run is not None
        assert run.state != "finished"


def test_the_columns_are_those_of_the_recording(tmp_path: Path) -> None:
    live = write_recording(tmp_path / "r.parquet")

    first = next(batches(open_recording(tmp_path / "r.parquet")))

    assert set(first) == {
        "step", "rank", "train_version", "cu_seqlens", "infer_logprobs", "train_logprobs", "token_ids", "advantage",
        "infer_version", "seq_id",
    }  # fmt: skip
    np.testing.assert_array_equal(first["infer_logprobs"], live[0].infer_logprobs_N)


def test_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        open_recording(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(SettingsError, match="is not a recording"):
        open_recording(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain.parquet")
    with pytest.raises(SettingsError, match="schema is None"):
        open_recording(tmp_path / "plain.parquet")
    write_recording(tmp_path / "newer.parquet", schema="2")
    with pytest.raises(SettingsError, match="schema is '2'"):
        open_recording(tmp_path / "newer.parquet")
