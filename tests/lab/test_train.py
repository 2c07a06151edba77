from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tailwatch_collectors
from lab import train
from lab.recording import batches, read_recording
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_collectors.wire import content_digest

SMALL = ["--steps", "2", "--prompts", "4", "--group", "4", "--run", "small"]


class FakeCollector:
    """Builds its batches as the SDK does and keeps their digests."""

    def __init__(self) -> None:
        self.connected: dict[str, Any] = {}
        self.digests: list[bytes] = []
        self.scalar_rows: list[tuple[int, dict[str, float]]] = []
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.finished: bool | None = None
        self.stats = SimpleNamespace(sent=5, rejected=0, dropped={}, bytes=1_000_000)

    def connect(self, **given: Any) -> FakeCollector:
        self.connected = given
        return self

    def record(self, *, step: int, train_version: int, **columns: Any) -> None:
        meta = BatchMeta(step=step, train_version=train_version)
        self.digests.append(content_digest(Batch.from_arrays(meta, **columns)))

    def scalars(self, *, step: int, values: dict[str, float]) -> None:
        self.scalar_rows.append((step, values))

    def event(self, kind: str, *, step: int, payload: dict[str, Any]) -> None:
        self.events.append((kind, step, payload))

    def close(self, *, finished: bool) -> None:
        self.finished = finished


def test_the_live_run_and_its_recording_hold_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collector = FakeCollector()
    monkeypatch.setattr(tailwatch_collectors, "connect", collector.connect)
    path = tmp_path / "small.parquet"
    train.main([*SMALL, "--record", str(path), "--live", "--url", "http://127.0.0.1:1"])
    recording = read_recording(path)
    assert collector.digests == [content_digest(batch) for batch in batches(path)]
    assert collector.scalar_rows == [(row["step"], row["values"]) for row in recording.scalars]
    assert collector.events == [(e["kind"], e["step"], e["payload"]) for e in recording.events]
    assert collector.finished is True
    assert collector.connected["project"] == "lab"
    assert collector.connected["run"] == "small"
    assert collector.connected["config"]["precision"] == "fp8"
    assert "5 items stored, 0 lost, 1.0 MB sent" in capsys.readouterr().out


def test_output_and_provenance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small run.parquet"
    train.main([*SMALL, "--engine", "int8", "--seed", "4", "--record", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  lag")[0] for line in lines[:2]] == ["step   1/2", "step   2/2"]
    assert re.fullmatch(r"2 steps in \d+ s: eval accuracy 0\.\d+ -> .*", lines[2])
    provenance = read_recording(path).provenance
    assert provenance.command == (
        f"python -m lab.train --steps 2 --prompts 4 --group 4 --run small --engine int8 --seed 4 --record '{path}'"
    )
    assert provenance.seed == 4
    assert provenance.settings["engine"] == "int8"
    assert provenance.settings["sync_every"] == 16
    assert re.fullmatch(r"[0-9a-f]{7,40}|unknown", provenance.commit)


def test_the_default_run_name_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    train.main(["--steps", "1", "--prompts", "2", "--group", "2", "--arm", "bypass", "--record", str(path)])
    assert read_recording(path).provenance.run == "bypass-fp8-k16-s0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps is 0"),
        (["--live", "--url", "ftp://example"], "ftp://example"),
    ],
)
def test_wrong_settings_end_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as ended:
        train.main(arguments)
    assert str(ended.value).startswith("lab.train: ")
    assert "\n" not in str(ended.value)
