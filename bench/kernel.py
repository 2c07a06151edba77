"""Nanoseconds a token of `summarise`, beside the memory floor and what else computes such figures, in the same rounds.

Candidates take turns in every round, each on cold caches; a ratio is the median of the rounds' ratios, so that a noisy
machine shifts both sides. The floor is one subtraction of the two float32 arrays. Writes bench/results.json.

    python -m bench.kernel [--tokens 100000 1000000 10000000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from bench.ingest import RESULTS, make_batch
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import from_bytes, merge, summarise, to_bytes
from tailwatch_collectors.summary.fused import layout
from tailwatch_collectors.summary.fused.summarise import parts
from tailwatch_collectors.summary.parts import assemble
from tests.oracles.tools import padded, verl

Work = Callable[[], object]

_LEVELS = {"unsliced": layout.UNSLICED, "with probability bins": layout.WITH_BINS, "all slices": layout.ALL}
_QS = (0.001, 0.01, 0.02, 0.05, 0.25, 0.5, 0.75, 0.95, 0.98, 0.99, 0.999)
_LARGEST_PEER = 1_000_000
"""Tokens up to which others are measured: a padded batch of 1e7 takes verl's formulas 4 GB and half a minute."""
_EVICT = np.zeros(12_000_000)


def many_slices(batch: Batch) -> Batch:
    """The batch with a source, a replica, and a turn and a version that change within sequences."""
    place_N = np.arange(batch.tokens) - np.repeat(batch.offsets_B1[:-1], batch.lengths_B)
    rows = range(batch.sequences)
    return replace(
        batch,
        source=tuple(f"source {row % 8}" for row in rows),
        replica=tuple(f"replica {row % 4}" for row in rows),
        turn_N=np.minimum(place_N // 400, 20).astype(np.int16),
        infer_version_B=None,
        infer_version_N=np.where(place_N < 600, 2, 3).astype(np.int32),
    )


def with_polars(batch: Batch) -> Work:
    """Means, quantiles and the envelope by probability bin as a lazy query; on all of polars' threads."""
    frame = pl.DataFrame({"mu": batch.infer_logprobs_N, "pi": batch.train_logprobs_N}).lazy()
    d = pl.col("pi").cast(pl.Float64) - pl.col("mu")
    query = frame.with_columns(d=d, w=d.exp(), p=pl.col("mu").exp(), q=pl.col("pi").exp())
    named = [pl.col("d").quantile(q, "lower").alias(str(q)) for q in _QS]
    whole = query.select(
        *named,
        k3=(pl.col("w") - 1 - pl.col("d")).mean(),
        chi2=(pl.col("w") ** 2).mean(),
        ess=pl.col("w").sum() ** 2 / (pl.col("w") ** 2).sum(),
        gap=(pl.col("q") - pl.col("p")).abs().mean(),
        corr=pl.corr("p", "q"),
        std=pl.col("d").std(),
    )
    edge = sum(((pl.col("p") >= p).cast(pl.Int8) for p in (0.01, 0.1, 0.5, 0.9, 0.99)), pl.lit(0))
    envelope = query.group_by(edge.alias("bin")).agg(
        low=pl.col("d").quantile(0.02), middle=pl.col("d").median(), high=pl.col("d").quantile(0.98), n=pl.len()
    )
    return lambda: pl.collect_all([whole, envelope])


def with_torch(batch: Batch) -> Work:
    """The same means and quantiles on flat float64 tensors; on all of torch's threads."""
    infer, train = torch.tensor(batch.infer_logprobs_N), torch.tensor(batch.train_logprobs_N)

    def work() -> object:
        d = train.double() - infer
        w, e = d.exp(), d.expm1()
        p, q = infer.double().exp(), train.double().exp()
        ranked = d.sort().values
        return (
            [ranked[int(share * (len(d) - 1))] for share in _QS],
            (e - d).mean(), (e * e).mean(), (w * d - e).mean(), (w.sum() ** 2) / (w * w).sum(), d.std(),
            (p - q).abs().mean(), torch.corrcoef(torch.stack((p, q))),
            torch.bucketize(p, torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)).bincount(),
        )  # fmt: skip

    return work


def with_verl(batch: Batch) -> Work:
    """verl's off-policy metrics, re-derived (tests/oracles/tools.py), on the padded batch a trainer holds."""
    rollout, train, mask = padded(batch)
    return lambda: verl(rollout, train, mask)


