"""From a batch to its summary by the compiled pass: chunks of whole sequences, on as many threads as asked for.

Where chunks end depends on the batch alone, and their sums are added up in their order: the result is the same bits
on any number of threads. Exact counts are kept per thread, in any order.

Shapes: B sequences, C chunks, R buckets, S properties known per sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.clusters import Clusters
from tailwatch_collectors.summary.fused import layout
from tailwatch_collectors.summary.fused.entries import by_sequence, fold, pass_chunks
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.moments import CoMoments, Moments
from tailwatch_collectors.summary.parts import Buckets, LagSums, Parts, assemble
from tailwatch_collectors.summary.picks import Picks, highest, pick, uniform
from tailwatch_collectors.summary.properties import Lags, Property, sequence_properties
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.slices import BucketStats
from tailwatch_collectors.summary.summary import Summary

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
Float64Array = NDArray[np.float64]

_ABSENT: dict[Any, NDArray[Any]] = {dtype: np.empty(0, dtype) for dtype in (np.bool_, np.int16, np.int32, np.float32)}
_EDGE_TABLE = layout.edge_table()
_TOKEN_LABELS = {"advantage": schema.ADVANTAGE_SIGNS, "lag": schema.LAG_LABELS, "turn": schema.TURN_LABELS}


def summarise_fused(batch: Batch, *, sample: bool, threads: int) -> Summary:
    """The summary of a batch."""
    return assemble(batch, parts(batch, sample=sample, threads=threads))


@dataclass(slots=True)
class _Chunks:
    """What is added up chunk by chunk."""

    total: Float64Array
    extreme: Float64Array
    moment: Float64Array
    align: Float64Array
    extra: Float64Array
    exceed: Float64Array
    bin_sq: Float64Array
    stats: Float64Array

    @classmethod
    def empty(cls, chunks: int, *, buckets: int) -> _Chunks:
        extra = np.zeros((chunks, layout.EXTRA))
        extra[:, layout.LAGS + 1 :] = np.inf, -np.inf
        stats = np.zeros((chunks, layout.BINS + buckets, layout.STAT))
        stats[:, :, layout.STAT_MIN], stats[:, :, layout.STAT_MAX] = np.inf, -np.inf
        return cls(
            np.zeros((chunks, layout.TOTAL)),
            np.zeros((chunks, layout.SCALED, 2)),
            np.zeros((chunks, layout.MOMENT)),
            np.zeros((chunks, len(schema.ALIGN_SHIFTS), len(schema.ALIGN_SUMS))),
            extra,
            np.zeros((chunks, 2, layout.LEVELS, len(schema.EXCEED_SUMS))),
            np.zeros((chunks, layout.BINS)),
            stats,
        )


@dataclass(slots=True)
class _Worker:
    """What one thread counts and picks."""

    octaves: Int32Array
    lag_counts: Int64Array
    sign_grid: Int32Array = field(
        default_factory=lambda: np.zeros(len(schema.ADVANTAGE_SIGNS) * layout.CELLS, np.int32)
    )
    bin_grid: Int32Array = field(default_factory=lambda: np.zeros(layout.BINS * layout.BIN_CELLS, np.int32))
    passed: Int64Array = field(default_factory=lambda: np.zeros((2, len(schema.RATIO_THRESHOLDS)), np.int64))
    faults: Int64Array = field(default_factory=lambda: np.zeros(layout.FAULTS, np.int64))
    pick_values: Float64Array = field(default_factory=lambda: np.empty((2, layout.PICKS)))
    pick_places: Int64Array = field(default_factory=lambda: np.empty((2, layout.PICKS), np.int64))
    pick_counts: Int64Array = field(default_factory=lambda: np.zeros(2, np.int64))

    def add(self, other: _Worker) -> None:
        """Add another thread's counts."""
        for mine, theirs in (
            (self.octaves, other.octaves),
            (self.lag_counts, other.lag_counts),
            (self.sign_grid, other.sign_grid),
            (self.bin_grid, other.bin_grid),
            (self.passed, other.passed),
            (self.faults, other.faults),
        ):
            np.add(mine, theirs, out=mine)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Buckets that the pass fills: positions, properties known per token, then those known per sequence."""

    known: Mapping[str, Property]
    """Known per sequence."""
    base_P: Int64Array
    """First bucket of each of PROPERTY_NAMES; -1 where it is not known per token."""
    token_buckets: int
    sequence_base: Mapping[str, int]
    """First bucket of properties whose octaves the pass counts."""
    bucket_SB: Int32Array
    buckets: int

    @classmethod
    def of(cls, batch: Batch, lag: Lags, by_token: Mapping[str, bool]) -> _Plan:
        known = {name: one for name, one in sequence_properties(batch, lag).items() if not by_token.get(name)}
        buckets = layout.POSITIONS
        base_P = np.full(layout.PROPERTIES, -1, np.int64)
        for index, name in enumerate(layout.PROPERTY_NAMES):
            if by_token[name]:
                base_P[index] = buckets
                buckets += len(_TOKEN_LABELS[name])
        token_buckets = buckets
        sequence_base, rows = {}, []
        for name, one in known.items():
            code_B = one.code_B
            # By sign is what the grid is kept by, and the one bucket of all is the whole.
            if code_B is None or name == "advantage" or len(code_B) == 0 or (code_B == code_B[0]).all():
                continue
            sequence_base[name] = buckets
            rows.append(code_B + np.int32(buckets))
            buckets += len(one.labels)
        bucket_SB = np.stack(rows) if rows else np.empty((0, batch.sequences), np.int32)
        return cls(known, base_P, token_buckets, sequence_base, bucket_SB.astype(np.int32, copy=False), buckets)


def parts(batch: Batch, *, sample: bool = False, threads: int = 1, level: int = layout.ALL) -> Parts:
    """What `assemble` needs of a batch; without bins or slices below their `level`."""
    version = batch.meta.train_version
    version_N = None if version is None else batch.infer_version_N
    lag = Lags()
    if version is not None and version_N is None and batch.infer_version_B is not None:
        lag = Lags(lag_B=version - batch.infer_version_B)
    advantage_N = None if batch.advantage_B is not None else batch.advantage_N
    by_token = {"advantage": advantage_N is not None, "lag": version_N is not None, "turn": batch.turn_N is not None}
    plan = _Plan.of(batch, lag, by_token)
    bounds_C1 = _bounds(batch.offsets_B1)
    chunks = _Chunks.empty(max(1, len(bounds_C1) - 1), buckets=plan.token_buckets)
    rows_BQ = np.zeros((batch.sequences, layout.ROW))
    count_B2 = np.zeros((batch.sequences, 2), np.int64)
    sign = plan.known.get("advantage")
    sign_B = (
        np.full(batch.sequences, -1, np.int32) if sign is None or sign.code_B is None else sign.code_B.astype(np.int32)
    )
    lag_cells = schema.MAX_LAG_CELL + 1 if version_N is not None else 1

    columns = [_column(values, dtype) for values, dtype in _columns(batch)]
    by_token_columns = _column(advantage_N, np.float32), _column(version_N, np.int32), _column(batch.turn_N, np.int16)
    threads = max(1, min(threads, len(bounds_C1) - 1))

    def worker(first: int) -> _Worker:
        """Every `threads`-th chunk from `first` on."""
        mine = _Worker(np.zeros((plan.buckets, layout.OCTAVES), np.int32), np.zeros(lag_cells, np.int64))
        pass_chunks(
            *columns, *by_token_columns, version or 0, plan.base_P, sign_B, plan.bucket_SB,
            batch.offsets_B1, schema.LAG_EDGES, *_EDGE_TABLE, schema.LOG_RATIO_THRESHOLDS,
            level, bounds_C1, first, threads,
            rows_BQ, count_B2,
            chunks.total, chunks.extreme, chunks.moment, chunks.align,
            chunks.extra, chunks.exceed, chunks.bin_sq, chunks.stats,
            mine.sign_grid, mine.bin_grid, mine.octaves, mine.passed, mine.faults,
            mine.pick_values, mine.pick_places, mine.pick_counts, mine.lag_counts,
        )  # fmt: skip
        return mine

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            workers = list(pool.map(worker, range(threads)))
    else:
        workers = [worker(0)]
    residual_C3 = np.ascontiguousarray(chunks.extra[:, 9:12])
    fold(chunks.moment, chunks.extreme, chunks.stats, residual_C3)
    picks = [_picks(batch, workers, side) for side in range(2)]
    for other in workers[1:]:
        workers[0].add(other)
    return _parts(batch, plan, lag, chunks, workers[0], residual_C3[0], rows_BQ, count_B2, sign_B, picks, sample=sample)


def _columns(batch: Batch) -> list[tuple[NDArray[Any] | None, Any]]:
    return [
        (batch.infer_logprobs_N, np.float32),
        (batch.train_logprobs_N, np.float32),
        (batch.mask_N, np.bool_),
        (batch.mask_post_N, np.bool_),
        (batch.entropy_N, np.float32),
        (batch.infer_entropy_N, np.float32),
        (batch.sum_p2_other_N, np.float32),
        (batch.token_ids_N, np.int32),
        (batch.train_token_ids_N, np.int32),
    ]


def _column(values: NDArray[Any] | None, dtype: Any) -> NDArray[Any]:
    """Contiguous and of the type the pass is compiled for; empty where absent."""
    return _ABSENT[dtype] if values is None else np.require(values, dtype, ["C", "A"])


def _bounds(offsets_B1: Int64Array) -> Int64Array:
    """[C + 1] first sequence of each chunk, and where the last one ends."""
    bounds = [0]
    sequences = len(offsets_B1) - 1
    while bounds[-1] < sequences:
        last = int(np.searchsorted(offsets_B1, offsets_B1[bounds[-1]] + layout.CHUNK))
        bounds.append(min(max(last, bounds[-1] + 1), sequences))
    return np.array(bounds)


def _picks(batch: Batch, workers: list[_Worker], side: int) -> Picks:
    """The best of all threads; equal ones in the order of their places."""
    counts = [int(one.pick_counts[side]) for one in workers]
    values = np.concatenate([one.pick_values[side, :count] for one, count in zip(workers, counts, strict=True)])
    places = np.concatenate([one.pick_places[side, :count] for one, count in zip(workers, counts, strict=True)])
    order = np.lexsort((places, -values))[: schema.WORST_TOKENS]
    return pick(batch, places[order], values[order])


def _parts(
    batch: Batch,
    plan: _Plan,
    lag: Lags,
    chunks: _Chunks,
    counted: _Worker,
    residual: Float64Array,
    rows_BQ: Float64Array,
    count_B2: Int64Array,
    sign_B: Int32Array,
    picks: list[Picks],
    *,
    sample: bool,
) -> Parts:
    masked_B, valid_B = count_B2[:, layout.MASKED], count_B2[:, layout.VALID]
    complete_B = (masked_B > 0) & (masked_B == valid_B)
    rows_BQ += 0.0  # the compiler may leave -0.0
    total = chunks.total.sum(axis=0) + 0.0
    extra = dict(zip(layout.EXTRA_NAMES, (chunks.extra.sum(axis=0) + 0.0).tolist(), strict=True))
    tokens = int(valid_B.sum())
    moment = dict(zip(layout.MOMENT_NAMES, (chunks.moment[0] + 0.0).tolist(), strict=True))
    stats_RS, spans = _by_sequence(plan, chunks.stats[0], rows_BQ, count_B2)
    stats = _bucket_stats(stats_RS)
    spans = {name: slice(span.start - layout.BINS, span.stop - layout.BINS) for name, span in spans.items()}
    extreme = ScaledSums.of(chunks.extreme[0, :, 0], chunks.extreme[0, :, 1].astype(np.int64))
    counters = {
        **dict(zip(layout.FAULT_NAMES, counted.faults.tolist(), strict=True)),
        "tokens": tokens,
        "tokens_total": batch.tokens,
        "sequences": int(np.count_nonzero(masked_B)),
        "sequences_empty": int(np.count_nonzero(masked_B == 0)),
        "sequences_incomplete": int(np.count_nonzero((masked_B > 0) & ~complete_B)),
        "seq_ids_duplicate": 0 if batch.seq_id is None else len(batch.seq_id) - len(set(batch.seq_id)),
        "clusters": int(np.count_nonzero(valid_B)),
        "tokens_score": int(extra["score_tokens"]),
        **{name: int(extra[name]) for name in ("entropy_tokens", "infer_entropy_tokens", "entropy_gap_tokens")},
    }
    named = dict(zip(layout.TOTAL_NAMES[layout.SCALED :], total[layout.SCALED :].tolist(), strict=True))
    same = ("entropy", "infer_entropy", "entropy_gap", "score_norm_sq", "fisher_trace")
    n = np.array(tokens)
    there = valid_B > 0
    above, below = counted.passed
    return Parts(
        counters=counters,
        sums=named | {name: extra[name] for name in same},
        above=above,
        below=below,
        scaled=ScaledSums.of(total[: layout.SCALED]).merge(extreme),
        low=float(rows_BQ[there, layout.ROW_MIN].min(initial=np.inf)),
        high=float(rows_BQ[there, layout.ROW_MAX].max(initial=-np.inf)),
        prob_diff_max=moment["gap_max"] if tokens else -np.inf,
        log_ratio=Moments(n, np.array(moment["mean_d"]), np.array(moment["m2_d"])),
        prob_diff=Moments(n, np.array(moment["mean_gap"]), np.array(moment["m2_gap"])),
        probs=CoMoments(
            n, *(np.array(moment[name]) for name in ("mean_train", "mean_infer", "m2_train", "m2_infer", "c"))
        ),
        score_residual=Moments(np.array(int(residual[0])), *(np.array(value) for value in residual[1:].tolist())),
        sign_grid=counted.sign_grid,
        bin_grid=counted.bin_grid,
        bins=stats.rows(slice(0, layout.BINS)),
        buckets=_buckets(plan, stats.rows(slice(layout.BINS, None)), spans, counted),
        lag=_lag_sums(lag, counted, chunks, rows_BQ, valid_B),
        clusters=Clusters(
            valid_B.astype(np.float64),
            np.ascontiguousarray(rows_BQ[:, : len(schema.CLUSTER_TERMS)].T),
            rows_BQ[:, layout.ROW_MIN],
            rows_BQ[:, layout.ROW_MAX],
            chunks.bin_sq.sum(axis=0),
            chunks.exceed.sum(axis=0),
        ),
        bin_sq=chunks.bin_sq.sum(axis=0),
        exceed=chunks.exceed.sum(axis=0),
        complete_B=complete_B,
        sign_B=np.where(sign_B < 0, layout.UNKNOWN_SIGN, sign_B).astype(np.int64),
        align=chunks.align.sum(axis=0) + 0.0,
        worst_upper=picks[0],
        worst_lower=picks[1],
        sample=_sample(batch) if sample else Picks.empty(),
    )


def _lag_sums(lag: Lags, counted: _Worker, chunks: _Chunks, rows_BQ: Float64Array, valid_B: Int64Array) -> LagSums:
    known = int(counted.lag_counts.sum())
    if known == 0:
        return LagSums.of_sequences(lag, valid_B)
    total, low, high = chunks.extra[:, layout.LAGS :].T
    oldest_B = rows_BQ[:, layout.ROW_OLDEST]
    found = LagSums(known, float(total.sum()), float(low.min()), float(high.max()), Grid.of_dense(counted.lag_counts))
    return found.with_oldest((oldest_B[oldest_B > 0] - 1).astype(np.int64))


def _buckets(
    plan: _Plan, stats: BucketStats, by_sequence_R: Mapping[str, slice], counted: _Worker
) -> dict[str, Buckets]:
    """Every property's buckets; `stats` holds those of the pass, then those of properties known per sequence."""
    span = slice(0, layout.POSITIONS)
    found = {"position": Buckets(schema.POSITION_LABELS, stats.rows(span), counted.octaves[span])}
    for base, name in zip(plan.base_P.tolist(), layout.PROPERTY_NAMES, strict=True):
        if base >= 0:
            labels = _TOKEN_LABELS[name]
            span = slice(base, base + len(labels))
            found[name] = Buckets(labels, stats.rows(span), counted.octaves[span])
    by_sign = _octaves_of(counted.sign_grid.reshape(-1, layout.CELLS))
    for name, one in plan.known.items():
        base = plan.sequence_base.get(name, -1)
        if base >= 0:
            octaves: NDArray[np.integer] = counted.octaves[base : base + len(one.labels)]
        elif name == "advantage":
            octaves = by_sign
        else:
            octaves = np.zeros((len(one.labels), layout.OCTAVES), np.int64)
            octaves[_code(one)[:1]] = by_sign.sum(axis=0)
        found[name] = Buckets(one.labels, stats.rows(by_sequence_R[name]), octaves)
    return found


