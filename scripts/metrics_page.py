"""Write docs/metrics.md from the registry, with what the metrics were in the healthy recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.page import Seen, metrics_page

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "lab" / "recordings" / "healthy.parquet"


def seen() -> Seen:
    """5 % and 95 % point of every metric over the steps of the healthy recording."""
    file = pq.ParquetFile(RECORDING)
    found: dict[str, list[float]] = {}
    for group in range(file.num_row_groups):  # one batch each
        table = file.read_row_group(group)
        batch = Batch.from_arrays(
            BatchMeta(step=table["step"][0].as_py(), train_version=table["train_version"][0].as_py()),
            infer_logprobs=[np.asarray(row) for row in table["infer_logprobs"].to_pylist()],
            train_logprobs=[np.asarray(row) for row in table["train_logprobs"].to_pylist()],
            infer_version=table["infer_version"].to_numpy(),
            advantage=table["advantage"].to_numpy(),
        )
        for name, value in metrics(summarise(batch)).values.items():
            found.setdefault(name, []).append(value)
    return {
        name: (float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95))) for name, values in found.items()
    }


if __name__ == "__main__":
    ROOT.joinpath("docs", "metrics.md").write_text(metrics_page(seen()), encoding="utf-8")
