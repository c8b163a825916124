"""Services of compose files become services of a configuration that loads; what is not carried over is named."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from azora_ci.cli.adopt import deploy_toml, programs
from azora_ci.cli.adopt.discover import Application, FoundService, discover
from azora_ci.core import config
from azora_ci.gates.readiness import to_fill_in


@pytest.fixture(autouse=True)
def without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What git and docker know is for other tests: here it would be all that takes time."""
    monkeypatch.setattr(programs, "run", lambda argv: None)


def repository(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    return folder


def adopted(
    folder: Path, services: str, files: dict[str, str] | None = None, **options: Any
) -> tuple[Application, config.DeployConfig, str]:
    """Return what was discovered, the configuration that the written one loads as, and its text."""
    repository(folder, {"docker-compose.yml": f"services:\n{textwrap.indent(textwrap.dedent(services), '  ')}", **(files or {})})
    application = discover(folder, **options)
    text = deploy_toml.render(application)
    path = folder / "deploy-production.toml"
    path.write_text(text)
    return application, config.load(path), text


def one(folder: Path, service: str, files: dict[str, str] | None = None) -> FoundService:
    """Return the one service of a compose file."""
    application, _, _ = adopted(folder, f"web:\n{textwrap.indent(textwrap.dedent(service), '  ')}\n", files)
    (found,) = application.services
    return found


# --- how it is built ------------------------------------------------------------------------------------------------------------


def test_build_command_files_of_variables_and_volumes_are_carried_over(tmp_path):
    application, loaded, text = adopted(
        tmp_path,
        """
        web:
          build: {context: ., target: runner, args: {API_URL: x, FROM_ENV: null, NPM_TOKEN: a-secret}, platforms: [linux/arm64]}
          env_file: [.env.web, {path: absent.env, required: false}]
          entrypoint: /entry.sh
          command: node server.js --name "a b"
          volumes: ["uploads:/app/uploads", "./seed:/seed", /anonymous]
          ports: ["3000:3000"]
        """,
        {".env.web": "LEVEL=info\nSTRIPE_KEY=a-secret\n"},
    )
    (web,) = loaded.services
    assert (web.build.target, web.build.args, web.build.platform) == ("runner", {"API_URL": "x"}, "linux/arm64")
    assert (web.entrypoint, web.command) == (("/entry.sh",), ("node", "server.js", "--name", "a b"))
    assert (web.env, web.secrets) == ({"LEVEL": "info"}, ("STRIPE_KEY",))
    assert web.volumes == ("uploads:/app/uploads",)
    assert {"web: build argument FROM_ENV", "web: build argument NPM_TOKEN", "web: volume ./seed:/seed", "web: volume /anonymous"} <= set(
        application.left_out
    )
    assert "a-secret" not in text
    assert "as docker volume ls names them" in text


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("../web", "outside of this repository"),
        ("{context: ../web}", "outside of this repository"),
        ("{context: ., dockerfile: ..}", "outside of this repository"),
        ("{context: web, dockerfile: ../../Dockerfile}", "its Dockerfile ../Dockerfile is outside of this repository"),
        ("https://github.com/acme/web.git#main", "another repository"),
        ("git@github.com:acme/web.git", "another repository"),
        ("{context: 'https://user:a-secret@git.example/web.git'}", "another repository"),
        ("{dockerfile_inline: 'FROM x'}", "dockerfile_inline"),
        ("null", "not built here (image unknown)"),
    ],
)
def test_a_service_that_cannot_be_built_here_is_left_out_in_words(tmp_path, build, reason):
    application, _, _ = adopted(tmp_path, f"web: {{build: .}}\nother: {{build: {build}}}")
    assert [service.id for service in application.services] == ["web"]
    assert reason in application.left_out["other"]
    assert "a-secret" not in str(application)


