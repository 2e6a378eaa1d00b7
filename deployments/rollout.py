"""Changes a running system to a profile without a failed request: `glimprouter rollout PROFILE`.

What the routers can take up while they run (their `user_config`, scaling) is taken up at once. Other changes of `args`
replace the replicas one by one. A new pair can't: a request ends on the pair it began with, so no replica of the old
one may go while a request needs it. It starts beside the old one as an application of its own, without a route; when
all its engines are warm the route is handed over; when no request is left in the old one's routers, that goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from deployments.attaching import attach
from deployments.config import AppConfig, problem
from deployments.plan import Plan, is_ours
from deployments.progress import StartError, failure

DRAINED_S = 1.0
"""How often the old routers are asked; twice in a row none may have a request, as one can be on its way to them."""

ANSWER_S = 10.0

Say = Callable[[str], None]


def roll_out(plan: Plan, say: Say) -> None:
    """Changes the system on this machine's (or `RAY_ADDRESS`') Ray cluster. Raises `StartError`."""
    client = _connect()
    new = _ours(plan.config["applications"], plan.profile)
    live = {
        name: told
        for name, told in client.get_serve_details()["applications"].items()
        # None of those that were started by hand, or are on their way out.
        if is_ours(told["deployed_app_config"] or {}) and told["route_prefix"] is not None
    }
    if len(live) != 1:
        raise StartError(f"{len(live)} applications of ours are serving there; exactly one can be changed")
    _wait_for_those_on_their_way_out(client, say)
    [(name, told)] = live.items()
    old = {key: value for key, value in told["deployed_app_config"].items() if value is not None}
    others = [one for one in plan.config["applications"] if one is not new]
    before, after = (AppConfig.read(one["args"]) for one in (old, new))
    pair = _pair(name) or before.fingerprint
    if pair == after.fingerprint:
        say(f"Updating {name} in place (pair {pair})")
        _deploy(client, plan, [new | {"name": name}, *others])
        _wait_until_running(name, say)
        return
    route = told["route_prefix"]
    incoming = new | {"name": f"glimpse-{after.fingerprint}"}
    say(f"Starting pair {after.fingerprint} beside {pair}")
    try:
        _deploy(client, plan, [old, incoming | {"route_prefix": None}, *others])
        _wait_until_running(incoming["name"], say)
    except BaseException:
        _deploy(client, plan, [old, *others])
        raise
    _deploy(client, plan, [old | {"route_prefix": None}, incoming | {"route_prefix": route}, *others])
    say(f"New requests go to {incoming['name']}; {name} ends those it has")
    _wait_until_drained(client, name, before.limits.deadline_s, say)
    _deploy(client, plan, [incoming | {"route_prefix": route}, *others])
    _wait_until_gone(client, name)
    say(f"{name} is gone")


def _wait_for_those_on_their_way_out(client: Any, say: Say) -> None:
    """What an earlier change that was broken off has left to end its requests would go with the next one."""
    for name, told in client.get_serve_details()["applications"].items():
        config = told["deployed_app_config"] or {}
        if is_ours(config) and told["route_prefix"] is None and told.get("status") == "RUNNING":
            _wait_until_drained(client, name, AppConfig.read(config["args"]).limits.deadline_s, say)


def _connect() -> Any:
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    attach()
    try:
        return _get_global_client(raise_if_no_controller_running=True)
    except RayServeException:
        raise StartError("Ray is up there, but no system is running on it") from None


def _pair(name: str) -> str | None:
    """The fingerprint that an application was started with: its folders may hold other weights by now. None if none of
    its routers answers, as when it is to be mended by this."""
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_app_handle(name).pair.remote().result(timeout_s=ANSWER_S))
    except (ray.exceptions.RayError, RayServeException, TimeoutError):
        return None


def _ours(applications: list[dict[str, Any]], profile: str) -> dict[str, Any]:
    found = [one for one in applications if is_ours(one)]
    if len(found) != 1:
        raise StartError(f"{profile}: {len(found)} applications are built by deployments.app; it needs exactly one")
    return found[0]


def _deploy(client: Any, plan: Plan, applications: list[Mapping[str, Any]]) -> None:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        client.deploy_apps(ServeDeploySchema.model_validate(plan.config | {"applications": applications}))
    except ValidationError as error:
        raise StartError(f"{plan.profile}: {problem(error)}") from None


def _wait_until_running(name: str, say: Say) -> None:
    from ray import serve

    told: dict[str, str] = {}
    while True:
        application = serve.status().applications[name]
        for deployment, overview in application.deployments.items():
            state = str(overview.status.value).lower()
            if told.get(deployment) != state:
                say(f"{name} {deployment} {state}")
                told[deployment] = state
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise StartError(f"{name} did not come up: {failure(application)}")
        if application.status == "RUNNING":
            return
        time.sleep(0.5)


def _wait_until_gone(client: Any, name: str) -> None:
    while name in client.get_serve_details()["applications"]:
        time.sleep(0.5)


def _wait_until_drained(client: Any, name: str, deadline_s: float, say: Say) -> None:
    """Returns once none of the application's routers has a request, at the latest when all must have ended."""
    until, quiet, told = time.monotonic() + deadline_s, 0, -1
    while quiet < 2 and time.monotonic() < until:
        left = _requests(client.get_serve_details()["applications"][name]["deployments"]["router"]["replicas"])
        quiet = quiet + 1 if left == 0 else 0
        if left != told:
            say(f"{name} has {left} requests left")
            told = left
        time.sleep(DRAINED_S)


def _requests(routers: list[Mapping[str, Any]]) -> int:
    import ray

    left = 0
    for router in routers:
        try:
            actor = ray.get_actor(router["actor_name"], namespace="serve")
            ongoing: Any = ray.get(actor.get_num_ongoing_requests.remote(), timeout=ANSWER_S)
            left += int(ongoing)
        except ray.exceptions.GetTimeoutError:
            left += 1  # too busy to answer
        except (ValueError, ray.exceptions.RayActorError):
            continue  # it has ended since
    return left
