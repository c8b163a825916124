"""One service of a compose model -> the service of a configuration: what is carried over, with its source, and what is left to do."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt.compose import dockerfile, endpoints
from azora_ci.cli.adopt.compose.dockerfile import Image as StageImage
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.environment import Environment, pairs
from azora_ci.cli.adopt.compose.merge import as_list, as_mapping
from azora_ci.cli.adopt.compose.model import REMOTE, UNKNOWN, Model, read_text
from azora_ci.cli.adopt.compose.secret import is_secret

_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(/v[0-9]+)?")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?P<unit>[bkmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(?P<h>\d{1,4}(?:\.\d+)?)h)?(?:(?P<m>\d{1,6}(?:\.\d+)?)m)?(?:(?P<s>\d{1,6}(?:\.\d+)?)s)?(?:(?P<ms>\d{1,7})ms)?")
# What changes how a container runs and has no key of a configuration; everything else of a service is about Compose itself.
_NOT_CARRIED = re.compile(
    r"additional_contexts|cap_add|cgroup|configs|cpus|credential_spec|device_cgroup_rules|devices|dns|dns_search|extra_hosts|gpus|"
    r"group_add|init|ipc|isolation|links|mem_reservation|memswap_limit|network_mode|oom_score_adj|pid|pids_limit|post_start|"
    r"pre_stop|privileged|provider|runtime|secrets|security_opt|shm_size|stop_signal|storage_opt|sysctls|tmpfs|tty|ulimits|user|"
    r"userns_mode|uts|volumes_from|working_dir"
)


# Images that keep data: two versions of one cannot run side by side.
_STORES = re.compile(
    r"cassandra|clickhouse-server|cockroach|couchdb|elasticsearch|etcd|influxdb|kafka|mariadb|meilisearch|memcached|minio|mongo|"
    r"mysql|nats|neo4j|opensearch|pgvector|postgis|postgres|rabbitmq|redis|redis-stack|timescaledb|typesense|valkey"
)


class LeftOutError(Exception):
    """A service is not deployed; the text says why."""


@dataclass(frozen=True)
class Image:
    """How a service's image is built, relative to the repository. ``left``: what is not carried over."""

    context: str
    dockerfile: str
    build: dict[str, Any] = field(default_factory=dict)
    says: StageImage | None = None
    left: dict[str, str] = field(default_factory=dict)


def image_of(root: Path, service: Mapping[str, Any], build: Mapping[str, Any], model: Model) -> Image:
    """Return how a service's image is built. Raises LeftOutError for one that cannot be built from this repository."""
    context = text(build.get("context") or ".")
    if REMOTE.match(context):
        raise LeftOutError("it is built from another repository: deploy it from there")
    if context.split("/")[0] == "..":
        raise LeftOutError(f"its build context {context} is outside of this repository: deploy it from there, or move it here")
    if "$" in context:
        raise LeftOutError(f"its build context {UNKNOWN}: write it into the compose file")
    if build.get("dockerfile_inline"):
        raise LeftOutError("its Dockerfile stands in the compose file (dockerfile_inline): write it into a file and name it")
    name = model.plain(build.get("dockerfile")) or "Dockerfile"
    if "\0" in context + name:
        raise LeftOutError("its build context or Dockerfile is no path")
    if name.startswith("/"):
        name = os.path.relpath(name, root.resolve() / context)
    path = os.path.normpath(PurePosixPath(context, name))
    if path.split("/")[0] == "..":
        raise LeftOutError(f"its Dockerfile {path} is outside of this repository: move it here")
    left: dict[str, str] = {}
    target = model.plain(build.get("target"))
    described: dict[str, Any] = {"target": target} if target and _TARGET.fullmatch(target) else {}
    for key, taken in (("target", "the last stage"), ("dockerfile", "Dockerfile")):
        if build.get(key) is not None and (model.plain(build[key]) is None or (key == "target" and not described)):
            left[f"build.{key} {text(build[key])[:60]}"] = f"its value is not known here: {taken} is taken until you write it"
    args, unknown = _arguments(build.get("args"), model)
    left |= {f"build argument {argument}": reason for argument, reason in unknown.items()}
    platform = model.plain(service.get("platform")) or next((model.plain(value) for value in as_list(build.get("platforms"))), None)
    left |= {f"build.{key}": "is not carried over" for key in ("additional_contexts", "secrets", "ssh", "network") if build.get(key)}
    described |= {"args": args} if args else {}
    described |= {"platform": platform} if platform and _PLATFORM.fullmatch(platform) else {}
    content = read_text(root, path)
    says = dockerfile.image(content, target) if content is not None else None
    if reason := keeps_data(says):
        raise LeftOutError(reason)
    return Image(context, name, described, says, left)


