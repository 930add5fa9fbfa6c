"""Take a snapshot of a database's table in a separate process.

::

    take_snapshot ── one line of JSON on its standard input ──► loader ── SELECT ──► database
          ▲                                                        │
          └── snapshots/NAME.parquet ◄── renamed when whole ◄── .NAME.….part

Only the loader reaches the database. It receives the one database, table, columns and password that
the policy names, and neither keys nor passphrase; of this process's environment it gets the few
variables below. It ends with its parent, and at a time limit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.common.canonical import fsync_folder
from privet.common.errors import (
    DataError,
    InputError,
    PolicyError,
    PrivetError,
    SourceUnavailableError,
    reason_of,
)
from privet.common.files.private_files import privacy_fault, private_folder
from privet.common.output.process_output import forbid_core_dumps
from privet.privacy.database import Database

if TYPE_CHECKING:  # the loader needs no accounting, and starts in half the time
    from privet.privacy.policy import DataSet, Policy

PROBE_TIMEOUT_S = 60.0
"""Most that a database may take to say which columns a table has."""

FOLDER = "snapshots"
"""Where snapshots are kept, in a site's folder."""

# Finding Python's modules, the machine's certificates and Kerberos tickets, and no more. A
# variable of libpq's, such as PGHOSTADDR, could lead to another database.
_ENVIRONMENT = (
    "HOME", "KRB5CCNAME", "KRB5_CONFIG", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH",
    "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR",
)  # fmt: skip


def locate_records(policy: Policy, data_set: str, home: Path) -> Path:
    """Return the file with a data set's records: its own, or a new snapshot of its database.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.
        home: folder of the site, in which a snapshot is kept.

    Raises:
        PolicyError: if the policy does not say where the records are.
        InputError: if a database's driver is not installed, or its password is missing.
        DataError: if a database cannot be read. The message stays at the site.
    """
    data = policy.data_set(data_set)[1]
    path = take_snapshot(policy, data_set, home) if data.sql else policy.path_of(data)
    if path is None:
        raise PolicyError(f"data set '{data_set}' of site '{policy.site}' has no 'path' or 'sql'")
    return path.resolve()


