"""Values that only a developer's machine has: commands that watch files, stages and settings of development, addresses of itself. Pure."""

from __future__ import annotations

import re

from azora_ci.cli.adopt.compose.found import FoundService

MARK = "development's value"
_COMMAND = re.compile(
    r"\b(?:npm|pnpm|yarn|bun)\s+(?:run\s+|run-script\s+)?(?:\S+:)?(?:dev|develop|development|watch)(?::\S+)?(?=$|\s)"
    r"|\b(?:next|nuxt|nuxi|astro|remix|turbo|wrangler)\s+dev\b|\b(?:nodemon|ts-node-dev|tsnd|webpack-dev-server|watchmedo|watchfiles)\b"
    r"|\b(?:start:(?:dev|debug)|webpack\s+serve|ng\s+serve|tsx\s+watch|cargo\s+watch|dotnet\s+watch)\b|\bvite(?:\s+(?:dev|serve|-\S+.*))?$"
    r"|(?:^|\s)(?:--reload|--watch|--inspect(?:-brk)?(?:=\S+)?)(?=$|\s)|\bmanage\.py\s+runserver\b|\bartisan\s+serve\b"
    r"|\bsettings[.=](?:local|dev|development)\b|\bflask\b.*\s--debug\b"
)
_STAGE = re.compile(r"(?:^|[^a-z])(?:dev|devel|develop|development|debug|local)(?:$|[^a-z])", re.IGNORECASE)
_DEVELOPMENT = re.compile(r"dev|develop|development|local", re.IGNORECASE)
_SETTINGS = re.compile(r"[\w.]+\.(?:dev|development|local)")
_ITSELF = re.compile(r"(?:^|//|@|,|=)(?:localhost|127\.0\.0\.1|\[::1\]|host\.docker\.internal)(?=$|[:/,?])")
_SWITCHES = re.compile(r"(?:\w+_)?DEBUG")


def marks(service: FoundService) -> dict[str, str]:
    """Return key -> mark of a service's values that are development's."""
    found = {key: MARK for key in ("entrypoint", "command") if _COMMAND.search(" ".join(getattr(service, key)))}
    if _STAGE.search(service.dockerfile.rpartition("/")[2]):
        found["dockerfile"] = MARK
    elif not service.command and not service.entrypoint and _COMMAND.search(service.starts):
        found["dockerfile"] = f"it starts {service.starts}: {MARK}"
    if _STAGE.search(service.build.get("target", "")):
        found["build.target"] = MARK
    for key, values in (("env", service.env), ("build.args", service.build.get("args", {}))):
        names = [name for name, value in values.items() if is_developments(name, value)]
        found |= {key: f"{MARK}: {', '.join(names)}"} if names else {}
    return found


def is_developments(name: str, value: str) -> bool:
    """Say whether a variable's value is one of development."""
    if _SWITCHES.fullmatch(name):
        return value.lower() in {"1", "true", "yes", "on"}
    if name.endswith("SETTINGS_MODULE"):
        return bool(_SETTINGS.fullmatch(value))
    return bool(_ITSELF.search(value) or (re.search(r"(?:ENV|ENVIRONMENT|MODE|PROFILES_ACTIVE)$", name) and _DEVELOPMENT.fullmatch(value)))
