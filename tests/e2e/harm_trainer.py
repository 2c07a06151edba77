"""A trainer to be harmed: a small deterministic training loop that records, run as a process of its own.

Reads one JSON object of options as its argument, prints `step <n>` as it goes and one JSON object at the end: a hash
of everything it computed, the duration of every step, and what the collector counted.
"""
# ruff: noqa: T201  # it talks to whoever started it

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

WIDTH = 192


class Loop:
    """A two-layer regression by hand; every number is a function of the seed and the step."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.first = generator.normal(0, 0.1, (WIDTH, WIDTH))
        self.second = generator.normal(0, 0.1, (WIDTH, WIDTH))

    def step(self, number: int, tokens: int) -> dict[str, Any]:
        """One update; the log-probs that come with it."""
        generator = np.random.default_rng([1, number])
        inputs = generator.normal(0, 1, (WIDTH, WIDTH))
        targets = np.tanh(inputs[:, ::-1])
        for _ in range(4):
            hidden = np.tanh(inputs @ self.first)
            error = hidden @ self.second - targets
            back = (error @ self.second.T) * (1 - hidden**2)
            self.second -= 1e-3 * hidden.T @ error
            self.first -= 1e-3 * inputs.T @ back
        shape = (max(tokens // 500, 1), min(tokens, 500))
        infer = -generator.exponential(1.0, shape).astype(np.float32)
        train = np.minimum(infer + generator.normal(0, 0.02, shape).astype(np.float32), 0.0)
        mask = np.ones(shape, bool)
        return {"infer_logprobs": infer, "train_logprobs": train, "mask": mask}

    def digest(self) -> str:
        """Of all parameters, to the last bit."""
        return hashlib.sha256(self.first.tobytes() + self.second.tobytes()).hexdigest()


def main(options: dict[str, Any]) -> None:
    """Train, record, and say what happened."""
    if options.get("file_bytes"):
        # The kernel refuses every file beyond this size: as a quota does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"], options["file_bytes"]))
    collector: Any = None
    if options.get("connect") is not None:
        import tailwatch_collectors as tailwatch

        collector = tailwatch.connect(project="harm", overhead_budget=0, **options["connect"])
    loop = Loop()
    seconds: list[float] = []
    recording: list[float] = []
    for number in range(options.get("first", 0), options["steps"]):
        began = time.perf_counter()
        arrays = loop.step(number, options["tokens"])
        if collector is not None:
            handing = time.perf_counter()
            collector.record(step=number, train_version=number, **arrays)
            recording.append(time.perf_counter() - handing)
            arrays["infer_logprobs"][:] = 0  # a trainer reuses its buffers
        seconds.append(time.perf_counter() - began)
        if number in options.get("fork_at", []):
            _fork(collector, number)
        if options.get("threads") and number == options["steps"] // 2:
            _threads(collector, options["threads"])
        print("step", number, flush=True)
        time.sleep(options.get("pause", 0.0))
    began = time.perf_counter()
    if collector is not None:
        collector.close(options.get("close", 5.0))
    print(
        json.dumps(
            {
                "digest": loop.digest(),
                "seconds": seconds,
                "recording": recording,
                "closing": time.perf_counter() - began,
                "rss_bytes": _peak(),
                "stats": None if collector is None else _stats(collector),
                "spool_bytes": _size(options),
            }
        ),
        flush=True,
    )


def _peak() -> int:
    """Most memory this process has held. Not getrusage: that also counts whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _stats(collector: Any) -> dict[str, Any]:
    stats = collector.stats
    return {name: getattr(stats, name) for name in type(stats).__slots__ if name != "dropped"} | {
        "dropped": dict(stats.dropped)
    }


def _size(options: dict[str, Any]) -> int:
    root = (options.get("connect") or {}).get("spool_dir")
    return sum(path.stat().st_size for path in Path(root).rglob("*.seg")) if root and root != "off" else 0


def _fork(collector: Any, number: int) -> None:
    """A worker as a data loader starts them: it records too, and ends without exit handlers."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            arrays = Loop().step(number, 1000)
            if collector is not None:
                collector.record(step=number, stream="worker", **arrays)
                collector.close(30.0)
                print("worker", json.dumps(_stats(collector)), flush=True)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"the worker ended with {status}")


def _threads(collector: Any, count: int) -> None:
    """Many threads that record at once."""
    arrays = Loop().step(0, 10)

    def record(number: int) -> None:
        collector.record(step=number, stream="threads", final=False, **arrays)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
