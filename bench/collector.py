"""What a collector costs the training loop: time blocked in `record`, and the slowdown of three kinds of loops.

1. Blocked in `record`, as a ratio to one memcpy of the columns handed over into memory that is there already (numpy's
   copyto, the same columns, turn by turn), for flat, padded and bf16 arrays; and in ms per 1e5 tokens. The sender
   works meanwhile, against a sink in a process of its own.
2. Slowdown: a loop of big matrix products, one of many small operations, one of plain Python, with steps of more than
   100 ms. A process takes turns: a few steps with the logger, and, once its background work is over, as many without;
   what is reported is the median of the turns' ratios and the middle half of them, for a shared machine changes its
   speed by more than what is to be measured from one second to the next. Tailwatch hands over every token. `json`
   writes every token to a file. W&B (offline), trackio and mlflow (file store) log six numbers computed from the tokens
   in the loop, which is what trainers do today. Peers that do not install are skipped by name, with the reason.

Writes bench/results.json.

    python -m bench.collector [--turns 10] [--tokens 100000 1000000] [--peers DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402  # it reads the number of threads when it is loaded

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results.json"
PEERS = ("wandb", "trackio", "mlflow")
LOGGERS = ("tailwatch", "tailwatch, service dead", "tailwatch, edge", "json", *PEERS)
LOOPS = ("matmul", "tiny", "python")
LAYOUTS = ("flat", "padded", "bf16")
TARGETS = {"flat": 2.0, "padded": 5.0, "bf16": 5.0, "ms_per_1e5_tokens": 1.5}
SEQUENCE = 1000
STEPS = 3
"""Steps of a turn."""


# --- a sink ------------------------------------------------------------------------------------------------------


class _Sink(BaseHTTPRequestHandler):
    """Reads everything and stores nothing."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 2**20)))
        body = b'{"run_id": "bench", "status": "stored"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002  # inherited
        return