def take_snapshot(policy: Policy, data_set: str, home: Path) -> Path:
    """Copy the named columns of a data set's table to a Parquet file, and return its path.

    The file is complete or does not exist; an earlier snapshot stays until the new one is complete.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets, with ``sql``.
        home: folder of the site. The file is in its folder ``snapshots``, readable by its owner
            only.

    Raises:
        PolicyError: if the data set is no database, or its password is missing.
        InputError: if the database's driver is not installed.
        DataError: if it cannot be read. The message stays at the site and holds no password.
    """
    data = policy.data_set(data_set)[1]
    if data.sql is None or data.columns is None:
        raise PolicyError(f"data set '{data_set}' of site '{policy.site}' has no 'sql'")
    _require_driver(data.sql)
    password = find_password(data.sql, policy.folder)
    target = home / FOLDER / f"{data_set}.parquet"
    try:
        part = _new_part(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {reason_of(error)}") from error
    request = _request(data.sql, data, password) | {"out": str(part.absolute())}
    try:
        fault, _ = _load(request, policy.folder, data.sql.timeout)
        if fault:
            raise DataError(f"data set '{data_set}': {_without(fault, password)}")
        part.replace(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {reason_of(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def forget_snapshot(policy: Policy, data_set: str, home: Path) -> None:
    """Remove the snapshot of a data set's database, if there is one.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets; one of a file is left alone.
        home: folder of the site.
    """
    if policy.data_set(data_set)[1].sql is not None:
        (home / FOLDER / f"{data_set}.parquet").unlink(missing_ok=True)


def require_database(database: Database, folder: Path) -> None:
    """Check driver and password of a database, without connecting to it.

    Args:
        database: as in the policy.
        folder: the policy's folder, to which the password's file is relative.

    Raises:
        InputError: if its driver is not installed.
        PolicyError: if its password is missing, or others than its owner may read the file.
    """
    _require_driver(database)
    find_password(database, folder)


def probe_database(policy: Policy, data_set: str) -> None:
    """Connect to a data set's database and check its columns; no row is read or counted.

    A data set of a file has nothing to probe.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.

    Raises:
        PolicyError, InputError: as :func:`require_database`.
        SourceUnavailableError: if the database does not answer at present.
        DataError: if it refuses, or lacks the table or a column.
    """
    data = policy.data_set(data_set)[1]
    if data.sql is None:
        return
    _require_driver(data.sql)
    password = find_password(data.sql, policy.folder)
    request = _request(data.sql, data, password)
    fault, passing = _load(request, policy.folder, min(data.sql.timeout, PROBE_TIMEOUT_S))
    if fault:
        kind = SourceUnavailableError if passing else DataError
        raise kind(f"data set '{data_set}': {_without(fault, password)}")


def find_password(database: Database, folder: Path) -> str | None:
    """Return the password that the policy names, or None if it names none.

    Args:
        database: as in the policy.
        folder: the policy's folder, to which the password's file is relative.

    Raises:
        PolicyError: if it is missing, or others than its owner may read the file.
    """
    if name := database.password_variable:
        if not (password := os.environ.get(name)):
            raise PolicyError(f"sql.password_variable: the variable {name} is not set")
        return password
    if database.password_file is None:
        return None
    path = folder / database.password_file
    try:
        with path.open(encoding="utf-8") as stream:
            if fault := privacy_fault(path, os.fstat(stream.fileno())):
                raise PolicyError(fault)
            password = stream.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read: {reason_of(error)}") from None
    if not password:
        raise PolicyError(f"{path}: the first line is empty, and should be the password")
    return password


_DRIVERS = {
    "sqlite": ((), "sql"),
    "postgresql": (("psycopg",), "sql"),
    "mssql": (("pymssql",), "sqlserver"),
    "oracle": (("oracledb",), "oracle"),
}
"""The driver of each kind of database, and the extra that installs it."""


def _require_driver(database: Database) -> None:
    drivers, extra = _DRIVERS[database.dbms]
    for name in ("sqlalchemy", "sqlglot", "pyarrow", *drivers):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{database}: {name} is not installed: install Privet with the extra [{extra}]"
            )


def _new_part(target: Path) -> Path:
    """Make the empty file that the loader fills, and remove files that a killed process left."""
    private_folder(target.parent)
    for left in target.parent.glob(f".{target.stem}.????????.part"):
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".part")
    os.close(handle)
    return Path(name)


def _request(database: Database, data: DataSet, password: str | None) -> dict[str, Any]:
    """Return the loader's request; without a file to write it only probes."""
    return {
        "database": database.model_dump(mode="json"),
        "columns": data.columns,
        "vouched": bool(data.independent.strip()),
        "out": None,
        "password": password,
        "parent": os.getpid(),
    }


def _load(request: dict[str, Any], folder: Path, seconds: float) -> tuple[str, bool]:
    """Run the loader; return the fault, or "", and whether it may be temporary."""
    # -P: no module is found in the folder it works in.
    command = [sys.executable, "-P", "-m", "privet.client.data.loader"]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if path := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=seconds,
            env=environment,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{_named(request)} took longer than {seconds:g} s (sql.timeout)", True
    except OSError as error:
        return f"the loader cannot be started: {reason_of(error)}", True
    try:
        said = json.loads(done.stdout)
        return str(said["fault"]), said["passing"] is True
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        how = f"code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        return f"the loader ended with {how}: {last[0]}", False


def _named(request: dict[str, Any]) -> Database:
    return Database.model_validate_json(json.dumps(request["database"]))


def _without(text: str, password: str | None) -> str:
    return text.replace(password, "***") if password else text


def main() -> None:
    """Run the loader: take one snapshot, or only probe if no file is named to write."""
    request = json.load(sys.stdin)
    os.umask(0o077)
    forbid_core_dumps()
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    from privet.client.data.sql import probe, write_snapshot

    fault, passing = "", False
    try:
        database, columns = _named(request), tuple(request["columns"])
        how = {name: request[name] for name in ("password", "vouched")}
        if request["out"] is None:
            probe(database, columns, **how)
        else:
            write_snapshot(database, columns, Path(request["out"]), **how)
    except PrivetError as error:
        fault, passing = str(error), isinstance(error, SourceUnavailableError)
    except Exception as error:
        fault = f"the loader failed: {error!r}"
    print(json.dumps({"fault": fault, "passing": passing}))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
