"""What the measuring commands have in common: their options, a system of their own, one-line errors."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from deployments.attaching import attach
from deployments.config import embedded_pair
from deployments.progress import StartError
from deployments.proxies import spare_this_machine

PROFILE = embedded_pair()
STOP_S = 60.0


class MeasuringError(Exception):
    """One line for the user: what is wrong, and what to do about it."""


def bare_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without options, that shows the module's text as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parser(module: str, description: str | None, *, concurrency: int | None) -> argparse.ArgumentParser:
    """A parser with the options every measuring command has. Without `concurrency` it has no such option."""
    made = bare_parser(module, description)
    made.add_argument("--url", help="a running server; without it a system of its own is started and stopped")
    made.add_argument(
        "--profile", type=Path, default=PROFILE, help="what to start without --url (default: %(default)s)"
    )
    made.add_argument("--port", type=port_number, help="where to start it (default: any free port)")
    made.add_argument("--seed", type=int, default=7, help="of the problems and of all chance (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    if concurrency is not None:
        made.add_argument(
            "--concurrency",
            type=at_least_one,
            default=concurrency,
            help="requests in flight; a latency means something only next to others of the same (default: %(default)s)",
        )
    return made


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def numbers(text: str) -> list[int]:
    """Several of them, with commas between."""
    return [at_least_one(word) for word in text.split(",")]


def among(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads some of these names, with commas between."""

    def read(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(known)}")
        return text.split(",")

    return read


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def run(command: Callable[[], None]) -> None:
    """Runs a command to its exit status; what the user can mend is one line. However it is ended, what it started
    ends."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # nohup
            signal.signal(ending, signal.default_int_handler)
    spare_this_machine()
    try:
        command()
    except MeasuringError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def credentials() -> dict[str, str]:
    """The header that a server with keys wants to see, if there is a key in GLIMPROUTER_API_KEY."""
    key = os.environ.get("GLIMPROUTER_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


@contextmanager
def variant(profile: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[Path]:
    """The profile with the `args` of its first application changed in place, for as long as the block lasts."""
    config: dict[str, Any] = yaml.safe_load(profile.read_text())
    change(config["applications"][0]["args"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variant.yaml")
        path.write_text(yaml.safe_dump(config))
        yield path


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These variables for this process, and those it starts, for as long as the block lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def serving(url: str | None, profile: Path, port: int | None) -> Iterator[str]:
    """The URL of the system under test: the given one, or one that lives as long as the block. What looks for its Ray
    cluster meanwhile, here or in a process started here, finds that and no other of this machine."""
    if url is not None:
        yield url.rstrip("/")
        return
    # A process group of its own, or Ctrl-C would ask it to stop twice, which skips the orderly shutdown.
    command = ("-m", "deployments.cli", "run", str(profile), "--port", str(port or free_port()), "--with-parent")
    system = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert system.stdout is not None
    try:
        url, cluster = _wait(system, system.stdout)
        with environment(RAY_ADDRESS=cluster):
            yield url
    finally:
        system.send_signal(signal.SIGINT)
        try:
            system.wait(STOP_S)
        except subprocess.TimeoutExpired:
            system.kill()
            system.wait()


@contextmanager
def attached(address: str | None = None) -> Iterator[None]:
    """This process as part of a system's Ray cluster; without an address of that `serving` started, if it did. It
    leaves whatever happens, or Ray would end it without a word a minute after the cluster is gone."""
    import ray

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        attach(address)
    except StartError as error:
        raise MeasuringError(str(error)) from None
    try:
        yield
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]


def _wait(system: subprocess.Popen[str], lines: IO[str]) -> tuple[str, str]:
    """Where it serves, and where its Ray cluster is."""
    cluster = ""
    for line in lines:
        print(line.rstrip(), file=sys.stderr)
        if found := re.search(r"Ray is up at (\S+)", line):
            cluster = found[1]
        if found := re.match(r"Serving on (\S+)", line):
            # Nobody reads on, and a full pipe would stop the system.
            threading.Thread(target=lines.read, daemon=True).start()
            return found[1], cluster
    raise MeasuringError(f"the system ended before it was ready (exit status {system.wait()}); its own line is above")


def free_port() -> int:
    """A port of this machine that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
