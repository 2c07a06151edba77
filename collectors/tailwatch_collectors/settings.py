"""Settings of a collector: arguments of `connect`, else `TAILWATCH_*`, else defaults; checked once, at `connect`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.mode import Mode
from tailwatch_collectors.outbox import Policy
from tailwatch_collectors.session import placement
from tailwatch_collectors.spool import Fsync
from tailwatch_collectors.types import MAX_NAME_LENGTH

DEFAULT_QUEUE_BATCHES = 256
DEFAULT_QUEUE_BYTES = 256 * 2**20
DEFAULT_TIMEOUT = 10.0
DEFAULT_HEARTBEAT = 60.0
DEFAULT_SPOOL_BYTES = 2**30
DEFAULT_OVERHEAD_BUDGET = 0.005
DEFAULT_SIGTERM_TIMEOUT = 2.0

NO_SPOOL = "off"
"""What `spool_dir` is called where nothing may be written to disk."""

Compression = Literal["zstd", "lz4"]
Gather = Literal["rank0"]

_OWN_FIELDS = ("project", "name", "session", "framework", "world_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything a collector needs to know; see `Settings.read`."""

    project: str
    """Project name."""
    run: str
    """Run name."""
    url: str | None
    """Root of the service, without a trailing slash; None: nothing is sent, only spooled."""
    api_key: str | None = field(repr=False)
    """Bearer key."""
    session: str | None
    """Launch of the job; None: to be found, see `session.find_session`."""
    rank: int
    """Data-parallel rank of this process."""
    world_size: int | None
    """Ranks that record each step; None: unknown."""
    framework: str | None
    """For example `trl 1.16.0`."""
    config: Mapping[str, Any]
    """Further fields of the run: model_class, precision, temperature, top_p, logprobs_mode, ..."""
    queue_batches: int
    """Most items waiting."""
    queue_bytes: int
    """Most bytes waiting."""
    timeout: float
    """Longest wait for one network operation, seconds."""
    heartbeat: float
    """Time between heartbeats, seconds."""
    compression: Compression | None
    """Compression inside the Arrow stream."""
    send_text: bool
    """Whether the `text` column leaves the trainer at all."""
    queue_policy: Policy
    """What goes when the queue is full."""
    spool_dir: Path | None
    """Where what cannot be sent is kept; None: nowhere."""
    spool_bytes: int
    """Most bytes on disk."""
    spool_fsync: Fsync
    """How soon what is on disk survives the machine."""
    mode: Mode
    """Whether batches travel as tokens, as summaries, or as the network allows."""
    overhead_budget: float
    """Largest share of the wall time we may cost; 0: no bound."""
    gather: Gather | None
    """Whether rank 0 sends for all."""
    sigterm_timeout: float
    """Longest delay of SIGTERM, seconds; 0: SIGTERM is left alone."""

    def run_fields(self, session: str) -> dict[str, Any]:
        """What creates or finds the run at the service."""
        own = {
            "project": self.project,
            "name": self.run,
            "session": session,
            "framework": self.framework,
            "world_size": self.world_size,
        }
        return {**self.config, **{name: value for name, value in own.items() if value is not None}}

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str],
        *,
        project: str | None = None,
        run: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
        session: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        framework: str | None = None,
        config: Mapping[str, Any] | None = None,
        queue_batches: int | None = None,
        queue_bytes: int | None = None,
        timeout: float | None = None,
        heartbeat: float | None = None,
        compression: str | None = None,
        send_text: bool | None = None,
        queue_policy: str | None = None,
        spool_dir: str | Path | None = None,
        spool_bytes: int | None = None,
        spool_fsync: str | None = None,
        mode: str | None = None,
        overhead_budget: float | None = None,
        gather: str | None = None,
        sigterm_timeout: float | None = None,
    ) -> Settings:
        """Settle every setting. An empty variable counts as absent.

        Raises:
            ConfigurationError: a setting is missing or wrong; names it and its value (never the key's).
        """
        rank, world_size = placement(environ, rank=rank, world_size=world_size)
        return cls(
            project=_required("project", project or environ.get("TAILWATCH_PROJECT")),
            run=_required("run", run or environ.get("TAILWATCH_RUN")),
            url=checked_url(url or environ.get("TAILWATCH_URL")),
            api_key=checked_key(api_key or environ.get("TAILWATCH_API_KEY")),
            session=_name("session", session or environ.get("TAILWATCH_SESSION") or None),
            rank=rank,
            world_size=world_size,
            framework=_name("framework", framework),
            config=_config(config),
            queue_batches=int(
                _number(environ, "queue_batches", queue_batches, DEFAULT_QUEUE_BATCHES, low=1, whole=True)
            ),
            queue_bytes=int(_number(environ, "queue_bytes", queue_bytes, DEFAULT_QUEUE_BYTES, low=1, whole=True)),
            timeout=_number(environ, "timeout", timeout, DEFAULT_TIMEOUT, low=0.001),
            heartbeat=_number(environ, "heartbeat", heartbeat, DEFAULT_HEARTBEAT, low=0.01),
            compression=_compression(compression or environ.get("TAILWATCH_COMPRESSION")),
            send_text=_flag("TAILWATCH_SEND_TEXT", environ) if send_text is None else send_text,
            queue_policy=_one_of(environ, "queue_policy", queue_policy, get_args(Policy)),
            spool_dir=_spool_dir(environ, spool_dir),
            spool_bytes=int(_number(environ, "spool_bytes", spool_bytes, DEFAULT_SPOOL_BYTES, low=4096, whole=True)),
            spool_fsync=_one_of(environ, "spool_fsync", spool_fsync, ("interval", "always", "never")),
            mode=_one_of(environ, "mode", mode, get_args(Mode)),
            overhead_budget=_number(environ, "overhead_budget", overhead_budget, DEFAULT_OVERHEAD_BUDGET, low=0),
            gather=_one_of(environ, "gather", gather, ("none", "rank0")),
            sigterm_timeout=_number(environ, "sigterm_timeout", sigterm_timeout, DEFAULT_SIGTERM_TIMEOUT, low=0),
        )


