"""Approvals by officers' own keys: at the site's desk, and for whoever verifies its ledger."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import verify_kit
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from verify_kit import HUB, SITES, Federation, b64, digest, pae, plan_of

from privet.client.operator.approval import approval_fault, approvers
from privet.client.operator.decisions import OperatorDecisions, make_site, note_policy
from privet.common.canonical import canonical_json
from privet.common.errors import InputError, LedgerError, PolicyError, PrivateKeyError, RefusedError
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.officers import (
    AgentSigner,
    OfficerDecision,
    OfficerSignature,
    key_from_file,
    ssh_key,
    ssh_text,
)
from privet.privacy.evidence.signed_note import Signer, verifies
from privet.privacy.policy import Policy

NORTH = SITES[0]
PLAN = "sha256:" + "7" * 64
ADA, BOB, EVE = (
    FileSigner(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2, 3)
)


def text(signer: Signer) -> str:
    return ssh_text(signer.public)


# keys


def ssh_pem(passphrase: bytes | None = None) -> bytes:
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    return private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, how)


def test_a_public_key_is_read_as_ssh_keygen_writes_it(tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada@north", "-f", tmp_path / "ada"],
        check=True,
    )
    public = ssh_key((tmp_path / "ada.pub").read_text())
    signer = key_from_file(tmp_path / "ada", None)
    assert signer.public == public
    assert (tmp_path / "ada.pub").read_text().startswith(ssh_text(public))


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_key_in_a_file_opens_with_its_passphrase_alone(
    tmp_path: Path, passphrase: str | None
) -> None:
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs"
    ADA.save(ours, passphrase)
    theirs.write_bytes(ssh_pem(passphrase.encode() if passphrase else None))
    theirs.chmod(0o644)
    with pytest.raises(PrivateKeyError, match="others can read it"):
        key_from_file(theirs, passphrase)
    theirs.chmod(0o600)
    for path in (ours, theirs):
        signer = key_from_file(path, passphrase)
        assert verifies(ADA.public, signer.sign(b"x"), b"x")
        with pytest.raises(PrivateKeyError):
            key_from_file(path, "wrong horse")


@pytest.mark.parametrize(
    "given",
    ["", "ssh-ed25519", "ssh-rsa AAAAB3NzaC1yc2E=", "ssh-ed25519 AAAA", f"ecdsa {'A' * 68}"],
)
def test_what_is_no_key_is_refused_in_words(given: str) -> None:
    with pytest.raises(InputError, match="not an Ed25519 public key of OpenSSH"):
        ssh_key(given)


def test_a_file_that_holds_no_key_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("hello")
    other = generate_private_key(SECP256R1())
    (tmp_path / "ecdsa").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    for name, said in (("absent", "cannot be read"), ("none", "not a key"), ("ecdsa", "Ed25519")):
        with pytest.raises(PrivateKeyError, match=said):
            key_from_file(tmp_path / name, None)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """A real SSH agent with Ada's key."""
    address = str(tmp_path / "agent")
    running = subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.DEVNULL)
    try:
        key = tmp_path / "ada"
        key.write_bytes(ssh_pem())
        key.chmod(0o600)
        while not Path(address).exists():
            assert running.poll() is None
        subprocess.run(
            ["ssh-add", "-q", str(key)], check=True, env={**os.environ, "SSH_AUTH_SOCK": address}
        )
        yield address
    finally:
        running.kill()
        running.wait()


def test_an_agent_signs_with_a_key_that_it_has(agent: str, tmp_path: Path) -> None:
    decision = OfficerDecision("ledger", "policy", PLAN, "Ada", 3)
    signature = OfficerSignature.make(decision, AgentSigner(ADA.public, agent))
    assert signature.signs("ledger", "policy", PLAN)
    assert signature == OfficerSignature.make(decision, ADA)
    with pytest.raises(PrivateKeyError, match="does not have the officer's key"):
        AgentSigner(BOB.public, agent).sign(b"x")
    with pytest.raises(PrivateKeyError, match="does not answer"):
        AgentSigner(ADA.public, str(tmp_path / "nobody")).sign(b"x")


# at the desk


