"""What is kept of a log for those who want no report: little, however long the log is.

Of reservations, and of what became of them, one example of each sort is kept; refusals and rounds
are not. All other entries are rare and are kept.
"""

from __future__ import annotations

from typing import Any

from privet.privacy.audit.verify.result import AuditedEntry

_CLOSING = ("released", "metric-released", "aborted")
_NOT_KEPT = ("refused", "round")


class Brief:
    """Takes the entries of one log in turn, and puts the few that are kept into ``entries``.

    ``passed`` counts the others.
    """

    def __init__(self, entries: list[AuditedEntry]) -> None:
        self.passed = 0
        self._entries = entries
        self._open: dict[int, AuditedEntry] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def take(self, entry: AuditedEntry) -> None:
        """Take in the next entry."""
        if entry.kind == "reserved":
            self._open[entry.sequence] = entry
        elif entry.kind in _CLOSING:
            opened = self._open.pop(entry.predicate["reservation"], None)
            self._keep([one for one in (opened, entry) if one is not None])
        elif entry.kind in _NOT_KEPT:
            self.passed += 1
        else:
            self._entries.append(entry)

    def close(self) -> int:
        """Take in what was never closed; return how many entries were passed over."""
        for entry in self._open.values():
            self._keep([entry])
        self._open.clear()
        return self.passed

    def _keep(self, few: list[AuditedEntry]) -> None:
        sort = tuple(part for entry in few for part in _sort(entry))
        if sort in self._seen:
            self.passed += len(few)
        else:
            self._seen.add(sort)
            self._entries += few


def _sort(entry: AuditedEntry) -> tuple[Any, ...]:
    """Return what two entries have in common that say the same about a claim."""
    value = entry.predicate
    if entry.kind == "reserved":
        names = ("population", "run", "plan", "purpose")
        tests = tuple(value["self_tests"])
        return (
            *(value[name] for name in names),
            tests,
            value["event"].get("type") == "non_private",
        )
    return entry.kind, value.get("reproducible"), value.get("data_opened")