def test_a_service_whose_image_keeps_data_is_left_out(tmp_path):
    application, _, _ = adopted(
        tmp_path, "web: {build: .}\ndb: {build: db}", {"db/Dockerfile": "FROM docker.io/library/postgres:17 AS x\nFROM x\n"}
    )
    assert "what keeps data does not change with a release" in application.left_out["db"]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        ("{context: ., target: '${TARGET}'}", "web: build.target ${TARGET}"),
        ("{context: ., dockerfile: 'Dockerfile.${APP_ENV}'}", "web: build.dockerfile Dockerfile.${APP_ENV}"),
        ("{context: ., target: '${TARGET:-prod}', dockerfile: 'Dockerfile.${APP_ENV:-prod}'}", None),
    ],
)
def test_how_it_is_built_is_named_where_it_is_not_known(tmp_path, build, named):
    application, _, _ = adopted(tmp_path, f"web: {{build: {build}, ports: [80]}}")
    assert list(application.left_out) == ([named] if named else [])


def test_contexts_are_relative_to_the_repository(tmp_path):
    application, _, _ = adopted(
        tmp_path,
        "a: {build: '${SRC:-.}/web'}\nb: {build: {context: ./x/../y, dockerfile: ../Dockerfile.b}}\nc: {build: {dockerfile: docker/C}}",
    )
    assert [(service.context, service.dockerfile) for service in application.services] == [
        ("web", "Dockerfile"),
        ("y", "../Dockerfile.b"),
        (".", "docker/C"),
    ]


def test_a_service_that_runs_an_image_that_another_one_builds_is_built_too(tmp_path):
    _, loaded, _ = adopted(
        tmp_path,
        """
        api: {image: acme/app, build: {context: app, target: prod}, ports: [80]}
        worker: {image: acme/app, command: node worker.js}
        """,
    )
    worker = loaded.service("worker")
    assert (worker.kind, str(worker.context), worker.build.target, worker.command) == ("worker", "app", "prod", ("node", "worker.js"))


@pytest.mark.parametrize(
    ("service", "dockerfile", "key"),
    [
        ("command: npm run dev", "", "command"),
        ("command: pnpm start:dev", "", "command"),
        ("command: python manage.py runserver 0.0.0.0:8000", "", "command"),
        ("command: uvicorn shop:app --reload", "", "command"),
        ("command: vite --host", "", "command"),
        ("entrypoint: [nodemon]", "", "entrypoint"),
        ("", "CMD npm run dev", "dockerfile"),
        ("environment: {NODE_ENV: development}", "", "env"),
        ("environment: {API_URL: 'http://localhost:3000/v1'}", "", "env"),
        ("environment: {CACHE: '127.0.0.1:6379'}", "", "env"),
        ("environment: {DJANGO_SETTINGS_MODULE: shop.settings.local}", "", "env"),
        ("environment: {APP_DEBUG: 'true'}", "", "env"),
        ("build: {context: ., target: dev}", "", "target"),
        ("build: {context: ., dockerfile: Dockerfile.dev}", "", "dockerfile"),
        ("build: {context: ., args: {API_URL: 'http://localhost:3000'}}", "", "args"),
        ("command: npm run start", "CMD npm run dev", None),
        ("command: vite preview", "", None),
        ("command: npm run deviate", "", None),
        ("environment: {NODE_ENV: production, DEBUG: 'shop:*', LOG_FORMAT: dev, URL: 'https://localhost.example', MODE: fast}", "", None),
        ("build: {context: ., target: devices}", "", None),
    ],
)
def test_values_of_development_are_marked(tmp_path, service, dockerfile, key):
    build = "" if service.startswith("build:") else "build: .\n"
    services = f"web:\n  ports: [80]\n{textwrap.indent(build + service, '  ')}"
    _, _, text = adopted(
        tmp_path, services, {"Dockerfile": f"FROM node AS dev\nFROM node AS devices\n{dockerfile}\n", "Dockerfile.dev": ""}
    )
    marked = [line.partition(" = ")[0] for line in text.splitlines() if "# fill in" in line and "development's value" in line]
    assert marked == ([key] if key else [])


# --- kinds -----------------------------------------------------------------------------------------------------------------------


