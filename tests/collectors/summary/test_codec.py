"""Bytes of a summary from another machine: any damage is a SummaryError, and what is read can be computed with."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, SummaryError, from_bytes, merge, schema, summarise, to_bytes
from tailwatch_collectors.summary.check import leaves
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.slices import BucketStats
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.corrections import CORRECTIONS
from tailwatch_service.statistics.envelope import envelope
from tailwatch_service.statistics.histogram import histogram, survival
from tailwatch_service.statistics.intervals import envelope_intervals, intervals
from tailwatch_service.statistics.slices import slices
from tailwatch_service.statistics.whatif import what_if
from tailwatch_service.statistics.worst import worst_tokens
from tests.contracts import summary_reader
from tests.oracles.families import batch_of, student_t2


def some_summary() -> Summary:
    rng = np.random.default_rng(1)
    lengths = [30] * 9 + [90] * 9 + [300] * 9
    versions = rng.integers(0, 3, len(lengths))
    meta = BatchMeta(step=1, train_version=3)
    rows = student_t2(rng, lengths)
    return summarise(batch_of(rows, rng, meta=meta, infer_version=versions, seq_id=list(map(str, range(27)))))


def use(summary: Summary) -> None:
    """Everything that the service computes from a summary."""
    computed = metrics(summary)
    assert all(np.isfinite(value) for value in computed.values.values())
    for bins in slices(summary).values():
        assert all(np.isfinite(value) for row in bins for value in row.metrics.values())
    around = intervals(summary, computed.values)
    assert all(np.isfinite(ends).all() for ends in around.values.values())
    envelope(summary)
    envelope_intervals(summary)
    for name in CORRECTIONS:
        what_if(summary, name)
    histogram(summary)
    survival(summary)
    worst_tokens(summary)
    metrics(merge([summary, summary]))


def payload_of(summary: Summary) -> bytes:
    data = to_bytes(summary)
    return bytes(
        pa.Codec("zstd").decompress(data[8:], decompressed_size=int.from_bytes(data[4:8], "little"), asbytes=True)
    )


def framed(payload: bytes, *, size: int | None = None) -> bytes:
    frame = pa.Codec("zstd").compress(payload, asbytes=True)
    return b"TWS\1" + (len(payload) if size is None else size).to_bytes(4, "little") + bytes(frame)


def test_every_truncation_is_refused() -> None:
    data = to_bytes(some_summary())
    for length in [*range(200), *range(200, len(data), 61), len(data) - 1]:
        with pytest.raises(SummaryError):
            from_bytes(data[:length])
    payload = payload_of(some_summary())
    for length in [*range(300), *range(300, len(payload), 997), len(payload) - 1]:
        with pytest.raises(SummaryError):
            from_bytes(framed(payload[:length]))
    with pytest.raises(SummaryError, match="is damaged"):
        from_bytes(framed(payload + b"\0"))
    with pytest.raises(SummaryError, match="counters: is damaged"):
        from_bytes(framed(payload + payload))


def test_flipped_bytes_are_refused_or_harmless() -> None:
    data, payload = to_bytes(some_summary()), payload_of(some_summary())
    draw = random.Random(5)
    refused = 0
    for turn in range(600):
        broken = bytearray(data if turn % 2 else payload)
        for _ in range(draw.choice((1, 1, 3))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            found = from_bytes(bytes(broken) if turn % 2 else framed(bytes(broken)))
        except SummaryError:
            refused += 1
        else:
            use(found)
    assert refused > 100


VALUES = (0, 1, -1, 2**31, 2**62, -(2**63), 0.5, -0.5, 1e150, -1e150, 1e308, np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_values_are_refused_or_harmless(seed: int) -> None:
    summary = some_summary()
    draw = random.Random(seed)
    accepted = 0
    for path, leaf in leaves(summary):
        if isinstance(leaf, tuple) or leaf.size == 0:
            continue
        for _ in range(2):
            hostile = np.array(leaf)
            value = draw.choice(VALUES)
            if leaf.dtype.kind == "i":
                value = 7 if not np.isfinite(value) else int(value) % 2**31 if leaf.dtype == np.int32 else int(value)
                value = max(min(value, 2**63 - 1), -(2**63)) if leaf.dtype == np.int64 else value
            with np.errstate(over="ignore"):
                hostile.reshape(-1)[draw.randrange(leaf.size)] = value
            try:
                found = from_bytes(to_bytes(with_leaf(summary, path.split(".")[1:], hostile)))
            except SummaryError:
                continue
            accepted += 1
            with np.errstate(all="ignore"):  # nonsense may overflow; it must not raise
                use(found)
    assert accepted > 10


def with_leaf(node: Any, path: list[str], value: Any) -> Any:
    mapped = isinstance(node, Mapping)
    old = node[path[0]] if mapped else getattr(node, path[0])
    inner = value if len(path) == 1 else with_leaf(old, path[1:], value)
    if isinstance(old, int):
        inner = int(inner)
    return dict(node) | {path[0]: inner} if mapped else replace(node, **{path[0]: inner})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a Tailwatch summary"),
        (b"TWS", "is not a Tailwatch summary"),
        (b"PAR1\0\0\0\0\0", "is not a Tailwatch summary"),
        (b"TWS\x07\0\0\0\0\0", "summary version 7 is not supported; this reader knows 1"),
        (b"TWS\0\0\0\0\0\0", "summary version 0 is not supported; this reader knows 1"),
        (b"TWS\1\xff\xff\xff\xff" + bytes(20), "decodes to 4294967295 bytes, limit"),
        (b"TWS\1\x10\0\0\0" + bytes(20), "is damaged"),
        (framed(b"\x08counters"), "is damaged"),
        (framed(b"\x08countersq\1\xff\xff\xff\xff"), "counters: is truncated"),
        (framed(b"\x08countersq\1\1\0\0\0" + bytes(8)), r"counters: has shape \(1,\), expected \(31,\)"),
        (framed(b"\x08countersd\1\x1e\0\0\0" + bytes(240)), "counters: holds float64, expected int64"),
        (framed(b"\x08countersx\1\1\0\0\0" + bytes(8)), "counters: is damaged"),
        (framed(b"\x08countersq\3" + bytes(12)), "counters: is damaged"),
        (framed(b"\x01a" + b"s\1\0\0\0\0"), "counters: is missing"),
        (framed(b"\x02\xff\xfes\1\0\0\0\0"), "is damaged"),
        (framed(b"".join(b"\x04%04ds\1\0\0\0\0" % n for n in range(4_097))), "4096: is damaged"),
    ],
)
def test_refusals_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        from_bytes(data)


def test_a_bomb_is_refused_by_its_claim() -> None:
    bomb = bytes(pa.Codec("zstd").compress(bytes(64 * 2**20), asbytes=True))
    with pytest.raises(SummaryError):
        from_bytes(b"TWS\1" + (1_000).to_bytes(4, "little") + bomb)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length_counts": np.full(32, 2**40)}, "length_counts: holds"),
        ({"above": np.full(11, -1)}, "above: holds a count outside"),
        ({"token_sums": np.full(13, np.nan)}, "token_sums: holds nan"),
        ({"minima": np.full(3, -np.inf)}, "log_ratio: extreme -inf does not fit"),
        ({"prob_diff": some_summary().log_ratio.merge(some_summary().log_ratio)}, "prob_diff: counts 7560"),
    ],
)
def test_counts_that_disagree_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        from_bytes(to_bytes(replace(some_summary(), **change)))


def test_names_nested_a_million_deep_are_refused() -> None:
    sections = summary_reader.read(to_bytes(some_summary()))
    nested = [ord("[")] * 1_000_000
    sections["worst_lower.seq_id"] = summary_reader.Section("s", (len(nested),), nested)
    with pytest.raises(SummaryError, match="is damaged"):
        from_bytes(summary_reader.write(sections))


def every_column(part: int, *, sequences: int = 400, length: int = 250) -> Batch:
    """A batch with everything a summary slices by."""
    rng = np.random.default_rng(part)
    lengths = [length] * sequences
    names = rng.integers(0, 8, sequences)
    return batch_of(
        student_t2(rng, lengths), rng, spacing=2.0,
        meta=BatchMeta(step=1, train_version=20, rank=part % 8, part=part),
        infer_version=rng.integers(0, 21, sequences),
        advantage=rng.normal(0, 1, sequences).astype(np.float32),
        source=[f"source {n}" for n in names],
        replica=[f"engine {n}" for n in names],
        turn=np.minimum(np.arange(length * sequences) % length // 30, 9),
        seq_id=[f"{part}-{n}" for n in range(sequences)],
    )  # fmt: skip


def test_sizes_stay_within_the_contract() -> None:
    assert len(to_bytes(Summary.empty())) < 1_536
    # Twice as many tokens of the same kind fill few cells more: the rest is made by doubling.
    summary = merge(summarise(every_column(part)) for part in range(40))
    summary = merge([summary] * 3)
    assert summary.tokens > 1e7
    assert len(summary.slices) == 7
    assert len(to_bytes(summary)) <= 64 * 1024
    bins = BucketStats.empty(schema.PROBABILITY_BINS)
    unsliced = replace(summary, slices={}, bin_grid=Grid.empty(), bins=bins, sign_grid=summary.grid)
    assert len(to_bytes(unsliced)) <= 24 * 1024


def test_equal_batches_give_equal_bytes() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(student_t2(rng, [100]), rng)
    again = Batch.from_arrays(
        batch.meta, infer_logprobs=batch.infer_logprobs_N.copy(), train_logprobs=batch.train_logprobs_N.copy()
    )
    assert to_bytes(summarise(batch)) == to_bytes(summarise(again))
