"""Tokens a second through HTTP, durable, as a ratio to the same service fed JSON.

A real service process on 127.0.0.1, a second process that sends prepared bodies over several connections, and in the
same run the bounds: the kernel alone on the same batch, and one subtraction of two float32 arrays. Every request is a
new batch, acknowledged after its commit. Writes bench/results.json.

    python -m bench.ingest [--tokens 100000] [--connections 8] [--seconds 8]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta

RESULTS = Path(__file__).parent / "results.json"
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured combination."""

    name: str
    encoding: str
    keep_tokens: str


CELLS = (
    Cell("arrow, tokens not kept", "arrow", "off"),
    Cell("arrow, tokens kept", "arrow", "all"),
    Cell("json, tokens not kept", "json", "off"),
)


def make_batch(tokens: int) -> Batch:
    """Log-normal lengths, mostly near-certain tokens, heavy-tailed d: what a step of a real run looks like."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(6.6, 0.8, tokens).astype(np.int64))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    offsets = np.append(offsets[offsets < tokens], tokens)
    certain = rng.random(tokens) < 0.65
    infer = np.where(certain, -1e-4 * rng.exponential(size=tokens), -rng.exponential(1.5, tokens)).astype(np.float32)
    train = np.minimum(infer + rng.standard_t(3, tokens) * 0.02 * np.sqrt(-infer), 0).astype(np.float32)
    return Batch.from_arrays(
        BatchMeta(step=0, train_version=3),
        infer_logprobs=infer,
        train_logprobs=train,
        cu_seqlens=offsets,
        infer_version=2,
        advantage=rng.normal(size=len(offsets) - 1),
    )


def encode(batch: Batch, encoding: str) -> bytes:
    """The batch as a request body."""
    if encoding == "arrow":
        return wire.encode(batch)
    meta = batch.meta
    bounds = list(zip(batch.offsets_B1[:-1].tolist(), batch.offsets_B1[1:].tolist(), strict=True))
    assert batch.advantage_B is not None
    rows = [
        {
            "infer_logprobs": batch.infer_logprobs_N[start:end].tolist(),
            "train_logprobs": batch.train_logprobs_N[start:end].tolist(),
            "infer_version": 2,
            "advantage": float(batch.advantage_B[row]),
        }
        for row, (start, end) in enumerate(bounds)
    ]
    record = {"step": meta.step, "part": meta.part, "final": meta.final, "train_version": 3, "sequences": rows}
    return orjson.dumps(record)


def send(port: int, run_id: str, bodies: list[bytes], content_type: str, connections: int, out: Any) -> None:
    """In its own process: post every body once over `connections` connections; puts (seconds, statuses)."""
    path = f"/api/v1/runs/{run_id}/batches"

    def worker(mine: list[bytes]) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        statuses = []
        for body in mine:
            connection.request("POST", path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        return statuses

    shares = [bodies[index::connections] for index in range(connections)]
    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        statuses = [status for share in pool.map(worker, shares) for status in share]
    out.put((time.perf_counter() - start, statuses))


def measure(cell: Cell, batch: Batch, *, connections: int, seconds: float) -> list[float]:
    """Tokens/s of each round; the number of requests is set from a first one."""
    directory = Path(tempfile.mkdtemp(prefix="tailwatch-bench-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tailwatch_service", "serve", "--port", str(port)]
    command += ["--data-dir", str(directory), "--keep-tokens", cell.keep_tokens, "--log-level", "warning"]
    # One client, far above any trainer's rate: the limit on requests a minute is not what is measured.
    environment = os.environ | {"TAILWATCH_LIMIT_REQUESTS_PER_MINUTE": "0"}
    service = subprocess.Popen(command, env=environment)
    try:
        run_id = _create_run(port)
        content_type = wire.CONTENT_TYPE if cell.encoding == "arrow" else "application/json"
        context = multiprocessing.get_context("spawn")
        rates: list[float] = []
        part, count = 0, connections
        for attempt in range(_ROUNDS + 1):
            metas = [replace(batch.meta, step=attempt, part=part + i, final=False) for i in range(count)]
            part += count
            bodies = [encode(replace(batch, meta=meta), cell.encoding) for meta in metas]
            results: Any = context.Queue()
            arguments = (port, run_id, bodies, content_type, connections, results)
            client = context.Process(target=send, args=arguments)
            client.start()
            elapsed, statuses = results.get(timeout=120)
            client.join()
            if set(statuses) != {201}:
                raise SystemExit(f"{cell.name}: answers {sorted(set(statuses))}, expected 201")
            rate = count * batch.tokens / elapsed
            if attempt == 0:  # warm-up; it also says how many requests fill a round
                most = 200 if cell.encoding == "arrow" else 40
                count = max(connections, min(most, int(rate * seconds / _ROUNDS / batch.tokens)))
            else:
                rates.append(rate)
        return rates
    finally:
        service.terminate()
        service.wait(timeout=20)
        shutil.rmtree(directory, ignore_errors=True)


def _create_run(port: int) -> str:
    body = json.dumps({"project": "bench", "name": "ingest"})
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", "/api/v1/runs", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError:
            time.sleep(0.1)
            continue
        if response.status not in {200, 201}:
            raise SystemExit(f"the service answered {response.status}: {answer}")
        return str(answer["run_id"])
    raise SystemExit("the service did not come up")


def bounds(batch: Batch) -> dict[str, float]:
    """Tokens/s of the kernel alone, and of one subtraction of two float32 arrays; best of five."""
    out = np.empty_like(batch.train_logprobs_N)
    body = encode(batch, "arrow")

    def best(work: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return batch.tokens / min(times)

    return {
        "summarise": best(lambda: summarise(batch)),
        "subtract": best(lambda: np.subtract(batch.train_logprobs_N, batch.infer_logprobs_N, out=out)),
        "decode": best(lambda: wire.decode(body)),
    }


def main() -> None:
    """Measure all cells, print a table, write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens in a batch (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=8, help="connections at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per cell (default: %(default)s)")
    arguments = parser.parse_args()
    batch = make_batch(arguments.tokens)
    limits = bounds(batch)
    rates: dict[str, list[float]] = {}
    for cell in CELLS:
        print(f"measuring: {cell.name} ...", flush=True)
        rates[cell.name] = measure(cell, batch, connections=arguments.connections, seconds=arguments.seconds)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    base = medians["json, tokens not kept"]
    rows = {
        name: {
            "tokens_per_second": round(medians[name]),
            "rounds": [round(value) for value in values],
            "ratio_to_json": round(medians[name] / base, 2),
            "ratio_to_kernel_alone": round(medians[name] / limits["summarise"], 3),
        }
        for name, values in rates.items()
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["ingest"] = {
        "command": f"python -m bench.ingest --tokens {arguments.tokens} --connections {arguments.connections}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "note": "service and client share the cores; every batch acknowledged after its commit",
        "bounds_tokens_per_second": {name: round(value) for name, value in limits.items()},
        "cells": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{'':28}{'Mtok/s':>9}{'x JSON':>9}{'x kernel':>10}")
    for name, row in rows.items():
        rate = float(medians[name]) / 1e6
        print(f"{name:28}{rate:9.2f}{row['ratio_to_json']:9.2f}{row['ratio_to_kernel_alone']:10.3f}")
    for name, value in limits.items():
        print(f"{name + ' alone':28}{value / 1e6:9.2f}")
    print(f"\nwritten to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}")


if __name__ == "__main__":
    main()
