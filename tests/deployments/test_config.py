import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployments import config
from deployments.config import AppConfig, ConfigError
from deployments.plan import read_plan

EDGE = 1 << 20


def model(folder: Path, *, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    return {name: {"model": str(model(tmp_path / name))} for name in ("small", "large")}


def read(pair: dict[str, Any], **sections: Any) -> AppConfig:
    return AppConfig.read(pair | sections)


OURS = {"policy_function": "deployments.autoscaling:EnginePressure"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"small": {"model": "a/b", "modle": "x"}}, "small.modle"),
        ({"small": {"model": ""}}, "small.model"),
        ({"small": {}}, "small.model"),
        ({"large": None}, "large"),
        ({"large": {"model": "a/b", "replicas": 0}}, "large.replicas"),
        ({"large": {"model": "a/b", "engine": {"dtype": "float32"}}}, "large"),
        ({"large": {"model": "a/b", "sampling": {"top_p": 0}}}, "large.sampling.top_p"),
        ({"large": {"model": "/no/such/folder"}}, "large.model"),
        ({"large": {"model": "a/b", "draft": {"model": "/no/such/folder"}}}, "large.draft.model"),
        ({"large": {"model": "a/b", "draft": {"model": "c/d", "tokens": 0}}}, "large.draft.tokens"),
        ({"large": {"model": "a/b", "draft": {"model": "c/d"}, "sampling": {"min_p": 0.1}}}, "large"),
        ({"large": {"model": "a/b", "draft": {"model": "c/d"}, "sessions": 4}}, "large"),
        ({"small": {"model": "a/b", "engine": {"scheduler_cls": "a.b"}, "sessions": 4}}, "small"),
        ({"small": {"model": "a/b", "engine": {"speculative_config": {}}, "sessions": 4}}, "small"),
        ({"small": {"model": "a/b", "draft": {"model": "c/d", "method": "medusaa"}}}, "small.draft.method"),
        ({"large": {"model": "a/b", "autoscaling": {"min_replicas": 0, "max_replica": 8}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"max_replicas": "many"}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"max_replicas": None}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"policy": {"policy_fnction": "a:b"}}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"policy": "a:b"}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"policy": OURS | {"policy_kwargs": {"request": 1}}}}}, "large"),
        ({"large": {"model": "a/b", "autoscaling": {"policy": OURS | {"policy_kwargs": {"kv_use": 0}}}}}, "large"),
        (
            {"large": {"model": "a/b", "engine": {"speculative_config": {"a": 1}}, "sampling": {"min_p": 0.1}}},
            "large",
        ),
        ({"large": {"model": "a/b", "autoscaling": {"min_replicas": 3, "max_replicas": 1}}}, "large.autoscaling"),
        ({"large": {"model": "a/b", "autoscaling": {"target_ongoing_requests": "few"}}}, "large.autoscaling"),
        ({"router": {"autoscaling": {"replicas": 2}}}, "router.autoscaling"),
        ({"small": {"model": "deployments/pocket/models/smal"}}, "small.model"),
        ({"routing": {"threshold": -0.1}}, "routing.threshold"),
        ({"routing": {"threshold": float("nan")}}, "routing.threshold"),
        ({"routing": {"threshold": float("inf")}}, "routing.threshold"),
        ({"routing": {"answer_by": "medium"}}, "routing.answer_by"),
        ({"routing": {"think_tags": ["<think>"]}}, "routing.think_tags"),
        ({"limits": {"deadline_s": 0}}, "limits.deadline_s"),
        ({"router": {"max_ongoing_requests": 64}}, "router.max_ongoing_requests"),
        ({"ruoting": {}}, "ruoting"),
    ],
)
def test_a_bad_field_is_named_in_one_line(pair: dict[str, Any], change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        AppConfig.read(pair | change)
    assert str(wrong.value).startswith(field)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize("args", [None, [], "small"])
def test_args_that_are_no_mapping_are_told(args: Any) -> None:
    with pytest.raises(ConfigError, match=r"^args: "):
        AppConfig.read(args)


def test_how_many_more_are_wrong_is_told(pair: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        read(pair, routing={"threshold": -1}, limits={"max_steps": 0})


def test_a_relative_path_is_the_projects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model(tmp_path / "project/models/small")
    monkeypatch.setattr(config, "ROOT", tmp_path / "project")
    pools = {name: {"model": "models/small"} for name in ("small", "large")}
    assert AppConfig.read(pools).small.path == str(tmp_path / "project/models/small")


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model(tmp_path / "models/small")
    pools = {name: {"model": "~/models/small"} for name in ("small", "large")}
    assert AppConfig.read(pools).small.path == str(tmp_path / "models/small")


def test_what_is_no_folder_is_a_hub_id() -> None:
    pools = {name: {"model": "Qwen/Qwen3-4B"} for name in ("small", "large")}
    assert AppConfig.read(pools).small.path == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("on_cpu", "pool", "gpus"),
    [
        (True, {}, 0.0),
        (False, {}, 1.0),
        (False, {"tensor_parallel": 4, "replicas": 2}, 8.0),
        (False, {"gpus": 0.5, "replicas": 3}, 1.5),
        (False, {"autoscaling": {"min_replicas": 2, "max_replicas": 8}}, 2.0),
        (False, {"autoscaling": {"min_replicas": 0, "max_replicas": 8}}, 1.0),
        (False, {"autoscaling": {"max_replicas": 8}}, 1.0),
    ],
)
def test_gpus_that_a_pool_cannot_do_without(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, Any], on_cpu: bool, pool: dict[str, Any], gpus: float
) -> None:
    monkeypatch.setattr(config, "is_cpu_build", lambda: on_cpu)
    assert read(pair, large=pair["large"] | pool).large.gpus_at_least == gpus


