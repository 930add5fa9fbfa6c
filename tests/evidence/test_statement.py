"""Leaves: DSSE envelopes around in-toto Statements, read by other people's code too."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_kit import EVENT, PATIENTS, asked, budget, close_budget, entries, opened, order, spend
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from privet.common.canonical import digest
from privet.common.errors import LedgerError
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.statement import JOURNAL, LEDGER, Entry, pae

TYPE = "application/vnd.in-toto+json"
SIGNER, OTHER = FileSigner.generate(), FileSigner.generate()


def entry(**fields: Any) -> Entry:
    predicate = {"sequence": 3, "time": "2026-11-22T03:40:07Z", "log": "privet.ledger/A/0"}
    return Entry(LEDGER, "paused", {**predicate, "by": "Ada", **fields}, "ledger", digest(b"it"))


LEAF = entry().leaf([SIGNER])


def others_key(signer: Any) -> SSlibKey:
    name = digest(signer.public).partition(":")[2]
    return SSlibKey(name, "ed25519", "ed25519", {"public": signer.public.hex()})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One of each kind that a ledger without a run can hold, and a rotation."""
    made = opened(tmp_path / "site")
    spend(made, 1)
    made.commit(made.reserve(asked(1, purpose="evaluate")), EVENT, digest(b"table"))
    made.abort(made.reserve(asked(2)), data_opened=False)
    made.refuse(order(3), "refused-budget")
    made.register("staff", budget())
    close_budget(made, "staff")
    made.pause("Ada")
    made.resume("Ada")
    made.refuse_plan(digest(b"another plan"), ["Bo"])
    made.follow(KeyHandover.make("hub", OTHER, SIGNER))
    made.rotate(SIGNER)
    made.withdraw("Ada")
    return made


def test_securesystemslib_reads_and_verifies_every_leaf(ledger: Ledger) -> None:
    keys = [others_key(key) for key in (FirstKey(ledger), SIGNER)]
    leaves = list(ledger.log.store.leaves())
    for number, leaf in enumerate(leaves):
        envelope = Envelope.from_dict(json.loads(leaf))
        assert envelope.payload_type == TYPE
        rotation = Entry.read(leaf).kind == "key-rotated"
        assert len(envelope.verify(keys, 2 if rotation else 1)) == (2 if rotation else 1)
        later = number == len(leaves) - 1
        assert set(envelope.signatures) == (
            {key.keyid for key in keys} if rotation else {keys[later].keyid}
        )
        with pytest.raises(VerificationError):
            envelope.verify([others_key(OTHER)], 1)
        envelope.payload += b" "
        with pytest.raises(VerificationError):
            envelope.verify(keys, 1)


class FirstKey:
    """The public part of the key that a ledger began with."""

    def __init__(self, ledger: Ledger) -> None:
        self.public = ledger.log.first_key.public


def test_every_leaf_is_a_statement_of_the_format(ledger: Ledger) -> None:
    kinds = []
    for number, leaf in enumerate(ledger.log.store.leaves()):
        envelope = json.loads(leaf)
        assert leaf == rfc8785.dumps(envelope)
        assert set(envelope) == {"payload", "payloadType", "signatures"}
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        assert payload == rfc8785.dumps(statement)
        assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        ((name, found),) = ((one["name"], one["digest"]) for one in statement["subject"])
        assert list(found) == ["sha256"]
        assert len(found["sha256"]) == 64
        start, _, kind = statement["predicateType"].rpartition(":")
        assert start + ":" == "urn:privet:ledger:v1:"
        predicate = statement["predicate"]
        assert (predicate["sequence"], predicate["log"]) == (number, ledger.log.origin)
        assert predicate["time"].endswith("Z")
        assert not any(isinstance(value, float) for value in numbers(statement))
        kinds.append((kind, name))
    assert {kind for kind, _ in kinds} == {
        "genesis", "population", "data-set", "policy", "plan-approved", "plan-refused", "reserved",
        "refused", "released", "metric-released", "aborted", "key-rotated", "order-key",
        "budget-closed", "paused", "resumed", "withdrawn",
    }  # fmt: skip
    assert dict(kinds)["reserved"] == dict(kinds)["refused"] == "order"
    assert dict(kinds)["released"] == dict(kinds)["metric-released"] == "release"


def numbers(value: Any) -> list[Any]:
    """All values of a JSON text that are neither lists nor objects."""
    if isinstance(value, dict):
        return [found for one in value.values() for found in numbers(one)]
    if isinstance(value, list):
        return [found for one in value for found in numbers(one)]
    return [value]


def test_the_verifiers_schema_takes_every_kind(ledger: Ledger) -> None:
    """The writer and the verifier share no code; they must agree on the fields of each kind."""
    from privet.privacy.audit.verify.formats import schema

    for found in entries_of(ledger):
        fields = schema.FIELDS["ledger"][found.kind]
        assert set(found.predicate) == set(fields), found.kind


def entries_of(ledger: Ledger) -> list[Entry]:
    return [Entry.read(leaf) for leaf in ledger.log.store.leaves()]


