"""A table of a database that holds a site's records, as its policy names it.

There is no query text: the policy names a table or view and its columns, and the code that reads
them quotes the names. What a table cannot say, a view of the database says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, unquote

from pydantic import Field, model_validator

from privet.common.schema import Count, Part

_POSTGRESQL = re.compile(
    r"postgresql(?:\+psycopg)?://"
    r"(?:(?P<user>[^@:/?#]+)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:/?#\[\]]*)(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<database>[^/?#]+)(?:\?(?P<query>[^#]*))?"
)
_SERVER = re.compile(
    r"(?P<system>mssql(?:\+pymssql)?|oracle(?:\+oracledb)?)://"
    r"(?P<user>[^@:/?#]+)@"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:/?#\[\]\\,]+)(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<database>[^/?#]+)(?:\?(?P<query>[^#]*))?"
)
_SQLITE = re.compile(r"sqlite:///(?P<file>[^?#]+)")
_FORMS = (
    "must be postgresql+psycopg://USER@HOST/DATABASE?sslmode=verify-full, "
    "mssql+pymssql://USER@HOST/DATABASE, oracle+oracledb://USER@HOST/SERVICE or sqlite:///FILE, "
    "without a password: that is what 'password_file' and 'password_variable' are for"
)
_SETTINGS = (
    "channel_binding", "gssencmode", "host", "hostaddr", "krbsrvname", "port", "require_auth",
    "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert",
)  # fmt: skip
"""What of libpq's connection the address may set; no other host, file or password is accepted."""
_SERVER_SETTINGS = ("sslmode", "sslrootcert")
"""What the address of SQL Server and of Oracle may set, in libpq's words."""
_SSLMODES = ("verify-full", "require", "disable")
_PORTS = {"mssql": (1433, 1433), "oracle": (1521, 2484)}
"""Ports without and with TLS."""

System = Literal["postgresql", "sqlite", "mssql", "oracle"]
"""Kinds of databases, as SQLAlchemy calls them."""