def candidates(tokens: int) -> dict[str, Work]:
    """Everything that is timed at one size."""
    batch = make_batch(tokens)
    sliced = many_slices(batch)
    out = np.empty_like(batch.train_logprobs_N)
    found: dict[str, Work] = {"floor": lambda: np.subtract(batch.train_logprobs_N, batch.infer_logprobs_N, out=out)}

    def numba(of: Batch, level: int, threads: int) -> Work:
        return lambda: assemble(of, parts(of, level=level, threads=threads))

    for threads in (1, 2):
        for name, level in _LEVELS.items():
            of = sliced if level == layout.ALL else batch
            found[f"numba, {name}, {threads} thread{'s' * (threads > 1)}"] = numba(of, level, threads)
    found["numpy, all slices"] = lambda: summarise(sliced, backend="numpy")
    if tokens <= _LARGEST_PEER:
        found["polars"] = with_polars(batch)
        found["torch"] = with_torch(batch)
        found["verl's metrics, padded"] = with_verl(batch)
    return found


def timed(work: Work) -> float:
    """Seconds on cold caches."""
    np.add(_EVICT, 1, out=_EVICT)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(tokens: int, rounds: int) -> dict[str, Any]:
    """All candidates at one size."""
    works = candidates(tokens)
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work))
    ours = "numba, all slices, 1 thread"
    return {
        name: {
            "ns_per_token": round(statistics.median(times) / tokens * 1e9, 2),
            "best_ns_per_token": round(min(times) / tokens * 1e9, 2),
            "ratio_to_floor": round(_ratio(times, seconds["floor"]), 2),
            "ratio_to_all_slices": round(_ratio(times, seconds[ours]), 2),
            "ratio_to_unsliced": round(_ratio(times, seconds["numba, unsliced, 1 thread"]), 2),
        }
        for name, times in seconds.items()
    }


def _ratio(mine: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def memory(tokens: int) -> dict[str, float]:
    """Bytes a token that each backend allocates at its peak, the summary included."""
    batch = many_slices(make_batch(tokens))
    found = {}
    for backend in ("numba", "numpy"):
        tracemalloc.start()
        summarise(batch, backend=backend)
        found[backend] = round(tracemalloc.get_traced_memory()[1] / tokens, 2)
        tracemalloc.stop()
    return found


def handling(tokens: int) -> dict[str, float]:
    """Size of a summary, and microseconds to merge, write and read it; the best of twenty."""
    summary = summarise(many_slices(make_batch(tokens)))
    other = summarise(replace(many_slices(make_batch(tokens)), reward_B=None))
    data = to_bytes(summary)

    def best(work: Work) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return round(min(times) * 1e6, 1)

    return {
        "bytes": len(data),
        "merge_us": best(lambda: merge([summary, other])),
        "to_bytes_us": best(lambda: to_bytes(summary)),
        "from_bytes_us": best(lambda: from_bytes(data)),
    }


def main() -> None:
    """Measure all sizes, print tables, write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernel", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=7, help="rounds per size (default: %(default)s)")
    arguments = parser.parse_args()
    cells, summaries = {}, {}
    for tokens in arguments.tokens:
        print(
            f"\n{tokens:,} tokens{'':<32}{'ns/token':>10}{'best':>8}{'x floor':>9}{'x all':>8}{'x plain':>9}",
            flush=True,
        )
        cells[str(tokens)] = measure(tokens, arguments.rounds)
        for name, row in cells[str(tokens)].items():
            print(f"  {name:<40}{''.join(f'{value:10.2f}' for value in row.values())}", flush=True)
        summaries[str(tokens)] = handling(tokens)
        print(f"  summary: {summaries[str(tokens)]}", flush=True)
    extra = {str(tokens): memory(tokens) for tokens in arguments.tokens if tokens >= _LARGEST_PEER}
    print(f"\nextra bytes a token at the peak: {extra}")
    sizes = " ".join(map(str, arguments.tokens))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["kernel"] = {
        "command": f"python -m bench.kernel --tokens {sizes} --rounds {arguments.rounds}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "note": "cold caches; medians of rounds, ratios medians of the rounds' ratios; torch and polars on all cores",
        "cells": cells,
        "summaries": summaries,
        "extra_bytes_per_token": extra,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
