"""The checks are worth something: manifests broken on purpose are seen to be broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BASE, SERVE = "base/rayservice.yaml", "overlays/production/serve-config.yaml"
GCS = "components/redis/gcs-fault-tolerance.yaml"
REDIS, ROUTE = "components/redis/redis.yaml", "components/gateway/gateway.yaml"


@pytest.mark.parametrize(
    ("file", "whole", "broken", "said"),
    [
        (BASE, "minReplicas: 1", "minReplicas: one", "minReplicas: 'one' is not of type 'integer'"),
        (BASE, "rayClusterDeletionDelaySeconds: 900", "rayClusterDeletionDelaySeconds: -1", "less than the minimum"),
        (BASE, "rayClusterDeletionDelaySeconds", "rayClusterDeletionDelay", "'rayClusterDeletionDelay' was unexpected"),
        (BASE, "version: v2", "version: v3", "autoscalerOptions.version: 'v3' is not one of"),
        (GCS, ", key: password", "", "'key' is a required property"),
        (BASE, "containerPort: 6379", "containerPort: gcs", "containerPort"),
        (BASE, "restartPolicy: Never", "restartPolice: Never", "restartPolice"),
        (BASE, "maxSkew: 1", "maxSkew: some", "maxSkew"),
        (REDIS, "serviceName: redis", "servceName: redis", "servceName"),
        (REDIS, "replicas: 1", "replicas: some", "StatefulSet redis: spec.replicas"),
        (REDIS, "apiVersion: apps/v1", "apiVersion: apps/v1beta9", "Couldn't find schema"),
        (ROUTE, "backendRequest: 660s", "backendRequest: eleven minutes", "eleven minutes"),
        (ROUTE, "backendRefs:", "backends:", "'backends' was unexpected"),
        (SERVE, "threshold: 1.0", "treshold: 1.0", "routing.treshold\n  Extra inputs are not permitted"),
        (SERVE, "min_replicas: 2", "min_replicas: many", "serveConfigV2"),
        (SERVE, "upscale_delay_s", "upscale_delay", "autoscaling has no upscale_delay"),
        (SERVE, "import_path: deployments.app:build", "import_path: deployments", "serveConfigV2"),
        (SERVE, "serveConfigV2: |", "serveConfigV2: |\n    applications: [", "serveConfigV2"),
    ],
)
def test_is_caught(tmp_path, build, problems, file, whole, broken, said):
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "k8s" / file
    text = path.read_text()
    assert whole in text
    path.write_text(text.replace(whole, broken))
    assert any(said in line for line in problems(build(tmp_path / "k8s" / "overlays" / "production")))


def test_the_copy_is_whole_until_it_is_broken(tmp_path, build, problems):
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    assert problems(build(tmp_path / "k8s" / "overlays" / "production")) == []
