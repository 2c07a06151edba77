from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailwatch_collectors.files import wandb
from tailwatch_collectors.files.scalars import Point, PointProblem
from tests.collectors.files.fixtures import HERE

OFFLINE = HERE / "wandb" / "run.wandb"

TRUTH = [Point(0, "loss", 1.0), Point(0, "kl", 0.5), Point(10, "loss", 0.25), Point(20, "kl", 0.125)]


def csv_history(path: Path) -> None:
    path.write_text(
        "_step,_runtime,_timestamp,loss,kl,note\n0,1.5,1700000000,1.0,0.5,hello\n10,2.5,1700000001,0.25,,\n"
        "20,3.5,1700000002,,0.125,\n"
    )


def csv_panel(path: Path) -> None:
    path.write_text(
        '"Step","grpo - loss","grpo - loss__MIN","grpo - loss__MAX","grpo - kl"\n"0","1.0","1.0","1.0","0.5"\n'
        '"10","0.25","0.25","0.25",""\n"20","","","","0.125"\n'
    )


def json_lines(path: Path) -> None:
    path.write_text(
        '{"_step": 0, "_runtime": 1.5, "loss": 1.0, "kl": 0.5, "note": "hello", "_wandb": {"runtime": 3}}\n'
        '{"_step": 10, "loss": 0.25, "kl": null}\n{"_step": 20, "kl": 0.125, "hist": {"bins": [1, 2]}}\n'
    )


def json_array(path: Path) -> None:
    path.write_text('[{"_step": 0, "loss": 1.0, "kl": 0.5}, {"_step": 10, "loss": 0.25}, {"_step": 20, "kl": 0.125}]')


def parquet(path: Path) -> None:
    columns = {
        "_step": [0, 10, 20],
        "_timestamp": [1.0, 2.0, 3.0],
        "loss": [1.0, 0.25, None],
        "kl": [0.5, None, 0.125],
        "note": ["hello", None, None],
    }
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("history.csv", csv_history),
        ("panel.csv", csv_panel),
        ("history.jsonl", json_lines),
        ("history.json", json_array),
        ("history.parquet", parquet),
    ],
)
def test_an_export_gives_its_numbers(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)

    assert list(wandb.read(tmp_path / name)) == TRUTH


def test_columns_of_several_runs_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "panel.csv"
    path.write_text('"Step","a - loss","b - loss"\n"0","1.0","2.0"\n')

    assert list(wandb.read(path)) == [Point(0, "a - loss", 1.0), Point(0, "b - loss", 2.0)]


@pytest.mark.parametrize("path", [OFFLINE, OFFLINE.parent])
def test_an_offline_run_gives_its_history(path: Path) -> None:
    found = list(wandb.read(path))

    expected = []
    for s in range(6):
        expected.append(Point(10 * s, "train/loss", 1.0 / (s + 1)))
        expected.append(Point(10 * s, "reward", float("nan") if s == 3 else s / 4))
        expected.append(Point(10 * s, "nested/a", float(s)))
    # One record longer than the log's block of 32 KiB.
    expected += [Point(70, f"big{i}", float(i)) for i in range(1900)]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


@pytest.mark.parametrize("length", [0, 3, 6, 20, 3000, 34000])
def test_half_an_offline_run_keeps_what_is_before(tmp_path: Path, length: int) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(OFFLINE.read_bytes()[:length])

    found = list(wandb.read(path))

    points = [repr(one) for one in found if isinstance(one, Point)]
    assert points == [repr(one) for one in wandb.read(OFFLINE)][: len(points)]
    assert len([one for one in found if isinstance(one, PointProblem)]) == 1


def test_a_flipped_byte_is_named_not_believed(tmp_path: Path) -> None:
    content = bytearray(OFFLINE.read_bytes())
    whole = {repr(one) for one in wandb.read(OFFLINE)}
    path = tmp_path / "run.wandb"

    for at in range(0, len(content), 997):
        content[at] ^= 0x10
        path.write_bytes(content)
        found = list(wandb.read(path))
        # Beside the magic's version, which nothing depends on.
        assert at in {4, 5, 6} or any(isinstance(one, PointProblem) for one in found)
        assert {repr(one) for one in found if isinstance(one, Point)} <= whole
        content[at] ^= 0x10


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"loss\n1\n", "no column of steps"),
        ("a.csv", b"_step,loss\nx,1\n", "line 2 has no step: _step is 'x'"),
        ("a.csv", b'_step,loss\n1,"2\n', "cannot be read"),
        ("a.csv", b"_step,loss\n1,\xff\n", "cannot be read"),
        ("a.parquet", b"PAR1", "is not Parquet"),
        ("a.json", b"[1", "is not JSON"),
        ("a.jsonl", b'{"_step": 1.5, "a": 1}\n', "has no step"),
        ("a.txt", b"", ".txt is none of"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)

    (problem,) = wandb.read(tmp_path / name)

    assert isinstance(problem, PointProblem)
    assert reason in problem.reason


def test_another_step_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("tokens,loss\n5,1.0\n")

    assert list(wandb.read(path, step_name="tokens")) == [Point(5, "loss", 1.0)]
