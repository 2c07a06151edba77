"""Settings: one frozen record, read from TOML and then `TAILWATCH_*`, checked before anything starts.

The environment wins over the file; a flag of the command line wins over both (`dataclasses.replace`).
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.wire import WireLimits
from tailwatch_service.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]  # absent on newer Pythons

KeepTokens = Literal["off", "all"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the service accepts; every refusal names the limit it hit."""

    body_bytes: int = 64 * 2**20
    """Bytes of a request body as it arrives."""
    decoded_bytes: int = 512 * 2**20
    """Bytes of a body after Content-Encoding, and of its columns after Arrow's own compression."""
    rows: int = 65_536
    """Sequences in one batch."""
    tokens: int = 16_777_216
    """Tokens in one batch."""
    sequence_tokens: int = 1_048_576
    """Tokens in one sequence."""
    json_bytes: int = 16 * 2**20
    """Bytes of a JSON body; large batches travel as Arrow."""
    series_per_run: int = 512
    """Distinct scalar names of one run."""
    runs_per_project: int = 10_000
    """Runs of one project."""
    requests_per_minute: int = 6_000
    """Requests of one key, or of one address where no keys exist; 0: no limit."""
    live_streams: int = 256
    """Open live streams of one process."""

    def wire(self) -> WireLimits:
        """The limits of one wire record."""
        return WireLimits(
            rows=self.rows,
            tokens=self.tokens,
            sequence_tokens=self.sequence_tokens,
            decoded_bytes=self.decoded_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that can be set."""

    host: str = "127.0.0.1"
    """Address to listen on. One that others can reach needs keys, or `insecure`."""
    port: int = 8321
    """Port to listen on; 0 takes a free one."""
    data_dir: Path = Path("tailwatch-data")
    """Directory of the database and of kept tokens."""
    database_url: str | None = None
    """SQLAlchemy URL; None: SQLite in `data_dir`."""
    tokens_url: str | None = None
    """Where kept tokens go; None: in `data_dir`."""
    keep_tokens: KeepTokens = "off"
    """Whether raw tokens stay on disk beside their summaries."""
    accept_text: bool = False
    """Whether decoded text is taken in; otherwise the column is left out, and named in the answer."""
    insecure: bool = False
    """Serve an address that others can reach without keys."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names this service is reached by; loopback names and `host` always are."""
    public_url: str | None = None
    """Address that browsers use, where a proxy stands in front; decides `Secure` cookies and the same-origin check."""
    limits: Limits = field(default_factory=Limits)
    """What is accepted."""
    grace_floor_s: float = 60.0
    """Shortest wait for missing ranks before a step closes."""
    grace_factor: float = 3.0
    """Wait for missing ranks in median step times, where that is longer."""
    sweep_interval_s: float = 2.0
    """Seconds between two sweeps for steps that are due."""
    lost_after_s: float = 300.0
    """Silence after which a running run counts as lost."""
    idle_after_s: float = 3600.0
    """Silence after which a run leaves the Prometheus exposition."""
    live_heartbeat_s: float = 15.0
    """Seconds between comments on a quiet live stream."""
    live_poll_s: float = 1.0
    """Seconds after which a live stream looks for what other replicas wrote."""
    cookie_hours: float = 168.0
    """Life of a login cookie."""
    worker_threads: int = 2
    """Threads that decode and summarise."""
    log_level: str = "info"
    """debug, info, warning or error."""
    rules_file: Path | None = None
    """TOML file of changes to the rules, for all projects."""
    alert_webhook_url: str | None = None
    """Where alerts are posted in the form of Alertmanager's webhook, version 4."""
    alertmanager_url: str | None = None
    """Root of an Alertmanager that alerts are sent to by its API, version 2."""
    alerts_allow_private: bool = False
    """Whether alerts may be sent to loopback and private addresses; link-local ones have to be named."""
    alerts_allowed_hosts: tuple[str, ...] = ()
    """Host names, addresses and networks that alerts may be sent to whatever they resolve to."""
    alerts_timeout_s: float = 5.0
    """Longest time one delivery may take, from connecting to the answer."""
    alertmanager_resend_s: float = 60.0
    """Seconds after which Alertmanager is told again what still fires; it lets go of an alert after four times that."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, all of them at once."""
        found = list(_findings(self))
        if found:
            raise SettingsError("; ".join(map(str, found)), *found)

    @property
    def loopback(self) -> bool:
        """True where nobody but this machine reaches the address."""
        return is_loopback(self.host)

    @property
    def open_mode(self) -> bool:
        """True where a service without any key answers everyone: on loopback, or when told to."""
        return self.loopback or self.insecure

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, toml_path: Path | None = None) -> Settings:
        """Settings from a TOML file and `TAILWATCH_*`.

        Args:
            environ: the environment, `os.environ` as a rule.
            toml_path: file to read first; default: `TAILWATCH_CONFIG`, where that is set. Keys are the field names,
                limits in a table `[limits]`.

        Raises:
            SettingsError: names every key that is unknown or does not parse.
        """
        path = toml_path or (Path(environ["TAILWATCH_CONFIG"]) if environ.get("TAILWATCH_CONFIG") else None)
        values: dict[str, Any] = {} if path is None else _from_toml(path)
        limits: dict[str, Any] = values.pop("limits", {})
        found: list[FieldError] = []
        for target, kind, prefix in ((values, cls, "TAILWATCH_"), (limits, Limits, "TAILWATCH_LIMIT_")):
            for known in fields(kind):
                name = f"{prefix}{known.name.upper()}"
                if known.name != "limits" and environ.get(name):
                    try:
                        target[known.name] = _parse(environ[name], known.type)
                    except ValueError as error:
                        found.append(FieldError(column=name, reason=str(error)))
        if found:
            raise SettingsError("; ".join(map(str, found)), *found)
        return cls(**values, limits=Limits(**limits))


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses of both families."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _findings(settings: Settings) -> list[FieldError]:
    found: list[FieldError] = []
    if not 0 <= settings.port <= 65_535:
        found.append(FieldError(column="port", reason=f"{settings.port} is outside 0 .. 65535"))
    if settings.keep_tokens not in get_args(KeepTokens):
        found.append(FieldError(column="keep_tokens", reason=f"{settings.keep_tokens!r} is not off or all"))
    if settings.log_level not in {"debug", "info", "warning", "error"}:
        reason = f"{settings.log_level!r} is not debug, info, warning or error"
        found.append(FieldError(column="log_level", reason=reason))
    positive = ("sweep_interval_s", "live_heartbeat_s", "live_poll_s", "cookie_hours", "worker_threads",
                "alerts_timeout_s", "alertmanager_resend_s")  # fmt: skip
    values = {name: getattr(settings, name) for name in positive}
    values |= {
        f"limits.{limit.name}": getattr(settings.limits, limit.name)
        for limit in fields(Limits)
        if limit.name != "requests_per_minute" or settings.limits.requests_per_minute < 0
    }
    found += [FieldError(column=name, reason=f"{value} is not above 0") for name, value in values.items() if value <= 0]
    return [*found, *_urls(settings)]


