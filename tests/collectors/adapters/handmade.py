"""Sequences written by hand, and the comparison of what an adapter makes of them with them, in loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.guard import Guard
from tailwatch_collectors.types import BatchMeta


@dataclass
class Made:
    """One sequence: a prompt and its response, in which tokens that nobody sampled may stand."""

    prompt: list[int]
    tokens: list[int]
    mask: list[bool]
    infer: list[float]
    train: list[float]
    advantages: list[float]
    versions: list[int]
    reward: float
    group: int
    turns: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


def sequences() -> list[Made]:
    """Two prompts, three responses: one of a single token, one of two turns with an answer between them."""
    return [
        made(prompt=3, group=0, mask="111", first=10, reward=1.0),
        made(prompt=3, group=0, mask="11001", first=20, reward=0.0),
        made(prompt=2, group=1, mask="1", first=30, reward=0.5),
    ]


def made(*, prompt: int, group: int, mask: str, first: int, reward: float) -> Made:
    sampled = [character == "1" for character in mask]
    turn, turns, before = -1, [], False
    for one in sampled:
        turn += one and not before
        before = one
        turns.append(turn)
    count = len(mask)
    return Made(
        prompt=[first * 100 + p for p in range(prompt)],
        tokens=[first * 100 + 50 + t for t in range(count)],
        mask=sampled,
        # Exact in float32, and different everywhere, so that a shift by one shows.
        infer=[-(first + t + 1) / 64 if sampled[t] else 0.0 for t in range(count)],
        train=[-(first + 2 * t + 2) / 64 for t in range(count)],
        advantages=[reward - 0.5 + t / 8 if sampled[t] else 0.0 for t in range(count)],
        versions=[group + (t > 1) if sampled[t] else -1 for t in range(count)],
        reward=reward,
        group=group,
        turns=turns,
    )


def assert_equal(found: dict[str, Any], truth: Sequence[Made], *, columns: dict[str, str]) -> Batch:
    """Every value of every column is the one made by hand.

    Args:
        found: keywords of `Collector.record`.
        truth: the sequences, in order.
        columns: wire column -> attribute of `Made`; both log-probs and the mask are always compared.
    """
    wanted = {"infer_logprobs": "infer", "train_logprobs": "train", "mask": "mask", **columns}
    for column, attribute in wanted.items():
        assert len(found[column]) == len(truth), column
        for b, one in enumerate(truth):
            expected = getattr(one, attribute)
            if not isinstance(expected, list):
                assert found[column][b] == expected, (column, b)
                continue
            assert len(found[column][b]) == len(expected), (column, b)
            for t, value in enumerate(expected):
                # A masked token's value is nobody's business; its place is.
                if one.mask[t] or column in {"mask", "token_ids"}:
                    assert found[column][b][t] == value, (column, b, t)
    keywords = {name: value for name, value in found.items() if name not in {"step", "phase", "final", "train_version"}}
    batch = Batch.from_arrays(BatchMeta(step=0), **keywords)
    assert batch.sequences == len(truth)
    return batch


class Recorder:
    """What a hook needs of a collector."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self.errors = 0
        self.guard = Guard(on_error=self._count)

    def _count(self) -> None:
        self.errors += 1

    def record(self, **keywords: Any) -> None:
        self.records.append(keywords)

    def end_step(self, step: int) -> None:
        self.ended.append(step)
