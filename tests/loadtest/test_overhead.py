from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
import yaml

from deployments.app import build as build_engines
from loadtest.engines import settings_of
from loadtest.overhead import Load, Prompts, Work, measured, read_options, row, shown, stack, variant, worked
from loadtest.paced import build as build_paced
from router.vocabulary import Vocabulary

LOAD = Load(clients=3, prefix_tokens=64, seconds=0.2, step_tokens=24)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(Vocabulary.load(settings_of(read_options([]).profile).small.path), seed=7)


@pytest.mark.parametrize("tokens", [64, 512, 2048])
def test_prompts_come_close_to_the_wanted_length(prompts: Prompts, tokens: int) -> None:
    assert isinstance(prompts.ids(tokens), array)
    assert tokens <= len(prompts.ids(tokens)) < tokens + 64


def test_the_forward_pass_is_left_out_and_so_are_the_clients_of_the_stack() -> None:
    cpu_s = {"client": 1.0, "forward pass": 5.0, "replica router": 2.0}
    done = Work(steps=100, tokens=2400)
    assert row("stack", cpu_s, done, 10.0, LOAD, paced=False)["cpu_ms_per_step"] == 20.0
    told = row("engine", cpu_s, done, 10.0, LOAD, paced=False)
    assert told["cpu_ms_per_step"] == 30.0
    assert (told["steps_per_s"], told["tokens_per_s"], told["prefix_tokens"]) == (10.0, 240.0, 64)
    assert told["cpu_ms_per_step_by_process"]["forward pass"] == 50.0
    assert "30.00" in shown([told])


def test_the_cpu_time_of_a_server_of_others_is_not_told() -> None:
    told = row("stack", None, Work(steps=100, tokens=2400), 10.0, LOAD, paced=False)
    assert (told["cpu_ms_per_step"], told["steps_per_s"]) == (None, 10.0)
    assert "–" in shown([told])


async def test_clients_work_until_the_time_is_up() -> None:
    async def piece(n: int) -> Work:
        return Work(2, 10)

    done, seconds = await worked(piece, LOAD)
    assert seconds >= LOAD.seconds
    assert done.steps == done.tokens / 5 > LOAD.clients


@pytest.mark.parametrize("stream", [False, True])
async def test_the_stack_is_asked_over_http(url: str, prompts: Prompts, stream: bool) -> None:
    options = SimpleNamespace(request_steps=4, stream=stream)
    async with stack(url, prompts, options) as pieces:  # type: ignore[arg-type]
        assert await pieces(LOAD)(0) == Work(steps=1, tokens=40)
        told = await measured("stack", pieces(LOAD), LOAD, paced=False)
    assert told["steps_per_s"] > 0


@pytest.mark.parametrize("paced", [False, True])
def test_a_variant_of_the_profile_can_be_built(paced: bool) -> None:
    options = read_options(["--prefixes", "512,32768", *(["--paced"] if paced else [])])
    with variant(options) as profile:
        application = yaml.safe_load(profile.read_text())["applications"][0]
    (build_paced if paced else build_engines)(application["args"])
    assert application["import_path"] == ("loadtest.paced:build" if paced else "deployments.app:build")
    assert application["args"]["large"]["max_model_len"] > 32768
    assert application["args"]["limits"]["step_tokens"] == 24
    # The pools share one mapping in the profile; neither may get the other's model.
    assert application["args"]["small"]["model"] != application["args"]["large"]["model"]


def test_a_stand_in_is_no_engine_to_try_by_itself() -> None:
    assert read_options(["--paced"]).layers == ["hop", "stack"]
    with pytest.raises(SystemExit):
        read_options(["--paced", "--layers", "engine"])
