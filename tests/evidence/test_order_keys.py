"""Order keys that follow each other: in a ledger, and for whoever verifies it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import asked, entries, opened, spend
from verify_kit import (
    HUB,
    SITES,
    Federation,
    Key,
    b64,
    digest,
    pae,
    train_event,
    write,
    write_roster,
)

from privet.common.canonical import canonical_json
from privet.common.errors import InputError, LedgerError
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.order_keys import MAX_HANDOVERS, KeyHandover, OrderKeys
from privet.privacy.evidence.signed_note import fingerprint

NORTH = SITES[0]
OLD, NEW, NEWER, EVE = (FileSigner.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))


def handover(
    old: FileSigner, new: FileSigner, by: FileSigner | None = None, field: str = "sig"
) -> dict[str, Any]:
    """A handover as a coordinator shows it; ``by`` signs in the place of the old key."""
    good = KeyHandover.make("hub", old, new).to_json()
    if by is None:
        return good
    named = {key: good[key] for key in ("coordinator", "old", "key")}
    message = pae("application/vnd.privet.order-key+json", canonical_json(named))
    return {**good, field: b64(by.sign(message))}


def prints(*signers: FileSigner) -> list[str]:
    return [fingerprint(one.public) for one in signers]


# what a coordinator shows


def test_only_the_old_key_names_the_next() -> None:
    assert KeyHandover.from_json(handover(OLD, NEW)).new.public == NEW.public
    for by in (EVE, NEW):  # who has not the old key; not even the new one's owner
        with pytest.raises(InputError, match="did not sign"):
            KeyHandover.from_json(handover(OLD, NEW, by))
    # Nor does it name a key of others: one that does not say so itself.
    for by in (OLD, EVE):
        with pytest.raises(InputError, match="did not sign that it follows"):
            KeyHandover.from_json(handover(OLD, NEW, by, "key_sig"))
    good = handover(OLD, NEW)
    other = handover(OLD, NEWER)
    wrong: list[Any] = [
        {**good, "key": other["key"]}, {**good, "coordinator": "club"}, {**good, "sig": "x"},
        {**good, "old": good["key"]}, {}, None, [], "text", {**good, "sig": other["sig"]},
    ]  # fmt: skip
    for value in wrong:
        with pytest.raises(InputError):
            KeyHandover.from_json(value)


def test_one_key_follows_one() -> None:
    keys = OrderKeys()
    for pair in ((OLD, NEW), (NEW, NEWER)):
        keys.note(KeyHandover.from_json(handover(*pair)))
    old, new, newer, eve = prints(OLD, NEW, NEWER, EVE)
    assert keys.line(newer) == [newer, new, old] and keys.newest(old) == newer
    assert keys.leads([old], newer) and keys.leads([new], newer) and not keys.leads([newer], new)
    assert not keys.leads([eve], newer) and not keys.leads([], newer)
    # Whoever stole the old key names another successor, a circle, or a key that is known: no.
    for pair in ((OLD, EVE), (NEWER, OLD), (EVE, NEW)):
        with pytest.raises(InputError):
            keys.note(KeyHandover.from_json(handover(*pair)))


def test_a_line_of_keys_has_an_end() -> None:
    """Each handover is an entry of the ledger for ever, and a coordinator makes any number."""
    keys, old = OrderKeys(), OLD
    for _ in range(MAX_HANDOVERS):
        new = FileSigner.generate()
        keys.note(KeyHandover.make("hub", old, new))
        old = new
    with pytest.raises(InputError, match="no further one"):
        keys.note(KeyHandover.make("hub", old, NEW))


# a site's ledger


def test_a_ledger_takes_no_new_run_under_a_key_that_was_replaced(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    spend(ledger, 1)

    def by(signer: FileSigner, run: str) -> Any:
        made = asked(2)
        keyid = fingerprint(signer.public)[7:]
        return replace(made, order=replace(made.order, keyid=keyid, run=run))

    ledger.reserve(by(OLD, "begun before"))
    shown = KeyHandover.from_json(handover(OLD, NEW))
    assert ledger.follow(shown) and not ledger.follow(shown)
    assert entries(ledger)[-1].kind == "order-key"
    with pytest.raises(InputError, match="follows"):
        ledger.follow(KeyHandover.from_json(handover(OLD, EVE)))
    with pytest.raises(LedgerError, match="another order key follows"):
        ledger.reserve(by(OLD, "new"))
    ledger.reserve(by(NEW, "new"))
    again = Ledger.read(tmp_path).state  # it stands in the file
    assert again.order_keys.newest(prints(OLD)[0]) == prints(NEW)[0]
    assert again.is_replaced(prints(OLD)[0], "another")
    assert not again.is_replaced(prints(OLD)[0], "begun before")


# whoever verifies it


def moved(fed: Federation, by: Key | None = None, to: str = "2", new_by: Key | None = None) -> Key:
    """North notes that another order key follows; ``by`` signs in the place of the old one."""
    old, new = fed.order_key, Key("privet.orders", HUB, 1, salt=to)
    named = {"coordinator": HUB, "old": old.vkey, "key": new.vkey}
    message = pae("application/vnd.privet.order-key+json", canonical_json(named))
    sigs = b64((by or old).sign(message)), b64((new_by or new).sign(message))
    fed.sites[NORTH].add("order-key", **named, sig=sigs[0], key_sig=sigs[1])
    return new


def verdict(folder: Path, fed: Federation) -> Verdict:
    path = write(folder / "run.bundle", fed.bundle())
    roster = write_roster(folder / "roster.json", fed.fingerprints())
    return verify(path, roster, processes=1, require_witnessed=False)


def rules(found: Verdict) -> set[str]:
    """The rules that are broken, but for the head that the kit leaves of an earlier bundle."""
    return {fault.rule for fault in found.faults if "is surplus" not in fault.message}


def charged(fed: Federation, key: Key, run: str = "run-2", number: int = 1) -> None:
    """North is charged for a run under another key, of which no journal is here."""
    plan = fed.plans[0]
    _, made = fed.order(run, NORTH, number, "train", digest(plan), digest(run.encode()))
    fed.orders.pop()
    place = fed.reserve(NORTH, made, train_event(plan), keyid=key.hex)
    fed.release(NORTH, made, place, train_event(plan))


@pytest.fixture
def fed() -> Federation:
    made = Federation(cap="60.0")
    made.run()
    return made


def test_a_charge_under_a_key_that_the_listed_one_signed_for(
    tmp_path: Path, fed: Federation
) -> None:
    before = verdict(tmp_path, fed)
    charged(fed, moved(fed))
    found = verdict(tmp_path, fed)
    assert found.ok, found.faults
    assert found.sites[0].charges == before.sites[0].charges + 1
    note = "2 entries answer another order key of this coordinator"
    assert any(note.replace("2 entries answer", "1 entry answers") in one for one in found.notes)


def test_a_run_goes_on_under_the_key_that_began_it(tmp_path: Path, fed: Federation) -> None:
    charged(fed, fed.order_key)
    moved(fed)
    charged(fed, fed.order_key, number=2)
    assert verdict(tmp_path, fed).ok
    charged(fed, fed.order_key, run="run-3")
    assert rules(verdict(tmp_path, fed)) == {"policy"}


def test_a_key_that_nobody_signed_for(tmp_path: Path, fed: Federation) -> None:
    charged(fed, Key("privet.orders", HUB, 1, salt="2"))
    assert rules(verdict(tmp_path, fed)) == {"policy"}


def test_who_has_not_the_old_key_names_no_other(tmp_path: Path, fed: Federation) -> None:
    """Not the new key's owner, and not the site, whose ledger it is."""
    for by in (Key("privet.orders", HUB, 1, salt="2"), fed.sites[NORTH].key):
        forged = Federation(cap="60.0")
        forged.run()
        charged(forged, moved(forged, by))
        assert rules(verdict(tmp_path, forged)) == {"signature", "policy"}


