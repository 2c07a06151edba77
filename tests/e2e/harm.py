"""What the harm tests and their report share: services that misbehave, trainers that are harmed, and the accounts.

A scenario is a function that takes a directory and returns an `Account` of what became of the training and of every
batch. `tests/e2e/test_harm.py` asserts on accounts, `scripts/harm_report.py` writes them as a table.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import trustme

from tailwatch_collectors.replay import Outcome, Replayer
from tailwatch_collectors.transport import HttpTransport
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database

TRAINER = Path(__file__).with_name("harm_trainer.py")
STEPS = 40
TOKENS = 5_000
PATIENCE_S = 120.0
QUEUE_BYTES = 2 * 2**20
SPOOL_BYTES = 8 * 2**20


# --- services ----------------------------------------------------------------------------------------------------


class Bad:
    """A listener that answers every connection in its own wrong way."""

    def __init__(
        self, behave: Callable[[socket.socket, threading.Event], None], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._behave = behave
        self._tls = tls
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._tls is None:
                self._behave(connection, self._stop)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secure:
                self._behave(secure, self._stop)

    def close(self) -> None:
        self._stop.set()
        # close() alone leaves an accept() that waits where it is.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def hang(connection: socket.socket, stop: threading.Event) -> None:
    """Accept, and never answer."""
    stop.wait(PATIENCE_S)


def slow(connection: socket.socket, stop: threading.Event) -> None:
    """Read a byte a second, and answer a byte a second."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    answer = iter(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"{" * 1_000_000)
    while not stop.wait(1.0):
        connection.recv(1)
        connection.send(bytes([next(answer)]))


def answering(head: str, body: str) -> Callable[[socket.socket, threading.Event], None]:
    """Read a request, answer it so, whatever it was."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.settimeout(5.0)
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        headers, _, rest = data.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in headers.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        while len(rest) < length:
            rest += connection.recv(65536)
        text = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        connection.sendall(text.encode())

    return behave


def plain(connection: socket.socket, stop: threading.Event) -> None:
    """No TLS where TLS was expected."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Real:
    """The real service on one port and one data directory, to be started and killed."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None:
            return
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
        environ |= {"TAILWATCH_LIMIT_REQUESTS_PER_MINUTE": "0", "TAILWATCH_LOG_LEVEL": "error"}
        command = [sys.executable, "-m", "tailwatch_service", "serve", "--port", str(self.port)]
        self._process = subprocess.Popen([*command, "--data-dir", str(self.data_dir)], env=environ)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            if self._process.poll() is not None:
                raise AssertionError("the service ended by itself")
            time.sleep(0.05)
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def stored(self, run: str) -> list[tuple[str, int, int]]:
        """(stream, step, part) of every stored batch of a run."""
        db = Database.open(None, data_dir=self.data_dir)
        batches, series, runs = schema.batches, schema.series, schema.runs
        joined = batches.join(series, series.c.series_id == batches.c.series_id)
        joined = joined.join(runs, runs.c.run_id == series.c.run_id)
        query = sa.select(series.c.stream, batches.c.step, batches.c.part).select_from(joined)
        try:
            with db.read() as connection:
                rows = connection.execute(query.where(runs.c.name == run)).all()
        finally:
            db.close()
        return sorted((str(row.stream), int(row.step), int(row.part)) for row in rows)


# --- trainers ----------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What became of one training and of its batches."""

    digest: str | None = None
    """Hash of all parameters at the end; None where the trainer was killed."""
    seconds: list[float] = field(default_factory=list)
    """Duration of every step."""
    recording: list[float] = field(default_factory=list)
    """Time each step spent in `record`."""
    closing: float = 0.0
    rss_bytes: int = 0
    spool_bytes: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    """What the collectors of forked workers counted."""
    status: int = 0
    """Exit status of the trainer."""
    replayed: Outcome | None = None
    """What a healthy service got out of the spool afterwards."""
    stored: list[tuple[str, int, int]] = field(default_factory=list)
    """(stream, step, part) of what the real service holds at the very end."""

    @property
    def step_ms(self) -> float:
        """Median step, milliseconds."""
        return 1000 * statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def accounted(self) -> bool:
        """Every item is sent, refused, dropped and counted, or on disk."""
        return all(map(_accounted, [self.stats, *self.workers]))


def _accounted(stats: dict[str, Any]) -> bool:
    settled = stats["sent"] + stats["duplicates"] + stats["rejected"] + sum(stats["dropped"].values())
    return bool(stats["recorded"] == settled + stats["queued"] + stats["spooled"])


def train(root: Path, *, url: str | None, connect: bool = True, **options: Any) -> Account:
    """Run a trainer to its end; its run is called like its directory."""
    with trainer(root, url=url, connect=connect, **options) as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
    return account(process.returncode, out)


@contextlib.contextmanager
def trainer(root: Path, *, url: str | None, connect: bool = True, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running trainer; killed where the block is left before its end."""
    given: dict[str, Any] = {"steps": STEPS, "tokens": TOKENS}
    collector = {
        "run": root.name,
        "session": options.pop("session", "launch"),
        "spool_dir": str(root / "spool"),
        "queue_bytes": QUEUE_BYTES,
        "spool_bytes": SPOOL_BYTES,
        "timeout": 2.0,
        "rank": 0,
        "world_size": 1,
    }
    if url is not None:
        collector["url"] = url
    collector |= options.pop("settings", {})
    within = options.pop("within", [])
    given |= {"connect": collector if connect else None, **options}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TAILWATCH_", "PYTEST_"))}
    process = subprocess.Popen(
        [*within, sys.executable, str(TRAINER), json.dumps(given)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()


def reached(process: subprocess.Popen[str], step: int) -> None:
    """Wait until a trainer has done a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if line == f"step {step}\n":
            return
    raise AssertionError(f"the trainer ended before step {step}")


def account(status: int, out: str) -> Account:
    """What a trainer said at its end."""
    last = out.strip().rpartition("\n")[2]
    if not last.startswith("{"):
        return Account(status=status)
    said = json.loads(last)
    said["stats"] = said["stats"] or {}
    workers = [json.loads(line.removeprefix("worker ")) for line in out.splitlines() if line.startswith("worker {")]
    return Account(status=status, workers=workers, **said)


def replay(root: Path, url: str) -> Outcome:
    """Send what is left on disk to a healthy service."""
    transport = HttpTransport(url=url, api_key=None)
    try:
        return Replayer(root / "spool", transport=transport, patience=30.0).run()
    finally:
        transport.close()


# --- scenarios ---------------------------------------------------------------------------------------------------

Scenario = Callable[[Path, Real], Account]
"""Of a directory, and of a healthy service that gets what is on disk afterwards."""


def _then_replayed(found: Account, root: Path, service: Real) -> Account:
    """The healthy service gets what is on disk, twice: the second time there is nothing left."""
    found.replayed = replay(root, service.url)
    assert replay(root, service.url) == Outcome()
    found.stored = service.stored(root.name)
    return found


def _nobody() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def healthy(root: Path, service: Real) -> Account:
    """The service is up."""
    found = train(root, url=service.url, close=30.0)
    found.stored = service.stored(root.name)
    return found


def down_at_connect(root: Path, service: Real) -> Account:
    """Nobody listens when the training starts, nor later; the spool is sent afterwards."""
    return _then_replayed(train(root, url=_nobody()), root, service)


def down_mid_run(root: Path, service: Real) -> Account:
    """The service is killed at a third of the run, and comes back before the end."""
    own = Real(root / "data")
    own.start()
    try:
        with trainer(root, url=own.url, pause=0.05, close=30.0) as process:
            reached(process, STEPS // 3)
            own.kill()
            reached(process, 2 * STEPS // 3)
            own.start()
            out, _ = process.communicate(timeout=PATIENCE_S)
        found = account(process.returncode, out)
        found.replayed = replay(root, own.url)
        found.stored = own.stored(root.name)
    finally:
        own.kill()
    return found


def down_forever_spool_full(root: Path, service: Real) -> Account:
    """Nobody ever listens, and the spool holds a quarter of what is recorded."""
    settings = {"spool_bytes": STEPS * TOKENS * 9 // 4}
    return _then_replayed(train(root, url=_nobody(), settings=settings), root, service)


def _bad(behave: Callable[[socket.socket, threading.Event], None], *, scheme: str = "http") -> Scenario:
    def run(root: Path, service: Real) -> Account:
        bad = Bad(behave)
        try:
            found = train(root, url=f"{scheme}://127.0.0.1:{bad.port}")
        finally:
            bad.close()
        return _then_replayed(found, root, service)

    return run


def untrusted(root: Path, service: Real) -> Account:
    """The service shows a certificate of an authority that nobody here knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    bad = Bad(plain, tls=context)
    try:
        found = train(root, url=f"https://127.0.0.1:{bad.port}")
    finally:
        bad.close()
    return _then_replayed(found, root, service)


def files_too_large(root: Path, service: Real) -> Account:
    """Nobody listens, and the kernel refuses to let a file grow beyond a few records."""
    return _then_replayed(train(root, url=_nobody(), file_bytes=100_000), root, service)


def can_mount() -> bool:
    """Whether this machine lets us mount a small file system, in a namespace of its own."""
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def disk_full(root: Path, service: Real) -> Account:
    """Nobody listens, and the spool's file system has room for a few records."""
    small = root / "small"
    small.mkdir()
    # The file system is gone with its namespace: what is on it is copied out after the trainer's end.
    script = (
        'mount -t tmpfs -o size=100k tmpfs "$SMALL" && "$@"; status=$?; '
        'df --output=avail "$SMALL" | tail -n 1 > "$SPOOL.left"; cp -a "$SMALL/." "$SPOOL"; exit $status'
    )
    within = ["env", f"SMALL={small}", f"SPOOL={root / 'spool'}"]
    within += ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    found = train(root, url=_nobody(), settings={"spool_dir": str(small)}, within=within)
    left = int((root / "spool.left").read_text())
    assert left < TOKENS * 9 // 1024, f"{left} kB were left: the disk was not full"
    shutil.rmtree(small)
    return _then_replayed(found, root, service)


def no_spool(root: Path, service: Real) -> Account:
    """Nobody listens, and nothing may be written to disk."""
    return train(root, url=_nobody(), settings={"spool_dir": "off"})


def killed(root: Path, service: Real) -> Account:
    """SIGKILL in the middle of a run that nobody listens to, then a restart that goes on where it was."""
    settings: dict[str, Any] = {"settings": {"url": None}}
    with trainer(root, url=None, pause=0.05, **settings) as process:
        reached(process, STEPS // 2 - 1)
        process.kill()
        process.wait(PATIENCE_S)
    found = train(root, url=service.url, first=STEPS // 2, session="restarted", close=30.0)
    found.stored = service.stored(root.name)
    found.digest = None  # a restart without a checkpoint is another training
    return found


def terminated(root: Path, service: Real) -> Account:
    """SIGTERM in the middle of an outage."""
    with trainer(root, url=_nobody(), pause=0.05) as process:
        reached(process, STEPS // 2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    return _then_replayed(Account(status=process.returncode), root, service)


def forked(root: Path, service: Real) -> Account:
    """Workers are forked in the middle of the run and record too."""
    found = train(root, url=service.url, fork_at=[5, 10, 15], close=30.0)
    return _then_replayed(found, root, service)


def thousand_threads(root: Path, service: Real) -> Account:
    """1,000 threads record at once."""
    return _then_replayed(train(root, url=service.url, threads=1000, close=5.0), root, service)


SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "healthy": ("service up", healthy),
    "down_at_connect": ("service down at connect, and forever", down_at_connect),
    "down_mid_run": ("service killed mid-run, back later", down_mid_run),
    "down_forever_spool_full": ("service down forever, spool too small", down_forever_spool_full),
    "no_spool": ("service down forever, no spool", no_spool),
    "hanging": ("service accepts and never answers", _bad(hang)),
    "slow": ("service reads and answers 1 byte/s", _bad(slow)),
    "errors": ("service answers 500", _bad(answering("500 Internal Server Error", "oops"))),
    "wrong_content": (
        "200 and HTML",
        _bad(answering("200 OK\r\nContent-Type: text/html", "<html>welcome</html>")),
    ),
    "wrong_json": (
        "200 and JSON of something else",
        _bad(answering("200 OK\r\nContent-Type: application/json", '{"run_id": "x", "status": "ok"}')),
    ),
    "tls": ("TLS handshake fails", _bad(plain, scheme="https")),
    "untrusted": ("certificate of an unknown authority", untrusted),
    "files_too_large": ("service down, files may not grow", files_too_large),
    "disk_full": ("service down, disk full", disk_full),
    "killed": ("trainer killed (SIGKILL), restarted", killed),
    "terminated": ("trainer gets SIGTERM", terminated),
    "forked": ("workers forked mid-run", forked),
    "thousand_threads": ("1,000 threads record at once", thousand_threads),
}
"""By key: the line of the report, and what is run."""
