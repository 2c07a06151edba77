"""The slow, readable truth: every number of a summary from its definition, in plain Python, one token at a time.

Nothing here is fast and nothing is clever; sums are exact (`math.fsum`). The other backends are tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count, cells_of, sequence_offset
from tailwatch_collectors.summary.moments import CoMoments, Moments
from tailwatch_collectors.summary.picks import Picks, pick, uniform
from tailwatch_collectors.summary.scaled import MAX_LOG, ScaledSums, split_exp
from tailwatch_collectors.summary.slices import OCTAVES, BucketStats, Slice
from tailwatch_collectors.summary.summary import Summary

Pair = tuple[float, int]
"""mantissa, exponent."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token that counts."""

    index: int
    """In the flat arrays."""
    row: int
    position: int
    infer: float
    train: float
    labels: Mapping[str, str]
    """The bucket it falls into, by slice."""
    sign: str
    lag: int | None

    @property
    def d(self) -> float:
        """Log importance ratio."""
        return self.train - self.infer + 0.0

    @property
    def clipped(self) -> float:
        """d as the sums per sequence take it."""
        return max(-schema.CLUSTER_CLIP, min(schema.CLUSTER_CLIP, self.d))

    @property
    def ordinary(self) -> bool:
        """Whether exponentials of d stay far within float64."""
        return abs(self.d) <= schema.CLUSTER_CLIP

    @property
    def p(self) -> float:
        """Probability under the policy that sampled it."""
        return math.exp(self.infer)

    @property
    def gap(self) -> float:
        """p_train - p_infer."""
        return self.p * math.expm1(self.d) if self.ordinary else math.exp(self.train) - self.p

    @property
    def bin(self) -> int:
        """Which probability bin: how many edges it has reached."""
        return sum(1 for edge in schema.PROBABILITY_LOG_EDGES if np.float32(self.infer) >= edge)


def k3(d: float) -> float:
    """e^d - 1 - d; by its series where the subtraction would cancel."""
    if abs(d) < 0.5:
        return math.fsum(d**n / math.factorial(n) for n in range(2, 20))
    return math.expm1(d) - d


def js(d: float) -> float:
    """Jensen-Shannon divergence in units of p_infer."""
    x = d / 2
    return math.exp(x) * math.cosh(x) * (x * math.tanh(x) - math.log1p(math.sinh(x) ** 2) / 2)


TERMS: dict[str, Callable[[float], float]] = {
    "ratio": math.exp,
    "ratio_sq": lambda d: math.exp(2 * d),
    "excess_positive": lambda d: max(math.expm1(d), 0.0),
    "excess_negative": lambda d: max(-math.expm1(d), 0.0),
    "excess_sq": lambda d: math.expm1(d) ** 2,
    "k3": k3,
    "k3_inverse": lambda d: k3(-d),
    "reverse_k1_positive": lambda d: max(d * math.exp(d), 0.0),
    "reverse_k1_negative": lambda d: max(-d * math.exp(d), 0.0),
    "reverse_k3": lambda d: math.exp(d) * k3(-d),
    "js": js,
    "ratio_abs": lambda d: math.exp(abs(d)),
}
"""TOKEN_SCALED for |d| <= CLUSTER_CLIP."""


def power(x: float, factor: float = 1.0) -> Pair:
    """factor * e^x."""
    mantissa, exponent = split_exp(np.array([x]))
    return factor * float(mantissa[0]), int(exponent[0])