def test_each_service_gets_its_kind(tmp_path):
    application, loaded, text = adopted(
        tmp_path,
        """
        web:
          build: .
          ports: ["80:3000"]
          depends_on: {seed: {condition: service_completed_successfully}, api: {condition: service_started}}
        api: {build: ., environment: {PORT: 4000}}
        worker: {build: ., command: node worker.js, depends_on: [api]}
        scheduler: {build: ., command: node cron.js, deploy: {replicas: 3}}
        beat: {build: ., command: celery -A app beat}
        seed: {build: ., command: node seed.js}
        report: {build: ., command: node report.js, restart: "no"}
        mailer: {build: ., healthcheck: {test: curl -f http://localhost:9000/live}, command: node mailer.js}
        migrate: {build: ., command: npx prisma migrate deploy, restart: "no"}
        """,
    )
    kinds = {service.id: (service.kind, service.singleton, service.when if service.kind == "job" else "") for service in loaded.services}
    assert kinds == {
        "web": ("web", False, ""),
        "api": ("web", False, ""),
        "mailer": ("web", False, ""),
        "worker": ("worker", False, ""),
        "scheduler": ("worker", True, ""),
        "beat": ("worker", True, ""),
        "seed": ("job", False, "before-rollout"),
        "report": ("job", False, "before-rollout"),
    }
    assert "the job database-migrations does that" in application.left_out["migrate"]
    assert loaded.service("worker").depends_on == ("api",)
    assert loaded.service("web").depends_on == ("api",)
    assert "web waits until it has completed" in text
    assert [hint for _, hint in to_fill_in(text) if "before-rollout" in hint] == ["before-rollout or after-rollout"]
    assert loaded.service("api").port == 4000


@pytest.mark.parametrize(
    ("service", "kind", "singleton"),
    [
        ("ports: ['${API_PORT}:4000']", "web", False),
        ("ports: ['80:${API_PORT}']", "web", False),
        ("ports: [{target: '${API_PORT}'}]", "web", False),
        ("ports: ['${DEBUG_PORT}:9229']\ncommand: node mail.js", "worker", False),
        ('command: sh -c "npx prisma migrate deploy && node server.js"\nexpose: [3000]', "web", False),
        ('command: sh -c "npx prisma migrate deploy && node worker.js"', "worker", False),
        ("command: alembic upgrade head\nlabels: [traefik.enable=true]", "worker", False),
        ("command: alembic upgrade head", None, False),
        ('command: sh -c "python manage.py migrate --noinput 2>&1 || exit 1; echo done"\nrestart: on-failure', None, False),
        ("command: node report.js\ndeploy: {restart_policy: {condition: none}}", "job", False),
        ("command: php artisan schedule:work", "worker", True),
        ("command: sh -c 'while true; do php artisan schedule:run; sleep 60; done'", "worker", True),
        ("command: supercronic /app/crontab", "worker", True),
        ("command: bundle exec clockwork clock.rb", "worker", True),
        ("command: celery -A shop worker -l info -B", "worker", True),
        ("command: celery -A shop worker --beat", "worker", True),
        ("command: celery -A shop worker -Q Bulk", "worker", False),
    ],
)
def test_what_a_service_says_decides_its_kind(tmp_path, service, kind, singleton):
    application, _, _ = adopted(tmp_path, f"web: {{build: ., ports: [80]}}\nx:\n{textwrap.indent(f'build: .{chr(10)}{service}', '  ')}")
    assert [(found.kind, found.singleton) for found in application.services if found.id == "x"] == ([(kind, singleton)] if kind else [])
    assert ("x" in application.left_out) is (kind is None)


@pytest.mark.parametrize(
    ("name", "service", "kind"),
    [
        ("seed", "", "job"),
        ("db-seed", ", command: npm run seed", "job"),
        ("init-db", ", command: ./init.sh, restart: on-failure", "job"),
        ("migrate", ", command: npm run migrate", "job"),
        ("setup", ", command: ./setup.sh, restart: always", "worker"),
        ("bootstrap", ", ports: [81]", "web"),
        ("initial-api", ", command: node .", "worker"),
    ],
)
def test_what_prepares_and_is_not_restarted_is_a_job(tmp_path, name, service, kind):
    _, loaded, text = adopted(tmp_path, f"web: {{build: ., ports: [80]}}\n{name}: {{build: .{service}}}")
    assert loaded.service(name.replace("-", "_")).kind == kind
    assert bool([hint for _, hint in to_fill_in(text) if hint == "before-rollout or after-rollout"]) is (kind == "job")


