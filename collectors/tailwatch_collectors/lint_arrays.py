"""What the arrays of a batch show about their meaning: masks after the fact, fillers, wrong units, shifts, copies.

The half of the semantics lint that looks at values; `lint` has the half that looks at what was declared. Every check
yields (code, message); a pattern is named only where chance and ordinary mismatch do not make it.

Shapes: n tokens looked at, B sequences looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch, BoolArray, Float32Array, Int64Array

Float64Array = NDArray[np.float64]

Found = Iterator[tuple[str, str]]

MAX_TOKENS = 100_000
"""Tokens of the batch that are looked at: whole sequences from its head."""

_MIN_TOKENS = 50
"""Fewer tokens than this show no pattern."""
_FILLER_OTHER = -0.5
"""Exactly 0.0 on one side is a filler where the other says that the token was far from certain."""
_FLOOR = -1_000.0
"""Nothing below this was ever sampled: e^-1000."""
_POSITIVE = 1e-3
"""Above this it is no rounding."""
_CHANCE = math.log(1e-4)
"""Log of the chance below which a mask that happens to drop only outliers is no accident."""
_HEAD = 64
_HEAD_SEQUENCES = 2_000
_SHIFTS = (-2, -1, 1, 2)
_BASES = {"base 2": 1 / math.log(2), "base 10": 1 / math.log(10)}

_NEXT_TOKEN_LAYOUT = ("openrlhf", "roll", "areal", "open-instruct")
_FULL_SEQUENCE_LAYOUT = ("nemo-rl", "nemo_rl", "prime-rl", "prime_rl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The head of a batch: whole sequences, up to MAX_TOKENS."""

    framework: str
    """Lower case; empty where unknown. Only words the advice."""
    offsets_B1: Int64Array
    """[B+1] boundaries of the sequences."""
    infer_n: Float32Array
    train_n: Float32Array
    mask_n: BoolArray
    masked: bool
    """Whether a mask was sent that leaves anything out, in the whole batch."""
    mask_post_n: BoolArray | None
    good_n: BoolArray
    """[n] in the mask, both sides finite and no filler: what patterns are looked for in."""

    @classmethod
    def of(cls, batch: Batch, *, framework: str) -> Head:
        """Cut it out; a first sequence longer than the limit is cut short."""
        sequences = max(1, int(np.searchsorted(batch.offsets_B1, MAX_TOKENS, side="right")) - 1)
        offsets_B1 = np.minimum(batch.offsets_B1[: sequences + 1], MAX_TOKENS)
        n = int(offsets_B1[-1])
        infer_n, train_n = batch.infer_logprobs_N[:n], batch.train_logprobs_N[:n]
        mask_n = np.ones(n, np.bool_) if batch.mask_N is None else batch.mask_N[:n]
        finite_n = np.isfinite(infer_n) & np.isfinite(train_n)
        filler_n = _zero_filler(infer_n, train_n) | _zero_filler(train_n, infer_n)
        for side_n in (infer_n, train_n):
            filler_n |= (side_n == 1) | (side_n <= _FLOOR)
        return cls(
            framework=framework,
            offsets_B1=offsets_B1,
            infer_n=infer_n,
            train_n=train_n,
            mask_n=mask_n,
            masked=batch.mask_N is not None and not batch.mask_N.all(),
            mask_post_n=None if batch.mask_post_N is None else batch.mask_post_N[:n],
            good_n=mask_n & finite_n & ~filler_n,
        )

    def place(self, where_n: BoolArray) -> str:
        """The first True, for a message."""
        token = int(where_n.argmax())
        sequence = int(np.searchsorted(self.offsets_B1, token, side="right")) - 1
        return f"first at sequence {sequence}, token {token - int(self.offsets_B1[sequence])}"

    def sides(self) -> tuple[tuple[str, Float32Array, Float32Array], ...]:
        """Each side with its name and the other one."""
        return ("infer_logprobs", self.infer_n, self.train_n), ("train_logprobs", self.train_n, self.infer_n)


def _zero_filler(side_n: Float32Array, other_n: Float32Array) -> BoolArray:
    found: BoolArray = (side_n == 0) & (other_n < _FILLER_OTHER)
    return found


def masks(head: Head) -> Found:
    """Masks that keep nothing, were changed by a rejection, or are not what `mask_post` is a subset of."""
    if len(head.mask_n) and not head.mask_n.any():
        yield "mask-empty", f"the mask leaves out all of {len(head.mask_n)} tokens: True, or 1, marks tokens that count"
        return
    post_n = head.mask_post_n
    if post_n is not None:
        outside_n = post_n & ~head.mask_n
        if outside_n.any():
            yield (
                "mask-post-outside",
                f"mask_post keeps {outside_n.sum()} tokens that mask leaves out ({head.place(outside_n)}): mask must "
                "be the mask before any rejection, mask_post what is left of it",
            )
    # Tokens outside the mask that both engines scored as ordinary tokens: rejected rather than not sampled.
    scored_n = (
        ~head.mask_n & (head.infer_n < 0) & (head.train_n < 0) & (head.infer_n > _FLOOR) & (head.train_n > _FLOOR)
    )
    dropped, kept = int(scored_n.sum()), int(head.good_n.sum())
    if not dropped or kept < _MIN_TOKENS:
        return
    used_n = scored_n | head.good_n
    difference_n = np.where(used_n, head.train_n, 0).astype(np.float64) - np.where(used_n, head.infer_n, 0)
    found = _only_outliers(difference_n[scored_n], difference_n[head.good_n], "tokens")
    found = found or _only_outliers(*_sequence_means(head, difference_n, scored_n), "sequences")
    if found is not None:
        yield (
            "mask-after-rejection",
            f"mask drops {found} ({head.place(scored_n)}): it looks like the mask after a rejection or truncation, "
            "which hides the tail. Pass the mask before it as mask, and this one as mask_post"
            + (" (verl: loss_mask, not response_mask)" if head.framework.startswith("verl") else ""),
        )
    elif post_n is not None and bool((post_n == head.mask_n).all()):
        yield (
            "mask-post-same",
            f"mask_post equals mask, and mask drops {dropped} scored tokens ({head.place(scored_n)}): if a correction "
            "rejected them, pass the mask before it as mask; if none is configured, leave mask_post out",
        )


def _only_outliers(dropped_k: Float64Array, kept_k: Float64Array, what: str) -> str | None:
    """Words for a mask that drops only values outside the range of what it keeps, where chance would not."""
    if not len(dropped_k) or not len(kept_k) or len(dropped_k) * math.log(2 / (len(kept_k) + 1)) > _CHANCE:
        return None
    low, high = float(kept_k.min()), float(kept_k.max())
    if low == high or not ((dropped_k < low) | (dropped_k > high)).all():
        return None
    return f"{len(dropped_k)} scored {what}, all with a log ratio outside {low:.3g} .. {high:.3g}, the range it keeps"


def _sequence_means(head: Head, difference_n: Float64Array, scored_n: BoolArray) -> tuple[Float64Array, Float64Array]:
    """Mean log ratio of the sequences dropped whole, and of those kept."""
    rows_n = np.repeat(np.arange(len(head.offsets_B1) - 1), np.diff(head.offsets_B1))
    counts_BC = [
        np.bincount(rows_n[where_n], minlength=len(head.offsets_B1) - 1) for where_n in (scored_n, head.good_n)
    ]
    means_BC = [
        np.bincount(rows_n[where_n], difference_n[where_n], len(counts)) / np.maximum(counts, 1)
        for where_n, counts in zip((scored_n, head.good_n), counts_BC, strict=True)
    ]
    kept_B = counts_BC[1] > 0
    dropped_B = (counts_BC[0] > 0) & ~kept_B
    return means_BC[0][dropped_B], means_BC[1][kept_B]


def fillers(head: Head) -> Found:
    """Values written where there is no log-prob, inside the mask; each kind once per side."""
    advice = (
        "leave them out by the mask (a mask was sent; it keeps them)"
        if head.masked
        else "no token is masked out: send the response mask, so that prompt, tool and padding tokens do not count"
    )
    for name, side_n, other_n in head.sides():
        kinds = {
            "filler-zero": ("exactly 0.0 where the other side is below -0.5", _zero_filler(side_n, other_n)),
            "filler-one": ("exactly 1.0 (open-instruct writes it where there is no log-prob)", side_n == 1),
            "filler-nan": ("NaN or infinite", ~np.isfinite(side_n)),
            "filler-floor": (
                "below -1000 (vLLM's server writes -9999.0 for -inf)",
                np.isfinite(side_n) & (side_n <= _FLOOR),
            ),
        }
        for code, (what, where_n) in kinds.items():
            inside_n = where_n & head.mask_n
            if code == "filler-one" and _probabilities(side_n[head.mask_n]):
                continue
            if inside_n.any():
                yield (
                    code,
                    f"{name}: {inside_n.sum()} of {head.mask_n.sum()} tokens in the mask are {what}, "
                    f"{head.place(inside_n)}; {advice}",
                )


def _probabilities(side_n: Float32Array) -> bool:
    """Whether values are probabilities: all in [0, 1], not merely zeros and fillers of 1."""
    finite_n = side_n[np.isfinite(side_n)]
    inside = (finite_n >= 0) & (finite_n <= 1)
    between = (finite_n > _POSITIVE) & (finite_n < 1)
    return len(finite_n) > 0 and bool(inside.all()) and int(between.sum()) * 2 > int((finite_n < 1).sum())


