"""The command line of a run: trains, prints a line per step, and records it, streams it live, or both.

python -m lab.train --live
python -m lab.train --sync-every 1 --record /tmp/on-policy.parquet
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import torch

from lab.grpo import ARMS
from lab.model import load_policy
from lab.numerics import NUMERICS_NAMES
from lab.recording import Provenance, RecordingWriter
from lab.sink import Sink
from lab.trainer import FRAMEWORK, Settings, StepReport, Trainer

CHECKPOINT = Path(__file__).parent / "checkpoints" / "sft.pt"
DEFAULT_URL = "http://127.0.0.1:8321"


def main(argv: Sequence[str] | None = None) -> list[StepReport]:
    """Run from the command line; returns the reports that were printed."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_args(arguments)
    try:
        settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    except ValueError as error:
        raise SystemExit(f"lab.train: {error}") from error
    torch.set_num_threads(1)  # the sums' order, and so every bit, would depend on the core count
    run = options.run or f"{settings.arm}-{settings.engine}-k{settings.sync_every}-s{settings.seed}"
    provenance = Provenance(
        project=options.project,
        run=run,
        command=shlex.join(["python", "-m", "lab.train", *arguments]),
        seed=settings.seed,
        commit=_commit(),
        framework=FRAMEWORK,
        settings=settings.described(),
    )
    with ExitStack() as open_sinks:
        sinks: list[Sink] = []
        if options.record is not None:
            sinks.append(open_sinks.enter_context(RecordingWriter(options.record, provenance=provenance)))
        if options.live:
            from lab.live import LiveSink

            try:
                live = LiveSink(options.url, provenance=provenance)
            except ValueError as error:
                raise SystemExit(f"lab.train: {error}") from error
            sinks.append(open_sinks.enter_context(live))
            print(f"streaming to {options.url} as {options.project}/{run}", flush=True)
        return _run(Trainer(settings, policy=load_policy(options.checkpoint), sinks=sinks), options.step_seconds)


def _run(trainer: Trainer, step_seconds: float) -> list[StepReport]:
    reports = []
    started = time.monotonic()
    for report in trainer.run():
        reports.append(report)
        print(_line(report, trainer.settings.steps), flush=True)
        behind = started + (report.step + 1) * step_seconds - time.monotonic()
        time.sleep(max(0.0, behind))
    accuracies = [r.scalars["eval_accuracy"] for r in reports if "eval_accuracy" in r.scalars]
    print(
        f"{len(reports)} steps in {time.monotonic() - started:.0f} s: "
        f"eval accuracy {accuracies[0]:.3f} -> {accuracies[-1]:.3f}, "
        f"kl_k3 {reports[0].mismatch.kl_k3:.2g} -> {reports[-1].mismatch.kl_k3:.2g} "
        f"(largest {max(r.mismatch.kl_k3 for r in reports):.2g})"
    )
    return reports


def _line(report: StepReport, steps: int) -> str:
    scalars, d = report.scalars, report.mismatch
    line = (
        f"step {report.step + 1:3d}/{steps}  lag {report.lag:2d}  reward {scalars['reward']:.3f}  "
        f"|d| {d.abs_mean:.2e}  k3 {d.kl_k3:.2e}  entropy {scalars['entropy']:.3f}  "
        f"grad {scalars['grad_norm']:.2f}  clipped {scalars['clip_fraction']:.3f}"
    )
    accuracy = scalars.get("eval_accuracy")
    return line if accuracy is None else f"{line}  eval {accuracy:.3f}"


def _commit() -> str:
    """Short hash of the commit checked out; `unknown` outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  no input in it
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m lab.train",
        description="Train the lab's policy; print, record or stream every step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--arm", choices=ARMS, default=default.arm, help="denominator of the importance ratio")
    run.add_argument(
        "--engine", choices=NUMERICS_NAMES, default=default.engine, help="numerics of the inference engine"
    )
    run.add_argument(
        "--sync-every", type=int, metavar="K", default=default.sync_every, help="steps between weight syncs"
    )
    run.add_argument("--lr", type=float, default=default.lr, help="learning rate")
    run.add_argument("--steps", type=int, default=default.steps, help="rollouts")
    run.add_argument("--seed", type=int, default=default.seed, help="seed of problems and samples")
    run.add_argument("--prompts", type=int, default=default.prompts, help="problems per step")
    run.add_argument("--group", type=int, default=default.group, help="responses per problem")
    run.add_argument("--minibatches", type=int, default=default.minibatches, help="optimiser updates per step")
    run.add_argument("--eval-every", type=int, default=default.eval_every, help="steps between evaluations")
    run.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="weights to start from")
    out = parser.add_argument_group("where it goes")
    out.add_argument("--project", default="lab", help="project name")
    out.add_argument("--run", help="run name; by default made of arm, engine, K and seed")
    out.add_argument("--record", type=Path, metavar="FILE", help="write a recording (Parquet)")
    out.add_argument("--live", action="store_true", help="stream to a running service")
    out.add_argument("--url", default=os.environ.get("TAILWATCH_URL", DEFAULT_URL), help="service to stream to")
    out.add_argument("--step-seconds", type=float, default=0.0, help="shortest time of a step, to watch it at leisure")
    return parser


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("lab.train: interrupted; what was streamed is kept, a recording is not") from None