def policy_file(folder: Path, **changes: str) -> Path:
    """A site with the officers Ada and Bob, of whom two must approve."""
    make_site(folder, "North", None, coordinators=["sha256:" + "a" * 64])
    path = folder / "site.toml"
    words = f'[officers]\n"Ada L" = "{text(ADA)} ada@north"\n"Bob" = "{text(BOB)}"\n\n# The people.'
    content = path.read_text().replace("# The people.", words, 1)
    path.write_text(content.replace("approvers = 1", "approvers = 2"))
    for old, new in changes.items():
        path.write_text(path.read_text().replace(old, new))
    return path


def at(path: Path) -> OperatorDecisions:
    return OperatorDecisions.open(path, None)


def begun(folder: Path) -> OperatorDecisions:
    desk = at(policy_file(folder))
    note_policy(desk.policy, desk.ledger)
    return desk


def key(signer: Signer) -> Any:
    return lambda public: signer


def test_two_officers_approve_by_two_keys(tmp_path: Path) -> None:
    desk = begun(tmp_path / "north")
    assert approval_fault(desk.policy, desk.ledger.state, PLAN) is not None
    assert desk.approve(PLAN, "ada l", key(ADA)) == ("Ada L",)
    assert approvers(desk.policy, desk.ledger.state, PLAN) == 1
    desk.approve(PLAN, "Bob", key(BOB))
    assert approval_fault(desk.policy, desk.ledger.state, PLAN) is None
    # A new process finds the same in the file.
    again = at(tmp_path / "north" / "site.toml")
    assert approvers(again.policy, again.ledger.state, PLAN) == 2


def test_one_login_is_not_two_officers(tmp_path: Path) -> None:
    """The operator knows all names, and has one officer's key at most."""
    desk = begun(tmp_path / "north")
    for name, signer, error in (
        ("Bob", key(ADA), PrivateKeyError), ("Bob", None, PrivateKeyError), ("Mallory", key(ADA), RefusedError),
    ):  # fmt: skip
        with pytest.raises(error):
            desk.approve(PLAN, name, signer)
    assert desk.ledger.state.approvals == {}
    # Names that are typed into the ledger itself count for nothing.
    desk.ledger.approve(PLAN, ["Ada L", "Bob"], "manual")
    assert approvers(desk.policy, desk.ledger.state, PLAN) == 0
    desk.approve(PLAN, "Ada L", key(ADA))
    assert approval_fault(desk.policy, desk.ledger.state, PLAN) is not None


def test_a_signature_counts_once_and_for_its_decision(tmp_path: Path) -> None:
    desk = begun(tmp_path / "north")
    ledger = desk.ledger
    desk.approve(PLAN, "Ada L", key(ADA))
    old = ledger.log.store.leaf(len(ledger.log) - 1)
    assert b"signature" in old
    made = OfficerSignature.make(
        OfficerDecision(ledger.log.origin, "plan-approved", PLAN, "Bob", len(ledger.log)), BOB
    )
    desk.refuse(PLAN, "Bob")
    wrong = {
        "before it was refused": (PLAN, made),
        "another plan": ("sha256:" + "8" * 64, made),
        "of the future": (
            PLAN,
            OfficerSignature.make(
                OfficerDecision(ledger.log.origin, "plan-approved", PLAN, "Bob", 999), BOB
            ),
        ),
    }
    size = len(ledger.log)
    for plan, signature in wrong.values():
        with pytest.raises(LedgerError):
            ledger.approve(plan, [signature.name], "manual", signature=signature)
    assert len(ledger.log) == size and approvers(desk.policy, ledger.state, PLAN) == 0
    fresh = OfficerSignature.make(
        OfficerDecision(ledger.log.origin, "plan-approved", PLAN, "Ada L", size), ADA
    )
    ledger.approve(PLAN, ["Ada L"], "manual", signature=fresh)
    with pytest.raises(LedgerError, match="used before"):
        ledger.approve(PLAN, ["Ada L"], "manual", again=True, signature=fresh)
    assert approvers(desk.policy, ledger.state, PLAN) == 1


