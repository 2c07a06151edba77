"""The wire record: bit-exact round trips, one digest for one content, and a precise refusal for everything else."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import SEQUENCE_DTYPES, STRING_COLUMNS, TOKEN_DTYPES, Batch
from tailwatch_collectors.errors import WireError
from tailwatch_collectors.types import MAX_STEP, PHASES, BatchMeta
from tailwatch_collectors.wire import (
    CONTENT_TYPE,
    Compression,
    WireLimits,
    content_digest,
    decode,
    decode_json,
    encode,
)

COMPRESSIONS: tuple[Compression | None, ...] = (None, "zstd", "lz4")


def small_batch(**meta: Any) -> Batch:
    return Batch.from_arrays(
        BatchMeta(step=3, **meta),
        infer_logprobs=[[-0.5, -1.25], [], [-2.0]],
        train_logprobs=[[-0.75, -1.0], [], [-2.5]],
        mask=[[True, False], [], [True]],
        token_ids=[[5, 6], [], [7]],
        advantage=[1.0, -1.0, 0.0],
        seq_id=["a", "b", "c"],
    )


def assert_equal(left: Batch, right: Batch) -> None:
    for field in fields(Batch):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field.name
            assert mine.tobytes() == theirs.tobytes(), field.name
        else:
            assert mine == theirs, field.name


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
metas = st.builds(
    BatchMeta,
    step=st.integers(0, MAX_STEP),
    rank=st.integers(0, 7),
    world_size=st.none() | st.integers(8, 64),
    part=st.integers(0, 2**20 - 1),
    final=st.booleans(),
    phase=st.sampled_from(PHASES),
    update_index=st.integers(0, 9),
    stream=names,
    session=st.none() | names,
    attempt=st.none() | st.integers(1, 9),
    train_version=st.none() | st.integers(0, MAX_STEP),
    framework=st.none() | names,
    recorded_at=st.none() | st.floats(0, 2e9),
    project=st.none() | names,
    run=st.none() | names,
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any columns, any bits: NaN, infinities and subnormals included."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    tokens, sequences = int(offsets[-1]), len(lengths)

    def values(dtype: Any, count: int) -> Any:
        if dtype is np.bool_:
            return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
        size = np.dtype(dtype).itemsize * count
        return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype)

    built: dict[str, Any] = {"meta": draw(metas), "offsets_B1": offsets}
    for name, dtype in TOKEN_DTYPES.items():
        if name in {"infer_logprobs", "train_logprobs"} or draw(st.booleans()):
            built[f"{name}_N"] = values(dtype, tokens)
    for name, dtype in SEQUENCE_DTYPES.items():
        if f"{name}_N" not in built and draw(st.booleans()):
            built[f"{name}_B"] = values(dtype, sequences)
    for name in STRING_COLUMNS:
        if draw(st.booleans()):
            built[name] = tuple(draw(names) for _ in range(sequences))
    return Batch(**built)


@given(batch=batches(), compression=st.sampled_from(COMPRESSIONS))
@settings(max_examples=200)
def test_round_trip_is_bit_exact(batch: Batch, compression: Compression | None) -> None:
    decoded = decode(encode(batch, compression=compression))
    assert decoded.ignored_columns == ()
    assert_equal(decoded.batch, batch)
    assert content_digest(decoded.batch) == content_digest(batch)


def as_json(batch: Batch) -> dict[str, Any]:
    """The batch as a client without Arrow would write it."""
    rows: list[dict[str, Any]] = [{} for _ in range(batch.sequences)]
    for row, (start, end) in enumerate(zip(batch.offsets_B1[:-1], batch.offsets_B1[1:], strict=True)):
        for field in fields(Batch):
            value = getattr(batch, field.name)
            if value is None or field.name in {"meta", "offsets_B1"}:
                continue
            if field.name.endswith("_N"):
                items = [None if x != x else x for x in value[start:end].tolist()]
                rows[row][field.name.removesuffix("_N")] = items
            elif field.name.endswith("_B"):
                rows[row][field.name.removesuffix("_B")] = value[row].item()
            else:
                rows[row][field.name] = value[row]
    meta = {f.name: getattr(batch.meta, f.name) for f in fields(BatchMeta)}
    record = {name: value for name, value in meta.items() if value is not None} | {"schema": 1, "sequences": rows}
    parsed = json.loads(json.dumps(record))
    assert isinstance(parsed, dict)
    return parsed


@given(batch=batches())
@settings(max_examples=200)
def test_json_and_arrow_have_one_digest(batch: Batch) -> None:
    # JSON cannot write the NaN of a per-sequence number; those columns travel by Arrow alone.
    sent = replace(batch, advantage_B=None, reward_B=None)
    decoded = decode_json(as_json(sent)).batch
    assert decoded.meta == sent.meta
    assert content_digest(decoded) == content_digest(decode(encode(sent)).batch)


def test_digest_follows_the_content_alone() -> None:
    batch = small_batch(train_version=4)
    digest = content_digest(batch)
    assert content_digest(small_batch(train_version=4, framework="verl 0.9.1", recorded_at=1.0, session="s")) == digest
    chunked = pa.Table.from_batches(pa.ipc.open_stream(encode(batch)).read_all().to_batches(max_chunksize=1))
    assert content_digest(decode(stream_of(chunked)).batch) == digest
    signed_nan = replace(batch, infer_logprobs_N=np.array([-np.nan, 1, 2], np.float32))
    plain_nan = replace(batch, infer_logprobs_N=np.array([np.nan, 1, 2], np.float32))
    assert content_digest(signed_nan) == content_digest(plain_nan)
    others = [
        small_batch(train_version=5),
        small_batch(),
        small_batch(train_version=4, final=False),
        replace(batch, mask_N=None),
        replace(batch, seq_id=None, prompt_id=batch.seq_id),
        replace(batch, seq_id=("a", "bc", "")),
        replace(batch, offsets_B1=np.array([0, 1, 2, 3])),
        replace(batch, train_logprobs_N=np.nextafter(batch.train_logprobs_N, np.float32(0))),
        replace(batch, mask_post_N=batch.mask_N, mask_N=None),
    ]
    digests = {content_digest(other) for other in others}
    assert len(digests) == len(others)
    assert digest not in digests


def stream_of(table: Any, compression: Compression | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table) if isinstance(table, pa.Table) else writer.write_batch(table)
    return bytes(sink.getvalue())


def record(metadata: dict[str, str] | None = None, **columns: Any) -> bytes:
    """A stream with the two required columns, changed by `columns` (None: left out)."""
    lists = pa.array([[-1.0, -2.0], [-3.0]], pa.list_(pa.float32()))
    given = {"infer_logprobs": lists, "train_logprobs": lists} | columns
    table = pa.table({name: column for name, column in given.items() if column is not None})
    return stream_of(table.replace_schema_metadata({"schema": "1", "step": "1"} | (metadata or {})))


def test_media_type() -> None:
    assert CONTENT_TYPE == "application/vnd.apache.arrow.stream"


def test_unknown_columns_are_left_out_and_named() -> None:
    body = record(shiny=pa.array([1, 2]), nested=pa.array([{"a": 1}, None]))
    decoded = decode(body)
    assert decoded.ignored_columns == ("shiny", "nested")
    assert content_digest(decoded.batch) == content_digest(decode(record()).batch)
    rows = [{"infer_logprobs": [-1.0], "train_logprobs": [-1.0], "shiny": 1}]
    assert decode_json({"step": 1, "sequences": rows}).ignored_columns == ("shiny",)


def test_a_null_token_is_a_missing_one() -> None:
    holes = pa.array([[-1.0, None], [-3.0]], pa.list_(pa.float32()))
    batch = decode(record(train_logprobs=holes)).batch
    assert np.isnan(batch.train_logprobs_N).tolist() == [False, True, False]


def test_large_lists_and_large_strings_are_read() -> None:
    large = pa.array([[-1.0, -2.0], [-3.0]], pa.large_list(pa.float32()))
    batch = decode(record(infer_logprobs=large, seq_id=pa.array(["a", "b"], pa.large_string()))).batch
    assert batch.infer_logprobs_N.tolist() == [-1, -2, -3]
    assert batch.seq_id == ("a", "b")


def test_an_empty_batch_needs_an_explicit_final() -> None:
    empty = pa.array([], pa.list_(pa.float32()))
    body = record({"final": "true"}, infer_logprobs=empty, train_logprobs=empty)
    assert decode(body).batch.sequences == 0
    assert decode_json({"step": 1, "final": True, "sequences": []}).batch.tokens == 0
    for metadata in ({}, {"final": "false"}, {"final": "null"}):
        with pytest.raises(WireError, match="no rows"):
            decode(record(metadata, infer_logprobs=empty, train_logprobs=empty))
    for final in ({}, {"final": False}, {"final": None}):
        with pytest.raises(WireError, match="no rows"):
            decode_json({"step": 1, "sequences": []} | final)
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[], train_logprobs=[])
    assert_equal(decode(encode(batch)).batch, batch)


F32 = pa.list_(pa.float32())
BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"train_logprobs": None}, r"^train_logprobs: is required"),
    ({"train_logprobs": pa.array([[1.0, 2.0], [3.0]])}, r"^train_logprobs: is list<.*double>.*, expected list<float>"),
    ({"train_logprobs": pa.array([1.0, 2.0], pa.float32())}, r"^train_logprobs: is float, expected list<float>"),
    ({"train_logprobs": pa.array(["a", "b"])}, r"^train_logprobs: is string, expected list<float>"),
    ({"train_logprobs": pa.array([[1.0], [3.0]], F32)}, r"^row 0, train_logprobs: has 1 tokens, infer_logprobs has 2"),
    ({"mask": pa.array([[True, True], []])}, r"^row 1, mask: has 0 tokens, infer_logprobs has 1"),
    ({"train_logprobs": pa.array([[1.0, 2.0], None], F32)}, r"^row 1, train_logprobs: is null"),
    ({"mask": pa.array([[True, None], [True]])}, r"^row 0, mask: holds null at token 1"),
    ({"mask": pa.array([[1, 1], [1]])}, r"^mask: is list<.*int64>, expected list<bool>"),
    (
        {"token_ids": pa.array([[1, 1], [1]], pa.list_(pa.int64()))},
        r"^token_ids: is list<.*int64>, expected list<int32>",
    ),
    ({"token_ids": pa.array([[1, 1], [None]], pa.list_(pa.int32()))}, r"^row 1, token_ids: holds null at token 0"),
    ({"advantage": pa.array([1.0, 2.0])}, r"^advantage: is double, expected list<float> or float"),
    ({"advantage": pa.array([1.0, None], pa.float32())}, r"^row 1, advantage: is null"),
    ({"reward": pa.array([[1.0, 2.0], [1.0]], F32)}, r"^reward: is list<.*float>, expected float"),
    ({"infer_version": pa.array([1, 2], pa.int32())}, r"^infer_version: is int32, expected list<int32> or int64"),
    ({"seq_id": pa.array([1, 2])}, r"^seq_id: is int64, expected string"),
    ({"seq_id": pa.array(["a", None])}, r"^row 1, seq_id: is null"),
    ({"seq_id": pa.array(["a", "b" * 257])}, r"^row 1, seq_id: is 257 characters long, limit 256"),
    ({"source": pa.array([b"a", b"b"])}, r"^source: is binary, expected string"),
    ({"source": pa.array(["a", "a"]).dictionary_encode()}, r"dictionary-encoded columns are not part of schema 1"),
    ({"mask": pa.nulls(2)}, r"^mask: is null, expected list<bool>"),
    ({"infer_logprobs": pa.nulls(2)}, r"^infer_logprobs: is null, expected list<float>"),
    (
        {"mask": pa.array([[True, True], [True]], pa.list_view(pa.bool_()))},
        r"^mask: is list_view<.*, expected list<bool>",
    ),
    ({"mask": pa.array([[True, True], [True, True]], pa.list_(pa.bool_(), 2))}, r"^mask: is fixed_size_list<"),
]


@pytest.mark.parametrize(("columns", "message"), BAD_COLUMNS)
def test_a_wrong_column_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(record(**columns))


def test_a_wrong_type_without_any_record_batch_is_named() -> None:
    schema = pa.schema(
        {"infer_logprobs": F32, "train_logprobs": F32, "seq_id": pa.dictionary(pa.int32(), pa.string())},
        metadata={"schema": "1", "step": "1", "final": "true"},
    )
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()
    with pytest.raises(WireError, match=r"^seq_id: is dictionary<.*, expected string"):
        decode(bytes(sink.getvalue()))


def test_duplicate_columns_are_named() -> None:
    lists = pa.array([[-1.0]], F32)
    table = pa.Table.from_arrays([lists] * 4, names=["infer_logprobs", "train_logprobs", "x", "x"])
    with pytest.raises(WireError, match=r"^x: appears more than once"):
        decode(stream_of(table.replace_schema_metadata({"schema": "1", "step": "1"})))


BAD_METADATA: list[tuple[dict[str, str], str]] = [
    ({"schema": "2"}, "^schema: '2' is not supported; this receiver reads schema 1"),
    ({"step": "-1"}, "^step: -1 is outside 0 .. 9007199254740991"),
    ({"step": "1.5"}, "^step: 1.5 is not an integer"),
    ({"step": "true"}, "^step: True is not an integer"),
    ({"step": "one"}, "^step: 'one' is not a number or boolean"),
    ({"step": "null"}, "^step: is required"),
    ({"step": "[" * 100_000}, "^step: .* is not a number or boolean"),
    ({"step": "9" * 5_000}, "^step: .* is not a number or boolean"),
    ({"step": "1e400"}, "^step: inf is not an integer"),
    ({"step": str(2**53)}, "^step: 9007199254740992 is outside"),
    ({"rank": "1000000000000"}, "^rank: 1000000000000 is outside 0 .. 1048575"),
    ({"rank": "8", "world_size": "8"}, "^rank: 8 is not below world_size 8"),
    ({"world_size": "0"}, "^world_size: 0 is outside"),
    ({"final": "1"}, "^final: 1 is not true or false"),
    ({"phase": "sleep"}, "^phase: 'sleep' is not one of"),
    ({"stream": ""}, "^stream: '' is not a name"),
    ({"stream": "a\0"}, "^stream: .* is not a name"),
    ({"recorded_at": "NaN"}, "^recorded_at: nan is not a finite number"),
    ({"recorded_at": '"now"'}, "^recorded_at: 'now' is not a finite number"),
]


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA)
def test_wrong_metadata_are_named(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(record(metadata))


def test_metadata_must_be_text() -> None:
    table = pa.table({"infer_logprobs": pa.array([[-1.0]], F32)}).replace_schema_metadata({b"schema": b"\xff"})
    with pytest.raises(WireError, match="metadata are not UTF-8"):
        decode(stream_of(table))


def test_no_metadata_at_all() -> None:
    with pytest.raises(WireError, match=r"^schema: None is not supported"):
        decode(stream_of(pa.table({"infer_logprobs": pa.array([[-1.0]], F32)})))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"{}",
        b"PAR1" * 10,
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\xff" * 64,
        b"\0" * 64,
        random.Random(0).randbytes(999),
    ],
)
def test_what_is_not_arrow_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="Arrow IPC stream"):
        decode(body)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_truncation_is_refused(compression: Compression | None) -> None:
    body = encode(small_batch(), compression=compression)
    for length in range(len(body)):
        with pytest.raises(WireError):
            decode(body[:length])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_flipped_bytes_never_raise_anything_else(compression: Compression | None) -> None:
    body = encode(small_batch(world_size=2, session="s"), compression=compression)
    draw = random.Random(20260322)
    limits = WireLimits(decoded_bytes=2**20)
    refused = 0
    for _ in range(700):
        broken = bytearray(body)
        for _ in range(draw.choice((1, 1, 2, 8))):
            broken[draw.randrange(len(body))] = draw.randrange(256)
        try:
            batch = decode(bytes(broken), limits=limits).batch
        except WireError:
            refused += 1
        else:
            assert batch.check() == []
            content_digest(batch)
    assert refused > 50


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (WireLimits(rows=2), "3 rows, limit 2"),
        (WireLimits(tokens=2), "3 tokens, limit 2"),
        (WireLimits(sequence_tokens=1), "^row 0, infer_logprobs: 2 tokens, limit 1"),
        (WireLimits(decoded_bytes=100), "decodes to over 100 bytes, the limit"),
    ],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_limits(limits: WireLimits, message: str, compression: Compression | None) -> None:
    with pytest.raises(WireError, match=message):
        decode(encode(small_batch(), compression=compression), limits=limits)


def test_json_limits() -> None:
    with pytest.raises(WireError, match="3 rows, limit 2"):
        decode_json(as_json(small_batch()), limits=WireLimits(rows=2))
    with pytest.raises(WireError, match="3 tokens, limit 2"):
        decode_json(as_json(small_batch()), limits=WireLimits(tokens=2))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_decompression_bomb_is_refused_before_it_is_inflated(compression: Compression) -> None:
    zeros = pa.array([np.zeros(16_000_000, np.float32)], F32)
    table = pa.table({"infer_logprobs": zeros}).replace_schema_metadata({"schema": "1", "step": "1"})
    body = stream_of(table, compression)
    del zeros, table
    assert len(body) < 1_000_000
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    with pytest.raises(WireError, match=r"decodes to over 33554432 bytes"):
        decode(body, limits=WireLimits(decoded_bytes=32 * 2**20))
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert python_peak < 4 * 2**20
    assert pa.total_allocated_bytes() <= before + 2**20
    assert pa.default_memory_pool().max_memory() == peak


def test_a_buffer_that_lies_about_its_length_is_refused() -> None:
    body = bytearray(encode(small_batch(), compression="zstd"))
    for claim in (2**62, -2, -(2**63)):
        found = 0
        for at in range(0, len(body) - 8, 8):
            if body[at : at + 8] == struct.pack("<q", 12):  # the uncompressed length of three float32
                lying = bytearray(body)
                lying[at : at + 8] = struct.pack("<q", claim)
                found += 1
                with pytest.raises(WireError):
                    decode(bytes(lying))
        assert found


BAD_JSON: list[tuple[Any, str]] = [
    ([], "expected an object, got list"),
    (None, "expected an object, got NoneType"),
    ({}, "^sequences: is missing or not a list"),
    ({"sequences": {}}, "^sequences: is missing or not a list"),
    ({"step": 1, "sequences": [[]]}, "^row 0: expected an object, got list"),
    ({"sequences": [{}]}, "^step: is required"),
    ({"step": 1, "schema": 2, "sequences": []}, "^schema: 2 is not supported"),
    ({"step": 1.0, "sequences": [{}]}, "^step: 1.0 is not an integer"),
    ({"step": "1", "sequences": [{}]}, "^step: '1' is not an integer"),
    ({"step": 1, "stream": 5, "sequences": [{}]}, "^stream: 5 is not a name"),
    ({"step": 1, "stream": "\ud800", "sequences": [{}]}, "^stream: .* is not a name"),
    ({"step": 1, "recorded_at": 10**400, "sequences": [{}]}, "^recorded_at: 1000.* is not a finite number"),
    ({"step": 1, "phase": ["rollout"], "sequences": [{}]}, "^phase: .* is not one of"),
    ({"step": 1, "sequences": [{}]}, "infer_logprobs: is required; train_logprobs: is required"),
]


@pytest.mark.parametrize(("body", "message"), BAD_JSON)
def test_wrong_json_is_named(body: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_json(body)


BAD_JSON_COLUMNS: list[tuple[str, Any, str]] = [
    ("train_logprobs", [-1.0], "has 1 tokens, infer_logprobs has 2"),
    ("train_logprobs", "x", "'x' is not a list"),
    ("train_logprobs", None, "is missing; give it in every row or in none"),
    ("train_logprobs", [-1.0, "x"], "'x' at token 1 is not a number"),
    ("train_logprobs", [-1.0, True], "True at token 1 is not a number"),
    ("train_logprobs", [-1.0, [1]], r"\[1\] at token 1 is not a number"),
    ("train_logprobs", [-1.0, 10**400], "at token 1 does not fit float32"),
    ("mask", [1, 0], "1 at token 0 is not true or false"),
    ("token_ids", [1, 2.5], "2.5 at token 1 is not an integer"),
    ("token_ids", [1, 2**31], "2147483648 at token 1 does not fit int32"),
    ("token_ids", [1, float("inf")], "inf at token 1 does not fit int32"),
    ("token_ids", [1, float("nan")], "nan at token 1 does not fit int32"),
    ("turn", [1, 40_000], "40000 at token 1 does not fit int16"),
    ("infer_version", 2**63, "9223372036854775808 at token 0 does not fit int64"),
    ("infer_version", 1.5, "1.5 at token 0 is not an integer"),
    ("advantage", "x", "'x' is not a number"),
    ("reward", [1.0], r"\[1.0\] is not a number"),
    ("seq_id", 5, "5 is not a string"),
    ("seq_id", "\ud800", "half a surrogate pair"),
    ("text", "a\0b", "holds NUL"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_JSON_COLUMNS)
def test_a_wrong_json_column_is_named_with_its_row(name: str, value: Any, message: str) -> None:
    good: dict[str, Any] = {"infer_logprobs": [-1.0, -2.0], "train_logprobs": [-1.0, -2.0]}
    sound = {
        "mask": [True, True],
        "token_ids": [1, 2],
        "turn": [0, 0],
        "infer_version": 1,
        "advantage": 0.5,
        "reward": 1,
    }
    fill = {"seq_id": "a", "text": "b"} | sound | good
    rows = [good | {name: fill[name]}, good | {name: value}]
    with pytest.raises(WireError, match=f"^row 1, {name}: .*{message}"):
        decode_json({"step": 1, "sequences": rows})


def test_infinities_and_nulls_in_json_are_kept_for_counting() -> None:
    rows = [{"infer_logprobs": [None, float("-inf"), 1e300], "train_logprobs": [-1, 0, -0.0]}]
    batch = decode_json({"step": 1, "sequences": rows}).batch
    assert np.isnan(batch.infer_logprobs_N[0])
    assert batch.infer_logprobs_N[1:].tolist() == [-np.inf, np.inf]
