import asyncio
from pathlib import Path

import pytest
import yaml

from deployments.config import AppConfig
from loadtest import scaling
from loadtest.command import PROFILE, variant
from loadtest.offered import Told
from loadtest.questions import generated
from loadtest.scaling import Clients, Sample, Timeline, changes, phases, plot, scaled, shown


def timeline() -> Timeline:
    samples = [
        Sample(0.0, "nobody", (0, 0), (1, 0), (0, 0)),
        Sample(0.5, "nobody", (0, 0), (1, 0), (0, 0)),
        Sample(1.0, "small rises", (12, 0), (1, 0), (1, 0)),
        Sample(9.0, "small rises", (12, 0), (2, 0), (0, 0)),
    ]
    told = {"small": [Told(1.0, 0.5, 200), Told(1.0, 0.5, 503, error="busy")], "large": []}
    return Timeline(samples, told, waking_s=12.3, probes=4)


def test_each_pool_goes_up_and_down_by_itself() -> None:
    told = phases(2)
    assert {one.ready[0] for one in told} == {1, 2}
    assert {one.ready[1] for one in told} == {0, 1, 2}
    assert told[0].ready == told[-1].ready == (1, 0)


def test_the_table_has_what_changed() -> None:
    line = timeline()
    assert [one.at_s for one in changes(line.samples)] == [0.0, 1.0, 9.0]
    text = shown(line)
    assert "2 requests (2 small, 0 large), 1 failed; 4 probes, 0 not ready." in text
    assert "failed: 503 busy" in text
    assert "12.3 s" in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plot(timeline(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_profile_scales_and_its_large_pool_may_rest() -> None:
    with variant(PROFILE, lambda args: scaled(3, args)) as path:
        config = AppConfig.read(yaml.safe_load(path.read_text())["applications"][0]["args"])
    assert config.small.autoscaling is not None
    assert config.large.autoscaling is not None
    assert (config.small.autoscaling["min_replicas"], config.large.autoscaling["min_replicas"]) == (1, 0)
    assert config.large.places == 3 * config.large.max_ongoing_requests


class Slow:
    """Answers after a moment, and knows how many wait."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    async def ask(self, body: bytes) -> Told:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0.01)
        self.waiting -= 1
        return Told(0.0, 0.01, 200)


async def test_clients_come_and_go() -> None:
    server, told = Slow(), []
    clients = Clients(server, "small", generated(1, 3), told)  # type: ignore[arg-type]
    clients.want(4)
    await asyncio.sleep(0.05)
    assert server.most == 4
    clients.want(1)
    await asyncio.sleep(0.05)
    server.most = 0
    await asyncio.sleep(0.05)
    assert server.most == 1
    clients.want(3)
    await asyncio.sleep(0.05)
    assert server.most == 3
    await clients.end()
    assert server.waiting == 0
    assert told


@pytest.mark.parametrize(("starting", "wrong"), [(0, 0), (1, 1)])
async def test_a_pool_that_starts_what_nobody_asked_for_is_wrong(
    starting: int, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ({"small": 2, "large": 0}, {"small": 0, "large": starting})
    monkeypatch.setattr(scaling, "replicas", lambda: found)
    monkeypatch.setattr(scaling, "SAMPLE_S", 0.01)
    line, rises = Timeline([Sample(0.0, "nobody", (0, 0), (1, 0), (0, 0))]), phases(2)[1]
    await scaling.watch(line, rises, scaling.read_options(["--hold", "1"]), began=0.0)
    assert len(line.wrong) == wrong
