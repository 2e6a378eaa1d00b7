"""What every overlay must be, whatever else it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import launcher
from deployments.config import AppConfig

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("router", "small", "large")


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return only(documents, "RayService")["spec"]["rayClusterConfig"]


def groups(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster(documents)["workerGroupSpecs"]}


def application(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = yaml.safe_load(only(documents, "RayService")["spec"]["serveConfigV2"])["applications"]
    return found


def deployments(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in application(documents)["deployments"]}


def pod_specs(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    templates = [cluster(documents)["headGroupSpec"], *groups(documents).values()]
    templates += [document["spec"] for document in documents if document["kind"] in ("StatefulSet", "Deployment")]
    return [template["template"]["spec"] for template in templates]


def seconds(duration: str) -> float:
    scale = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * scale[unit] for number, unit in re.findall(r"(\d+)(ms|h|m|s)", duration))


def walk(node: Any) -> Any:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_passes_every_schema(overlay, problems):
    assert problems(overlay) == []


def test_is_all_in_one_namespace(overlay):
    namespace = only(overlay, "Namespace")["metadata"]["name"]
    assert {one["metadata"].get("namespace") for one in overlay if one["kind"] != "Namespace"} == {namespace}


def test_leaves_probes_to_the_operator(overlay):
    for pod in [cluster(overlay)["headGroupSpec"], *groups(overlay).values()]:
        for container in pod["template"]["spec"]["containers"]:
            assert not {"livenessProbe", "readinessProbe", "startupProbe"} & container.keys()


def test_scales_with_the_second_autoscaler(overlay):
    assert cluster(overlay)["enableInTreeAutoscaling"] is True
    assert cluster(overlay)["autoscalerOptions"]["version"] == "v2"


def test_survives_its_head(overlay):
    redis = cluster(overlay)["gcsFaultToleranceOptions"]
    host, port = redis["redisAddress"].split(":")
    (service,) = (one for one in kind(overlay, "Service") if one["metadata"]["name"] == host)
    assert service["spec"]["ports"][0]["port"] == int(port)
    assert set(redis["redisPassword"]) == {"valueFrom"}


def test_outlasts_the_longest_stream(overlay):
    """Whatever stands in a stream's way waits longer than a request may take."""
    service = only(overlay, "RayService")["spec"]
    deadline = AppConfig.model_validate(application(overlay)["args"]).limits.deadline_s
    waits = [service["rayClusterDeletionDelaySeconds"], deployments(overlay)["router"]["graceful_shutdown_timeout_s"]]
    for route in kind(overlay, "HTTPRoute"):
        waits += [seconds(wait) for rule in route["spec"]["rules"] for wait in rule["timeouts"].values()]
    for ingress in kind(overlay, "Ingress"):
        annotations = ingress["metadata"]["annotations"]
        waits += [int(value) for key, value in annotations.items() if key.endswith("-timeout")]
        assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    for pod in pod_specs(overlay):
        for container in pod["containers"]:
            if hook := container.get("lifecycle", {}).get("preStop"):
                nap = int(hook["exec"]["command"][1])
                assert pod["terminationGracePeriodSeconds"] > nap
                waits.append(nap)
    assert len(waits) >= 4
    assert min(waits) > deadline


def test_has_one_way_in_and_it_leads_to_the_operators_service(overlay):
    backend = f"{only(overlay, 'RayService')['metadata']['name']}-serve-svc"
    ways = kind(overlay, "HTTPRoute") + kind(overlay, "Ingress")
    assert len(ways) == 1
    found = [node for node in walk(ways[0]["spec"]) if isinstance(node, dict) and node.get("name") == backend]
    assert found
    for node in found:
        assert node["port"] in (8000, {"number": 8000})


