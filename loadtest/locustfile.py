"""Traffic as it comes: tenants, chats and single questions, streamed and not, by arrivals that wait for nobody.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --rate 2 --arrivals poisson                 # web page
    locust -f loadtest/locustfile.py --host … --headless --run-time 5m --rate 2 --html report.html --max-p95-s 10

Times are counted from when a request was due, whether or not it could be sent by then. Each locust user sends an equal
part of --rate, so --users (1 by default) and workers share the sending, not the amount of traffic; users are counted
when a run starts, so leave their number as it is until it ends. Beside the requests (by tenant) the statistics list
under `glimpse`, in milliseconds unless the name says otherwise: the time to first token, the time between pieces of
text, the time of each step, escalations a request, and in percent the large model's share of tokens and the right
answers; and under `refused` what the server turned away (429, 503), which is no failure. Locust's `Aggregated` line
mixes all of these: read the others.

The exit status is 1 if any --max-… is exceeded, or nothing was answered.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Pool
from geventhttpclient import HTTPClient
from locust import User, events, stats, task
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

from loadtest.arrivals import SHAPES, Shape, arrivals
from loadtest.command import MeasuringError
from loadtest.questions import BOXED, from_file, generated
from loadtest.traffic import REFUSED, Asked, Mix, Observed, tenants
from loadtest.verdict import Bounds, Seen, broken

# Locust keeps two digits of a time, too few to judge a p95 of some seconds by.
stats.bucket_response_time = lambda response_time: round(float(f"{response_time:.3g}"))

QUESTIONS = 2000
PATH = "/v1/chat/completions"


@events.init_command_line_parser.add_listener
def options_of(parser: ArgumentParser) -> None:
    ours = parser.add_argument_group("GlimpRouter")
    ours.add_argument("--arrivals", choices=SHAPES, default="poisson", help="shape of the rate (default: poisson)")
    ours.add_argument("--rate", type=float, default=1.0, help="requests a second, all tenants together (default: 1)")
    ours.add_argument("--shape-s", type=float, default=600.0, help="seconds that a ramp or steps take (default: 600)")
    ours.add_argument("--tenants", default="", metavar="FILE", help="YAML or JSON: name, key (or $ENV_NAME), weight")
    ours.add_argument("--model", default="glimpse", help="(default: glimpse)")
    ours.add_argument("--data", default="", metavar="FILE.jsonl", help="with `question`, `answer`; not the generator")
    ours.add_argument("--stream-share", type=float, default=0.5, help="of the requests, 0 to 1 (default: 0.5)")
    ours.add_argument("--chat-share", type=float, default=0.5, help="with an earlier turn, 0 to 1 (default: 0.5)")
    ours.add_argument("--max-tokens", type=int, default=0, help="reasoning and answer (default: the server's)")
    ours.add_argument("--seed", type=int, default=7, help="of the questions and of all chance (default: 7)")
    ours.add_argument("--timeout-s", type=float, default=600.0, help="of one request (default: 600)")
    ours.add_argument("--max-p95-s", type=float, default=0.0, help="fail if 95 %% of the replies take longer")
    ours.add_argument("--max-ttft-p95-s", type=float, default=0.0, help="fail if the first token takes longer")
    ours.add_argument("--max-failed", type=float, default=0.0, help="share that may fail, 0 to 1 (default: 0)")
    ours.add_argument("--max-refused", type=float, default=1.0, help="share that may be refused (default: all)")


class Client(User):
    """Sends its part of the traffic. Greenlets hold the requests under way."""

    numbers = itertools.count()

    def on_start(self) -> None:
        asked = self.environment.parsed_options
        try:
            questions = from_file(Path(asked.data), None, BOXED) if asked.data else generated(asked.seed, QUESTIONS)
            self.mix = Mix(
                tenants(Path(asked.tenants) if asked.tenants else None),
                questions,
                asked.chat_share,
                asked.stream_share,
                {"model": asked.model, "glimpse": {"include_steps": True}}
                | ({"max_tokens": asked.max_tokens} if asked.max_tokens else {}),
            )
        except MeasuringError as error:
            raise SystemExit(f"locustfile: {error}") from None
        # Another user, and one on another worker, has to draw something else.
        worker = getattr(self.environment.runner, "worker_index", 0)
        self.dice = random.Random(f"{asked.seed}/{worker}/{next(self.numbers)}")
        self.shape = Shape(asked.arrivals, asked.rate, duration_s=asked.shape_s)
        self.http = HTTPClient.from_url(
            self.host or "", concurrency=10_000, connection_timeout=10.0, network_timeout=asked.timeout_s
        )
        self.under_way = Pool()

    @task
    def arrive(self) -> None:
        began = time.perf_counter()
        senders = max(1, self.environment.parsed_options.senders)
        for t in arrivals(lambda t: self.shape.at(t) / senders, self.shape.peak / senders, self.dice):
            gevent.sleep(max(0.0, began + t - time.perf_counter()))
            if self._state == LOCUST_STATE_STOPPING:
                return  # or --stop-timeout would be more time to ask, not only to answer
            self.under_way.spawn(self.ask, self.mix.draw(self.dice), began + t)

    def on_stop(self) -> None:
        # What is under way was due within the run, so it counts.
        try:
            self.under_way.join(timeout=self.environment.stop_timeout or 60.0)
        finally:  # --stop-timeout ends this wait as well
            self.under_way.kill()
            self.http.close()

    def ask(self, asked: Asked, due: float) -> None:
        seen, length = Observed(), 0
        failure: Exception | None = None
        headers = {"content-type": "application/json"}
        if asked.tenant.key:
            headers["authorization"] = f"Bearer {asked.tenant.key}"
        try:
            response = self.http.post(PATH, json.dumps(asked.body).encode(), headers)
            if response.status_code in REFUSED:
                response.read()
                self.tell("refused", str(response.status_code), time.perf_counter() - due)
                return
            if response.status_code != 200:
                failure = RuntimeError(f"{response.status_code}: {response.read()[:200].decode(errors='replace')}")
            elif asked.streamed:
                seen.streamed(lines(response), lambda: time.perf_counter() - due)
            else:
                whole = response.read()
                length = len(whole)
                seen.whole(json.loads(whole))
        except Exception as error:  # whatever goes wrong is a failed request, and the others go on
            failure = error
        except gevent.GreenletExit:
            failure = TimeoutError("it had no end when the run was over")
        if failure is None and not seen.complete:
            failure = RuntimeError(seen.error or "the stream broke off")
        self.tell(asked.tenant.name, asked.kind, time.perf_counter() - due, length=length, failure=failure)
        if failure is None:
            self.account(seen, right=seen.answer == asked.answer)

    def account(self, seen: Observed, *, right: bool) -> None:
        self.tell("glimpse", "right (percent)", 0.1 * right)
        if seen.first_s is not None:
            self.tell("glimpse", "time to first token", seen.first_s)
        for gap in seen.gaps_s:
            self.tell("glimpse", "time between pieces", gap)
        for model, milliseconds in seen.steps:
            self.tell("glimpse", f"step by {model}", milliseconds / 1000.0)
        if seen.escalations is not None and seen.large_token_share is not None:
            self.tell("glimpse", "escalations (number)", seen.escalations / 1000.0)
            self.tell("glimpse", "large share (percent)", seen.large_token_share / 10.0)

    def tell(self, kind: str, name: str, seconds: float, *, length: int = 0, failure: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=1000.0 * seconds,
            response_length=length,
            exception=failure,
            context={},
        )


def lines(response: Any) -> Iterator[bytes]:
    while line := response.readline(b"\n"):
        yield line


@events.test_start.add_listener
def count_senders(environment: Environment, **_: Any) -> None:
    """Tells users how many they are. A worker knows of its own only, but gets the master's options."""
    if environment.runner and environment.parsed_options and not isinstance(environment.runner, WorkerRunner):
        environment.parsed_options.senders = environment.runner.target_user_count


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Sets the exit status."""
    if isinstance(environment.runner, WorkerRunner) or environment.parsed_options is None:
        return
    asked = environment.parsed_options
    entries = environment.stats.entries
    bounds = Bounds(asked.max_p95_s, asked.max_ttft_p95_s, asked.max_failed, asked.max_refused)
    complaints = broken([Seen.of(kind, name, entry) for (name, kind), entry in entries.items()], bounds)
    for line in complaints:
        print(f"locustfile: {line}")
    environment.process_exit_code = 1 if complaints else 0
