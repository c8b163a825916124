"""Which variables hold secrets. In doubt one is a secret; what speaks about one is none."""

from __future__ import annotations

import pytest

from azora_ci.cli.adopt.compose.secret import is_secret

SECRETS = """
PGPASSWORD JWTSECRET SMTPPASS DB_PASS DB_PWD MYSQL_ROOT_PASSWORD RABBITMQ_DEFAULT_PASS REDIS_PASSWORD SECRET_KEY_BASE API_KEY
APIKEY AUTH_TOKEN AUTHTOKEN NPM_TOKEN GITHUB_PAT PRIVATE_KEY SIGNING_KEY APP_KEY STRIPE_KEY AWS_ACCESS_KEY_ID SENTRY_DSN
SLACK_WEBHOOK SLACK_WEBHOOK_URL CLIENT_SECRET COOKIE_SECRET SESSION_SECRETS SECRET_1 PASSWORD_PROD dbPassword jwtSecret
database__password spring_datasource_password PASSPHRASE PASSWORD_SALT CREDENTIALS NEXTAUTH_SECRET TOKEN_GITHUB VAPID_PRIVATE_KEY
HASURA_GRAPHQL_ADMIN_SECRET MASTER_KEY ENCRYPTION_KEY PGPASSWD REDIS_AUTH BASIC_AUTH HTTP_AUTH OTP_SEED ADMIN_PIN PIN_CODE SEED_PHRASE
LOGIN_COOKIE SESSION LOGIN_OTP RSA_PRIVATE redisAuth
"""
NO_SECRETS = """
TOKEN_TTL PASSWORD_MIN_LENGTH PUBLIC_KEY_PATH PUBLIC_KEY STRIPE_PUBLISHABLE_KEY NEXT_PUBLIC_MAPS_KEY VITE_API_KEY MAX_TOKENS
OPENAI_MAX_TOKENS TOKENS_PER_MINUTE JWT_EXPIRES_IN TOKEN_EXPIRY API_KEY_HEADER KEY_PREFIX PASSWORD_RESET_URL SECRET_NAME
TOKEN_ISSUER JWT_AUDIENCE ALLOW_EMPTY_PASSWORD REQUIRE_TOKEN COMPASS_URL BYPASS_CACHE KEYCLOAK_URL KEYBOARD MONKEY HOTKEY
PASSPORT_ENABLED TOKENIZER_PATH PARTITION_KEY RECAPTCHA_SITE_KEY LOG_LEVEL NODE_ENV PWD PATH AUTHOR SECRETARY_NAME PASSENGER
WEBHOOK_PORT WEBHOOK_TIMEOUT PASSWORD_FILE JWT_ALGORITHM TOKEN_URL AUTH_URL SESSION_TTL COOKIE_NAME COOKIE_DOMAIN
AUTH_PROVIDER SESSION_STORE OTP_LENGTH PIN_COUNT SEED_FILE PRIVATE_NETWORK AUTH_GOOGLE_ID USE_AUTH
POSTGRES_USER REDIS_HOST COMPOSE_PASSTHROUGH VAPID_PUBLIC_KEY
"""


@pytest.mark.parametrize(
    "name",
    SECRETS.split(),
)
def test_a_name_of_a_secret_is_seen(name):
    assert is_secret(name)
    assert is_secret(name, "hunter2")
    assert is_secret(name, "4711")


@pytest.mark.parametrize(
    "name",
    NO_SECRETS.split(),
)
def test_a_name_that_only_speaks_about_one_is_none(name):
    assert not is_secret(name, "some value")
    assert not is_secret(name)


@pytest.mark.parametrize(
    "value",
    [
        "postgres://user:password@db/shop",
        "postgres://h/db?password=x",
        "postgresql://h/db?sslmode=require&password=x",
        "redis://:hunter2@cache:6379",
        "amqp://guest:guest@mq",
        "jdbc:postgresql://h/db?user=a&password=b",
        "Server=h;User Id=sa;Password=x;",
        "host=h dbname=d password=x",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=b==",
        "https://0123456789abcdef0123456789abcdef@o1.ingest.sentry.io/2",
        "https://hooks.slack.com/services/T0/B0/xyz",
        "https://discord.com/api/webhooks/123/abc",
        "https://acme.webhook.office.com/webhookb2/1",
        "https://api.telegram.org/bot1:x/sendMessage",
        "https://x.example/?token=abc",
        "https://x.example/?sig=abc&x=1",
        "-----BEGIN RSA PRIVATE KEY-----\nx",
        "Bearer abc",
        "sk_live_0123456789",
        "ghp_0123456789012345678901234567890123456",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x",
        "xoxb-1-2",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "dGhpcyBpcyBhIHNlY3JldCB2YWx1ZSE5",
    ],
)
def test_a_credential_is_seen_whatever_it_is_called(value):
    assert is_secret("OTHER", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "info"),
        ("FEATURE", ""),
        ("SMTP_PASSWORD", ""),
        ("AUTH_TOKEN", "false"),
        ("DATABASE_URL", "postgres://db/shop"),
        ("DATABASE_URL", "postgres://azora@db/shop"),
        ("URL", "https://api.example/v1?page=2&sort=name"),
        ("IMAGE", "ghcr.io/acme/shop-api-v2"),
        ("BUCKET", "acme-production-uploads-eu-west-1"),
        ("TENANT", "123e4567-e89b-12d3-a456-426614174000"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/secrets/key.json"),
        ("JWT_KEY", "/run/secrets/jwt"),
        ("CLASS", "com.example.application.production.Main2"),
        ("LIST", "http://a.example,http://b.example"),
        ("OPTIONS", "--max-old-space-size=4096"),
        ("PUBLISHABLE", "pk_live_0123456789"),
        ("FORMAT", "combined_with_request_id_2"),
    ],
)
def test_an_ordinary_value_is_none(name, value):
    assert not is_secret(name, value)


def test_a_secret_with_a_slash_and_a_dot_is_no_path():
    assert is_secret("DB_PASSWORD", "pass/word.key")
    assert not is_secret("JWT_KEY", "./keys/jwt.pem")
    assert not is_secret("AUTH_URL", "https://auth.example/login")