def _code(one: Property) -> Int32Array:
    """[B] the code of a property that sequences share."""
    return np.empty(0, np.int32) if one.code_B is None else one.code_B


def _by_sequence(
    plan: _Plan, passed_RS: Float64Array, rows_BQ: Float64Array, count_B2: Int64Array
) -> tuple[Float64Array, dict[str, slice]]:
    """The pass's buckets followed by those of properties known per sequence, and where each of these stands."""
    spans, rows = {}, len(passed_RS)
    for name, one in plan.known.items():
        spans[name] = slice(rows, rows + len(one.labels))
        rows += len(one.labels)
    stats_RS = np.zeros((rows, layout.STAT))
    stats_RS[:, layout.STAT_MIN], stats_RS[:, layout.STAT_MAX] = np.inf, -np.inf
    stats_RS[: len(passed_RS)] = passed_RS
    for name, one in plan.known.items():
        if len(count_B2):
            by_sequence(rows_BQ, count_B2, _code(one), stats_RS[spans[name]])
    return stats_RS, spans


def _octaves_of(cells_RK: NDArray[np.integer]) -> Int64Array:
    """[R, OCTAVES] from the counts of a finer grid: its cells are in order of value, and nest."""
    per_octave = 1 << (schema.TOKEN_BITS - schema.OCTAVE_BITS)
    half = (layout.OCTAVES - 1) // 2
    # Ends of the grid and zero have a cell each.
    starts = np.concatenate(
        (
            [0],
            1 + per_octave * np.arange(half - 1),
            [layout.CELLS // 2],
            layout.CELLS // 2 + 1 + per_octave * np.arange(half - 1),
            [layout.CELLS - 1],
        )
    )
    summed: Int64Array = np.add.reduceat(cells_RK.astype(np.int64), starts, axis=1)
    return summed


def _bucket_stats(stats_RS: Float64Array) -> BucketStats:
    columns = np.ascontiguousarray(stats_RS.T)
    columns += 0.0  # the compiler may leave -0.0
    counts = columns[[layout.STAT_N, layout.STAT_OUTSIDE_2X, layout.STAT_OUTSIDE_5X]].T.astype(np.int64)
    k3 = ScaledSums.of(columns[layout.STAT_K3])
    if columns[layout.STAT_MANTISSA].any():
        exponent = columns[layout.STAT_EXPONENT].astype(np.int64)
        k3 = k3.merge(ScaledSums.of(columns[layout.STAT_MANTISSA], exponent))
    return BucketStats(
        np.ascontiguousarray(counts),
        np.ascontiguousarray(columns[[layout.STAT_POSITIVE, layout.STAT_NEGATIVE, layout.STAT_COMPLEMENT]].T),
        Moments(counts[:, 0].copy(), columns[layout.STAT_MEAN], columns[layout.STAT_M2]),
        k3,
        columns[layout.STAT_MIN],
        columns[layout.STAT_MAX],
    )


def _sample(batch: Batch) -> Picks:
    """A uniform sample of the valid tokens, drawn by their places."""
    from tailwatch_collectors.summary.validation import validate

    valid = validate(batch)
    index_V = np.arange(batch.tokens) if valid.index_V is None else valid.index_V
    row_V = np.searchsorted(batch.offsets_B1, index_V, side="right") - 1
    position_V = index_V - batch.offsets_B1[row_V]
    meta = batch.meta
    drawn_V = uniform(meta.step, meta.update_index, meta.rank, meta.part, row_V, position_V)
    best = highest(drawn_V, schema.SAMPLE_TOKENS)
    return pick(batch, index_V[best].astype(np.int64), drawn_V[best])