LEADING: dict[str, tuple[Callable[[float], Pair], Callable[[float], Pair]]] = {
    "ratio": (power, lambda x: power(-x)),
    "ratio_sq": (lambda x: power(2 * x), lambda x: power(-2 * x)),
    "excess_positive": (power, lambda _: (0.0, 0)),
    "excess_negative": (lambda _: (0.0, 0), lambda _: (1.0, 0)),
    "excess_sq": (lambda x: power(2 * x), lambda _: (1.0, 0)),
    "k3": (power, lambda x: (x - 1, 0)),
    "k3_inverse": (lambda x: (x - 1, 0), power),
    "reverse_k1_positive": (lambda x: power(x, x), lambda _: (0.0, 0)),
    "reverse_k1_negative": (lambda _: (0.0, 0), lambda x: power(-x, x)),
    "reverse_k3": (lambda x: power(x, x - 1), lambda _: (1.0, 0)),
    "js": (lambda x: power(x, math.log(2) / 2), lambda _: (math.log(2) / 2, 0)),
    "ratio_abs": (power, power),
}
"""Beyond it, x = |d|: for d above and below 0, the leading term, which is all of the term that float64 holds."""

CLUSTERS: dict[str, Callable[[Token], float]] = {
    "log_ratio": lambda t: t.d,
    "log_ratio_abs": lambda t: abs(t.d),
    "log_ratio_sq": lambda t: t.d * t.d,
    "reverse_k1": lambda t: t.clipped * math.exp(t.clipped),
    "excess": lambda t: math.expm1(t.clipped),
    "excess_abs": lambda t: abs(math.expm1(t.clipped)),
    "prob_diff_abs": lambda t: abs(t.gap),
    "infer_logprob": lambda t: t.infer,
    "train_logprob": lambda t: t.train,
    "outside_2x": lambda t: float(abs(t.d) > math.log(2)),
    "outside_5x": lambda t: float(abs(t.d) > math.log(5)),
}
"""CLUSTER_TERMS that are not TOKEN_SCALED of the clipped d."""


def scaled(name: str, d: float) -> Pair:
    """One of TOKEN_SCALED of any d."""
    if abs(d) <= schema.CLUSTER_CLIP:
        return TERMS[name](d), 0
    up, down = LEADING[name]
    return up(min(d, MAX_LOG)) if d > 0 else down(min(-d, MAX_LOG))


def scaled_sums(columns: Iterable[Sequence[Pair]]) -> ScaledSums:
    """The sum of each column."""
    sums = []
    for pairs in columns:
        top = max((exponent for mantissa, exponent in pairs if mantissa), default=0)
        sums.append((math.fsum(math.ldexp(m, max(e - top, -2_000)) for m, e in pairs), top))
    return ScaledSums.of(np.array([m for m, _ in sums]), np.array([e for _, e in sums], np.int64))


def moments(values: Sequence[float]) -> tuple[int, float, float]:
    """Count, mean, sum of squared deviations."""
    mean = math.fsum(values) / len(values) if values else 0.0
    return len(values), mean, math.fsum((value - mean) ** 2 for value in values)


def moments_0d(values: Sequence[float]) -> Moments:
    """As 0-d arrays."""
    n, mean, m2 = moments(values)
    return Moments(np.array(n), np.array(mean), np.array(m2))


def cell(value: float, bits: int) -> int:
    """The cell of the grid."""
    return int(cells_of(np.array([value]), bits)[0])


def grid(keys: Sequence[int], counts: Sequence[Sequence[int]] | None = None, *, columns: int = 1) -> Grid:
    """Counts by key; one each where none are given."""
    values = np.ones((len(keys), columns), np.int64) if counts is None else np.array(counts, np.int64)
    return Grid.of_keys(np.array(keys, np.int64), values.reshape(len(keys), columns))


def buckets(groups: Sequence[Sequence[Token]]) -> BucketStats:
    """Statistics of each group of tokens."""
    n, mean, m2 = zip(*(moments([t.d for t in group]) for group in groups), strict=True)
    return BucketStats(
        np.array([[len(g), *(sum(abs(t.d) > math.log(C) for t in g) for C in (2, 5))] for g in groups], np.int64),
        np.array(
            [
                [
                    math.fsum(max(t.d, 0.0) for t in group),
                    math.fsum(max(-t.d, 0.0) for t in group),
                    math.fsum(max(-math.expm1(t.infer), 0.0) for t in group),
                ]
                for group in groups
            ]
        ),
        Moments(np.array(n, np.int64), np.array(mean, np.float64), np.array(m2, np.float64)),
        scaled_sums([scaled("k3", t.d) for t in group] for group in groups),
        np.array([min((t.d for t in group), default=math.inf) for group in groups]),
        np.array([max((t.d for t in group), default=-math.inf) for group in groups]),
    )


