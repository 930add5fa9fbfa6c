"""Every error that Privet raises on purpose.

::

    PrivetError                 exit code 1
    ├── InputError              2  what a person wrote or pointed at is wrong
    │   ├── PlanError              the plan (keys, types, ranges)
    │   ├── PolicyError            a site's policy (the same)
    │   ├── DataMissing            a file or data set that is not there
    │   └── DataError              the content of a site's data (stays at the site)
    ├── Refused                 3  a site said no
    │   └── BudgetExceeded         the population's budget does not cover the request
    ├── PrivacyFault            1  a guarantee does not hold; the run must stop
    │   ├── SelfTestFailed         a start-up test found the mechanism unsound
    │   ├── BypassDetected         parameters moved outside the mechanism
    │   └── NotReleasable          a value without a privacy event was about to leave
    └── RunError                1  the federation did not work out
        ├── QuorumNotMet           too few sites answered
        └── LedgerError            a history is broken, locked or incomplete

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class PrivetError(Exception):
    """Base of all errors of Privet. ``exit_code`` is what a command ends with."""

    exit_code = 1


class InputError(PrivetError):
    """Something that a person wrote or pointed at is wrong."""

    exit_code = 2


class PlanError(InputError):
    """A plan has an unknown key, a wrong type or an impossible value."""


class PolicyError(InputError):
    """A policy has an unknown key, a wrong type, or rules that contradict each other."""


class DataMissing(InputError):
    """A file or data set is not where it was looked for."""


class DataError(InputError):
    """The content of a site's data does not fit the plan.

    The message may speak of private data: it goes to the operator of the site and
    never crosses the wire, where only a closed status is sent (H30).
    """


class Refused(PrivetError):
    """A site refused an order."""

    exit_code = 3


class BudgetExceeded(Refused):
    """A reservation would take a population over its life-time budget."""


class PrivacyFault(PrivetError):
    """A guarantee does not hold; nothing may be released."""


class SelfTestFailed(PrivacyFault):
    """A start-up test of the privacy mechanism failed for this model."""


class BypassDetected(PrivacyFault):
    """Parameters or buffers changed outside the mechanism (H5, H8, H17)."""


class NotReleasable(PrivacyFault):
    """A raw or non-finite value was about to be encoded for the wire."""


class RunError(PrivetError):
    """A federated run could not go on."""


class QuorumNotMet(RunError):
    """Too few sites answered a round."""


class LedgerError(RunError):
    """A site's history is damaged, locked by another process, or used out of order."""
