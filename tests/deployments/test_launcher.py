from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deployments import launcher
from deployments.config import embedded_pair
from deployments.plan import read_plan
from deployments.progress import StartError, root_cause
from router.tenancy.settings import loopback

GLIMPROUTER = [sys.executable, "-m", "deployments.cli"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GLIMPROUTER, "run", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("applications: [", "not YAML: line 1, column"),
        ("", "needs a list `applications`"),
        ("applications: {}", "needs a list `applications`"),
        ("applications: [{name: a}]", "every application needs an `import_path`"),
        ("applications: [{import_path: 'deployments.app:build', args: {}}]", "small"),
        ("applications: [{import_path: 'deployments.app:build', args: {smal: 1}}]", "small"),
        (
            "applications: [{import_path: 'deployments.app:build', args: "
            "{small: {model: ./nowhere}, large: {model: a/b}}}]",
            "no folder",
        ),
    ],
)
def test_a_bad_profile_is_refused_in_one_line_that_names_it(text: str, says: str, tmp_path: Path) -> None:
    profile = tmp_path / "bad.yaml"
    profile.write_text(text)
    with pytest.raises(StartError) as refused:
        read_plan(profile)
    message = str(refused.value)
    assert message.startswith(f"{profile}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"http_options": {"port": "eight"}}, "http_options.port: "),
        ({"http_options": 8000}, "http_options."),
        ({"http_options": {"prot": 8000}}, "http_options.prot: no such field"),
        ({"limits": {"max_tokens": 512}}, "glimpse.limits: no such field"),
        (
            {"deployments": [{"name": "small", "ray_actor_options": {"num_gpu": 1}}]},
            "small.ray_actor_options.num_gpu: no such field",
        ),
        ({"deployments": [{"name": "large", "autoscaling_confg": {}}]}, "large.autoscaling_confg: no such field"),
        (
            {"deployments": [{"name": "large", "autoscaling_config": {"max_replica": 8}}]},
            "large: autoscaling_config.max_replica: ",
        ),
        ({"deployments": [{"name": "router", "user_config": {"threshold": -1}}]}, "router: user_config.threshold: "),
    ],
)
def test_what_would_have_no_effect_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = yaml.safe_load(embedded_pair().read_text())
    (config if "http_options" in change else config["applications"][0]).update(change)
    profile = tmp_path / "p.yaml"
    profile.write_text(yaml.safe_dump(config))
    with pytest.raises(StartError) as refused:
        read_plan(profile)
    assert str(refused.value).startswith(f"{profile}: {says}")
    assert "\n" not in str(refused.value)


def test_a_system_is_asked_where_it_answers(tmp_path: Path) -> None:
    config = yaml.safe_load(embedded_pair().read_text())
    config["http_options"] = {"ssl_certfile": "a.pem", "ssl_keyfile": "a.key"}
    config["applications"][0]["route_prefix"] = "/llm"
    profile = tmp_path / "p.yaml"
    profile.write_text(yaml.safe_dump(config))
    assert read_plan(profile).url == "https://127.0.0.1:8000/llm"