def keeps_data(says: StageImage | None) -> str:
    """Return why a store's image with changes is not deployed; nothing for another image."""
    base = says.base.partition("@")[0].partition(":")[0].rpartition("/")[2] if says else ""
    return (
        f"its image is {base} with changes: what keeps data does not change with a release; run it beside"
        if _STORES.fullmatch(base)
        else ""
    )


def _arguments(value: Any, model: Model) -> tuple[dict[str, str], dict[str, str]]:
    """Return the build arguments whose values are known and no secrets, and why the others are not carried over."""
    known, unknown = {}, {}
    for name, raw in pairs(value):
        filled = model.plain(f"${{{name}}}" if raw is None else raw)
        if not _VARIABLE.fullmatch(name):
            unknown[name] = "no name of a variable"
        elif is_secret(name, filled):
            unknown[name] = "stays readable in the image: mount it (RUN --mount=type=secret) and name it in build.secrets"
        elif filled is None:
            unknown[name] = f"it {UNKNOWN}: write it into build.args, or mount it where it is one"
        else:
            known[name] = filled
    return known, unknown


def words(value: Any, model: Model) -> tuple[str, ...] | None:
    """Return a command as Compose splits it; None when one of its variables is not known or hidden, empty when there is none."""
    if value is None:
        return ()
    parts = [model.plain(part) for part in value] if isinstance(value, list) else [model.plain(value)]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if isinstance(value, list):
        return tuple(known)
    try:
        return tuple(shlex.split(known[0]))
    except ValueError:
        return None


def asked_of(name: str, service: Mapping[str, Any], image: Image, env: Environment, model: Model) -> tuple[int | None, str | None, str]:
    """Return the port and the path that the service's own health check asks, else those of its Dockerfile's, and which of them it was."""
    check = service.get("healthcheck")
    command = endpoints.command_of(check)
    values = env.values | ({"PORT": env.port} if env.port else {})
    if command or (isinstance(check, dict) and check.get("disable")):
        filled = model.fill(command)
        return *(endpoints.asked(filled.text, name, values) if not model.hides(filled) else (None, None)), "its healthcheck"
    return *endpoints.asked((image.says.health if image.says else None) or "", name, values), "HEALTHCHECK of its Dockerfile"


def listed_ports(service: Mapping[str, Any], model: Model) -> list[int]:
    """Return the ports inside the container that ``ports`` and ``expose`` list. The host's may be a variable without a value."""
    return endpoints.container_ports(dict(service), lambda value: _filled(value, model))


def has_unknown_port(service: Mapping[str, Any], model: Model) -> bool:
    """Say whether a published port of the container is a variable that has no value here."""
    mappings = [entry.get("target") if isinstance(entry, dict) else entry for entry in as_list(service.get("ports"))]
    return any("$" in text(mapping) and (_filled(mapping, model) or "").rpartition(":")[2] == "" for mapping in mappings)


def _filled(value: Any, model: Model) -> str | None:
    """Return a scalar with its variables put in, nothing for those without a value; None for what is no scalar."""
    return None if value is None or isinstance(value, dict | list) else model.fill(text(value)).text


