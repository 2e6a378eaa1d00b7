"""Real servers for tests: Debian's PostgreSQL and Redis, on free ports, in folders of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loadtest.command import free_port

START_S = 30.0


def postgres_programs() -> Path | None:
    """The folder of the newest installed version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def redis_program() -> str | None:
    return shutil.which("redis-server")


class Server:
    """A process that can be stopped and started again where it left off."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="glimprouter-server-"))

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, sent: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(sent)
            self.process.wait(30)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGQUIT if isinstance(self, Postgres) else signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > until or (self.process is not None and self.process.poll() is not None):
                raise RuntimeError(f"{type(self).__name__} did not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.05)


class Postgres(Server):
    """PostgreSQL. It refuses to run as root, so it then runs as its package's own user."""

    def __init__(self) -> None:
        super().__init__()
        programs = postgres_programs()
        assert programs is not None
        self._programs = programs
        self._as_owner: list[str] = []
        if os.geteuid() == 0:
            # Not by subprocess, which would fork for it: in a process that serves gRPC the child can hang before it
            # comes to its program.
            self._as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
            os.chown(self.folder, pwd.getpwnam("postgres").pw_uid, -1)
        self._run(
            "initdb", "-D", self._data, "-U", "glimprouter", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"
        )
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "glimprouter", "glimprouter")

    @property
    def url(self) -> str:
        return f"postgresql://glimprouter:s3cret-of-the-database@127.0.0.1:{self.port}/glimprouter"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        options = ["-D", self._data, "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder), "-F"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._as_owner, self._programs / "postgres", *options], stdout=log, stderr=log, cwd="/"
            )
        ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        self._wait(lambda: subprocess.run(ready, check=False).returncode == 0)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_owner, self._programs / program, *arguments], capture_output=True, text=True, cwd="/"
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")


class Redis(Server):
    """A Redis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = redis_program()
        assert program is not None
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""],
                stdout=log,
                stderr=log,
            )
        self._wait(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
