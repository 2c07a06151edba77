"""docker-compose.yml, the Dockerfile and the first start, as far as they can be checked without a container engine.

The files are parsed and held against each other, and the commands in them are run against real binaries: the first
start and the service from this checkout, Prometheus and Alertmanager from the distribution's packages.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tailwatch_service.app import check_keys, create_app
from tailwatch_service.errors import SettingsError
from tailwatch_service.settings import Settings
from tailwatch_service.storage.database import Database

ROOT = Path(__file__).parents[2]
TEXT = ROOT.joinpath("docker-compose.yml").read_text(encoding="utf-8")
DOCKERFILE = ROOT.joinpath("Dockerfile").read_text(encoding="utf-8")
PATIENCE_S = 240.0
"""Longest wait for a process: the first start of the service compiles the kernel, a minute on a busy machine."""
SERVICES = ("first-start", "tailwatch", "prometheus", "alertmanager", "grafana")


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """What compose makes of `${NAME:-default}` in a parsed document."""
    if isinstance(value, dict):
        return {key: interpolated(one, environ) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, environ) for one in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{([A-Z_]+):-([^}]*)\}", lambda found: environ.get(found[1]) or found[2], value)


def composed(environ: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = interpolated(yaml.safe_load(TEXT), environ)
    return document


COMPOSE = composed({})


def mounts(service: str) -> Iterator[tuple[str, str, bool]]:
    """(source, target, whether it is read only) of every volume of a service."""
    for mount in COMPOSE["services"][service].get("volumes", ()):
        source, target, *mode = mount.split(":")
        yield source, target, mode == ["ro"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of every line of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_the_compose_specification_accepts_it() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec has no wheel for this Python")

    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(COMPOSE))

    assert sorted(parsed.service_names()) == sorted(SERVICES)
    with pytest.raises(ValueError, match="prots"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump({"services": {"a": {"image": "a", "prots": ["1:1"]}}}))


def test_every_variable_has_a_default_and_is_documented() -> None:
    code = yaml.safe_dump(yaml.safe_load(TEXT))  # without comments
    documented = ROOT.joinpath("docs", "deploy.md").read_text(encoding="utf-8")

    assert "$" not in yaml.safe_dump(COMPOSE)
    names = set(re.findall(r"\$\{([A-Z_]+):-", code))
    assert names
    assert {name for name in names if f"`{name}`" not in documented} == set()


def test_a_variable_replaces_its_default() -> None:
    services = composed({"PROMETHEUS_VERSION": "v9.9.9", "TAILWATCH_PUBLISH": "10.0.0.1:80"})["services"]

    assert services["prometheus"]["image"] == "prom/prometheus:v9.9.9"
    assert services["tailwatch"]["ports"] == ["10.0.0.1:80:8321"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_bounded_and_unprivileged(name: str) -> None:
    service = COMPOSE["services"][name]

    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
    assert int(service["user"].partition(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] == ("no" if name == "first-start" else "unless-stopped")
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(service)
    if name != "first-start":
        assert service["healthcheck"]["test"][0] == "CMD"


def test_ports_are_published_on_loopback_and_only_where_needed() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}

    assert published == {"tailwatch": ["127.0.0.1:8321:8321"], "grafana": ["127.0.0.1:3000:3000"]}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert COMPOSE["services"]["prometheus"]["networks"] == ["inside"]
    for name in published:
        assert "edge" in COMPOSE["services"][name]["networks"], "an internal network publishes no port"


def test_dependencies_wait_for_the_keys_and_for_health() -> None:
    services = COMPOSE["services"]

    assert services["tailwatch"]["depends_on"] == {"first-start": {"condition": "service_completed_successfully"}}
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            assert how["condition"] != "service_healthy" or "test" in services[other]["healthcheck"]


def test_everything_mounted_exists_and_every_volume_is_declared() -> None:
    used = set()
    for name in SERVICES:
        for source, target, read_only in mounts(name):
            assert target.startswith("/")
            if source.startswith("."):
                assert any(ROOT.joinpath(source).iterdir()), f"{name}: {source} is empty"
                assert read_only, f"{name} may write to the checkout"
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_secrets_reach_only_who_needs_them() -> None:
    where = {
        secret: sorted(name for name in SERVICES for source, _, _ in mounts(name) if source == secret)
        for secret in ("keys", "scrape-key", "grafana-password")
    }

    assert where == {
        "keys": ["first-start", "tailwatch"],
        "scrape-key": ["first-start", "prometheus"],
        "grafana-password": ["first-start", "grafana"],
    }
    for name in ("prometheus", "grafana"):
        assert COMPOSE["services"][name]["group_add"] == ["10001"], "secret files are readable by their group"
    assert "password" not in {key.lower() for key in re.findall(r"^\s+(\w+):", TEXT, flags=re.MULTILINE)}


def test_the_dockerfile_copies_what_exists_and_ends_unprivileged() -> None:
    found = instructions()
    copied = [shlex.split(rest)[:-1] for name, rest in found if name == "COPY" and "--from=" not in rest]
    sources = [source for words in copied for source in words if not source.startswith("--")]

    assert "service" in sources
    for source in sources:
        assert ROOT.joinpath(source).exists(), source
        assert f"!{source}" in ROOT.joinpath(".dockerignore").read_text().splitlines(), f"{source} is ignored"
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert bases == ["python:${PYTHON}"] * 2
    (pinned,) = [rest for name, rest in found if name == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.12\.\d+-slim-\w+", pinned)
    assert pinned.removeprefix("PYTHON=") == COMPOSE["services"]["tailwatch"]["build"]["args"]["PYTHON"]


def test_the_image_holds_no_torch_and_one_version() -> None:
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "install" in rest and "pip" in rest]
    version = re.search(r'version="([\d.]+)"', DOCKERFILE)

    assert "-c constraints.txt" in install
    assert not {"alp", "torch", "./alp"} & set(install.split())
    assert version is not None
    assert f'version = "{version[1]}"' in ROOT.joinpath("service", "pyproject.toml").read_text()
    assert COMPOSE["services"]["tailwatch"]["image"] == f"tailwatch:{version[1]}"


def test_grafana_provisioning_fits_what_is_mounted() -> None:
    provisioning = ROOT / "dashboards" / "grafana" / "provisioning"
    (source,) = yaml.safe_load(provisioning.joinpath("datasources", "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load(provisioning.joinpath("dashboards", "tailwatch.yaml").read_text())["providers"]
    targets = {target: source for source, target, _ in mounts("grafana")}
    grafana = COMPOSE["services"]["grafana"]

    assert source["url"] == "http://prometheus:9090"
    assert "--web.listen-address=0.0.0.0:9090" in COMPOSE["services"]["prometheus"]["command"]
    dashboards = ROOT / targets[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert dashboards.joinpath(home.name).exists()
    assert targets["/etc/grafana/provisioning"] == "./dashboards/grafana/provisioning"
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/tailwatch/grafana/password"


def environment(data_dir: Path) -> dict[str, str]:
    """What the Dockerfile and compose set, on a directory of the test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
    (given,) = [rest for name, rest in instructions() if name == "ENV"]
    image = dict(word.split("=", 1) for word in shlex.split(given) if not word.startswith(("PATH=", "TAILWATCH_")))
    service = {name: str(value) for name, value in COMPOSE["services"]["tailwatch"]["environment"].items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **image, **service, "PATH": path, "TAILWATCH_DATA_DIR": str(data_dir)}


