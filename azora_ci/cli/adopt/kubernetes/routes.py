"""How requests reach workloads: Services by their selectors, Ingress and HTTPRoute by the Services that they name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.kubernetes.manifests import Manifest
from azora_ci.cli.adopt.kubernetes.workload import Workload
from azora_ci.clients.kubernetes.objects import Document, member

_PREFIX = re.compile(r"/[^\s?#*\"\\^$()|\[\]]*")
_REST = re.compile(r"(?:\(/\|\$\)\(\.\*\)|/\?\(\.\*\)|/\(\.\*\)|/\*)$")  # how patterns say "and what stands behind"
_NOBODY = re.compile(
    r"localhost|.*\.(?:local|localhost|example|invalid|test|internal|nip\.io)|(?:.*\.)?example\.(?:com|net|org)|.*[*{}$].*"
)


@dataclass(frozen=True)
class Route:
    """How users reach a Service. ``path``: the prefix, None where it is a pattern; ``rewrites``: the prefix is taken off on the way;
    ``loses``: whatever is asked, the Service is asked for one path.
    """

    service: str
    host: str
    path: str | None
    source: str
    tls: bool = False
    rewrites: bool = False
    loses: bool = False


@dataclass(frozen=True)
class Reached:
    """A workload's Services and the routes that lead to them; ``open``: a Service of its own that users reach without a route."""

    services: tuple[Manifest, ...] = ()
    routes: tuple[Route, ...] = ()
    open: str = ""

    @property
    def prefix(self) -> str | None:
        """Return the only path prefix that leads here; None for none and for several."""
        paths = {route.path for route in self.routes}
        return paths.pop() if len(paths) == 1 else "/" if "/" in paths or (self.open and not paths) else None


def reached(workload: Workload, manifests: Sequence[Manifest], routes: Sequence[Route]) -> Reached:
    """Return how requests reach a workload."""
    services = [manifest for manifest in manifests if manifest.kind == "Service" and _selects(manifest, workload)]
    names = {service.name for service in services}
    leading = tuple(route for route in routes if route.service in names)
    outside = next((service for service in services if member(service.document, "spec", "type") in {"LoadBalancer", "NodePort"}), None)
    return Reached(tuple(services), leading, f"{member(outside.document, 'spec', 'type')} {outside.name}" if outside else "")


def _selects(service: Manifest, workload: Workload) -> bool:
    selector = member(service.document, "spec", "selector")
    if not isinstance(selector, dict) or not selector or (service.namespace and workload.manifest.namespace not in {"", service.namespace}):
        return False
    return all(workload.labels.get(key) == text(value) for key, value in selector.items())


def target_ports(service: Manifest) -> list[Any]:
    """Return the ports of pods that a Service leads to, by number or name, those called like the web's first."""
    entries = [entry for entry in as_list(member(service.document, "spec", "ports")) if isinstance(entry, dict)]
    entries.sort(key=lambda entry: not re.fullmatch(r"https?|web|app|api", text(entry.get("name"))))
    return [entry.get("targetPort", entry.get("port")) for entry in entries]


def routes(manifests: Sequence[Manifest]) -> list[Route]:
    """Return the routes of all Ingresses and HTTPRoutes."""
    found = []
    for manifest in manifests:
        if manifest.kind == "Ingress":
            found += list(_of_ingress(manifest))
        elif manifest.kind == "HTTPRoute":
            found += list(_of_http_route(manifest))
    return found


def _of_ingress(manifest: Manifest) -> Iterator[Route]:
    spec = manifest.document.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    source = f"Ingress {manifest.name} in {manifest.path}"
    secured = bool(spec.get("tls"))
    annotations = member(manifest.document, "metadata", "annotations")
    targets = [text(value) for name, value in _items(annotations) if name.endswith("/rewrite-target")]
    rewrites = any("$" in target for target in targets) or any("strip" in text(value) for _, value in _items(annotations))
    for rule in as_list(spec.get("rules")):
        for path in as_list(member(rule, "http", "paths")) if isinstance(rule, dict) else ():
            if isinstance(path, dict) and (service := _backend(path.get("backend"))):
                yield Route(
                    service, text(rule.get("host")), _prefix(path.get("path")), source, secured, rewrites, bool(targets) and not rewrites
                )
    if service := _backend(spec.get("defaultBackend") or spec.get("backend")):
        yield Route(service, "", "/", source, secured)


def _of_http_route(manifest: Manifest) -> Iterator[Route]:
    spec = manifest.document.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    host = text(next(iter(as_list(spec.get("hostnames"))), ""))
    for rule in (rule for rule in as_list(spec.get("rules")) if isinstance(rule, dict)):
        paths = [member(match, "path", "value") for match in as_list(rule.get("matches")) if isinstance(match, dict)] or ["/"]
        rewrites = any(isinstance(each, dict) and each.get("type") == "URLRewrite" for each in as_list(rule.get("filters")))
        for backend in as_list(rule.get("backendRefs")):
            for path in paths if isinstance(backend, dict) else ():
                yield Route(text(backend.get("name")), host, _prefix(path), f"HTTPRoute {manifest.name} in {manifest.path}", True, rewrites)


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _backend(backend: Any) -> str:
    if not isinstance(backend, dict):
        return ""
    return text(member(backend, "service", "name")) or text(backend.get("serviceName"))


def _prefix(path: Any) -> str | None:
    written = _REST.sub("", text(path)) or "/"
    return (written.rstrip("/") or "/") if _PREFIX.fullmatch(written) else None


def public(found: Sequence[Route]) -> tuple[str, str] | None:
    """Return the address that users reach the application at, and what says so; None where no route has a real host."""
    counted: dict[str, Route] = {}
    for route in sorted(found, key=lambda route: route.path != "/"):
        if re.fullmatch(r"[A-Za-z0-9.-]{1,253}", route.host) and not _NOBODY.fullmatch(route.host):
            counted.setdefault(route.host, route)
    if not counted:
        return None
    host, route = next(iter(counted.items()))
    return f"{'https' if route.tls else 'http'}://{host}", route.source


def services_of(rollout: Document) -> Mapping[str, str]:
    """Return stable_service and canary_service of a Rollout that splits traffic between them; nothing for another one."""
    canary = member(rollout, "spec", "strategy", "canary")
    names = {"stable_service": member(canary, "stableService"), "canary_service": member(canary, "canaryService")}
    split = bool(member(canary, "trafficRouting")) and all(isinstance(name, str) and name for name in names.values())
    return {key: str(name) for key, name in names.items()} if split else {}
