"""Docstrings for the site: what Sphinx writes as a role or a literal block, in Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_LITERAL = re.compile(r"(?m)^(.*\S)?::\n(?=\n {4})")


def markdown(text: str) -> str:
    """Return a docstring's text with single code spans, and with its roles and ``::`` undone."""
    text = _ROLE.sub(r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return _LITERAL.sub(lambda found: f"{found[1]}:\n" if found[1] else "", text)


class Roles(griffe.Extension):
    """Rewrites the docstring of every object once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
