"""Tools of migrations beside Prisma are found by their files, and images that migrate at their own start by what they start."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.files import walk
from azora_ci.cli.adopt.migrations import migrators
from azora_ci.cli.adopt.repository import Files
from azora_ci.cli.adopt.toolchain import FoundToolchain

NPM = FoundToolchain("npm", None, "22", "package-lock.json")
VENV = ("python3", "-m", "venv", "--copies", ".azora-venv")


def written(folder: Path, files: dict[str, str]) -> Files:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return Files(folder, walk(folder))


@pytest.mark.parametrize(
    ("files", "package", "tool", "command", "prepare"),
    [
        (
            {"manage.py": "import django", "requirements.txt": "django"},
            {},
            "Django",
            (".azora-venv/bin/python", "manage.py", "migrate", "--noinput"),
            (VENV, (".azora-venv/bin/pip", "install", "--quiet", "-r", "requirements.txt")),
        ),
        ({"api/manage.py": "# Django"}, {}, "Django", (".azora-venv/bin/python", "api/manage.py", "migrate", "--noinput"), (VENV,)),
        ({"alembic.ini": ""}, {}, "Alembic", (".azora-venv/bin/alembic", "-c", "alembic.ini", "upgrade", "head"), (VENV,)),
        (
            {"apps/api/alembic.ini": ""},
            {},
            "Alembic",
            ("env", "-C", "apps/api", "../../.azora-venv/bin/alembic", "-c", "alembic.ini", "upgrade", "head"),
            (VENV,),
        ),
        ({}, {"dependencies": {"knex": "3"}}, "knex", ("npx", "knex", "migrate:latest"), (("npm", "ci"),)),
        ({}, {"devDependencies": {"drizzle-kit": "1"}}, "drizzle-kit", ("npx", "drizzle-kit", "migrate"), (("npm", "ci"),)),
        ({"flyway.conf": ""}, {}, "Flyway", ("flyway", "migrate"), ()),
    ],
)
def test_a_tool_is_found_by_its_files(tmp_path, files, package, tool, command, prepare):
    found = migrators.discover(written(tmp_path, files), package, NPM)
    assert (found.tool, found.command, found.prepare) == (tool, command, prepare)


@pytest.mark.parametrize("files", [{}, {"manage.py": "print('no framework')"}, {"node_modules/x/alembic.ini": ""}])
def test_nothing_is_invented(tmp_path, files):
    assert migrators.discover(written(tmp_path, files), {"dependencies": None}, NPM) is None


@pytest.mark.parametrize(
    ("dockerfile", "files", "found"),
    [
        ('CMD ["sh", "-c", "npx prisma migrate deploy && node server.js"]', {}, "prisma migrate deploy (Dockerfile)"),
        ("CMD npx prisma db push --skip-generate && node .", {}, "prisma db push (Dockerfile)"),
        ("CMD node_modules/.bin/prisma migrate \\\n  deploy; node .", {}, "prisma migrate deploy (Dockerfile)"),
        ("CMD node_modules/.bin/prisma migrate \\\r\n  deploy; node .\r\n", {}, "prisma migrate deploy (Dockerfile)"),
        (
            'ENTRYPOINT ["./docker-entrypoint.sh"]\nCMD ["node", "."]',
            {"docker-entrypoint.sh": '#!/bin/sh\nset -e\npython manage.py migrate --noinput\nexec "$@"\n'},
            "manage.py migrate (docker-entrypoint.sh)",
        ),
        ('CMD ["npm", "start"]', {"package.json": '{"scripts": {"prestart": "prisma migrate deploy", "start": "node ."}}'}, "prestart"),
        (
            'CMD ["pnpm", "run", "serve"]',
            {"package.json": '{"scripts": {"serve": "npm run up && node .", "up": "knex migrate:latest"}}'},
            "up",
        ),
        ('CMD ["bash", "/app/bin/start.sh"]', {"bin/start.sh": "alembic -c x.ini upgrade head\nuvicorn app:app"}, "bin/start.sh"),
        ('CMD ["node", "start.mjs"]', {"start.mjs": "execSync('npx prisma migrate deploy')"}, "start.mjs"),
    ],
)
def test_an_image_that_migrates_at_its_start(tmp_path, dockerfile, files, found):
    text = f"FROM node:22 AS build\nRUN npx prisma migrate deploy\nFROM node:22\nRUN npx prisma generate\n{dockerfile}\n"
    said = migrators.at_start(written(tmp_path, {"Dockerfile": text} | files), ".", "Dockerfile")
    assert found in (said or "")


@pytest.mark.parametrize(
    ("dockerfile", "files"),
    [
        ('CMD ["node", "server.js"]', {"server.js": "listen()"}),
        ('CMD ["npm", "start"]', {"package.json": '{"scripts": {"start": "node .", "migrate": "prisma migrate deploy"}}'}),
        ('CMD ["npx", "prisma", "migrate", "deploy"]\nCMD ["node", "."]', {}),  # the later one counts
        ('ENTRYPOINT ["./entry.sh"]', {"entry.sh": "# prisma migrate deploy is run by the pipeline\nexec node .\n"}),
        ('CMD ["npm", "start"]', {"package.json": "{"}),
        ('CMD ["sh", "a.sh"]', {"a.sh": "sh a.sh"}),  # a script that calls itself
        ("CMD [broken", {}),
    ],
)
def test_an_image_that_does_not(tmp_path, dockerfile, files):
    assert migrators.at_start(written(tmp_path, {"Dockerfile": f"FROM node:22\n{dockerfile}\n"} | files), ".", "Dockerfile") is None


def test_the_command_of_a_compose_file_stands_in_place_of_the_images_own(tmp_path):
    files = written(tmp_path, {"web/Dockerfile": 'FROM python:3.12\nENTRYPOINT ["/entry.sh"]\nCMD ["python", "manage.py", "migrate"]\n'})
    assert migrators.at_start(files, "web", "Dockerfile") == "manage.py migrate (web/Dockerfile)"
    assert migrators.at_start(files, "web", "Dockerfile", ("gunicorn", "shop")) is None
    said = migrators.at_start(files, "web", "Dockerfile", ("sh", "-c", "python manage.py migrate && gunicorn shop"))
    assert said == "manage.py migrate (command of the compose file)"


def test_no_dockerfile_starts_nothing(tmp_path):
    assert migrators.at_start(written(tmp_path, {}), ".", "Dockerfile") is None