def slice_of(name: str, tokens: Sequence[Token]) -> Slice:
    """Tokens by the label of one slice."""
    labels = tuple(sorted({t.labels[name] for t in tokens}))
    groups = [[t for t in tokens if t.labels[name] == label] for label in labels]
    octaves = np.zeros((len(labels), OCTAVES), np.int64)
    for row, group in enumerate(groups):
        for t in group:
            octaves[row, cell(t.d, schema.OCTAVE_BITS)] += 1
    return Slice.of(labels, buckets(groups), octaves, limit=schema.SLICE_LIMITS[name])


def sound(value: float) -> bool:
    """Whether it can be a log-prob: finite, and at most rounding above 0."""
    return math.isfinite(value) and np.float32(value) <= np.float32(schema.POSITIVE_TOLERANCE)


def sign_of(advantage: float | None) -> str:
    """Bucket of an advantage."""
    if advantage is None or not math.isfinite(advantage):
        return "unknown"
    return "positive" if advantage > 0 else "negative" if advantage < 0 else "zero"


def lag_label(lag: int | None) -> str:
    """Bucket of a lag."""
    if lag is None:
        return "unknown"
    if lag < 0:
        return "negative"
    return schema.LAG_LABELS[sum(1 for edge in schema.LAG_EDGES if lag >= edge) - 1]


def value_of(batch: Batch, name: str, row: int, index: int) -> Any:
    """A column that is per sequence or per token; None where it was not sent."""
    for values, at in ((getattr(batch, f"{name}_B"), row), (getattr(batch, f"{name}_N"), index)):
        if values is not None:
            return values[at].item()
    return None


def token_at(batch: Batch, row: int, index: int) -> Token:
    """One token with everything it is sliced by."""
    position = index - int(batch.offsets_B1[row])
    trained, sampled = batch.meta.train_version, value_of(batch, "infer_version", row, index)
    lag = None if trained is None or sampled is None else trained - sampled
    sign = sign_of(value_of(batch, "advantage", row, index))
    labels = {
        "position": schema.POSITION_LABELS[min(max(position.bit_length() - 1, 0), schema.POSITION_BUCKETS - 1)],
        "lag": lag_label(lag),
        "rank": str(batch.meta.rank),
    }
    if batch.advantage_B is not None or batch.advantage_N is not None:
        labels["advantage"] = sign
    if batch.turn_N is not None:
        turn = int(batch.turn_N[index])
        labels["turn"] = "negative" if turn < 0 else str(turn) if turn < 7 else "7+"
    for name in ("source", "replica"):
        names = getattr(batch, name)
        if names is not None:
            labels[name] = names[row]
    infer, train = float(batch.infer_logprobs_N[index]), float(batch.train_logprobs_N[index])
    return Token(index, row, position, infer, train, labels, sign, lag)


