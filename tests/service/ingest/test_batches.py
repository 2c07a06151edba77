from __future__ import annotations

import asyncio
import gzip
import io
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import zstandard

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.settings import Limits
from tests.service.support import API, ARROW, Live, Start, make_batch, problem

pytestmark = pytest.mark.asyncio

JSON_BATCH: dict[str, Any] = {
    "step": 7,
    "world_size": 1,
    "sequences": [
        {"infer_logprobs": [-1.0, -0.5], "train_logprobs": [-1.1, -0.4]},
        {"infer_logprobs": [-2.0], "train_logprobs": [-2.5]},
    ],
}


def arrow(columns: dict[str, Any], **metadata: str) -> bytes:
    """An Arrow stream of any columns and metadata."""
    batch = pa.record_batch(columns).replace_schema_metadata({"schema": "1", "step": "0", **metadata})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def lists(*rows: list[float], kind: Any = None) -> pa.Array:
    return pa.array(list(rows), pa.list_(kind or pa.float32()))


async def post(live: Live, run: str, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.post(f"{API}/runs/{run}/batches", content=body, headers={**ARROW, **named})


async def nothing_stored(live: Live, run: str) -> None:
    """The run is as it was, and the service takes the next batch."""
    detail = (await live.client.get(f"{API}/runs/{run}")).json()
    assert detail["series"] == []
    assert not list((live.services.settings.data_dir / "segments").glob("*/*"))
    assert (await live.send(run, step=123)).status_code == 201


# --- what is taken in --------------------------------------------------------------------------------------------


async def test_an_arrow_batch_is_stored_and_its_step_closes(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        answer = await live.send(run, step=7, sequences=3, length=10)

        assert answer.status_code == 201
        content = answer.json()
        assert content | {"status": "stored", "step": 7, "sequences": 3, "tokens": 30, "attempt": 1} == content
        assert content["phase"] == "rollout"
        assert content["ignored_columns"] == []
        assert content["directive"] is None
        assert content["metrics"]["kl_k3"] > 0
        step = await live.closed(run, 7)
        assert step["coverage"] == 1.0
        assert step["tokens"] == 30


async def test_a_json_batch_is_the_same_batch(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        batch = wire.decode_json(JSON_BATCH).batch

        first = await live.client.post(f"{API}/runs/{run}/batches", json=JSON_BATCH)
        second = await live.send(run, batch)

        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json()["status"] == "duplicate"
        assert second.json()["batch_id"] == first.json()["batch_id"]


async def test_null_in_a_json_list_is_a_missing_token(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        record = {
            "step": 0,
            "world_size": 1,
            "sequences": [{"infer_logprobs": [-1.0, None], "train_logprobs": [-1, -1]}],
        }

        answer = await live.client.post(f"{API}/runs/{run}/batches", json=record)

        assert answer.status_code == 201
        step = await live.closed(run, 0)
        assert step["metrics"]["tokens"] == 1


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "zstd"])
async def test_content_encodings(start: Start, encoding: str) -> None:
    async with start() as live:
        run = await live.run()
        body = wire.encode(make_batch())
        packed = zstandard.compress(body) if encoding == "zstd" else gzip.compress(body)

        assert (await post(live, run, packed, Content_Encoding=encoding)).status_code == 201


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
async def test_compression_inside_arrow(start: Start, compression: Any) -> None:
    async with start() as live:
        run = await live.run()

        assert (await post(live, run, wire.encode(make_batch(), compression=compression))).status_code == 201


async def test_unknown_columns_are_named(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        body = arrow({"infer_logprobs": lists([-1.0]), "train_logprobs": lists([-1.0]), "colour": pa.array(["red"])})

        assert (await post(live, run, body)).json()["ignored_columns"] == ["colour"]


async def test_text_needs_the_service_to_opt_in(start: Start) -> None:
    batch = Batch.from_arrays(
        BatchMeta(step=0, world_size=1), infer_logprobs=[[-1.0]], train_logprobs=[[-1.0]], text=["secret words"]
    )
    async with start(keep_tokens="all") as live:
        run = await live.run()

        assert (await live.send(run, batch)).json()["ignored_columns"] == ["text"]
        kept = list((live.services.settings.data_dir / "segments").glob("*/*"))
        assert len(kept) == 1
        assert b"secret words" not in kept[0].read_bytes()
    async with start(accept_text=True) as live:
        later = replace(batch, meta=replace(batch.meta, step=1))
        assert (await live.send(run, later)).json()["ignored_columns"] == []


async def test_invalid_tokens_are_counted_and_never_folded_in(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        infer = [-1.0, math.nan, -math.inf, math.inf, 0.5, -2.0]
        train = [-1.0, -1.0, -1.0, -1.0, -1.0, math.nan]
        body = arrow({"infer_logprobs": lists(infer), "train_logprobs": lists(train)}, world_size="1")

        answer = await post(live, run, body)

        assert answer.status_code == 201
        step = await live.closed(run, 0)
        metrics = step["metrics"]
        assert (metrics["tokens"], metrics["tokens_total"]) == (1, 6)
        assert (metrics["tokens_nonfinite_infer"], metrics["tokens_nonfinite_train"]) == (3, 1)
        assert metrics["tokens_invalid_positive"] == 1
        assert metrics["log_ratio_min"] == metrics["log_ratio_max"] == 0.0


async def test_a_sequence_that_is_masked_altogether_is_stored(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        batch = Batch.from_arrays(
            BatchMeta(step=0, world_size=1),
            infer_logprobs=[[-1.0, -2.0], [-1.0]],
            train_logprobs=[[-1.0, -2.0], [-1.5]],
            mask=[[False, False], [True]],
        )

        assert (await live.send(run, batch)).status_code == 201
        assert (await live.closed(run, 0))["metrics"]["tokens"] == 1


async def test_an_empty_batch_needs_an_explicit_final(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        empty = {"infer_logprobs": lists(), "train_logprobs": lists()}

        problem(await post(live, run, arrow(empty)), 422, "no rows", "explicit final")
        await nothing_stored(live, run)
        assert (await post(live, run, arrow(empty, final="true"))).status_code == 201


async def test_a_step_far_in_the_past_is_a_step_like_any_other(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=100_000)
        await live.closed(run, 100_000)

        assert (await live.send(run, step=3)).status_code == 201
        assert (await live.closed(run, 3))["step"] == 3


async def test_a_summary_stands_for_its_tokens(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        batch = make_batch(step=4)
        data = summaries.to_bytes(summaries.summarise(batch))
        headers = {"Content-Type": "application/octet-stream"}
        path = f"{API}/runs/{run}/summaries"

        answer = await live.client.post(path, params={"step": 4, "world_size": 1}, content=data, headers=headers)

        assert answer.status_code == 201
        assert answer.json()["tokens"] == batch.tokens
        assert (await live.send(run, batch)).json()["status"] == "duplicate"  # one key space
        problem(await live.client.post(path, params={"step": 5}, content=b"x" * 64, headers=headers), 422)
        problem(await live.client.post(path, params={"step": -1}, content=data, headers=headers), 422, "step", "-1")
        problem(await live.client.post(path, params={"step": 5, "rnk": 1}, content=data, headers=headers), 422, "rnk")
        bad = {"step": 5, "rank": 3, "world_size": 2}
        problem(await live.client.post(path, params=bad, content=data, headers=headers), 422, "rank", "world_size")


async def test_many_at_once_are_all_stored_once(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        answers = await asyncio.gather(
            *(live.send(run, step=0, rank=i % 24, world_size=24, seed=i % 24) for i in range(48))
        )

        assert sorted(answer.status_code for answer in answers) == [200] * 24 + [201] * 24
        assert (await live.closed(run, 0))["tokens"] == 24 * 200


# --- what is refused ---------------------------------------------------------------------------------------------

ONE = {"infer_logprobs": lists([-1.0, -2.0]), "train_logprobs": lists([-1.0, -2.0])}

REFUSED: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "not Arrow": (b"hello, this is not Arrow at all", 422, ("not a", "Arrow")),
    "empty body": (b"", 422, ("Arrow",)),
    "truncated": (wire.encode(make_batch())[:-200], 422, ("truncated",)),
    "truncated but ended": (wire.encode(make_batch())[:-400] + b"\xff\xff\xff\xff\0\0\0\0", 422, ("Arrow",)),
    "no schema version": (arrow(ONE, schema="9"), 422, ("schema", "'9'")),
    "column missing": (arrow({"infer_logprobs": lists([-1.0])}), 422, ("train_logprobs", "is required")),
    "wrong dtype": (
        arrow({**ONE, "train_logprobs": lists([-1.0, -2.0], kind=pa.float64())}),
        422,
        ("train_logprobs", "double", "float"),
    ),
    "wrong shape": (arrow({**ONE, "infer_logprobs": pa.array([1.0], pa.float32())}), 422, ("infer_logprobs",)),
    "unequal lists": (
        arrow({"infer_logprobs": lists([-1.0], [-1.0]), "train_logprobs": lists([-1.0], [-1.0, -2.0])}),
        422,
        ('"row":1', "train_logprobs", "2 tokens"),
    ),
    "null list": (
        arrow({**ONE, "train_logprobs": pa.array([None], pa.list_(pa.float32()))}),
        422,
        ("train_logprobs", "null"),
    ),
    "negative step": (arrow(ONE, step="-1"), 422, ("step", "-1 is outside")),
    "fractional step": (arrow(ONE, step="7.5"), 422, ("step", "7.5")),
    "step that is text": (arrow(ONE, step="seven"), 422, ("step", "seven")),
    "rank 10^12": (arrow(ONE, rank=str(10**12)), 422, ("rank", "1000000000000 is outside", "1048575")),
    "phase": (arrow(ONE, phase="dream"), 422, ("phase", "dream", "rollout")),
    "stream": (arrow(ONE, stream="x" * 300), 422, ("stream", "256")),
    "attempt that does not exist": (arrow(ONE, attempt="9"), 422, ("attempt", "9")),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_bad_input_is_refused_precisely_and_leaves_nothing(start: Start, case: str) -> None:
    body, status, named = REFUSED[case]
    async with start(keep_tokens="all") as live:
        run = await live.run()

        problem(await post(live, run, body), status, *named)

        await nothing_stored(live, run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step": 7.5}, ("step", "7.5")),
        ({"step": -3}, ("step", "-3")),
        ({"step": None}, ("step", "required")),
        ({"rank": 10**12}, ("rank", "1000000000000")),
        ({"sequences": "all"}, ("sequences",)),
        ({"sequences": [3]}, ('"row":0', "expected an object")),
        ({"sequences": [{"infer_logprobs": [-1.0], "train_logprobs": ["x"]}]}, ('"row":0', "train_logprobs", "'x'")),
        ({"final": "yes"}, ("final",)),
    ],
)
async def test_bad_json_is_refused_by_field(start: Start, change: dict[str, Any], named: tuple[str, ...]) -> None:
    async with start() as live:
        run = await live.run()

        problem(await live.client.post(f"{API}/runs/{run}/batches", json={**JSON_BATCH, **change}), 422, *named)

        await nothing_stored(live, run)


@pytest.mark.parametrize("body", [b"", b"{", b'{"step": NaN}', b"\xff\xfe", b"[" * 5000])
async def test_what_is_not_json_is_a_bad_request(start: Start, body: bytes) -> None:
    async with start() as live:
        run = await live.run()

        answer = await post(live, run, body, Content_Type="application/json")

        problem(answer, 400, "not JSON")
        await nothing_stored(live, run)


async def test_a_run_that_does_not_exist(start: Start) -> None:
    async with start() as live:
        problem(await live.send("nowhere"), 404, "nowhere")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/parquet"])
async def test_other_media_types_name_those_that_are_read(start: Start, content_type: str) -> None:
    async with start() as live:
        run = await live.run()

        answer = await post(live, run, b"x", Content_Type=content_type)

        problem(answer, 415, wire.CONTENT_TYPE, "application/json")


@pytest.mark.parametrize("encoding", ["br", "gzip, zstd", "deflate"])
async def test_other_encodings_name_those_that_are_read(start: Start, encoding: str) -> None:
    async with start() as live:
        run = await live.run()

        problem(await post(live, run, b"x", Content_Encoding=encoding), 415, "zstd", "gzip")


async def test_the_same_key_with_other_content_is_a_conflict(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        first = await live.send(run, seed=1)

        problem(await live.send(run, seed=2), 409, "step 0", "rank 0", first.json()["batch_id"])

        again = await live.send(run, seed=1)
        assert (again.status_code, again.json()["status"]) == (200, "duplicate")
        assert (await live.closed(run, 0))["tokens"] == 200


async def test_an_idempotency_key_stands_for_its_first_batch(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        key = {"Idempotency_Key": "once"}
        first = await post(live, run, wire.encode(make_batch(step=1)), **key)

        problem(await post(live, run, wire.encode(make_batch(step=2, seed=5)), **key), 409, "once")

        assert first.status_code == 201
        problem(await post(live, run, wire.encode(make_batch()), Idempotency_Key="x" * 300), 422, "256")


# --- sizes -------------------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_refused_with_the_limit(start: Start) -> None:
    async with start(limits=Limits(body_bytes=1000)) as live:
        run = await live.run()

        problem(await post(live, run, b"x" * 1001), 413, "1001", "limit 1000")
        assert (await live.client.get("/healthz")).status_code == 200


async def test_a_streamed_body_is_counted_as_it_arrives(start: Start) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 500
            yield b"x" * 500

    async with start(limits=Limits(body_bytes=1000)) as live:
        run = await live.run()

        answer = await live.client.post(f"{API}/runs/{run}/batches", content=endless(), headers=ARROW)

        problem(answer, 413, "limit", "1000")
        assert sent < 10_000


@pytest.mark.parametrize(("declared", "status"), [("100000", 400), ("3", 400), ("-5", 400), ("many", 400)])
async def test_content_length_may_lie(start: Start, declared: str, status: int) -> None:
    async with start() as live:
        run = await live.run()

        problem(await post(live, run, wire.encode(make_batch()), Content_Length=declared), status, "Content-Length")
        await nothing_stored(live, run)


async def test_a_declared_length_over_the_limit_is_enough(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        problem(await post(live, run, b"x", Content_Length=str(10**12)), 413, str(10**12), str(64 * 2**20))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_decompression_bomb_is_refused_before_it_goes_off(start: Start, encoding: str) -> None:
    zeros = b"\0" * 50_000_000
    bomb = gzip.compress(zeros, 9) if encoding == "gzip" else zstandard.compress(zeros, 19)
    assert len(bomb) < 60_000
    async with start(limits=Limits(decoded_bytes=1_000_000)) as live:
        run = await live.run()

        problem(await post(live, run, bomb, Content_Encoding=encoding), 413, encoding, "over 1000000 bytes")
        await nothing_stored(live, run)


async def test_a_bomb_inside_arrow_is_refused_before_it_goes_off(start: Start) -> None:
    column = pa.ListArray.from_arrays(pa.array([0, 5_000_000], pa.int32()), pa.array(np.zeros(5_000_000, np.float32)))
    batch = pa.record_batch({"infer_logprobs": column, "train_logprobs": column})
    batch = batch.replace_schema_metadata({"schema": "1", "step": "0"})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    assert len(sink.getvalue()) < 100_000
    async with start(limits=Limits(decoded_bytes=1_000_000)) as live:
        run = await live.run()

        problem(await post(live, run, sink.getvalue()), 422, "1000000", "limit")
        await nothing_stored(live, run)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
async def test_a_broken_encoding_is_a_bad_request(start: Start, encoding: str, damage: str) -> None:
    body = wire.encode(make_batch())
    packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
    broken = packed[: len(packed) // 2] if damage == "cut" else b"noise" * 20
    async with start() as live:
        run = await live.run()

        problem(await post(live, run, broken, Content_Encoding=encoding), 400, encoding)
        await nothing_stored(live, run)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(rows=3), "4 rows, limit 3"),
        (Limits(tokens=199), "200 tokens, limit 199"),
        (Limits(sequence_tokens=49), "50 tokens, limit 49"),
    ],
)
async def test_each_limit_is_named_where_it_is_hit(start: Start, limits: Limits, named: str) -> None:
    async with start(limits=limits) as live:
        run = await live.run()

        problem(await live.send(run), 422, named)
        problem(
            await live.client.post(f"{API}/runs/{run}/batches", content=_as_json(make_batch()), headers=_JSON),
            422,
            named,
        )


async def test_json_has_a_smaller_limit(start: Start) -> None:
    async with start(limits=Limits(json_bytes=100)) as live:
        run = (await live.client.post(f"{API}/runs", json={"project": "p", "name": "r"})).json()["run_id"]

        problem(await live.client.post(f"{API}/runs/{run}/batches", json=JSON_BATCH), 413, "limit 100")


_JSON = {"Content-Type": "application/json"}


def _as_json(batch: Batch) -> bytes:
    cuts = batch.offsets_B1[1:-1]
    rows = zip(np.split(batch.infer_logprobs_N, cuts), np.split(batch.train_logprobs_N, cuts), strict=True)
    sequences = [{"infer_logprobs": infer.tolist(), "train_logprobs": train.tolist()} for infer, train in rows]
    return orjson.dumps({"step": 0, "sequences": sequences})
