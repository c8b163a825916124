"""What belongs to a database itself and is in no dump of it: locale, owner, settings, privileges, limit, comment.

pg_dump writes these only with ``--create``, which also names the database. A restore goes into a database of another name, so they are
read from the server, kept in the manifest, given to the restored database, and compared. ``restore-database.sh`` does the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg2.extensions
    from psycopg2.sql import Composable

# Settings whose value is a list of names: as one literal it would be one name (variable_is_guc_list_quote of PostgreSQL's dumputils.c).
NAME_LISTS = frozenset({"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"})
DEFAULT_TABLESPACE = "pg_default"
_SINGLE = ("encoding", "collate", "ctype", "provider", "locale", "icu_rules", "owner", "tablespace", "connection_limit", "comment")
Setting = tuple[str, str, str]  # role (empty: every role), name, value
Grant = tuple[str, str, bool]  # grantee (empty: PUBLIC), privilege, with grant option

# Columns that older versions lack are read from the row as JSON. An absent ACL means the default one.
_READ = """SELECT pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype,
    CASE to_jsonb(d) ->> 'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END AS provider,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale, to_jsonb(d) ->> 'daticurules' AS icu_rules,
    pg_get_userbyid(d.datdba)::text AS owner, t.spcname::text AS tablespace, d.datconnlimit AS connection_limit,
    shobj_description(d.oid, 'pg_database') AS comment,
    ARRAY(SELECT ARRAY[coalesce(r.rolname, '')::text, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)]
        FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c LEFT JOIN pg_roles r ON r.oid = s.setrole
        WHERE s.setdatabase = d.oid ORDER BY 1) AS settings,
    ARRAY(SELECT ARRAY[CASE a.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(a.grantee)::text END, a.privilege_type, a.is_grantable::text]
        FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a ORDER BY 1) AS grants
    FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s"""


@dataclass(frozen=True)
class Properties:
    """A database's properties. ``provider``: libc, icu or builtin; ``locale`` and ``icu_rules`` are those of icu and builtin."""

    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None
    icu_rules: str | None
    owner: str
    tablespace: str
    connection_limit: int
    comment: str | None
    settings: tuple[Setting, ...]
    grants: tuple[Grant, ...]

    @staticmethod
    def of_libc(encoding: str, collate: str, ctype: str) -> Properties:
        """Return the properties of a database of which only encoding and locale are known."""
        return Properties(encoding, collate, ctype, "libc", None, None, "", DEFAULT_TABLESPACE, -1, None, (), ())

    @staticmethod
    def of_document(document: dict[str, Any]) -> Properties:
        """Return the properties from their JSON."""
        lists = {name: tuple(tuple(item) for item in document[name]) for name in ("settings", "grants")}
        return Properties(**{**document, **lists})


def creation(wanted: Properties, major: int) -> Composable:
    """Return what follows ``CREATE DATABASE name`` on a server of this major version, for the properties that must be given then."""
    from psycopg2 import sql

    clause = sql.SQL("TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
        *map(sql.Literal, (wanted.encoding, wanted.collate, wanted.ctype))
    )
    if major >= 15:
        clause += sql.SQL(" LOCALE_PROVIDER {}").format(sql.Literal(wanted.provider))
    for option, value in (
        ("ICU_LOCALE" if wanted.provider == "icu" else "BUILTIN_LOCALE", wanted.locale if wanted.provider != "libc" else None),
        ("ICU_RULES", wanted.icu_rules),
        # Named, even the default one demands a privilege.
        ("TABLESPACE", wanted.tablespace if wanted.tablespace != DEFAULT_TABLESPACE else None),
    ):
        if value is not None:
            quoted = sql.Identifier(value) if option == "TABLESPACE" else sql.Literal(value)
            clause += sql.SQL(f" {option} {{}}").format(quoted)
    return clause