def summarise_slowly(batch: Batch, *, sample: bool = False) -> Summary:
    """The summary of a batch: small ones, for it takes a tenth of a millisecond per token."""
    infer, train = batch.infer_logprobs_N.astype(float).tolist(), batch.train_logprobs_N.astype(float).tolist()
    mask = [True] * batch.tokens if batch.mask_N is None else batch.mask_N.tolist()
    rows = [range(int(batch.offsets_B1[b]), int(batch.offsets_B1[b + 1])) for b in range(batch.sequences)]
    counts = [mask[i] and sound(infer[i]) and sound(train[i]) for i in range(batch.tokens)]
    sequences = [[token_at(batch, row, i) for i in span if counts[i]] for row, span in enumerate(rows)]
    tokens = [token for sequence in sequences for token in sequence]
    complete = [sequences[row] for row, span in enumerate(rows) if any(mask[i] for i in span)
                and all(counts[i] for i in span if mask[i])]  # fmt: skip
    clusters = [sequence for sequence in sequences if sequence]
    bins = [[t for t in tokens if t.bin == b] for b in range(schema.PROBABILITY_BINS)]
    lags = [t.lag for t in tokens if t.lag is not None and t.lag >= 0]
    known = [[t.lag for t in sequence if t.lag is not None and t.lag >= 0] for sequence in sequences]
    oldest = [max(of_sequence) for of_sequence in known if of_sequence]
    entropy = finite(batch.entropy_N, tokens)
    infer_entropy = finite(batch.infer_entropy_N, tokens)
    both = {i: entropy[i] - infer_entropy[i] for i in entropy.keys() & infer_entropy.keys()}
    norms = score_norms(batch, tokens)
    rewards = [] if batch.reward_B is None else [r for r in batch.reward_B.astype(float).tolist() if math.isfinite(r)]
    gaps = [-S(sequence) / len(sequence) for sequence in complete]

    there = [mask[i] for i in range(batch.tokens)]
    finite_both = [math.isfinite(infer[i]) and math.isfinite(train[i]) for i in range(batch.tokens)]
    post = [] if batch.mask_post_N is None else batch.mask_post_N.tolist()
    ids = batch.token_ids_N is not None and batch.train_token_ids_N is not None
    mine, theirs = (
        [] if column is None else column.tolist() for column in (batch.token_ids_N, batch.train_token_ids_N)
    )
    counters = {
        "tokens": len(tokens),
        "tokens_total": batch.tokens,
        "tokens_masked_out": there.count(False),
        "tokens_nonfinite_infer": sum(m and not math.isfinite(x) for m, x in zip(there, infer, strict=True)),
        "tokens_nonfinite_train": sum(m and not math.isfinite(x) for m, x in zip(there, train, strict=True)),
        "tokens_positive": sum(max(t.infer, t.train) > 0 for t in tokens),
        "tokens_invalid_positive": sum(m and f and not c for m, f, c in zip(there, finite_both, counts, strict=True)),
        "tokens_identical": sum(t.d == 0 for t in tokens),
        "tokens_zero_filler": sum(filler(t.infer, t.train) or filler(t.train, t.infer) for t in tokens),
        "tokens_outside_grid": sum(cell(abs(t.d), schema.TOKEN_BITS) == cell_count(schema.TOKEN_BITS) - 1
                                   for t in tokens),
        "tokens_kept_post": sum(p and c for p, c in zip(post, counts, strict=False)),
        "tokens_with_post": len(tokens) if batch.mask_post_N is not None else 0,
        "tokens_post_outside": sum(p and not m for p, m in zip(post, there, strict=False)),
        "tokens_lag_known": len(lags),
        "sequences": sum(any(mask[i] for i in span) for span in rows),
        "sequences_complete": len(complete),
        "sequences_incomplete": sum(any(mask[i] for i in span) for span in rows) - len(complete),
        "sequences_empty": sum(not any(mask[i] for i in span) for span in rows),
        "sequences_outside_2x": sum(abs(S(sequence)) > math.log(2) for sequence in complete),
        "sequences_outside_5x": sum(abs(S(sequence)) > math.log(5) for sequence in complete),
        "sequences_geometric_outside": sum(abs(gap) > math.log(1.001) for gap in gaps),
        "seq_ids_duplicate": 0 if batch.seq_id is None else len(batch.seq_id) - len(set(batch.seq_id)),
        "entropy_tokens": len(entropy),
        "infer_entropy_tokens": len(infer_entropy),
        "entropy_gap_tokens": len(both),
        "rewards": len(rewards),
        "clusters": len(clusters),
        "token_ids_compared": len(tokens) if ids else 0,
        "token_ids_mismatched": sum(mine[t.index] != theirs[t.index] for t in tokens) if ids else 0,
        "tokens_score": len(norms),
        "sequences_lag_known": len(oldest),
    }  # fmt: skip
    sums = {
        "log_ratio_positive": math.fsum(max(t.d, 0.0) for t in tokens),
        "log_ratio_negative": math.fsum(max(-t.d, 0.0) for t in tokens),
        "log_ratio_sq": math.fsum(t.d**2 for t in tokens),
        "infer_logprob": math.fsum(t.infer for t in tokens),
        "train_logprob": math.fsum(t.train for t in tokens),
        "entropy": math.fsum(entropy.values()),
        "infer_entropy": math.fsum(infer_entropy.values()),
        "entropy_gap": math.fsum(both.values()),
        "reward": math.fsum(rewards),
        "lag": math.fsum(lags),
        "score_norm_sq": math.fsum(norm for norm, _, _ in norms),
        "fisher_trace": math.fsum(trace for _, trace, _ in norms),
        "lag_oldest": math.fsum(oldest),
    }
    minima: dict[str, Sequence[float]] = {"log_ratio": [t.d for t in tokens], "log_ppl_gap": gaps, "lag": lags}
    maxima = minima | {"prob_diff_abs": [abs(t.gap) for t in tokens]}
    slices = sorted({name for t in tokens for name in t.labels})
    d_p = [(t.p + t.gap if t.ordinary else math.exp(t.train), t.p) for t in tokens]
    return Summary(
        counters=np.array([counters[name] for name in schema.COUNTERS], np.int64),
        above=np.array([sum(t.d > math.log(C) for t in tokens) for C in schema.RATIO_THRESHOLDS], np.int64),
        below=np.array([sum(-t.d > math.log(C) for t in tokens) for C in schema.RATIO_THRESHOLDS], np.int64),
        token_sums=np.array([sums[name] for name in schema.TOKEN_SUMS]) + 0.0,
        token_scaled=scaled_sums([scaled(name, t.d) for t in tokens] for name in schema.TOKEN_SCALED),
        minima=np.array([min(minima[name], default=math.inf) for name in schema.MINIMA], np.float64) + 0.0,
        maxima=np.array([max(maxima[name], default=-math.inf) for name in schema.MAXIMA], np.float64) + 0.0,
        log_ratio=moments_0d([t.d for t in tokens]),
        prob_diff=moments_0d([abs(t.gap) for t in tokens]),
        probs=co_moments(d_p),
        score_residual=moments_0d([d / math.sqrt(n) for n, _, d in norms if n > schema.MIN_SCORE_NORM_SQ]),
        sign_grid=grid([
            schema.ADVANTAGE_SIGNS.index(t.sign) * cell_count(schema.TOKEN_BITS) + cell(t.d, schema.TOKEN_BITS)
            for t in tokens
        ]),
        bin_grid=grid([t.bin * cell_count(schema.BIN_BITS) + cell(t.d, schema.BIN_BITS) for t in tokens]),
        bins=buckets(bins),
        bin_cluster_sq=np.array([
            math.fsum(sum(t.bin == b for t in sequence) ** 2 for sequence in clusters)
            for b in range(schema.PROBABILITY_BINS)
        ]),
        cluster_sums=np.array([
            [
                math.fsum(term(name, seq) ** 2 for seq in clusters),
                math.fsum(term(name, seq) * len(seq) for seq in clusters),
            ]
            for name in schema.CLUSTER_TERMS
        ]),
        cluster_extras=np.array([
            math.fsum(len(seq) ** 2 for seq in clusters),
            math.fsum(term("ratio", seq) * term("ratio_sq", seq) for seq in clusters),
        ]),
        exceed_upper=exceed(clusters, 1),
        exceed_lower=exceed(clusters, -1),
        slices={name: slice_of(name, [t for t in tokens if name in t.labels]) for name in slices},
        lag_grid=grid([min(lag, schema.MAX_LAG_CELL) for lag in lags]),
        **of_sequences(complete),
        align=align(batch, counts),
        worst_upper=highest(batch, tokens, [t.d for t in tokens], schema.WORST_TOKENS),
        worst_lower=highest(batch, tokens, [-t.d for t in tokens], schema.WORST_TOKENS),
        sample=highest(batch, tokens, drawn(batch, tokens), schema.SAMPLE_TOKENS) if sample else Picks.empty(),
    )  # fmt: skip


