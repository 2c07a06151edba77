"""Capture: every layout, type and oddity a trainer hands over becomes the batch it means, or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tailwatch_collectors.arena import Arena
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.capture import Capture, capture
from tailwatch_collectors.device import Devices
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.types import BatchMeta

RNG = np.random.default_rng(3)
B, T = 4, 6
LENGTHS = np.array([6, 3, 0, 1])
MASK_BT = np.arange(T)[None] < LENGTHS[:, None]
INFER_BT = np.where(MASK_BT, -RNG.random((B, T)), 0.0).astype(np.float32)
TRAIN_BT = np.where(MASK_BT, -RNG.random((B, T)), 0.0).astype(np.float32)


def _capture(arena: Arena | None = None, **arguments: Any) -> Capture:
    return capture(BatchMeta(step=1), arena=arena or Arena(keep=2**20), devices=Devices(), **arguments)


def _batch(**arguments: Any) -> Batch:
    return _capture(**arguments).batch()


def _same(batch: Batch, infer: Any = INFER_BT, train: Any = TRAIN_BT) -> bool:
    rows = [row[:length] for row, length in zip(np.asarray(infer, np.float32), LENGTHS, strict=True)]
    others = [row[:length] for row, length in zip(np.asarray(train, np.float32), LENGTHS, strict=True)]
    return (
        batch.lengths_B.tolist() == LENGTHS.tolist()
        and np.array_equal(batch.infer_logprobs_N, np.concatenate(rows), equal_nan=True)
        and np.array_equal(batch.train_logprobs_N, np.concatenate(others), equal_nan=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_arrives_with_the_value_it_had(dtype: torch.dtype) -> None:
    infer, train = torch.from_numpy(INFER_BT).to(dtype), torch.from_numpy(TRAIN_BT).to(dtype)
    batch = _batch(infer_logprobs=infer, train_logprobs=train, mask=torch.from_numpy(MASK_BT))

    assert _same(batch, infer.float().numpy(), train.float().numpy())
    assert batch.infer_logprobs_N.dtype == np.float32


def test_float8_arrives_too() -> None:
    infer = torch.from_numpy(INFER_BT).to(torch.float8_e4m3fn)
    batch = _batch(infer_logprobs=infer, train_logprobs=TRAIN_BT, mask=MASK_BT)

    assert _same(batch, infer.float().numpy())


def test_bfloat16_extremes_keep_their_bits() -> None:
    values = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, -1e-40]).bfloat16()
    batch = _batch(infer_logprobs=values, train_logprobs=values)

    assert np.array_equal(batch.infer_logprobs_N.view(np.uint32), values.float().numpy().view(np.uint32))


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int32, np.int64, np.uint8, np.float32])
def test_masks_of_any_numbers(dtype: Any) -> None:
    batch = _batch(infer_logprobs=INFER_BT, train_logprobs=TRAIN_BT, mask=MASK_BT.astype(dtype))

    assert _same(batch)
    assert batch.mask_N is not None
    assert batch.mask_N.dtype == np.bool_
    assert batch.mask_N.all()


def test_tensors_that_are_not_contiguous_or_need_gradients() -> None:
    wide = torch.zeros(T, 2 * B, dtype=torch.float32)
    wide[:, ::2] = torch.from_numpy(INFER_BT.T)
    infer = wide[:, ::2].T
    assert not infer.is_contiguous()
    train = torch.from_numpy(TRAIN_BT).requires_grad_() * 1.0
    sliced = np.repeat(MASK_BT, 2, axis=1)[:, ::2]

    assert _same(_batch(infer_logprobs=infer, train_logprobs=train, mask=sliced))


def test_parameters_and_read_only_arrays() -> None:
    frozen = INFER_BT.copy()
    frozen.flags.writeable = False
    batch = _batch(infer_logprobs=frozen, train_logprobs=torch.nn.Parameter(torch.from_numpy(TRAIN_BT)), mask=MASK_BT)

    assert _same(batch)


def test_left_padding() -> None:
    left = np.zeros_like(INFER_BT)
    mask = np.zeros_like(MASK_BT)
    for row, length in enumerate(LENGTHS):
        left[row, T - length :] = INFER_BT[row, :length]
        mask[row, T - length :] = True
    batch = _batch(infer_logprobs=left, train_logprobs=left, mask=mask, padding="left")

    assert _same(batch, train=INFER_BT)


def test_ragged_lists_of_arrays_tensors_and_numbers() -> None:
    rows = [INFER_BT[0], torch.from_numpy(INFER_BT[1, :3]), [], [float(INFER_BT[3, 0])]]
    batch = _batch(infer_logprobs=rows, train_logprobs=rows)

    assert _same(batch, train=INFER_BT)


@pytest.mark.parametrize("empty", [np.empty((0, 4), np.float32), np.empty((3, 0), np.float32), np.empty(0), []])
def test_empty(empty: Any) -> None:
    taken = _capture(infer_logprobs=empty, train_logprobs=empty)
    batch = taken.batch()

    assert batch.tokens == 0
    assert taken.sequences == batch.sequences


def test_what_is_not_finite_passes_for_the_summary_to_count() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -1.0, 1e300])
    batch = _batch(infer_logprobs=values, train_logprobs=values)

    assert np.isnan(batch.infer_logprobs_N[0])
    assert np.isinf(batch.infer_logprobs_N[[1, 2, 4]]).all()


def test_a_float64_beyond_float32_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    _batch(infer_logprobs=np.array([-1e300]), train_logprobs=np.array([-1.0]))

    assert len(recwarn) == 0


@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_the_trainer_may_overwrite_everything_at_once(kind: str) -> None:
    given: dict[str, Any] = {
        "infer_logprobs": INFER_BT.copy(),
        "train_logprobs": TRAIN_BT.copy(),
        "mask": MASK_BT.copy(),
        "reward": np.ones(B, np.float32),
        "token_ids": np.arange(B * T).reshape(B, T),
    }
    if kind != "numpy":
        given = {name: torch.from_numpy(value) for name, value in given.items()}
    if kind == "bfloat16":
        given["infer_logprobs"] = given["infer_logprobs"].bfloat16()
    expected = given["infer_logprobs"].float().numpy().copy() if kind == "bfloat16" else INFER_BT
    taken = _capture(**given)
    for value in given.values():
        value[...] = 0
    batch = taken.batch()

    assert _same(batch, infer=expected)
    assert batch.reward_B is not None
    assert batch.reward_B.tolist() == [1.0] * B
    assert batch.token_ids_N is not None
    assert batch.token_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 18]


def test_memory_comes_back_and_only_then_is_used_again() -> None:
    arena = Arena(keep=2**20)
    first = _capture(arena, infer_logprobs=INFER_BT, train_logprobs=TRAIN_BT, mask=MASK_BT)
    second = _capture(arena, infer_logprobs=-INFER_BT, train_logprobs=TRAIN_BT, mask=MASK_BT)
    assert _same(first.batch())
    first.release()
    first.release()
    assert arena.nbytes > 0
    _capture(arena, infer_logprobs=INFER_BT * 7, train_logprobs=TRAIN_BT, mask=MASK_BT)

    assert _same(second.batch(), infer=-INFER_BT)


@pytest.mark.parametrize(
    ("wrong", "column"),
    [
        ({"train_logprobs": TRAIN_BT[:, :2]}, "train_logprobs"),
        ({"train_logprobs": None}, "train_logprobs"),
        ({"infer_logprobs": np.zeros((2, 2, 2))}, "infer_logprobs"),
        ({"infer_logprobs": np.array(["a"])}, "infer_logprobs"),
        ({"infer_logprobs": object()}, "infer_logprobs"),
        ({"infer_logprobs": 3.0}, "infer_logprobs"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_shapes_and_names_show_is_refused_at_once(wrong: dict[str, Any], column: str) -> None:
    arguments: dict[str, Any] = {"infer_logprobs": INFER_BT, "train_logprobs": TRAIN_BT}
    with pytest.raises(BatchError, match=column):
        _capture(**(arguments | wrong))


@pytest.mark.parametrize(
    ("wrong", "column"),
    [
        ({"mask": MASK_BT[:2]}, "mask"),
        ({"lengths": [7, 1, 1, 1]}, "lengths"),
        ({"token_ids": np.full((B, T), 2**40)}, "token_ids"),
        ({"token_ids": np.full((B, T), 0.5)}, "token_ids"),
        ({"reward": [1.0]}, "reward"),
        ({"source": ["a"]}, "source"),
        ({"seq_id": ["x\0"] * B}, "seq_id"),
    ],
)
def test_what_only_the_values_show_is_refused_later(wrong: dict[str, Any], column: str) -> None:
    taken = _capture(infer_logprobs=INFER_BT, train_logprobs=TRAIN_BT, **wrong)
    with pytest.raises(BatchError, match=column):
        taken.batch()


def test_a_tensor_that_is_no_array_is_refused() -> None:
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 0), torch.zeros(0), (B, T), check_invariants=True)
    with pytest.raises(BatchError, match="train_logprobs"):
        _capture(infer_logprobs=INFER_BT, train_logprobs=sparse)


def test_strings_and_numbers_are_taken_as_they_are_now() -> None:
    names = ["a", "b", "c", "d"]
    taken = _capture(infer_logprobs=INFER_BT, train_logprobs=TRAIN_BT, seq_id=names, source="x", infer_version=3)
    names[0] = "changed"
    batch = taken.batch()

    assert batch.seq_id == ("a", "b", "c", "d")
    assert batch.source == ("x",) * B
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [3] * B