def read_properties(cursor: psycopg2.extensions.cursor, database: str) -> Properties:
    """Return a database's properties, whichever database of the server the session is connected to. Raises LookupError without it."""
    cursor.execute(_READ, (database,))
    row = cursor.fetchone()
    if row is None or cursor.description is None:
        raise LookupError(database)
    document: dict[str, Any] = dict(zip([column.name for column in cursor.description], row, strict=True))
    document["grants"] = sorted({(grantee, privilege, grantable == "true") for grantee, privilege, grantable in document["grants"]})
    return Properties.of_document(document)


def carry(cursor: psycopg2.extensions.cursor, database: str, wanted: Properties) -> list[str]:
    """Give a restored database the properties that can be changed afterwards; return a line for each property that differs in the end.

    What this server does not know (a parameter of another product, a missing library of locales) is such a line, never an error.
    """
    import psycopg2

    findings = []
    for statement in _changes(database, wanted, read_properties(cursor, database)):
        try:
            cursor.execute(statement)
        except psycopg2.Error as error:
            findings.append(f"{statement.as_string(cursor)[:200]}: {str(error).strip().splitlines()[0]}")
    return findings + differences(wanted, read_properties(cursor, database))


def differences(wanted: Properties, present: Properties) -> list[str]:
    """Return a line for each property that differs. Pure."""
    lines = [
        f"{name.replace('_', ' ')}: {getattr(present, name)!r}, in production {getattr(wanted, name)!r}"
        for name in _SINGLE
        if getattr(present, name) != getattr(wanted, name)
    ]
    for name in ("settings", "grants"):
        for word, items in (
            ("missing", set(getattr(wanted, name)) - set(getattr(present, name))),
            ("unexpected", set(getattr(present, name)) - set(getattr(wanted, name))),
        ):
            lines += [f"{name} {word}: {' '.join(map(str, item))}" for item in sorted(items, key=str)]
    return lines


def _changes(database: str, wanted: Properties, present: Properties) -> Iterator[Composable]:
    from psycopg2 import sql

    name = sql.Identifier(database)
    yield sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(wanted.owner))
    yield sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(wanted.comment))
    after = replace(present, grants=_owned_by(present, wanted.owner)).grants
    for grantee, privilege, _ in sorted(set(after) - set(wanted.grants)):
        yield sql.SQL("REVOKE {} ON DATABASE {} FROM {}").format(sql.SQL(privilege), name, _role(grantee))
    for grantee, privilege, grantable in sorted(set(wanted.grants) - set(after)):
        option = sql.SQL(" WITH GRANT OPTION" if grantable else "")
        yield sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(sql.SQL(privilege), name, _role(grantee), option)
    for role, parameter, value in wanted.settings:
        yield from _setting(name, role, parameter, value)
    yield sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, sql.Literal(wanted.connection_limit))


def _setting(database: Composable, role: str, parameter: str, value: str) -> Iterator[Composable]:
    from psycopg2 import sql

    target = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), database) if role else sql.SQL("DATABASE {}").format(database)
    named = sql.SQL(".").join(map(sql.Identifier, parameter.split(".")))
    if parameter not in NAME_LISTS:
        yield sql.SQL("ALTER {} SET {} TO {}").format(target, named, sql.Literal(value))
        return
    yield sql.SQL("SELECT pg_catalog.set_config({}, {}, false)").format(sql.Literal(parameter), sql.Literal(value))
    yield sql.SQL("ALTER {} SET {} FROM CURRENT").format(target, named)
    yield sql.SQL("RESET {}").format(named)


def _role(name: str) -> Composable:
    from psycopg2 import sql

    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def _owned_by(present: Properties, owner: str) -> tuple[Grant, ...]:
    """Return the grants after the owner changed: the former owner's privileges become the new owner's."""
    return tuple(sorted({(owner if grantee == present.owner else grantee, *rest) for grantee, *rest in present.grants}))  # type: ignore[misc]
