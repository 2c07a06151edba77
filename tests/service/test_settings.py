from __future__ import annotations

from pathlib import Path

import pytest

from tailwatch_service.errors import SettingsError
from tailwatch_service.settings import Limits, Settings, is_loopback


def test_the_defaults_listen_on_loopback_only() -> None:
    settings = Settings.from_env({})

    assert (settings.host, settings.port) == ("127.0.0.1", 8321)
    assert settings.loopback
    assert settings.open_mode
    assert settings.keep_tokens == "off"
    assert settings.limits.body_bytes == 64 * 2**20


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tailwatch.toml"
    path.write_text('port = 9000\nhost = "0.0.0.0"\nallowed_hosts = ["a", "b"]\n[limits]\nrows = 7\ntokens = 8\n')

    settings = Settings.from_env({"TAILWATCH_PORT": "9001", "TAILWATCH_LIMIT_ROWS": "9"}, toml_path=path)

    assert (settings.host, settings.port) == ("0.0.0.0", 9001)
    assert settings.allowed_hosts == ("a", "b")
    assert (settings.limits.rows, settings.limits.tokens) == (9, 8)
    assert not settings.open_mode


def test_the_config_variable_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tailwatch.toml"
    path.write_text("insecure = true\n")

    assert Settings.from_env({"TAILWATCH_CONFIG": str(path)}).insecure


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"TAILWATCH_PORT": "many"}, ["TAILWATCH_PORT", "many", "whole number"]),
        ({"TAILWATCH_PORT": "70000"}, ["port", "70000", "65535"]),
        ({"TAILWATCH_INSECURE": "maybe"}, ["TAILWATCH_INSECURE", "maybe"]),
        ({"TAILWATCH_KEEP_TOKENS": "some"}, ["keep_tokens", "some"]),
        ({"TAILWATCH_LIMIT_ROWS": "0"}, ["limits.rows", "0"]),
        ({"TAILWATCH_LIVE_POLL_S": "-1"}, ["live_poll_s", "-1"]),
        ({"TAILWATCH_LOG_LEVEL": "loud"}, ["log_level", "loud"]),
        ({"TAILWATCH_PORT": "x", "TAILWATCH_GRACE_FLOOR_S": "y"}, ["TAILWATCH_PORT", "TAILWATCH_GRACE_FLOOR_S"]),
    ],
)
def test_a_wrong_value_is_named(environ: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)

    assert all(part in str(caught.value) for part in named)


@pytest.mark.parametrize("text", ["colour = 1", "[limits]\ncolour = 1", "port = ["])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tailwatch.toml"
    path.write_text(text)

    with pytest.raises(SettingsError, match=r"tailwatch\.toml"):
        Settings.from_env({}, toml_path=path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        Settings.from_env({}, toml_path=tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False), ("gpu-1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_limits_reach_the_decoder() -> None:
    wire = Limits(rows=1, tokens=2, sequence_tokens=3, decoded_bytes=4).wire()

    assert (wire.rows, wire.tokens, wire.sequence_tokens, wire.decoded_bytes) == (1, 2, 3, 4)
