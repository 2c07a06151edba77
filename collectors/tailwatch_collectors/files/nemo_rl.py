"""NeMo-RL: `train_data_step{N}.jsonl`, written after every GRPO step into the directory of the experiment.

One line per sample, every value in a list of one. Written in one go without a marker, so a file is whole once the
next one is there or it has not changed for a while. The layout is that of `adapters.nemo_rl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailwatch_collectors.adapters import nemo_rl
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.files.format import Item, Problem, State, Unit, json_lines, last_byte, numbered
from tailwatch_collectors.types import Phase


class NemoRl:
    """Training data of NeMo-RL."""

    name = "nemo-rl"
    phase: Phase = "rollout"
    settles = True
    marker: str | None = None

    def __init__(self, *, group_size: int | None = None) -> None:
        self._group_size = group_size

    def find(self, root: Path) -> list[Unit]:
        """One unit per file."""
        return [Unit(step=step, paths=(path,)) for step, path in numbered(root, "train_data_step*.jsonl", _number)]

    def state(self, unit: Unit) -> State:
        """It looks whole where its last line is."""
        return "looks_whole" if last_byte(unit.paths[0]) == b"\n" else "partial"

    def read(self, unit: Unit) -> Iterator[Item]:
        """Line by line."""
        path = unit.paths[0]
        yield from json_lines(path, lambda record, line: self._row(record, path, line))

    def _row(self, record: dict[str, Any], path: Path, line: int) -> Row | Problem | None:
        values = {name: _only(value) for name, value in record.items() if _only(value) is not None}
        if "generation_logprobs" not in values and "rewards" in values:
            return None  # with dynamic sampling there are more rewards than samples
        index = int(record.get("idx", line - 1))
        row = nemo_rl.sample(values, index=index)
        if row is None:
            reason = "no sampled token, or prev_logprobs of zeros (loss_fn.force_on_policy_ratio skips them)"
            return Problem(path=path, line=line, kind="no_logprobs", reason=reason)
        if self._group_size:
            row["prompt_id"] = str(index // self._group_size)
        return row


FORMAT = NemoRl


def _only(value: Any) -> Any:
    """The one entry of a list of one; None for an empty list; other values as they are."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 else (value or None)
    return value


def _number(path: Path) -> int | None:
    match = nemo_rl.FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else None
