"""Export a site's copy for another site that lost its ledger."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from privet.common.errors import InputError
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import Member, Roster
from privet.privacy.evidence.signed_note import Checkpoint
from privet.privacy.evidence.witness import read_seen
from privet.privacy.policy import Policy


def copy_kept(policy_file: Path, site: str) -> CopyFile:
    """Return this site's copy of another site's ledger, and the newest head that it saw.

    No key is needed.

    Args:
        policy_file: of this site.
        site: the other site's name, as in the newest run's roster.

    Raises:
        InputError: if this site knows no such site, or keeps no copy of its ledger.
    """
    policy = Policy.load(policy_file)
    ledger = Ledger.read(policy.ledger_folder, policy.site)
    with closing(ledger.log.store):
        papers = ledger.log.store.papers("roster")
    if not papers:
        raise InputError(f"{policy_file}: this site took part in no run, and keeps no copies")
    member = _member([Roster.parse(json.loads(text)) for _, text in papers], site)
    seen = read_seen(policy.ledger_folder / "witness.json").get(member.ledger.name)
    return CopyFile(
        member.ledger.name,
        policy.site,
        member.witness,
        None,
        tuple(CopyStore(policy_file.parent / "copies").all(member.ledger.name)),
        (Checkpoint.parse(seen.note),) if seen else (),
    )


def _member(rosters: list[Roster], site: str) -> Member:
    """Return a site by the newest roster that has it: each coordinator has one of its own.

    Raises:
        InputError: if none has it.
    """
    found = [roster for roster in rosters if any(one.name == site for one in roster.sites)]
    return (found or rosters)[0].site(site)
