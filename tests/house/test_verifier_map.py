"""A stranger finds the way in the verifier: its order of reading, and where each rule is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

VERIFIER = "privacy/audit/verify"
PACKAGE = "privet.privacy.audit.verify"


def modules(root: Path) -> dict[str, str]:
    """Return the verifier's modules in their order of reading; names of folders come first."""
    folder = root / VERIFIER
    listed = re.findall(r"^``([a-z_/]+)``  ", _table(folder / "__init__.py"), re.MULTILINE)
    return {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in listed}


def _table(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("To read it in an afternoon")[2]


def ahead(found: dict[str, str]) -> list[str]:
    """Return each import of a module that is not read before."""
    wrong, read = [], set[str]()
    for name, text in found.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
                continue
            inner = (node.module or "").removeprefix(PACKAGE).lstrip(".").replace(".", "/")
            for alias in node.names:
                whole = f"{inner}/{alias.name}".lstrip("/")
                target = whole if whole in found else inner
                if target not in read:
                    wrong.append(f"{name} imports {target}")
        read.add(name)
    return wrong


def test_the_order_of_reading_names_every_file(root: Path) -> None:
    folder = root / VERIFIER
    files = {str(path.relative_to(folder))[:-3] for path in folder.rglob("*.py")}
    assert {*modules(root)} == {name for name in files if not name.endswith("__init__")}


def test_no_file_imports_one_that_is_read_later(root: Path) -> None:
    found = modules(root)
    assert ahead(found) == []
    assert ahead({**found, "formats/strict": f"from {PACKAGE}.rules import log"})
    assert ahead({**found, "formats/strict": f"from {PACKAGE}.rules.log import AuditedLog"})


def functions(text: str) -> Iterator[tuple[str, str, set[str]]]:
    """Yield name and docstring of each function, with the rules whose faults it finds."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
            yield node.name, ast.get_docstring(node) or "", {*filter(None, map(_rule, calls))}


def _rule(call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if name not in ("fault", "Problem") or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def silent(found: dict[str, str]) -> list[str]:
    """Return each function whose docstring does not name a rule of which it finds faults."""
    return [
        f"{module}: {name} does not name {rule}"
        for module, text in found.items()
        for name, doc, rules in functions(text)
        for rule in sorted(rules)
        if f"``{rule}``" not in doc
    ]


def test_a_function_names_the_rules_of_its_faults(root: Path) -> None:
    found = modules(root) | {"__init__": (root / VERIFIER / "__init__.py").read_text("utf-8")}
    assert sum(len(rules) for text in found.values() for _, _, rules in functions(text)) > 60
    assert silent(found) == []
    assert silent({"planted": 'def f(self):\n    """Rule 3."""\n    self.fault("plan", "x")'})


def numbers(text: str) -> set[int]:
    """Return the numbers of rules that a text names: 3; 3 and 4; 3, 4 and 5; 3 to 5."""
    found: set[int] = set()
    for part in re.findall(r"[Rr]ules? (\d+(?:(?:, | and | to )\d+)*)", text):
        found |= {int(number) for number in re.findall(r"\d+", part)}
        for first, last in re.findall(r"(\d+) to (\d+)", part):
            found |= {*range(int(first), int(last) + 1)}
    return found


def test_every_numbered_rule_of_the_format_page_is_named_where_it_is_checked(root: Path) -> None:
    page = (root / "docs" / "reference" / "evidence-format.md").read_text(encoding="utf-8")
    rules = page.partition("Rules, checked at each entry")[2]
    ledger, _, rest = rules.partition("## Kinds of a coordinator's journal")
    between = rest.partition("Between bundle parts")[2].partition("## Whose word")[0]
    asked = [int(number) for number in re.findall(r"^(\d+)\. ", ledger + between, re.MULTILINE)]
    assert asked == [*range(1, len(asked) + 1)] and len(asked) > 30
    docs = [doc for text in modules(root).values() for _, doc, _ in functions(text)]
    assert set().union(*map(numbers, docs)) == {*asked}
