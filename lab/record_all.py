"""Makes the three committed recordings again, one after the other.

python -m lab.record_all
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from lab import train

RECORDINGS = Path("lab/recordings")
"""Where they lie, from the repository root; part of the command that a recording names."""

RUNS = {
    "healthy": "--arm grpo --engine fp8 --sync-every 1 --lr 4e-4 --steps 64",
    "collapsing": "--arm grpo --engine fp8 --sync-every 16 --lr 4e-4 --steps 64",
    "control": "--arm grpo --engine fp32 --sync-every 1 --lr 3e-3 --steps 48",
}
"""Command line of each run. The first two differ in one thing: how often the engine gets the weights."""


def main(argv: Sequence[str] | None = None) -> None:
    """Record the named runs, or all."""
    parser = argparse.ArgumentParser(prog="python -m lab.record_all", description="Record the committed runs.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"which of {', '.join(RUNS)}; default: all")
    parser.add_argument("--out", type=Path, default=RECORDINGS, help="folder to write to")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.runs) - set(RUNS))
    if unknown:
        parser.error(f"unknown run {unknown[0]!r}, expected one of {', '.join(RUNS)}")
    for name in arguments.runs or RUNS:
        path = arguments.out / f"{name}.parquet"
        print(f"== {path}", flush=True)
        train.main([*shlex.split(RUNS[name]), "--run", name, "--record", str(path)])


if __name__ == "__main__":
    main()
