from __future__ import annotations

import pickle

import pytest

from tailwatch_collectors.errors import FieldError
from tailwatch_service import errors
from tailwatch_service.errors import TailwatchServiceError

STATUS = {
    errors.BadRequest: (400, ValueError),
    errors.Unauthorized: (401, PermissionError),
    errors.Forbidden: (403, PermissionError),
    errors.NotFound: (404, LookupError),
    errors.KeyConflict: (409, ValueError),
    errors.TooLarge: (413, ValueError),
    errors.UnsupportedMedia: (415, ValueError),
    errors.Unprocessable: (422, ValueError),
    errors.TooManyRequests: (429, RuntimeError),
    errors.Unavailable: (503, RuntimeError),
}


@pytest.mark.parametrize(("kind", "expected"), STATUS.items())
def test_each_error_is_an_answer_and_a_built_in(
    kind: type[TailwatchServiceError], expected: tuple[int, type[Exception]]
) -> None:
    error = kind("why", FieldError(reason="x", column="c", row=3))

    assert (error.status, str(error), error.errors[0].row) == (expected[0], "why", 3)
    assert isinstance(error, expected[1])
    assert len(error.title) > 3
    assert str(pickle.loads(pickle.dumps(error))) == "why"  # noqa: S301


def test_findings_become_the_detail() -> None:
    error = errors.Unprocessable.of(FieldError(reason="is odd", column="mask", row=3), FieldError(reason="empty"))

    assert str(error) == "row 3, mask: is odd; empty"


def test_waiting_is_told_in_whole_seconds() -> None:
    assert errors.TooManyRequests("slow down", retry_after_s=0.2).headers == {"Retry-After": "1"}
    assert errors.Unavailable("full", retry_after_s=7.6).headers == {"Retry-After": "8"}
    assert "WWW-Authenticate" in errors.Unauthorized("no key").headers
