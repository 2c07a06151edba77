"""The transport: one POST, and an answer that is always bounded and never an exception.

Built on httpx's transport layer rather than its client: no redirects are followed, no cookies kept, no proxy or
netrc taken from the environment (what is posted may hold prompts; it goes to the URL that was named and nowhere
else), and no line per request in the trainer's log.
"""

from __future__ import annotations

# The first connection of a process looks a host name up with it. Imported here, not in the sender: a process that forks
# while a thread imports leaves its child with an import that never ends.
import encodings.idna  # noqa: F401
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx

from tailwatch_collectors.guard import shown

MAX_ANSWER_BYTES = 2**20
"""Most bytes read of an answer."""

USER_AGENT = "tailwatch-collectors/0.1.0"

_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back for one POST."""

    status: int | None = None
    """HTTP status; None where there was no HTTP answer."""
    content: Mapping[str, Any] | None = None
    """The JSON object in the body, `{}` for an empty body; None where it is neither."""
    failure: str | None = None
    """Why there is no answer, or why it cannot be read; one line."""
    retry_after: float | None = None
    """Seconds the service asks to be left alone."""

    @property
    def accepted(self) -> bool:
        """True for a 2xx answer that could be read."""
        return self.status is not None and 200 <= self.status < 300 and self.content is not None


class Transport(Protocol):
    """The way to the service."""

    def post(self, path: str, *, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """POST `body` to `path` below the root; waits about `timeout` seconds per network operation at most."""
        ...

    def close(self) -> None:
        """Give the connections back."""
        ...


class HttpTransport:
    """The way to the service over HTTP."""

    def __init__(self, *, url: str, api_key: str | None) -> None:
        self._url = url
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # The system's certificates (and SSL_CERT_FILE), so that a company's own authority is known.
        https = url.startswith("https:")
        context = ssl.create_default_context() if https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30.0)
        self._pool = httpx.HTTPTransport(verify=context, trust_env=False, limits=limits)

    def post(self, path: str, *, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """As `Transport.post`."""
        deadline = time.monotonic() + 2 * timeout
        try:
            request = httpx.Request(
                "POST",
                f"{self._url}{path}",
                headers={**self._headers, **headers, "Content-Length": str(len(body))},
                content=_Chunks(body, deadline),
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout)},
            )
            response = self._pool.handle_request(request)
            try:
                return _read(response, deadline)
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            return Answer(failure=f"{type(error).__name__}: {error!s:.200}")

    def close(self) -> None:
        """As `Transport.close`."""
        self._pool.close()


class _Chunks(httpx.SyncByteStream):
    """A body in pieces: httpcore copies the rest of what it is given after every write, so a large body in one
    piece would cost quadratic copying under the interpreter lock, and stall the trainer."""

    def __init__(self, body: bytes, deadline: float) -> None:
        self._body = memoryview(body)
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _CHUNK_BYTES):
            if time.monotonic() > self._deadline:
                raise httpx.WriteTimeout("the service reads too slowly")
            yield bytes(self._body[start : start + _CHUNK_BYTES])


def _read(response: httpx.Response, deadline: float) -> Answer:
    status = response.status_code
    retry_after = _retry_after(response.headers.get("retry-after"))
    body = b""
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            failure = f"answer over {MAX_ANSWER_BYTES} bytes" if len(body) > MAX_ANSWER_BYTES else "answer too slow"
            return Answer(status=status, failure=failure, retry_after=retry_after)
    if not body:
        return Answer(status=status, content={}, retry_after=retry_after)
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        failure = f"answer is {shown(content_type, limit=80)}, expected JSON"
        return Answer(status=status, failure=failure, retry_after=retry_after)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        failure = f"answer is not JSON: {shown(str(error), limit=120)}"
        return Answer(status=status, failure=failure, retry_after=retry_after)
    if not isinstance(content, dict):
        failure = f"answer is a JSON {type(content).__name__}, expected an object"
        return Answer(status=status, failure=failure, retry_after=retry_after)
    return Answer(status=status, content=content, retry_after=retry_after)


def _retry_after(value: str | None) -> float | None:
    """Seconds named by a Retry-After header, which holds seconds or a date; None where it holds neither."""
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
