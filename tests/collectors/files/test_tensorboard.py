from __future__ import annotations

import math
import shutil
import struct
from pathlib import Path

import pytest

from tailwatch_collectors.files import tensorboard
from tailwatch_collectors.files.scalars import Point, PointProblem
from tests.collectors.files.fixtures import HERE

EVENTS = HERE / "tensorboard" / "events.out.tfevents.1000.host"


def float32(value: float) -> float:
    (found,) = struct.unpack("<f", struct.pack("<f", value))
    return float(found)


def test_scalars_are_those_written() -> None:
    expected = []
    for step in range(5):
        expected.append(Point(step, "train/loss", float32(1.0 / (step + 1))))
        expected.append(Point(step, "reward", math.nan if step == 3 else step / 4))
    expected += [Point(step, "eval/acc", 0.5 * step) for step in range(2)]  # written as tensors
    expected.append(Point(2**33, "far", 2.5))

    found = list(tensorboard.read(EVENTS))

    assert repr(found) == repr(expected)


def test_a_real_writer_agrees_where_it_is_installed(tmp_path: Path) -> None:
    writers = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed; fixture bytes above")
    with writers.SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("a/b", step * 1.5, step)
            writer.add_scalar("c", -step, step, new_style=True)

    found = [one for one in tensorboard.read(tmp_path) if isinstance(one, Point)]

    assert sorted(found) == sorted([Point(s, "a/b", s * 1.5) for s in range(3)] + [Point(s, "c", -s) for s in range(3)])


def test_files_of_a_directory_carry_the_directories_below_it(tmp_path: Path) -> None:
    for name in ("", "eval"):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(EVENTS, tmp_path / name / EVENTS.name)

    names = {one.name for one in tensorboard.read(tmp_path) if isinstance(one, Point)}

    assert {"reward", "eval/reward", "eval/eval/acc"} <= names
    assert next(tensorboard.read(tmp_path / "eval")) == Point(0, "train/loss", 1.0)


def test_every_torn_tail_is_named_and_keeps_what_is_before(tmp_path: Path) -> None:
    content = EVENTS.read_bytes()
    whole = [repr(one) for one in tensorboard.read(EVENTS)]
    path = tmp_path / EVENTS.name

    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        found = list(tensorboard.read(path))
        points = [repr(one) for one in found if isinstance(one, Point)]
        problems = [one for one in found if isinstance(one, PointProblem)]
        assert points == whole[: len(points)]
        # A cut between two records is the end of a file like any other.
        assert all("torn" in one.reason for one in problems)
        assert len(problems) <= 1


def test_a_flipped_byte_is_named_not_believed(tmp_path: Path) -> None:
    content = bytearray(EVENTS.read_bytes())
    whole = {repr(one) for one in tensorboard.read(EVENTS)}
    path = tmp_path / EVENTS.name

    for at in range(len(content)):
        content[at] ^= 0x40
        path.write_bytes(content)
        found = list(tensorboard.read(path))
        assert any(isinstance(one, PointProblem) for one in found)
        assert {repr(one) for one in found if isinstance(one, Point)} <= whole
        content[at] ^= 0x40


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    (problem,) = tensorboard.read(tmp_path)

    assert isinstance(problem, PointProblem)
    assert "no event file" in problem.reason
