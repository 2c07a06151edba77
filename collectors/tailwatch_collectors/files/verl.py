"""verl: rollout dumps (`trainer.rollout_data_dir`), `{step}.jsonl`, where they carry log-probs.

verl itself writes texts and scores only. Whatever a reward function returns per sample is written beside them, so a
dump carries log-probs where a project puts `rollout_log_probs` and `old_log_probs` there: response tokens only, index
t is `responses[t]`, 0.0 and `response_mask` 0 on tool tokens. Without them every line is passed over, and named once:
use the plug-in instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.files.format import Item, Problem, State, Unit, json_lines, last_byte, numbered
from tailwatch_collectors.types import Phase


class Verl:
    """Rollout dumps of verl."""

    name = "verl"
    phase: Phase = "rollout"
    settles = True
    marker: str | None = None

    def find(self, root: Path) -> list[Unit]:
        """One unit per file."""
        number = lambda path: int(path.stem) if path.stem.isdecimal() else None  # noqa: E731  # beside its one use
        return [Unit(step=step, paths=(path,)) for step, path in numbered(root, "*.jsonl", number)]

    def state(self, unit: Unit) -> State:
        """It looks whole where its last line is."""
        return "looks_whole" if last_byte(unit.paths[0]) == b"\n" else "partial"

    def read(self, unit: Unit) -> Iterator[Item]:
        """Line by line."""
        path = unit.paths[0]
        yield from json_lines(path, lambda record, line: _row(record, path, line))


FORMAT = Verl


def sequence(record: dict[str, Any], *, index: int) -> Row | None:
    """One line of a dump as a row; None where no token counts.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: there are no log-probs.
    """
    infer = rows.floats(record["rollout_log_probs"])
    token_ids, advantages = record.get("responses"), record.get("advantages")
    return rows.response(
        infer_logprobs=infer,
        train_logprobs=record["old_log_probs"],
        mask=record.get("response_mask", [1] * len(infer)),
        token_ids=rows.integers(token_ids) if isinstance(token_ids, list) else None,
        advantage=rows.floats(advantages) if isinstance(advantages, list) else rows.number(advantages),
        reward=rows.number(record.get("score")),
        infer_version=record.get("max_global_steps"),
        prompt_id=_prompt(record.get("uid")),
        seq_id=str(record.get("uid") or index),
    )


def _row(record: dict[str, Any], path: Path, line: int) -> Row | Problem | None:
    row = sequence(record, index=line - 1)
    return row or Problem(path=path, line=line, kind="no_logprobs", reason="no token that the policy sampled")


def _prompt(uid: Any) -> str | None:
    """The prompt of a key `{prompt}_{rollout}_{output}`; other keys name the prompt themselves."""
    if not isinstance(uid, str):
        return None
    parts = uid.rsplit("_", 2)
    return parts[0] if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal() else uid
