"""Which views of SQL Server and Oracle are plain: texts alone, without a server."""

from __future__ import annotations

import pytest

from privet.client.data import oracle, sql_server
from privet.client.data.view import plain_source
from privet.client.data.view_types import Declared, type_fault

COLUMNS = {
    "x": Declared("number", "int"),
    "y": Declared("number", "bigint"),
    "big": Declared("wide", "decimal(38, 10)"),
    "s": Declared("text", "varchar"),
    "n": Declared("text", "nvarchar"),
    "d": Declared("time", "date"),
    "t": Declared("time", "datetime2"),
    "u": Declared("other", "uniqueidentifier"),
}


def fault(dialect: str, query: str) -> str | None:
    if dialect == "tsql":
        tree, columns = sql_server.selection(f"CREATE VIEW v AS {query}"), COLUMNS
    else:
        tree = oracle.selection(query)
        columns = {name.upper(): kind for name, kind in COLUMNS.items()}
    if tree is None:
        return "cannot be read"
    source = plain_source(tree, dialect)
    return source if isinstance(source, str) else type_fault(tree, dialect, columns)


BOTH = [
    "SELECT x, s FROM r",
    "SELECT * FROM own.r",
    "SELECT q.x AS a, q.s FROM r q WHERE q.x > 1 AND (q.s LIKE 'a%' OR q.s IS NULL)",
    "SELECT x FROM r WHERE s IN ('a', 'b') AND x BETWEEN -1 AND 9.5 AND NOT x = 7",
    "SELECT x FROM r WHERE s <> n AND big >= 5 AND s = N'é'",
]
PLAIN = [
    *(("tsql", query) for query in BOTH),
    *(("oracle", query) for query in BOTH),
    ("tsql", "SELECT [x] AS [patient id] FROM [dbo].[r] WHERE d >= '2020-01-01'"),
    ("tsql", "SELECT a = x FROM r WHERE u = '6f1e0f5c-0000-4000-8000-00000000002a'"),
    ("tsql", "SELECT X FROM r WHERE S = 'a' WITH CHECK OPTION"),
    ("oracle", 'SELECT X "patient", "S" FROM "OWN".R WHERE d >= DATE \'2020-01-01\''),
    ("oracle", "SELECT x FROM r WHERE t < TIMESTAMP '2020-01-01 00:00:00' AND x < y"),
    ("oracle", "SELECT x FROM r WITH READ ONLY"),
]


@pytest.mark.parametrize(("dialect", "query"), PLAIN)
def test_a_plain_view(dialect: str, query: str) -> None:
    assert fault(dialect, query) is None


