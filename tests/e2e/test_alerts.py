"""A spike from the recording to a firing and then resolved alert in a real Prometheus and a real Alertmanager.

The healthy recording is replayed twice, once with the log-probs of four steps shifted; the negative control beside it.
The service sends to Alertmanager and to a webhook itself, Prometheus scrapes the service and evaluates the generated
rules. Everything on loopback; only processes started here are stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tailwatch_service.alerts import prometheus
from tailwatch_service.replay import open_recording, replay
from tests.service.alerts.receivers import Received, receiver
from tests.service.served import serve

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "lab" / "recordings"
BINARIES = ("prometheus", "prometheus-alertmanager")
SPIKE = range(30, 34)
WAIT_S = 40.0

T = TypeVar("T")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in BINARIES),
        reason="needs Debian's prometheus, prometheus-alertmanager",
    ),
]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def started(command: list[str], *, ready: str, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or answers(ready), what=ready)
            assert process.poll() is None, log.read_text()[-2000:]
            yield
        finally:
            process.terminate()
            process.wait(20.0)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def until(look: Callable[[], T], *, what: str, timeout_s: float = WAIT_S) -> T:
    """The first truthy result."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.2)
    return found


def planted(source: Path, target: Path) -> Path:
    """The recording with a spike: the training log-probs of four steps are 0.35 lower."""
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, file.schema_arrow) as writer:
        metadata = file.metadata.metadata
        for index in range(file.num_row_groups):
            table = file.read_row_group(index)
            if table["step"][0].as_py() in SPIKE:
                column = table["train_logprobs"].combine_chunks()
                lower = pc.subtract(column.values, pa.scalar(0.35, pa.float32()))
                shifted = pa.ListArray.from_arrays(column.offsets, lower)
                position = table.column_names.index("train_logprobs")
                table = table.set_column(position, table.schema.field(position), shifted.cast(column.type))
            writer.write_table(table)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k != b"ARROW:schema"})
    return target


