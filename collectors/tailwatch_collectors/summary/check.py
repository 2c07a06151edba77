"""What a summary must satisfy: summaries come from other machines, and every metric is computed from what they say.

A summary that passes can be merged and turned into metrics without a division by zero, a root of a negative number
or an array of a length its sender chose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from tailwatch_collectors.errors import FieldError, TailwatchError
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count, cells_of, sequence_offset
from tailwatch_collectors.summary.moments import Moments
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.slices import OCTAVES, BucketStats, Slice
from tailwatch_collectors.summary.summary import Summary

_MAX_COUNT = 2**48
"""Tokens of any window; sums of counts stay far from the end of int64."""
_MAX_SEQUENCES = 2**26
"""65,536 rows of 1,024 ranks: sequences are gone through one by one."""
_MAX_SIZE = 1e100
"""A sum of squares of float32 log-probs stays below it, and its own square within float64."""
_MAX_CLUSTER = 1e300
"""A square of a sequence's sum of e^300."""
_MAX_EXPONENT = 2**52
_MAX_LABEL = 256
_WHOLE = ("lag", "position", "rank")
"""Slices that hold every token."""
_SLICE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class SummaryError(TailwatchError, ValueError):
    """Bytes that are not a summary this version reads; names the field."""

    def __init__(self, error: FieldError) -> None:
        super().__init__(error)
        self.errors = (error,)

    def __str__(self) -> str:
        return str(self.errors[0])


