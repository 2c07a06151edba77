"""Data quality: each planted fault is counted once and summed nowhere; alignment finds planted shifts and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import from_bytes, merge, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import Computed, metrics

NAN, INF = float("nan"), float("inf")


def computed(infer: list[Any], train: list[Any], *, meta: BatchMeta | None = None, **columns: Any) -> Computed:
    batch = Batch.from_arrays(meta or BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train, **columns)
    return metrics(summarise(batch))


def test_planted_faults_are_counted_and_not_summed() -> None:
    infer = [[-1.0, NAN, -INF, -1.0, -1.0, 0.5], [-1.0, 5e-4, 0.0, -1.0], [-1.0, -1.0], []]
    train = [[-1.5, -1.0, -1.0, INF, 2.0, -1.0], [-1.0, -0.25, -3.0, 0.0], [-9.0, NAN], []]
    mask = [[True] * 6, [True] * 4, [False, False], []]
    found = computed(infer, train, mask=mask, seq_id=["a", "b", "a", "a"])
    expected = {
        "tokens": 5,
        "tokens_total": 12,
        "sequences": 2,
        "sequences_incomplete": 1,
        "sequences_empty": 2,
        "tokens_nonfinite_infer": 2,
        "tokens_nonfinite_train": 1,
        "tokens_positive": 1,
        "tokens_invalid_positive": 2,
        "seq_ids_duplicate": 2,
        "tokens_outside_grid": 0,
        "invalid_share": 0.5,
        "masked_share": 2 / 12,
        "identical_share": 1 / 5,
        "zero_filler_share": 2 / 5,
    }
    assert {name: found.values[name] for name in expected} == expected
    d = np.array([-0.5, 0.0, float(np.float32(-0.25)) - float(np.float32(5e-4)), -3.0, 1.0])
    assert found.values["log_ratio_mean"] == pytest.approx(d.mean(), rel=1e-14)
    assert found.values["log_ratio_min"] == -3
    assert found.missing["rejected_share"] == "mask_post was not sent"


def test_nothing_valid() -> None:
    found = computed([[NAN, 3.0]], [[-1.0, -1.0]])
    assert found.values["tokens"] == 0
    assert found.values["invalid_share"] == 1
    assert found.missing["kl_k3"] == "no valid tokens"
    assert found.missing["ess_sequence"] == "no complete sequences"


def test_rejection_masks() -> None:
    found = computed(
        [[-1.0] * 4], [[-1.0] * 4], mask=[[True, True, True, False]], mask_post=[[True, False, False, True]]
    )
    assert found.values["rejected_share"] == 2 / 3
    assert found.values["tokens_post_outside"] == 1


def test_beyond_the_grid() -> None:
    found = computed([[-(2.0**21), -1.0, -(2.0**20)]], [[-1.0, -(2.0**20), 0.0]])
    assert found.values["tokens_outside_grid"] == 2
    assert found.values["log_ratio_max"] == 2**21 - 1


def test_lags() -> None:
    versions = [9, 9, 7, 4, 12]
    found = computed(
        [[-1.0]] * 5, [[-1.0]] * 5, infer_version=[[v] for v in versions], meta=BatchMeta(step=1, train_version=10)
    )
    assert found.values["lag_mean"] == (1 + 1 + 3 + 6) / 4
    assert found.values["lag_max"] == 6
    assert found.values["lag_p95"] == 6
    assert found.values["lag_negative_share"] == 1 / 5
    for columns, meta in (({}, BatchMeta(step=1, train_version=10)), ({"infer_version": 3}, BatchMeta(step=1))):
        unknown = computed([[-1.0]], [[-1.0]], meta=meta, **columns)
        assert unknown.missing["lag_mean"] == "weight versions were not sent"
        assert unknown.values["lag_negative_share"] == 0


def test_the_oldest_lag_of_a_sequence_is_that_of_its_oldest_weights() -> None:
    meta = BatchMeta(step=1, train_version=10)
    rows = [[-1.0] * 4, [-1.0] * 3, [-1.0] * 2]
    mask = [[True, True, True, False], [True] * 3, [True] * 2]
    # A masked token does not count, nor does one from the future.
    found = computed(rows, rows, mask=mask, infer_version=[[9, 8, 6, 1], [10, 10, 12], [11, 12]], meta=meta)
    assert found.values["lag_oldest_mean"] == (4 + 0) / 2
    assert found.values["lag_mean"] == (1 + 2 + 4 + 0 + 0) / 5
    by_sequence = computed(rows, rows, infer_version=[9, 7, 12], meta=meta)
    assert by_sequence.values["lag_oldest_mean"] == (1 + 3) / 2
    assert computed(rows, rows).missing["lag_oldest_mean"] == "weight versions were not sent"


def test_enormous_lags_do_not_wrap() -> None:
    tokens = [[-1.0] * 3_000]
    found = computed(tokens, tokens, infer_version=0, meta=BatchMeta(step=1, train_version=2**53 - 1))
    assert found.values["lag_mean"] == pytest.approx(2**53)
    versions = [[-1] * 3_000]
    batch = Batch.from_arrays(
        BatchMeta(step=1, train_version=2**53 - 1), infer_logprobs=tokens, train_logprobs=tokens, infer_version=versions
    )
    for backend in ("numpy", "numba"):
        kept = from_bytes(to_bytes(summarise(batch, backend=backend)))
        assert metrics(kept).values["lag_oldest_mean"] == pytest.approx(2**53)


def shifted(shift: int, *, noise: float = 0.1, sequences: int = 40, length: int = 90) -> Computed:
    """Training log-probs that stand `shift` tokens later than the inference ones of the same token."""
    rng = np.random.default_rng(shift + 10)
    infer = -rng.exponential(1, (sequences, length)) - 1
    train = np.roll(infer, shift, axis=1) + rng.normal(0, noise, infer.shape)
    return metrics(
        summarise(Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=np.minimum(train, 0)))
    )


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_alignment_finds_a_planted_shift(shift: int) -> None:
    found = shifted(shift)
    assert found.values["align_lag"] == shift
    assert found.values["align_corr"] > 0.95


def test_alignment_is_kept_where_a_shift_explains_nothing() -> None:
    assert shifted(2, noise=3.0).values["align_lag"] == 0
    assert shifted(5).values["align_lag"] == 0
    rng = np.random.default_rng(1)
    smooth = -2 - np.cumsum(rng.normal(0, 0.05, (30, 64)), axis=1) ** 2
    found = computed(list(smooth), list(np.roll(smooth, 1, axis=1) + rng.normal(0, 0.1, smooth.shape) - 0.5))
    assert found.values["align_lag"] == 0


def test_alignment_adds_up_over_batches_and_needs_pairs() -> None:
    rng = np.random.default_rng(2)

    def part() -> Any:
        infer = -rng.exponential(1, (5, 8)) - 1
        train = np.roll(infer, 1, axis=1)
        return summarise(Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train))

    parts = [part() for _ in range(4)]
    assert "under 50 pairs" in metrics(parts[0]).missing["align_lag"]
    assert metrics(merge(parts)).values["align_lag"] == 1


def test_alignment_of_constant_log_probs_does_not_exist() -> None:
    found = computed([[-1.0] * 100], [[-1.1] * 100])
    assert "that vary" in found.missing["align_corr"]


def test_alignment_against_numpy() -> None:
    rng = np.random.default_rng(3)
    infer = (-rng.exponential(1, (7, 70)) - 1).astype(np.float32)
    train = np.minimum(infer + rng.normal(0, 0.5, infer.shape), 0).astype(np.float32)
    head = np.corrcoef(infer[:, :64].ravel().astype(np.float64), train[:, :64].ravel().astype(np.float64))[0, 1]
    assert computed(list(infer), list(train)).values["align_corr"] == pytest.approx(head, rel=1e-10)


def test_agreement_of_token_ids_is_over_the_tokens_that_count() -> None:
    ids: dict[str, Any] = {"token_ids": [[1, 2, 3, 4, 5]], "train_token_ids": [[1, 7, 8, 4, 9]]}
    mask = [[True, True, False, True, True]]
    found = computed([[-1.0] * 4 + [NAN]], [[-1.0] * 5], mask=mask, **ids)
    assert found.values["token_id_mismatch_share"] == 1 / 3
    for name, value in ids.items():
        alone = computed([[-1.0] * 5], [[-1.0] * 5], **{name: value})
        assert alone.missing["token_id_mismatch_share"] == "token ids were not sent by both sides"


def test_agreement_of_token_ids_merges_with_batches_that_sent_none() -> None:
    sent = Batch.from_arrays(
        BatchMeta(step=1),
        infer_logprobs=[[-1.0, -1.0]],
        train_logprobs=[[-1.0, -1.0]],
        token_ids=[[1, 2]],
        train_token_ids=[[1, 3]],
    )
    silent = Batch.from_arrays(BatchMeta(step=1, part=1), infer_logprobs=[[-1.0]], train_logprobs=[[-1.0]])
    found = metrics(merge([summarise(sent), summarise(silent)]))
    assert found.values["token_id_mismatch_share"] == 0.5