def test_a_missing_profile_and_a_taken_port_stop_the_start_before_anything_runs(tmp_path: Path) -> None:
    done = run("nowhere.yaml")
    assert done.returncode == 1
    assert (
        done.stderr == "glimprouter: nowhere.yaml: no such file; `glimprouter profiles` lists those that come along\n"
    )
    profile = tmp_path / "fine.yaml"
    profile.write_text("applications: [{import_path: 'elsewhere:build'}]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(str(profile), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"glimprouter: 127.0.0.1:{port} is in use")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "profile", sorted(Path(launcher.__file__).parent.glob("profiles/*.yaml")), ids=lambda p: p.stem
)
def test_profiles_that_come_along_are_serve_config_files(profile: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(profile.read_text()))
    assert [application.name for application in schema.applications] == ["glimpse"]
    behind_a_gateway = profile.stem.endswith("-cluster")
    assert loopback(schema.http_options.host) is not behind_a_gateway, "or `serve run` would start no router"


def test_host_and_port_given_win_over_the_profiles_which_win_over_the_defaults(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("applications: [{import_path: 'a:b'}]")
    assert read_plan(profile).url == "http://127.0.0.1:8000"
    profile.write_text("applications: [{import_path: 'a:b'}]\nhttp_options: {host: 0.0.0.0, port: 9001}")
    plan = read_plan(profile)
    assert (plan.host, plan.port, plan.url) == ("0.0.0.0", 9001, "http://127.0.0.1:9001")
    plan = read_plan(profile, host="127.0.0.1", port=9002)
    assert (plan.host, plan.port) == ("127.0.0.1", 9002)
    assert read_plan(profile, host="::1").url == "http://[::1]:9001"


def test_the_root_cause_of_a_traceback_is_its_last_error() -> None:
    message = (
        'The deployment failed to start 3 times. Error:\nray::Replica()\n  File "x.py", line 1, in f\n'
        "KeyError: 'a'\n\nDuring handling of the above exception:\nRuntimeError: no folder /models/x\n"
    )
    assert root_cause(message) == "RuntimeError: no folder /models/x"
    assert root_cause("waiting for 1 CPU\nmore") == "waiting for 1 CPU"


def test_the_root_cause_of_a_validation_error_is_its_reason() -> None:
    message = (
        'ray::Replica()\n  File "x.py", line 1, in f\n'
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9999) is greater than 512 [type=value_error, input_value={}, input_type=dict]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error\n"
    )
    assert root_cause(message) == "ModelConfig: max_model_len (9999) is greater than 512"
    assert root_cause(message.replace("  Value", "dtype\n  Value")).startswith("ModelConfig: dtype: max_model_len")


SUPERVISOR = """
import sys, subprocess
from deployments import launcher
from deployments.progress import StartError, root_cause
real = subprocess.Popen
# In the starter's place: a process that ignores SIGTERM, with an orphan in a session of its own.
starter = '''
import signal, subprocess, sys, time
for one in (signal.SIGTERM, launcher_stop): signal.signal(one, signal.SIG_IGN)
orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(orphan.pid, flush=True)
time.sleep(60)
'''.replace("launcher_stop", str(int(launcher.STOP)))
launcher.STOP_S = -1  # the patience with a starter that hangs is this and 3 s
launcher.subprocess.Popen = lambda command, **more: real([sys.executable, "-c", starter], **more)
sys.exit(launcher.supervise(launcher.Plan("p", {})))
"""


@pytest.mark.parametrize("how", ["asked", "starter killed"])
def test_whatever_becomes_of_the_starter_nothing_stays_behind(how: str) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    orphan = int(supervisor.stdout.readline())
    (starter,) = psutil.Process(supervisor.pid).children()
    if how == "asked":
        supervisor.send_signal(signal.SIGTERM)
    else:
        starter.kill()
    _, told = supervisor.communicate(timeout=20)
    assert supervisor.returncode == (0 if how == "asked" else 1)
    assert ("killed by SIGKILL" in told) is (how != "asked")
    assert not psutil.pid_exists(orphan)
    assert not starter.is_running()


LATE = """
import subprocess
from pathlib import Path
from deployments import launcher
def start(plan, logs):
    for n in range(3000):
        Path(logs, str(n)).touch()
    raise launcher.Stop
launcher.start = start
launcher.shut_down = lambda quietly: subprocess.run(["sleep", "60"])
launcher.STOP_S = 0.2
launcher.main()
"""


def test_a_shutdown_that_takes_too_long_is_cut_short_and_leaves_no_logs() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        plan = json.dumps(asdict(launcher.Plan("p", {}, supervisor=os.getpid())))
        late = [sys.executable, "-c", LATE]
        ended = subprocess.run(late, input=plan, text=True, env=os.environ | {"TMPDIR": folder}, timeout=30)
        assert ended.returncode == 0
        assert os.listdir(folder) == []


def test_importing_the_commands_costs_no_heavy_import() -> None:
    code = "import sys, deployments.cli, deployments.asking; print({'ray', 'vllm', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Pipe(io.StringIO):
    def close(self) -> None:
        """What was written can still be read."""


def test_what_the_starter_gets_is_no_secret_and_no_setting_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    pipe = Pipe()

    class Starter:
        stdin = pipe

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            assert "s3cret" not in " ".join(command), "every user of the machine sees that"
            seen.update(env)

        def wait(self) -> int:
            return 0

    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(launcher.subprocess, "Popen", Starter)
    monkeypatch.setattr(launcher.lifeline, "adopt_orphans", lambda: None)
    monkeypatch.setattr(launcher.lifeline, "end_descendants", list)
    monkeypatch.setattr(launcher.signal, "signal", lambda *_: None)
    assert launcher.supervise(launcher.Plan("p", {"database": "postgresql://me:s3cret@host/x"})) == 0
    told = json.loads(pipe.getvalue())
    assert (told["supervisor"], told["config"]["database"]) == (os.getpid(), "postgresql://me:s3cret@host/x")
    assert seen["OMP_WAIT_POLICY"] == "active"
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"
