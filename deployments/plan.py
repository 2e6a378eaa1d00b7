"""What is to be started or rolled out: a profile that was read, with all that can be checked before anything runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deployments.config import AccessConfig, AppConfig, ConfigError, problem
from deployments.exposure import Exposed
from deployments.exposure import check as check_exposure
from deployments.progress import StartError
from router import tracing

HOST, PORT = "127.0.0.1", 8000
SERVES_MOST = 100  # replicas, where `num_replicas: auto` is all that is said


@dataclass(frozen=True)
class Plan:
    """What is to be started, or rolled out.

    config: the profile's text as data, with host and port filled in. notice: what the user is told first. gpus: that it
    cannot do without. supervisor: the process that the user started. started: seconds since the epoch.
    """

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
        """Where the application answers."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        scheme = "https" if self.config["http_options"].get("ssl_certfile") else "http"
        prefix = next((one.get("route_prefix") for one in self.config["applications"] if is_ours(one)), None)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{(prefix or '').rstrip('/')}"


def read_plan(profile: Path, host: str | None = None, port: int | None = None, verbose: bool = False) -> Plan:
    """Reads a profile. Given host and port win over the profile's own. Raises `StartError`."""
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    try:
        config = yaml.safe_load(profile.read_text())
    except FileNotFoundError:
        raise StartError(f"{profile}: no such file; `glimprouter profiles` lists those that come along") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{profile}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StartError(f"{profile}: not YAML: {where}{what}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not applications:
        raise StartError(f"{profile}: not a Serve config file: it needs a list `applications`")
    _check_names(profile, None, config, ServeDeploySchema.model_fields)
    access, gpus = [], 0.0
    for application in applications:
        if not isinstance(application, dict) or not isinstance(application.get("import_path"), str):
            raise StartError(f"{profile}: every application needs an `import_path`")
        _check_names(
            profile, str(application.get("name", "application")), application, ServeApplicationSchema.model_fields
        )
        if is_ours(application):
            try:
                settings = AppConfig.read(application.get("args") or {})
                access.append(settings.access)
                gpus += settings.small.gpus_at_least + settings.large.gpus_at_least
            except ConfigError as error:
                raise StartError(f"{profile}: {error}") from None
            check_deployments(profile, application)
    try:
        tracing.endpoint()
    except ValueError as error:
        raise StartError(str(error)) from None
    config |= {"http_options": _http(profile, config.get("http_options") or {}, host, port)}
    return Plan(profile=str(profile), config=config, verbose=verbose, notice=_exposure(access, config), gpus=gpus)


def is_ours(application: Mapping[str, Any]) -> bool:
    """Whether an application of a Serve config file is built by `deployments.app`."""
    return str(application.get("import_path")).partition(":")[0] == "deployments.app"


def _http(profile: Path, given: Any, host: str | None, port: int | None) -> dict[str, Any]:
    from pydantic import ValidationError
    from ray.serve.schema import HTTPOptionsSchema

    try:
        HTTPOptionsSchema.model_validate(given)
    except ValidationError as error:
        raise StartError(f"{profile}: http_options.{problem(error)}") from None
    _check_names(profile, "http_options", given, HTTPOptionsSchema.model_fields)
    wanted = {"host": host} if host is not None else {}
    return {"host": HOST, "port": PORT} | given | wanted | ({"port": port} if port is not None else {})


def _check_names(profile: Path, where: str | None, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Serve leaves out what it does not know, so that a slip of the pen would have no effect."""
    if unknown := sorted(given.keys() - set(known)):
        raise StartError(f"{profile}: {f'{where}.' if where else ''}{unknown[0]}: no such field")


def _exposure(access: list[AccessConfig], config: dict[str, Any]) -> str | None:
    """What to say at the start of who may ask. Raises `StartError` if it would be strangers."""
    try:
        return next((line for line in [check_exposure(one, config) for one in access] if line), None)
    except Exposed as error:
        raise StartError(str(error)) from None


def check_deployments(profile: Path, application: Mapping[str, Any]) -> None:
    """Raises `StartError` if `deployments` has what would have no effect, or the router's `user_config` is not one."""
    from pydantic import ValidationError
    from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema

    from deployments.autoscaling import check_scaling
    from router.deployment import Tuning

    for deployment in application.get("deployments") or ():
        if not isinstance(deployment, dict):
            continue  # Serve says so
        name = str(deployment.get("name"))
        _check_names(profile, name, deployment, DeploymentSchema.model_fields)
        if isinstance(actor := deployment.get("ray_actor_options"), dict):
            _check_names(profile, f"{name}.ray_actor_options", actor, RayActorOptionsSchema.model_fields)
        try:
            if isinstance(deployment.get("autoscaling_config"), dict):
                auto = {"max_replicas": SERVES_MOST} if deployment.get("num_replicas") == "auto" else {}
                check_scaling(auto | deployment["autoscaling_config"])
            if name == "router" and deployment.get("user_config"):
                Tuning.model_validate(deployment["user_config"])
        except ValidationError as error:
            raise StartError(f"{profile}: {name}: user_config.{problem(error)}") from None
        except ValueError as error:
            raise StartError(f"{profile}: {name}: autoscaling_config.{error}") from None


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
