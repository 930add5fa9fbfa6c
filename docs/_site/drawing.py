"""Draw docs/images/architecture.svg from the imports of the code: python docs/_site/drawing.py.

Boxes stand where ``PLACES`` puts them. Which sub-rooms are in a box, and which arrows there are, is
read from the code. An arrow that follows from two others is left out.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "images" / "architecture.svg"
ROOMS = ("common", "privacy", "client", "server", "simulations", "privet/cli", "privet/delivery")

PLACES = {
    "privet.cli": (20, 20, 920), "privet.delivery": (20, 132, 350), "simulations": (390, 132, 550),
    "client": (20, 244, 370), "server": (410, 244, 330), "privacy.audit": (760, 244, 180),
    "privacy.mechanism": (20, 374, 400), "privacy": (660, 374, 280),
    "privacy.evidence": (460, 486, 480), "privacy.accounting": (20, 598, 920),
    "common": (20, 710, 920),
}  # fmt: skip
"""Left, top and width of each box."""
WORDS = {
    "privet.cli": "commands, and what they print", "privet.delivery": "what becomes of a model",
    "simulations": "many sites on one machine, or on Ray",
    "client": "a site: admits, pays, trains, releases",
    "server": "a coordinator: orders, joins", "privacy.audit": "bundle, verify, report",
    "privacy.mechanism": "samples, clips, adds noise", "privacy": "policy, database, persons",
    "privacy.evidence": "ledger, keys, witnesses, roster",
    "privacy.accounting": "events, and the ε that they cost",
    "common": "plan, order, release, arrays, errors",
}  # fmt: skip
COLOURS = {
    "privet": "#5b6770", "simulations": "#7a5195", "client": "#00796b", "server": "#b45309",
    "privacy": "#1d4ed8", "common": "#475569",
}  # fmt: skip
HEIGHT, WIDE, TALL = 80, 960, 810


def box_of(folder: str) -> str:
    """Return the box in which a folder of the rooms is drawn."""
    parts = folder.split("/")
    return ".".join(parts[:2]) if parts[0] in ("privacy", "privet") else parts[0]


def folders() -> dict[str, Path]:
    """Return each module of the rooms by its dotted name."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = name.removesuffix(".__init__")
            found[name if name.startswith("privet.") else f"privet.{name}"] = path
    return found


def imports() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return which boxes each box imports, and which sub-rooms each has."""
    modules = folders()
    where = {name: str(path.parent.relative_to(ROOT)) for name, path in modules.items()}
    arrows: dict[str, set[str]] = {box_of(folder): set() for folder in where.values()}
    inside: dict[str, set[str]] = {box: set() for box in arrows}
    for name, path in modules.items():
        box = box_of(where[name])
        below = where[name].split("/")[len(box.split(".")) :]
        inside[box] |= set(below[:1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            else:
                continue
            arrows[box] |= {box_of(where[one]) for one in named if one in where} - {box}
    return arrows, inside


def reduced(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that no longer way replaces; there must be no circle."""

    def beyond(box: str) -> set[str]:
        return arrows[box].union(*map(beyond, arrows[box]))

    return sorted(
        (box, other)
        for box, others in arrows.items()
        for other in others
        if not any(other in beyond(third) for third in others)
    )


def _line(box: str, other: str) -> str:
    """Return an arrow from the foot of one box to the head of another, upright if it can be."""
    (left, top, width), (to_left, to_top, to_width) = PLACES[box], PLACES[other]
    low, high = max(left, to_left), min(left + width, to_left + to_width)
    start = end = (low + high) / 2
    if high - low < 30:
        right = to_left > left
        start, end = (left + width - 20, to_left + 20) if right else (left + 20, high - 20)
    foot = top + HEIGHT
    return (
        f'<line x1="{start:g}" y1="{foot}" x2="{end:g}" y2="{to_top - 3}" '
        'stroke="#334155" stroke-width="1.6" marker-end="url(#head)"/>'
    )


def _box(box: str, inside: set[str]) -> str:
    left, top, width = PLACES[box]
    colour = COLOURS[box.split(".")[0]]
    title = f"{box} (files)" if box == "privacy" else box
    rooms = "  ·  ".join(sorted(inside))
    return f"""<g><rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" rx="8" fill="#ffffff" stroke="{colour}" stroke-width="2"/>
<rect x="{left}" y="{top}" width="8" height="{HEIGHT}" rx="4" fill="{colour}"/>
<text x="{left + 20}" y="{top + 24}" font-size="16" font-weight="600" fill="{colour}">{title}</text>
<text x="{left + 20}" y="{top + 44}" font-size="13" fill="#1f2937">{WORDS[box]}</text>
<text x="{left + 20}" y="{top + 66}" font-size="12" fill="#475569">{rooms}</text></g>"""


def draw() -> str:
    """Return the drawing as the text of an SVG file.

    Raises:
        KeyError: if a room has no place in the drawing.
    """
    arrows, inside = imports()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {TALL}" role="img" '
        'font-family="system-ui, sans-serif"><title>The rooms of Privet, and which imports which</title>',
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0 9 4 0 8z" fill="#334155"/></marker></defs>',
        f'<rect width="{WIDE}" height="{TALL}" rx="10" fill="#f8fafc"/>',
        *(_line(*arrow) for arrow in reduced(arrows)),
        *(_box(box, inside[box]) for box in arrows),
        "</svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
