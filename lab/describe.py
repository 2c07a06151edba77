"""What recordings hold, as a Markdown table, computed from the files. No torch here.

python -m lab.describe lab/recordings/*.parquet
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.mismatch import mismatch
from lab.recording import batches, read_recording

_AVERAGED = 4
"""Steps averaged at each end."""

_HEADER = ("run", "steps", "tokens", "size", "eval", "mean abs d", "kl_k3", "rollout reward")


def describe(path: Path) -> tuple[str, ...]:
    """One row of the table: eval accuracy at the first and last evaluation, the rest as means over 4 steps."""
    recording = read_recording(path)
    tokens = 0
    rows = []
    for batch in batches(path):
        tokens += batch.tokens
        rows.append(mismatch(batch))
    accuracy = list(recording.series("eval_accuracy").values())
    reward = list(recording.series("reward").values())
    return (
        recording.provenance.run,
        str(recording.steps),
        f"{tokens:,}",
        f"{path.stat().st_size / 1e6:.2f} MB",
        f"{accuracy[0]:.2f} -> {accuracy[-1]:.2f}",
        _ends([row.abs_mean for row in rows], ".2g"),
        _ends([row.kl_k3 for row in rows], ".2g"),
        _ends(reward, ".2f"),
    )


def _ends(values: Sequence[float], form: str) -> str:
    return f"{np.mean(values[:_AVERAGED]):{form}} -> {np.mean(values[-_AVERAGED:]):{form}}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m lab.describe", description="Describe recordings.")
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE", help="recording (Parquet)")
    paths = parser.parse_args(argv).paths
    for row in (_HEADER, ("---",) * len(_HEADER), *map(describe, paths)):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
