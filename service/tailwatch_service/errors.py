"""Every error of the service, one root, each also the built-in it stands for and each with its HTTP answer.

TailwatchServiceError
├── BadRequest (ValueError)                400
├── Unauthorized (PermissionError)         401
├── Forbidden (PermissionError)            403
├── NotFound (LookupError)                 404
├── KeyConflict (ValueError)               409
├── TooLarge (ValueError)                  413
├── UnsupportedMedia (ValueError)          415
├── Unprocessable (ValueError)             422
├── TooManyRequests (RuntimeError)         429
├── Unavailable (RuntimeError)             503
└── SettingsError (ValueError)             no answer: the service does not start

The message is for the client: it holds the offending value and the limit, never a path or a secret.
"""
# ruff: noqa: N818 - `raise NotFound(...)` reads as the answer it becomes

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tailwatch_collectors.errors import FieldError


class TailwatchServiceError(Exception):
    """Root of all errors of the service; `str(error)` is the problem's detail."""

    status: ClassVar[int] = 500
    """HTTP status it is answered with."""
    title: ClassVar[str] = "Internal error"
    """Short name of the problem, the same for every occurrence."""

    def __init__(self, detail: str, *errors: FieldError) -> None:
        super().__init__(detail, *errors)
        self.detail = detail
        self.errors = errors

    def __str__(self) -> str:
        return self.detail

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that belong to the problem."""
        return {}


class BadRequest(TailwatchServiceError, ValueError):
    """The request itself is broken: a body that does not decompress, a header that does not parse."""

    status = 400
    title = "Bad request"


class Unauthorized(TailwatchServiceError, PermissionError):
    """No key, or one that is unknown or revoked."""

    status = 401
    title = "Not authenticated"

    @property
    def headers(self) -> Mapping[str, str]:
        """Names the scheme, as RFC 9110 asks."""
        return {"WWW-Authenticate": 'Bearer realm="tailwatch"'}


class Forbidden(TailwatchServiceError, PermissionError):
    """The key is valid and does not reach this far."""

    status = 403
    title = "Not allowed"


class NotFound(TailwatchServiceError, LookupError):
    """No such run, step or page."""

    status = 404
    title = "Not found"


class KeyConflict(TailwatchServiceError, ValueError):
    """The key is stored already with other content of the same kind; the first stored wins."""

    status = 409
    title = "Conflicting content for a stored key"


class TooLarge(TailwatchServiceError, ValueError):
    """Larger than a limit; the detail names the limit."""

    status = 413
    title = "Content too large"


class UnsupportedMedia(TailwatchServiceError, ValueError):
    """A content type or encoding that is not read here; the detail names those that are."""

    status = 415
    title = "Unsupported media type"


class Unprocessable(TailwatchServiceError, ValueError):
    """Understood and wrong: `errors` names row, column and reason."""

    status = 422
    title = "Invalid content"

    @classmethod
    def of(cls, *errors: FieldError) -> Unprocessable:
        """A problem whose detail is its findings."""
        return cls("; ".join(map(str, errors)), *errors)


class _RetryLater(TailwatchServiceError, RuntimeError):
    """An error that passes; carries how long to wait."""

    def __init__(self, detail: str, *errors: FieldError, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, *errors)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> Mapping[str, str]:
        """Whole seconds, at least one: what Retry-After can say."""
        return {"Retry-After": str(max(1, round(self.retry_after_s)))}


class TooManyRequests(_RetryLater):
    """The key has used up its requests of this minute."""

    status = 429
    title = "Too many requests"


class Unavailable(_RetryLater):
    """The database or the writer is away; nothing was stored."""

    status = 503
    title = "Temporarily unavailable"


class SettingsError(TailwatchServiceError, ValueError):
    """A setting is missing or wrong. Raised at start, never later."""

    title = "Wrong setting"
