from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from deployments import launcher
from deployments.config import AccessConfig
from deployments.exposure import Exposed, check
from deployments.plan import read_plan
from deployments.progress import StartError
from router.tenancy.database import connect, upgrade
from router.tenancy.directory import Directory
from router.tenancy.settings import Access
from router.tenancy.tenancy import Tenancy

OPEN = AccessConfig()
EVERYWHERE = ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "example.org", ""]


@pytest.fixture
def database(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/keys.db"
    upgrade(connect(url))
    return url


def listening(host: str) -> dict[str, object]:
    return {"http_options": {"host": host}}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_without_keys_a_server_on_this_machine_is_open_and_says_so(host: str) -> None:
    said = check(OPEN, listening(host), {})
    assert said is not None
    assert "No keys" in said


@pytest.mark.parametrize("host", EVERYWHERE)
def test_without_keys_it_listens_nowhere_else(host: str) -> None:
    with pytest.raises(Exposed, match="glimprouter keys create") as refused:
        check(OPEN, listening(host), {})
    assert "\n" not in str(refused.value)
    with pytest.raises(PermissionError, match="without keys"):
        Tenancy.open(Access(), host=host, places=1)


@pytest.mark.parametrize("host", EVERYWHERE)
def test_with_a_key_it_listens_anywhere(host: str, database: str) -> None:
    with pytest.raises(Exposed, match="no key that works"):
        check(OPEN, listening(host), {"GLIMPROUTER_DATABASE_URL": database})
    directory = Directory(connect(database))
    directory.create_key("acme", lifetime=timedelta(seconds=-1))
    with pytest.raises(Exposed, match="no key that works"):
        check(AccessConfig(database=database), listening(host), {})
    directory.create_key("acme")
    assert check(AccessConfig(database=database), listening(host), {}) is None


@pytest.mark.parametrize("name", ["RAY_SERVE_ENABLE_DIRECT_INGRESS", "RAY_SERVE_THROUGHPUT_OPTIMIZED"])
def test_ports_that_serve_opens_beside_its_own_count_too(name: str) -> None:
    with pytest.raises(Exposed, match=name):
        check(OPEN, listening("127.0.0.1"), {name: "1"})
    assert check(OPEN, listening("127.0.0.1"), {name: "0"})


def test_grpc_knows_no_keys(database: str) -> None:
    config = listening("127.0.0.1") | {"grpc_options": {"port": 9000, "grpc_servicer_functions": ["a.b"]}}
    for access in (OPEN, AccessConfig(database=database), AccessConfig(behind_gateway=True)):
        with pytest.raises(Exposed, match="gRPC"):
            check(access, config, {})


def test_behind_a_gateway_it_may_listen_anywhere() -> None:
    assert check(AccessConfig(behind_gateway=True), listening("0.0.0.0"), {})


def test_a_database_that_is_away_stops_the_start_without_telling_the_password() -> None:
    access = AccessConfig(database="postgresql://me:s3cret@127.0.0.1:1/none")
    with pytest.raises(Exposed, match="can't be used") as refused:
        check(access, listening("0.0.0.0"), {})
    assert "s3cret" not in str(refused.value) + repr(access) + repr(access.settings(max_waiting=1, max_wait_s=1))


def test_the_launcher_refuses_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIMPROUTER_DATABASE_URL", raising=False)
    pocket = Path(launcher.__file__).parent / "profiles" / "pocket.yaml"
    with pytest.raises(StartError, match="anyone could use a server on 0"):
        read_plan(pocket, host="0.0.0.0")
    assert "No keys" in str(read_plan(pocket).notice)


def test_every_application_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GLIMPROUTER_DATABASE_URL", raising=False)
    config = yaml.safe_load((Path(launcher.__file__).parent / "profiles" / "pocket.yaml").read_text())
    (gated,) = config["applications"]
    gated["args"]["access"] = {"behind_gateway": True}
    config["applications"].append(
        gated | {"name": "open", "route_prefix": "/open", "args": gated["args"] | {"access": {}}}
    )
    profile = tmp_path / "two.yaml"
    profile.write_text(yaml.safe_dump(config))
    with pytest.raises(StartError, match="anyone could use a server on 0"):
        read_plan(profile, host="0.0.0.0")
