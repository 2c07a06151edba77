"""The rules over the three recorded runs: what fires, where, and what must stay silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service import replay
from tailwatch_service.detection.classes import declared
from tailwatch_service.detection.engine import JudgedStep, State, judge
from tailwatch_service.detection.rules import RULES, Rule
from tailwatch_service.statistics import compute

RECORDINGS = Path(__file__).parents[3] / "lab" / "recordings"
Steps = list[JudgedStep]


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[replay.Recording, Steps]]:
    made = {}
    for name in ("healthy", "collapsing", "control"):
        recording = replay.open_recording(RECORDINGS / f"{name}.parquet")
        steps = []
        for batch in replay.batches(recording):
            meta = BatchMeta(step=batch.pop("step"), rank=batch.pop("rank"), train_version=batch.pop("train_version"))
            summary = summaries.summarise(Batch.from_arrays(meta, **batch))
            steps.append(JudgedStep(step=meta.step, metrics=compute.metrics(summary).values))
        made[name] = (recording, steps)
    return made


def fired(recorded: tuple[replay.Recording, Steps], *rules: Rule) -> list[tuple[int, str, str, str]]:
    recording, steps = recorded
    names = ("precision", "model_class", "staleness_bound")
    run = declared(**{name: recording.settings.get(name) for name in names})
    state: State = {}
    found = []
    for step in steps:
        outcome = judge(rules, step, state, run=run)
        state = outcome.state
        found += [
            (step.step, f.rule, f.slice, f"{f.transition} {f.severity}")
            for f in outcome.findings
            if f.transition != "hit"
        ]
    return found


@pytest.mark.parametrize("name", ["healthy", "control"])
def test_health_and_the_negative_control_are_silent(
    name: str, recorded: dict[str, tuple[replay.Recording, Steps]]
) -> None:
    assert fired(recorded[name], *RULES.values()) == []


def test_the_collapsing_run_fires(recorded: dict[str, tuple[replay.Recording, Steps]]) -> None:
    assert fired(recorded["collapsing"], *RULES.values()) == [
        (8, "KlSpike", "", "fired warning"),
        (28, "KlSpike", "", "escalated critical"),
        (48, "MismatchK3High", "", "fired warning"),
    ]


def test_heavy_tails_do_not_tell_health_from_collapse_and_are_off(
    recorded: dict[str, tuple[replay.Recording, Steps]],
) -> None:
    assert not RULES["TailHeavy"].enabled
    on = replace(RULES["TailHeavy"], enabled=True)
    assert {slice_ for _, _, slice_, _ in fired(recorded["healthy"], on)} == {"upper", "lower"}
    assert {slice_ for _, _, slice_, _ in fired(recorded["collapsing"], on)} == {"upper", "lower"}
    assert fired(recorded["control"], on) == []


@pytest.mark.parametrize("factor", [4.0, 10.0])
def test_a_spike_planted_in_the_healthy_run_fires_and_clears(
    factor: float, recorded: dict[str, tuple[replay.Recording, Steps]]
) -> None:
    recording, steps = recorded["healthy"]
    planted = [
        replace(step, metrics={**step.metrics, "kl_k3": step.metrics["kl_k3"] * factor})
        if 40 <= step.step < 44
        else step
        for step in steps
    ]
    found = [(step, what) for step, rule, _, what in fired((recording, planted), RULES["KlSpike"])]
    assert found[0][0] == 41
    assert found[0][1].startswith("fired")
    assert found[-1][0] == 48
    assert found[-1][1].startswith("cleared")