def published(service: Mapping[str, Any], env: Environment, model: Model) -> list[int]:
    """Return the ports that a service takes requests at, the likeliest first: what PORT says, published ones, exposed ones, a proxy's."""
    listed = listed_ports(service, model)
    of_labels = [value for label, value in pairs(service.get("labels")) if label.endswith(".loadbalancer.server.port")]
    proxied = [endpoints.port_number(model.plain(value)) for value in (*of_labels, env.values.get("VIRTUAL_PORT"))]
    own = endpoints.port_number(env.port)
    if own and (own in listed or not listed):
        return [own, *listed]
    return [*listed, *(port for port in proxied if port)]


def prefix_of(service: Mapping[str, Any], model: Model) -> str | None:
    """Return the path prefix that a proxy's labels give the service (Traefik); None when they say none, or more than one."""
    if any(".stripprefix" in label for label, _ in pairs(service.get("labels"))):
        return None  # the service does not know of it, and the edge takes no prefix off
    rules = [model.plain(value) or "" for label, value in pairs(service.get("labels")) if label.endswith(".rule")]
    prefixes = {prefix for rule in rules for prefix in re.findall(r"PathPrefix\([`'\"](/[^`'\"\s?#]*)[`'\"]", rule)}
    if len(prefixes) != 1 or "{" in "".join(prefixes):  # {name:pattern} stands for many
        return None
    return prefixes.pop().rstrip("/") or "/"


@dataclass(frozen=True)
class Mounts:
    """``named``: volume -> mount text behind its name (``/data``, ``/data:ro``); ``left``: mounts that are not carried over -> reason."""

    named: tuple[tuple[str, str], ...] = ()
    left: dict[str, str] = field(default_factory=dict)


def mounts(service: Mapping[str, Any], model: Model) -> Mounts:
    """Return what a service mounts."""
    named: list[tuple[str, str]] = []
    left: dict[str, str] = {}
    for entry in as_list(service.get("volumes")):
        source, target, read_only = _mount(entry, model)
        shown = f"volume {':'.join(part for part in (source, target) if part) or text(entry)[:60]}"
        if source == "$":
            left[f"volume {text(entry)[:60]}"] = f"is not carried over: it {UNKNOWN}"
        elif not target or not target.startswith("/") or ":" in target:
            left[shown] = "is not carried over: its place in the container cannot be read"
        elif not source:
            left[shown] = "has no name: what is written there is gone with the container"
        elif not _VOLUME.fullmatch(source):
            left[shown] = "a path of the host: name it in volumes and allow_host_paths, where the service must have it"
        else:
            named.append((source, target + (":ro" if read_only else "")))
    return Mounts(tuple(dict.fromkeys(named)), left)


def _mount(entry: Any, model: Model) -> tuple[str, str, bool]:
    """Return source, target and whether it is read-only, of ``name:/path:ro`` or of the long form."""
    if isinstance(entry, dict):
        kind = entry.get("type", "volume")
        if any(entry.get(key) is not None and model.plain(entry[key]) is None for key in ("source", "target")):
            return "$", "", False
        source = (model.plain(entry.get("source")) or "") if kind in {"volume", "bind"} else ""
        source = f"./{source}" if kind == "bind" and not source.startswith((".", "/", "~")) else source
        return source, model.plain(entry.get("target")) or "", entry.get("read_only") is True
    filled = model.plain(entry)
    if filled is None:
        return "$", "", False
    parts = filled.split(":")
    if len(parts) == 1:
        return "", parts[0], False
    return parts[0], parts[1], len(parts) > 2 and "ro" in parts[2].split(",")