COUPLED = [
    "SELECT DISTINCT x FROM r",
    "SELECT max(x) AS x FROM r GROUP BY s",
    "SELECT count(*) AS x FROM r",
    "SELECT row_number() OVER (ORDER BY x) AS x FROM r",
    "SELECT x - (SELECT min(x) FROM r) AS x FROM r",
    "SELECT r.x FROM r JOIN r q ON q.x = r.x + 1",
    "SELECT r.x FROM r, r q",
    "SELECT x FROM r WHERE x > (SELECT avg(x) FROM r)",
    "SELECT x FROM r WHERE EXISTS (SELECT 1 FROM r q WHERE q.x > r.x)",
    "SELECT x FROM r WHERE x IN (SELECT x FROM q)",
    "SELECT x FROM r UNION SELECT x FROM q",
    "SELECT x FROM (SELECT x FROM r) q",
    "WITH q AS (SELECT x FROM r) SELECT x FROM q",
    "SELECT CAST(s AS integer) AS x FROM r",
    "SELECT x FROM r WHERE CAST(s AS integer) > 3",
    "SELECT x FROM r WHERE CAST(x AS varchar(2)) = '1'",
    "SELECT x FROM r WHERE s LIKE n",
    "SELECT x FROM r WHERE x LIKE '1%'",
    # A text that is no number, or no date, would end the query for all.
    "SELECT x FROM r WHERE s = 7",
    "SELECT x FROM r WHERE 7 < s",
    "SELECT x FROM r WHERE s IN ('a', 7)",
    "SELECT x FROM r WHERE s BETWEEN 'a' AND 7",
    "SELECT x FROM r WHERE s = x",
    "SELECT x FROM r WHERE s = d",
    "SELECT x FROM r WHERE d = t",
    "SELECT x FROM r WHERE x = '7'",
    "SELECT x FROM r WHERE x > 12345678901234567890",
    "SELECT x FROM r WHERE big > 0.5",
    "SELECT x FROM r WHERE d > 7",
    "SELECT nothing FROM r",
    "SELECT q.x FROM r",
]
COUPLING = [
    *(("tsql", query) for query in COUPLED),
    *(("oracle", query) for query in COUPLED),
    ("tsql", "SELECT TOP 5 x FROM r"),
    ("tsql", "SELECT TOP (50) PERCENT x FROM r ORDER BY x"),
    ("tsql", "SELECT x FROM r WITH (NOLOCK)"),
    ("tsql", "SELECT x FROM r TABLESAMPLE (10 ROWS)"),
    ("tsql", "SELECT x FROM r FOR SYSTEM_TIME ALL"),
    ("tsql", "SELECT x FROM server.other.dbo.r"),
    ("tsql", "SELECT x FROM other.dbo.r"),
    ("tsql", "SELECT x FROM OPENQUERY(server, 'SELECT 1')"),
    ("tsql", "SELECT x FROM dbo.f(1)"),
    ("tsql", "SELECT x FROM r CROSS APPLY (SELECT 1 AS y) q"),
    ("tsql", "SELECT x FROM r ORDER BY x OFFSET 1 ROWS"),
    ("tsql", "SELECT x FROM r PIVOT (COUNT(x) FOR s IN ([a])) p"),
    ("tsql", "SELECT a = MAX(x) FROM r"),
    ("tsql", "SELECT x, $IDENTITY AS k FROM r"),
    ("tsql", "SELECT @@ROWCOUNT AS x FROM r"),
    ("tsql", "SELECT x FROM r WHERE x < y"),  # int to bigint is safe, decimals are not: by type
    ("oracle", "SELECT x FROM r WHERE ROWNUM <= 5"),
    ("oracle", "SELECT ROWNUM AS x FROM r"),
    ("oracle", "SELECT LEVEL AS x FROM r CONNECT BY PRIOR x = y"),
    ("oracle", "SELECT x FROM r CONNECT BY PRIOR x = y"),
    ("oracle", "SELECT ORA_ROWSCN AS x FROM r"),
    ("oracle", "SELECT x, seq.NEXTVAL AS k FROM r"),
    ("oracle", "SELECT x FROM r@elsewhere"),
    ("oracle", "SELECT x FROM r SAMPLE (10)"),
    ("oracle", "SELECT x FROM r PARTITION (p)"),
    ("oracle", "SELECT x FROM r AS OF SCN 1"),
    ("oracle", "SELECT x FROM r FETCH FIRST 2 ROWS ONLY"),
    ("oracle", "SELECT UNIQUE x FROM r"),
    ("oracle", "SELECT x FROM TABLE(f(1))"),
    ("oracle", "SELECT x FROM r WHERE d > SYSDATE"),
    ("oracle", "SELECT x FROM r WHERE d > '2020-01-01'"),
    ("oracle", "SELECT x FROM r WHERE TO_NUMBER(s) > 1"),
    ("oracle", "SELECT x FROM r WHERE TO_TIMESTAMP(s, 'YYYY') > t"),
    ("oracle", "SELECT x FROM r WHERE TO_DATE(s, 'YYYY') > d"),
    ("oracle", "SELECT x FROM r WHERE s = DATE '2020-01-01'"),
    ("oracle", 'SELECT "x" FROM r'),
    ("oracle", "SELECT x FROM r MODEL DIMENSION BY (x) MEASURES (y) RULES ()"),
]


@pytest.mark.parametrize(("dialect", "query"), COUPLING)
def test_a_view_that_may_mix_rows_or_fail_at_one_is_not_plain(dialect: str, query: str) -> None:
    assert fault(dialect, query)


def test_columns_that_share_a_name_but_for_case_are_not_told_apart() -> None:
    columns = {"x": Declared("number", "int"), "X": Declared("text", "varchar")}
    tree = sql_server.selection("CREATE VIEW v AS SELECT x FROM r WHERE x = 5")
    assert tree is not None
    assert "which is no column" in str(type_fault(tree, "tsql", columns))