def names(alerts: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(alertname, run, who says so)."""
    return {(a["labels"]["alertname"], a["labels"].get("run", ""), a["labels"]["service"]) for a in alerts}


def hooked(got: Received) -> list[tuple[str, str, str]]:
    return [
        (alert["labels"]["alertname"], alert["labels"]["run"], alert["status"])
        for body in list(got.bodies)
        for alert in body["alerts"]
    ]


def test_a_planted_spike_reaches_prometheus_and_alertmanager_and_ends_there(tmp_path: Path) -> None:
    spiked = planted(RECORDINGS / "healthy.parquet", tmp_path / "spiked.parquet")
    manager_port, prometheus_port = free_port(), free_port()
    manager, metrics = f"http://127.0.0.1:{manager_port}", f"http://127.0.0.1:{prometheus_port}"
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(receiver())  # what Tailwatch itself tells
        relayed = stack.enter_context(receiver())  # what Alertmanager tells its own receiver
        manager_command = manager_files(tmp_path, relayed.url, port=manager_port)
        stack.enter_context(started(manager_command, ready=f"{manager}/-/ready", log=tmp_path / "alertmanager.log"))
        where = {"alert_webhook_url": f"{told.url}/hook", "alertmanager_url": manager, "alerts_allow_private": True}
        served = stack.enter_context(serve(tmp_path / "data", sweep_interval_s=0.5, **where))
        command = prometheus_files(tmp_path, service=served.url, manager=manager, port=prometheus_port)
        stack.enter_context(started(command, ready=f"{metrics}/-/ready", log=tmp_path / "prometheus.log"))

        for name in ("healthy", "control"):
            replay(open_recording(RECORDINGS / f"{name}.parquet"), url=served.url)
        replay(open_recording(RECORDINGS / "collapsing.parquet"), url=served.url)

        def in_prometheus() -> set[tuple[str, str, str]]:
            found = httpx.get(f"{metrics}/api/v1/alerts").json()["data"]["alerts"]
            return names([alert for alert in found if alert["state"] == "firing"])

        def in_manager() -> set[tuple[str, str, str]]:
            return names(httpx.get(f"{manager}/api/v2/alerts?active=true&inhibited=true").json())

        # Slow enough that Prometheus, which looks once a second, sees the spike while it lasts.
        recording = open_recording(spiked)
        seen: dict[str, set[tuple[str, str, str]]] = {"prometheus": set(), "manager": set()}

        def look(_progress: object) -> None:
            seen["prometheus"] |= in_prometheus()
            seen["manager"] |= in_manager()

        replay(recording, url=served.url, run="spiked", steps_per_second=4.0, progress=look)
        ended = httpx.get(f"{served.url}/api/v1/alerts?state=all").json()["alerts"]
        spikes = [alert for alert in ended if (alert["run"], alert["rule"]) == ("spiked", "KlSpike")]

        assert [(a["fired_step"], a["state"], a["resolved_reason"]) for a in spikes] == [(31, "resolved", "cleared")]
        assert spikes[0]["resolved_step"] == 38
        assert ("KlSpike", "spiked", "prometheus") in seen["prometheus"]
        assert ("KlSpike", "spiked", "tailwatch") in seen["manager"]
        until(lambda: ("KlSpike", "spiked", "resolved") in hooked(told), what="resolved at the webhook")
        assert hooked(told).count(("KlSpike", "spiked", "firing")) == 1
        assert hooked(told).count(("KlSpike", "spiked", "resolved")) == 1
        until(lambda: not in_prometheus(), what="end in Prometheus")
        until(lambda: not {n for n in in_manager() if n[2] == "tailwatch"}, what="end in Alertmanager")
        until(lambda: ("KlSpike", "spiked", "resolved") in hooked(relayed), what="resolved through Alertmanager")

        rules = {alert["run"]: alert["rule"] for alert in ended}
        assert "healthy" not in rules
        assert "control" not in rules
        assert {(a["rule"], a["fired_step"]) for a in ended if a["run"] == "collapsing"} == {
            ("KlSpike", 8),
            ("MismatchK3High", 48),
        }
        assert not {run for _, run, _ in [*hooked(told), *hooked(relayed)]} & {"healthy", "control"}
        page = httpx.get(f"{served.url}/api/v1/runs/{spikes[0]['run_id']}/findings").json()["findings"]
        transitions = [(f["step"], f["transition"]) for f in page if f["rule"] == "KlSpike"]
        assert (31, "fired") in transitions
        assert (38, "cleared") in transitions


def manager_files(folder: Path, receiver_url: str, *, port: int) -> list[str]:
    """The committed example with a receiver and without its patience; the command that runs it."""
    text = prometheus.alertmanager_config()
    for slow, quick in (("group_wait: 10s", "group_wait: 0s"), ("group_interval: 1m", "group_interval: 1s")):
        assert slow in text
        text = text.replace(slow, quick)
    hook = f"\n    webhook_configs:\n      - {{url: '{receiver_url}/am', send_resolved: true}}"
    for name in ("- name: default", "- name: page"):
        assert name in text
        text = text.replace(name, name + hook)
    folder.joinpath("alertmanager.yml").write_text(text)
    return [
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]


def prometheus_files(folder: Path, *, service: str, manager: str, port: int) -> list[str]:
    """The committed example on these addresses, looking every second; the command that runs it."""
    text = prometheus.scrape_config()
    folder.joinpath("tailwatch.rules.yml").write_text(prometheus.rule_file())
    folder.joinpath("key").write_text("none")
    for example, here in (
        ("15s", "1s"),
        ("alertmanager:9093", manager.removeprefix("http://")),
        ("tailwatch:8321", service.removeprefix("http://")),
        ("/run/tailwatch/scrape/key", str(folder / "key")),
    ):
        assert example in text
        text = text.replace(example, here)
    folder.joinpath("prometheus.yml").write_text(text)
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
