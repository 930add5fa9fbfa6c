"""Probe a database while a run is offered, but not at each offer."""

from __future__ import annotations

import time

from privet.client.data.loader import probe_database
from privet.common.errors import InputError
from privet.privacy.policy import Policy

PROBE_INTERVAL_S = 30.0
"""Seconds between two probes: each connection is an event in a database's own log."""


class DatabaseProbe:
    """Whether a data set's database answers, by a probe that is at most 30 s old."""

    def __init__(self) -> None:
        self._asked, self._when = "", 0.0
        self._fault: InputError | None = None

    def require(self, policy: Policy, data_set: str, asked: str) -> None:
        """Check the database of a data set; a data set of a file passes.

        Args:
            policy: that names the data set.
            data_set: its name.
            asked: identifies the offer; for another offer the database is probed at once.

        Raises:
            InputError: the probe's result, also if the probe was some time ago.
        """
        if policy.data_set(data_set)[1].sql is None:
            return
        if asked != self._asked or time.monotonic() - self._when > PROBE_INTERVAL_S:
            self._fault = None
            try:
                probe_database(policy, data_set)
            except InputError as error:
                self._fault = error
            self._asked, self._when = asked, time.monotonic()
        if self._fault is not None:
            raise self._fault.with_traceback(None)
