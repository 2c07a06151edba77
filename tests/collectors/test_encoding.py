"""Encoding: tokens or their summary, with the same key, and the first batch of every stream looked at."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.encoding import Encoder, parameters
from tailwatch_collectors.summary import from_bytes, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

RNG = np.random.default_rng(11)
INFER = -RNG.exponential(1.0, (8, 50)).astype(np.float32)
TRAIN = np.minimum(INFER + RNG.normal(0, 0.05, INFER.shape), 0).astype(np.float32)


def _batch(stream: str = "train", step: int = 3) -> Batch:
    meta = BatchMeta(step=step, stream=stream, session="s", rank=1, world_size=2, part=4, final=False)
    return Batch.from_arrays(meta, infer_logprobs=INFER, train_logprobs=TRAIN)


def test_tokens_are_the_wire_record_and_edge_is_the_summary() -> None:
    encode = Encoder(compression=None, inspect=lambda _: None)
    batch = _batch()
    tokens, edge = encode(batch, "tokens"), encode(batch, "edge")

    assert (tokens.route, edge.route) == ("batches", "summaries")
    assert wire.content_digest(wire.decode(tokens.body).batch) == wire.content_digest(batch)
    found = from_bytes(edge.body)
    assert to_bytes(found) == to_bytes(summarise(batch, sample=True, backend="numpy"))
    assert found.tokens == 400
    assert len(edge.body) < 65_536
    for name, value in tokens.key.items():
        assert edge.key[name] == value


def test_the_summary_keeps_the_worst_tokens_and_a_random_sample() -> None:
    encode = Encoder(compression=None, inspect=lambda _: None)
    found = from_bytes(encode(_batch(), "edge").body)
    plain = from_bytes(to_bytes(summarise(_batch())))

    assert len(to_bytes(found)) > len(to_bytes(plain))


def test_a_batch_without_rows_travels_as_it_is() -> None:
    none = np.empty(0, np.float32)
    batch = Batch(
        meta=BatchMeta(step=1), offsets_B1=np.zeros(1, np.int64), infer_logprobs_N=none, train_logprobs_N=none
    )

    assert Encoder(compression=None, inspect=lambda _: None)(batch, "edge").route == "batches"


def test_the_first_batch_of_every_stream_is_looked_at() -> None:
    seen: list[tuple[str, int]] = []
    encode = Encoder(compression=None, inspect=lambda batch: seen.append((batch.meta.stream, batch.meta.step)))
    for step in range(3):
        for stream in ("train", "eval"):
            encode(_batch(stream, step), "tokens")

    assert seen == [("train", 0), ("eval", 0)]


def test_parameters_name_all_that_is_known() -> None:
    meta = BatchMeta(step=3, session="s", framework="own", train_version=2, final=False, project="p", run="r")

    assert parameters(meta) == {
        "step": 3,
        "rank": 0,
        "part": 0,
        "final": False,
        "phase": "rollout",
        "update_index": 0,
        "stream": "train",
        "session": "s",
        "framework": "own",
        "train_version": 2,
    }


def test_a_collector_at_the_edge_posts_summaries(service: FakeService) -> None:
    with tailwatch.connect(project="p", run="r", url=service.url, session="s é", mode="edge") as collector:
        collector.record(step=1, infer_logprobs=INFER, train_logprobs=TRAIN, final=False)
        collector.end_step(1)
        assert collector.flush(30)
        assert collector.stats.sent == 2

    (call,) = service.of("summaries")
    query = parse_qs(urlsplit(call.path).query)
    assert query["session"] == ["s é"]
    assert query["final"] == ["false"]
    assert call.headers["content-type"] == "application/octet-stream"
    assert from_bytes(call.body).tokens == 400
    assert [batch.meta.final for batch in service.batches.values()] == [True]


def test_summaries_survive_on_disk(service: FakeService, tmp_path: Path) -> None:
    with tailwatch.connect(project="p", run="r", session="s", mode="edge", spool_dir=tmp_path) as collector:
        collector.record(step=1, infer_logprobs=INFER, train_logprobs=TRAIN)
    with tailwatch.connect(project="p", run="r", session="t", url=service.url, spool_dir=tmp_path) as later:
        assert later.flush(30)
        later.close(20)

    (call,) = service.of("summaries")
    assert parse_qs(urlsplit(call.path).query)["session"] == ["s"]


def test_what_the_columns_mean_is_said_once(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    probabilities = np.exp(INFER)
    with (
        caplog.at_level(logging.WARNING, "tailwatch"),
        tailwatch.connect(project="p", run="r", url=service.url, session="s", config={"temperature": 0.0}) as collector,
    ):
        for step in range(3):
            collector.record(step=step, infer_logprobs=probabilities, train_logprobs=TRAIN)
        assert collector.flush(30)

    events = [call.json["payload"] for call in service.of("events") if call.json["kind"] == "semantics"]
    codes = [event["code"] for event in events]
    assert "greedy" in codes
    assert len(codes) == len(set(codes))
    assert caplog.text.count("temperature 0") == 1
