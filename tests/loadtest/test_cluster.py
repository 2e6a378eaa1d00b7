from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.config import AppConfig
from loadtest.cluster import spread_out
from loadtest.command import PROFILE


def served() -> tuple[dict[str, Any], AppConfig]:
    config = spread_out(yaml.safe_load(PROFILE.read_text()), "10.99.0.1", 2)
    return config, AppConfig.model_validate(config["applications"][0]["args"])


def test_each_pool_asks_for_its_own_nodes() -> None:
    _, app = served()
    assert (app.small.resources, app.large.resources) == ({"small_pool": 1}, {"large_pool": 1})
    assert app.router.resources == {"router_pool": 1}
    assert (app.small.replicas, app.large.replicas) == (2, 2)


def test_clients_reach_the_head_alone() -> None:
    config, _ = served()
    schema = ServeDeploySchema.model_validate(config)
    assert (schema.http_options.host, schema.proxy_location) == ("10.99.0.1", "HeadOnly")


def test_the_profile_itself_is_left_alone() -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    spread_out(profile, "10.99.0.1", 2)
    assert profile == yaml.safe_load(PROFILE.read_text())
