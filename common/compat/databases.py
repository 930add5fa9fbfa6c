"""What drivers of databases say only in the texts of their errors.

The public way is the error's code: PostgreSQL's library has none where a connection is refused at
its start, Oracle's driver has one for all failures of TLS, and FreeTDS calls every failed login by
one number. Nothing is imported here: a site has the drivers that it needs.
"""

from __future__ import annotations

import re

_POSTGRES_LASTING = (
    "authentication failed", "does not exist", "no password supplied", "pg_hba.conf",
    "not permitted", "certificate", "permission denied",
)  # fmt: skip
_ORACLE_CODE = re.compile(r"\b(?:ORA|DPY)-[0-9]{4,5}\b")
_ORACLE_LASTING = re.compile("certificate verify failed|WRONG_VERSION_NUMBER|match", re.I)
_FREETDS, _FREETDS_NUMBER = b"DB-Lib error message", rb"DB-Lib error message ([0-9]+), severity"
_FREETDS_TIMED_OUT = 20003


def postgres_refuses(text: str) -> bool:
    """Return whether PostgreSQL lets nobody in before somebody changes something.

    Args:
        text: of the error of ``psycopg`` at the start of a connection (libpq).
    """
    return any(words in text for words in _POSTGRES_LASTING)


def oracle_codes(error: BaseException | None, text: str) -> list[str]:
    """Return the codes of an error of ``oracledb``, the driver's first (``full_code``, since 1.0).

    Args:
        error: of the driver, if there is one.
        text: of the error; the server's own codes are in it only.
    """
    first = getattr(getattr(error, "args", (None,))[0], "full_code", None)
    codes = [first, *_ORACLE_CODE.findall(text)]
    return [code for code in dict.fromkeys(codes) if code]


def oracle_refuses(text: str) -> bool:
    """Return whether TLS with an Oracle server failed permanently, by the text of the error."""
    return bool(_ORACLE_LASTING.search(text))


def sql_server_numbers(error: BaseException | None) -> list[int]:
    """Return the numbers of an error of ``pymssql``, the most telling first.

    pymssql calls a failed connection 18456 or 20009 whatever failed; what FreeTDS says beside it is
    right. Where the server said something, its text comes before that.
    """
    arguments = list(getattr(error, "args", ()))
    if len(arguments) == 1 and isinstance(arguments[0], tuple):
        arguments = list(arguments[0])
    first = next((part for part in arguments if isinstance(part, int)), 0)
    text = next((part for part in arguments if isinstance(part, bytes)), b"")
    library = [int(n) for n in re.findall(_FREETDS_NUMBER, text)]
    if not text.startswith(_FREETDS):
        library = [first, *library]
    order = sorted(dict.fromkeys(library), key=lambda number: number != _FREETDS_TIMED_OUT)
    return [number for number in order if number]