def leaves(node: Any, path: str = "summary") -> Iterator[tuple[str, Any]]:
    """The arrays and tuples of a summary with their dotted names, in the order of the fields."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}")
        return
    for name in field_names(type(node)):
        value = getattr(node, name)
        if isinstance(value, np.ndarray | np.generic | tuple):  # 0-d arithmetic leaves scalars
            yield f"{path}.{name}", value
        elif isinstance(value, int):
            yield f"{path}.{name}", np.asarray(value, np.int64)
        else:
            yield from leaves(value, f"{path}.{name}")


_FIELD_NAMES: dict[Any, tuple[str, ...]] = {}


def field_names(kind: Any) -> tuple[str, ...]:
    """Of a dataclass, in order."""
    if kind not in _FIELD_NAMES:
        _FIELD_NAMES[kind] = tuple(one.name for one in fields(kind))
    return _FIELD_NAMES[kind]


def check(summary: Summary) -> None:
    """Refuse values that no batch, and no merge of batches, can produce.

    Raises:
        SummaryError: names the field.
    """
    _check_ranges(summary)
    tokens, complete = summary.tokens, summary.count("sequences_complete")
    _check_grids(summary, tokens, complete)
    for name in ("log_ratio", "prob_diff"):
        _check_moments(name, getattr(summary, name), tokens)
    probs = summary.probs
    _check_moments("probs", Moments(probs.n, probs.mean_x, probs.m2_x), tokens)
    _check_moments("probs", Moments(probs.n, probs.mean_y, probs.m2_y), tokens)
    _check_moments("score_residual", summary.score_residual, summary.score_residual.n)
    if int(summary.score_residual.n) > summary.count("tokens_score"):
        _refuse("score_residual", f"counts {summary.score_residual.n}, counters say {summary.count('tokens_score')}")
    _check_buckets("bins", summary.bins)
    if int(summary.bins.counts_RC[:, 0].sum()) != tokens:
        _refuse("bins", f"holds {summary.bins.counts_RC[:, 0].sum()} tokens, counters say {tokens}")
    _check_slices(summary.slices, tokens)
    _check_clusters(summary, tokens)
    _check_scaled("token_scaled", summary.token_scaled, tokens)
    _check_scaled("sequence_scaled", summary.sequence_scaled, complete)
    _check_extremes(summary, tokens, complete)
    _check_lengths(summary, complete)
    _check_lags(summary)
    for name, most in (
        ("worst_upper", schema.WORST_TOKENS),
        ("worst_lower", schema.WORST_TOKENS),
        ("sample", schema.SAMPLE_TOKENS),
    ):
        picks = getattr(summary, name)
        lengths = {len(getattr(picks, field.name)) for field in fields(picks)}
        if len(lengths) != 1 or max(lengths) > most:
            _refuse(name, f"has columns of length {sorted(lengths)}")


def _refuse(name: str, reason: str) -> None:
    raise SummaryError(FieldError(column=name, reason=reason))


def _check_ranges(summary: Summary) -> None:
    """Arrays of one kind are looked at together, and one by one only to name the one at fault."""
    groups: dict[tuple[str, bool], list[tuple[str, Any]]] = {}
    for path, value in leaves(summary):
        if not isinstance(value, tuple):
            kind = _kind(path.rpartition(".")[2], value.dtype)
            groups.setdefault((kind, value.dtype == np.float32), []).append((path, value))
    for (kind, _), members in groups.items():
        together = np.concatenate([value.ravel() for _, value in members])
        if not _sound(kind, together).all():
            for path, value in members:
                sound = _sound(kind, value)
                if not sound.all():
                    _refuse(path, _SAYS[kind].format(value[~sound].flat[0]))


def _kind(leaf: str, dtype: np.dtype[Any]) -> str:
    """Which range an array must keep."""
    if leaf in {"exponent", "mantissa"}:
        return leaf
    if dtype.kind == "i":
        return "count" if dtype == np.int64 and leaf != "token_id" else "id"
    if leaf in {"minima", "maxima", "min_R", "max_R"}:
        return "extreme"
    return "cluster" if leaf.startswith("cluster_") else "sum"


_SAYS = {
    "exponent": f"holds an exponent beyond 2^{_MAX_EXPONENT.bit_length() - 1}",
    "mantissa": "is not normalised",
    "count": f"holds a count outside 0 .. {_MAX_COUNT}",
    "extreme": "holds {}, which no sum of log-probs gives",
    "cluster": "holds {}, which no sum of log-probs gives",
    "sum": "holds {}, which no sum of log-probs gives",
}


def _sound(kind: str, value: Any) -> Any:
    """Which entries a summary can hold."""
    if kind == "exponent":
        return (value >= -_MAX_EXPONENT) & (value <= _MAX_EXPONENT)
    if kind == "mantissa":
        return (value == 0) | ((value >= 0.5) & (value < 1))
    if kind == "count":
        return (value >= 0) & (value <= _MAX_COUNT)
    if kind == "id":
        return np.ones(value.shape, np.bool_)
    most = _MAX_CLUSTER if kind == "cluster" else _MAX_SIZE
    sound = np.abs(value.astype(np.float64, copy=False)) <= most
    return sound | np.isinf(value) if kind == "extreme" else sound


def _check_grids(summary: Summary, tokens: int, complete: int) -> None:
    cells, bin_cells = map(cell_count, (schema.TOKEN_BITS, schema.BIN_BITS))
    grids = len(schema.SEQUENCE_GRIDS)
    known = summary.count("tokens_lag_known")
    signs = len(schema.ADVANTAGE_SIGNS)
    _check_grid("sign_grid", summary.sign_grid, limit=cells * signs, columns=1, total=tokens)
    _check_grid("bin_grid", summary.bin_grid, limit=bin_cells * schema.PROBABILITY_BINS, columns=1, total=tokens)
    limit = sequence_offset(schema.SEQUENCE_GRIDS[-1], signs)
    _check_grid("sequence_grid", summary.sequence_grid, limit=limit, columns=2, total=grids * complete)
    _check_grid("lag_grid", summary.lag_grid, limit=schema.MAX_LAG_CELL + 1, columns=1, total=known)
    per_bin = _by_group(summary.bin_grid, bin_cells, groups=schema.PROBABILITY_BINS)
    if (per_bin != summary.bins.counts_RC[:, 0]).any():
        _refuse("bin_grid", "disagrees with the tokens per bin")


def _check_grid(name: str, grid: Grid, *, limit: int, columns: int, total: int) -> None:
    keys = grid.keys
    if grid.counts.shape != (len(keys), columns):
        _refuse(name, f"has counts of shape {grid.counts.shape}")
    if len(keys) and (keys[0] < 0 or keys[-1] >= limit or (np.diff(keys) <= 0).any()):
        _refuse(name, f"keys must rise within 0 .. {limit - 1}")
    if (grid.counts[:, 0] == 0).any():
        _refuse(name, "holds an empty cell")
    if int(grid.counts[:, 0].sum()) != total:
        _refuse(name, f"holds {grid.counts[:, 0].sum()}, counters say {total}")


def _by_group(grid: Grid, size: int, *, groups: int) -> Any:
    """[groups] counts of runs of `size` keys; exact, for counts stay far below 2^53."""
    return np.bincount(grid.keys // size, weights=grid.counts[:, 0], minlength=groups)


def _check_moments(name: str, moments: Moments, count: Any) -> None:
    if (moments.n != count).any():
        _refuse(name, f"counts {moments.n}, counters say {count}")
    if (moments.m2 < 0).any():
        _refuse(name, "has a negative sum of squares")


def _check_buckets(name: str, part: BucketStats) -> None:
    per_bucket = part.counts_RC[:, 0]
    _check_moments(name, part.log_ratio_R, per_bucket)
    there = per_bucket > 0
    ordered = np.isfinite(part.min_R) & np.isfinite(part.max_R) & (part.min_R <= part.max_R)
    empty = (part.min_R == np.inf) & (part.max_R == -np.inf)
    if not np.where(there, ordered, empty).all():
        _refuse(name, "has extremes that do not fit its counts")


def _check_slices(slices: Mapping[str, Slice], tokens: int) -> None:
    if len(slices) > schema.MAX_SLICES:
        _refuse("slices", f"holds {len(slices)} slices, limit {schema.MAX_SLICES}")
    for name, part in slices.items():
        where = f"slices.{name:.40}"
        if not _SLICE_NAME.fullmatch(name):
            _refuse(where, "is not a name of lower-case letters, digits and _")
        _check_labels(where, part)
        _check_buckets(where, part.stats)
        per_bucket = part.stats.counts_RC[:, 0]
        held = int(per_bucket.sum())
        if (per_bucket == 0).any():
            _refuse(where, "holds an empty bucket")
        if held > tokens or (name in _WHOLE and held != tokens):
            _refuse(where, f"holds {held} tokens, counters say {tokens}")
        _check_grid(where, part.octaves, limit=OCTAVES * len(part.labels), columns=1, total=held)
        octaves = _by_group(part.octaves, OCTAVES, groups=len(part.labels))
        if (octaves != per_bucket).any():
            _refuse(where, "has a histogram that disagrees with its tokens")
    for name in _WHOLE:
        if tokens and name not in slices:
            _refuse(f"slices.{name}", "is missing")


def _check_labels(where: str, part: Slice) -> None:
    labels = part.labels
    if not 1 <= part.limit <= schema.MAX_SLICE_BUCKETS:
        _refuse(where, f"keeps {part.limit} buckets, limit {schema.MAX_SLICE_BUCKETS}")
    if list(labels) != sorted(set(labels)) or any(len(label) > _MAX_LABEL for label in labels):
        _refuse(where, f"has labels that are not distinct, sorted and of at most {_MAX_LABEL} characters")
    if len(labels) - (schema.OTHER in labels) > part.limit:
        _refuse(where, f"has {len(labels)} buckets, limit {part.limit}")
    arrays = (part.stats.counts_RC, part.stats.sums_RQ, part.stats.log_ratio_R.n, part.stats.k3_R.mantissa)
    if any(len(array) != len(labels) for array in (*arrays, part.stats.min_R, part.stats.max_R)):
        _refuse(where, f"has {len(labels)} labels for another number of buckets")


def _check_clusters(summary: Summary, tokens: int) -> None:
    squares = {
        "cluster_sums": summary.cluster_sums[:, 0],
        "cluster_extras": summary.cluster_extras,
        "bin_cluster_sq": summary.bin_cluster_sq,
        "exceed_upper": summary.exceed_upper,
        "exceed_lower": summary.exceed_lower,
    }
    for name, values in squares.items():
        if (values < 0).any():
            _refuse(name, f"holds {values.min()}, which no sum of squares gives")
    clusters = summary.count("clusters")
    if clusters > tokens or (clusters == 0) != (tokens == 0):
        _refuse("counters", f"{clusters} sequences cannot hold {tokens} tokens")


def _check_scaled(name: str, sums: ScaledSums, count: int) -> None:
    """Weights are positive: their sums are, wherever there is one; and zero where there is none."""
    if ((sums.mantissa == 0) & (sums.exponent != 0)).any():
        _refuse(name, "is not normalised")
    if ((sums.mantissa[:2] > 0) != (count > 0)).any():
        _refuse(name, f"has weights that do not fit a count of {count}")


def _check_extremes(summary: Summary, tokens: int, complete: int) -> None:
    known = summary.count("tokens_lag_known")
    counts = {"log_ratio": tokens, "prob_diff_abs": tokens, "log_ppl_gap": complete, "lag": known}
    for names, values, nothing in (
        (schema.MINIMA, summary.minima, np.inf),
        (schema.MAXIMA, summary.maxima, -np.inf),
    ):
        for name, value in zip(names, values.tolist(), strict=True):
            if not (np.isfinite(value) if counts[name] else value == nothing):
                _refuse(name, f"extreme {value} does not fit a count of {counts[name]}")
    for name in schema.MINIMA:
        low, high = summary.minima[schema.MINIMA.index(name)], summary.maxima[schema.MAXIMA.index(name)]
        if counts[name] and low > high:
            _refuse(name, f"minimum {low} is above maximum {high}")
    if tokens:
        ends = np.array(
            [summary.minima[schema.MINIMA.index("log_ratio")], summary.maxima[schema.MAXIMA.index("log_ratio")]]
        )
        if (cells_of(ends, schema.TOKEN_BITS) != summary.grid.keys[[0, -1]]).any():
            _refuse("log_ratio", f"extremes {ends.tolist()} are not in the outermost cells of the grid")


def _check_lags(summary: Summary) -> None:
    known, sequences = summary.count("tokens_lag_known"), summary.count("sequences_lag_known")
    if (known > 0) != (sequences > 0) or sequences > min(known, summary.count("clusters")):
        _refuse("counters", f"{sequences} sequences of known lag do not fit {known} tokens of it")
    oldest, highest = summary.token_sum("lag_oldest"), summary.maxima[schema.MAXIMA.index("lag")]
    # To rounding: versions may be anything up to 2^53.
    if sequences and not highest * (1 - 1e-9) <= oldest <= sequences * highest * (1 + 1e-9):
        _refuse("token_sums", f"lag_oldest {oldest} does not fit {sequences} sequences with lags up to {highest}")


def _check_lengths(summary: Summary, complete: int) -> None:
    counts, lengths = summary.length_counts, summary.length_sums[:, schema.LENGTH_SUMS.index("T")]
    if int(counts.sum()) != complete or complete > min(_MAX_SEQUENCES, summary.tokens):
        _refuse("length_counts", f"holds {counts.sum()} sequences, counters say {complete}")
    if (lengths < counts).any():
        _refuse("length_sums", "has sequences shorter than one token")
