"""What reading one table of SQL Server and of Oracle has in common.

Both are asked by short statements of their catalogue's own views, written out in
:mod:`.sql_server` and :mod:`.oracle`, and by one ``SELECT`` of quoted names from a table that is
named with its schema. Whatever a client library could convert with a fault that ends the query is
fetched as text or bytes and converted here, cell by cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlglot import exp

from privet.client.data.sql_column import Column
from privet.client.data.view import MAX_DEPTH, plain_source
from privet.client.data.view_types import Declared, Kind, type_fault
from privet.common.errors import DataError, DataMissing
from privet.privacy.database import Database


@dataclass(frozen=True)
class Found:
    """What stands under a name.

    Attributes:
        schema: it is in.
        name: as the catalogue spells it.
        fault: why its rows may depend on each other or on who asks, whatever its definition;
            "" for a stored table, and for a view that is to be looked at.
        definition: the query of a view, parsed; None for a table.
        key: the catalogue's number of it, where it has one.
    """

    schema: str
    name: str
    fault: str = ""
    definition: exp.Expression | None = None
    key: int = 0


@dataclass(frozen=True)
class Field:
    """A column as the catalogue declares it.

    Attributes:
        name: of the column.
        type: its type's name, in lower case, without digits.
        digits: of a decimal number; None where it has no limit of its own.
        scale: digits after the point; None where it has no limit of its own.
        computed: whether it is computed at each reading, by what may ask other records or fail.
    """

    name: str
    type: str
    digits: int | None = None
    scale: int | None = None
    computed: bool = False

    @property
    def exact(self) -> str:
        """The whole type, in words."""
        return f"{self.type}({self.digits}, {self.scale})" if self.digits else self.type


class ServerDialect(ABC):
    """How tables of one kind of server are read.

    Attributes:
        language: sqlglot's name of it.
        title: its name, in words.
    """

    language: str
    title: str

    @abstractmethod
    def engine(self, database: Database, password: str | None) -> sa.Engine:
        """Return an engine whose connections see one state and wait no longer than they may."""

    @abstractmethod
    def begin(self, connection: sa.Connection, database: Database) -> None:
        """Make the connection's transaction one that sees one state, and writes nothing."""

    @abstractmethod
    def find(
        self, connection: sa.Connection, schema: str | None, name: str, within: str | None = None
    ) -> Found | None:
        """Return what stands under a name, or None; names in a view are looked for ``within``."""

    @abstractmethod
    def fields(self, connection: sa.Connection, found: Found) -> list[Field]:
        """Return its columns."""

    @abstractmethod
    def kind(self, field: Field) -> Kind:
        """Return what a column may be compared with."""

    @abstractmethod
    def column(self, cell: sa.ColumnElement[Any], field: Field) -> Column | None:
        """Return how a column is kept; None for a type that is not read."""

    @abstractmethod
    def select(self, table: sa.TableClause, columns: list[Column]) -> sa.Select[Any]:
        """Return the statement that reads the columns, and last whether one is too long."""

    @abstractmethod
    def said(self, error: sa.exc.DBAPIError) -> str:
        """Return what went wrong in words that quote neither a cell nor a password."""

    @abstractmethod
    def may_pass(self, error: sa.exc.DBAPIError) -> bool:
        """Return whether a server that was asked for its catalogue may answer later."""

    def coupling(
        self, connection: sa.Connection, database: Database, names: tuple[str, ...]
    ) -> str | None:
        """Return why a row of the policy's table may depend on several records, or None.

        Args:
            connection: whose user reads the table.
            database: names the table.
            names: columns that are read.
        """
        found = self.find(connection, database.table_schema, database.table)
        for depth in range(MAX_DEPTH):
            if found is None:
                return None  # who reads it says that it is not there
            if found.fault:
                return f"'{found.name}' is {found.fault}"
            if found.definition is None:
                # Below a view, its conditions may use any column.
                return self._computed(connection, found, None if depth else names)
            source = plain_source(found.definition, self.language)
            if isinstance(source, str):
                return f"the view '{found.name}' {source}"
            schema, name = self.as_stored(source.args.get("db")), self.as_stored(source.this)
            below = self.find(connection, schema, str(name), found.schema)
            if below is None:
                return f"the view '{found.name}' selects from what this user cannot look up"
            kinds = {
                field.name: Declared(self.kind(field), field.exact)
                for field in self.fields(connection, below)
            }
            if why := type_fault(found.definition, self.language, kinds):
                return f"the view '{found.name}' {why}"
            found = below
        return f"'{database.table}' is a view of views of views"

    def _computed(
        self, connection: sa.Connection, found: Found, names: tuple[str, ...] | None
    ) -> str | None:
        for field in self.fields(connection, found):
            if field.computed and (names is None or field.name in names):
                return f"'{found.name}' computes its column '{field.name}' when it is read"
        return None

    def as_stored(self, name: exp.Expression | None) -> str | None:
        """Return a name in a view as the catalogue has it, or None for none."""
        return None if name is None else str(name.name)

    def columns(
        self, connection: sa.Connection, database: Database, names: tuple[str, ...]
    ) -> tuple[sa.TableClause, list[Column]]:
        """Return the table, and how its columns are kept, by their declarations.

        Raises:
            DataMissing: if the table is not there.
            DataError: if a column is not, is computed, or is of a type that is not read.
        """
        found = self.find(connection, database.table_schema, database.table)
        schema = database.table_schema
        place = database.table if schema is None else f"{schema}.{database.table}"
        if found is None:
            raise DataMissing(
                f"{database}: there is no table or view '{place}' that this user may see"
                + self.spelling(database.table)
            )
        declared = {field.name: field for field in self.fields(connection, found)}
        table = sa.table(
            sa.quoted_name(found.name, quote=True),
            *(sa.column(sa.quoted_name(name, quote=True)) for name in names),
            schema=sa.quoted_name(found.schema, quote=True),
        )
        kept = []
        for name in names:
            if (field := declared.get(name)) is None:
                alike = [other for other in declared if other.casefold() == name.casefold()]
                hint = f"; it has '{alike[0]}', and case matters" if alike else ""
                raise DataError(f"{database}: '{place}' has no column '{name}'{hint}")
            column = self.column(table.c[name], field)
            if column is None:
                raise DataError(
                    f"{database}: column '{name}' of '{place}' is of type {field.exact}, which is "
                    "not read: make a view that casts it to a number or a text"
                )
            kept.append(column)
        return table, kept

    def spelling(self, name: str) -> str:
        """Return a hint how a name that is not there might be spelt, or an empty text."""
        return ""


def ordered(columns: list[Column]) -> list[sa.ColumnElement[Any]]:
    """Return what orders rows: NULL last, said in words that every server knows."""
    found: list[sa.ColumnElement[Any]] = []
    for column in columns:
        first, *more = [column.bounded(cell) for cell in column.order]
        found += [sa.case((first.is_(None), flag(1)), else_=flag(0)), first, *more]
    return found


def too_long(columns: list[Column]) -> sa.ColumnElement[Any]:
    """Return 1 where a text of the row is longer than is read, else 0."""
    longs = [column.long for column in columns if column.long is not None]
    return sa.case((sa.or_(*longs), flag(1)), else_=flag(0)) if longs else flag(0)


def flag(number: int) -> sa.ColumnElement[Any]:
    """Return a number that stands in the statement itself."""
    return sa.literal_column(str(number))