def _serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it is gone


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """URL of a sink in a process of its own."""
    command = [sys.executable, "-m", "bench.collector", "--sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


# --- blocked in record -------------------------------------------------------------------------------------------


def columns(layout: str, tokens: int) -> tuple[dict[str, Any], list[Any]]:
    """Arguments of `record`, and the same memory as numpy arrays."""
    generator = np.random.default_rng(0)
    rows = max(tokens // SEQUENCE, 1)
    if layout == "flat":
        infer, train = (-generator.random(tokens, np.float32) for _ in range(2))
        boundaries = np.append(np.arange(0, tokens, SEQUENCE), tokens)
        return {"infer_logprobs": infer, "train_logprobs": train, "cu_seqlens": boundaries}, [infer, train]
    width = SEQUENCE * 3 // 2
    lengths = generator.integers(SEQUENCE // 2, width + 1, rows)
    mask = np.arange(width)[None] < lengths[:, None]
    arrays = [-generator.random((rows, width), np.float32) for _ in range(2)]
    if layout == "padded":
        return {"infer_logprobs": arrays[0], "train_logprobs": arrays[1], "mask": mask}, [*arrays, mask]
    import torch

    tensors = [torch.from_numpy(array).bfloat16() for array in arrays]
    arguments = {"infer_logprobs": tensors[0], "train_logprobs": tensors[1], "mask": torch.from_numpy(mask)}
    return arguments, [*(tensor.view(torch.int16).numpy() for tensor in tensors), mask]


def blocked(layout: str, tokens: int, url: str, *, calls: int) -> dict[str, float]:
    """Medians over calls, record and memcpy in turn."""
    import tailwatch_collectors as tailwatch

    arguments, memory = columns(layout, tokens)
    target = [np.empty_like(array) for array in memory]
    collector = tailwatch.connect(
        project="bench", run=layout, url=url, session="s", overhead_budget=0, queue_bytes=2**31, spool_dir="off"
    )
    recorded, copied = [], []
    for step in range(calls):
        began = time.perf_counter()
        for to, array in zip(target, memory, strict=True):
            np.copyto(to, array)
        middle = time.perf_counter()
        collector.record(step=step, **arguments)
        recorded.append(time.perf_counter() - middle)
        copied.append(middle - began)
        collector.flush(30)
    collector.close(30, finished=False)
    warm = slice(calls // 5, None)
    record, memcpy = statistics.median(recorded[warm]), statistics.median(copied[warm])
    return {
        "record_ms": round(1e3 * record, 4),
        "memcpy_ms": round(1e3 * memcpy, 4),
        "ratio": round(record / memcpy, 2),
        "ms_per_1e5_tokens": round(1e3 * record * 1e5 / tokens, 4),
    }


# --- loops -------------------------------------------------------------------------------------------------------


def work(loop: str) -> Callable[[], None]:
    """One step of a training loop, a little over a tenth of a second."""
    generator = np.random.default_rng(0)
    if loop == "matmul":
        a, b = (generator.random((1024, 1024), np.float32) for _ in range(2))

        def matmul() -> None:
            for _ in range(6):
                np.matmul(a, b)

        return matmul
    if loop == "tiny":
        x = generator.random(64, np.float32)

        def tiny() -> None:
            y = x
            for _ in range(130_000):
                y = y * 0.5 + x

        return tiny

    def python() -> None:
        total = 0
        for number in range(3_500_000):
            total += number & 7

    return python


Log = Callable[[int, np.ndarray[Any, Any], np.ndarray[Any, Any]], None]
Idle = Callable[[], object]
"""Returns once the logger's background work is over."""


def numbers(infer: np.ndarray[Any, Any], train: np.ndarray[Any, Any]) -> dict[str, float]:
    """Six numbers a trainer logs of its tokens today."""
    difference = (train - infer).astype(np.float64)
    ratio = np.exp(difference)
    return {
        "kl_k1": float(-difference.mean()),
        "kl_k3": float((ratio - 1 - difference).mean()),
        "ratio_mean": float(ratio.mean()),
        "ratio_max": float(ratio.max()),
        "abs_max": float(np.abs(difference).max()),
        "ess": float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)),
    }


def logger(name: str, directory: Path, url: str) -> tuple[Log, Idle, Callable[[], None]]:
    """A logger of tokens, how to wait for it, and its end."""
    if name.startswith("tailwatch"):
        return _tailwatch(name, directory, url)
    if name == "json":
        file = (directory / "tokens.jsonl").open("w")

        def to_json(step: int, infer: Any, train: Any) -> None:
            file.write(json.dumps({"step": step, "infer": infer.tolist(), "train": train.tolist()}) + "\n")

        return to_json, file.flush, file.close
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(directory)}
    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
    peer: Any = __import__(name)
    # They have no way to say when they are through with what was logged.
    idle = partial(time.sleep, 0.3)
    if name == "mlflow":
        peer.set_tracking_uri((directory / "mlruns").as_uri())
        peer.start_run()
        return lambda step, infer, train: peer.log_metrics(numbers(infer, train), step=step), idle, peer.end_run
    more = {"dir": str(directory)} if name == "wandb" else {}
    peer.init(project="bench", **more)
    return lambda step, infer, train: peer.log({**numbers(infer, train), "step": step}), idle, peer.finish


def _tailwatch(name: str, directory: Path, url: str) -> tuple[Log, Idle, Callable[[], None]]:
    import tailwatch_collectors as tailwatch

    dead = name.endswith("dead")
    collector = tailwatch.connect(
        project="bench",
        run="loop",
        url="http://127.0.0.1:9" if dead else url,
        session="s",
        mode="edge" if name.endswith("edge") else "tokens",
        overhead_budget=0,
        spool_dir=directory / "spool",
    )

    def record(step: int, infer: Any, train: Any) -> None:
        boundaries = np.append(np.arange(0, len(infer), SEQUENCE), len(infer))
        collector.record(step=step, infer_logprobs=infer, train_logprobs=train, cu_seqlens=boundaries)

    # Where nobody listens, what was recorded goes to disk.
    idle = partial(time.sleep, 0.5) if dead else partial(collector.flush, 30)
    return record, idle, lambda: collector.close(10)


def worker(options: dict[str, Any]) -> None:
    """One loop with one logger, turn by turn with and without: seconds of each turn, and of the logger's calls."""
    step, tokens = work(options["loop"]), options["tokens"]
    generator = np.random.default_rng(1)
    infer = -generator.exponential(1.0, tokens).astype(np.float32)
    train = np.minimum(infer + generator.normal(0, 0.02, tokens).astype(np.float32), 0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        log, idle, end = logger(options["logger"], Path(directory), options["url"])
        turns: dict[str, list[float]] = {"with": [], "without": []}
        calls = []
        for turn in range(options["turns"] + 1):  # the first one warms up
            for side, times in turns.items():
                began = time.perf_counter()
                for number in range(STEPS):
                    step()
                    if side == "with":
                        middle = time.perf_counter()
                        log(turn * STEPS + number, infer, train)
                        calls.append(time.perf_counter() - middle)
                times.append(time.perf_counter() - began)
                idle()
        end()
    print("\n" + json.dumps({**turns, "calls": calls}), flush=True)


def run(python: str, **options: Any) -> dict[str, Any] | str:
    """Figures of one worker; the reason where it failed."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "collectors")])}
    command = [python, "-m", "bench.collector", "--worker", json.dumps(options)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environ, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "did not end within 300 s"
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2][:200]
    found = json.loads(done.stdout.strip().rpartition("\n")[2])
    ratios = [one / other for one, other in zip(found["with"][1:], found["without"][1:], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "slowdown": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "calls_ms": round(1e3 * statistics.median(found["calls"][STEPS:]), 3),
        "step_ms": round(1e3 * statistics.median(found["without"][1:]) / STEPS, 1),
    }


def peers(directory: Path) -> dict[str, str]:
    """Install the peers into an environment of their own; the reason for each that did not."""
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    missing: dict[str, str] = {}
    for name in ("numpy", *PEERS):
        install = [str(python), "-m", "pip", "install", "-q", "--retries", "1", name]
        done = subprocess.run(install, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "rror" in line]
            missing[name] = (errors or ["pip failed"])[-1][:200]
    return missing


def loops(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Slowdowns by tokens, loop and logger."""
    python = options.peers / "bin" / "python"
    missing = peers(options.peers)
    found: dict[str, Any] = {"skipped": missing}
    for tokens in options.tokens:
        for loop in LOOPS:
            of = found.setdefault(str(tokens), {}).setdefault(loop, {})
            for name in LOGGERS:
                if name in missing:
                    continue
                own = str(python) if name in PEERS else sys.executable
                # One that takes seconds a step shows itself in a few turns.
                turns = 3 if name == "json" else options.turns
                cell = run(own, loop=loop, logger=name, tokens=tokens, turns=turns, url=url)
                if isinstance(cell, str):
                    missing[name] = cell
                    continue
                of[name] = cell
                print(f"{tokens:>8} {loop:8} {name:24} {json.dumps(cell)}", flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "tailwatch-bench-peers")
    parser.add_argument("--worker")
    parser.add_argument("--sink", action="store_true")
    options = parser.parse_args()
    if options.sink:
        _serve()
        return
    if options.worker:
        worker(json.loads(options.worker))
        return
    report: dict[str, Any] = {
        "command": f"python -m bench.collector --turns {options.turns}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
        "note": "one core per library; ratio: record over one memcpy into memory that is there already, in turn; "
        "slowdown: median and quartiles of the turns' ratios, steps with the logger over steps without; "
        "the machine is shared",
        "targets": TARGETS,
    }
    with sink() as url:
        report["blocked"] = {
            layout: {str(tokens): blocked(layout, tokens, url, calls=options.calls) for tokens in options.tokens}
            for layout in LAYOUTS
        }
        for layout, cells in report["blocked"].items():
            print(layout, json.dumps(cells), flush=True)
        report["loops"] = loops(options, url)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["collector"] = report
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print("\nwritten to bench/results.json")


if __name__ == "__main__":
    main()
