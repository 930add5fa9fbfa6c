"""No page, docstring, comment or message uses an old word: each has a replacement here.

Code, inline code, link targets, decision records and the generated table of evidence-format.md are
not prose. Run as a script, it lists what the product has: ``python tests/house/test_glossary.py
[--list]``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOMS = ("common", "privacy", "client", "server", "simulations", "privet")
GENERATED = "| field | whose word |"
"""The head of the table that `campaigns/forge.py --fields` prints."""
TITLE = re.compile(r"- \[\d{4}\]\(adr/")
"""A line of the index: the title of a decision record, which is dated as the record is."""


@dataclass(frozen=True)
class Old:
    """A word that the house once used.

    Attributes:
        word: regular expression, matched between word boundaries, ignoring case; a blank in it
            matches any white space.
        instead: what to write.
        example: a piece of text in which it is found.
        fine: regular expression of phrases that may contain the word; case matters.
        pages: names of pages that may contain it.
    """

    word: str
    instead: str
    example: str
    fine: str = ""
    pages: tuple[str, ...] = ()


OLD = (
    # one term for one thing
    Old(
        r"gates?",
        "metrics mechanism, or site endpoint",
        "noise of the gate",
        fine=r"--gate|[\"']gate[\"']|reset gate|the gates after|of all gates|gates · h",  # of recurrent cells
    ),
    Old(
        r"figures?",
        "metrics, or numbers",
        "figures by site",
        fine=r"(?m:^ +figures:)|'figures'",  # name of an argument, as lighter, standing and shown are
        pages=("benchmarks.md",),
    ),
    Old(
        r"honesty list",
        "assumption register",
        "a row of the honesty list",
        fine=r"\*honesty list\* of earlier versions",
    ),
    Old(r"guards?", "admission control", "the guard checks", fine=r"guards? against"),
    Old(
        r"hubs?",
        "coordinator",
        "the hub asks",
        fine=r"Hugging Face Hub|(?:of|in) the Hub|privet (?:server|client) [^\n]*",
    ),
    Old(r"desks?", "operator decisions", "a decision of the desk"),
    Old(
        r"offices?",
        "coordinator",
        "the office queues a run",
        fine=r"post offices?|dealt to one office",
    ),
    Old(r"doors?", "enrolment server", "the door is open"),
    Old(r"recorders?", "evidence collector", "the recorder checks"),
    Old(r"books?", "ledger state", "in these books", fine=r"[Bb]ook-keeping|code book"),
    Old(r"parcels?", "request, or message", "a parcel waits", fine=r"(?m:^ +parcel:)"),
    Old(r"workbench(?:es)?", "model runtime", "on the workbench"),
    Old(r"residents?", "daemon", "the resident process"),
    Old(
        r"lighter", "smaller, compressed or optimised", "a lighter update", fine=r"(?m:^ +lighter:)"
    ),
    Old(r"sealed", "encrypted, or frozen", "a sealed piece", fine=r"sealed box|(?m:^ +sealed:)"),
    Old(r"standing", "status", "the standing of a site", fine=r"(?m:^ +standing:)"),
    Old(r"twins?", "duplicate clients", "twins are named"),
    Old(r"opponents?", "attacker, or adversary", "an opponent's findings"),
    Old(
        r"other views|views (?:of (?:it|them|a record|each record)|drawn)",
        "augmented copies",
        "with views of them",
    ),
    Old(r"ways? of clipping", "clipping method", "the way of clipping"),
    # the common word
    Old(r"(?:[\d,]{2,}|control|of) signs", "characters", "at most 64 signs"),
    Old(r"persons", "people", "the persons behind the data"),
    Old(
        r"look(?:s|ed|ing)?",
        "check, evaluate, poll or search",
        "it is looked for",
        fine=r"looks? (?:odd|like|good)|chosen without looking",  # in digests of plans
    ),
    Old(
        r"join(?:s|ed|ing)? (?:the |these |sites' )?(?:updates?|releases?|models?|repl(?:y|ies))",
        "aggregate",
        "the coordinator joins updates",
    ),
    Old(
        r"(?:updates?|releases?|models?|repl(?:y|ies)) (?:is|are|was|were|that was) (?:not )?joined",
        "aggregated",
        "the release is not joined",
    ),
    Old(
        r"shown",
        "displayed, published or sent",
        "the head that it was shown",
        fine=r"(?m:^ +(?:\w+, )*shown:)",
    ),
    Old(r"gainsa(?:y|ys|id)", "contradict", "nobody gainsays it"),
    Old(r"anew", "again", "is drawn anew", fine=r"(?m:^ +anew:)"),
    Old(r"so many", "that many", "so many orders"),
    Old(r"no word (?:came|comes)", "timed out", "no word came in time"),
    Old(r"whoever", "anyone who", "whoever has the key"),
    Old(
        r"(?:to|by|from|of|for|than|with|if) who",
        "name the party: the operator, the site, ...",
        "served to who shows a certificate",
    ),
    Old(r"who (?:asks|may ask|is asked)", "name the party", "a list of who may ask"),
    Old(r"(?:is|are|was) said", "is reported", "what is left is said by the command"),
    Old(
        r"tells|(?:is|are|was|were) (?:not )?told",
        "reports, reveals, or is sent",
        "a client is not told",
        fine=r"all sites were told",
    ),
    Old(
        r"(?:spoken|speaks?|spoke) (?:of|to)",
        "contain data about, or connect to",
        "it may speak of records",
    ),
    Old(r"(?:comes?|came|coming) in(?! (?:time|force|a|the)\b)", "enrol", "which sites came in"),
    Old(r"for ever", "permanently, or always", "read for ever"),
    Old(r"for good", "permanently", "ends a run for good"),
    Old(r"made[- ]up", "generated", "on made-up records"),
    Old(r"(?:made|make|makes) (?:anew|ready)|goes on|go on", "continues", "it goes on at round 3"),
    Old(r"mend(?:s|ed|ing)?", "correct, repair", "it is mended"),
    Old(r"puts? (?:it |them |the \w+ )?back", "restore", "put the records back"),
    Old(r"tak(?:es|en) (?:it |them )?up", "load, or apply", "a client takes it up"),
    Old(r"dealt to", "divided among", "dealt to three hospitals", fine=r"is dealt to one"),
    Old(
        r"(?:holds?|contains?|ha(?:ve|s)) line ends|line ends (?:inside|within)",
        "line breaks",
        "cells hold line ends",
        fine=r"quoted cells hold line ends: the site keeps",  # in digests of policies
    ),
    Old(r"life-time", "lifetime", "a life-time cap"),
    Old(r"cap less", "cap minus", "the cap less the ε"),
    Old(r"held against", "checked against", "held against the ledgers"),
    Old(r"of the trade", "of the field", "names of the trade"),
    Old(r"by a hair", "slightly", "missed by a hair"),
    # structure of a sentence
    Old(
        r"st(?:ands?|ood) (?:in|beside|behind|under|before|above|at|on|there|alone)",
        "is in, or is self-contained",
        "it stands in the ledger",
        fine=r"a verse stands in one gospel",  # in digests of plans
    ),
    Old(
        r"(?:lines?|bytes?|events?|columns?|pages?|pieces?|perplexity|bits|convolutions?|ms) an? "
        r"(?:round|line|site|record|pixel|number|family|token|character|value|layer|cell|unit)",
        "per",
        "one line a round",
    ),
    Old(r"some [\d.]+ (?:s|ms|MB|bytes|%|rounds|seconds)", "about", "some 10 s"),
)


@dataclass(frozen=True)
class Hit:
    """An old word and its place."""

    place: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.word!r}: write {self.instead}"


def _pattern(words: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)".replace(" ", r"\s+"), flags)


_PATTERNS = [
    (old, _pattern(old.word, re.IGNORECASE), _pattern(old.fine) if old.fine else None)
    for old in OLD
]


def hits(text: str, place: str = "", line: int = 1) -> Iterator[Hit]:
    """Yield the old words of a text, in its order.

    Args:
        text: prose; code in it was blanked out before.
        place: name of the file.
        line: number of the text's first line.
    """
    found = []
    for old, pattern, fine in _PATTERNS:
        if Path(place).name in old.pages:
            continue
        spared = [match.span() for match in fine.finditer(text)] if fine else []
        found += [
            (match.start(), old, " ".join(match[0].split()))
            for match in pattern.finditer(text)
            if not any(begin <= match.start() < end for begin, end in spared)
        ]
    for start, old, word in sorted(found, key=lambda one: one[0]):
        yield Hit(place, line + text.count("\n", 0, start), word, old.instead)


# --- prose of a page ------------------------------------------------------------------------


def _blank(match: re.Match[str]) -> str:
    """Replace each character, so that lines and columns stay; no phrase matches across it."""
    return re.sub(r"[^\n]", "·", match[0])


def prose_of_page(text: str) -> str:
    """Return a page with its code, link targets and generated table blanked out."""
    lines, fenced, code, table = [], False, False, False
    before = ""
    for line in text.split("\n"):
        mark = line.lstrip().startswith("```")
        fenced ^= mark
        code = line.startswith("    ") and (code or not before.strip())
        table = line.startswith(GENERATED) or (table and line.startswith("|"))
        before = "    " if code else line
        is_prose = not (mark or fenced or code or table or TITLE.match(line))
        lines.append(line if is_prose else "")
        if mark:
            before = ""
    prose = "\n".join(lines)
    prose = re.sub(r"`(?:[^`\n]|\n(?!\n))+`", _blank, prose)  # within a paragraph
    return re.sub(r"\]\([^)]*\)|<[^>\n]*>|https?://\S+", _blank, prose)


def pages(root: Path) -> list[Path]:
    """Return the pages that are prose of today: not the decision records, which are dated."""
    return [p for p in sorted((root / "docs").rglob("*.md")) if "adr" not in p.parts]


# --- prose of a module ----------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Prose of a module: ``kind`` is docstring, comment or message."""

    kind: str
    line: int
    text: str


