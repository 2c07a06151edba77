"""Batch: the same tokens in whatever layout, and errors that name the column and both lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tailwatch_collectors.batch import SEQUENCE_DTYPES, TOKEN_DTYPES, Batch, check_meta
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.types import MAX_RANK, MAX_STEP, BatchMeta

META = BatchMeta(step=1)
LENGTHS = (3, 0, 5, 1)
INFER = [np.linspace(-1, -0.25, n, dtype=np.float32) for n in LENGTHS]
TRAIN = [row - np.float32(0.125) for row in INFER]
FLAT_INFER, FLAT_TRAIN = np.concatenate(INFER), np.concatenate(TRAIN)
CU_SEQLENS = np.array([0, 3, 3, 8, 9])


def padded(rows: list[np.ndarray[Any, Any]], *, left: bool = False, fill: float = 7.0, width: int = 6) -> Any:
    array = np.full((len(rows), width), fill, np.asarray(rows[0]).dtype)
    for row, values in enumerate(rows):
        array[row, width - len(values) if left else 0 : width if left else len(values)] = values
    return array


def assert_same_tokens(batch: Batch) -> None:
    assert batch.offsets_B1.tolist() == CU_SEQLENS.tolist()
    assert batch.infer_logprobs_N.dtype == batch.train_logprobs_N.dtype == np.float32
    np.testing.assert_array_equal(batch.infer_logprobs_N, FLAT_INFER)
    np.testing.assert_array_equal(batch.train_logprobs_N, FLAT_TRAIN)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("as_torch", [False, True])
def test_padded_by_lengths(left: bool, as_torch: bool) -> None:
    infer, train = padded(INFER, left=left), padded(TRAIN, left=left)
    if as_torch:
        infer, train = torch.tensor(infer, requires_grad=True), torch.tensor(train)
    batch = Batch.from_arrays(
        META, infer_logprobs=infer, train_logprobs=train, lengths=LENGTHS, padding="left" if left else "right"
    )
    assert_same_tokens(batch)
    assert (batch.sequences, batch.tokens, batch.lengths_B.tolist()) == (4, 9, list(LENGTHS))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int32, np.uint8, np.float32])
def test_padded_by_mask_of_any_type(left: bool, dtype: Any) -> None:
    mask = padded([np.ones(n, dtype) for n in LENGTHS], left=left, fill=0)
    batch = Batch.from_arrays(
        META,
        infer_logprobs=padded(INFER, left=left),
        train_logprobs=padded(TRAIN, left=left),
        mask=mask,
        padding="left" if left else "right",
    )
    assert_same_tokens(batch)
    assert batch.mask_N is not None
    assert batch.mask_N.dtype == np.bool_
    assert batch.mask_N.all()


def test_a_hole_in_the_mask_stays_in_the_sequence() -> None:
    mask = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    logprobs = np.arange(10, dtype=np.float32).reshape(2, 5) - 20
    right = Batch.from_arrays(META, infer_logprobs=logprobs, train_logprobs=logprobs, mask=mask)
    left = Batch.from_arrays(META, infer_logprobs=logprobs, train_logprobs=logprobs, mask=mask, padding="left")
    assert right.lengths_B.tolist() == [4, 0]
    assert left.lengths_B.tolist() == [4, 0]
    assert right.mask_N is not None
    assert left.mask_N is not None
    assert right.mask_N.tolist() == [False, True, False, True]
    assert left.mask_N.tolist() == [True, False, True, False]
    assert right.infer_logprobs_N.tolist() == [-20, -19, -18, -17]
    assert left.infer_logprobs_N.tolist() == [-19, -18, -17, -16]


def test_padded_without_mask_or_lengths_is_all_tokens() -> None:
    logprobs = np.zeros((2, 3), np.float32)
    assert Batch.from_arrays(META, infer_logprobs=logprobs, train_logprobs=logprobs).lengths_B.tolist() == [3, 3]


@pytest.mark.parametrize("cu_seqlens", [CU_SEQLENS, CU_SEQLENS.tolist(), torch.tensor(CU_SEQLENS, dtype=torch.int32)])
@pytest.mark.parametrize("leading_axis", [False, True])
def test_packed(cu_seqlens: Any, leading_axis: bool) -> None:
    infer, train = (FLAT_INFER[None], FLAT_TRAIN[None]) if leading_axis else (FLAT_INFER, FLAT_TRAIN)
    assert_same_tokens(Batch.from_arrays(META, infer_logprobs=infer, train_logprobs=train, cu_seqlens=cu_seqlens))


def test_one_dimension_is_one_sequence() -> None:
    batch = Batch.from_arrays(META, infer_logprobs=FLAT_INFER, train_logprobs=FLAT_TRAIN)
    assert batch.offsets_B1.tolist() == [0, 9]


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list, tuple])
def test_lists(make: Any) -> None:
    infer, train = [make(row) for row in INFER], tuple(make(row) for row in TRAIN)
    assert_same_tokens(Batch.from_arrays(META, infer_logprobs=infer, train_logprobs=train))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_precisions_become_float32_once(dtype: torch.dtype) -> None:
    exact = torch.tensor(FLAT_INFER).to(dtype)
    packed = Batch.from_arrays(META, infer_logprobs=exact, train_logprobs=exact)
    listed = Batch.from_arrays(META, infer_logprobs=[exact[:4], exact[4:]], train_logprobs=[exact[:4], exact[4:]])
    np.testing.assert_array_equal(packed.infer_logprobs_N, exact.float().numpy())
    np.testing.assert_array_equal(listed.infer_logprobs_N, exact.float().numpy())


def test_the_batch_owns_its_arrays() -> None:
    infer, train = FLAT_INFER.copy(), torch.tensor(FLAT_TRAIN)
    batch = Batch.from_arrays(META, infer_logprobs=infer, train_logprobs=train, cu_seqlens=CU_SEQLENS)
    infer[:] = 0
    train[:] = 0
    assert_same_tokens(batch)


def test_a_double_beyond_float32_becomes_infinite_without_a_warning() -> None:
    batch = Batch.from_arrays(META, infer_logprobs=np.array([-1e300]), train_logprobs=np.array([-1.0]))
    assert batch.infer_logprobs_N.tolist() == [-np.inf]


def test_advantages_per_sequence_and_per_token() -> None:
    def build(advantage: Any, **layout: Any) -> Batch:
        return Batch.from_arrays(META, advantage=advantage, **layout)

    layouts: list[dict[str, Any]] = [
        {"infer_logprobs": padded(INFER), "train_logprobs": padded(TRAIN), "lengths": LENGTHS},
        {"infer_logprobs": FLAT_INFER, "train_logprobs": FLAT_TRAIN, "cu_seqlens": CU_SEQLENS},
        {"infer_logprobs": INFER, "train_logprobs": TRAIN},
    ]
    per_token = [np.full(n, i, np.float32) for i, n in enumerate(LENGTHS)]
    for layout, tokens in zip(layouts, (padded(per_token), np.concatenate(per_token), per_token), strict=True):
        by_sequence = build([0.0, 1.0, 2.0, 3.0], **layout)
        assert by_sequence.advantage_N is None
        assert by_sequence.advantage_B is not None
        assert by_sequence.advantage_B.tolist() == [0, 1, 2, 3]
        by_token = build(tokens, **layout)
        assert by_token.advantage_B is None
        assert by_token.advantage_N is not None
        assert by_token.advantage_N.tolist() == np.concatenate(per_token).tolist()


def test_ragged_lists_of_numbers_per_token() -> None:
    batch = Batch.from_arrays(
        META,
        infer_logprobs=[[-1.0, -2.0], [-3.0]],
        train_logprobs=[[-1.0, -2.0], [-3.0]],
        advantage=[[1.0, 2.0], [3.0]],
        infer_version=[[4, 5], [6]],
    )
    assert batch.advantage_N is not None
    assert batch.infer_version_N is not None
    assert batch.advantage_N.tolist() == [1, 2, 3]
    assert batch.infer_version_N.tolist() == [4, 5, 6]


def test_one_value_for_all_sequences() -> None:
    batch = Batch.from_arrays(
        META, infer_logprobs=INFER, train_logprobs=TRAIN, infer_version=7, advantage=0.5, source="math"
    )
    assert batch.infer_version_B is not None
    assert batch.advantage_B is not None
    assert batch.infer_version_B.tolist() == [7] * 4
    assert batch.advantage_B.tolist() == [0.5] * 4
    assert batch.source == ("math",) * 4


def test_every_column_arrives() -> None:
    tokens: dict[str, Any] = {name: np.zeros(9, dtype) for name, dtype in TOKEN_DTYPES.items()}
    sequences: dict[str, Any] = {
        name: np.zeros(4, dtype) for name, dtype in SEQUENCE_DTYPES.items() if name not in tokens
    }
    strings: dict[str, Any] = {
        "seq_id": list("abcd"),
        "prompt_id": list("aabb"),
        "source": ["x"] * 4,
        "replica": ["r"] * 4,
        "text": "text",
    }
    batch = Batch.from_arrays(META, cu_seqlens=CU_SEQLENS, **tokens, **sequences, **strings)
    for name, dtype in TOKEN_DTYPES.items():
        assert getattr(batch, f"{name}_N").dtype == dtype
    assert batch.reward_B is not None
    assert batch.seq_id == ("a", "b", "c", "d")
    assert batch.text == ("text",) * 4


@pytest.mark.parametrize(
    "arrays",
    [
        {"infer_logprobs": [], "train_logprobs": []},
        {"infer_logprobs": np.zeros((0, 5)), "train_logprobs": np.zeros((0, 5))},
        {"infer_logprobs": np.zeros((0, 5)), "train_logprobs": np.zeros((0, 5)), "mask": np.zeros((0, 5), bool)},
        {"infer_logprobs": np.zeros(0), "train_logprobs": np.zeros(0), "cu_seqlens": [0]},
    ],
)
def test_no_sequences(arrays: dict[str, Any]) -> None:
    batch = Batch.from_arrays(META, **arrays)
    assert (batch.sequences, batch.tokens) == (0, 0)


@pytest.mark.parametrize(
    "arrays",
    [
        {"infer_logprobs": np.zeros((3, 0)), "train_logprobs": np.zeros((3, 0))},
        {"infer_logprobs": np.zeros((3, 0)), "train_logprobs": np.zeros((3, 0)), "mask": np.zeros((3, 0), bool)},
        {"infer_logprobs": np.zeros((3, 4)), "train_logprobs": np.zeros((3, 4)), "mask": np.zeros((3, 4), bool)},
        {"infer_logprobs": [[], [], []], "train_logprobs": [[], [], []]},
    ],
)
def test_sequences_without_tokens(arrays: dict[str, Any]) -> None:
    batch = Batch.from_arrays(META, **arrays)
    assert (batch.sequences, batch.tokens) == (3, 0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train_logprobs": FLAT_TRAIN[:8]}, r"train_logprobs: has 8 values, expected 9"),
    ({"cu_seqlens": [0, 3, 8]}, r"infer_logprobs: has 9 values, expected 8"),
    ({"cu_seqlens": [0, 5, 3, 9]}, r"offsets: must start at 0 and never fall"),
    ({"cu_seqlens": [1, 5, 9]}, r"offsets: must start at 0 and never fall"),
    ({"cu_seqlens": []}, r"cu_seqlens: has shape \(0,\), expected \[B\+1\]"),
    ({"cu_seqlens": 9}, r"cu_seqlens: has shape \(\), expected \[B\+1\]"),
    ({"cu_seqlens": [[0, 9]]}, r"cu_seqlens: has shape \(1, 2\), expected \[B\+1\]"),
    ({"cu_seqlens": [0, 4.5, 9]}, r"cu_seqlens: cannot be read as int64: holds fractional values"),
    ({"mask": np.ones(8)}, r"mask: has 8 values, expected 9"),
    ({"mask": np.ones((9, 1))}, r"mask: has shape \(9, 1\), expected \[9\]"),
    ({"advantage": np.ones(5)}, r"advantage: has 5 values, expected 9"),
    ({"reward": np.ones(5)}, r"reward: has 5 values, expected 4"),
    ({"seq_id": ["a", "b"]}, r"seq_id: has 2 values, expected 4"),
    ({"token_ids": np.full(9, 0.5)}, r"token_ids: cannot be read as int32: holds fractional values"),
    ({"token_ids": np.full(9, 2**31)}, r"token_ids: cannot be read as int32: holds 2147483648, outside"),
    ({"token_ids": np.full(9, np.inf)}, r"token_ids: cannot be read as int32: holds inf, outside"),
    ({"infer_version": np.full(9, -(2**40))}, r"infer_version: cannot be read as int32: holds -1099511627776"),
    ({"turn": torch.full((9,), 40_000)}, r"turn: cannot be read as int16: holds 40000, outside -32768 \.\. 32767"),
    ({"entropy": ["a"] * 9}, r"entropy: cannot be read as float32: holds <U1"),
    ({"logprobs": FLAT_INFER}, r"logprobs: is not a column of schema 1"),
    ({"seq_id": ["a", "b", "c", "x" * 257]}, r"row 3, seq_id: is 257 characters long, limit 256"),
    ({"seq_id": ["a", "b\0", "c", "d"]}, r"row 1, seq_id: 'b\\x00' holds NUL"),
    ({"text": ["a", "b", "c", "\ud800"]}, r"row 3, text: .* half a surrogate pair"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refusals_of_packed_arrays_name_the_column(change: dict[str, Any], message: str) -> None:
    given = {"infer_logprobs": FLAT_INFER, "train_logprobs": FLAT_TRAIN, "cu_seqlens": CU_SEQLENS} | change
    with pytest.raises(BatchError, match=message):
        Batch.from_arrays(META, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_logprobs": np.zeros((4, 5))}, r"train_logprobs: has shape \(4, 5\), expected \(4, 6\)"),
        ({"mask": np.zeros((3, 6))}, r"mask: has shape \(3, 6\), expected \(4, 6\)"),
        ({"lengths": [1, 2, 3]}, r"lengths: must be \[4\] values in 0 \.\. 6"),
        ({"lengths": [1, 2, 3, 7]}, r"lengths: must be \[4\] values in 0 \.\. 6"),
        ({"lengths": [1, 2, 3, -1]}, r"lengths: must be \[4\] values in 0 \.\. 6"),
        ({"infer_logprobs": np.zeros((4, 6, 2))}, r"infer_logprobs: has 3 dimensions"),
    ],
)
def test_refusals_of_padded_arrays_name_the_column(change: dict[str, Any], message: str) -> None:
    given = {"infer_logprobs": padded(INFER), "train_logprobs": padded(TRAIN)} | change
    with pytest.raises(BatchError, match=message):
        Batch.from_arrays(META, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_logprobs": TRAIN[:3]}, r"train_logprobs: has 3 sequences, expected 4"),
        ({"train_logprobs": [*TRAIN[:3], TRAIN[0]]}, r"row 3, train_logprobs: has shape \(3,\), expected \(1,\)"),
        ({"train_logprobs": 1.0}, r"train_logprobs: 1.0 is not a sequence"),
        ({"infer_logprobs": [-1.0, -2.0]}, r"row 0, infer_logprobs: -1.0 is not a sequence"),
        ({"infer_logprobs": [INFER[0], torch.tensor(1.0)]}, r"row 1, infer_logprobs: .* is not a sequence"),
        ({"mask": [True] * 4}, r"row 0, mask: has shape \(\), expected \(3,\)"),
        ({"entropy": [["x"] * 3, [], ["x"] * 5, ["x"]]}, r"entropy: cannot be read as float32"),
    ],
)
def test_refusals_of_lists_name_the_row(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"infer_logprobs": INFER, "train_logprobs": TRAIN} | change
    with pytest.raises(BatchError, match=message):
        Batch.from_arrays(META, **given)


def test_all_findings_at_once() -> None:
    with pytest.raises(BatchError) as caught:
        Batch.from_arrays(
            BatchMeta(step=-1, rank=10**12), infer_logprobs=FLAT_INFER, train_logprobs=FLAT_TRAIN[1:], reward=[1, 2]
        )
    assert [error.column for error in caught.value.errors] == ["step", "rank", "train_logprobs", "reward"]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"step": -1}, "step: -1 is outside 0 .. 9007199254740991"),
        ({"step": MAX_STEP + 1}, "step: 9007199254740992 is outside"),
        ({"step": 1.5}, "step: 1.5 is not an integer"),
        ({"step": True}, "step: True is not an integer"),
        ({"step": None}, "step: None is not an integer"),
        ({"rank": 10**12}, "rank: 1000000000000 is outside 0 .. 1048575"),
        ({"rank": 4, "world_size": 4}, "rank: 4 is not below world_size 4"),
        ({"world_size": 0}, "world_size: 0 is outside 1 .. 1048576"),
        ({"part": -1}, "part: -1 is outside"),
        ({"attempt": 0}, "attempt: 0 is outside 1 .."),
        ({"train_version": -1}, "train_version: -1 is outside"),
        ({"phase": "sleep"}, "phase: 'sleep' is not one of rollout, update, update_perturbed, probe"),
        ({"stream": ""}, "stream: '' is not a name"),
        ({"stream": None}, "stream: None is not a name"),
        ({"session": "x" * 257}, "session: .* is not a name of 1 to 256 characters"),
        ({"run": "a\0b"}, "run: .* is not a name"),
        ({"project": "\udc80"}, "project: .* is not a name"),
        ({"recorded_at": float("nan")}, "recorded_at: nan is not a finite number"),
        ({"recorded_at": "now"}, "recorded_at: 'now' is not a finite number"),
    ],
)
def test_metadata_out_of_range(meta: dict[str, Any], message: str) -> None:
    errors = check_meta(BatchMeta(**{"step": 1} | meta))
    assert len(errors) == 1
    with pytest.raises(ValueError, match=message):
        raise BatchError(*errors)


def test_metadata_at_the_limits() -> None:
    assert check_meta(BatchMeta(step=MAX_STEP, rank=MAX_RANK, world_size=MAX_RANK + 1, stream="x" * 256)) == []
