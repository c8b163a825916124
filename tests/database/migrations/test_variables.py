"""The migrate command finds the database in the variables that the configuration names, in the forms that it names."""

from __future__ import annotations

import pytest

from azora_ci.database.migrations import prisma, variables
from azora_ci.database.migrations.guard import Timeouts
from azora_ci.database.postgres import DatabaseUrl

TEXT = "postgresql://shop:p%40ss@db.example:5433/shop?schema=sales&connection_limit=5&connect_timeout=9"
FORMS = {"A": "url", "B": "jdbc", "C": "host", "D": "port", "E": "user", "F": "password", "G": "database"}


def test_every_form() -> None:
    url = DatabaseUrl.parse(TEXT)
    address = variables.address(url)
    assert address == "postgresql://shop:p%40ss@db.example:5433/shop?connect_timeout=9&sslmode=require"
    assert variables.environment(FORMS, address, url) == {
        "A": address,
        "B": "jdbc:postgresql://db.example:5433/shop?sslmode=require",
        "C": "db.example",
        "D": "5433",
        "E": "shop",
        "F": "p@ss",
        "G": "shop",
    }


def test_settings_of_the_session_are_in_each_form_that_carries_them() -> None:
    url = DatabaseUrl.parse(TEXT)
    values = variables.environment(FORMS, Timeouts(5, 60).within(variables.address(url)), url)
    assert values["B"] == (
        "jdbc:postgresql://db.example:5433/shop?sslmode=require&options=-c%20lock_timeout%3D5000%20-c%20statement_timeout%3D60000"
        "&ApplicationName=azora-ci%20migrate"
    )
    assert {form for name, form in FORMS.items() if "60000" in values[name]} == variables.WITH_PARAMETERS


def test_through_a_tunnel() -> None:
    url = DatabaseUrl.parse(TEXT).with_tunnel(4711)
    address = prisma.through_tunnel(variables.address(url), url.tunnel_port)
    values = variables.environment(FORMS, address, url)
    assert values["A"] == "postgresql://shop:p%40ss@127.0.0.1:4711/shop?connect_timeout=9"
    assert (values["B"], values["C"], values["D"]) == ("jdbc:postgresql://127.0.0.1:4711/shop", "127.0.0.1", "4711")


@pytest.mark.parametrize(
    ("query", "tls"), [("sslrootcert=/ca.pem", "sslrootcert=%2Fca.pem&sslmode=verify-full"), ("sslmode=verify-full", "sslmode=verify-full")]
)
def test_the_demands_of_tls_are_in_addresses_of_other_clients(query: str, tls: str) -> None:
    url = DatabaseUrl.parse(f"postgresql://shop:x@db.example/shop?{query}")
    values = variables.environment({"A": "url", "B": "jdbc"}, variables.address(url), url)
    assert values == {
        "A": f"postgresql://shop:x@db.example/shop?{tls}",
        "B": f"jdbc:postgresql://db.example/shop?{tls}",
    }


def test_a_server_on_this_machine_has_its_usual_port() -> None:
    url = DatabaseUrl.parse("postgresql://shop:x@127.0.0.1/shop")
    assert variables.environment({"P": "port"}, variables.address(url), url) == {"P": "5432"}
