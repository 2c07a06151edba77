"""Write docs/harm.md: what each kind of harm did to the training, and where every batch went.

Runs the scenarios of tests/e2e/harm.py, each with a real trainer process, and the same training without a collector
before and after each, because the machine's own noise is part of the picture.

    python scripts/harm_report.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e import harm
from tests.e2e.harm import Account, Real

OUT = Path(__file__).parents[1] / "docs" / "harm.md"

HEAD = f"""# What harm does

Each line is a real training process ({harm.STEPS} steps of {harm.TOKENS:,} tokens, queue {harm.QUEUE_BYTES >> 20} MiB,
spool {harm.SPOOL_BYTES >> 20} MiB) under one kind of harm, compared with the same training without a collector, run
before and after it. Written by `python scripts/harm_report.py`; `tests/e2e/test_harm.py` asserts everything but times.

- **result**: whether the parameters at the end are the same to the last bit.
- **in record**: median time a step spent in `record`, the only call in the loop.
- **step**: median step, as a ratio to the training without a collector; **noise**: that training after it, as a ratio
  to the same training before it. Both share two cores with other work and, where it is up, with the service itself.
- **memory**: peak of the process above the training without a collector, libraries included (numpy is in both;
  pyarrow and httpx take about 50 MB).
- **close**: how long `close()` took at the end (its limit was 5 s unless noted in the scenario).
- **sent, on disk, dropped**: what the collector counted at its end. They add up to what was recorded.
- **stored**: batches in the database after the spool was sent to a healthy service; all distinct.

| harm | result | in record | step | noise | memory | disk | close | recorded | sent | on disk | dropped | stored |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def _line(title: str, found: list[Account], baselines: list[Account]) -> str:
    last = found[-1]
    same = {one.digest for one in found} == {baselines[0].digest}
    result = "identical" if same else "killed on purpose" if last.digest is None else "DIFFERENT"
    inside = f"{1000 * statistics.median(last.recording):.2f} ms" if last.recording else ""
    ratio = "" if last.digest is None else f"{_step(found) / _step(baselines):.2f}"
    noise = f"{_step(baselines[1::2]) / _step(baselines[::2]):.2f}"
    memory = "" if not last.rss_bytes else f"{(last.rss_bytes - baselines[0].rss_bytes) / 2**20:.0f} MB"
    stats = last.stats
    if stats:
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(stats["dropped"].items())) or "0"
        counts = [stats["recorded"], stats["sent"] + stats["duplicates"], stats["spooled"], dropped]
    else:
        counts = ["", "", "", ""]
    distinct = len(set(last.stored)) == len(last.stored)
    stored = f"{len(last.stored)}{'' if distinct else ', NOT DISTINCT'}"
    cells = [
        title,
        result,
        inside,
        ratio,
        noise,
        memory,
        f"{last.spool_bytes / 2**20:.1f} MB",
        f"{last.closing:.1f} s",
        *counts,
        stored,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _step(accounts: list[Account]) -> float:
    return statistics.median(account.step_ms for account in accounts)


def main() -> None:
    """Run every scenario, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="times each scenario is run; medians of steps")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        service = Real(root / "data")
        service.start()
        try:
            for name, (title, scenario) in harm.SCENARIOS.items():
                found, baselines = [], []
                for number in range(options.rounds):
                    own = root / f"{name}-{number}"
                    own.mkdir()
                    baselines.append(harm.train(own, url=None, connect=False))
                    found.append(scenario(own, service))
                    baselines.append(harm.train(own, url=None, connect=False))
                lines.append(_line(title, found, baselines))
                print(lines[-1], flush=True)
        finally:
            service.kill()
    OUT.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