def test_a_port_that_is_a_variable_is_marked(tmp_path):
    _, _, text = adopted(tmp_path, "web: {build: ., ports: ['80:${API_PORT}']}")
    assert "the port inside the container" in [hint for _, hint in to_fill_in(text)]


def test_an_image_that_only_migrates_is_left_out(tmp_path):
    files = {"Dockerfile": 'FROM node AS web\nEXPOSE 80\nFROM node AS migrator\nCMD ["npx", "prisma", "migrate", "deploy"]\n'}
    application, _, _ = adopted(tmp_path, "web: {build: {target: web}}\nmigrate: {build: {target: migrator}}", files)
    assert [service.id for service in application.services] == ["web"]
    assert "the job database-migrations does that" in application.left_out["migrate"]


def test_one_service_takes_requests_even_when_none_says_so(tmp_path):
    _, loaded, text = adopted(tmp_path, "worker: {build: ., command: node a.js}\ncron: {build: ., command: node b.js}")
    assert [(service.id, service.kind) for service in loaded.services] == [("worker", "web"), ("cron", "worker")]
    assert any("one has to take requests" in hint for _, hint in to_fill_in(text))


def test_a_service_without_any_sign_is_marked(tmp_path):
    _, _, text = adopted(tmp_path, "web: {build: ., ports: [80]}\nthing: {build: .}")
    assert any("worker, or web with route_prefix" in hint for _, hint in to_fill_in(text))


def test_profiles_are_deployed_when_they_are_named(tmp_path):
    services = (
        "web: {build: ., ports: [80]}\ndebug: {build: ., command: x, profiles: [debug, tools]}\nredis: {image: redis, profiles: [debug]}"
    )
    application, _, _ = adopted(tmp_path, services)
    assert [service.id for service in application.services] == ["web"]
    assert application.left_out["debug"] == "only with the profile debug or tools: adopt with --profile debug"
    application, _, _ = adopted(tmp_path, services, profiles=["tools"])
    assert [service.id for service in application.services] == ["web", "debug"]
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=tools\n")
    assert len(discover(tmp_path).services) == 2


# --- ports and health -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "port"),
    [
        ('ports: ["80:3000"]', 3000),
        ("ports: ['3000:${P:-3001}']", 3001),
        ("ports: ['${HOST_PORT:-80}:3000']", 3000),
        ("ports: ['3000-3005:4000-4005']", 4000),
        ('ports: ["9229:9229", "3000:3000"]', 3000),
        ('ports: ["25:25/udp", "80:81"]', 81),
        ("ports: [3000]", 3000),
        ("ports: ['127.0.0.1:4000:4001/tcp']", 4001),
        ("ports: ['[::1]:4000:4001']", 4001),
        ("ports: [22:2222]", 2222),
        ("ports: [{target: 3000, published: 80}]", 3000),
        ("ports: [{target: 53, protocol: udp}, {target: '${T:-5000}'}]", 5000),
        ("ports: ['80:${NOBODY}']", None),
        ("ports: ['${API_PORT}:4000']", 4000),
        ("ports: ['${HOST}:${API_PORT}:4000/tcp']", 4000),
        ("ports: [{target: 4000, published: '${API_PORT}'}]", 4000),
        ("ports: '80:80'", 80),
        ("ports: {a: b}", None),
        ("expose: ['3001']", 3001),
        ("environment: {PORT: 4000}", 4000),
        ("environment: [PORT=4000]\nports: ['80:4000', '81:5000']", 4000),
        ("environment: [PORT=4000]\nports: ['5000:5000', '80:4000']", 4000),
        ("environment: {PORT: '${WEB_PORT:-4100}'}", 4100),
        ("labels: [traefik.http.services.web.loadbalancer.server.port=8000]", 8000),
        ("environment: {VIRTUAL_PORT: 8001}", 8001),
        ("healthcheck: {test: 'curl http://localhost:9000/x'}\nports: ['80:80']", 80),
        ("healthcheck: {test: 'curl http://localhost:8081/x'}\nports: ['8080:8080', '8081:8081']", 8080),
        ("healthcheck: {test: 'curl http://localhost:9000/x'}", 9000),
        ("environment: [PORT=4000]\nhealthcheck: {test: 'curl localhost:4000/x'}\nexpose: [5000, 4000]", 4000),
    ],
)
def test_the_port_is_found(tmp_path, service, port):
    found = one(tmp_path, f"build: .\n{service}")
    assert found.port == port
    assert ("port" in found.marks) is ("healthcheck" in service and "ports" in service)


