"""Pictures as inline SVG: bars of spent and left, and the budget over time.

Plain SVG, so that they scale, print, need no font file, and come out the same each time.
Lines differ in dash and mark as well as in colour (Okabe and Ito's, for colour blindness).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup, escape

from privet.privacy.accounting.units import rounded_up
from privet.privacy.audit.report.claims import ReportLine

_COLORS = ("#2f6f4f", "#0072b2", "#b3412e", "#7b4ea3", "#a06a00", "#4a4f4c")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "1 2")
_MAX_LINES = 6


def bar(share: float | None, label: str, *, claimed: bool = False) -> Markup:
    """Return a bar of which ``share`` is spent; None is a bar without a cap.

    Args:
        share: from 0 to 1 and above, or None.
        label: what it shows, for those who do not see it.
        claimed: grey, because nobody verified it.
    """
    width, fill = 100.0, "none"
    if share is not None:
        width, fill = 100 * min(max(share, 0.0), 1.0), "spent"
        if share > 1 + 1e-6:
            fill = "over"
    if claimed and fill == "spent":
        fill = "claimed"
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        'aria-label="{0}"><title>{0}</title>'
        '<rect class="bar-cap" x="0" y="0" width="100" height="10"/>'
        '<rect class="bar-{1}" x="0" y="0" width="{2:.3f}" height="10"/></svg>'
    ).format(label, fill, width)


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    left: int = 46
    right: int = 12
    top: int = 12
    bottom: int = 40

    def x(self, share: float) -> float:
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


@dataclass(frozen=True)
class Picture:
    """A picture in two widths, and its legend: (swatch, text)."""

    wide: Markup
    narrow: Markup
    legend: list[tuple[Markup, str]]


def over_time(lines: list[ReportLine], terms: str, name: str) -> Picture:
    """Draw ε as steps, a line for each population or for several that are equal.

    Args:
        lines: of populations with the same δ, unit and relation.
        terms: δ, unit and relation in words.
        name: prefix of the ids in the document.
    """
    by_time = _days(lines) >= 2
    shared = _shared(lines, by_time)
    caps = sorted({line.group.cap for line in lines if line.group.cap is not None})
    top = max([*caps, *(y for _, steps in shared for _, y in steps), 1e-6]) * 1.12
    low = min(x for _, steps in shared for x, _ in steps)
    high = max(x for _, steps in shared for x, _ in steps)
    axis, margin = "time", (high - low) * 0.03
    if not by_time:
        axis, low, margin = "the charges", 0.0, 0.5
    ends_at = [f"{names}: {rounded_up(steps[-1][1])} at the end." for names, steps in shared[:12]]
    limit = "No cap."
    if caps:
        limit = f"Cap: {', '.join(f'{cap:g}' for cap in caps)}."
    said = " ".join([f"Privacy budget over {axis} ({terms}).", *ends_at, limit])
    ends = (low, high + max(margin, 1e-9), top)
    pictures = [
        _draw(shared, caps, _Frame(width, height), ends, by_time, said, f"{name}-{width}")
        for width, height in ((680, 260), (330, 240))
    ]
    drawn = shared if len(shared) <= _MAX_LINES else [(f"{len(lines)} populations", [])]
    legend = [(_swatch(k, len(shared)), names) for k, (names, _) in enumerate(drawn)]
    if caps:
        legend.append((_cap_swatch(), "lifetime cap"))
    return Picture(pictures[0], pictures[1], legend)


def _seconds(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def _days(lines: list[ReportLine]) -> float:
    times = [_seconds(point[1]) for line in lines for point in line.points]
    return (max(times, default=0.0) - min(times, default=0.0)) / 86400


def _shared(lines: list[ReportLine], by_time: bool) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return names with their steps; populations with equal steps share a line."""
    found: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for line in lines:
        steps = tuple(
            (_seconds(time) if by_time else float(count), value)
            for count, time, _, _, value in line.points
        )
        found.setdefault(steps, []).append(line.group.site)
    return [
        (
            ", ".join(names) if len(names) < 6 else f"{names[0]} and {len(names) - 1} others",
            [*steps],
        )
        for steps, names in found.items()
    ]


def _style(number: int, of: int) -> str:
    if of > _MAX_LINES:
        return f'stroke="{_COLORS[0]}" stroke-width="1" opacity="0.55"'
    dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
    return f'stroke="{_COLORS[number]}" stroke-width="2"{dash}'


def _swatch(number: int, of: int) -> Markup:
    return Markup(
        f'<svg class="swatch" viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" '
        f'fill="none" {_style(number, of)}/></svg>'
    )


def _cap_swatch() -> Markup:
    return Markup(
        '<svg class="swatch" viewBox="0 0 36 8" aria-hidden="true"><path class="cap" d="M0 4H36"/>'
        "</svg>"
    )


def _draw(
    shared: list[tuple[str, list[tuple[float, float]]]],
    caps: list[float],
    frame: _Frame,
    ends: tuple[float, float, float],
    by_time: bool,
    said: str,
    name: str,
) -> Markup:
    low, high, top = ends

    def at(x: float, y: float) -> str:
        return f"{frame.x((x - low) / (high - low)):.1f} {frame.y(y / top):.1f}"

    parts = [
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">Budget over time</title><desc id="{name}-d">{escape(said)}</desc>'
    ]
    for tick in _ticks(0, top, 5):
        y = frame.y(tick / top)
        parts.append(
            f'<path class="grid" d="M{frame.left} {y:.1f}H{frame.width - frame.right}"/>'
            f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    few = 3 if frame.width < 400 else 6
    for tick, text in _x_ticks(low, high, by_time, few):
        x = frame.x((tick - low) / (high - low))
        anchor = "middle"
        if by_time and not low < tick < high:
            anchor = "end" if tick >= high else "start"
        parts.append(
            f'<text x="{x:.1f}" y="{frame.height - frame.bottom + 16}" '
            f'text-anchor="{anchor}">{text}</text>'
        )
    parts.append(f'<text x="4" y="{frame.top + 2}" class="axis">ε</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    axis = "date" if by_time else "charges, in their order"
    parts.append(
        f'<text x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle" class="axis">'
        f"{axis}</text>"
    )
    parts += [
        f'<path class="cap" d="M{at(low, cap)}L{at(high, cap)}"/>'
        f'<text x="{frame.left + 4}" y="{frame.y(cap / top) - 5:.1f}">cap {cap:g}</text>'
        for cap in caps
    ]
    for number, (_, steps) in enumerate(shared):
        x, y = steps[0]
        path = f"M{at(low, 0)}L{at(x, 0)}L{at(x, y)}"
        for x, value in steps[1:]:
            path += f"L{at(x, y)}L{at(x, value)}"
            y = value
        path += f"L{at(high, y)}"
        parts.append(f'<path fill="none" d="{path}" {_style(number, len(shared))}/>')
    return Markup("".join(parts) + "</svg>")


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _x_ticks(low: float, high: float, by_time: bool, most: int) -> list[tuple[float, str]]:
    if not by_time:
        whole = [tick for tick in _ticks(low, high, most) if tick == int(tick)]
        return [(tick, f"{tick:g}") for tick in whole]
    moments = [low + (high - low) * place / (most - 1) for place in range(most)]
    return [(at, datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")) for at in moments]
