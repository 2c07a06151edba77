from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tailwatch_service import cli, demo
from tailwatch_service.errors import SettingsError
from tests.service.served import serve
from tests.service.test_replay import STEPS, write_recording


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TAILWATCH_"):
            monkeypatch.delenv(name)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tailwatch_service", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"], ["replay"], ["keys"], ["keys", "create"]])
def test_help_says_what_each_command_does(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--help"])

    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--port", "x"], "invalid int value"),
        (["serve", "--keep-tokens", "some"], "some"),
        (["demo", "--seconds", "-1"], "not a positive number"),
        (["keys", "create", "k", "--scope", "all"], "all"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)

    assert left.value.code == 2
    assert named in capsys.readouterr().err


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("tailwatch: ")
    assert error.count("\n") == 1
    return error


def test_a_busy_port_is_one_line(busy_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "r" / "a.parquet")
    for command in (
        ["serve", "--data-dir", str(tmp_path / "d")],
        ["demo", "--recordings", str(tmp_path / "r")],
    ):
        assert cli.main([*command, "--port", str(busy_port)]) == 2
        assert f"port {busy_port} of 127.0.0.1 is in use" in one_line(capsys)


def test_what_is_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data-dir", str(tmp_path / "d")]
    (tmp_path / "file").write_text("")
    cases = {
        ("serve", *data, "--host", "0.0.0.0", "--port", "0"): "tailwatch keys create",
        ("serve", *data, "--host", "203.0.113.9"): "203.0.113.9",
        ("serve", "--data-dir", str(tmp_path / "file" / "x"), "--port", "0"): "cannot open the database",
        ("demo", "--recordings", str(tmp_path)): "no recording",
        ("replay", str(tmp_path / "absent.parquet")): "does not exist",
        ("replay", "a", "b", "--run", "x"): "--run names one run",
        ("keys", "create", " ", *data): "name",
        ("keys", "revoke", "nobody", *data): "nobody",
        ("keys", "list", "--database-url", "nonsense"): "cannot open the database",
    }
    for arguments, named in cases.items():
        assert cli.main(list(arguments)) == 2
        assert named in one_line(capsys)
    monkeypatch.setenv("TAILWATCH_PORT", "many")
    assert cli.main(["serve", *data]) == 2
    assert "TAILWATCH_PORT" in one_line(capsys)


def test_the_life_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data-dir", str(tmp_path / "d")]
    assert cli.main(["keys", "create", "trainer", "--scope", "write", "--project", "math", *data]) == 0
    shown = capsys.readouterr()
    secret = shown.out.strip()
    key_id = shown.err.split()[1]
    assert len(secret) > 40
    assert secret not in shown.err

    assert cli.main(["keys", "list", *data]) == 0
    listed = capsys.readouterr().out
    assert listed.split("\t")[:2] == [key_id, "active"]
    assert listed.strip().split("\t")[3:] == ["math", "write", "trainer"]
    assert secret not in listed

    assert cli.main(["keys", "revoke", key_id, *data]) == 0
    capsys.readouterr()
    cli.main(["keys", "list", *data])
    assert "revoked" in capsys.readouterr().out


def test_replay_streams_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "r.parquet")
    with serve(tmp_path / "data") as served:
        code = cli.main(["replay", str(tmp_path / "r.parquet"), "--url", served.url, "--run", "again"])

    assert code == 0
    out = capsys.readouterr().out
    assert f"again: {STEPS} batches replayed" in out
    assert "0 lost" in out
    assert cli.main(["replay", str(tmp_path / "r.parquet"), "--url", "ftp://x"]) == 2


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(process.communicate(timeout=5))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_cleanly(tmp_path: Path, how: signal.Signals) -> None:
    process = start("serve", "--port", "0", "--data-dir", str(tmp_path / "d"))
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[3].rstrip(",")
        wait_for(url, process)

        process.send_signal(how)

        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, (out, err)
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()


def test_the_demo_ends_by_itself(tmp_path: Path) -> None:
    write_recording(tmp_path / "r" / "a.parquet")
    process = start(
        "demo", "--port", "0", "--recordings", str(tmp_path / "r"), "--seconds", "1", TAILWATCH_DEMO_SECONDS="6"
    )
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 0, (out, err)
    lines = out.splitlines()
    assert lines[0].startswith("Tailwatch is running at http://127.0.0.1:")
    assert any("All recordings are in" in line and " 0 lost" in line for line in lines)
    assert "Traceback" not in err


@pytest.mark.parametrize(("text", "expected"), [("", None), ("12", 12.0), ("0.5", 0.5)])
def test_demo_seconds(text: str, expected: float | None) -> None:
    assert demo.stop_after({"TAILWATCH_DEMO_SECONDS": text}) == expected


@pytest.mark.parametrize("text", ["-1", "0", "soon", "nan", "inf"])
def test_demo_seconds_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="TAILWATCH_DEMO_SECONDS"):
        demo.stop_after({"TAILWATCH_DEMO_SECONDS": text})
