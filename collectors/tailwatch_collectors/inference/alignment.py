"""Where the sampled pieces of a sequence lie among the tokens the trainer scored, and the first place they do not.

One piece (one request) must begin where the trained response begins. Several (the turns of an agent) lie in order with
tool and user tokens between them; those belong to no piece and are masked out.

Shapes: T trained tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailwatch_collectors.inference.types import Float32Array, Int32Array, Sampled


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Aligned:
    """The inference side laid out along the trained tokens."""

    infer_logprobs_T: Float32Array
    """[T] NaN where no piece lies, and where the engine had no log-prob."""
    turn_T: Int32Array
    """[T] number of the piece; -1 between pieces."""
    versions_T: Int32Array | None
    """[T] version that sampled each token, -1 between pieces; None where a piece has none."""
    checked: bool
    """Whether token ids were compared; else lengths alone."""
    trimmed: int
    """Tokens at the end that only one side has."""


def align(pieces: Sequence[Sampled], token_ids_T: Int32Array | None, tokens: int) -> Aligned | str:
    """Lay the pieces along `tokens` trained tokens, or say what does not fit and where.

    Args:
        pieces: what was sampled, in order.
        token_ids_T: ids the trainer scored; None: only lengths can be compared.
        tokens: T.
    """
    ids = [piece.token_ids_T for piece in pieces if piece.token_ids_T is not None]
    checked = token_ids_T is not None and len(ids) == len(pieces)
    if token_ids_T is None or len(ids) < len(pieces):
        starts = _by_length(pieces, tokens)
    elif len(pieces) == 1:
        starts = _at_the_start(ids[0], token_ids_T)
    else:
        starts = _in_order(ids, token_ids_T)
    if isinstance(starts, str):
        return starts
    infer_T = np.full(tokens, np.nan, np.float32)
    turn_T = np.full(tokens, -1, np.int32)
    versions = [_versions(piece) for piece in pieces]
    versions_T = None if any(piece is None for piece in versions) else np.full(tokens, -1, np.int32)
    for turn, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        length = min(len(piece.logprobs_T), tokens - start)
        infer_T[start : start + length] = piece.logprobs_T[:length]
        turn_T[start : start + length] = turn
        version_t = versions[turn]
        if versions_T is not None and version_t is not None:
            versions_T[start : start + length] = version_t[:length]
    trimmed = abs(tokens - len(pieces[0].logprobs_T)) if len(pieces) == 1 else 0
    return Aligned(infer_logprobs_T=infer_T, turn_T=turn_T, versions_T=versions_T, checked=checked, trimmed=trimmed)


def _versions(piece: Sampled) -> Int32Array | None:
    if piece.versions_T is not None:
        return piece.versions_T
    return None if piece.version is None else np.full(len(piece.logprobs_T), piece.version, np.int32)


def _by_length(pieces: Sequence[Sampled], tokens: int) -> list[int] | str:
    if len(pieces) > 1:
        return f"{len(pieces)} requests in one sequence, and token ids missing on one side: they cannot be placed"
    sampled = len(pieces[0].logprobs_T)
    if sampled != tokens:
        return f"{sampled} tokens were sampled, {tokens} trained, and no token ids say which of them agree"
    return [0]


def _at_the_start(sampled_ids: Int32Array, token_ids_T: Int32Array) -> list[int] | str:
    shared = min(len(sampled_ids), len(token_ids_T))
    differs = np.flatnonzero(sampled_ids[:shared] != token_ids_T[:shared])
    if len(differs) == 0:
        return [0]
    place = int(differs[0])
    return (
        f"token {place}: sampled {sampled_ids[place]}, trained {token_ids_T[place]} "
        f"({len(differs)} of {shared} differ){_guess(sampled_ids, token_ids_T)}"
    )


def _in_order(ids: Sequence[Int32Array], token_ids_T: Int32Array) -> list[int] | str:
    starts: list[int] = []
    cursor = 0
    for turn, piece_ids in enumerate(ids):
        place = _find(piece_ids, token_ids_T, cursor)
        if place is None:
            return (
                f"the {len(piece_ids)} tokens of request {turn} are nowhere in the trained sequence from token "
                f"{cursor} on: truncated, or tokenised again"
            )
        starts.append(place)
        cursor = place + len(piece_ids)
    return starts


def _find(ids: Int32Array, among_T: Int32Array, start: int) -> int | None:
    """First place at or after `start` where `ids` lie in a row."""
    last = len(among_T) - len(ids)
    if len(ids) == 0:
        return start
    # Few places share the first token, so the loop is short.
    for place in np.flatnonzero(among_T[start : max(last + 1, start)] == ids[0]) + start:
        if (among_T[place : place + len(ids)] == ids).all():
            return int(place)
    return None


def _guess(sampled: Int32Array, trained: Int32Array) -> str:
    """What would explain it: a shift by one, or the prompt in front."""
    for words, one, other in (
        ("trained ids begin one token late", sampled[1:], trained),
        ("trained ids begin one token early", sampled, trained[1:]),
    ):
        shared = min(len(one), len(other))
        if shared >= 4 and (one[:shared] == other[:shared]).all():
            return f": {words}"
    if len(trained) > len(sampled) >= 4 and _find(sampled, trained, 1) is not None:
        return ": the trained ids hold the prompt, or another turn, first"
    return ": was the text tokenised again? Train on the ids the engine returned"