def first_start(place: Path, data_dir: Path) -> str:
    script = ROOT / "scripts" / "first_start.sh"
    done = subprocess.run(
        ["/bin/sh", str(script), str(place)],
        env=environment(data_dir), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def secrets(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text().strip() for path in sorted(place.glob("*/*"))}


@pytest.mark.slow
def test_the_first_start_makes_every_secret_once(tmp_path: Path) -> None:
    place, data = tmp_path / "run", tmp_path / "data"

    printed = first_start(place, data)
    made = secrets(place)
    assert sorted(made) == ["grafana/password", "keys/first", "scrape/key"]
    assert all(len(secret) >= 32 for secret in made.values())
    assert not any(secret in printed for secret in made.values()), "logs are no place for secrets"
    assert f"cat {place}/keys/first" in printed
    for name in made:
        assert stat.S_IMODE(place.joinpath(name).stat().st_mode) == 0o440

    first_start(place, data)
    assert secrets(place) == made

    place.joinpath("keys", "first").unlink()
    place.joinpath("scrape", "key").unlink()
    first_start(place, data)
    again = secrets(place)
    assert "keys/first" not in again, "whoever stored the key elsewhere removed the file on purpose"
    assert again["scrape/key"] != made["scrape/key"]
    assert again["grafana/password"] == made["grafana/password"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_keys_open_the_service_that_others_can_reach(tmp_path: Path) -> None:
    place, data = tmp_path / "run", tmp_path / "data"
    settings = Settings(host="0.0.0.0", data_dir=data)
    db = Database.open(None, data_dir=data)
    with pytest.raises(SettingsError, match="no API key"):
        check_keys(db, settings)
    db.close()
    first_start(place, data)
    key = {name: {"Authorization": f"Bearer {secret}"} for name, secret in secrets(place).items()}

    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tailwatch:8321") as client,
    ):
        run = {"project": "p", "name": "r"}
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=key["scrape/key"])).status_code == 200
        assert (await client.post("/api/v1/runs", json=run, headers=key["scrape/key"])).status_code == 403
        assert (await client.post("/api/v1/runs", json=run, headers=key["keys/first"])).status_code == 201


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(command: list[str], *, ready: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A process that answers 200 at `ready`, ended on the way out."""
    process = subprocess.Popen(command, env=env)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(ready):
            assert process.poll() is None, f"{command[0]} ended by itself"
            assert time.monotonic() < deadline, f"{command[0]} is not ready"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        code = process.wait(PATIENCE_S)
    assert code == 0, f"{command[0]} ended with {code}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def binary(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


def command_of(service: str, *replaced: tuple[str, str]) -> list[str]:
    """The arguments in the compose file, with the paths and ports of the test."""
    arguments = [str(word) for word in COMPOSE["services"][service]["command"]]
    for old, new in replaced:
        assert any(old in word for word in arguments), f"{service}: {old}"
        arguments = [word.replace(old, new) for word in arguments]
    return arguments


def health_of(service: str, port: int) -> str:
    """The address that a health check asks, at another port."""
    (url,) = re.findall(
        r"http://127\.0\.0\.1:\d+(/[\w/-]*)", " ".join(COMPOSE["services"][service]["healthcheck"]["test"])
    )
    return f"http://127.0.0.1:{port}{url}"


@pytest.mark.slow
def test_the_commands_of_the_compose_file_make_a_stack_that_works(tmp_path: Path) -> None:
    prometheus, alertmanager = binary("prometheus"), binary("alertmanager", "prometheus-alertmanager")
    place, data, etc = tmp_path / "run", tmp_path / "data", tmp_path / "etc"
    first_start(place, data)
    ports = {name: free_port() for name in ("tailwatch", "prometheus", "alertmanager")}
    for name in ("prometheus", "alertmanager"):
        shutil.copytree(ROOT / "dashboards" / name, etc / name)
    config = etc / "prometheus" / "prometheus.yml"
    text = config.read_text(encoding="utf-8")
    for old, new in (
        ("/run/tailwatch/scrape/key", str(place / "scrape" / "key")),
        ("tailwatch:8321", f"127.0.0.1:{ports['tailwatch']}"),
        ("alertmanager:9093", f"127.0.0.1:{ports['alertmanager']}"),
    ):
        assert old in text, f"prometheus.yml does not name {old}"
        text = text.replace(old, new)
    config.write_text(re.sub(r"scrape_interval: \w+", "scrape_interval: 1s", text), encoding="utf-8")

    serve = command_of("tailwatch", ("0.0.0.0", "127.0.0.1"), ("8321", str(ports["tailwatch"])))
    watch = command_of(
        "prometheus",
        ("0.0.0.0:9090", f"127.0.0.1:{ports['prometheus']}"),
        ("/etc/prometheus", str(etc / "prometheus")),
        ("path=/prometheus", f"path={tmp_path / 'tsdb'}"),
    )
    alert = command_of(
        "alertmanager",
        ("0.0.0.0:9093", f"127.0.0.1:{ports['alertmanager']}"),
        ("/etc/alertmanager", str(etc / "alertmanager")),
        ("path=/alertmanager", f"path={tmp_path / 'alerts'}"),
    )
    ready = {name: health_of(name, port) for name, port in ports.items()}
    with (
        started([sys.executable, "-m", "tailwatch_service", *serve], ready=ready["tailwatch"], env=environment(data)),
        started([alertmanager, *alert], ready=ready["alertmanager"]),
        started([prometheus, *watch], ready=ready["prometheus"]),
    ):
        api = f"http://127.0.0.1:{ports['prometheus']}/api/v1"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            targets = httpx.get(f"{api}/targets").json()["data"]["activeTargets"]
            managers = httpx.get(f"{api}/alertmanagers").json()["data"]["activeAlertmanagers"]
            seen = [(target["labels"]["job"], target["health"]) for target in targets]
            if ("tailwatch", "up") in seen and managers:
                break
            assert time.monotonic() < deadline, f"{seen}, {managers}, {[target['lastError'] for target in targets]}"
            time.sleep(0.3)
        assert httpx.get(f"{api}/rules").json()["data"]["groups"], "no rules are loaded"
