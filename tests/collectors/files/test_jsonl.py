from __future__ import annotations

import math
from pathlib import Path

import pytest

from tailwatch_collectors.files import jsonl
from tailwatch_collectors.files.scalars import Point, PointProblem


@pytest.mark.parametrize(
    ("line", "points"),
    [
        ('{"step": 3, "loss": 0.5, "ok": true}', [Point(3, "loss", 0.5), Point(3, "ok", 1.0)]),
        ('{"step": 3, "data": {"actor/kl": 0.1}}', [Point(3, "actor/kl", 0.1)]),  # verl's file logger
        ('{"global_step": 3, "train": {"loss": 1}}', [Point(3, "train/loss", 1.0)]),
        ('{"train/global_step": 3, "loss": 1}', [Point(3, "loss", 1.0)]),
        ('{"train": {"global_step": 4.0}, "loss": 1}', [Point(4, "loss", 1.0)]),
        ('{"step": 0, "a": "text", "b": [1], "c": null}', []),
        ('{"step": 0, "a": 1e400}', [Point(0, "a", math.inf)]),
    ],
)
def test_a_line_gives_its_numbers(tmp_path: Path, line: str, points: list[Point]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n\n")

    assert list(jsonl.read(path)) == points


def test_nan_is_kept_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "a": NaN, "b": "NaN", "c": "Infinity"}\n')

    values = {one.name: one.value for one in jsonl.read(path) if isinstance(one, Point)}
    assert math.isnan(values["a"])
    assert math.isnan(values["b"])
    assert values["c"] == math.inf


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"step": 1, "a": 1}\n{"step": 2, "a"', "line 2 (the last line, torn) is not JSON"),
        ('{]\n{"step": 1, "a": 1}\n', "line 1 is not JSON"),
        ('{"step": 1, "a": 1}\n3\n', "line 2 is a JSON int"),
        ('{"step": 1, "a": 1}\n{"a": 1}\n', "line 2 has no step: step or _step"),
        ('{"step": 1, "a": 1}\n{"step": -1, "a": 1}\n', "is -1"),
        ('{"step": 1, "a": 1}\n{"step": true, "a": 1}\n', "is True"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)

    found = list(jsonl.read(path))

    assert [one for one in found if isinstance(one, Point)] == [Point(1, "a", 1.0)]
    (problem,) = [one for one in found if isinstance(one, PointProblem)]
    assert reason in problem.reason
