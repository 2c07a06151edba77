"""The committed recordings: readable, small, and showing what their table says, recomputed from the files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lab import describe
from lab.recording import batches, read_recording

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "lab" / "recordings"
NAMES = ("healthy", "collapsing", "control")


def _path(name: str) -> Path:
    return RECORDINGS / f"{name}.parquet"


def _kl_k3(name: str) -> list[float]:
    """k3 per step, from the columns alone."""
    found = []
    with pq.ParquetFile(_path(name)) as file:
        for row_group in range(file.num_row_groups):
            table = file.read_row_group(row_group, columns=["infer_logprobs", "train_logprobs"])
            infer, train = (
                table[column].combine_chunks().flatten().to_numpy().astype(np.float64)
                for column in ("infer_logprobs", "train_logprobs")
            )
            found.append(float(np.mean(np.expm1(train - infer) - (train - infer))))
    return found


def _accuracy(name: str) -> list[float]:
    return list(read_recording(_path(name)).series("eval_accuracy").values())


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def test_together_they_are_small() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.parquet")} == set(NAMES)
    assert sum(_path(name).stat().st_size for name in NAMES) <= 6_000_000


@pytest.mark.parametrize("name", NAMES)
def test_they_say_where_they_come_from(name: str) -> None:
    provenance = read_recording(_path(name)).provenance
    assert provenance.run == name
    assert provenance.command.endswith(f"--run {name} --record lab/recordings/{name}.parquet")
    assert provenance.commit != "unknown"
    assert provenance.commit in (RECORDINGS / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_batch_is_sound(name: str) -> None:
    recording = read_recording(_path(name))
    settings = recording.provenance.settings
    steps = []
    for batch in batches(_path(name)):
        assert batch.check() == []
        assert batch.sequences == settings["prompts"] * settings["group"]
        assert np.isfinite(batch.infer_logprobs_N).all()
        assert np.isfinite(batch.train_logprobs_N).all()
        assert (batch.lengths_B > 0).all()
        assert batch.infer_version_B is not None
        assert batch.meta.train_version is not None
        lag_B = batch.meta.train_version - batch.infer_version_B
        assert (lag_B >= 0).all()
        assert (lag_B <= settings["staleness_bound"]).all()
        steps.append(batch.meta.step)
    assert steps == list(range(settings["steps"]))
    assert list(recording.series("reward")) == steps


def test_healthy_rises_and_its_mismatch_stays() -> None:
    accuracy, kl_k3 = _accuracy("healthy"), _kl_k3("healthy")
    assert _mean(accuracy[-3:]) > accuracy[0] + 0.1
    assert max(kl_k3) < 0.05


def test_collapsing_falls_and_its_mismatch_grows() -> None:
    accuracy, kl_k3 = _accuracy("collapsing"), _kl_k3("collapsing")
    assert _mean(accuracy[-3:]) < accuracy[0] / 2
    assert _mean(kl_k3[-4:]) > 20 * kl_k3[0]
    assert max(kl_k3) > 20 * max(_kl_k3("healthy"))


def test_collapsing_moves_before_the_rollout_reward() -> None:
    """Within the first window the old weights sample: their reward tells nothing of the policy being trained."""
    reward = read_recording(_path("collapsing")).series("reward")
    window = read_recording(_path("collapsing")).provenance.settings["sync_every"]
    first_alarm = next(step for step, value in enumerate(_kl_k3("collapsing")) if value > 0.05)
    assert first_alarm < window / 2
    assert reward[window] < 0.6 * reward[0]
    assert _mean(reward[step] for step in range(first_alarm, window)) > 0.6 * reward[0]


def test_control_collapses_without_mismatch() -> None:
    accuracy, kl_k3 = _accuracy("control"), _kl_k3("control")
    assert accuracy[0] > 0.35
    assert _mean(accuracy[-3:]) < 0.05
    assert max(kl_k3) < 1e-9


def test_the_readme_table_is_what_describe_prints() -> None:
    readme = (ROOT / "lab" / "README.md").read_text()
    for name in NAMES:
        assert f"| {' | '.join(describe.describe(_path(name)))} |" in readme


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from lab.recording import batches; import lab.describe; "
        f"next(batches(Path({str(_path('healthy'))!r}))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
