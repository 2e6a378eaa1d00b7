"""What is to be started or rolled out: a profile that was read, with all that can be checked before anything runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deployments.config import AccessConfig, AppConfig, ConfigError
from deployments.exposure import Exposed
from deployments.exposure import check as check_exposure
from deployments.progress import StartError
from router import tracing

HOST, PORT = "127.0.0.1", 8000


@dataclass(frozen=True)
class Plan:
    """What is to be started. `config` is the profile's text as data, with host and port filled in; gpus: that it cannot
    do without."""

    profile: str
    config: dict[str, Any]
    verbose: bool = False
    notice: str | None = None
    gpus: float = 0.0
    supervisor: int = 0
    started: float = field(default_factory=time.time)

    @property
    def host(self) -> str:
        return str(self.config["http_options"]["host"])

    @property
    def port(self) -> int:
        return int(self.config["http_options"]["port"])

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def read_plan(profile: Path, host: str | None = None, port: int | None = None, verbose: bool = False) -> Plan:
    """Reads a profile. Given host and port win over the profile's own. Raises `StartError`."""
    try:
        config = yaml.safe_load(profile.read_text())
    except FileNotFoundError:
        raise StartError(f"{profile}: no such file; `glimprouter profiles` lists those that come along") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{profile}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StartError(f"{profile}: not YAML: {where}{problem}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not applications:
        raise StartError(f"{profile}: not a Serve config file: it needs a list `applications`")
    access, gpus = [], 0.0
    for application in applications:
        if not isinstance(application, dict) or not isinstance(application.get("import_path"), str):
            raise StartError(f"{profile}: every application needs an `import_path`")
        if application["import_path"].partition(":")[0] == "deployments.app":
            try:
                settings = AppConfig.read(application.get("args") or {})
                assert settings.small.path
                assert settings.large.path
                access.append(settings.access)
                gpus += settings.small.gpus_at_least + settings.large.gpus_at_least
            except ConfigError as error:
                raise StartError(f"{profile}: {error}") from None
            check_tuning(profile, application)
    try:
        tracing.endpoint()
    except ValueError as error:
        raise StartError(str(error)) from None
    http = config.get("http_options") or {}
    http = {"host": HOST, "port": PORT} | http
    http |= {"host": host} if host is not None else {}
    http |= {"port": port} if port is not None else {}
    config |= {"http_options": http}
    return Plan(profile=str(profile), config=config, verbose=verbose, notice=_exposure(access, config), gpus=gpus)


def _exposure(access: list[AccessConfig], config: dict[str, Any]) -> str | None:
    """What to say at the start of who may ask. Raises `StartError` if it would be strangers."""
    try:
        return next((line for line in [check_exposure(one, config) for one in access] if line), None)
    except Exposed as error:
        raise StartError(str(error)) from None


def check_tuning(profile: Path, application: Mapping[str, Any]) -> None:
    """Raises `StartError` if the router's `user_config` is not one."""
    from pydantic import ValidationError

    from router.deployment import Tuning

    for deployment in application.get("deployments") or ():
        if isinstance(deployment, dict) and deployment.get("name") == "router" and deployment.get("user_config"):
            try:
                Tuning.model_validate(deployment["user_config"])
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, ("user_config", *first["loc"])))
                raise StartError(f"{profile}: router: {where}: {first['msg']}") from None


def check_port(host: str, port: int) -> None:
    """Raises `StartError` if nothing can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = "is in use" if error.errno == 98 else f"cannot be listened on ({error.strerror})"
        raise StartError(f"{host}:{port} {reason}; choose another, e.g. `make run PORT={port + 1}`") from None
