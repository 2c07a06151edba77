from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from tailwatch_service.errors import NotFound
from tailwatch_service.storage.segments import Segments, name_of

NAMES = [name_of(f"{number:032x}", bytes([number] * 32)) for number in range(4)]
NOW = 1_000_000.0


def _age(segments: Segments, name: str, seconds: float) -> None:
    path = segments.root / name[:2] / name
    os.utime(path, (NOW - seconds, NOW - seconds))


def test_a_segment_is_read_back_verbatim(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "segments")
    segments.write(NAMES[1], memoryview(b"arrow"))
    assert segments.read(NAMES[1]) == b"arrow"
    segments.write(NAMES[1], b"arrow")
    assert [path.name for path in (tmp_path / "segments").rglob("*") if path.is_file()] == [NAMES[1]]
    with pytest.raises(NotFound, match=NAMES[2]):
        segments.read(NAMES[2])


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a/b", NAMES[0] + "/x", NAMES[0].upper() + "G"])
def test_only_names_of_segments_are_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="is not the name of a segment"):
        Segments(tmp_path).read(name)


def test_a_segment_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path)
    synced: list[str] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        synced.append("file" if path.is_file() else str(path.relative_to(tmp_path.parent)))
        if path.is_file():
            assert not (tmp_path / "00" / NAMES[0]).exists()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    segments.write(NAMES[0], b"x")
    assert synced[-2:] == ["file", f"{tmp_path.name}/00"]
    assert tmp_path.name in synced


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path)

    def fail(_handle: int) -> None:
        raise OSError("disk full")

    segments.write(NAMES[0], b"x")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        segments.write(NAMES[0].replace("-", "-"), b"y")
    assert segments.read(NAMES[0]) == b"x"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [NAMES[0]]


def test_only_old_segments_without_a_row_are_swept(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    for name in NAMES:
        segments.write(name, b"x")
    for name, seconds in zip(NAMES, (3599.0, 3601.0, 3601.0, 0.0), strict=True):
        _age(segments, name, seconds)
    unfinished = tmp_path / "00" / "crashed.tmp"
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (NOW - 3601, NOW - 3601))
    assert segments.sweep(lambda names: {NAMES[2]} & set(names), now=NOW) == [NAMES[1]]
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([NAMES[0], NAMES[2], NAMES[3]])


def test_a_segment_written_again_while_it_is_swept_stays(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.write(NAMES[0], b"x")
    _age(segments, NAMES[0], 9999.0)

    def retried_meanwhile(_names: Collection[str]) -> set[str]:
        segments.write(NAMES[0], b"x")
        os.utime(tmp_path / "00" / NAMES[0], (NOW, NOW))
        return set()

    assert segments.sweep(retried_meanwhile, now=NOW) == []
    assert segments.read(NAMES[0]) == b"x"


def test_a_segment_committed_while_it_is_swept_stays(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.write(NAMES[0], b"x")
    _age(segments, NAMES[0], 9999.0)
    asked: list[Collection[str]] = []

    def committed_after_the_first_look(names: Collection[str]) -> set[str]:
        asked.append(names)
        assert segments.read(NAMES[0]) == b"x"  # set aside or not, it can be read
        return set() if len(asked) == 1 else set(names)

    assert segments.sweep(committed_after_the_first_look, now=NOW) == []
    assert segments.read(NAMES[0]) == b"x"


def test_a_sweep_that_crashed_half_way_is_finished(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    for name in NAMES[:2]:
        segments.write(name, b"x")
        _age(segments, name, 9999.0)
        (tmp_path / "00" / name).rename(tmp_path / "00" / f"{name}.doomed")
    assert segments.sweep(lambda names: {NAMES[1]} & set(names), now=NOW) == [NAMES[0]]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [NAMES[1]]
