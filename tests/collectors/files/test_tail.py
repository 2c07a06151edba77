from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.files import service as services
from tailwatch_collectors.files import tail as tails
from tailwatch_collectors.files.cursor import Cursor
from tailwatch_collectors.files.service import Service
from tailwatch_collectors.files.tail import Progress
from tailwatch_collectors.settings import Settings
from tests.collectors.conftest import FakeService
from tests.collectors.files import fixtures

SOURCE = "test"


@pytest.fixture
def post(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The way to a fake service; waits between tries are short."""
    monkeypatch.setattr(services, "FIRST_WAIT", 0.002)
    settings = Settings.read({}, url=service.url, project="p", run="r", rank=0, world_size=1)
    made = Service(settings, stop=threading.Event(), tell=fixtures.Told())
    made.open(session="s")
    yield made
    made.close()


def cursor(path: Path, session: str = "s") -> Cursor:
    return Cursor.load(path, session=session, source=SOURCE)[0]


def ids(service: FakeService) -> list[str]:
    """Step and name of every sequence the service stored."""
    return [
        f"{batch.meta.step}/{name}" for key, batch in sorted(service.batches.items()) for name in batch.seq_id or ()
    ]


def sent(service: FakeService) -> int:
    return len(service.of("batches"))


def test_every_sequence_is_sent_once_and_a_second_run_sends_nothing(
    tmp_path: Path, service: FakeService, post: Service
) -> None:
    root, path = fixtures.copy("prime_rl", tmp_path), tmp_path / "cursor.json"

    for _ in range(2):
        one, told = fixtures.tail(root, "prime-rl", service=post, cursor=cursor(path), source=SOURCE)
        one.run(follow=False)

    assert (sent(service), told) == (2, [])
    assert ids(service) == [f"{step}/{rank}.{n}" for step in (1, 2) for rank in (0, 1) for n in range(4)]
    for (step, phase, _, stream, rank, part), batch in service.batches.items():
        assert (phase, stream, rank, part, batch.meta.final, batch.meta.world_size) == (
            "update",
            "train",
            0,
            0,
            True,
            1,
        )
        assert (batch.meta.session, batch.meta.step) == ("s", step)


def test_without_its_cursor_it_sends_the_same_keys_again(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("prime_rl", tmp_path)

    for _ in range(2):
        one, _told = fixtures.tail(root, "prime-rl", service=post)
        one.run(follow=False)

    assert one.totals.batches == {"duplicate": 2}
    assert len(ids(service)) == len(set(ids(service))) == 16


def test_broken_off_between_parts_it_goes_on_with_the_next(
    tmp_path: Path, service: FakeService, post: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "PART_ROWS", 3)
    root, path = fixtures.copy("prime_rl", tmp_path), tmp_path / "cursor.json"
    runs = 0
    while sent(service) < 6:
        stop = threading.Event()
        one, _ = fixtures.tail(
            root,
            "prime-rl",
            service=post,
            cursor=cursor(path),
            source=SOURCE,
            stop=stop,
            progress=lambda _progress, stop=stop: stop.set(),
        )
        one.run(follow=False)
        runs += 1

    assert (runs, sent(service)) == (6, 6)
    assert len(ids(service)) == len(set(ids(service))) == 16
    assert [(key[0], key[5], batch.meta.final) for key, batch in sorted(service.batches.items())] == [
        (step, part, part == 2) for step in (1, 2) for part in (0, 1, 2)
    ]


def test_a_lost_answer_and_a_service_that_is_away_cost_nothing(
    tmp_path: Path, service: FakeService, post: Service
) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    service.script("batches", lose_answer=True)
    service.script("batches", times=2, status=503)

    one, _ = fixtures.tail(root, "nemo-rl", service=post)
    one.run(follow=False)

    assert one.totals.batches == {"duplicate": 1, "stored": 1}
    assert len(ids(service)) == 8


def test_a_refusal_is_named_counted_and_passed(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    service.script("batches", status=409, body=b'{"detail": "stored with other content"}')

    one, told = fixtures.tail(root, "nemo-rl", service=post)
    one.run(follow=False)

    assert one.totals.batches == {"refused": 1, "stored": 1}
    assert one.totals.lost == 1
    assert f"{root}/train_data_step1.jsonl: refused: part 0 of step 1, 4 sequences: HTTP 409" in told[0]


def test_a_dry_run_counts_and_remembers_nothing(tmp_path: Path) -> None:
    root = fixtures.copy("slime", tmp_path)
    before = sorted(root.iterdir())

    one, _ = fixtures.tail(root, "slime")
    one.run(follow=False)

    assert (one.totals.units, one.totals.sequences, one.totals.tokens) == (2, 8, 28)
    assert sorted(root.iterdir()) == before


# --- what is whole -------------------------------------------------------------------------------------------------


def test_a_step_without_its_marker_is_waited_for(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    stable = root / "token_exports/step_2/STABLE"
    stable.unlink()
    one, told = fixtures.tail(root, "prime-rl", service=post)

    one.run(follow=False)
    assert [key[0] for key in service.batches] == [1]
    assert told == [f"{root}/token_exports/step_2/rank_0.jsonl: incomplete: no STABLE yet; run again, or with --follow"]

    stable.touch()
    one.turn()
    assert [key[0] for key in service.batches] == [1, 2]
    assert one.totals.lost == 0


def test_a_step_that_never_got_its_marker_is_taken_once_a_later_one_has(tmp_path: Path) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    (root / "token_exports/step_1/STABLE").unlink()

    one, told = fixtures.tail(root, "prime-rl")
    one.run(follow=False)

    assert one.totals.units == 2
    assert told[0].endswith("incomplete: no STABLE, and a later step has it: taken as it is")


def test_a_partial_last_line_is_waited_for(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    (root / "train_data_step3.jsonl").unlink()
    path = root / "train_data_step2.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    one, told = fixtures.tail(root, "nemo-rl", service=post, settle=3600.0)

    one.turn()
    assert [key[0] for key in service.batches] == [1]
    path.write_bytes(content)
    assert [unit.step for unit in one.turn()] == [2]  # whole lines, but the file may go on
    os.utime(path, (time.time() - 3601,) * 2)
    one.turn()

    assert [(key[0], batch.sequences) for key, batch in service.batches.items()] == [(1, 4), (2, 4)]
    assert (told, one.totals.problems) == ([], {})


def test_a_line_that_stays_torn_is_named(tmp_path: Path) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    path = root / "train_data_step2.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    os.utime(path, (fixtures.LONG_AGO,) * 2)

    one, told = fixtures.tail(root, "nemo-rl")
    one.run(follow=False)

    assert (one.totals.sequences, one.totals.problems["torn"], one.totals.lost) == (7, 1, 1)
    assert told[0].startswith(f"{path}:4: torn: is not JSON")


def test_it_follows_until_stopped(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    later = tmp_path / "later"
    shutil.move(root / "token_exports/step_2", later)
    stop = threading.Event()

    def progress(progress: Progress) -> None:
        if progress.step == 1:
            shutil.move(later, root / "token_exports/step_2")
        else:
            stop.set()

    one, _ = fixtures.tail(root, "prime-rl", service=post, stop=stop, progress=progress)
    one.run(follow=True, poll=0.01)

    assert len(ids(service)) == 16
    assert len(service.of("heartbeat")) == 1


# --- files that change ---------------------------------------------------------------------------------------------


def rewrite(root: Path, step: int) -> None:
    """The step anew, as a resumed launch writes it."""
    for path in (root / f"token_exports/step_{step}").glob("rank_*.jsonl"):
        path.write_text(path.read_text().replace('"advantages":[0.5', '"advantages":[0.75'))
    (root / f"token_exports/step_{step}/STABLE").touch()


def test_steps_written_anew_make_one_new_attempt(tmp_path: Path, service: FakeService, post: Service) -> None:
    root, path = fixtures.copy("prime_rl", tmp_path), tmp_path / "cursor.json"
    options: dict[str, Any] = {"service": post, "source": SOURCE}
    fixtures.tail(root, "prime-rl", cursor=cursor(path), **options)[0].run(follow=False)
    service.batches.clear()
    rewrite(root, 1)
    one, told = fixtures.tail(root, "prime-rl", cursor=cursor(path), **options)
    one.turn()
    rewrite(root, 2)
    fixtures.tail(root, "prime-rl", cursor=cursor(path), **options)[0].turn()

    assert [(key[0], batch.meta.session) for key, batch in service.batches.items()] == [(1, "s~1"), (2, "s~1")]
    assert [call.json["session"] for call in service.of("runs")] == ["s", "s~1"]
    assert told[0].endswith("rewritten: changed after it was sent; step 1 goes into a new attempt")
    assert one.totals.lost == 0


def test_other_content_of_the_same_size_is_written_anew(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    one, told = fixtures.tail(root, "nemo-rl", service=post)
    one.run(follow=False)
    path = root / "train_data_step2.jsonl"
    path.write_text(path.read_text().replace('"filtered_rewards": [0.25]', '"filtered_rewards": [0.75]'))
    os.utime(path, (fixtures.LONG_AGO + 5,) * 2)
    service.batches.clear()
    one.run(follow=False)

    (batch,) = service.batches.values()
    assert (batch.meta.step, batch.meta.session) == (2, "s~1")
    assert "rewritten" in told[-1]


def test_a_truncated_file_waits_for_its_marker(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    one, _ = fixtures.tail(root, "prime-rl", service=post)
    one.run(follow=False)
    path = root / "token_exports/step_2/rank_0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:100])

    assert [unit.step for unit in one.turn()] == [2]
    assert sent(service) == 2
    path.write_bytes(content)
    (path.parent / "STABLE").touch()
    assert one.turn() == []
    assert sent(service) == 3


def test_a_touched_file_is_the_same(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    one, _ = fixtures.tail(root, "nemo-rl", service=post)
    one.run(follow=False)
    for path in root.iterdir():
        path.touch()

    assert one.turn() == []
    assert sent(service) == 2


def test_a_file_that_grew_is_read_on(tmp_path: Path, service: FakeService, post: Service) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    path = root / "train_data_step1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    os.utime(path, (fixtures.LONG_AGO,) * 2)
    one, _ = fixtures.tail(root, "nemo-rl", service=post)
    one.run(follow=False)
    path.write_text("".join(lines))
    os.utime(path, (fixtures.LONG_AGO + 5,) * 2)
    one.run(follow=False)

    assert [one for one in ids(service) if one.startswith("1/")] == ["1/0", "1/1", "1/2", "1/3"]
    assert [(key[5], batch.sequences) for key, batch in sorted(service.batches.items()) if key[0] == 1] == [
        (0, 3),
        (1, 1),
    ]


def test_two_files_of_one_step_are_named(tmp_path: Path) -> None:
    root = fixtures.copy("slime", tmp_path)
    shutil.copy(root / "0.pt", root / "copy_0.pt")

    one, told = fixtures.tail(root, "slime")
    one.run(follow=False)

    assert (one.totals.units, one.totals.problems) == (2, {"unusable": 1})
    assert told[0].endswith("names step 0, as 0.pt does; it is left out")


# --- batches -------------------------------------------------------------------------------------------------------


def row(length: int, **more: Any) -> Row:
    return {"infer_logprobs": np.zeros(length, np.float32), **more}


def test_batches_are_cut_by_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "PART_TOKENS", 10)
    monkeypatch.setattr(tails, "PART_ROWS", 3)

    assert [len(part) for part in tails.parts([row(4), row(6), row(1), row(1), row(1), row(1)])] == [2, 3, 1]
    assert [len(part) for part in tails.parts([row(1), row(1, source="a"), row(1, source="b")])] == [1, 2]
    assert [len(part) for part in tails.parts([row(50)])] == [1]
    assert list(tails.parts([])) == []


# --- the cursor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 9}', '{"version":1,"source":1}'])
def test_a_cursor_that_cannot_be_read_costs_only_time(
    tmp_path: Path, service: FakeService, post: Service, content: str
) -> None:
    root, path = fixtures.copy("nemo_rl", tmp_path), tmp_path / "cursor.json"
    fixtures.tail(root, "nemo-rl", service=post, cursor=cursor(path), source=SOURCE)[0].run(follow=False)
    path.write_text(content)

    loaded, unread = Cursor.load(path, session="s", source=SOURCE)
    one, _ = fixtures.tail(root, "nemo-rl", service=post, cursor=loaded, source=SOURCE)
    one.run(follow=False)

    assert unread is not None
    assert str(path) in unread
    assert one.totals.batches == {"duplicate": 2}
    assert json.loads(path.read_text())["version"] == 1


def test_a_cursor_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cursor.json"
    one = Cursor(path=path, session="first")
    one.save(source=SOURCE)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    one.session = "second"
    with pytest.raises(OSError, match="disk full"):
        one.save(source=SOURCE)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
