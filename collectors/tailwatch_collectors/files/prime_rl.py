"""prime-rl: token exports (`trainer.enable_token_export`), `token_exports/step_{N}/rank_{r}.jsonl` and `STABLE`.

One JSON object per sequence, prompt included; index i is token i; non-finite numbers are null. Every data-parallel
rank writes its shard and `STABLE` follows once all have. The training log-probs are those of the loss (phase
`update`). `is_masked` names the tokens the default loss drops: they keep `mask` and lose `mask_post`. Tokens with
weight 0 in both the rl and the ref_kl stream were sampled by another model and are masked out. Checked against
schema version 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.errors import BatchError, FieldError
from tailwatch_collectors.files.format import Item, Problem, State, Unit, json_lines, numbered
from tailwatch_collectors.types import Phase

SCHEMA_VERSION = 1

_STEP = re.compile(r"step_(\d+)")
_RANK = re.compile(r"rank_(\d+)\.jsonl")


class PrimeRl:
    """Token exports of prime-rl."""

    name = "prime-rl"
    phase: Phase = "update"
    settles = False
    marker: str | None = "STABLE"

    def find(self, root: Path) -> list[Unit]:
        """One unit per step directory below `root` or its `token_exports`."""
        home = root / "token_exports" if (root / "token_exports").is_dir() else root
        found = []
        for step, folder in numbered(home, "step_*", lambda path: _number(_STEP, path)):
            ranks = numbered(folder, "rank_*.jsonl", lambda path: _number(_RANK, path))
            if ranks:
                found.append(Unit(step=step, paths=tuple(path for _, path in ranks)))
        return found

    def state(self, unit: Unit) -> State:
        """Whole once `STABLE` is younger than the data: a resumed run writes anew beside the old marker."""
        try:
            stable = (unit.paths[0].parent / "STABLE").stat().st_mtime_ns
            return "whole" if all(path.stat().st_mtime_ns <= stable for path in unit.paths) else "partial"
        except OSError:
            return "partial"

    def read(self, unit: Unit) -> Iterator[Item]:
        """Rank by rank, line by line."""
        for path in unit.paths:
            yield from json_lines(path, lambda record, line, path=path: _row(record, path, line))  # type: ignore[misc]


FORMAT = PrimeRl


def sequence(record: dict[str, Any]) -> Row | None:
    """One exported sequence as a row; None where no token counts.

    Raises:
        BatchError: another schema version, or columns of unequal length.
        KeyError: a column is missing.
    """
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        reason = f"is {version!r:.40}; this reader knows {SCHEMA_VERSION}"
        raise BatchError(FieldError(column="schema_version", reason=reason))
    mask = rows.flags(record["loss_mask"]) & _sampled(record)
    row = rows.response(
        infer_logprobs=record["inference_logprobs"],
        train_logprobs=record["trainer_logprobs"],
        mask=mask,
        token_ids=rows.integers(record["token_ids"]),
        advantage=rows.floats(record["advantages"]),
        entropy=rows.floats(record["entropy"]),
        rejected=_rejected(record),
        source=record.get("env_name"),
        seq_id=f"{record.get('rank', 0)}.{record['export_sequence_idx']}",
    )
    if row is not None and "rejected" in row:
        row["mask_post"] = row["mask"] & ~row.pop("rejected")
    return row


def _row(record: dict[str, Any], path: Path, line: int) -> Row | Problem | None:
    row = sequence(record)
    if row is None:
        return Problem(path=path, line=line, kind="no_logprobs", reason="no token that the policy sampled")
    return row


def _sampled(record: dict[str, Any]) -> Any:
    """[S] true where the policy sampled the token: a weight other than 0 in the rl or the ref_kl stream."""
    rl, ref_kl = (rows.floats(record.get(name) or []) for name in ("rl_weights", "ref_kl_weights"))
    length = len(record["loss_mask"])
    # A column of nulls is an absent stream; an absent rl stream means weight 1.
    member = np.ones(length, np.bool_) if np.isnan(rl).all() else np.nan_to_num(rl) != 0
    return member if np.isnan(ref_kl).all() else member | (np.nan_to_num(ref_kl) != 0)


def _rejected(record: dict[str, Any]) -> Any:
    """[S] true where the default loss drops the token; None where another loss ran."""
    values = record.get("is_masked") or [None]
    return None if values[0] is None else rows.flags(values)


def _number(pattern: re.Pattern[str], path: Path) -> int | None:
    match = pattern.fullmatch(path.name)
    return int(match[1]) if match else None