def test_a_key_that_did_not_say_so_follows_none(tmp_path: Path, fed: Federation) -> None:
    """A coordinator names another one's key as its own successor."""
    charged(fed, moved(fed, new_by=fed.order_key))
    assert rules(verdict(tmp_path, fed)) == {"signature", "policy"}


def test_two_keys_do_not_follow_one(tmp_path: Path, fed: Federation) -> None:
    moved(fed)
    charged(fed, moved(fed, to="3"))
    assert rules(verdict(tmp_path, fed)) == {"policy"}


@pytest.mark.parametrize("change", ["listed", "struck out"])
def test_a_policy_ends_the_line(tmp_path: Path, fed: Federation, change: str) -> None:
    """By saying that only listed keys may ask, or by listing the old one no more."""
    new = moved(fed)
    policy = fed.policy(NORTH, "60.0", "site")
    if change == "listed":
        policy["allow"]["key_rotation"] = "listed"
    else:
        policy["allow"]["coordinators"] = []
    fed.sites[NORTH].add("policy", policy=policy)
    assert verdict(tmp_path, fed).ok
    charged(fed, new)
    assert rules(verdict(tmp_path, fed)) == {"policy"}


def test_a_policy_may_list_the_newer_key_itself(tmp_path: Path, fed: Federation) -> None:
    new = moved(fed)
    policy = fed.policy(NORTH, "60.0", "site", coordinators=["sha256:" + new.hex])
    policy["allow"]["key_rotation"] = "listed"
    fed.sites[NORTH].add("policy", policy=policy)
    charged(fed, new)
    assert verdict(tmp_path, fed).ok
    policy["allow"]["key_rotation"] = "whatever"
    fed.sites[NORTH].add("policy", policy=policy)
    assert rules(verdict(tmp_path, fed)) == {"policy"}
