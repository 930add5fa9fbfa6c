"""The common part of reading one table of SQL Server or Oracle.

Both catalogues are queried by short statements on their own views, written out in
:mod:`.sql_server` and :mod:`.oracle`; the table by one ``SELECT`` of quoted names, with its schema.
Where a client library's conversion could fail and end the query, the cell is fetched as text or
bytes and converted here, cell by cell.
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
from privet.common.errors import DataError, DataMissingError
from privet.privacy.database import Database


@dataclass(frozen=True)
class Found:
    """A table or view in the catalogue.

    Attributes:
        schema: of the object.
        name: as the catalogue spells it.
        fault: why its rows may depend on each other or on the reader, whatever its definition; ""
            for a stored table, and for a view whose definition decides.
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
        digits: of a decimal number; None if it has no limit of its own.
        scale: digits after the point; None if it has no limit of its own.
        computed: whether it is computed at each reading, by an expression that may read other
            records or fail.
    """

    name: str
    type: str
    digits: int | None = None
    scale: int | None = None
    computed: bool = False

    @property
    def exact(self) -> str:
        """The complete type, in words."""
        return f"{self.type}({self.digits}, {self.scale})" if self.digits else self.type


class ServerDialect(ABC):
    """How tables of one kind of server are read.

    Attributes:
        language: sqlglot's name of the dialect.
        title: the server's name, in words.
    """

    language: str
    title: str

    @abstractmethod
    def engine(self, database: Database, password: str | None) -> sa.Engine:
        """Return an engine whose connections see one state, and end at the policy's timeout.

        Args:
            database: as in the policy.
            password: of its user, or None if it needs none.
        """

    @abstractmethod
    def begin(self, connection: sa.Connection, database: Database) -> None:
        """Make the connection's transaction consistent and read-only.

        Args:
            connection: newly opened.
            database: as in the policy.
        """

    @abstractmethod
    def find(
        self, connection: sa.Connection, schema: str | None, name: str, within: str | None = None
    ) -> Found | None:
        """Return the table or view of a name.

        Args:
            connection: whose user reads the table.
            schema: the name's schema; None if it names none.
            name: exactly as the catalogue has it.
            within: schema of the view whose definition uses the name; None for a name of the
                policy.

        Returns:
            The object; None if this user sees none of that name.
        """

    @abstractmethod
    def fields(self, connection: sa.Connection, found: Found) -> list[Field]:
        """Return the columns of a table or view.

        Args:
            connection: whose user reads it.
            found: of :meth:`find`.
        """

    @abstractmethod
    def kind(self, field: Field) -> Kind:
        """Return the kind of values with which a column may be compared."""

    @abstractmethod
    def column(self, cell: sa.ColumnElement[Any], field: Field) -> Column | None:
        """Return how a column is stored in the snapshot.

        Args:
            cell: the column in the statement.
            field: its declaration.

        Returns:
            The column; None for a type that is not supported.
        """

    def select(self, table: sa.TableClause, columns: list[Column]) -> sa.Select[Any]:
        """Return the statement that reads the columns.

        Args:
            table: of :meth:`columns`.
            columns: to read, in order.

        Returns:
            A ``SELECT`` whose last column is 1 if a text of the row is too long, else 0.
        """
        chosen = [c.bounded(c.selected).label(f"c{place}") for place, c in enumerate(columns)]
        query = sa.select(*chosen, _too_long(columns).label("too_long"))
        return query.select_from(table).order_by(*_ordered(columns))

    @abstractmethod
    def said(self, error: sa.exc.DBAPIError) -> str:
        """Return an error in words that quote neither a cell nor a password."""

    @abstractmethod
    def may_pass(self, error: sa.exc.DBAPIError) -> bool:
        """Return whether the server may answer the same catalogue query later."""

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
                return f"the view '{found.name}' selects from what this user cannot see"
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
        """Return a view's name for an object as the catalogue has it; None for no name."""
        return None if name is None else str(name.name)

    def columns(
        self, connection: sa.Connection, database: Database, names: tuple[str, ...]
    ) -> tuple[sa.TableClause, list[Column]]:
        """Return the table, and how its columns are stored, by their declarations.

        Args:
            connection: whose user reads the table.
            database: names the table.
            names: columns to read, in order.

        Raises:
            DataMissingError: if this user sees no such table.
            DataError: if a column is missing or has a type that is not supported.
        """
        found = self.find(connection, database.table_schema, database.table)
        place = database.place
        if found is None:
            raise DataMissingError(
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
        """Return a hint how the server spells a name that was not found, or an empty text."""
        return ""


def _ordered(columns: list[Column]) -> list[sa.ColumnElement[Any]]:
    """Return the ordering of the rows: NULL last, in SQL that every server understands."""
    found: list[sa.ColumnElement[Any]] = []
    for column in columns:
        first, *more = [column.bounded(cell) for cell in column.order]
        found += [sa.case((first.is_(None), flag(1)), else_=flag(0)), first, *more]
    return found


def _too_long(columns: list[Column]) -> sa.ColumnElement[Any]:
    """Return an expression that is 1 if a text of the row is too long to be read, else 0."""
    longs = [column.long for column in columns if column.long is not None]
    if not longs:
        return flag(0)
    return sa.case((sa.or_(*longs), flag(1)), else_=flag(0))


def flag(number: int) -> sa.ColumnElement[Any]:
    """Return a number as a literal of the statement."""
    return sa.literal_column(str(number))
