"""Odd batches: every metric of the registry is a finite value or a reason, nothing warns, nothing raises, and what is
read beside the metrics (intervals, slices, envelope, what-if, worst tokens) holds as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, from_bytes, merge, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import headline, metrics
from tailwatch_service.statistics.corrections import CORRECTIONS
from tailwatch_service.statistics.envelope import envelope
from tailwatch_service.statistics.histogram import histogram, survival
from tailwatch_service.statistics.intervals import envelope_intervals, intervals
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.statistics.slices import slices
from tailwatch_service.statistics.whatif import what_if
from tailwatch_service.statistics.worst import worst_tokens

INF, NAN = math.inf, math.nan
TINY = float(np.float32(1e-45))
"""The smallest denormal float32."""


def flat(infer: Any, train: Any, *, lengths: Any = None, meta: dict[str, Any] | None = None, **columns: Any) -> Batch:
    infer32 = np.asarray(infer, np.float32)
    offsets = None if lengths is None else np.concatenate(([0], np.cumsum(lengths)))
    return Batch.from_arrays(
        BatchMeta(step=1, **(meta or {})),
        infer_logprobs=infer32,
        train_logprobs=np.asarray(train, np.float32),
        cu_seqlens=offsets,
        **columns,
    )


def ordinary(tokens: int, seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    infer = -rng.exponential(1.0, tokens)
    return infer, np.minimum(infer + rng.normal(0, 0.05, tokens), 0)


def pairs(*given: tuple[float, float]) -> tuple[list[float], list[float]]:
    return [infer for infer, _ in given], [train for _, train in given]


ODD: dict[str, Callable[[], Batch]] = {
    "no sequence": lambda: flat([], [], lengths=[]),
    "one empty sequence": lambda: flat([], [], lengths=[0]),
    "one token": lambda: flat([-1.0], [-1.5]),
    "one token, everything sent": lambda: flat(
        [-1.0], [-1.5], lengths=[1], meta={"train_version": 3}, infer_version=[1], advantage=[0.5], reward=[1.0],
        source=["a"], replica=["b"], seq_id=["c"], turn=np.array([0]), token_ids=np.array([5]),
        train_token_ids=np.array([5]), entropy=np.array([0.1], np.float32), infer_entropy=np.array([0.2], np.float32),
        sum_p2_other=np.array([0.01], np.float32), mask=np.array([True]), mask_post=np.array([False]),
    ),
    "two tokens of two sequences": lambda: flat([-1.0, -2.0], [-1.5, -1.0], lengths=[1, 1]),
    "32k tokens of one sequence": lambda: flat(*ordinary(32_768)),
    "all masked": lambda: flat(*ordinary(500), lengths=[250, 250], mask=np.zeros(500, bool)),
    "all rejected": lambda: flat(*ordinary(500), lengths=[250, 250], mask_post=np.zeros(500, bool)),
    "one sequence masked": lambda: flat(*ordinary(500), lengths=[250, 250], mask=np.arange(500) < 250),
    "all equal": lambda: flat(np.full(900, -1.0), np.full(900, -1.25), lengths=[300] * 3),
    "identical": lambda: flat(np.full(900, -1.0), np.full(900, -1.0), lengths=[300] * 3),
    "certain": lambda: flat(
        np.zeros(900), np.zeros(900), lengths=[300] * 3, sum_p2_other=np.zeros(900, np.float32)
    ),
    "minus zero": lambda: flat([-0.0, 0.0, -0.0, -1.0], [0.0, -0.0, -0.0, -1.0], lengths=[2, 2]),
    "denormals": lambda: flat([-TINY, 0.0, -TINY, -1e-40] * 50, [0.0, -TINY, -2 * TINY, 0.0] * 50, lengths=[100, 100]),
    "d of +-inf": lambda: flat(*pairs((-INF, -1.0), (-1.0, -INF), (-1.0, -1.0), (-INF, -INF)), lengths=[2, 2]),
    "all d infinite": lambda: flat([-INF] * 6, [-1.0] * 6, lengths=[3, 3]),
    "all nan": lambda: flat([NAN] * 6, [NAN] * 6, lengths=[3, 3]),
    "d of +-1e6": lambda: flat(*pairs((-1e6, -1.0), (-1.0, -1e6), *[(-1.0, -1.1)] * 400), lengths=[201, 201]),
    "only d of 1e6": lambda: flat([-1e6] * 400, [-1.0] * 400, lengths=[200, 200]),
    "d of 1e38": lambda: flat(*pairs((-3e38, -1.0), (-1.0, -3e38), (-1.0, -1.0)), lengths=[1, 1, 1]),
    "positive": lambda: flat([1.0, 2.0, 5e-4], [-1.0, -1.0, 5e-4], lengths=[2, 1]),
    "sums of +-1e5": lambda: flat(
        np.full(40_000, -10.0), np.repeat([-5.0, -15.0], 20_000), lengths=[20_000, 20_000]
    ),
    "lags of 1e9": lambda: flat(
        *ordinary(900), lengths=[300] * 3, meta={"train_version": 10**9}, infer_version=np.array([0, 1, 10**9])
    ),
    "negative lags": lambda: flat(
        *ordinary(900), lengths=[300] * 3, meta={"train_version": 5}, infer_version=np.array([6, 10**9, 7])
    ),
    "a version per token": lambda: flat(
        *ordinary(900), lengths=[300] * 3, meta={"train_version": 30}, infer_version=np.arange(900) % 31
    ),
    "10,000 sources": lambda: flat(
        *ordinary(20_000), lengths=[2] * 10_000, source=[f"source {n}" for n in range(10_000)]
    ),
    "names of any kind": lambda: flat(
        *ordinary(8), lengths=[2] * 4, source=["", "(other)", "\u00e9\U0001f600", "x" * 256],
        replica=["a.b", "0", "-1", "\t"],
    ),
    "advantages of any kind": lambda: flat(*ordinary(10), lengths=[2] * 5, advantage=[NAN, INF, -INF, -0.0, 1e-45]),
    "probabilities that are none": lambda: flat(
        *ordinary(6), lengths=[3, 3], sum_p2_other=np.array([NAN, -1.0, 7.0, INF, 0.0, 1e-45], np.float32)
    ),
    "entropies that are none": lambda: flat(
        *ordinary(6), lengths=[3, 3], entropy=np.array([NAN] * 6, np.float32), reward=[NAN, INF]
    ),
    "turns of any kind": lambda: flat(*ordinary(6), lengths=[3, 3], turn=np.array([-1, 0, 7, -(2**15), 2**15 - 1, 3])),
    "many short sequences": lambda: flat(*ordinary(5_000), lengths=[1] * 5_000),
    "one long among short": lambda: flat(*ordinary(21_000), lengths=[20_000, *[1] * 1_000]),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_everything_is_a_value_or_a_reason(odd: str) -> None:
    check(summarise(ODD[odd](), sample=True))


@pytest.mark.parametrize("odd", ODD)
def test_also_beside_an_ordinary_batch_and_through_bytes(odd: str) -> None:
    plain = summarise(flat(*ordinary(2_000, seed=5), lengths=[40] * 50, meta={"part": 1}))
    one = summarise(ODD[odd]())
    check(from_bytes(to_bytes(merge([one, plain, one]))))


def test_everything_at_once() -> None:
    check(merge(summarise(make()) for make in ODD.values()))


def check(summary: Summary) -> None:
    computed = metrics(summary)
    assert set(computed.values) | set(computed.missing) == set(METRICS)
    assert not set(computed.values) & set(computed.missing)
    assert all(map(math.isfinite, computed.values.values()))
    assert all(computed.missing.values())
    for name in computed.missing:
        assert METRICS[name].missing_when != "never", name
    assert headline(summary).items() <= computed.values.items()
    found = intervals(summary, computed.values)
    assert set(found.values) | set(found.missing) == set(computed.values)
    assert all(low <= high for low, high in found.values.values())
    assert all(found.missing.values())
    for rows in slices(summary).values():
        assert all(math.isfinite(value) for row in rows for value in row.metrics.values())
    for bin_, around in zip(envelope(summary), envelope_intervals(summary), strict=True):
        assert (bin_.tokens == 0) == math.isnan(bin_.p50)
        assert isinstance(around.p50, str) or around.p50[0] <= bin_.p50 <= around.p50[1]
    for name in CORRECTIONS:
        outcome = what_if(summary, name)
        if not isinstance(outcome, str):
            shares = (outcome.share, outcome.token_share, outcome.ess_before, outcome.ess_after or 0.0)
            assert all(0.0 <= share <= 1.0 + 1e-12 for share in shares), (name, shares)
    histogram(summary)
    survival(summary)
    assert all(math.isfinite(token.log_ratio) for token in worst_tokens(summary))


WHEN = {
    "no valid tokens": "all masked",
    "no complete sequences": "all nan",
    "weight versions were not sent": "all equal",
    "every log ratio is 0": "identical",
    "the trainer sent no sum_p2_other": "all equal",
    "no token whose score is above rounding": "certain",
    "the trainer sent no entropies": "entropies that are none",
    "the trainer sent no rewards": "entropies that are none",
    "token ids were not sent by both sides": "one token",
    "mask_post was not sent": "one token",
    "the probabilities do not vary": "identical",
    "exceeds float64": "only d of 1e6",
    "no tokens in the mask": "all masked",
    "no tokens received": "one empty sequence",
    "no token is at lag 0": "one token, everything sent",
}


@pytest.mark.parametrize("reason", WHEN)
def test_reasons_are_given_where_they_hold(reason: str) -> None:
    assert reason in metrics(summarise(ODD[WHEN[reason]]())).missing.values()