Identifier = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Name of a table, schema or column; any but control characters, exactly as in the database."""


@dataclass(frozen=True)
class Server:
    """Where a SQL Server or an Oracle is, and how the way to it is protected.

    Attributes:
        user: who reads.
        host: a name or an address.
        port: of TCP.
        name: of the database, or of Oracle's service.
        sslmode: ``verify-full``: TLS, and the server's certificate is checked against its host
            name; ``require``: TLS, without that check; ``disable``: TLS is not asked for.
        sslrootcert: file of the certificates that are trusted, from the policy's folder; None:
            the machine's.
    """

    user: str
    host: str
    port: int
    name: str
    sslmode: str
    sslrootcert: str | None


class Database(Part):
    """One table or view of one database, read-only.

    Attributes:
        url: the database, without a password.
        table: a table or view.
        table_schema: the schema it is in; None: as the database's user sees it.
        password_file: file with the password, from the policy's folder.
        password_variable: environment variable with the password.
        timeout: seconds that a snapshot may take, the connection included.
        max_rows: `privet client check` finds fault with a table that has more. A run reads it all
            the same: how many rows there are must not decide what a site answers.
    """

    url: str
    table: Identifier
    table_schema: Identifier | None = None
    password_file: Annotated[str, Field(min_length=1)] | None = None
    password_variable: Annotated[str, Field(min_length=1)] | None = None
    timeout: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    max_rows: Count = 10_000_000

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        found = _POSTGRESQL.fullmatch(self.url) or _SERVER.fullmatch(self.url)
        if found is None:
            if _SQLITE.fullmatch(self.url) is None:
                raise ValueError(f"'url' {_FORMS}")
            for key in ("table_schema", "password_file", "password_variable"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"'{key}' is for PostgreSQL, SQL Server and Oracle, and the database is "
                        "SQLite"
                    )
            return self
        if self.password_file and self.password_variable:
            raise ValueError("name 'password_file' or 'password_variable', not both")
        allowed = _SETTINGS if self.dbms == "postgresql" else _SERVER_SETTINGS
        for key, _ in parse_qsl(found["query"] or "", keep_blank_values=True):
            if key not in allowed:
                raise ValueError(f"'url' may not set '{key}'; it may set {', '.join(allowed)}")
        if self.dbms != "postgresql":
            self._sensible_server()
        return self

    def _sensible_server(self) -> None:
        server = self.server()
        if server.sslmode not in _SSLMODES:
            raise ValueError(f"'url': sslmode must be {', '.join(_SSLMODES)}")
        if server.sslrootcert is not None and server.sslmode != "verify-full":
            raise ValueError("'url': 'sslrootcert' is checked with sslmode=verify-full alone")
        named = (server.user, server.host, server.name, server.sslrootcert or "")
        if not all(part.isprintable() for part in named):
            raise ValueError("'url' holds a control character")
        if not (self.password_file or self.password_variable):
            raise ValueError("name 'password_file' or 'password_variable' of the database's user")

    @property
    def dbms(self) -> System:
        """What kind of database it is."""
        if _SQLITE.fullmatch(self.url):
            return "sqlite"
        found = _SERVER.fullmatch(self.url)
        if found is None:
            return "postgresql"
        return "mssql" if found["system"].startswith("mssql") else "oracle"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database, from the policy's folder; None for a server's."""
        found = _SQLITE.fullmatch(self.url)
        return Path(found["file"]) if found else None

    @property
    def place(self) -> str:
        """The table's name, after its schema if the policy names one."""
        return ".".join(filter(None, (self.table_schema, self.table)))

    def connection(self) -> dict[str, str]:
        """Return libpq's settings of a PostgreSQL database, without a password.

        Where the address names a host elsewhere and not how it is protected, it is
        ``sslmode=verify-full``: neither records nor password cross a network in the clear.
        """
        found = _POSTGRESQL.fullmatch(self.url)
        if found is None:
            return {}
        named = {
            "user": found["user"],
            "host": (found["host"] or "").strip("[]"),
            "port": found["port"],
            "dbname": found["database"],
        }
        settings = {key: unquote(value) for key, value in named.items() if value}
        settings |= dict(parse_qsl(found["query"] or ""))
        if not _is_here(settings.get("hostaddr") or settings.get("host", "")):
            settings.setdefault("sslmode", "verify-full")
        return settings

    def server(self) -> Server:
        """Return where a SQL Server or an Oracle is, without a password.

        For a host elsewhere ``sslmode`` is ``verify-full`` unless the address says otherwise.

        Raises:
            ValueError: if the database is of another kind.
        """
        found = _SERVER.fullmatch(self.url)
        if found is None:
            raise ValueError("the database is neither SQL Server nor Oracle")
        settings = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
        host = found["host"].strip("[]")
        mode = settings.get("sslmode") or ("disable" if _is_here(host) else "verify-full")
        port = int(found["port"] or _PORTS[self.dbms][mode != "disable"])
        return Server(
            user=unquote(found["user"]),
            host=host,
            port=port,
            name=unquote(found["database"]),
            sslmode=mode,
            sslrootcert=settings.get("sslrootcert") or None,
        )

    def __str__(self) -> str:
        """Return which database it is, for the operator's messages."""
        if self.file is not None:
            return f"database {self.file}"
        if self.dbms in ("mssql", "oracle"):
            server = self.server()
            return f"database '{server.name}' at {server.host}"
        settings = self.connection()
        return f"database '{settings['dbname']}' at {settings.get('host') or 'this machine'}"


def _is_here(hosts: str) -> bool:
    """Whether every host is this machine: a folder of sockets, or loopback."""
    return all(
        host in ("", "localhost", "::1") or host.startswith("/") or _LOOPBACK.fullmatch(host)
        for host in hosts.split(",")
    )


_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}")