def filler(one: float, other: float) -> bool:
    """Whether a zero stands where no log-prob was."""
    return one == 0 and np.float32(other) < np.float32(schema.FILLER_BELOW)


def finite(values: Any, tokens: Sequence[Token]) -> dict[int, float]:
    """The finite values of an optional column, by token."""
    if values is None:
        return {}
    return {t.index: float(values[t.index]) for t in tokens if math.isfinite(values[t.index])}


def score_norms(batch: Batch, tokens: Sequence[Token]) -> list[tuple[float, float, float]]:
    """Squared norm of the score, trace of the logit Fisher, and d, of every token with a usable sum_p2_other."""
    found = []
    for t in tokens if batch.sum_p2_other_N is not None else ():
        other, rest = float(batch.sum_p2_other_N[t.index]), max(-math.expm1(t.train), 0.0)  # type: ignore[index]
        if 0 <= other <= rest * rest * (1 + 1e-3) + 1e-6:
            found.append((rest * rest + other, max(rest * (2 - rest) - other, 0.0), t.d))
    return found


def co_moments(pairs: Sequence[tuple[float, float]]) -> CoMoments:
    """Of (p_train, p_infer)."""
    if not pairs:
        return CoMoments.zeros()
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    (n, mean_x, m2_x), (_, mean_y, m2_y) = moments(x), moments(y)
    both = math.fsum((a - mean_x) * (b - mean_y) for a, b in pairs)
    return CoMoments(np.array(n), *(np.array(value) for value in (mean_x, mean_y, m2_x, m2_y, both)))


def term(name: str, sequence: Sequence[Token]) -> float:
    """One of CLUSTER_TERMS summed over a sequence."""
    if name in CLUSTERS:
        return math.fsum(CLUSTERS[name](t) for t in sequence)
    return math.fsum(TERMS[name](t.clipped) for t in sequence)


def exceed(clusters: Sequence[Sequence[Token]], side: int) -> Any:
    """[EXCEED_EXPONENTS, EXCEED_SUMS]: tokens n of each sequence with side * d >= 2^k, as n^2 and n T.

    Which power of two d has reached is read from float32(d), as all cells are.
    """
    found = []
    for k in schema.EXCEED_EXPONENTS:
        counts = [sum(float(np.float32(side * t.d)) >= 2.0**k for t in sequence) for sequence in clusters]
        products = [n * len(sequence) for n, sequence in zip(counts, clusters, strict=True)]
        found.append([float(sum(n * n for n in counts)), float(sum(products))])
    return np.array(found)


def S(sequence: Sequence[Token]) -> float:
    """Sum of d over a sequence."""
    return math.fsum(t.d for t in sequence)


def of_sequences(complete: Sequence[Sequence[Token]]) -> dict[str, Any]:
    """The fields over complete sequences."""
    gaps = [-S(seq) / len(seq) for seq in complete]
    mean_infer = [math.fsum(t.infer for t in seq) / len(seq) for seq in complete]
    mean_train = [math.fsum(t.train for t in seq) / len(seq) for seq in complete]
    bounded = [max(-MAX_LOG, min(MAX_LOG, S(seq))) for seq in complete]
    powers = {
        "ratio": [power(s) for s in bounded],
        "ratio_sq": [power(2 * s) for s in bounded],
        "geometric_ratio": [power(-gap) for gap in gaps],
        "infer_ppl": [power(-mean) for mean in mean_infer],
        "train_ppl": [power(-mean) for mean in mean_train],
    }
    values = {
        "S": [S(seq) for seq in complete],
        "g": [S(seq) / len(seq) for seq in complete],
        "z": [S(seq) / math.sqrt(len(seq)) for seq in complete],
        "min": [min(t.d for t in seq) for seq in complete],
        "max": [max(t.d for t in seq) for seq in complete],
    }
    signs = [seq[0].sign if len({t.sign for t in seq}) == 1 else "unknown" for seq in complete]
    keys = [
        sequence_offset(name, schema.ADVANTAGE_SIGNS.index(sign)) + cell(value, schema.SEQUENCE_BITS[name])
        for name in schema.SEQUENCE_GRIDS
        for value, sign in zip(values[name], signs, strict=True)
    ]
    lengths = [len(seq) for seq in complete]
    by_length = [
        [(T, s) for T, s in zip(lengths, values["S"], strict=True)
         if min(T.bit_length() - 1, schema.LENGTH_BUCKETS - 1) == bucket]
        for bucket in range(schema.LENGTH_BUCKETS)
    ]  # fmt: skip
    columns: list[Callable[[int, float], float]] = [
        lambda T, _: T, lambda T, _: T * T, lambda T, _: math.log(T),
        lambda _, s: s, lambda _, s: s * s, lambda T, s: s * T,
    ]  # fmt: skip
    return {
        "sequence_sums": np.array([math.fsum(gaps), math.fsum(map(abs, gaps)), -math.fsum(gaps) + 0.0]),
        "sequence_scaled": scaled_sums(powers[name] for name in schema.SEQUENCE_SCALED),
        "sequence_grid": grid(keys, [(1, T) for T in lengths] * len(schema.SEQUENCE_GRIDS), columns=2),
        "length_counts": np.array([len(group) for group in by_length], np.int64),
        "length_sums": np.array([[math.fsum(f(T, s) for T, s in group) for f in columns] for group in by_length]),
    }


