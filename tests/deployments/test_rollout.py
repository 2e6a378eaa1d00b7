"""What a rollout tells Serve to do, in which order; a served one is in tests/e2e/test_drafting.py."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import rollout
from deployments.config import AppConfig
from deployments.plan import Plan, read_plan
from deployments.progress import StartError

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "deployments" / "profiles" / "pocket.yaml"


class Cluster:
    """Stands in for Serve's client: remembers every configuration it was given as (name, route) pairs."""

    def __init__(self, application: dict[str, Any]) -> None:
        self.deployed: list[list[tuple[str, str | None]]] = []
        self.configs: list[Any] = []
        self.running = [application]
        self.others: dict[str, Any] = {}

    def get_serve_details(self) -> dict[str, Any]:
        told = {
            one["name"]: {
                "deployed_app_config": one,
                "route_prefix": one.get("route_prefix", "/"),
                "deployments": {"router": {"replicas": []}},
            }
            for one in self.running
        }
        return {"applications": told | self.others}

    def deploy_apps(self, config: Any) -> None:
        self.configs.append(config)
        self.deployed.append([(one.name, one.route_prefix) for one in config.applications])
        self.running = [one.model_dump(exclude_unset=True) for one in config.applications]


@pytest.fixture
def plan() -> Plan:
    return read_plan(POCKET)


@pytest.fixture
def cluster(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(plan.config["applications"][0])
    monkeypatch.setattr(rollout, "_connect", lambda: cluster)
    monkeypatch.setattr(rollout, "_wait_until_running", lambda name, say: None)
    monkeypatch.setattr(rollout, "DRAINED_S", 0.0)
    started = AppConfig.read(cluster.running[0]["args"]).fingerprint
    monkeypatch.setattr(rollout, "_pair", lambda name: started)
    return cluster


def profile(folder: Path, **changes: Any) -> Path:
    config = yaml.safe_load(POCKET.read_text())
    config["applications"][0] |= changes.pop("application", {})
    for pool, change in changes.items():
        config["applications"][0]["args"][pool] |= change
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_those_whom_a_broken_off_change_has_left_end_their_requests_first(
    cluster: Cluster, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = {"deployed_app_config": plan.config["applications"][0], "route_prefix": None, "status": "RUNNING"}
    cluster.others["earlier"] = draining | {"deployments": {"router": {"replicas": []}}}
    waited: list[tuple[str, int]] = []
    drained = rollout._wait_until_drained
    monkeypatch.setattr(
        rollout,
        "_wait_until_drained",
        lambda client, name, *rest: (waited.append((name, len(cluster.deployed))), drained(client, name, *rest)),
    )
    rollout.roll_out(read_plan(profile(tmp_path)), lambda line: None)
    assert waited == [("earlier", 0)]


def test_the_same_pair_is_updated_in_place(cluster: Cluster, tmp_path: Path) -> None:
    tuned = {"deployments": [{"name": "router", "user_config": {"threshold": 1.5}}]}
    rollout.roll_out(read_plan(profile(tmp_path, application=tuned)), lambda line: None)
    assert cluster.deployed == [[("glimpse", "/")]]
    assert cluster.configs[0].applications[0].deployments[0].user_config == {"threshold": 1.5}


def test_a_new_pair_gets_the_route_only_beside_the_old_one_and_the_old_one_goes_last(
    cluster: Cluster, tmp_path: Path
) -> None:
    rollout.roll_out(read_plan(profile(tmp_path, small={"dtype": "bfloat16"})), lambda line: None)
    staged, switched, left = cluster.deployed
    ((old, route), (new, none)) = staged
    assert (old, route, none) == ("glimpse", "/", None)
    assert switched == [(old, None), (new, "/")]
    assert left == [(new, "/")]


def test_other_weights_in_the_same_folders_are_another_pair(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "_pair", lambda name: "0123456789abcdef")
    rollout.roll_out(read_plan(profile(tmp_path)), lambda line: None)
    assert [len(applications) for applications in cluster.deployed] == [2, 2, 1]


def test_one_whose_routers_do_not_answer_can_be_mended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "_pair", lambda name: None)
    rollout.roll_out(read_plan(profile(tmp_path)), lambda line: None)
    assert cluster.deployed == [[("glimpse", "/")]]


def test_an_application_that_was_started_by_hand_is_none_of_ours(cluster: Cluster, tmp_path: Path) -> None:
    cluster.others = {"theirs": {"deployed_app_config": None, "route_prefix": "/theirs", "deployments": {}}}
    rollout.roll_out(read_plan(profile(tmp_path)), lambda line: None)
    assert cluster.deployed == [[("glimpse", "/")]]


def test_a_pair_that_does_not_come_up_leaves_the_old_one_as_it_was(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, say: rollout.Say) -> None:
        raise StartError("no GPU")

    monkeypatch.setattr(rollout, "_wait_until_running", fails)
    with pytest.raises(StartError, match="no GPU"):
        rollout.roll_out(read_plan(profile(tmp_path, small={"dtype": "bfloat16"})), lambda line: None)
    assert cluster.deployed[-1] == [("glimpse", "/")]


@pytest.mark.parametrize("bad", [{"threshold": -1}, {"thresold": 1}, {"answer_by": "both"}])
def test_a_bad_user_config_is_one_line_that_names_the_field(tmp_path: Path, bad: dict[str, Any]) -> None:
    tuned = {"deployments": [{"name": "router", "user_config": bad}]}
    with pytest.raises(StartError, match=rf"router: user_config\.{next(iter(bad))}: "):
        read_plan(profile(tmp_path, application=tuned))