@pytest.mark.parametrize(
    ("test", "port", "path"),
    [
        ("['CMD', 'curl', '-f', 'http://localhost:3000/health']", 3000, "/health"),
        ("['CMD-SHELL', 'curl -f http://127.0.0.1:3000/health || exit 1']", 3000, "/health"),
        ("curl --fail http://localhost:3000 || exit 1", 3000, "/"),
        ("wget -qO- http://0.0.0.0:3000/ready", 3000, "/ready"),
        ("wget --spider -q localhost:$${PORT}/ready", 4000, "/ready"),
        ("curl localhost:$$PORT/ready", 4000, "/ready"),
        ("curl http://localhost:$${OTHER:-5000}/ready", 5000, "/ready"),
        ("'curl http://localhost:${P:-6000}/ready'", 6000, "/ready"),
        ("curl http://web:3000/x", 3000, "/x"),
        ("curl -sf 'http://[::1]:3000/api/health?deep=1'", 3000, "/api/health"),
        ("curl http://localhost/health", None, "/health"),
        (
            "node -e \"require('http').get('http://localhost:3000/api/health', r => process.exit(r.statusCode === 200 ? 0 : 1))\"",
            3000,
            "/api/health",
        ),
        ("node -e \"fetch('http://127.0.0.1:3000/health').then(r => process.exit(r.ok ? 0 : 1))\"", 3000, "/health"),
        ("python -c \"import urllib.request; urllib.request.urlopen('http://localhost:8000/health')\"", 8000, "/health"),
        ("node -e \"require('http').get({host: 'localhost', port: 3000, path: '/up'})\"", 3000, "/up"),
        ("nc -z localhost 3000", 3000, None),
        ("pg_isready -h localhost:5432", None, None),
        ("curl http://elsewhere.example/x", None, None),
        ("['NONE']", None, None),
        ("['CMD', 'true']", None, None),
    ],
)
def test_the_health_check_says_port_and_path(tmp_path, test, port, path):
    if not test.startswith(("[", "'")):
        test = "\n    " + test
        test = "|-" + test
    found = one(tmp_path, f"build: .\nenvironment: {{PORT: 4000}}\nhealthcheck:\n  test: {test}\n")
    assert found.health_path == path
    assert found.port == (port if port and path else 4000)


def test_a_dockerfile_says_what_compose_does_not(tmp_path):
    dockerfile = "\ufeffFROM node AS base\nARG P=3100\nEXPOSE $P 53/udp\nFROM base AS dev\nEXPOSE 9229\n"
    dockerfile += "FROM base\nHEALTHCHECK --interval=5s \\\n CMD curl -f http://localhost:3100/up\n"
    found = one(tmp_path, "build: .", {"Dockerfile": dockerfile})
    assert (found.kind, found.port, found.health_path) == ("web", 3100, "/up")
    assert found.sources == {"port": "HEALTHCHECK of its Dockerfile", "health_path": "HEALTHCHECK of its Dockerfile"}


# --- variables and secrets ------------------------------------------------------------------------------------------------------------


