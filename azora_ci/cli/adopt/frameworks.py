"""The health endpoint of an application, in the words of the web framework that its repository names. Reads files, runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.files import NOT_OURS, regular
from azora_ci.core.documents import Limits, UnreadableError, read_json, read_toml

DEPTH = 2  # levels of folders below the repository in which packages are looked for
PACKAGE = re.compile(r"package\.json|pyproject\.toml|requirements[\w.-]*\.txt")
_JSON = '{ status: "healthy", version: process.env.VERSION }'
_PYTHON = '{"status": "healthy", "version": os.environ.get("VERSION")}'

# Dependency -> framework and snippet. What builds on another framework comes before it: a Nest application depends on Express as well.
FRAMEWORKS = {
    "@nestjs/core": (
        "Nest",
        f"""// health.controller.ts; name HealthController in the controllers of your AppModule
import {{ Controller, Get }} from "@nestjs/common";

@Controller("health")
export class HealthController {{
  @Get()
  health() {{
    return {_JSON};
  }}
}}""",
    ),
    "next": (
        "Next",
        f"""// app/health/route.ts, or src/app/health/route.ts
export const dynamic = "force-dynamic"; // VERSION is read when it runs, not when it is built

export function GET() {{
  return Response.json({_JSON});
}}""",
    ),
    "hono": ("Hono", f'app.get("/health", (context) => context.json({_JSON}));'),
    "fastify": ("Fastify", f'app.get("/health", async () => ({_JSON}));'),
    "koa": (
        "Koa",
        f"""// before other middleware
app.use(async (context, next) => {{
  if (context.path !== "/health") return next();
  context.body = {_JSON};
}});""",
    ),
    "express": (
        "Express",
        f'// before middleware that asks for a login\napp.get("/health", (request, response) => response.json({_JSON}));',
    ),
    "fastapi": (
        "FastAPI",
        f"""import os

@app.get("/health")
def health():
    return {_PYTHON}""",
    ),
    "django": (
        "Django",
        f"""# health.py beside settings.py; "<your project>.health.health" comes first in MIDDLEWARE: an instance is asked by its address,
# which ALLOWED_HOSTS does not name, and without HTTPS
import os

from django.http import JsonResponse


def health(get_response):
    def middleware(request):
        if request.path == "/health":
            return JsonResponse({_PYTHON})
        return get_response(request)

    return middleware""",
    ),
}


def advice(folder: Path) -> str:
    """Return the health contract, and a snippet for each web framework that the packages of a repository depend on."""
    lines = [
        "Health: every web service must answer GET on its health path, asked at the instance itself and in public, with HTTP 200 and",
        '  {"status": "healthy", "version": "1.2.3"}      (azora-ci sets VERSION for every instance; it is the release without v)',
    ]
    for dependency, package in discover(folder).items():
        name, snippet = FRAMEWORKS[dependency]
        lines += [f"  {name} (found in {package}):", *(f"      {line}".rstrip() for line in snippet.splitlines())]
    lines += [
        "  Start it with VERSION=1.2.3 and try it: python -m azora_ci health http://localhost:3000/health --version 1.2.3",
        "  Where that cannot be changed now, [services.<id>.health] says what it answers: healthy, status_from, version_from.",
    ]
    return "\n".join(lines)


def discover(folder: Path) -> dict[str, str]:
    """Return dependency in ``FRAMEWORKS`` -> the first file that names it; of one file, only what the others are built on."""
    found: dict[str, str] = {}
    for path in _packages(folder):
        names = _dependencies(path) if regular(folder, path.relative_to(folder)) else ()
        framework = next((name for name in FRAMEWORKS if name in names), None)
        if framework is not None:
            found.setdefault(framework, path.relative_to(folder).as_posix())
    return found


def _packages(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    try:
        entries = [path for path in sorted(folder.iterdir()) if path.exists()]
    except OSError:  # another user's, such as a database's
        return
    yield from (path for path in entries if path.is_file() and PACKAGE.fullmatch(path.name))
    for path in entries if depth else ():
        if path.is_dir() and not path.is_symlink() and path.name not in NOT_OURS:
            yield from _packages(path, depth - 1)


def _dependencies(path: Path) -> set[str]:
    """Return the lower-case names that a file depends on; none of a file that cannot be read, about which others complain."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return set(_mapping(_mapping(read_json(text, Limits(unique_keys=False))).get("dependencies")))
        lines = _requirements(read_toml(text)) if path.suffix == ".toml" else text.splitlines()
    except (OSError, UnicodeDecodeError, UnreadableError):
        return set()
    return {match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line.strip()))}


def _requirements(document: dict[str, Any]) -> list[str]:
    listed = _mapping(document.get("project")).get("dependencies")
    poetry = _mapping(_mapping(document.get("tool")).get("poetry")).get("dependencies")
    return [*(map(str, listed) if isinstance(listed, list) else ()), *_mapping(poetry)]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