@pytest.mark.parametrize(("on_cpu", "gpus"), [(True, 0.0), (False, 1.0)])
def test_the_embedded_pair_asks_for_one_gpu_at_most(monkeypatch: pytest.MonkeyPatch, on_cpu: bool, gpus: float) -> None:
    monkeypatch.setattr(config, "is_cpu_build", lambda: on_cpu)
    assert read_plan(config.embedded_pair()).gpus == gpus


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors"])
def test_another_file_is_another_pair(pair: dict[str, Any], name: str, file: str) -> None:
    before = read(pair).fingerprint
    path = Path(pair[name]["model"]) / file
    path.write_bytes(path.read_bytes() + b" ")
    assert read(pair).fingerprint != before


@pytest.mark.parametrize("at", [0, EDGE - 1, 3 * EDGE // 2, 3 * EDGE - 1])
def test_weights_are_known_by_their_beginning_and_end(pair: dict[str, Any], at: int) -> None:
    weights = Path(pair["large"]["model"]) / "model.safetensors"
    weights.write_bytes(bytes(3 * EDGE))
    before = read(pair).fingerprint
    with weights.open("r+b") as content:
        content.seek(at)
        content.write(b"\x01")
    assert (read(pair).fingerprint != before) == (at != 3 * EDGE // 2)


def test_how_the_models_are_read_is_part_of_the_pair(pair: dict[str, Any]) -> None:
    swapped = {"small": pair["large"] | {"dtype": "float16"}, "large": pair["small"]}
    seen = [
        read(pair),
        read(pair, routing={"think_tags": ["<reason>", "</reason>"]}),
        read(pair, routing={"think_tags": None}),
        read(pair, small=pair["small"] | {"dtype": "float32"}),
        read(pair, large=pair["large"] | {"dtype": "float32"}),
        read(pair, small=pair["small"] | {"engine": {"quantization": "fp8"}}),
        AppConfig.read(swapped),
        read(pair, small={"model": "Qwen/Qwen3-4B"}),
        read(pair, small={"model": "Qwen/Qwen3-4B", "revision": "abc"}),
        read(pair, small={"model": "Qwen/Qwen3-8B"}),
    ]
    assert len({each.fingerprint for each in seen}) == len(seen)


def test_how_the_pair_is_served_is_not_part_of_it(pair: dict[str, Any], tmp_path: Path) -> None:
    before = read(pair).fingerprint
    served = pair["small"] | {"replicas": 3, "max_model_len": 32, "engine": {"enforce_eager": True}, "cpus": 2}
    assert read(pair, small=served, routing={"threshold": 2.0}, limits={"max_steps": 3}).fingerprint == before
    (Path(pair["small"]["model"]) / "README.md").write_text("hello")
    assert read(pair).fingerprint == before
    moved = {}
    for name in pair:
        moved[name] = {"model": shutil.copytree(pair[name]["model"], tmp_path / "elsewhere" / name)}
    assert AppConfig.read(json.loads(json.dumps(moved, default=str))).fingerprint == before
    assert len(before) == 16


@pytest.mark.parametrize(
    ("small", "large", "sections", "admitted"),
    [
        ({}, {}, {}, 64),
        ({"replicas": 3}, {}, {}, 64),
        ({"replicas": 3}, {"autoscaling": {"min_replicas": 0, "max_replicas": 2}}, {}, 128),
        ({"replicas": 4}, {"replicas": 4}, {"router": {"replicas": 2}}, 128),
        ({"replicas": 4}, {"replicas": 4}, {"router": {"autoscaling": {"min_replicas": 2, "max_replicas": 4}}}, 128),
        ({"max_ongoing_requests": 2}, {}, {"router": {"replicas": 4}}, 1),
        ({}, {}, {"limits": {"max_requests": 300}}, 300),
    ],
)
def test_a_router_admits_what_the_smaller_pool_takes(
    pair: dict[str, Any], small: dict[str, Any], large: dict[str, Any], sections: dict[str, Any], admitted: int
) -> None:
    pools = {"small": pair["small"] | small, "large": pair["large"] | large}
    assert read(pools, **sections).max_requests == admitted