def test_values_stay_values_and_secrets_become_secrets(tmp_path):
    application, loaded, text = adopted(
        tmp_path,
        """
        web:
          build: .
          ports: [80]
          environment:
            LOG_LEVEL: ${LOG_LEVEL:-info}
            FEATURE: ""
            FROM_FILE: ${PLAIN}
            RATIO: 1.5
            ON: yes
            PASSWORD_MIN_LENGTH: 12
            PGPASSWORD: hunter2
            DATABASE_URL: postgres://shop:${POSTGRES_PASSWORD:-hunter2}@db/shop
            DIRECT_URL: postgres://h/db?password=hunter2
            HOOK: https://hooks.slack.com/services/hunter2
            OPTIONAL_TOKEN: ${OPTIONAL_TOKEN:-}
            UNKNOWN: ${UNKNOWN}
            database__password: ${P}
            _TRACE: ${_TRACE}
            GITHUB_CLIENT_SECRET: ${GITHUB_CLIENT_SECRET}
            AWS_ACCESS_KEY_ID: ${AWS_ACCESS_KEY_ID}
            PROD_KEY: hunter2
            DOCKER_PASSWORD: ${DOCKER_PASSWORD}
            NODE_AUTH_TOKEN: ${NODE_AUTH_TOKEN}
            HTTPS_PROXY: ${HTTPS_PROXY}
            PROD_DATABASE_URL: ${PROD_DATABASE_URL}
        """,
        {".env": "PLAIN=from the file\nHIDDEN=hunter2\n"},
    )
    (web,) = loaded.services
    assert web.env == {
        "LOG_LEVEL": "info",
        "FEATURE": "",
        "FROM_FILE": "from the file",
        "RATIO": "1.5",
        "ON": "yes",
        "PASSWORD_MIN_LENGTH": "12",
    }
    assert web.secret_variables == {
        "PGPASSWORD": "APP_PGPASSWORD",
        "DATABASE_URL": "DATABASE_URL",
        "DIRECT_URL": "DIRECT_URL",
        "HOOK": "HOOK",
        "OPTIONAL_TOKEN": "OPTIONAL_TOKEN",
        "UNKNOWN": "UNKNOWN",
        "database__password": "P",
        "_TRACE": "TRACE",
        "GITHUB_CLIENT_SECRET": "APP_GITHUB_CLIENT_SECRET",
        "AWS_ACCESS_KEY_ID": "APP_AWS_ACCESS_KEY_ID",
        "PROD_KEY": "APP_PROD_KEY",
        "DOCKER_PASSWORD": "APP_DOCKER_PASSWORD",
        "NODE_AUTH_TOKEN": "APP_NODE_AUTH_TOKEN",
        "HTTPS_PROXY": "APP_HTTPS_PROXY",
        "PROD_DATABASE_URL": "PROD_DATABASE_URL",
    }
    assert "hunter2" not in text
    assert "hunter2" not in str(application.left_out)


def test_one_name_with_two_values_is_two_secrets_and_one_value_is_one(tmp_path):
    _, loaded, _ = adopted(
        tmp_path,
        """
        a: {build: ., ports: [80], environment: {DATABASE_URL: "postgres://a:x@db/a", JWT_SECRET: "${JWT}", KEY: "${SHARED_KEY}"}}
        b: {build: ., ports: [81], environment: {DATABASE_URL: "postgres://b:x@db/b", JWT_SECRET: "${JWT}", OTHER_KEY: "${SHARED_KEY}"}}
        """,
    )
    assert loaded.service("a").secret_variables == {"DATABASE_URL": "DATABASE_URL", "JWT_SECRET": "JWT", "KEY": "SHARED_KEY"}
    assert loaded.service("b").secret_variables == {"DATABASE_URL": "B_DATABASE_URL", "JWT_SECRET": "JWT", "OTHER_KEY": "SHARED_KEY"}


def test_a_file_of_variables_that_is_not_in_the_repository_is_named_and_its_example_read(tmp_path):
    application, loaded, text = adopted(
        tmp_path,
        "a: {build: ., ports: [80], env_file: .env}\nb: {build: ., ports: [81], env_file: other.env}",
        {".env.example": "API_URL=http://localhost:3000\nJWT_SECRET=change-me\n"},
    )
    assert (loaded.service("a").env, loaded.service("a").secrets) == ({"API_URL": "http://localhost:3000"}, ("JWT_SECRET",))
    assert "the values are those of .env.example" in text
    assert application.left_out["a: env_file .env"] == "not in the repository; its variables are those of .env.example"
    assert application.left_out["b: env_file other.env"] == "not in the repository: name its variables"


