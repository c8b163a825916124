"""What earlier statements of the same release made, renamed and dropped: nobody uses yet what the release itself made. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from azora_ci.database.migrations.judgement.model import Facts


@dataclass
class Column:
    """A column that the release made: whether rows need a value, whether one that is left out gets a value by itself, and whether a key
    or check was judged harmless because the version that runs leaves the column empty.
    """

    required: bool
    filled: bool
    rests_on_empty: bool


@dataclass
class Scope:
    """The release's own world, statement by statement.

    ``made``: relations with no rows of users; ``freed``: names of relations, columns and objects that the version that runs knows and the
    release took away, so that whatever it then makes under such a name is used at once; ``columns``: (relation, column) -> a column added
    to a relation of production; ``temporary``: tables of this session, which hide others of their name; ``objects``: (kind, name) of
    types, functions, schemas, indexes and constraints that the release made.
    """

    facts: Facts
    schema: str = "public"
    made: set[str] = field(default_factory=set)
    freed: set[str | tuple[str, str]] = field(default_factory=set)
    columns: dict[tuple[str, str], Column] = field(default_factory=dict)
    objects: set[tuple[str, str]] = field(default_factory=set)
    temporary: set[str] = field(default_factory=set)
    indexes: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)  # name -> the name in production of what was renamed

    def name(self, relation: Any) -> str:
        """Return the name of a relation in a statement, with its schema unless that is ``public``."""
        return self.qualified([part for part in (relation.schemaname, relation.relname) if part])

    def qualified(self, parts: list[str]) -> str:
        """Return the name that these parts are, with its schema unless that is ``public``; empty where a statement names nothing."""
        if not parts:
            return ""
        default = "pg_temp" if parts[-1] in self.temporary else self.schema
        schema, name = (parts[-2], parts[-1]) if len(parts) > 1 else (default, parts[-1])
        return name if schema == "public" else f"{schema}.{name}"

    def in_production(self, name: str) -> str:
        """Return the name in production of a relation that the release may have renamed."""
        return self.before.get(name, name)

    def is_new(self, name: str) -> bool:
        """Return whether the version that runs cannot know a relation: the release made it, under a name that was free."""
        return (name in self.made and name not in self.freed) or ("schema", name.rpartition(".")[0]) in self.objects

    def is_absent(self, name: str) -> bool:
        """Return whether production surely has no such relation or index."""
        known = name in self.facts.relations or name in self.facts.indexes
        return self.facts.known and not known and name not in self.made and name not in self.before

    def make(self, name: str, *, may_exist: bool) -> None:
        """Note a relation that the release makes; one that may be there already is not counted as new, unless production has none."""
        if not may_exist or self.is_absent(name):
            self.made.add(name)

    def drop(self, name: str) -> None:
        """Note that a relation is gone."""
        self.temporary.discard(name.removeprefix("pg_temp."))
        if not self.is_new(name):
            self.freed.add(name)
        self.made.discard(name)
        self.before.pop(name, None)
        self.columns = {key: column for key, column in self.columns.items() if key[0] != name}

    def rename(self, old: str, new: str) -> None:
        """Note another name of a relation: what was new under the old one is new under the new one."""
        made, origin = old in self.made, self.in_production(old)
        moved = {(new, column): state for (table, column), state in self.columns.items() if table == old}
        self.drop(old)
        self.columns |= moved
        self.indexes = {index: new if table == old else table for index, table in self.indexes.items()}
        if made:
            self.made.add(new)
        else:
            self.before[new] = origin

    def add_column(self, table: str, name: str, column: Column) -> None:
        """Note a column that the release adds, unless the version that runs knew one of that name."""
        if (table, name) not in self.freed:
            self.columns[table, name] = column

    def drop_column(self, table: str, name: str) -> None:
        """Note that a column is gone."""
        if self.columns.pop((table, name), None) is None:
            self.freed.add((table, name))

    def rename_column(self, table: str, old: str, new: str) -> None:
        """Note another name of a column."""
        column = self.columns.get((table, old))
        self.drop_column(table, old)
        if column is not None:
            self.add_column(table, new, column)

    def make_object(self, kind: str, name: str, *, may_exist: bool = False) -> None:
        """Note an object that the release makes, unless the version that runs may know one of that name."""
        if not may_exist and (kind, name) not in self.freed:
            self.objects.add((kind, name))

    def drop_object(self, kind: str, name: str) -> None:
        """Note that an object is gone."""
        if (kind, name) not in self.objects:
            self.freed.add((kind, name))
        self.objects.discard((kind, name))

    def column(self, table: str, name: str) -> Column | None:
        """Return a column that the release added to a relation of production, or None for one that users may know."""
        return self.columns.get((table, name))

    def unused(self, table: str, columns: Iterable[str]) -> bool:
        """Return whether the version that runs leaves one of these columns empty in every row that it writes."""
        empty = [state for name in columns if (state := self.column(table, name)) is not None and not state.filled]
        for state in empty:
            state.rests_on_empty = True
        return bool(empty)

    def family(self, table: str) -> list[str]:
        """Return a table with its partitions and the tables that inherit from it."""
        names = [table]
        for child in self.facts.children.get(self.in_production(table), ()):
            names += self.family(child)
        return names

    def table_of(self, index: str) -> str | None:
        """Return the table of an index, or None where nobody said."""
        return self.indexes.get(index) or self.facts.indexes.get(index)

    def referenced(self, table: str, constraint: str | None = None, column: str | None = None) -> set[str]:
        """Return the tables at the other end of a table's foreign keys: all, that of one constraint, or those over one column."""
        table = self.in_production(table)
        ends = set()
        for known in self.facts.constraints:
            wanted = constraint in {None, known.name} and (column is None or column in known.columns)
            if known.kind == "f" and known.table == table and wanted:
                ends.add(known.references)
            elif known.kind == "f" and known.references == table and constraint is None and column is None:
                ends.add(known.table)
        return ends - {table}
