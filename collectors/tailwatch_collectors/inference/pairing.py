"""Pairing: both sides of a sequence by request id and token ids, into keyword arguments for `Collector.record`.

The sampling code hands over responses, the training code log-probs of the same requests, in any order and from any
thread; what is complete waits for `take`. Nothing raises and nothing grows without bound: what cannot be read, placed
or kept is counted in `stats`, the first of each kind logged.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tailwatch_collectors.batch import as_array
from tailwatch_collectors.guard import Guard
from tailwatch_collectors.inference.alignment import Aligned, align
from tailwatch_collectors.inference.types import Float32Array, Int32Array, ResponseError, Sampled

CAPACITY_TOKENS = 8_000_000
"""Tokens held at most, of both sides and of what waits for `take`: about 100 MB."""

_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "logprobs_mode")
_RESERVED = frozenset({"infer_logprobs", "train_logprobs", "mask", "token_ids", "infer_version", "turn", "seq_id"})


@dataclass(kw_only=True, slots=True)
class PairingStats:
    """What became of everything handed over; in sequences."""

    sampled: int = 0
    """Handed over by the sampling side."""
    scored: int = 0
    """Handed over by the training side."""
    paired: int = 0
    """Both sides there and aligned."""
    unchecked: int = 0
    """Of these, compared by length alone: ids missing on one side."""
    trimmed: int = 0
    """Of these, where one side had more tokens at the end (left out)."""
    misaligned: int = 0
    """Both sides there, but not of the same tokens: dropped."""
    dropped: int = 0
    """Fallen out for lack of room, oldest first, or left over by `clear`."""
    replaced: int = 0
    """Handed over again under a known key: the newer one counts."""
    errors: int = 0
    """Calls that could not be understood."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scored:
    keys: tuple[str, ...]
    logprobs_T: Float32Array
    token_ids_T: Int32Array | None
    mask_T: Any
    columns: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pair:
    scored: _Scored
    aligned: Aligned


@dataclass(kw_only=True, slots=True)
class _Room:
    """Tokens held, by age."""

    capacity: int
    held: int = 0
    ages: OrderedDict[tuple[str, Any], int] = field(default_factory=OrderedDict)

    def put(self, what: tuple[str, Any], tokens: int) -> None:
        self.drop(what)
        self.ages[what] = tokens
        self.held += tokens

    def drop(self, what: tuple[str, Any]) -> None:
        self.held -= self.ages.pop(what, 0)

    def oldest(self) -> tuple[str, Any] | None:
        """What has to go, while there is too much."""
        return next(iter(self.ages)) if self.held > self.capacity else None


class Pairing:
    """Joins sampled sequences with their training log-probs. Thread-safe; no method raises in training."""

    def __init__(self, *, capacity_tokens: int = CAPACITY_TOKENS) -> None:
        if capacity_tokens < 1:
            raise ValueError(f"capacity_tokens is {capacity_tokens}, expected at least 1")
        self._stats = PairingStats()
        self._guard = Guard(on_error=self._count_error)
        self._lock = threading.RLock()
        self._room = _Room(capacity=capacity_tokens)
        self._sampled: dict[str, Sampled] = {}
        self._scored: dict[tuple[str, ...], _Scored] = {}
        self._waiting: dict[str, tuple[str, ...]] = {}
        """Key of a missing sampled sequence to the scored one that needs it."""
        self._ready: dict[tuple[str, ...], _Pair] = {}
        self._settings: dict[str, Any] = {}
        self._conflicts: set[str] = set()

    # --- the two sides ------------------------------------------------------------------------------------------------

    def sampled(self, found: Iterable[Sampled], *, key: str | None = None) -> list[str]:
        """Keep what `openai.read`, `vllm.read` or `sglang.read` returned.

        Args:
            found: sequences of one response.
            key: own name instead of the request id; with several sequences `key/0`, `key/1`, ...

        Returns:
            The keys to give to `scored`, in the order of the sequences; empty where it could not be understood.
        """
        keys: list[str] = []
        with self._guard("Pairing.sampled"):
            sequences = list(found)
            for place, sequence in enumerate(sequences):
                own = sequence.key if key is None else f"{key}/{place}" if len(sequences) > 1 else key
                if not own:
                    raise ResponseError("the engine gave the request no id; pass key=...")
                with self._lock:
                    self._keep_sampled(own, sequence)
                keys.append(own)
        return keys

    def scored(
        self, key: str | Sequence[str], logprobs: Any, *, token_ids: Any = None, mask: Any = None, **columns: Any
    ) -> None:
        """Keep the training log-probs of one response.

        Args:
            key: its key, or the keys of its turns in order, where one trained sequence holds several requests.
            logprobs: [T] of the response tokens, tool output between turns included; the prompt left out.
            token_ids: [T] ids of the same tokens. None: only the length is checked.
            mask: [T] True where a token counts; what no request sampled is masked out in any case.
            **columns: other columns of the record for this sequence: advantage, reward, prompt_id, source, or
                per-token ones such as entropy [T].
        """
        with self._guard("Pairing.scored"):
            keys = (key,) if isinstance(key, str) else tuple(key)
            if not all(keys) or not keys or len(set(keys)) != len(keys):
                raise ValueError(f"key is {key!r:.80}, expected a name, or the names of the turns")
            taken = sorted(_RESERVED & set(columns))
            if taken:
                raise ValueError(f"columns {taken} come from pairing itself")
            logprobs_T = as_array(logprobs, "logprobs", np.float32)
            scored = _Scored(
                keys=keys,
                logprobs_T=logprobs_T.copy(),
                token_ids_T=None if token_ids is None else as_array(token_ids, "token_ids", np.int32).copy(),
                mask_T=None if mask is None else as_array(mask, "mask", np.bool_).copy(),
                columns=columns,
            )
            for name, value in (("token_ids", scored.token_ids_T), ("mask", scored.mask_T)):
                if logprobs_T.ndim != 1 or (value is not None and value.shape != logprobs_T.shape):
                    shape = logprobs_T.shape if value is None else value.shape
                    raise ValueError(
                        f"{name} of {keys[0]} have shape {shape}, logprobs {logprobs_T.shape}; expected [T]"
                    )
            with self._lock:
                self._keep_scored(scored)

    def take(self, *, limit: int | None = None) -> dict[str, Any]:
        """What is complete, oldest first, as keyword arguments for `Collector.record`; empty where nothing is.

        Args:
            limit: sequences to take at most.

        Returns:
            infer_logprobs, train_logprobs, mask, turn, seq_id, token_ids and infer_version (each where every sequence
            has it), and the columns that every sequence was given.
        """
        with self._guard("Pairing.take"), self._lock:
            keys = list(self._ready)[:limit]
            pairs = []
            for key in keys:
                pairs.append(self._ready.pop(key))
                self._room.drop(("ready", key))
            return _columns(pairs) if pairs else {}
        return {}

    def clear(self) -> None:
        """Forget everything that waits, for example sequences of a step that was abandoned; counted as dropped."""
        with self._lock:
            self._stats.dropped += len(self._sampled) + len(self._scored) + len(self._ready)
            self._room.ages.clear()
            self._room.held = 0
            for held in (self._sampled, self._scored, self._waiting, self._ready):
                held.clear()

    # --- what it says -------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> PairingStats:
        """A copy of the counters."""
        with self._lock:
            return PairingStats(**asdict(self._stats))

    @property
    def held_tokens(self) -> int:
        """Tokens held now."""
        return self._room.held

    @property
    def declared(self) -> dict[str, Any]:
        """Sampling settings that all sequences so far shared, for `connect(config=...)` and `lint.check_semantics`."""
        with self._lock:
            return {name: value for name, value in self._settings.items() if name not in self._conflicts}

    @property
    def conflicts(self) -> frozenset[str]:
        """Sampling settings that differed between sequences: their log-probs are not of one policy."""
        with self._lock:
            return frozenset(self._conflicts)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _count_error(self) -> None:
        with self._lock:
            self._stats.errors += 1

    def _keep_sampled(self, key: str, sequence: Sampled) -> None:
        self._stats.sampled += 1
        self._stats.replaced += key in self._sampled
        self._note_settings(sequence)
        self._sampled[key] = sequence
        self._room.put(("sampled", key), len(sequence.logprobs_T))
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._try(waiting)
        self._make_room()

    def _keep_scored(self, scored: _Scored) -> None:
        self._stats.scored += 1
        self._stats.replaced += scored.keys in self._scored
        self._scored[scored.keys] = scored
        self._room.put(("scored", scored.keys), len(scored.logprobs_T))
        self._try(scored.keys)
        self._make_room()

    def _try(self, keys: tuple[str, ...]) -> None:
        """Pair a scored sequence, if all it needs is there; else wait for the first that is not."""
        scored = self._scored.get(keys)
        if scored is None:
            return
        for key in keys:
            if key not in self._sampled:
                self._waiting[key] = keys
                return
        self._scored.pop(keys)
        self._room.drop(("scored", keys))
        pieces = []
        for key in keys:
            pieces.append(self._sampled.pop(key))
            self._room.drop(("sampled", key))
        aligned = align(pieces, scored.token_ids_T, len(scored.logprobs_T))
        if isinstance(aligned, str):
            self._stats.misaligned += 1
            self._guard.once("misaligned", message=f"{', '.join(keys):.200}: {aligned}")
            return
        self._stats.paired += 1
        self._stats.unchecked += not aligned.checked
        self._stats.trimmed += aligned.trimmed > 0
        if not aligned.checked:
            self._guard.once(
                "unchecked", message=f"{keys[0]}: paired by length alone; hand over token ids on both sides"
            )
        if aligned.trimmed:
            self._guard.once("trimmed", message=f"{keys[0]}: one side has {aligned.trimmed} more tokens at the end")
        self._stats.replaced += keys in self._ready
        self._ready[keys] = _Pair(scored=scored, aligned=aligned)
        self._room.put(("ready", keys), 3 * len(scored.logprobs_T))

    def _make_room(self) -> None:
        while (oldest := self._room.oldest()) is not None:
            kind, key = oldest
            self._room.drop(oldest)
            holders: dict[str, dict[Any, Any]] = {
                "sampled": self._sampled,
                "scored": self._scored,
                "ready": self._ready,
            }
            holders[kind].pop(key, None)
            if kind == "scored":
                self._waiting = {need: keys for need, keys in self._waiting.items() if keys != key}
            self._stats.dropped += 1
            self._guard.once(
                "dropped",
                message=f"more than {self._room.capacity} tokens wait to be paired; the oldest are dropped",
            )

    def _note_settings(self, sequence: Sampled) -> None:
        for name in _SETTINGS:
            value = getattr(sequence.sampling, name)
            if value is None:
                continue
            if self._settings.setdefault(name, value) != value and name not in self._conflicts:
                self._conflicts.add(name)
                self._guard.once(
                    "conflict", name, message=f"{name} was {self._settings[name]}, now {value}: not one policy"
                )


def _columns(pairs: Sequence[_Pair]) -> dict[str, Any]:
    """Lists of one array per sequence; a column is left out where a sequence lacks it."""
    found: dict[str, Any] = {
        "infer_logprobs": [pair.aligned.infer_logprobs_T for pair in pairs],
        "train_logprobs": [pair.scored.logprobs_T for pair in pairs],
        "mask": [_mask(pair) for pair in pairs],
        "seq_id": ["+".join(pair.scored.keys) for pair in pairs],
        "token_ids": [pair.scored.token_ids_T for pair in pairs],
        "infer_version": [pair.aligned.versions_T for pair in pairs],
    }
    if any(len(pair.scored.keys) > 1 for pair in pairs):
        found["turn"] = [np.maximum(pair.aligned.turn_T, 0) for pair in pairs]
    for name in set.intersection(*(set(pair.scored.columns) for pair in pairs)):
        found[name] = [pair.scored.columns[name] for pair in pairs]
    return {name: values for name, values in found.items() if all(value is not None for value in values)}


def _mask(pair: _Pair) -> Any:
    sampled_T = pair.aligned.turn_T >= 0
    return sampled_T if pair.scored.mask_T is None else sampled_T & pair.scored.mask_T