def test_a_changed_policy_is_signed_by_an_officer_of_the_one_in_force(tmp_path: Path) -> None:
    desk = begun(tmp_path / "north")
    path = tmp_path / "north" / "site.toml"
    path.write_text(path.read_text().replace("epsilon = 3.0", "epsilon = 3.0  ").replace(
        "max_rounds = 200", "max_rounds = 900"
    ) + '\n')  # fmt: skip
    extra = (
        '[populations.staff]\nunit = "record"\nepsilon = 1.0\ndelta = 1e-5\n'
        '[data.staff]\npopulation = "staff"\nnominal_size = 50\npath = "s.csv"\n'
        'disjoint = "No patient works here."\n'
    )
    path.write_text(path.read_text() + extra)
    changed = at(path)
    before = len(changed.ledger.log)
    with pytest.raises(RefusedError, match="0 of 2 officers of the one in force"):
        note_policy(changed.policy, changed.ledger)
    # Nothing of it is noted: not the new population either, also in memory.
    assert len(changed.ledger.log) == before and list(changed.ledger.state.populations) == [
        "patients"
    ]
    assert len(at(path).ledger.log) == before
    with pytest.raises(RefusedError):
        changed.sign_policy("Mallory", key(EVE))
    with pytest.raises(PrivateKeyError):
        changed.sign_policy("Bob", key(EVE))
    # Two approve a plan, so two sign a policy; one alone, also twice, is not enough.
    for _ in range(2):
        assert changed.sign_policy("Bob", key(BOB)) == (["Bob"], 2)
        with pytest.raises(RefusedError, match="0 of 2"):
            note_policy(changed.policy, changed.ledger)
    assert at(path).sign_policy("Ada L", key(ADA)) == (["Ada L", "Bob"], 2)
    changed.ledger.log.refresh()
    assert changed.ledger.state.policy == changed.policy.public()
    assert list(changed.ledger.state.populations) == ["patients", "staff"]
    with pytest.raises(InputError, match="already"):
        changed.sign_policy("Bob", key(BOB))
    assert desk.policy.officers == changed.policy.officers


def test_who_may_sign_cannot_be_changed_by_who_may_not(tmp_path: Path) -> None:
    """The operator adds a key of his own, or takes the officers away: neither is taken."""
    begun(tmp_path / "north")
    path = tmp_path / "north" / "site.toml"
    whole = path.read_text()
    for text_ in (whole.replace(text(BOB), text(EVE)), whole.replace("[officers]\n", "[x]\n")):
        path.write_text(
            text_.replace(f'[x]\n"Ada L" = "{text(ADA)} ada@north"\n"Bob" = "{text(BOB)}"\n', "")
        )
        changed = at(path)
        with pytest.raises(RefusedError):
            note_policy(changed.policy, changed.ledger)
        with pytest.raises((RefusedError, PrivateKeyError)):
            changed.sign_policy("Bob", key(EVE))


@pytest.mark.parametrize(
    ("officers", "said"),
    [
        ({"Ada": "ssh-rsa AAAA"}, "Ed25519 public key"),
        ({"Ada": text(ADA), "Bob": text(ADA) + " other"}, "same key"),
        ({"Ada": text(ADA), "ada": text(BOB)}, "same name"),
        ({"Ada": text(ADA), "Bob ": text(BOB)}, "write the officer's name"),
        ({"Ada": text(ADA)}, "nobody else can approve"),
    ],
)
def test_a_policy_whose_officers_cannot_be_told_apart(
    tmp_path: Path, officers: dict[str, str], said: str
) -> None:
    value = {
        "site": "North", "officers": officers, "allow": {"approvers": 2},
        "populations": {"p": {"unit": "record", "epsilon": 1.0, "delta": 1e-5}},
        "data": {"d": {"population": "p", "nominal_size": 10}},
    }  # fmt: skip
    with pytest.raises(PolicyError, match=said):
        Policy.parse(value)


def test_a_policy_without_officers_has_the_digest_that_it_had() -> None:
    value: dict[str, Any] = {
        "site": "North",
        "populations": {"p": {"unit": "record", "epsilon": 1.0, "delta": 1e-5}},
        "data": {"d": {"population": "p", "nominal_size": 10}},
    }
    assert "officers" not in Policy.parse(value).public()
    public = Policy.parse({**value, "officers": {"Ada": text(ADA) + " ada@north"}}).public()
    assert public["officers"] == {"Ada": text(ADA)}


