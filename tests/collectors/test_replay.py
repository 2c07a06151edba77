"""`python -m tailwatch_collectors replay`: a spool sent by hand, to whatever service, exactly once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors.cli import main

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

pytestmark = pytest.mark.usefixtures("hurry")

LOGPROBS = np.full((2, 3), -1.0, np.float32)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What two runs without a URL left on disk."""
    for run in ("a", "b"):
        with tailwatch.connect(project="p", run=run, session=f"s-{run}", spool_dir=tmp_path) as collector:
            for step in range(3):
                collector.record(step=step, infer_logprobs=LOGPROBS, train_logprobs=LOGPROBS, stream=run)
            collector.scalars(step=0, values={"reward": 1})
    return tmp_path


def test_everything_is_sent_once(service: FakeService, left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(left), "--url", service.url]) == 0
    assert capsys.readouterr().out.endswith("10 sent, 0 duplicates, 0 refused, 0 damaged places skipped\n")
    assert main(["replay", str(left), "--url", service.url]) == 0

    assert len(service.batches) == len(service.of("batches")) == 6
    assert [call.json["name"] for call in service.of("runs")] == ["a", "b"]
    assert [call.json["session"] for call in service.of("runs")] == ["s-a", "s-b"]
    assert len(service.of("scalars")) == len(service.of("events")) == 2
    assert list(left.iterdir()) == []


def test_trouble_that_passes_is_waited_for(service: FakeService, left: Path) -> None:
    service.script("batches", times=4, status=503)
    service.script("runs", times=2, status=500)
    service.script("batches", lose_answer=True)

    assert main(["replay", str(left), "--url", service.url]) == 0
    assert len(service.batches) == 6


def test_a_service_that_stays_away_leaves_everything_where_it_is(
    service: FakeService, left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main(["replay", str(left), "--url", url, "--patience", "0.05"]) == 1
    assert "still on disk" in capsys.readouterr().err
    service.always("batches", status=401)
    assert main(["replay", str(left), "--url", service.url]) == 1
    service.behave()

    assert main(["replay", str(left), "--url", service.url]) == 0
    assert len(service.batches) == 6


def test_what_is_refused_is_said_and_passed(
    service: FakeService, left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script("batches", status=422, body=b'{"detail": "odd"}')
    service.script("batches", status=404)

    assert main(["replay", str(left), "--url", service.url]) == 1
    assert "odd" in capsys.readouterr().out
    assert len(service.batches) == 5


def test_wrong_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["replay", str(tmp_path)]) == 2
    assert main(["replay", "off", "--url", "http://127.0.0.1:1"]) == 2
    assert main(["replay", str(tmp_path), "--url", "gopher://x"]) == 2
    assert "gopher" in capsys.readouterr().err
