"""Settings: arguments, environment, defaults, and every way they can be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.settings import DEFAULT_QUEUE_BATCHES, DEFAULT_TIMEOUT, Settings

NAMES: dict[str, Any] = {"project": "p", "run": "r"}


def test_defaults() -> None:
    settings = Settings.read({}, **NAMES)

    assert settings.url is None
    assert settings.rank == 0
    assert settings.world_size is None
    assert settings.queue_batches == DEFAULT_QUEUE_BATCHES
    assert settings.timeout == DEFAULT_TIMEOUT
    assert settings.compression is None
    assert settings.send_text is False


def test_environment() -> None:
    settings = Settings.read(
        {
            "TAILWATCH_PROJECT": "p",
            "TAILWATCH_RUN": "r",
            "TAILWATCH_URL": "https://monitor:8321/tailwatch/",
            "TAILWATCH_API_KEY": "secret",
            "TAILWATCH_SESSION": "launch-7",
            "TAILWATCH_QUEUE_BATCHES": "3",
            "TAILWATCH_QUEUE_BYTES": "1e6",
            "TAILWATCH_TIMEOUT": "0.5",
            "TAILWATCH_HEARTBEAT": "",
            "TAILWATCH_COMPRESSION": "zstd",
            "TAILWATCH_SEND_TEXT": "1",
        }
    )

    assert (settings.project, settings.run, settings.session) == ("p", "r", "launch-7")
    assert settings.url == "https://monitor:8321/tailwatch"
    assert settings.api_key == "secret"
    assert (settings.queue_batches, settings.queue_bytes, settings.timeout) == (3, 1_000_000, 0.5)
    assert settings.heartbeat == 60.0
    assert settings.compression == "zstd"
    assert settings.send_text is True


def test_arguments_win_over_the_environment() -> None:
    settings = Settings.read({"TAILWATCH_RUN": "other", "TAILWATCH_TIMEOUT": "1"}, **NAMES, timeout=2)

    assert settings.run == "r"
    assert settings.timeout == 2.0


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Settings.read({}, **NAMES, api_key="secret"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"project": None}, "TAILWATCH_PROJECT"),
        ({"run": ""}, "TAILWATCH_RUN"),
        ({"run": "x" * 257}, "run is"),
        ({"project": 7}, "project is 7"),
        ({"url": "monitor:8321"}, "monitor:8321"),
        ({"url": "ftp://monitor"}, "ftp://monitor"),
        ({"url": "http://"}, "http://"),
        ({"url": "http://monitor:port"}, "http://monitor:port"),
        ({"url": "http://monitor:99999"}, "99999"),
        ({"url": "http://monitor/?a=1"}, "query"),
        ({"url": "http://mon itor"}, "mon itor"),
        ({"url": 8321}, "8321"),
        ({"api_key": "two\nlines"}, "api_key"),
        ({"api_key": 7}, "api_key"),
        ({"session": "  "}, "session"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2**40}, "rank is"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"rank": 8, "world_size": 8}, "rank 8"),
        ({"world_size": 0}, "world_size is 0"),
        ({"queue_batches": 0}, "queue_batches is 0"),
        ({"queue_batches": 1.5}, "queue_batches is 1.5"),
        ({"queue_bytes": True}, "queue_bytes is True"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"heartbeat": -1}, "heartbeat is -1"),
        ({"compression": "gzip"}, "gzip"),
        ({"config": {"session": "a"}}, "session"),
        ({"config": {"tags": object()}}, "JSON"),
        ({"config": {"temperature": float("nan")}}, "JSON"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named.replace("?", r"\?")):
        Settings.read({}, **(NAMES | arguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TAILWATCH_TIMEOUT", "soon"),
        ("TAILWATCH_QUEUE_BATCHES", "-3"),
        ("TAILWATCH_SEND_TEXT", "maybe"),
        ("TAILWATCH_COMPRESSION", "rar"),
        ("RANK", "first"),
        ("SLURM_PROCID", "x"),
    ],
)
def test_wrong_variables_are_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=value):
        Settings.read({name: value}, **NAMES)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.read({}, **NAMES, url="http://me:hunter2@monitor")
    assert "hunter2" not in str(caught.value)