def values(head: Head) -> Found:
    """Values that are no log-probs: probabilities, negated ones, others above 0."""
    for name, side_n, _ in head.sides():
        inside_n = head.mask_n & np.isfinite(side_n)
        positive_n = inside_n & (side_n > _POSITIVE) & (side_n != 1)
        if not positive_n.any():
            continue
        values_n = side_n[inside_n]
        example = f"{float(side_n[int(positive_n.argmax())]):.4g}, {head.place(positive_n)}"
        if _probabilities(values_n):
            yield "probabilities", f"{name}: all values are in 0 .. 1 ({example}): probabilities? Send their logarithm"
        elif bool((values_n >= 0).all()):
            yield (
                "negated",
                f"{name}: no value is negative ({example}): negative log-likelihoods? Send them with the sign turned",
            )
        else:
            yield (
                "positive",
                f"{name}: {positive_n.sum()} of {len(values_n)} values are above 0 ({example}): no log-probs; logits, "
                "rewards or a difference of log-probs may have been passed",
            )


def pairs(head: Head) -> Found:
    """What only both sides together show: a copy, another base, a shift by one or two, rows of another order."""
    infer_n, train_n = head.infer_n[head.good_n].astype(np.float64), head.train_n[head.good_n].astype(np.float64)
    if len(infer_n) < _MIN_TOKENS or max(infer_n.max(), train_n.max()) > _POSITIVE:
        return
    if float(infer_n.std()) < 1e-3 or float(train_n.std()) < 1e-3:
        return
    if bool((infer_n == train_n).all()):
        yield (
            "identical",
            f"both sides are bit-identical in all {len(infer_n)} tokens: one may be a copy of the other (bypass mode, "
            "the recomputation skipped, the same tensor passed twice). Unless the engines share bit-exact kernels, "
            "pass the log-probs that the inference engine returned",
        )
        return
    base = _base(infer_n, train_n)
    if base is not None:
        yield base
        return
    correlations = _correlations(head)
    here = correlations.pop(0, math.nan)
    if math.isnan(here):
        return
    shift = max(correlations, key=lambda s: correlations[s], default=0)
    if shift and correlations[shift] > 0.8 and correlations[shift] - here > 0.2:
        later, by = ("train_logprobs", shift) if shift > 0 else ("infer_logprobs", -shift)
        yield (
            "misaligned",
            f"{later} are late by {by}: infer_logprobs[t] goes with train_logprobs[t{shift:+d}] (correlation "
            f"{correlations[shift]:.3f}, {here:.3f} unshifted): cut both to the response so that index t is response "
            f"token t on both sides{_layout_hint(head.framework)}",
        )
    elif here < 0.2 and len(infer_n) >= 4 * _MIN_TOKENS and min(infer_n.std(), train_n.std()) > 0.1:
        yield (
            "unpaired",
            f"the two sides hardly correlate ({here:.3f} over the first {_HEAD} tokens of each sequence), at no shift "
            "of up to 2 either: rows in another order, another padding side, or other tokens. Pair by request id and "
            f"token ids{_layout_hint(head.framework)}",
        )


def _base(infer_n: Float64Array, train_n: Float64Array) -> tuple[str, str] | None:
    """A constant factor of 1/ln 2 or 1/ln 10 between the sides, exact enough to be no temperature."""
    clear = (infer_n < -0.05) & (train_n < -0.05)
    if int(clear.sum()) < _MIN_TOKENS:
        return None
    x, y = infer_n[clear], train_n[clear]
    ratio = float(np.median(x / y))
    before = float(np.abs(x - y).mean())
    for base, factor in _BASES.items():
        for name, found in (("infer_logprobs", ratio / factor), ("train_logprobs", 1 / ratio / factor)):
            after = np.abs(x - y * factor).mean() / factor if name[0] == "i" else np.abs(x - y / factor).mean()
            if abs(found - 1) < 0.02 and float(after) < 0.1 * before:
                return (
                    "log-base",
                    f"{name} are {factor:.4f} times the other side in every token: logarithms to {base}? "
                    "Send natural ones",
                )
    return None


def _correlations(head: Head) -> dict[int, float]:
    """Correlation of infer_t with train_(t+s) by shift s, over the first tokens of every sequence."""
    starts, ends = head.offsets_B1[:-1][:_HEAD_SEQUENCES], head.offsets_B1[1:][:_HEAD_SEQUENCES]
    found = {}
    for shift in (0, *_SHIFTS):
        index = starts[:, None] + np.arange(_HEAD)
        inside = (index < ends[:, None]) & (index + shift >= starts[:, None]) & (index + shift < ends[:, None])
        index = index[inside]
        index = index[head.good_n[index] & head.good_n[index + shift]]
        x, y = head.infer_n[index].astype(np.float64), head.train_n[index + shift].astype(np.float64)
        if len(x) < _MIN_TOKENS or float(x.std()) < 1e-6 or float(y.std()) < 1e-6:
            continue
        found[shift] = float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))
    return found


def _layout_hint(framework: str) -> str:
    if framework.startswith(_NEXT_TOKEN_LAYOUT):
        return f" ({framework}: index i belongs to token i + 1)"
    if framework.startswith(_FULL_SEQUENCE_LAYOUT):
        return f" ({framework}: index i belongs to token i of prompt and response, index 0 is empty)"
    if framework.startswith("skyrl"):
        return f" ({framework}: responses are padded on the left; pass padding='left')"
    return ""
