"""How a result is displayed in a notebook."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING, Any

from privet.privacy.accounting.units import rounded_up

if TYPE_CHECKING:
    from privet.simulations.run_view import RunView

_SHOWN_SITES = 30


class Plot:
    """A picture that a notebook displays, and that can be saved.

    Args:
        drawing: matplotlib's.
    """

    def __init__(self, drawing: Any) -> None:
        self.drawing = drawing

    def _repr_svg_(self) -> str:
        stream = io.StringIO()
        self.drawing.savefig(stream, format="svg", metadata={"Date": None})
        return stream.getvalue()

    def save(self, path: Any) -> None:
        """Write the picture.

        Args:
            path: with a suffix such as ``.svg`` or ``.png``.
        """
        self.drawing.savefig(path, dpi=150)


def html_of(result: RunView) -> str:
    """Return a result as a table of metrics and one of sites.

    Args:
        result: of a run.
    """
    metrics = {name: value for name, value in result.metrics.items() if isinstance(value, float)}
    head = "".join(f"<th>{escape(name)}</th>" for name in metrics)
    row = "".join(f"<td>{value:.3f}</td>" for value in metrics.values())
    loss = "no privacy" if result.loss is None else str(result.loss)
    sites = "".join(
        f"<tr><td>{escape(site.name)}</td><td>{escape(site.status)}</td>"
        f"<td>{'–' if site.loss is None else rounded_up(site.loss.epsilon)}</td></tr>"
        for site in result.sites[:_SHOWN_SITES]
    )
    more = len(result.sites) - _SHOWN_SITES
    rest = f"<tr><td>and {more} more</td></tr>" if more > 0 else ""
    return (
        f"<div><b>{escape(result.plan.title or result.plan.name)}</b>: {escape(loss)}; claim "
        f"{escape(result.claim)}<table><tr>{head}</tr><tr>{row}</tr></table>"
        f"<table><tr><th>site</th><th>last answer</th><th>ε</th></tr>{sites}{rest}</table></div>"
    )