def align(batch: Batch, counts: Sequence[bool]) -> Any:
    """[ALIGN_SHIFTS, ALIGN_SUMS] over pairs (infer at t, train at t + shift), both valid, both in the first 64."""
    found = []
    for shift in schema.ALIGN_SHIFTS:
        pairs = []
        for start, end in zip(batch.offsets_B1[:-1].tolist(), batch.offsets_B1[1:].tolist(), strict=True):
            head = range(start, min(end, start + schema.ALIGN_TOKENS))
            pairs += [
                (float(batch.infer_logprobs_N[i]), float(batch.train_logprobs_N[i + shift]))
                for i in head
                if i + shift in head and counts[i] and counts[i + shift]
            ]
        sums = (math.fsum(f(x, y) for x, y in pairs) for f in ALIGN)
        found.append([float(len(pairs)), *sums])
    return np.array(found) + 0.0


ALIGN: tuple[Callable[[float, float], float], ...] = (
    lambda x, _: x, lambda _, y: y, lambda x, _: x * x, lambda _, y: y * y, lambda x, y: x * y,
)  # fmt: skip
"""ALIGN_SUMS after the count."""


def highest(batch: Batch, tokens: Sequence[Token], priority: Sequence[float], limit: int) -> Picks:
    """The tokens of highest priority, equal ones by their place."""
    best = sorted(zip(priority, tokens, strict=True), key=lambda pair: (-pair[0], pair[1].index))[:limit]
    return pick(
        batch, np.array([t.index for _, t in best], np.int64), np.array([value for value, _ in best], np.float64)
    )


def drawn(batch: Batch, tokens: Sequence[Token]) -> list[float]:
    """A number on [0, 1) per token, from where it stands."""
    meta = batch.meta
    key = (meta.step, meta.update_index, meta.rank, meta.part)
    return [float(uniform(*key, np.array([t.row]), np.array([t.position]))[0]) for t in tokens]
