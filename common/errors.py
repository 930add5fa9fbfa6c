"""Every error that Privet raises on purpose.

::

    PrivetError                     exit code 1
    ├── InputError                  2  what a person wrote or pointed at is wrong
    │   ├── PlanError                  the plan (keys, types, ranges)
    │   ├── PolicyError                a site's policy (keys, types, ranges)
    │   ├── NoteError                  a signed note, key or proof is malformed
    │   ├── PrivateKeyError            a private key is not there, does not open, or is another
    │   ├── WrongLedgerError           a ledger is not there, or is another site's
    │   ├── DataMissingError           a file or data set that is not there
    │   └── DataError                  the content of a site's data (stays at the site)
    │       └── SourceUnavailableError a database that does not answer at present
    ├── RefusedError                3  a site said no
    │   ├── BudgetExceededError        the population's budget does not cover the request
    │   ├── OutOfTurnError             an attempt was answered before, or for another order
    │   ├── PlanClosedError            the plan failed too often here, and waits for the operator
    │   └── SitePausedError            the site has paused
    │       └── SiteClosedError        the site withdrew, or closed the budget
    ├── PrivacyError                1  a guarantee does not hold; the run must stop
    │   ├── SelfTestError              a start-up test found the mechanism unsound
    │   │   └── UnfitModelError        the model or its loss is at fault
    │   │       └── CoupledRecordsError    a record's loss or gradient depends on others
    │   ├── BypassError                parameters moved outside the mechanism
    │   └── NotReleasableError         a value without a privacy event was about to leave
    └── RunError                    1  the federation did not work out
        ├── QuorumError                too few sites answered
        ├── TrainerLostError           the process that trains has ended
        │   └── TrainerUnconfinedError this machine cannot keep it from network or keys
        ├── HeadAwaitedError           a coordinator did not say yet what it saw of the ledger
        ├── DiskFullError              the disk does not take what a release needs
        ├── EvidenceError              a site's history was rewritten, forked or rolled back
        └── LedgerError                a history is broken, locked or incomplete
            ├── LedgerFullError        the disk takes no further entry
            └── RolledBackError        the ledger does not extend its last cosigned head

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import json


class PrivetError(Exception):
    """Base of all errors of Privet. ``exit_code`` is what a command ends with."""

    exit_code = 1


class InputError(PrivetError):
    """Something that a person wrote or pointed at is wrong."""

    exit_code = 2


class PlanError(InputError):
    """A plan has an unknown key, a wrong type or an impossible value."""


class PolicyError(InputError):
    """A site's policy has an unknown key, a wrong type or an impossible value."""


class NoteError(InputError):
    """A signed note, a verifier key or a proof is not what the specification says."""


class PrivateKeyError(InputError):
    """A private key is missing, unreadable, not the one asked for, or its passphrase is wrong."""


class WrongLedgerError(InputError):
    """The ledger that was pointed at is not there, or belongs to another site."""


class DataMissingError(InputError):
    """A file or data set is not at the place that was named."""


class DataError(InputError):
    """The content of a site's data does not fit the plan.

    The message may contain private data: it goes to the operator of the site and
    never crosses the wire, where only a closed status is sent (H30).
    """


class SourceUnavailableError(DataError):
    """A database does not answer at present; asked again later, it may."""


class RefusedError(PrivetError):
    """A site refused an order."""

    exit_code = 3


class BudgetExceededError(RefusedError):
    """A reservation would take a population over its lifetime budget."""


class OutOfTurnError(RefusedError):
    """An attempt was taken before, or the run is past it."""


class PlanClosedError(RefusedError):
    """A plan failed ``max_attempts`` times in a row; its operator has not opened it again."""


class SitePausedError(RefusedError):
    """The site has paused; it reserves again after ``privet client pause --end``."""


class SiteClosedError(SitePausedError):
    """The site has withdrawn, or the population's budget was closed; neither can be undone."""


class PrivacyError(PrivetError):
    """A guarantee does not hold; nothing may be released."""


class SelfTestError(PrivacyError):
    """A start-up test of the privacy mechanism failed for this model."""


class UnfitModelError(SelfTestError):
    """The model or its loss is at fault, in whatever way its gradients are computed."""


class CoupledRecordsError(UnfitModelError):
    """The loss or the gradient of one record depends on other records (H6)."""


class BypassError(PrivacyError):
    """Parameters or buffers changed outside the mechanism (H5, H8, H17)."""


class NotReleasableError(PrivacyError):
    """A raw or non-finite value was about to be encoded for the wire."""


class RunError(PrivetError):
    """A federated run could not continue."""


class QuorumError(RunError):
    """Too few sites answered a round."""


class TrainerLostError(RunError):
    """The process that trains has ended, or could not be started."""


class TrainerUnconfinedError(TrainerLostError):
    """The process that trains cannot be confined on this machine."""


class HeadAwaitedError(RunError):
    """A site's coordinator has not said, since the client started, what it saw of the ledger."""


class DiskFullError(RunError):
    """The disk does not have the room that a release and its entries need."""


class EvidenceError(RunError):
    """Witnesses saw a history that does not extend what they saw before."""


class LedgerError(RunError):
    """A site's history is damaged, locked by another process, or used out of order."""


class LedgerFullError(LedgerError):
    """The disk takes no further entry; nothing of it was written."""


class RolledBackError(LedgerError):
    """The ledger is older than a head it signed before: a restored backup (H31)."""


def reason_of(error: Exception) -> str:
    """Return why a file could not be read or written, in plain words, without its name."""
    match error:
        case IsADirectoryError():
            return "it is a folder, not a file"
        case OSError():
            return error.strerror or str(error)
        case UnicodeDecodeError():
            return f"it is not a text file in UTF-8 (byte {error.start})"
        case json.JSONDecodeError():
            return f"it is not JSON (line {error.lineno})"
    return str(error)