def prose_of_module(source: str) -> list[Piece]:
    """Return docstrings, comments, and texts of two words or more that a user may read."""
    tree = ast.parse(source)
    found, docstrings = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value
            if isinstance(value.value, str):  # of a module, class or function, or of a constant
                docstrings.add(id(value))
                found.append(Piece("docstring", value.lineno, _without_code(value.value)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_prose = re.search(r"[a-z]{2,} [a-z]{2,}", node.value)
            if is_prose and id(node) not in docstrings:
                found.append(Piece("message", node.lineno, _without_code(node.value)))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            text = _without_code(token.string.lstrip("#: "))
            found.append(Piece("comment", token.start[0], text))
    return sorted(found, key=lambda piece: piece.line)


def _without_code(text: str) -> str:
    return re.sub(r"``.+?``|`[^`]+`|https?://\S+", _blank, text, flags=re.DOTALL)


def of_product(root: Path) -> Iterator[tuple[str, str, Hit]]:
    """Yield folder, kind and hit of all product code."""
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            name = path.relative_to(root)
            if name.parts[0] == "privet" and len(name.parts) > 2 and name.parts[1] in ROOMS:
                continue  # a link to a room
            if path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
                continue
            for piece in prose_of_module(path.read_text(encoding="utf-8")):
                for hit in hits(piece.text, str(name), piece.line):
                    yield str(name.parent), piece.kind, hit


# --- tests ----------------------------------------------------------------------------------


def test_the_documentation_uses_no_old_word(root: Path) -> None:
    found = [
        str(hit)
        for page in pages(root)
        for hit in hits(
            prose_of_page(page.read_text(encoding="utf-8")), str(page.relative_to(root))
        )
    ]
    assert found == [], "\n" + "\n".join(found)


def test_docstrings_comments_and_messages_use_no_old_word(root: Path) -> None:
    found = [f"{hit} ({kind})" for _, kind, hit in of_product(root)]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize("old", OLD, ids=lambda old: old.instead)
def test_each_old_word_is_found(old: Old) -> None:
    """The control of each row: a pattern that never matches would pass every page."""
    assert old.instead in {hit.instead for hit in hits(old.example)}


def test_a_planted_word_is_found_where_it_is_prose() -> None:
    page = """# A page of the hub

Whoever reads `the hub`, [the page](hub.md#desk) or https://hub.example.org finds that no
word came in time.

```sh
privet server start hub  # the hub
```

    privet server start hub

1. A list of persons,
    and of parcels.

| key | meaning |
|---|---|
| `hub` | the desk |

| field | whose word |
|---|---|
| `x` | the persons |
"""
    found = [(hit.line, hit.word) for hit in hits(prose_of_page(page), "docs/page.md")]
    assert found == [
        (1, "hub"), (3, "Whoever"), (3, "no word came"), (12, "persons"), (13, "parcels"),
        (17, "desk"),
    ]  # fmt: skip


def test_a_word_in_a_fine_context_is_spared() -> None:
    assert not list(hits("Five post offices guard against a code book in a sealed box."))
    assert [hit.word for hit in hits("Five post offices, and an office.")] == ["office"]
    assert not list(hits("The figures", "docs/benchmarks.md"))
    assert list(hits("The figures", "docs/tutorial.md"))


def test_prose_of_a_module_is_what_people_read() -> None:
    source = '''"""A desk."""
KEY = "desk"  # the hub
"""What a gate is."""

def f(x):
    """Raise ``Hub``."""
    raise ValueError(f"{x}: the guard said no")
'''
    found = [
        (piece.kind, hit.line, hit.word)
        for piece in prose_of_module(source)
        for hit in hits(piece.text, line=piece.line)
    ]
    assert found == [
        ("docstring", 1, "desk"), ("comment", 2, "hub"), ("docstring", 3, "gate"),
        ("message", 7, "guard"),
    ]  # fmt: skip


def main(root: Path, *, every: bool) -> None:
    """Print how many old words the product's own prose has, by folder and kind."""
    found = list(of_product(root))
    if every:
        for _, kind, hit in found:
            print(f"{hit} ({kind})")
    kinds = ("docstring", "comment", "message")
    counts = Counter((folder, kind) for folder, kind, _ in found)
    print(f"{'folder':32}" + "".join(f"{kind:>11}" for kind in kinds))
    for folder in sorted({folder for folder, _ in counts}):
        print(f"{folder:32}" + "".join(f"{counts[folder, kind]:11}" for kind in kinds))
    print(f"{'all':32}" + "".join(f"{sum(k == kind for _, k, _ in found):11}" for kind in kinds))


if __name__ == "__main__":
    main(Path(__file__).parents[2], every="--list" in sys.argv)