def test_a_list_of_mappings_is_an_environment(tmp_path):
    application, _, text = adopted(tmp_path, "a: {build: ., ports: [80], environment: [{PASSWORD: hunter2}, {A: b}, C=d]}")
    (service,) = application.services
    assert (service.env, service.secrets) == ({"A": "b", "C": "d"}, {"PASSWORD": "PASSWORD"})
    assert "hunter2" not in text + str(application)


def test_names_that_no_container_takes_are_named(tmp_path):
    application, _, _ = adopted(tmp_path, "a: {build: ., ports: [80], environment: {1: a, a.b: c, HOST: db.example, VERSION: 1}}")
    assert {"a: variable '1'", "a: variable 'a.b'", "a: HOST", "a: VERSION"} <= set(application.left_out)


def test_the_environment_of_whoever_adopts_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAK", "from-my-shell")
    application, _, text = adopted(tmp_path, "a: {build: ., ports: [80], environment: ['LEAK', 'X=${LEAK:-default}']}")
    assert application.services[0].env == {"X": "default"}
    assert "from-my-shell" not in text


# --- names and other things -----------------------------------------------------------------------------------------------------------


def test_ids_are_unique_whatever_services_are_called(tmp_path):
    _, loaded, _ = adopted(
        tmp_path,
        "".join(f"{name}: {{build: .}}\n" for name in ("web-app", "web_app", "web.app", "сервер", "服务", "Über", "3d"))
        + f"{'x' * 40}a: {{build: .}}\n{'x' * 40}b: {{build: .}}",
    )
    ids = {service.id for service in loaded.services}
    assert ids == {"web_app", "web_app_2", "web_app_3", "app", "app_2", "uber", "app_3d", "x" * 31, "x" * 27 + "_2"}


def test_services_that_wait_for_one_another_load(tmp_path):
    application, _, _ = adopted(tmp_path, "a: {build: ., ports: [80], depends_on: [b]}\nb: {build: ., ports: [81], depends_on: [a]}")
    assert "b: depends_on a" in application.left_out


@pytest.mark.parametrize(
    ("service", "memory"),
    [
        ("mem_limit: 1.5g", "1536m"),
        ("mem_limit: 512M", "512m"),
        ("mem_limit: 1GiB", "1g"),
        ("mem_limit: 536870912", "512m"),
        ("mem_limit: 100kb", "100k"),
        ("mem_limit: '${MEM:-256m}'", "256m"),
        ("deploy: {resources: {limits: {memory: 1.25G}}}", "1280m"),
        ("deploy: [x]", None),
        ("mem_limit: many", None),
        ("mem_limit: '0'", None),
    ],
)
def test_memory_limits_are_read(tmp_path, service, memory):
    assert one(tmp_path, f"build: .\n{service}").memory == memory


def test_what_a_configuration_cannot_say_is_named(tmp_path):
    service = """
    build: {context: ., additional_contexts: {x: ./y}, ssh: default}
    stop_grace_period: 1m30s
    user: node
    privileged: true
    cap_add: [NET_ADMIN]
    secrets: [db_password]
    tmpfs: /tmp
    working_dir: ""
    command: run ${NOBODY}
    volumes: [{type: bind, source: x, target: /x}, {type: tmpfs, target: /t}]
    """
    found = one(tmp_path, service)
    assert found.stop_grace_seconds == 90
    expected = {"user", "privileged", "cap_add", "secrets db_password", "tmpfs", "command", "volume ./x:/x", "volume /t"}
    assert set(found.left) == expected | {"build.additional_contexts", "build.ssh"}