def test_replicas_fit_their_own_group_and_no_other(overlay):
    """By what Ray's own autoscaler reads from the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "test", "namespace": "test"}, "spec": cluster(overlay)}
    )
    offered = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert set(offered) == {"headgroup", *GROUPS}
    args = AppConfig.model_validate(application(overlay)["args"])
    demands = {
        name: {"CPU": pool.cpus, "GPU": pool.gpus or 0, **pool.resources}
        for name, pool in (("small", args.small), ("large", args.large))
    }
    options = deployments(overlay)["router"]["ray_actor_options"]
    assert options["num_cpus"] == args.router.cpus
    demands["router"] = {"CPU": options["num_cpus"], **options["resources"]}
    for name, demand in demands.items():
        fitting = {
            group for group, have in offered.items() if all(have.get(kind, 0) >= n for kind, n in demand.items())
        }
        assert fitting == {name}


def test_groups_grow_as_far_as_their_pools(overlay):
    assert deployments(overlay).keys() == set(GROUPS)
    for name, deployment in deployments(overlay).items():
        group, scale = groups(overlay)[name], deployment["autoscaling_config"]
        assert group["minReplicas"] <= scale["min_replicas"]
        assert group["maxReplicas"] >= scale["max_replicas"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_scaling_can_change_without_a_restart(overlay):
    """Serve replaces every replica when its version of the application changes."""
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    def version(change: Callable[[dict[str, Any]], None]) -> str:
        changed = copy.deepcopy(application(overlay))
        change(changed)
        return get_app_code_version(ServeApplicationSchema.model_validate(changed))

    def wider(application: dict[str, Any]) -> None:
        for deployment in application["deployments"]:
            deployment["autoscaling_config"]["max_replicas"] += 1

    as_it_is = version(lambda application: None)
    assert version(wider) == as_it_is
    assert version(lambda application: application["args"]["routing"].update(threshold=0.9)) != as_it_is


def test_gpus_are_asked_for_as_offered(overlay):
    for group in groups(overlay).values():
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"].get("nvidia.com/gpu") == group["resources"].get("GPU")
        assert int(resources["limits"]["cpu"]) == int(group["resources"]["CPU"])


def test_object_store_is_as_small_as_the_launchers(overlay):
    for group in [cluster(overlay)["headGroupSpec"], *groups(overlay).values()]:
        assert group["rayStartParams"]["object-store-memory"] == str(launcher.HOPS_STORE_BYTES)


def test_pods_are_restricted(overlay):
    """What the namespace's `restricted` level asks for, and requests for what they need."""
    assert only(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pod_specs(overlay):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(
            set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "configMap"}
            for volume in pod.get("volumes", [])
        )
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_secrets_are_only_referred_to(overlay):
    assert not kind(overlay, "Secret")
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for node in walk(overlay):
        if isinstance(node, dict) and (reference := node.get("secretKeyRef")):
            created = re.search(
                rf"kubectl create secret generic {reference['name']}\b.*--from-literal={reference['key']}=", runbook
            )
            assert created, f"the runbook does not say how to create {reference}"
        if isinstance(node, dict) and re.search(r"password|token|secret", str(node.get("name", "")), re.IGNORECASE):
            assert "value" not in node


def test_only_the_ingress_reaches_the_api(overlay):
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in kind(overlay, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    everybody = [name for name, spec in policies.items() for rule in spec.get("ingress", []) if not rule.get("from")]
    assert everybody == ["gateway-proxies"]
    from_outside = [
        (port["port"], peer["namespaceSelector"])
        for spec in policies.values()
        for rule in spec.get("ingress", [])
        for peer in rule.get("from", [])
        if "namespaceSelector" in peer
        for port in rule["ports"]
    ]
    assert {port for port, _ in from_outside} <= {8000, 8265, 8080, 44217, 44227}
    assert [peer for port, peer in from_outside if port == 8000] == [
        {"matchLabels": {"glimprouter.dev/ingress": "true"}}
    ]
    (dashboard,) = (
        peer
        for spec in policies.values()
        for rule in spec.get("ingress", [])
        if {"protocol": "TCP", "port": 8265} in rule.get("ports", [])
        for peer in rule["from"]
    )
    assert dashboard["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


def test_a_gateways_proxies_beside_it_are_let_through(overlay):
    """Where a controller runs them in the Gateway's namespace, they carry Gateway API's label."""
    proxies = {"matchExpressions": [{"key": "gateway.networking.k8s.io/gateway-name", "operator": "Exists"}]}
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in kind(overlay, "NetworkPolicy")}
    assert policies["gateway-proxies"] == {"podSelector": proxies, "policyTypes": ["Ingress"], "ingress": [{}]}
    (rule,) = policies["api-for-the-ingress"]["ingress"]
    assert {"podSelector": proxies} in rule["from"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]


def test_monitors_scrape_ports_that_exist(overlay):
    named = {port["name"] for pod in pod_specs(overlay) for one in pod["containers"] for port in one.get("ports", [])}
    for monitor in kind(overlay, "PodMonitor"):
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= named


def test_budgets_select_a_group_and_leave_it_room(overlay):
    for budget in kind(overlay, "PodDisruptionBudget"):
        assert isinstance(budget["spec"]["minAvailable"], int)
        labels = budget["spec"]["selector"]["matchLabels"]
        chosen = [
            group
            for group in groups(overlay).values()
            if labels.items() <= group["template"]["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1
        assert chosen[0]["minReplicas"] > budget["spec"]["minAvailable"]


def test_every_pod_runs_the_overlays_image(overlay):
    images = {
        one["image"]
        for group in [cluster(overlay)["headGroupSpec"], *groups(overlay).values()]
        for one in group["template"]["spec"]["containers"]
    }
    assert len(images) == 1
    assert images != {"glimprouter"}


def test_ray_is_the_version_that_is_installed(overlay):
    ray = pytest.importorskip("ray")
    assert cluster(overlay)["rayVersion"] == ray.__version__