def memory(value: object) -> str | None:
    """Return a limit as the configuration has it: ``1.5g`` is ``1536m``. None for none, and for what is no size."""
    size = _SIZE.fullmatch(str(value or "").strip())
    if size is None:
        return None
    count = round(float(size["number"]) * {"b": 1, "": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[size["unit"].lower()])
    for unit, factor in (("g", 2**30), ("m", 2**20), ("k", 2**10)):
        if count >= factor and (count % factor == 0 or unit == "k"):
            return f"{count // factor}{unit}"
    return None


def seconds(value: object) -> float | None:
    """Return a duration, such as ``1m30s``, in seconds; None for none, for what is no duration, and for more than the hour there may be."""
    duration = _DURATION.fullmatch(str(value or "").strip())
    if duration is None or not duration[0]:
        return None
    factors = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    total = sum(float(duration[unit]) * factor for unit, factor in factors.items() if duration[unit])
    return (int(total) if total == int(total) else total) if total <= 3600 else None


def replicas(service: Mapping[str, Any], model: Model) -> int | None:
    """Return how many instances a service has; None where nothing says so."""
    deploy = service.get("deploy")
    value = model.plain((deploy if isinstance(deploy, dict) else {}).get("replicas", service.get("scale")))
    return int(value) if value and re.fullmatch(r"\d{1,4}", value) else None


def restart(service: Mapping[str, Any], model: Model) -> str | None:
    """Return when a service that has ended is started again: ``no``, ``always``, ``on-failure``, …; None where nothing says so."""
    deploy = as_mapping(service.get("deploy"))
    condition = model.plain(as_mapping(deploy.get("restart_policy")).get("condition"))
    value = {"none": "no", "any": "always"}.get(condition or "", condition) or model.plain(service.get("restart"))
    return "no" if value == "false" else value


def memory_limit(service: Mapping[str, Any], model: Model) -> str | None:
    """Return the memory limit of a service, of ``mem_limit`` or ``deploy.resources.limits.memory``."""
    value: Any = service.get("deploy")
    for key in ("resources", "limits", "memory"):
        value = value.get(key) if isinstance(value, dict) else None
    return memory(model.plain(service.get("mem_limit")) or model.plain(value))


def not_carried(service: Mapping[str, Any], model: Model) -> Iterator[tuple[str, str]]:
    """Yield what changes how a container runs, and is not carried over, with the reason."""
    if model.hides(model.fill(endpoints.command_of(service.get("healthcheck")))):
        yield "healthcheck", f"is not carried over: it {UNKNOWN}"
    yield from (
        (f"label {label}", f"is not read: it {UNKNOWN}") for label, value in pairs(service.get("labels")) if _is_hidden(label, value, model)
    )
    for key, value in service.items():
        if not _NOT_CARRIED.fullmatch(key) or value in (None, [], {}, False, ""):
            continue
        if key in {"secrets", "configs"}:
            listed = [text(entry.get("source") if isinstance(entry, dict) else entry) for entry in as_list(value)]
            yield f"{key} {', '.join(listed)}", "a file inside the container: hand it on as a variable (secrets), or put it into the image"
        else:
            yield key, "is not carried over: nothing of the configuration says so"


def _is_hidden(label: str, value: str | None, model: Model) -> bool:
    return label.endswith(".rule") and value is not None and model.plain(value) is None


def calls(env: Mapping[str, str], callees: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of an environment that call other services, rewritten to what the edge answers at, and variable -> service id.

    ``callees``: host -> id of a web service. ``http://auth-service:3001/x`` becomes ``http://auth-service/x``; other values stay.
    """
    rewritten, ids = {}, {}
    for name, value in env.items():
        match = re.fullmatch(r"(?P<scheme>(?:https?|wss?)://)(?P<host>[^/:?#@\s]+)(?::\d+)?(?P<rest>[/?#]\S*)?", value)
        callee = callees.get(match["host"]) if match else None
        if match and callee:
            ids[name] = callee
            rewritten[name] = f"{match['scheme'].replace('s:', ':')}{callee.replace('_', '-')}{match['rest'] or ''}"
    return rewritten, ids