def _urls(settings: Settings) -> Iterator[FieldError]:
    """Addresses that nothing could ever be sent to."""
    for name in ("alert_webhook_url", "alertmanager_url", "public_url"):
        value = getattr(settings, name)
        if value is None:
            continue
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            yield FieldError(column=name, reason=f"{value!r:.120} is not an http or https address")
        elif parts.username is not None:
            yield FieldError(column=name, reason="holds a user name; credentials in an address end up in logs")


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    checked: dict[str, Any] = {}
    found: list[FieldError] = []
    for prefix, kind, table in (("", Settings, values), ("limits.", Limits, values.get("limits", {}))):
        types = {known.name: known.type for known in fields(kind)}
        target = checked if kind is Settings else checked.setdefault("limits", {})
        for name, value in table.items():
            if name == "limits" and kind is Settings:
                continue
            if name not in types:
                found.append(FieldError(column=f"{prefix}{name}", reason=f"is not a setting ({path})"))
                continue
            try:
                target[name] = _parse(",".join(value) if isinstance(value, list) else str(value), types[name])
            except ValueError as error:
                found.append(FieldError(column=f"{prefix}{name}", reason=str(error)))
    if found:
        raise SettingsError("; ".join(map(str, found)), *found)
    return checked


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is not true or false")
    return text.lower() in _TRUE


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


# Annotations are strings here (`from __future__ import annotations`), so the parser is found by its name.
_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (_boolean, "true or false"),
    "Path": (Path, "a path"),
    "Path | None": (Path, "a path"),
    "tuple[str, ...]": (_names, "a list of names"),
}


def _parse(text: str, annotation: Any) -> Any:
    parser, expected = _PARSERS.get(str(annotation), (str, "text"))
    try:
        return parser(text)
    except ValueError as error:
        raise ValueError(f"{text!r:.80} is not {expected}") from error
