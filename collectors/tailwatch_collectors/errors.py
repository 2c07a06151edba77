"""Every error of the SDK, one root, each also the built-in it stands for.

TailwatchError
├── ConfigurationError (ValueError)   raised at `connect`, and only there
├── BatchError (ValueError)           arrays that do not form a batch: swallowed and counted in training
├── ReadError (RuntimeError)          the read client got no answer, or a refusal
└── WireError (ValueError)            bytes or JSON that do not form a wire record: names row, column, reason
"""

from __future__ import annotations

from dataclasses import dataclass


class TailwatchError(Exception):
    """Root of all errors of the SDK."""


class ConfigurationError(TailwatchError, ValueError):
    """A setting is missing or wrong. Raised at `connect`, never later."""


class ReadError(TailwatchError, RuntimeError):
    """The service did not answer the read client, or refused; never raised by a collector."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None where there was no answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldError:
    """One thing that is wrong with one field."""

    reason: str
    """What is wrong, with the offending value and the limit."""
    column: str | None = None
    """Column, or metadata field, it is about."""
    row: int | None = None
    """Row (sequence) it is about; None where it is about the whole column."""

    def __str__(self) -> str:
        where = [] if self.row is None else [f"row {self.row}"]
        where += [] if self.column is None else [self.column]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason


class _FieldsError(TailwatchError, ValueError):
    """Errors that carry one `FieldError` per finding."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__(*errors)
        self.errors = errors

    def __str__(self) -> str:
        return "; ".join(map(str, self.errors))


class BatchError(_FieldsError):
    """Arrays that do not form a batch: unequal lengths, wrong types, a key out of range."""


class WireError(_FieldsError):
    """A body that is not a wire record. The service answers 422 with `errors`."""