def test_volumes_and_networks_have_their_real_names_where_the_files_say_them(tmp_path):
    repository(
        tmp_path,
        {
            "docker-compose.yml": """
            name: shop
            services:
              web:
                build: .
                ports: [80]
                environment: {CACHE: "redis:6379", SEARCH: "http://search:7700"}
                volumes: [uploads:/u, shared:/s, own:/o, neighbour:/edge]
              redis: {image: redis, networks: [default, edge]}
              search: {image: search, networks: [back]}
            volumes: {uploads: null, shared: {external: true}, own: {name: my-own}, neighbour: {name: shop-edge}}
            networks: {back: {name: backend}, edge: {name: 0-web-edge}}
            """
        },
    )
    found = discover(tmp_path)
    (web,) = found.services
    assert web.volumes == ("shop_uploads:/u", "shared:/s", "my-own:/o")
    assert "web: volume shop-edge:/edge" in found.left_out
    assert web.networks == ("shop_default", "backend")
    assert not web.marks


def test_services_that_call_one_another_do_so_through_the_edge(tmp_path):
    _, loaded, _ = adopted(
        tmp_path,
        """
        web: {build: ., ports: [80], environment: {API: "http://the-api:3000/v1", WS: "wss://the-api:3000", OTHER: "amqp://queue:1", X: "http://x.example"}}
        the-api: {build: ., ports: [3000]}
        queue: {build: ., command: worker}
        """,
    )
    web = loaded.service("web")
    assert web.talks_to == ("the_api",)
    assert web.env == {"API": "http://the-api/v1", "WS": "ws://the-api", "OTHER": "amqp://queue:1", "X": "http://x.example"}


def test_prefixes_are_those_of_the_proxy(tmp_path):
    _, loaded, text = adopted(
        tmp_path,
        """
        web: {build: ., ports: [80], labels: {"traefik.http.routers.w.rule": "Host(`a.example`) && PathPrefix(`/shop`)"}}
        api: {build: ., ports: [80], labels: ["traefik.http.routers.a.rule=PathPrefix(`/api/`)"]}
        """,
    )
    assert [service.route_prefix for service in loaded.services] == ["/shop", "/api"]
    assert not [hint for _, hint in to_fill_in(text) if "prefix that the edge" in hint]


@pytest.mark.parametrize(
    ("labels", "prefixes", "marked"),
    [
        (["PathPrefix(`/`)", "PathPrefix(`/`)"], ["/a", "/a-service"], 2),
        (["PathPrefix(`/a`)", None], ["/a", "/a-service"], 1),
        (["PathPrefix(`/x/{id:[0-9]+}`)", "PathPrefix(`/y`)"], ["/a", "/y"], 1),
        (["PathPrefix(`/x`)', 'traefik.http.middlewares.m.stripprefix.prefixes=/x", "PathPrefix(`/y`)"], ["/a", "/y"], 1),
    ],
)
def test_a_prefix_that_does_not_tell_services_apart_is_a_guess(tmp_path, labels, prefixes, marked):
    rules = [f", labels: ['traefik.http.routers.r.rule={rule}']" if rule else "" for rule in labels]
    _, loaded, text = adopted(tmp_path, f"a: {{build: ., ports: [80]{rules[0]}}}\na_service: {{build: ., ports: [81]{rules[1]}}}")
    assert [service.route_prefix for service in loaded.services] == prefixes
    assert len([hint for _, hint in to_fill_in(text) if "prefix that the edge sends" in hint]) == marked


def test_a_repository_whose_compose_file_only_runs_its_own_image_is_built_by_its_dockerfile(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    application, loaded, _ = adopted(
        folder,
        "app: {image: 'ghcr.io/acme/shop:latest', ports: ['80:3000'], environment: {A: b}}\ndb: {image: postgres}",
        {"Dockerfile": "FROM scratch\n"},
    )
    assert [(service.id, service.port, service.env) for service in loaded.services] == [("app", 3000, {"A": "b"})]
    assert application.left_out == {"db": "not built here (image postgres)"}


def test_a_repository_without_compose_has_the_service_of_its_dockerfile(tmp_path):
    repository(tmp_path, {"Dockerfile": "FROM node\nEXPOSE 8000\n"})
    (service,) = discover(tmp_path).services
    assert (service.context, service.dockerfile, service.port, service.kind) == (".", "Dockerfile", 8000, "web")
