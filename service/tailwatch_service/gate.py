"""The gate: which key is behind a request, and is it one.

The API takes bearer keys. The pages take a cookie that stands for a key; a write with nothing but a cookie needs an
Origin of our own. While no key exists the service is open to whoever reaches it: that is loopback only, unless it
was started with `--insecure`, and then the Host and Origin headers keep other web sites out (DNS rebinding).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tailwatch_service.errors import Forbidden, TooManyRequests, Unauthorized
from tailwatch_service.settings import Settings, is_loopback
from tailwatch_service.storage import keys
from tailwatch_service.storage.database import Database
from tailwatch_service.types import ApiKey, Scope

COOKIE = "tailwatch_session"
"""Name of the login cookie."""

LOGINS_PER_MINUTE = 20
"""Tries to log in, per address."""

_ALL_SCOPES: frozenset[Scope] = frozenset({"read", "write", "control", "admin"})
_REMEMBER_S = 2.0
_REMEMBERED = 4096
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Who is asking."""

    key_id: str | None
    """Key behind the request; None where the service is open."""
    scopes: frozenset[Scope]
    project: str | None
    """The one project it reaches; None: all."""

    def may(self, scope: Scope) -> bool:
        """True where the key has the scope; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes


OPEN = Principal(key_id=None, scopes=_ALL_SCOPES, project=None)
"""Everyone, while no key exists."""


class Gate:
    """Verifies keys and cookies, remembers the answers for 2 s, and counts requests per key.

    A revoked key therefore works for 2 s more at most; in exchange a batch costs no query for its key.
    """

    def __init__(
        self,
        db: Database,
        *,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a gate.

        Args:
            db: where keys and sessions are.
            settings: whether the service is open without keys, and its names.
            clock: Unix seconds, by which sessions expire.
            monotonic: seconds by which requests are counted and answers forgotten.
        """
        self._db = db
        self._settings = settings
        self._wall = clock
        self._clock = monotonic
        self._known: dict[tuple[str, str], tuple[float, Principal | None]] = {}
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._rate = settings.limits.requests_per_minute

    async def principal(self, request: Request) -> Principal:
        """Who is asking.

        Raises:
            Unauthorized: no key, or one that is unknown or revoked.
            Forbidden: another web site is asking, or a host name that is not ours.
            TooManyRequests: more requests of this key in a minute than the limit.
        """
        found = await self._identify(request)
        client = request.client.host if request.client else "unknown"
        self.spend(found.key_id or client, per_minute=self._rate)
        return found

    def spend(self, name: str, *, per_minute: int) -> None:
        """Take one request from a bucket.

        Raises:
            TooManyRequests: it is empty.
        """
        if per_minute == 0:
            return
        now = self._clock()
        with self._lock:
            bucket = self._buckets.setdefault(name, _Bucket(float(per_minute), now))
            wait = bucket.take(now, per_minute=per_minute)
            if len(self._buckets) > _REMEMBERED:
                full = [key for key, other in self._buckets.items() if now - other.at > 60.0]
                for key in full or list(self._buckets)[: _REMEMBERED // 2]:
                    del self._buckets[key]
        if wait > 0:
            raise TooManyRequests(f"over {per_minute} requests a minute, the limit", retry_after_s=wait)

    def forget(self) -> None:
        """Verify everything anew: a key or session has just been changed here."""
        with self._lock:
            self._known.clear()

    async def _identify(self, request: Request) -> Principal:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if secret.strip() and scheme.lower() == "bearer":
            found = await self._look_up("bearer", secret.strip())
            if found is not None:
                return found
        elif cookie := request.cookies.get(COOKIE):
            found = await self._look_up("cookie", cookie)
            if found is not None:
                if request.method not in _SAFE and not same_origin(request, self._settings, required=True):
                    raise Forbidden("a write with a cookie needs an Origin header of this service")
                return found
        if self._settings.open_mode and await self._look_up("open", "") is OPEN:
            check_open(request, self._settings)
            return OPEN
        raise Unauthorized("unknown or revoked key" if secret.strip() else "no key: send Authorization: Bearer <key>")

    async def _look_up(self, kind: str, secret: str) -> Principal | None:
        now = self._clock()
        remembered = self._known.get((kind, secret))
        if remembered is not None and remembered[0] > now:
            return remembered[1]
        found = await run_in_threadpool(self._verify, kind, secret)
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[kind, secret] = (now + _REMEMBER_S, found)
        return found

    def _verify(self, kind: str, secret: str) -> Principal | None:
        if kind == "open":
            return None if keys.any_active(self._db) else OPEN
        if kind == "cookie":
            return _of(keys.session(self._db, secret, now=self._wall()))
        return _of(keys.verify(self._db, secret))


@dataclass(slots=True)
class _Bucket:
    """A token bucket: a minute's worth at once, refilled evenly."""

    left: float
    at: float

    def take(self, now: float, *, per_minute: int) -> float:
        """Take one; 0, or the seconds until there is one."""
        self.left = min(float(per_minute), self.left + (now - self.at) * per_minute / 60.0)
        self.at = now
        if self.left < 1.0:
            return (1.0 - self.left) * 60.0 / per_minute
        self.left -= 1.0
        return 0.0


def check_open(request: Request, settings: Settings) -> None:
    """What keeps other web sites out of a service without keys.

    Raises:
        Forbidden: the Host is not one of ours (DNS rebinding), or another site's page is writing.
    """
    host = _host_name(request.headers.get("host", ""))
    if settings.loopback and not _is_ours(host, settings):
        reason = f"host {host!r:.120} is not this service; add it to TAILWATCH_ALLOWED_HOSTS if it is"
        raise Forbidden(reason)
    if request.method not in _SAFE and not same_origin(request, settings, required=False):
        raise Forbidden(f"origin {request.headers.get('origin')!r:.120} is another site")


def same_origin(request: Request, settings: Settings, *, required: bool) -> bool:
    """True where the request comes from a page of this service; without an Origin: unless it is `required`."""
    origin = request.headers.get("origin")
    if origin is None:
        return not required
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    return origin in {own, (settings.public_url or own).rstrip("/")}


def is_https(request: Request, settings: Settings) -> bool:
    """True where the browser speaks https, to us or to the proxy in front."""
    return request.url.scheme == "https" or (settings.public_url or "").startswith("https://")


def _host_name(header: str) -> str:
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header


def _is_ours(host: str, settings: Settings) -> bool:
    public = urlsplit(settings.public_url or "").hostname
    return is_loopback(host) or host in {settings.host, public, *settings.allowed_hosts}


def _of(key: ApiKey | None) -> Principal | None:
    return None if key is None else Principal(key_id=key.key_id, scopes=key.scopes, project=key.project)