# for whoever verifies


def signature(
    fed: Federation, kind: str, subject: str, name: str, signer: Signer,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """An officer's signature, written from the format page alone."""
    log = fed.sites[NORTH]
    decision = {
        "ledger": log.origin, "kind": kind, "subject": subject, "name": name,
        "size": len(log.leaves), **(changes or {}),
    }  # fmt: skip
    signed = pae("application/vnd.privet.decision+json", canonical_json(decision))
    return {
        "name": name, "key": text(signer), "size": decision["size"],
        "sig": b64(signer.sign(signed)),
    }  # fmt: skip


def verdict(folder: Path, fed: Federation) -> Verdict:
    pinned = verify_kit.write_roster(folder / "roster.json", fed.fingerprints())
    return verify(verify_kit.write(folder / "bundle", fed.bundle()), pinned, processes=1)


def with_officers(fed: Federation, approvers_: int = 2, **changes: Any) -> dict[str, Any]:
    policy = fed.policy(NORTH, "8.0", "site", approvers=approvers_)
    return {**policy, "officers": {"Ada": text(ADA), "Bob": text(BOB)}, **changes}


def faults(answer: Verdict) -> set[tuple[str, str]]:
    return {(fault.rule, fault.message) for fault in answer.faults if fault.site == NORTH}


def approved(fed: Federation, *signers: tuple[str, Signer, dict[str, Any]]) -> None:
    """Run a plan that these approved at North, each in an entry of her own."""
    plan = plan_of()
    name = digest(plan)
    fed.sites[NORTH].add("policy", policy=with_officers(fed))
    fed.approve(plan)  # by a name that was typed: at the others it counts
    by: list[str] = []
    for who, signer, changes in signers:
        by = sorted({*by, who})
        made = signature(fed, "plan-approved", name, who, signer, changes)
        fed.sites[NORTH].add("plan-approved", plan=name, by=by, how="manual", signature=made)
    fed.run(plan=plan)


def test_what_two_officers_signed_is_approved(tmp_path: Path) -> None:
    fed = Federation()
    approved(fed, ("Ada", ADA, {}), ("Bob", BOB, {}))
    assert verdict(tmp_path, fed).faults == []


LIES: dict[str, list[tuple[str, Signer, dict[str, Any]]]] = {
    "nobody signed": [],
    "one signed": [("Ada", ADA, {})],
    "one signed twice": [("Ada", ADA, {}), ("Ada", ADA, {})],
    "one signed for two": [("Ada", ADA, {}), ("Bob", ADA, {})],
    "somebody else signed": [("Ada", ADA, {}), ("Bob", EVE, {})],
    "another plan was signed": [("Ada", ADA, {}), ("Bob", BOB, {"subject": PLAN})],
    "another ledger was signed": [("Ada", ADA, {}), ("Bob", BOB, {"ledger": "privet.ledger/x"})],
    "another kind was signed": [("Ada", ADA, {}), ("Bob", BOB, {"kind": "policy"})],
    "signed before it was there": [("Ada", ADA, {}), ("Bob", BOB, {"size": 10**6})],
}


@pytest.mark.parametrize("lie", LIES)
def test_an_approval_that_officers_did_not_sign(tmp_path: Path, lie: str) -> None:
    fed = Federation()
    approved(fed, *LIES[lie])
    found = faults(verdict(tmp_path, fed))
    assert any("asks for 2 approvers" in message for _, message in found), found


def test_a_signature_from_before_a_refusal_or_used_twice(tmp_path: Path) -> None:
    for again in (True, False):
        fed = Federation()
        plan = plan_of()
        name = digest(plan)
        log = fed.sites[NORTH]
        log.add("policy", policy=with_officers(fed, 1))
        fed.approve(plan)
        old = signature(fed, "plan-approved", name, "Ada", ADA)
        log.add("plan-approved", plan=name, by=["Ada"], how="manual", signature=old)
        log.add("plan-refused", plan=name, by=["Ada"], how="manual")
        made = old if again else signature(fed, "plan-approved", name, "Ada", ADA)
        log.add("plan-approved", plan=name, by=["Ada"], how="manual", signature=made)
        fed.run(plan=plan)
        answer = verdict(tmp_path, fed)
        assert answer.ok is not again
        assert any("asks for 1 approvers" in text_ for _, text_ in faults(answer)) is again


@pytest.mark.parametrize("who", ["Ada", "Eve", "nobody", "a listed name"])
def test_a_policy_that_no_officer_signed(tmp_path: Path, who: str) -> None:
    fed = Federation()
    log = fed.sites[NORTH]
    log.add("policy", policy=with_officers(fed, 1))
    changed = with_officers(fed, 1, officers={"Eve": text(EVE)})
    signers = {"Ada": ("Ada", ADA), "Eve": ("Eve", EVE), "a listed name": ("Ada", EVE)}
    more = {}
    if who in signers:
        more["signatures"] = [signature(fed, "policy", digest(changed), *signers[who])]
    log.add("policy", policy=changed, **more)
    plan = plan_of()
    fed.approve(plan)
    made = signature(fed, "plan-approved", digest(plan), "Eve", EVE)
    log.add("plan-approved", plan=digest(plan), by=["Eve"], how="manual", signature=made)
    fed.run(plan=plan)
    found = {message for rule, message in faults(verdict(tmp_path, fed)) if rule == "policy"}
    said = {"the policy was changed, and 0 of 1 officers of the one before signed"}
    assert found == (set() if who == "Ada" else said)


@pytest.mark.parametrize(
    "broken",
    [
        {"sig": b64(b"short")}, {"key": "ssh-ed25519 AAAA"}, {"size": -1}, {"name": ""},
        {"more": 1}, {"size": True},
    ],
)  # fmt: skip
def test_a_malformed_signature_is_a_fault(tmp_path: Path, broken: dict[str, Any]) -> None:
    fed = Federation()
    plan = plan_of()
    name = fed.approve(plan)
    made = {**signature(fed, "plan-approved", name, "Ada", ADA), **broken}
    fed.sites[NORTH].add("plan-approved", plan=name, by=["Ada"], how="manual", signature=made)
    fed.run(plan=plan)
    assert any(rule == "entry" for rule, _ in faults(verdict(tmp_path, fed)))


def test_what_was_allowed_once_is_not_allowed_for_another_key(tmp_path: Path) -> None:
    """The operator approves a refused plan in an officer's name, by a key of his own."""
    for signer in (EVE, ADA):
        fed = Federation()
        plan = plan_of()
        name = digest(plan)
        log = fed.sites[NORTH]
        log.add("policy", policy=with_officers(fed, 1))
        fed.approve(plan)
        made = signature(fed, "plan-approved", name, "Ada", ADA)
        log.add("plan-approved", plan=name, by=["Ada"], how="manual", signature=made)
        fed.run(plan=plan)
        log.add("plan-refused", plan=name, by=["Ada"], how="manual")
        made = signature(fed, "plan-approved", name, "Ada", signer)
        log.add("plan-approved", plan=name, by=["Ada"], how="manual", signature=made)
        fed.run("run-2", plan=plan)
        answer = verdict(tmp_path, fed)
        assert any("asks for 1 approvers" in told for _, told in faults(answer)) is (signer is EVE)
        assert answer.ok is (signer is ADA)


def test_another_key_takes_no_officers_vote_away(tmp_path: Path) -> None:
    fed = Federation()
    approved(fed, ("Ada", ADA, {}), ("Bob", BOB, {}), ("Ada", EVE, {}))
    assert verdict(tmp_path, fed).faults == []


def test_a_policy_signature_that_was_withheld(tmp_path: Path) -> None:
    """Signed before the policy in force was noted, it does not bring an older one back."""
    for late in (True, False):
        fed = Federation()
        log = fed.sites[NORTH]
        log.add("policy", policy=with_officers(fed, 1))
        loose, strict = with_officers(fed, 1, note="loose"), with_officers(fed, 1, note="strict")
        kept = signature(fed, "policy", digest(loose), "Ada", ADA)
        made = signature(fed, "policy", digest(strict), "Bob", BOB)
        log.add("policy", policy=strict, signatures=[made])
        if not late:
            kept = signature(fed, "policy", digest(loose), "Ada", ADA)
        log.add("policy", policy=loose, signatures=[kept])
        assert verdict(tmp_path, fed).ok is not late


@pytest.mark.parametrize("signed", [1, 2])
def test_as_many_sign_a_policy_as_approve_a_plan(tmp_path: Path, signed: int) -> None:
    fed = Federation()
    log = fed.sites[NORTH]
    log.add("policy", policy=with_officers(fed, 2))
    alone = with_officers(fed, 1, officers={"Ada": text(ADA)})
    made = [
        signature(fed, "policy", digest(alone), *who) for who in (("Ada", ADA), ("Bob", BOB))
    ][:signed]  # fmt: skip
    log.add("policy", policy=alone, signatures=made)
    assert verdict(tmp_path, fed).ok is (signed == 2)


@pytest.mark.parametrize("how", ["listed", "manual"])
def test_the_ledgers_key_takes_no_refusal_back(tmp_path: Path, how: str) -> None:
    for renewed in (False, True):
        fed = Federation()
        plan = plan_of()
        name = digest(plan)
        log = fed.sites[NORTH]
        policy = with_officers(fed, 1)
        policy["allow"]["plans"] = [name]
        log.add("policy", policy=policy)
        fed.approve(plan)
        log.add("plan-refused", plan=name, by=["Ada"], how="manual")
        if renewed:  # by a policy that an officer signed since
            policy = {**policy, "note": "again"}
            made = signature(fed, "policy", digest(policy), "Ada", ADA)
            log.add("policy", policy=policy, signatures=[made])
        log.add("plan-approved", plan=name, by=["x"], how=how)
        fed.run(plan=plan)
        assert verdict(tmp_path, fed).ok is renewed


def test_a_second_refusal_counts(tmp_path: Path) -> None:
    """What was signed between two refusals does not count."""
    desk = begun(tmp_path / "north")
    desk.refuse(PLAN, "Ada L")
    origin, size = desk.ledger.log.origin, len(desk.ledger.log)
    made = OfficerSignature.make(OfficerDecision(origin, "plan-approved", PLAN, "Bob", size), BOB)
    desk.refuse(PLAN, "Ada L")
    assert len(desk.ledger.log) == size + 1
    with pytest.raises(LedgerError, match="before the plan was refused"):
        desk.ledger.approve(PLAN, ["Bob"], "manual", signature=made)
    with pytest.raises(LedgerError, match="an officer must sign"):
        desk.ledger.approve(PLAN, ["Bob"], "listed")


def test_a_name_that_was_typed_is_the_officers(tmp_path: Path) -> None:
    desk = begun(tmp_path / "north")
    desk.ledger.approve(PLAN, ["ada l"], "manual")
    assert desk.approve(PLAN, "Ada L", key(ADA)) == ("Ada L",)
    desk.approve(PLAN, "Bob", key(BOB))
    assert approvers(desk.policy, desk.ledger.state, PLAN) == 2


def test_a_weak_key_or_signature_is_refused_at_the_site_too() -> None:
    identity = (1).to_bytes(32, "little")
    decision = OfficerDecision("ledger", "policy", PLAN, "Ada", 3)
    for public, signed in ((identity, identity + bytes(32)), (ADA.public, identity + bytes(32))):
        weak = OfficerSignature("Ada", public, 3, signed)
        assert not weak.signs("ledger", "policy", PLAN)
    good = OfficerSignature.make(decision, ADA).to_json()
    assert OfficerSignature.from_json(good).signs("ledger", "policy", PLAN)
    for changed in ({"size": "3"}, {"key": good["key"] + " x"}, {"more": 1}, {"name": ""}):
        with pytest.raises(InputError):
            OfficerSignature.from_json({**good, **changed})


def test_other_kinds_have_no_signature(tmp_path: Path) -> None:
    fed = Federation()
    made = signature(fed, "paused", PLAN, "Ada", ADA)
    fed.sites[NORTH].add("paused", by=["Ada"], signature=made)
    fed.sites[NORTH].add("resumed", by=["Ada"])
    fed.run()
    assert {fault.rule for fault in verdict(tmp_path, fed).faults if fault.site == NORTH} >= {
        "entry"
    }
    assert HUB not in {fault.site for fault in verdict(tmp_path, fed).faults}