def test_the_digest_of_a_subject_is_of_the_thing(ledger: Ledger) -> None:
    for found in entries_of(ledger):
        value = found.predicate
        if found.subject == "ledger":
            assert found.digest == digest(ledger.log.origin.encode())
        elif found.subject == "policy":
            assert found.digest == digest(rfc8785.dumps(value["policy"]))
        elif found.subject in ("order", "plan"):
            assert found.digest == value[found.subject]
        elif found.subject == "release":
            assert found.digest == value["digest"]
        else:
            assert found.subject == "key"
    assert PATIENTS in str(entries_of(ledger)[1].predicate)


def test_an_entry_comes_back_as_it_was_written() -> None:
    assert Entry.read(LEAF) == entry()
    assert Entry.read(LEAF, [SIGNER.public]) == entry()
    two = entry().leaf([SIGNER, OTHER])
    assert Entry.read(two, [SIGNER.public, OTHER.public]) == entry()
    journal = Entry(JOURNAL, "round", entry().predicate, "model", digest(b"m"))
    assert Entry.read(journal.leaf([SIGNER])) == journal


@pytest.mark.parametrize(
    "keys",
    [
        [OTHER.public],
        [SIGNER.public, OTHER.public],
        [OTHER.public, SIGNER.public],
        [SIGNER.public, SIGNER.public],
        [bytes(32)],
    ],
)
def test_these_keys_and_no_others_signed(keys: list[bytes]) -> None:
    with pytest.raises(LedgerError, match="not signed by the key in force"):
        Entry.read(LEAF, keys)


def test_a_second_signature_is_one_too_many() -> None:
    with pytest.raises(LedgerError):
        Entry.read(entry().leaf([SIGNER, OTHER]), [SIGNER.public])


def test_a_signature_is_over_the_type_too() -> None:
    """What was signed as an order is no entry, though the same key signed the same bytes."""
    envelope = json.loads(LEAF)
    payload = base64.b64decode(envelope["payload"])
    signature = SIGNER.sign(pae("application/vnd.privet.order+json", payload))
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(LedgerError):
        Entry.read(rfc8785.dumps(envelope), [SIGNER.public])
    assert pae("a", b"bc") == b"DSSEv1 1 a 2 bc"


def rewritten(**changes: Any) -> bytes:
    """The leaf with other values in its envelope or, under ``statement``, in its statement."""
    envelope = json.loads(LEAF)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement.update(changes.pop("statement", {}))
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    envelope.update(changes)
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    "leaf",
    [
        b"", b"{}", b"[]", b"null", b"5", b'"text"', b"\xff", b"[" * 100_000, b"9" * 100_000,
        rewritten(payload=5), rewritten(payload="!"), rewritten(payload=None), LEAF[:-1],
        rewritten(payload=base64.b64encode(b"[" * 100_000).decode()),
        rewritten(signatures=None), rewritten(signatures=[5]), rewritten(signatures=[{}]),
        rewritten(signatures=[{"keyid": "0", "sig": 5}]), rewritten(signatures={"keyid": "0"}),
        rewritten(statement={"predicateType": 5}), rewritten(statement={"predicateType": "urn:x"}),
        rewritten(statement={"subject": []}), rewritten(statement={"subject": "text"}),
        rewritten(statement={"subject": [{"name": "a", "digest": "b"}]}),
        rewritten(statement={"subject": [{"name": "a", "digest": {"sha256": 5}}]}),
        rewritten(statement={"predicate": None}), rewritten(statement={"predicate": {}}),
        rewritten(statement={"predicate": {"sequence": "3"}}),
        rewritten(statement={"predicate": {"sequence": True}}),
    ],
)  # fmt: skip
def test_what_is_no_leaf(leaf: bytes) -> None:
    for keys in ([], [SIGNER.public]):
        with pytest.raises(LedgerError, match="an entry cannot be read"):
            Entry.read(leaf, keys)


def test_a_leaf_without_a_type_is_not_signed() -> None:
    envelope = json.loads(LEAF)
    del envelope["payloadType"]
    with pytest.raises(LedgerError):
        Entry.read(json.dumps(envelope).encode(), [SIGNER.public])
    envelope["payloadType"] = 5
    with pytest.raises(LedgerError):
        Entry.read(json.dumps(envelope).encode(), [SIGNER.public])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, len(LEAF) - 1), st.integers(0, 255), st.integers(0, 3))
def test_a_leaf_with_one_byte_changed_is_not_signed(place: int, byte: int, more: int) -> None:
    changed = LEAF[:place] + bytes([byte]) * more + LEAF[place + 1 :]
    try:
        found = Entry.read(changed, [SIGNER.public])
    except LedgerError:
        return
    # A byte outside what is signed (a space, the name of an unused key) changes no meaning.
    assert found == entry()


def test_entries_are_read_from_the_file_by_their_key(ledger: Ledger) -> None:
    with pytest.raises(LedgerError):
        entries(ledger)  # the key was rotated: not all are by one key
