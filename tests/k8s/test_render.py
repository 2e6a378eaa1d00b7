"""Profiles and the launcher's environment arrive in manifests and images as they are."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from deployments.launcher import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def render():
    import k8s.render

    return k8s.render


def test_nothing_is_out_of_date():
    check = subprocess.run(
        [sys.executable, "-m", "k8s.render", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert check.returncode == 0, f"{check.stdout}{check.stderr}run `python -m k8s.render`"


def test_the_manifest_holds_the_profiles_text(overlay):
    (service,) = (document for document in overlay if document["kind"] == "RayService")
    profile = ROOT / service["metadata"]["annotations"]["glimprouter.dev/profile"]
    assert service["spec"]["serveConfigV2"] == profile.read_text()


def test_another_profile_makes_it_out_of_date(render, tmp_path, monkeypatch):
    folder = tmp_path / "k8s" / "overlays" / "demo"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text("metadata: {annotations: {glimprouter.dev/profile: pair.yaml}}\n")
    profile = tmp_path / "pair.yaml"
    profile.write_text((ROOT / "deployments/profiles/pocket.yaml").read_text())
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "OVERLAYS", tmp_path / "k8s" / "overlays")
    monkeypatch.setattr(render, "IMAGES", ())
    monkeypatch.setattr(sys, "argv", ["render", "--check"])
    assert render.main() == 1
    monkeypatch.setattr(sys, "argv", ["render"])
    assert render.main() == 0
    monkeypatch.setattr(sys, "argv", ["render", "--check"])
    assert render.main() == 0
    profile.write_text(profile.read_text().replace("threshold: 0.5", "threshold: 0.9"))
    assert render.main() == 1
    profile.write_text(profile.read_text().replace("threshold", "treshold"))
    with pytest.raises(ValidationError, match=r"routing\.treshold"):
        render.main()


def test_a_new_pair_asks_for_a_new_cluster_and_a_new_threshold_does_not(render):
    profile = yaml.safe_load((ROOT / "deployments/profiles/qwen3-deepseek-cluster.yaml").read_text())
    pair = render.pair(profile)
    tuned, other, revised = copy.deepcopy(profile), copy.deepcopy(profile), copy.deepcopy(profile)
    tuned["applications"][0]["args"]["routing"]["threshold"] = 0.5
    other["applications"][0]["args"]["large"]["model"] = "Qwen/Qwen3-32B"
    revised["applications"][0]["args"]["small"]["revision"] = "0123456"
    assert render.pair(tuned) == pair
    assert len({pair, render.pair(other), render.pair(revised)}) == 3


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_carry_the_launchers_environment(kind):
    lines = (ROOT / f"k8s/images/Dockerfile.{kind}").read_text().replace("\\\n", " ").splitlines()
    flags = dict(
        pair.partition("=")[::2] for line in lines if line.startswith("ENV ") for pair in shlex.split(line)[1:]
    )
    ours = {"PATH", "VIRTUAL_ENV", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    assert {name: value for name, value in flags.items() if name not in ours} == ENVIRONMENT


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_install_by_the_projects_own_script(kind):
    text = (ROOT / f"k8s/images/Dockerfile.{kind}").read_text()
    assert f"ENGINE={kind} sh deployments/install.sh /opt/venv" in text
    assert not re.search(r"\bpip install\b", text)
    ignored = (ROOT / f"k8s/images/Dockerfile.{kind}.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists()
            assert f"!{source.split('/')[0]}" in ignored


def test_images_differ_in_nothing_but_the_build_of_the_engine():
    """Ray wants one Python and one Ray on all nodes."""
    bases = {
        re.findall(r"^FROM (.*)$", path.read_text(), re.MULTILINE)[0]
        for path in (ROOT / "k8s/images").glob("Dockerfile.c*")
        if path.suffix in (".cpu", ".cuda")
    }
    assert len(bases) == 1