def _name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME_LENGTH:
        raise ConfigurationError(f"{name} is {value!r:.80}, expected a name of 1 to {MAX_NAME_LENGTH} characters")
    return value


def _required(name: str, value: Any) -> str:
    found = _name(name, value or None)
    if found is None:
        raise ConfigurationError(f"no {name}: pass {name}=... to connect or set TAILWATCH_{name.upper()}")
    return found


def checked_url(value: Any) -> str | None:
    """The root of a service without a trailing slash; None where none is given.

    Raises:
        ConfigurationError: it is no such root.
    """
    if not value:
        return None
    try:
        parts = urlsplit(value)
        port = parts.port  # raises where it is no port
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"url {value!r:.200} cannot be read: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ConfigurationError(f"url {value!r:.200} is not of the form http://host:port")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("url carries a user or password; pass the key as api_key instead")
    if parts.query or parts.fragment or not value.isascii() or any(c.isspace() for c in value):
        raise ConfigurationError(f"url {value!r:.200} must be the root of the service, without query or spaces")
    return str(value).rstrip("/")


def checked_key(value: Any) -> str | None:
    """A bearer key; None where none is given.

    Raises:
        ConfigurationError: no header can carry it. It is not named.
    """
    if not value:
        return None
    if not isinstance(value, str) or not all("!" <= character <= "~" for character in value):
        raise ConfigurationError("api_key holds characters that an HTTP header cannot carry (a line end?)")
    return value


def _config(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    config = dict(value or {})
    taken = sorted(set(config) & set(_OWN_FIELDS))
    if taken:
        raise ConfigurationError(f"config names {', '.join(taken)}: pass that to connect itself")
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"config cannot be written as JSON: {error}") from None
    return config


def _number(
    environ: Mapping[str, str],
    name: str,
    given: float | None,
    default: float,
    *,
    low: float,
    whole: bool = False,
) -> float:
    variable = f"TAILWATCH_{name.upper()}"
    value: Any = given if given is not None else environ.get(variable) or default
    source = name if given is not None else variable
    try:
        if isinstance(value, bool):
            raise TypeError  # a bool is an int to float()
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{source} is {value!r:.80}, expected a number") from None
    if not math.isfinite(number) or number < low or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{source} is {value!r:.80}, expected {kind} of at least {low}")
    return number


def _compression(value: str | None) -> Compression | None:
    if not value or value == "none":
        return None
    for known in get_args(Compression):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ConfigurationError(f"compression is {value!r:.80}, expected zstd, lz4 or none")


def _one_of(environ: Mapping[str, str], name: str, given: str | None, known: tuple[Any, ...]) -> Any:
    """One of the known words, the first of them where nothing is given; `none` is None."""
    value = given or environ.get(f"TAILWATCH_{name.upper()}") or known[0]
    if value not in known:
        raise ConfigurationError(f"{name} is {value!r:.80}, expected one of {', '.join(known)}")
    return None if value == "none" else value


def _spool_dir(environ: Mapping[str, str], given: str | Path | None) -> Path | None:
    """The directory of the spool; by default below the user's cache."""
    value = given or environ.get("TAILWATCH_SPOOL_DIR")
    if value is None or value == "":
        cache = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else None)
        return None if cache is None else Path(cache) / "tailwatch" / "spool"
    if not isinstance(value, str | Path):
        raise ConfigurationError(f"spool_dir is {value!r:.80}, expected a path, or {NO_SPOOL}")
    if str(value) == NO_SPOOL:
        return None
    path = Path(value).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"spool_dir {str(value)!r:.200} is no directory")
    return path


def _flag(variable: str, environ: Mapping[str, str]) -> bool:
    value = (environ.get(variable) or "0").lower()
    if value not in {"0", "1", "true", "false"}:
        raise ConfigurationError(f"{variable} is {value!r:.80}, expected 0 or 1")
    return value in {"1", "true"}
