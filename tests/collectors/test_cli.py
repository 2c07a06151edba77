from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tailwatch_collectors import cli
from tests.collectors.conftest import FakeService
from tests.collectors.files import fixtures

TAIL = (sys.executable, "-m", "tailwatch_collectors", "tail")


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [[], ["tail"], ["import"]])
def test_help_says_what_each_command_does(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*command, "--help")

    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["tail", "."], "--format"),
        (["tail", ".", "--format", "verlang"], "verlang"),
        (["tail", ".", "--format", "verl", "--settle", "-1"], "'-1' is not a number of seconds"),
        (["tail", ".", "--format", "verl", "--world-size", "0"], "'0' is not a positive whole number"),
        (["import", "--format", "wandb"], "FILE"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*arguments)

    assert left.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tail", "gone", "--format", "verl", "--run", "r", "--project", "p"], "gone is not a directory"),
        (["tail", ".", "--format", "verl", "--run", "r"], "no project"),
        (["tail", ".", "--format", "verl", "--project", "p"], "no run"),
        (["tail", ".", "--format", "verl", "--project", "p", "--run", "r", "--url", "ftp://x"], "'ftp://x'"),
        (["tail", ".", "--format", "verl", "--dry-run", "--group-size", "4"], "format verl takes no group_size=4"),
        (["import", "gone.csv", "--format", "wandb", "--dry-run"], "gone.csv does not exist"),
        (["tail", ".", "--format", "verl", "--project", "p", "--run", "r", "--cursor", "gone/c"], "pass --cursor"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_directory_is_sent_once_and_said(
    tmp_path: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    place = ["--url", service.url, "--project", "p", "--run", "r"]

    assert run("tail", root, "--format", "prime-rl", *place) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step 1, 2 to go: 8 sequences, 28 tokens",
        "step 2, 1 to go: 16 sequences, 56 tokens",
        "2 steps, 2 batches, 16 sequences, 56 tokens; 2 stored",
    ]
    assert run("tail", root, "--format", "prime-rl", *place) == 0
    assert capsys.readouterr().out == "0 steps, 0 batches, 0 sequences, 0 tokens\n"
    assert run("tail", root, "--format", "prime-rl", *place, "--from-start", "--finished") == 0
    assert capsys.readouterr().out.endswith("2 steps, 2 batches, 16 sequences, 56 tokens; 2 duplicate\n")

    batches = list(service.batches.values())
    assert {batch.meta.framework for batch in batches} == {"prime-rl"}
    assert len({batch.meta.session for batch in batches}) == 1
    assert service.of("runs")[0].json["world_size"] == 1
    assert [call.json["kind"] for call in service.of("events")] == ["finished"]


def test_two_runs_of_one_directory_have_a_cursor_each(tmp_path: Path, service: FakeService) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    for name in ("a", "b"):
        place = ["--url", service.url, "--project", "p", "--run", name]
        assert run("tail", root, "--format", "nemo-rl", *place, "--group-size", 2, "--settle", 0) == 0

    assert len(list(root.glob(".tailwatch-nemo-rl-*.json"))) == 2
    assert len(service.of("batches")) == 4


def test_a_cursor_of_something_else_is_refused(
    tmp_path: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    cursor = tmp_path / "cursor.json"
    place = ["--url", service.url, "--project", "p", "--cursor", cursor]

    assert run("tail", root, "--format", "nemo-rl", *place, "--run", "a") == 0
    assert run("tail", root, "--format", "nemo-rl", *place, "--run", "b") == 2
    assert "belongs to nemo-rl" in capsys.readouterr().err


def test_lines_that_were_lost_are_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    (root / "train_data_step1.jsonl").write_text("{]\n")

    assert run("tail", root, "--format", "nemo-rl", "--dry-run", "--settle", 0) == 1
    said = capsys.readouterr()
    assert said.out.endswith("nothing sent; 1 corrupt; 4 no_logprobs\n")
    assert "train_data_step1.jsonl:1: corrupt" in said.err


def test_histories_are_imported_and_said(
    tmp_path: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"loss": 0.5, "bad": NaN}}\n{"step": 2, "data": {"loss": 0.25}}\n')
    place = ["--url", service.url, "--project", "p", "--run", "r"]

    assert run("import", path, "--format", "jsonl", *place) == 0
    assert capsys.readouterr().out == f"{path}: 2 numbers of 2 steps stored; 1 not finite\n"
    assert [(call.json["step"], call.json["values"]) for call in service.of("scalars")] == [
        (1, {"loss": 0.5}),
        (2, {"loss": 0.25}),
    ]
    assert run("import", fixtures.HERE / "tensorboard", "--format", "tensorboard", "--dry-run") == 0
    assert run("import", fixtures.HERE / "wandb/run.wandb", "--format", "wandb", "--dry-run") == 0
    assert "12 numbers of 6 steps read, nothing sent" in capsys.readouterr().out


def test_records_that_cannot_be_read_are_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"loss"')

    assert run("import", path, "--format", "jsonl", "--dry-run") == 1
    said = capsys.readouterr()
    assert said.out == f"{path}: 1 numbers of 1 steps read, nothing sent; 1 records not readable\n"
    assert "the last line, torn" in said.err


def test_the_module_is_a_command() -> None:
    done = subprocess.run(
        [*TAIL, str(fixtures.HERE / "verl"), "--format", "verl", "--dry-run", "--settle", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        "2 steps, 1 batches, 3 sequences, 9 tokens; nothing sent; 3 no_logprobs",
    )


def test_sigterm_ends_a_tail_in_order(
    tmp_path: Path, service: FakeService, until: Callable[[Callable[[], object]], None]
) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    place = ["--url", service.url, "--project", "p", "--run", "r"]
    command = [*TAIL, str(root), "--format", "prime-rl", "--follow", *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(service.of("batches")) == 2)
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()

    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "2 steps, 2 batches, 16 sequences, 56 tokens; 2 stored"


def test_reading_jsonl_formats_loads_no_torch() -> None:
    code = (
        "import sys; from tailwatch_collectors import cli; "
        f"cli.main(['tail', {str(fixtures.HERE / 'verl')!r}, '--format', 'verl', '--dry-run', '--settle', '0']); "
        "print([name for name in ('torch', 'pandas', 'fastapi', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == []
