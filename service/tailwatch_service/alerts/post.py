"""Post: one JSON body to one address, in bounded time and space, and never where it must not go.

Every address, the configured one and those it redirects to, is resolved here, checked, and connected to by the very
address that was checked: a name that resolves to something else a moment later gains nothing. Only 307 and 308 are
followed, three times at most; a body is not turned into a GET. The whole takes `timeout_s` at most, also against a
receiver that answers a byte at a time, and reads 64 KiB of an answer at most.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

MAX_ANSWER = 64 * 1024
"""Bytes read of an answer."""

MAX_REDIRECTS = 3
"""Redirects followed."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RETRIED = frozenset({408, 425, 429})
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DeliveryError(RuntimeError):
    """It did not arrive; `permanent` where trying again would not help."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Where messages may go."""

    allow_private: bool = False
    """Loopback and private addresses too."""
    allowed: tuple[str, ...] = ()
    """Host names, addresses and networks, whatever they resolve to."""


class Target(NamedTuple):
    """An address, taken apart."""

    scheme: str
    host: str
    port: int
    path: str


def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    reach: Reach,
    timeout_s: float,
) -> int:
    """Post a JSON body; the status of the answer, which is a 2xx.

    Raises:
        DeliveryError: it is not allowed to go there, nobody answered in time, or the answer is not a 2xx.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        target = parse(url)
        status, location, text = _exchange(target, body, headers, _checked(target, reach), deadline)
        if 200 <= status < 300:
            return status
        if status not in {307, 308}:
            moved = f" to {location!r:.200}, which is not followed" if location and 300 <= status < 400 else ""
            permanent = status < 500 and status not in _RETRIED
            raise DeliveryError(f"{target.host} answered {status}{moved}{text and ': ' + text}", permanent=permanent)
        if not location:
            raise DeliveryError(f"{target.host} answered {status} without a Location", permanent=True)
        following = urljoin(url, location)
        if target.scheme == "https" and urlsplit(following).scheme == "http":
            raise DeliveryError(f"{target.host} redirects from https to http", permanent=True)
        url = following
    raise DeliveryError(f"{urlsplit(url).hostname} redirects over {MAX_REDIRECTS} times", permanent=True)


def parse(url: str) -> Target:
    """An address that can be posted to.

    Raises:
        DeliveryError: it is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise DeliveryError(f"{url!r:.120} is not an address: {error}", permanent=True) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise DeliveryError(f"{url!r:.120} is not an http or https address", permanent=True)
    if parts.username is not None:
        raise DeliveryError("addresses with a user name are not posted to", permanent=True)
    path = parts.path or "/"
    return Target(parts.scheme, parts.hostname, port, f"{path}?{parts.query}" if parts.query else path)


def refusal(host: str, address: str, reach: Reach) -> str | None:
    """Why an address must not be connected to; None where it may.

    Args:
        host: name it was found under.
        address: what that name resolved to.
        reach: where messages may go.
    """
    found = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if host in reach.allowed or any(found in network for network in _networks(reach.allowed)):
        return None
    if found.is_link_local or found.is_multicast:
        return f"{host} is {found}, a link-local or multicast address; name it in TAILWATCH_ALERTS_ALLOWED_HOSTS"
    if found.is_global or (reach.allow_private and (found.is_loopback or not found.is_reserved)):
        return None
    kind = "loopback" if found.is_loopback or found.is_unspecified else "private"
    return f"{host} is {found}, a {kind} address; allow it with TAILWATCH_ALERTS_ALLOW_PRIVATE=1"


def _checked(target: Target, reach: Reach) -> str:
    """The address to connect to.

    Raises:
        DeliveryError: the name does not resolve, or to something that must not be connected to.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DeliveryError(f"{target.host} does not resolve: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        # One bad answer among good ones is how a rebinding name looks.
        reason = refusal(target.host, address, reach)
        if reason is not None:
            raise DeliveryError(reason, permanent=True)
    return addresses[0]


def _exchange(
    target: Target, body: bytes, headers: Mapping[str, str], address: str, deadline: float
) -> tuple[int, str | None, str]:
    """Status, Location and the beginning of the answer."""
    late = f"{target.host} did not answer in time"
    try:
        raw = socket.create_connection((address, target.port), timeout=_left(deadline, late))
    except OSError as error:
        raise DeliveryError(f"cannot connect to {target.host}: {error}") from error
    # A socket's own timeout is per read, so that an answer of one byte at a time would never end.
    alarm = threading.Timer(_left(deadline, late), _hang_up, args=(raw,))
    alarm.daemon = True
    alarm.start()
    connection = http.client.HTTPConnection(target.host, target.port)
    try:
        if target.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=target.host)
        else:
            connection.sock = raw
        connection.request("POST", target.path, body=body, headers={**headers, "Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = late if time.monotonic() >= deadline else f"{target.host}: {type(error).__name__} {error!s:.200}"
        raise DeliveryError(reason) from error
    else:
        if time.monotonic() >= deadline:
            raise DeliveryError(late)
        return answer.status, answer.getheader("Location"), _shown(text)
    finally:
        alarm.cancel()
        connection.close()
        raw.close()


def _hang_up(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):
        raw.shutdown(socket.SHUT_RDWR)


def _left(deadline: float, late: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeliveryError(late)
    return left


def _shown(text: bytes) -> str:
    return " ".join(text[:400].decode("utf-8", "replace").split())[:200]


def _unwrapped(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 one, however it is wrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _networks(allowed: tuple[str, ...]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for one in allowed:
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(one, strict=False))
    return found
