"""The read client: what the service knows, as Arrow tables and plain dictionaries, for notebooks and scripts.

    import tailwatch_collectors as tailwatch
    runs = tailwatch.read("http://127.0.0.1:8321")
    table = runs.run("grpo-7b").series(["kl_k3", "ess_ratio"])     # pyarrow.Table; .to_pandas(), polars.from_arrow

Unlike the collector it raises, and waits: it is not meant for a training loop. No proxy or netrc is taken from the
environment, for the key goes to the URL that was named and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa

from tailwatch_collectors.errors import ConfigurationError, ReadError
from tailwatch_collectors.guard import shown
from tailwatch_collectors.settings import checked_key, checked_url
from tailwatch_collectors.wire import CONTENT_TYPE

TIMEOUT = 30.0
"""Longest wait for one network operation, seconds."""

_API = "/api/v1"
_PAGE = 500
_RUN_COLUMNS = ("run_id", "project", "name", "state", "created_at", "last_seen_at")


def read(url: str | None = None, *, api_key: str | None = None, timeout: float = TIMEOUT) -> Reader:
    """A reader of one service.

    Args:
        url: root of the service; default: TAILWATCH_URL.
        api_key: bearer key with the read scope; default: TAILWATCH_API_KEY.
        timeout: longest wait for one network operation, seconds.

    Raises:
        ConfigurationError: no URL, or one that cannot be used.
    """
    root = checked_url(url or os.environ.get("TAILWATCH_URL"))
    if root is None:
        raise ConfigurationError("no url: pass url=... to read or set TAILWATCH_URL")
    key = checked_key(api_key or os.environ.get("TAILWATCH_API_KEY"))
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    # No connection is kept between calls, so nothing has to be closed.
    limits = httpx.Limits(max_keepalive_connections=0)
    return Reader(httpx.Client(base_url=root + _API, headers=headers, timeout=timeout, trust_env=False, limits=limits))


class Reader:
    """Reads from one service."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def runs(self, *, project: str | None = None, archived: bool = False) -> pa.Table:
        """All runs, newest first: run_id, project, name, state, created_at, last_seen_at (Unix seconds).

        Args:
            project: only those of this project.
            archived: archived ones too.

        Raises:
            ReadError: no answer, or a refusal.
        """
        rows = list(self._runs(project=project, archived=archived))
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in _RUN_COLUMNS})

    def run(self, name: str, *, project: str | None = None) -> RunReader:
        """One run by name (or by its id).

        Args:
            name: as given to `connect`.
            project: needed where several projects have a run of that name.

        Raises:
            ReadError: there is no such run, or more than one; names those that there are.
        """
        found: list[dict[str, Any]] = []
        for row in self._runs(project=project, archived=True):
            if row["run_id"] == name:
                return RunReader(self, row)
            if row["name"] == name:
                found.append(row)
        if len(found) != 1:
            where = "" if project is None else f" in project {project!r}"
            if found:
                projects = ", ".join(sorted(repr(row["project"]) for row in found))
                raise ReadError(f"{len(found)} runs are called {name!r}: pass project=, one of {projects}")
            raise ReadError(f"no run is called {name!r}{where}", status=404)
        return RunReader(self, found[0])

    def _runs(self, *, project: str | None, archived: bool) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"limit": _PAGE, "archived": archived}
        if project is not None:
            query["project"] = project
        while True:
            page = self.get("/runs", query)
            yield from page["runs"]
            if page.get("next_cursor") is None:
                return
            query["cursor"] = page["next_cursor"]

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object at a path below `/api/v1`.

        Raises:
            ReadError: no answer, or a refusal.
        """
        answer = self._ask(path, query or {}, accept="application/json")
        try:
            content = answer.json()
        except ValueError as error:
            raise ReadError(f"{path}: the answer is not JSON: {error}", status=answer.status_code) from error
        if not isinstance(content, dict):
            raise ReadError(f"{path}: the answer is a JSON {type(content).__name__}", status=answer.status_code)
        return content

    def table(self, path: str, query: Mapping[str, Any] | None = None) -> pa.Table:
        """The Arrow stream at a path below `/api/v1`.

        Raises:
            ReadError: no answer, a refusal, or no Arrow stream.
        """
        answer = self._ask(path, query or {}, accept=CONTENT_TYPE)
        try:
            with pa.ipc.open_stream(pa.py_buffer(answer.content)) as stream:
                return stream.read_all()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ReadError(f"{path}: the answer is no Arrow stream: {error!s:.200}") from error

    def _ask(self, path: str, query: Mapping[str, Any], *, accept: str) -> httpx.Response:
        given = {name: _text(value) for name, value in query.items() if value is not None}
        try:
            answer = self._client.get(path, params=given, headers={"Accept": accept})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ReadError(f"{path}: {type(error).__name__}: {error!s:.200}") from error
        if answer.status_code != 200:
            raise ReadError(f"{path}: HTTP {answer.status_code}: {_reason(answer)}", status=answer.status_code)
        return answer


class RunReader:
    """Reads one run."""

    def __init__(self, reader: Reader, described: Mapping[str, Any]) -> None:
        self._reader = reader
        self._path = f"/runs/{quote(str(described['run_id']), safe='')}"
        self.run_id = str(described["run_id"])
        """The service's name for it."""
        self.project = str(described["project"])
        self.name = str(described["name"])

    def describe(self) -> dict[str, Any]:
        """The run with its attempts, its series, the names of its scalars, its steps and heartbeats.

        Raises:
            ReadError: as `series`.
        """
        return self._reader.get(self._path)

    def series(
        self,
        metrics: Sequence[str] | None = None,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
        stream: str | None = None,
        phase: str | None = None,
        update_index: int | None = None,
        attempt: int | None = None,
    ) -> pa.Table:
        """Metrics and scalars over steps.

        Args:
            metrics: canonical names, and scalars of this run; default: the headline.
            from_step: first step.
            to_step: last step.
            max_points: thin them: of neighbouring steps those stay at which a curve is smallest or largest.
            stream: default `train`.
            phase: default `rollout`, else `update`.
            update_index: optimiser step within the training step; default 0.
            attempt: default: all, each up to where the next one begins.

        Returns:
            Columns `step` and `attempt` (int64), and one float64 column per metric, null where it does not exist.

        Raises:
            ReadError: no answer, or a refusal, with the service's reasons: an unknown name among them.
        """
        query = {
            "metrics": None if metrics is None else ",".join(metrics),
            "from_step": from_step,
            "to_step": to_step,
            "max_points": max_points,
            "stream": stream,
            "phase": phase,
            "update_index": update_index,
            "attempt": attempt,
        }
        return self._reader.table(f"{self._path}/series", query)

    def step(self, step: int, **line: Any) -> dict[str, Any]:
        """One step in full: `metrics`, `missing` with reasons, `intervals`, `slices`, `findings`, coverage, ...

        Args:
            step: its number.
            **line: stream, phase, update_index, attempt, as for `series`.

        Raises:
            ReadError: as `series`.
        """
        return self._reader.get(f"{self._path}/steps/{step}", line)

    def tokens(self, step: int, *, context: int = 0, **line: Any) -> pa.Table:
        """The worst tokens of a step, largest log ratio first: log_ratio, infer_logprob, train_logprob, rank, part,
        row, position, token_id, seq_id.

        Args:
            step: its number.
            context: neighbours on each side, 0 .. 64, where the service keeps the tokens: column `context`.
            **line: stream, phase, update_index, attempt, as for `series`.

        Raises:
            ReadError: as `series`.
        """
        found = self._reader.get(f"{self._path}/steps/{step}/tokens", {"context": context or None, **line})
        return pa.Table.from_pylist(found["tokens"])

    def events(self, *, after: int = 0) -> list[dict[str, Any]]:
        """The event log, oldest first: seq, kind, step, payload, ...

        Args:
            after: number of the last event already known.

        Raises:
            ReadError: as `series`.
        """
        found: list[dict[str, Any]] = []
        while True:
            page = self._reader.get(f"{self._path}/events", {"after": after, "limit": 1000})["events"]
            found += page
            if len(page) < 1000:
                return found
            after = page[-1]["seq"]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reason(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        reasons = [str(one.get("reason")) for one in problem.get("errors") or ()]
        return shown("; ".join(reasons) or problem.get("detail") or problem.get("title") or problem)
    except (ValueError, AttributeError):
        return shown(answer.text[:200])
