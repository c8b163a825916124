"""deploy-production.toml: every mistake is named with its key."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, time, timedelta
from pathlib import Path

import pytest

from azora_ci.core import config, hosts, schemas
from azora_ci.core.config import ImageSettings
from azora_ci.core.config.calendar import Once, Weekly, Yearly
from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import Secret
from azora_ci.steps.job import own_variables
from tests.support import deploy_config

EXCEPTION = '{ id = "GHSA-jf85-cpcp-j695", reason = "not called", expires = 2027-01-31 }'
CALENDAR = """[calendar]
timezone = "Europe/Berlin"
frozen = [
  { days = ["fri"], from = "14:00", why = "nobody is on call" },
  { days = ["sun", "sat"] },
  { from = 2027-03-01T18:00:00, to = 2027-03-03 },
  { from = "12-20", to = "01-02" },
]
"""
MINIMAL = """
schema_version = 1
application = "azora"
public_url = "https://azora.world/"
on_call = "#on-call"
[checks]
required = ["test"]
build = [["true"]]
[build]
commands = []
[registry]
repository = "docker.io/azora"
[database]
[backup]
location = "s3://azora-backups/prod"
[target]
kind = "docker_hosts"
[services.api_gateway]
title = "API Gateway"
route_prefix = "/api"
health_path = "/api/health"
public_health_url = "https://azora.world/api/health"
depends_on = ["auth_service"]
[services.auth_service]
title = "Auth Service"
route_prefix = "/auth"
health_path = "/auth/health"
public_health_url = "https://azora.world/auth/health"
"""
WORKER = 'title = "Mailer"\nkind = "worker"'
JOB = 'title = "Seed"\nkind = "job"'


def load(tmp_path: Path, text: str) -> config.DeployConfig:
    path = tmp_path / "deploy-production.toml"
    path.write_text(text)
    return config.load(path)


def test_defaults_and_order(tmp_path):
    loaded = load(tmp_path, MINIMAL)
    assert [service.id for service in loaded.services] == ["auth_service", "api_gateway"]
    assert loaded.public_url == "https://azora.world"
    assert loaded.backup.key("backup-1.sql.gz") == "prod/backup-1.sql.gz"
    assert loaded.backup.bucket == "azora-backups"
    assert loaded.database.migrate == ("npx", "prisma", "migrate", "deploy")
    assert loaded.service("auth_service").instances == 1
    with pytest.raises(KeyError):
        loaded.service("nothing")


def test_an_order_is_a_chain_of_waiting_beside_what_depends_on_says(tmp_path):
    text = MINIMAL.replace('depends_on = ["auth_service"]\n', "")
    assert [service.id for service in load(tmp_path, text).services] == ["api_gateway", "auth_service"]
    ordered = load(tmp_path, text.replace("[target]", '[rollout]\norder = ["auth_service", "api_gateway"]\n[target]'))
    assert [(service.id, service.depends_on) for service in ordered.services] == [("auth_service", ()), ("api_gateway", ("auth_service",))]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('kind = "docker_hosts"', 'kind = "ftp"', "target.kind"),
        ("[build]", "[bild]", "bild"),
        ('depends_on = ["auth_service"]', 'depends_on = ["auth"]', "services.api_gateway.depends_on"),
        ('route_prefix = "/auth"', 'route_prefix = "/auth"\ndepends_on = ["api_gateway"]', "cycle"),
        ("[services.api_gateway]", '[rollout]\norder = ["api"]\n[services.api_gateway]', "rollout.order: no service 'api'"),
        ("[services.api_gateway]", '[rollout]\norder = ["api_gateway", "auth_service"]\n[services.api_gateway]', "rollout.order"),
        ("s3://azora-backups/prod", "https://azora-backups/prod", "backup.location"),
        ('[registry]\nrepository = "docker.io/azora"', "", "registry"),
        ('kind = "docker_hosts"', 'kind = "local_processes"', "target.local_processes"),
        ("[build]", '[validation.audit]\nlevel = "none"\n[build]', "validation.audit.reason"),
        ("[build]", '[validation.audit]\nlevel = "severe"\n[build]', "validation.audit.level"),
        ("[build]", f"[validation.audit]\nexceptions = [{EXCEPTION}, {EXCEPTION}]\n[build]", "is named more than once"),
        ("[build]", f"[validation.audit]\nexceptions = [{EXCEPTION.replace('-31', '-30T08:00:00')}]\n[build]", "exceptions.0.expires"),
        ("[build]", f"{CALENDAR.replace('Berlin', 'Berlinn')}[build]", "calendar.timezone: Europe/Berlinn is no time zone"),
        ("[build]", f"{CALENDAR.replace('14:00', '14:60')}[build]", "calendar.frozen.0.from"),
        ("[build]", f"{CALENDAR.replace('2027-03-03', '2027-03-03T08:00:00Z')}[build]", "calendar.frozen.2.to"),
        ("[build]", f"{CALENDAR.replace('sat', 'saturday')}[build]", "calendar.frozen.1.days"),
        ("[build]", "[validation]\nstaging_max_age_days = 3\n[build]", "staging_max_age_days: says nothing without"),
        ("[build]", '[toolchain]\npackage_manager = "pnpm@9"\n[build]', "toolchain.package_manager"),
        ("[build]", '[toolchain]\npackage_manager = "pnpm@9.12.0 --registry=https://evil.example"\n[build]', "toolchain.package_manager"),
        ("[build]", '[toolchain]\nnode = "22; true"\n[build]', "toolchain.node"),
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ("https://azora.world/auth/health", "https://user:password@azora.world/auth/health", "public_health_url"),
        ("[services.auth_service]", "[services.Auth]", "Auth"),
        ('public_health_url = "https://azora.world/auth/health"', "", "auth_service.public_health_url: is required of a web service"),
        ('route_prefix = "/auth"', 'route_prefix = "/api"', "services.auth_service.route_prefix: /api is that of api_gateway, too"),
        ('title = "Auth Service"', 'title = "Auth"\nkind = "cron"', "services.auth_service.kind"),
        ('title = "Auth Service"', 'title = "Auth"\nentrypoint = []', "services.auth_service.entrypoint"),
        (MINIMAL[MINIMAL.index("[services.api") :], f"[services.mailer]\n{WORKER}", 'none is of kind "web"'),
        ("[build]", '[build]\nisolation = "none"', "build.isolation_reason"),
        ("[build]", '[build]\nisolation_reason = "the artifacts are too small"', "build.isolation_reason"),
        ("[build]", '[build]\nisolation = "maybe"', "build.isolation"),
        (
            'route_prefix = "/auth"',
            'route_prefix = "/auth"\nbuild.secrets = ["NPM_TOKEN"]',
            "auth_service.build.secrets: images",
        ),
        (
            'route_prefix = "/auth"',
            'route_prefix = "/auth"\nbuild.platform = "linux/arm64,linux/amd64"',
            "auth_service.build.platform",
        ),
        ('route_prefix = "/auth"', 'route_prefix = "/auth"\nbuild.args = { A = 1 }', "services.auth_service.build.args"),
        ("[backup]", '[migrations]\ncommand = [""]\n[backup]', "migrations.command.0"),
        ("[backup]", '[database.variables]\nDB_URL = "dsn"\n[backup]', "database.variables.DB_URL"),
        ("[backup]", '[database.variables]\n"A=B" = "url"\n[backup]', "database.variables"),
        ("[database]", '[migrations]\ncommand = []\n[database]\nmigrate = ["npx"]\nschema = "x"', "database.migrate, database.schema"),
        # One newline at the end: Python's $ lets it pass, and these become object keys, image tags and lines of instructions.
        ("s3://azora-backups/prod", "s3://azora-backups/prod\\n", "backup.location"),
        # Whatever shortens such a path on the way to the store would write into another bucket.
        ("s3://azora-backups/prod", "s3://azora-backups/prod/../../other/x", "backup.location"),
        ("s3://azora-backups/prod", "s3://azora-backups/./prod", "backup.location"),
        ('"docker.io/azora"', '"docker.io/azora\\n"', "registry.repository"),
        ("[services.auth_service]", '[services."auth_service\\n"]', "auth_service"),
        ('title = "Auth Service"', 'title = "Auth\\nrm -rf /"', "services.auth_service.title"),
        # What is written into the workflow's YAML, or would hand a secret of ours to a service.
        ('title = "Auth Service"', 'title = "Auth"\nsecrets = ["STRIPE_KEY\\n"]', "services.auth_service.secrets.0"),
        ('title = "Auth Service"', 'title = "Auth"\nsecrets = ["A: b\\n          EVIL"]', "services.auth_service.secrets.0"),
        ('title = "Auth Service"', 'title = "Auth"\nenv = { "A\\n" = "b" }', "services.auth_service.env"),
        ('title = "Auth Service"', 'title = "Auth"\nenv = { PROD_KEY = "b" }', "services.auth_service.env: 'PROD_KEY'"),
        *(
            ('title = "Auth Service"', f'title = "Auth"\nsecrets = ["{name}"]', f"services.auth_service.secrets: '{name}'")
            for name in ("PROD_KEY", "AWS_SECRET_ACCESS_KEY", "DOCKER_PASSWORD", "GITHUB_TOKEN", "GITHUB_ENV", "LD_PRELOAD", "PATH", "PORT")
        ),
    ],
)
def test_every_mistake_names_its_key(tmp_path, old, new, named):
    assert old in MINIMAL
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, MINIMAL.replace(old, new))
    assert named in caught.value.what
    assert "deploy-production.toml" in caught.value.where


def test_kinds_of_services(tmp_path):
    worker = f'{WORKER}\nentrypoint = ["node"]\ncommand = ["mail.js"]\nsingleton = true\ndepends_on = ["api_gateway"]'
    text = f'{MINIMAL}[services.mailer]\n{worker}\n[services.seed]\n{JOB}\nwhen = "after-rollout"\ncommand = ["seed"]'
    loaded = load(tmp_path, text)
    assert [[service.id for service in kind] for kind in (loaded.web, loaded.workers, loaded.jobs)] == [
        ["auth_service", "api_gateway"],
        ["mailer"],
        ["seed"],
    ]
    mailer, (seed,) = loaded.service("mailer"), loaded.jobs
    assert (mailer.argv, mailer.singleton, mailer.route_prefix, mailer.health_path) == (("node", "mail.js"), True, "", "")
    assert (seed.when, loaded.service("api_gateway").when) == (config.AFTER_ROLLOUT, config.BEFORE_ROLLOUT)
    assert (seed.timeout_seconds, loaded.service("api_gateway").timeout_seconds) == (900, 15)
    assert load(tmp_path, f"{text}\ntimeout_seconds = 60").service("seed").timeout_seconds == 60
    asked = load(tmp_path, f'{MINIMAL}[services.mailer]\n{WORKER}\nhealth_path = "/ready"\nport = 9000').service("mailer")
    assert (asked.health_path, asked.port) == ("/ready", 9000)


def test_every_key_that_a_kind_cannot_have_is_named_at_once(tmp_path):
    routed = 'route_prefix = "/m"\npublic_health_url = "https://azora.world/m"\ntimeout_seconds = 0'
    mailer = f'{WORKER}\n{routed}\nhealth = {{}}\nport = 80\nsingleton = true\ninstances = 2\nwhen = "after-rollout"'
    seed = f'{JOB}\n{routed}\nhealth = {{}}\nport = 80\nhealth_path = "/h"\ninstances = 1\nsingleton = false\ntalks_to = ["shop"]'
    web = 'title = "Web"\nsingleton = true\nwhen = "after-rollout"\ntalks_to = ["mailer"]'
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, f"{MINIMAL}[services.mailer]\n{mailer}\n[services.seed]\n{seed}\n[services.shop]\n{web}")
    named = {line.partition(": ")[0].removeprefix("services.") for line in caught.value.what.splitlines()}
    assert named == {
        *(f"mailer.{key}" for key in ("route_prefix", "public_health_url", "timeout_seconds", "port", "instances", "when", "health")),
        *(f"seed.{key}" for key in ("route_prefix", "public_health_url", "timeout_seconds", "port", "health_path", "health")),
        *(f"seed.{key}" for key in ("instances", "singleton", "talks_to")),
        *(f"shop.{key}" for key in ("route_prefix", "health_path", "public_health_url", "singleton", "when", "talks_to")),
    }


def test_whose_migrations_are_applied(tmp_path):
    assert load(tmp_path, MINIMAL).database.tool == "prisma"
    assert load(tmp_path, MINIMAL).database.variables == {"DATABASE_URL": "url"}
    django = load(tmp_path, MINIMAL + '[migrations]\ncommand = ["python3", "manage.py", "migrate"]').database
    assert (django.tool, django.command, django.prepare) == ("command", ("python3", "manage.py", "migrate"), ())
    assert load(tmp_path, MINIMAL + "[migrations]\ncommand = []").database.tool == "none"


def test_no_variable_of_any_job_is_a_secret_of_a_service(tmp_path):
    own = own_variables()
    assert {"PROD_KEY", "VERSION", "CANARY_MINUTES", "BACKUP_PROOF", "GITHUB_REF"} <= own
    for name in own - config.names.SHARED:
        services = load(tmp_path, MINIMAL).services
        with pytest.raises(ValueError, match=name):
            config.names.check([dataclasses.replace(services[0], secrets=(name,))], own)
    for name in ("PROD_DATABASE_URL", "DATABASE_URL", "STRIPE_KEY", "PGVECTOR_KEY", "USER_KEY", "SLACK_TOKEN", "PROXY_KEY"):
        config.names.check([dataclasses.replace(services[0], secrets=(name,), env={"AWS_REGION": "eu"})], own)


@pytest.mark.parametrize(
    "name",
    [
        "HTTPS_PROXY",
        "NO_PROXY",
        "SSLKEYLOGFILE",
        "SSL_CERT_FILE",
        "OPENSSL_CONF",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "BOTO_CONFIG",
        "NODE_OPTIONS",
        "GCONV_PATH",
        "NETRC",
        "USER",
        "TZ",
        "LANG",
        "LC_ALL",
        "NEEDS",
        "VARIABLES",
        "SERVICE_SECRETS",
        "AZORA_DEBUG",
        "PRESENT_STRIPE_KEY",
        "SUDO_ASKPASS",
        "XDG_CONFIG_HOME",
        "BUILDKIT_HOST",
        "BUILDX_CONFIG",
        "CONTAINER_HOST",
        "HOSTALIASES",
        "KRB5_CONFIG",
    ],
)
def test_what_steers_a_step_is_no_secret_of_a_service(tmp_path, name):
    entry = f'{{ env = "{name}", secret = "APP_{name}" }}'
    text = MINIMAL.replace('title = "API Gateway"', 'title = "API Gateway"\nsecrets = [HERE]')
    assert load(tmp_path, text.replace("HERE", entry)).service("api_gateway").secret_variables == {name: f"APP_{name}"}
    with pytest.raises(BadInputError, match=f"'{name}' is read by azora-ci or the runner"):
        load(tmp_path, text.replace("HERE", f'"{name}"'))


def test_how_images_are_built(tmp_path):
    assert load(tmp_path, MINIMAL).build.isolation == "job"
    in_place = '[build]\nisolation = "none"\nisolation_reason = "the artifacts are too small"'
    build = 'route_prefix = "/auth"\nbuild = { target = "app", args = { A = "1" }, platform = "linux/arm64", secrets = ["NPM_TOKEN"] }'
    loaded = load(tmp_path, MINIMAL.replace("[build]", in_place).replace('route_prefix = "/auth"', build))
    assert (loaded.build.isolation, loaded.build.isolation_reason) == ("none", "the artifacts are too small")
    assert loaded.service("auth_service").build == ImageSettings("app", {"A": "1"}, "linux/arm64", ("NPM_TOKEN",))
    assert loaded.service("api_gateway").build == ImageSettings()


def test_no_file_and_no_toml(tmp_path):
    with pytest.raises(BadInputError, match="does not exist"):
        config.load(tmp_path / "missing.toml")
    with pytest.raises(BadInputError, match="line 1"):
        load(tmp_path, "= 1")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a = " + "[" * 5000, "nested deeper than 64"),
        ("a = " + "[" * 100 + "]" * 100, "nested deeper than 64"),
        (".".join(["a"] * 3000) + " = 1", "nested deeper than 64"),
        ("a = " + "9" * 5000, "4300 digits"),
        ("a = nan", "nan is no number"),  # whatever is compared with it is false: no limit of a rollout would hold
        ("a = -inf", "a number is too large"),
        ("a = 1e999", "a number is too large"),
        ("#" * (8 * 1024 * 1024 + 1), "bytes, and at most"),
    ],
)
def test_a_hostile_file_is_refused_with_a_sentence_and_no_number_is_without_bounds(tmp_path, text, what):
    path = tmp_path / "hostile.toml"
    path.write_text(text)
    for read in (lambda: config.load(path), lambda: config.gates.parse(text, "the default branch")):
        with pytest.raises(BadInputError, match=what) as caught:
            read()
        assert caught.value.title == "Deployment configuration is not TOML"


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:80/x", True),
        ("http://127.9.9.9", True),
        ("http://localhost:1", True),
        ("http://[::1]:5", True),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
        ("https://azora.world", False),
    ],
)
def test_loopback(url, loopback):
    assert hosts.is_loopback(url) is loopback


def test_an_old_audit_command_is_refused_with_what_to_write_instead(tmp_path):
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, MINIMAL.replace("[checks]", '[checks]\naudit = [["npm", "audit"]]'))
    assert "validation.audit" in caught.value.title
    assert 'level = "high"' in caught.value.next_step


def test_a_calendar_is_written_with_times_days_and_toml_dates(tmp_path):
    calendar = load(tmp_path, MINIMAL.replace("[build]", f"{CALENDAR}[build]")).calendar
    assert str(calendar.timezone) == "Europe/Berlin"
    assert calendar.frozen == (
        Weekly((4,), time(14), None, "nobody is on call"),
        Weekly((5, 6), time(0), None),
        Once(datetime(2027, 3, 1, 18), datetime(2027, 3, 4)),
        Yearly((12, 20), (1, 2)),
    )
    assert load(tmp_path, MINIMAL).calendar is None


def test_the_gates_of_the_default_branch_hold_calendar_and_staging():
    demanded = '[validation]\nrequire_staging = true\nstaging_environment = "qa"\nstaging_max_age_days = 3\n'
    strict, tables = config.gates.parse(MINIMAL + demanded + CALENDAR, "here")
    assert strict.staging == config.StagingSettings("qa", timedelta(days=3))
    assert strict.calendar and len(strict.calendar.frozen) == 4
    lax, without = config.gates.parse(MINIMAL, "there")
    assert (lax.staging, lax.calendar) == (None, None)
    keys = {difference["key"] for difference in config.gates.differences(tables, without)}
    assert {"calendar.frozen", "calendar.timezone", "validation.require_staging"} <= keys  # a tag that drops them is shown


def test_exceptions_of_the_audit_have_a_last_day(tmp_path):
    loaded = load(tmp_path, MINIMAL.replace("[build]", f"[validation.audit]\nexceptions = [{EXCEPTION}]\n[build]"))
    (exception,) = loaded.validation.audit.exceptions
    assert (exception.id, exception.expires) == ("GHSA-jf85-cpcp-j695", date(2027, 1, 31))
    assert loaded.validation.audit.level == "high"


@pytest.mark.parametrize(
    ("manager", "package"),
    [
        ("yarn@1.22.22", "yarn@1.22.22"),
        ("yarn@4.5.0", "@yarnpkg/cli-dist@4.5.0"),
        ("pnpm@9.12.0", "pnpm@9.12.0"),
        ("bun@1.3.2", "bun@1.3.2"),
    ],
)
def test_each_package_manager_has_its_name_in_the_registry(tmp_path, manager, package):
    toolchain = load(tmp_path, MINIMAL.replace("[build]", f'[toolchain]\npackage_manager = "{manager}"\n[build]')).toolchain
    assert (toolchain.package, f"{toolchain.manager}@{toolchain.version}", toolchain.node) == (package, manager, None)


@pytest.mark.parametrize(
    ("volume", "allowed", "problem"),
    [
        ("/:/host", [], "is a path of the host"),
        ("/var/run/docker.sock:/var/run/docker.sock", [], "is a path of the host"),
        ("/srv/../:/x", ["/srv/../"], "is a path of the host"),
        ("/srv/uploads/more:/x", ["/srv/uploads"], "is a path of the host"),
        ("./x:/x", ["/x"], "is a path of the host"),
        ("azora-edge:/x", [], "holds an edge's routes"),
        ("shop-edge:/x:ro", [], "holds an edge's routes"),
        ("a123456789012345678901-edge:/x", [], None),
        ("my-shop-edge:/x", [], None),
        ("uploads:/data:ro", [], None),
        ("/srv/uploads:/data", ["/srv/uploads"], None),
    ],
)
def test_a_part_of_the_host_is_no_volume_unless_it_is_allowed_by_name(tmp_path, volume, allowed, problem):
    service = deploy_config.service("API", volumes=[volume], allow_host_paths=allowed)
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service})
    if problem is None:
        assert config.load(path).services[0].volumes == (volume,)
        return
    with pytest.raises(BadInputError, match=problem) as refused:
        config.load(path)
    assert "services.api.volumes" in refused.value.what


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ({"context": "/etc"}, "context"),
        ({"context": ".."}, "context"),
        ({"context": "web/../../other"}, "context"),
        ({"dockerfile": "/etc/passwd"}, "dockerfile"),
        ({"context": "web", "dockerfile": "../../Dockerfile"}, "dockerfile"),
        ({"context": "web", "dockerfile": "../Dockerfile"}, None),
        ({"context": "..web"}, None),
    ],
)
def test_images_are_built_of_the_repository_alone(tmp_path, paths, named):
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": deploy_config.service("API", **paths)})
    if named is None:
        assert config.load(path).services[0].context == Path(paths["context"])
        return
    with pytest.raises(BadInputError, match="leads out of the repository") as refused:
        config.load(path)
    assert f"services.api.{named}" in refused.value.what


def test_a_liveness_path_is_not_what_a_database_can_fail(tmp_path):
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": deploy_config.service("API", liveness_path="/live")})
    assert config.load(path).services[0].liveness_path == "/live"
    same = deploy_config.service("API", health_path="/health", liveness_path="/health")
    with pytest.raises(BadInputError, match="liveness_path: /health is the health_path"):
        config.load(deploy_config.write(tmp_path / "deploy.toml", services={"api": same}))


@pytest.mark.parametrize(
    ("health", "problem"),
    [
        ({}, None),
        ({"healthy": ["ok", "UP"], "version_from": "image"}, None),
        ({"status_from": "json:data.status", "version_from": "header:X-Version"}, None),
        ({"status_from": "status-code", "version_from": "json:build.version"}, None),
        ({"healthy": []}, "health.healthy"),
        ({"healthy": ["ok"], "status_from": "status-code"}, "api_gateway.health.healthy: no words are read"),
        ({"status_from": "json:a..b"}, "health.status_from"),
        ({"status_from": "header:x-status"}, "health.status_from"),
        ({"version_from": "status-code"}, "health.version_from"),
        ({"version_from": "header:x version"}, "health.version_from"),
        ({"version": "1.2.3"}, "health"),
    ],
)
def test_what_a_service_answers_when_it_is_healthy(tmp_path, health, problem):
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api_gateway": deploy_config.service("API", health=health)})
    if problem is None:
        loaded = config.load(path).services[0].health
        assert dataclasses.asdict(loaded) == dataclasses.asdict(config.HealthSettings()) | health | {
            "healthy": tuple(health.get("healthy", ["healthy"]))
        }
    else:
        with pytest.raises(BadInputError, match=problem):
            config.load(path)


@pytest.mark.parametrize(
    "network",
    ["host", "none", "bridge", "az-edge", "azora", "azora-to-auth_service", "container:azora-guard", "", "shop-to-api", "0-shop-edge"],
)
def test_a_network_that_is_not_the_applications_is_refused(tmp_path, network):
    service = deploy_config.service("API", networks=[network])
    with pytest.raises(BadInputError, match="networks"):
        config.load(deploy_config.write(tmp_path / "deploy.toml", services={"api": service}))
    pattern = schemas.load("deploy-config")["properties"]["services"]["additionalProperties"]["properties"]["networks"]["items"]["pattern"]
    assert pattern == f"^{config.names.NETWORK.pattern}$"


def test_a_secret_may_be_handed_on_under_another_name(tmp_path):
    entries = '["JWT", { env = "database__password", secret = "DATABASE__PASSWORD" }, { env = "AWS_ACCESS_KEY_ID", secret = "JWT" }]'
    service = load(tmp_path, MINIMAL.replace('title = "API Gateway"', f'title = "API Gateway"\nsecrets = {entries}')).service("api_gateway")
    assert service.secrets == ("JWT", "DATABASE__PASSWORD")
    values = service.secret_values({"JWT": Secret("1"), "DATABASE__PASSWORD": Secret("2")})
    assert values == {"JWT": "1", "database__password": "2", "AWS_ACCESS_KEY_ID": "1"}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ('[{ env = "A", secret = "B" }, "A"]', "services.api_gateway.secrets: A: one variable cannot hold two secrets"),
        ('[{ env = "PORT", secret = "B" }]', "services.api_gateway.secrets: 'PORT' is what azora-ci tells every instance"),
        ('[{ env = "KEY", secret = "PROD_KEY" }]', "services.api_gateway.secrets: 'PROD_KEY' is read by azora-ci"),
        ('[{ env = "KEY", secret = "key" }]', "services.api_gateway.secrets"),
        ('[{ env = "KEY" }]', "services.api_gateway.secrets"),
        ('["X"]\nenv = { X = "1" }', "services.api_gateway.secrets: 'X' is also in env"),
    ],
)
def test_a_secret_that_cannot_be_handed_on_is_refused(tmp_path, entries, named):
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, MINIMAL.replace('title = "API Gateway"', f'title = "API Gateway"\nsecrets = {entries}'))
    assert named in caught.value.what


def test_an_address_that_is_a_path_is_below_the_public_one(tmp_path):
    text = MINIMAL.replace('"https://azora.world/api/health"', '"/api/health"') + '[smoke]\nendpoints = [{ name = "front", url = "/" }]\n'
    loaded = load(tmp_path, text)
    assert loaded.service("api_gateway").public_health_url == "https://azora.world/api/health"
    assert loaded.smoke[0].url == "https://azora.world/"
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, text.replace('public_url = "https://azora.world/"', 'public_url = "azora.world"'))
    assert "public_url" in caught.value.what


@pytest.mark.parametrize(
    ("image", "held"),
    [
        ("ghcr.io/azora/shop/api@sha256:1", True),
        ("ghcr.io/somebody/edge@sha256:1", True),
        ("ghcr.io.evil.example/azora/edge@sha256:1", False),
        ("envoyproxy/envoy@sha256:1", False),
    ],
)
def test_the_login_is_for_images_of_its_own_registry_alone(image, held):
    assert config.RegistrySettings("ghcr.io/azora/shop", insecure=False).holds(image) is held
