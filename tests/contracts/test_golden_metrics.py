"""All metrics of fixed batches as they were when they were checked, and the bytes they were stored in.

A change of a value is a change of definition; bytes that are not read any more break every stored step of the version.
`python -m tests.contracts.test_golden_metrics` writes the metrics again, and with `bytes` the summary: say why in the
commit. The bytes of a frozen version are never written again.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, from_bytes, merge, schema, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.intervals import intervals
from tailwatch_service.statistics.slices import slices
from tests.contracts import summary_reader
from tests.oracles.compare import assert_close, assert_identical

GOLDEN = Path(__file__).parent / "golden"
METRICS = GOLDEN / f"summary_v{schema.SUMMARY_VERSION}.json"
BYTES = sorted(GOLDEN.glob("summary_v*.bin"))


def fixed_batch(part: int) -> Batch:
    """600 tokens in 30 sequences, by a formula: no generator whose stream may change."""
    n = np.arange(600) + 600 * part
    lengths = [4] * 10 + [16] * 10 + [40] * 10
    infer = -(((n * 7919) % 1009 + 1) / 1009) * 3.0 ** ((n % 5) - 2)
    d = np.sin(n * 1.7) ** 5 * 10.0 ** ((n % 7) / 2 - 3)
    infer32 = (infer - np.maximum(d, 0)).astype(np.float32)
    train32 = np.minimum(infer32 + d, 0).astype(np.float32)
    train32[50] = np.nan
    infer32[120] = 0.5
    p = np.exp(np.minimum(train32.astype(np.float64), 0.0))
    return Batch.from_arrays(
        BatchMeta(step=1, train_version=7, rank=part, part=3 * part),
        infer_logprobs=infer32,
        train_logprobs=train32,
        cu_seqlens=np.cumsum([0, *lengths]),
        mask=n % 11 != 3,
        mask_post=(n % 11 != 3) & (n % 13 != 4),
        entropy=((n % 17) / 8).astype(np.float32),
        infer_entropy=((n % 19) / 8).astype(np.float32),
        sum_p2_other=((1 - p) ** 2 / (1 + n % 3)).astype(np.float32),
        infer_version=[7 - i % 4 for i in range(30)],
        advantage=[(i % 3 - 1) / 2 for i in range(30)],
        reward=[float(i % 2) for i in range(30)],
        source=[("math", "code", "web \u00e9")[i % 3] for i in range(30)],
        replica=[f"engine-{i % 2 + part}" for i in range(30)],
        turn=np.minimum(n % 600 // 75, 9),
        token_ids=n % 997,
        train_token_ids=np.where(n % 101 == 7, 1, n % 997),
        seq_id=[f"s{part}-{i}" for i in range(30)],
    )


def fixed_summary() -> Summary:
    return merge(summarise(fixed_batch(part), sample=True) for part in range(2))


def written() -> dict[str, dict[str, float] | dict[str, str]]:
    found = metrics(fixed_summary())
    return {"values": found.values, "missing": found.missing}


def test_golden_metrics() -> None:
    golden = json.loads(METRICS.read_text())
    computed = metrics(fixed_summary())
    assert computed.missing == golden["missing"]
    assert set(computed.values) == set(golden["values"])
    for name, value in golden["values"].items():
        assert computed.values[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
        assert math.isfinite(value)
    # What it is made of reaches every family: nothing is left out but what no summary of two ranks has.
    assert len(golden["missing"]) <= 2


def test_there_is_a_golden_summary_of_this_version() -> None:
    assert GOLDEN / f"summary_v{schema.SUMMARY_VERSION}.bin" in BYTES


@pytest.mark.parametrize("path", BYTES, ids=lambda path: path.stem)
def test_golden_bytes_are_read_forever(path: Path) -> None:
    golden = json.loads(path.with_suffix(".json").read_text())["values"]
    summary = from_bytes(path.read_bytes())
    computed = metrics(summary).values
    for name, value in golden.items():
        assert computed[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    assert intervals(summary, computed).values["kl_k2"][0] > 0
    assert [row.label for row in slices(summary)["source"]] == ["code", "math", "web \u00e9"]
    assert_identical(from_bytes(to_bytes(summary)), summary)
    assert_close(summary, fixed_summary())


@pytest.mark.parametrize("path", BYTES, ids=lambda path: path.stem)
def test_what_is_read_is_written_the_same(path: Path) -> None:
    # zstd may pack the same payload differently from release to release.
    assert summary_reader.read(to_bytes(from_bytes(path.read_bytes()))) == summary_reader.read(path.read_bytes())


if __name__ == "__main__":
    METRICS.write_text(json.dumps(written(), indent=2, sort_keys=True) + "\n")
    if sys.argv[1:] == ["bytes"]:
        METRICS.with_suffix(".bin").write_bytes(to_bytes(fixed_summary()))
