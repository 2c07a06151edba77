"""All metrics of one fixed batch, as they were when they were checked: a change here is a change of definition.

`python -m tests.contracts.test_golden_metrics` writes the file again; say why in the commit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics

GOLDEN = Path(__file__).with_name("golden_metrics_v0.json")


def fixed_batch() -> Batch:
    """600 tokens in 30 sequences, by a formula: no generator whose stream may change."""
    n = np.arange(600)
    lengths = [4] * 10 + [16] * 10 + [40] * 10
    infer = -(((n * 7919) % 1009 + 1) / 1009) * 3.0 ** ((n % 5) - 2)
    d = np.sin(n * 1.7) ** 5 * 10.0 ** ((n % 7) / 2 - 3)
    infer32 = (infer - np.maximum(d, 0)).astype(np.float32)
    train32 = np.minimum(infer32 + d, 0).astype(np.float32)
    train32[50] = np.nan
    infer32[120] = 0.5
    return Batch.from_arrays(
        BatchMeta(step=1, train_version=7),
        infer_logprobs=infer32,
        train_logprobs=train32,
        cu_seqlens=np.cumsum([0, *lengths]),
        mask=n % 11 != 3,
        mask_post=(n % 11 != 3) & (n % 13 != 4),
        entropy=((n % 17) / 8).astype(np.float32),
        infer_entropy=((n % 19) / 8).astype(np.float32),
        infer_version=[7 - i % 4 for i in range(30)],
        advantage=[(i % 3 - 1) / 2 for i in range(30)],
        reward=[float(i % 2) for i in range(30)],
    )


def test_golden_metrics() -> None:
    golden = json.loads(GOLDEN.read_text())
    computed = metrics(summarise(fixed_batch()))
    assert computed.missing == golden["missing"]
    assert set(computed.values) == set(golden["values"])
    for name, value in golden["values"].items():
        assert computed.values[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
        assert math.isfinite(value)


if __name__ == "__main__":
    found = metrics(summarise(fixed_batch()))
    GOLDEN.write_text(json.dumps({"values": found.values, "missing": found.missing}, indent=2, sort_keys=True) + "\n")
