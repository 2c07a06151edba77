"""slime and miles: debug train data (`--save-debug-train-data '/dir/{rollout_id}.pt'`, or `--dump-details`).

One torch file per rollout with every data-parallel shard merged, `samples` in rollout order; response tokens only,
index t is response token t; tool tokens have loss mask 0 and 0.0. Read with torch, if that is installed, and with
`weights_only`, so that a file cannot run code. Checked against format version 2.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.errors import BatchError, ConfigurationError
from tailwatch_collectors.files.format import Item, Problem, State, Unit, numbered, torch_load
from tailwatch_collectors.types import Phase

FORMAT_VERSION = 2


class Slime:
    """Debug train data of slime."""

    name = "slime"
    phase: Phase = "rollout"
    settles = True
    marker: str | None = None

    def __init__(self) -> None:
        if importlib.util.find_spec("torch") is None:
            raise ConfigurationError("format slime is read with torch, which is not installed here")

    def find(self, root: Path) -> list[Unit]:
        """One unit per file whose name is a number, alone or at its end."""
        return [Unit(step=step, paths=(path,)) for step, path in numbered(root, "*.pt", _number)]

    def state(self, unit: Unit) -> State:
        """Whole once the archive's directory is there, which is written last."""
        try:
            return "whole" if zipfile.is_zipfile(unit.paths[0]) else "partial"
        except OSError:
            return "partial"

    def read(self, unit: Unit) -> Iterator[Item]:
        """Sample by sample."""
        path = unit.paths[0]
        try:
            payload = torch_load(path)
        except Exception as error:  # noqa: BLE001  # torch and pickle raise whatever a broken file leads them to
            reason = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0]:.160}"
            yield Problem(path=path, kind="corrupt", reason=reason)
            return
        version = payload.get("format_version") if isinstance(payload, dict) else None
        if version != FORMAT_VERSION:
            reason = f"format_version is {version!r:.40}; this reader knows {FORMAT_VERSION}"
            yield Problem(path=path, kind="unusable", reason=reason)
            return
        for index, sample in enumerate(payload["samples"]):
            yield _item(path, index, sample)


FORMAT = Slime


def sequence(sample: Mapping[str, Any], *, index: int) -> Row | None:
    """One sample as a row; None where no token counts.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: log-probs are missing.
    """
    infer, train = rows.floats(sample["rollout_log_probs"]), sample["log_probs"]
    tokens = sample.get("tokens")
    return rows.response(
        infer_logprobs=infer,
        train_logprobs=train,
        mask=sample.get("loss_masks", [1] * len(infer)),
        # The whole sequence, of which the response is the end.
        token_ids=None if tokens is None else rows.integers(tokens)[-len(infer) :],
        advantage=_per_token(sample.get("advantages")),
        entropy=_per_token(sample.get("entropy")),
        reward=rows.number(sample.get("rewards")),
        infer_version=_version(sample.get("weight_versions")),
        seq_id=str(sample.get("sample_index") if sample.get("sample_index") is not None else index),
    )


def _item(path: Path, index: int, sample: Any) -> Item:
    reason = f"sample {index} has no token that counts"
    try:
        row = sequence(sample, index=index)
        return row if row is not None else Problem(path=path, kind="no_logprobs", reason=reason)
    except KeyError as error:
        reason = f"sample {index} has no {str(error).strip(chr(39))}"
        return Problem(path=path, kind="no_logprobs", reason=reason)
    except (BatchError, TypeError, ValueError, IndexError) as error:
        return Problem(path=path, kind="unusable", reason=f"sample {index}: {error!s:.200}")


def _per_token(value: Any) -> Any:
    return None if value is None else rows.floats(value)


def _version(value: Any) -> int | None:
    """The oldest version that sampled the sequence: `weight_versions` has one per call of the engine, as text."""
    versions = [str(one) for one in (value or [])]
    return min(map(int, versions)) if versions and all(one.isdecimal() for one in versions) else None


def _number(path: Path) -> int | None:
    digits = path.stem[len(path.stem.rstrip("0123456789")) :]
    return int(digits) if digits else None
