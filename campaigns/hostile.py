"""Attack a coordinator and a site with what is malformed or not allowed; they must go on.

    python campaigns/hostile.py --json      110,000 requests to a coordinator, 20,000 to a site
    python campaigns/hostile.py --quick     1,500 and 400

A coordinator, as `privet server start` starts it, serves two honest sites that are asked and
answer all the time, while strangers without a certificate, outsiders with one that is no
member's, a hostile member, and guests at the enrolment port do what hostile_attacks.py lists.
Then a site's client is at the mercy of a hostile coordinator (hostile_coordinator.py). Both are
watched from outside: process, memory, descriptors, threads, log, spool; a site's ledger too.

A stranger may see the handshake, and no byte of application data. An outsider may see
UNAUTHENTICATED. A newcomer at the enrolment port sees PERMISSION_DENIED. A member sees a status, or
what it is entitled to. Whatever else is seen is a wrong answer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import hostile_attacks
from harness import Row, finish, parser, row, tell
from hostile_attacks import KINDS, AttackContext, AttackSession, Kind
from hostile_monitor import ProcessMonitor, Verdict, verdict
from hostile_victims import HONEST, HOSTILE, IDLER, STATUS
from raw_http2 import Closed, Connection

WORKERS = 3
SITE_GROWTH = 64.0
"""MB by which a site may grow: it reads ahead up to 16 parcels, of up to 8 MB each."""
HERE = Path(__file__).resolve().parent


@dataclass
class Tally:
    """What came of the requests."""

    words: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    total: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: Kind, said: str) -> None:
        """Note what came of one request."""
        with self._lock:
            self.total += 1
            self.words.setdefault(f"{kind.who}: {kind.name}", Counter())[said] += 1
            if said not in kind.right:
                self.wrong[kind.who] += 1
                if len(self.examples) < 20:
                    self.examples.append(f"{kind.who}: {kind.name} got '{said}'")


class TargetFederation:
    """A federation in a folder, its coordinator and honest sites as processes, and intruders."""

    def __init__(self, folder: Path, fault: str = "", patience: float = 60.0) -> None:
        from privet.server.membership.registry import MemberRegistry

        self.folder, self.patience = folder, patience
        self.link, self.enrolment = _free_port(), _free_port()
        address, enrolment = f"127.0.0.1:{self.link}", f"127.0.0.1:{self.enrolment}"
        self.federation = MemberRegistry.found(folder / "hub", "hub", address, enrolment)
        self.tokens: dict[str, str] = {}
        pairs = {name: self._admit(name) for name in (*HONEST, HOSTILE, IDLER, "Eve")}
        for name in HONEST:
            self._write(name, *pairs[name])
        self.newcomer = self.federation.invite("Newcomer")
        self.tokens["open"] = self.newcomer["token"]
        self.contexts = self._contexts(pairs)
        log = folder / "hub.log"
        self.hub = _start(
            log, "coordinator", str(folder / "hub"), address, enrolment, str(patience), fault
        )
        self.honest = _start(folder / "honest.log", "honest", str(folder), address)
        self.log = log

    def _admit(self, name: str) -> tuple[bytes, bytes]:
        """Enrol a member; return its certificate and key."""
        from privet.common.link.identity import request

        invitation = self.federation.invite(name)
        asked, key = request(name)
        self.tokens["used"] = invitation["token"]
        pem = self.federation.enrol(name, invitation["token"], asked, *_vkeys(name))
        return pem, key

    def _write(self, name: str, pem: bytes, key: bytes) -> None:
        home = self.folder / name
        home.mkdir()
        (home / "link.pem").write_bytes(pem)
        (home / "link.key").touch(mode=0o600)
        (home / "link.key").write_bytes(key)
        (home / "authority.pem").write_bytes(
            (self.federation.folder / "authority.pem").read_bytes()
        )

    def _contexts(self, pairs: dict[str, tuple[bytes, bytes]]) -> dict[str, ssl.SSLContext]:
        """Return who may pose as what, in TLS."""
        from privet.common.link.identity import request
        from privet.server.membership.certificates import Authority

        ours, other = self.federation.authorities.load(), Authority.found("hub")
        asked, key = request("Honest 1")
        hub = self.federation.folder
        found = {
            "member": pairs[HOSTILE], "idler": pairs[IDLER], "revoked": pairs["Eve"],
            "tls 1.2": pairs[HOSTILE], "nobody": None,
            "re-issued": (ours.admit(asked, "Honest 1"), key),
            "never enrolled": (ours.admit(asked, "Nobody"), key),
            "other authority": (other.admit(asked, "Honest 1"), key),
            "self-signed": _leaf(None, "Honest 1"), "no name": _leaf(ours, ""),
            "expired": _leaf(ours, HOSTILE, begin=-20, end=-10),
            "not yet": _leaf(ours, HOSTILE, begin=10, end=20),
            "server": ((hub / "server.pem").read_bytes(), (hub / "server.key").read_bytes()),
        }  # fmt: skip
        contexts = {}
        for name, pair in found.items():
            context = ssl.create_default_context(cafile=str(hub / "authority.pem"))
            context.set_alpn_protocols(["h2"])
            if pair is not None:
                file = self.folder / "pair.pem"
                file.write_bytes(pair[1] + pair[0])
                context.load_cert_chain(file)
            contexts[name] = context
        contexts["tls 1.2"].maximum_version = ssl.TLSVersion.TLSv1_2
        return contexts

    def attack_context(self) -> AttackContext:
        """Wait for the coordinator, and return what the attackers know."""
        from privet.common.link.identity import request

        traffic = self.federation.folder / STATUS
        _until(lambda: _read(traffic).get("answered", 0) > 10, 60, self.log)
        _until(lambda: _listens(self.enrolment), 30, self.log)
        session = self._session()
        self.federation.revoke("Eve")
        asked, _ = request("Newcomer")
        requests = {"right": asked, **_bad_requests(asked)}
        return AttackContext(
            self.link, self.enrolment, traffic, self.contexts, session, requests, self.tokens,
            _vkeys("Newcomer"),
        )  # fmt: skip

    def _session(self) -> ssl.SSLSession | None:
        """Attend as a member that is revoked afterwards, and keep its TLS session."""
        call = Connection(self.link, self.contexts["revoked"])
        stream = call.open(hostile_attacks.LINK + "Attend")
        call.put(stream, hostile_attacks.HELLO)
        assert call.wait(stream, data=True).data, "a member is not welcomed"
        session = call.tls.session
        call.close()
        return session

    def newcomer_enrols(self) -> bool:
        """Come in by the honest way, once the enrolment port was under attack."""
        from privet.client.link.join import Join, enrol

        path = self.folder / "join.json"
        path.write_text(json.dumps(self.newcomer))
        try:
            enrol(Join.load(path), self.folder / "newcomer", *_vkeys("Newcomer"))
        except Exception as error:
            tell(f"an honest site could not enrol: {error}")
            return False
        return True

    def close(self) -> None:
        """End the processes."""
        for process in (self.honest, self.hub):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def attack_coordinator(
    requests: int, folder: Path, *, fault: str = "", patience: float = 60.0, seed: int = 0
) -> tuple[Verdict, Tally]:
    """Attack a coordinator; return the verdict, and what came of each kind of attack."""
    tally = Tally()
    target = TargetFederation(folder, fault, patience)
    try:
        context = target.attack_context()
        monitor = ProcessMonitor(target.hub.pid, target.log)
        before = monitor.sample()
        assert before is not None, "the coordinator is gone before it begins"
        first = max(len(KINDS) * 4, requests // 4)
        _attack(context, first, tally, monitor, seed)
        warm = _settle(context, monitor, before.files) or before
        tell(f"warm after {tally.total:,} requests: {warm.memory:.0f} MB")
        _attack(context, requests - tally.total, tally, monitor, seed + 1)
        held = _let_go(context, patience)
        came_in = not monitor.died and target.newcomer_enrols()
        _settle(context, monitor, before.files)
        monitor.stop()
        ended = not _goes_on(context.traffic)
        traffic = _read(context.traffic)
        left = _left(target.federation.folder / "spool")
        found = verdict(
            monitor, before, warm,
            {who: tally.wrong[who] for who in ("stranger", "outsider", "member", "newcomer")},
            left, traffic,
        )  # fmt: skip
        _tell_traceback(target.log)
        found.rows.append(("calls held open and not ended", held, "calls", 0))
        found.rows.append(("honest sites that could not enrol", float(not came_in), "sites", 0))
        found.rows.append(("honest service at an end", float(ended), "services", 0))
        return found, tally
    finally:
        target.close()


def attack_site(
    messages: int, folder: Path, *, fault: str = "", large: int = 10_000, seed: int = 0
) -> tuple[Verdict, Counter[str]]:
    """Put a site at the mercy of a hostile coordinator; return the verdict, and what it did."""
    from hostile_coordinator import Coordinator, TargetSite

    folder.mkdir()
    target = TargetSite(folder)
    one = Coordinator(target, seed, large)
    target.settle(one.port)
    log = folder / "site.log"
    process = _start(log, "site", str(target.policy), fault)
    try:
        _until(lambda: one.traffic["answered"] >= 1, 90, log)
        assert one.offered == "present", f"the site is not ready: {one.offered}"
        monitor = ProcessMonitor(process.pid, log)
        before = monitor.sample()
        assert before is not None, "the site is gone before it begins"
        offered = target.entries()
        _hurt(one, max(100, messages // 4), monitor)
        warm = _rest(one, monitor) or before
        tell(f"the site is warm after {one.said:,} messages: {warm.memory:.0f} MB")
        _hurt(one, messages, monitor)
        _rest(one, monitor)
        monitor.stop()
        added = target.entries() - offered
        found = verdict(
            monitor, warm, warm, {}, 0, dict(one.traffic),
            unhandled=_UNHANDLED, max_growth=SITE_GROWTH,
        )  # fmt: skip
        kept = len(list((target.home / "offers").glob("*")))
        others = sum(count for kind, count in added.items() if kind != "refused")
        found.rows.append(("ledger entries but refusals", others, "entries", 0))
        found.rows.append(("offers kept", kept, "files", 65))
        if not monitor.died and found.failed:
            tell(f"ledger: {dict(added)}")
        return found, one.words
    finally:
        one.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_UNHANDLED = ("never retrieved", "a request was not answered\nTraceback", "cygrpc\nTraceback")
"""What a site's log must not have. Its operator is shown where a message could not be read."""


def _hurt(one: Any, messages: int, monitor: ProcessMonitor) -> None:
    one.goal = messages
    told = time.monotonic()
    while one.said < messages and not monitor.died:
        time.sleep(0.2)
        monitor.requests = one.said
        if time.monotonic() - told > 20:
            told = time.monotonic()
            tell(f"{one.said:,} of {messages:,} messages; {monitor.samples[-1:]}")


def _rest(one: Any, monitor: ProcessMonitor) -> Any:
    """Ask honestly until three questions were answered; return a look at the site."""
    one.goal, answered = 0, one.traffic["answered"]
    until = time.monotonic() + 60
    while one.traffic["answered"] < answered + 3 and time.monotonic() < until and not monitor.died:
        time.sleep(0.2)
    monitor.tidy()
    return monitor.sample()


def _attack(
    context: AttackContext, requests: int, tally: Tally, monitor: ProcessMonitor, seed: int
) -> None:
    """Make so many requests, each kind at least once."""
    end, begun = tally.total + requests, tally.total
    order = list(KINDS)
    random.Random(seed).shuffle(order)
    lock = threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        session = AttackSession(context, chance)
        while tally.total < end and not monitor.died:
            with lock:
                one = order.pop() if order else None
            one = one or chance.choices(KINDS, [k.weight for k in KINDS])[0]
            try:
                for said in one.attack(session):
                    tally.note(one, said)
                    monitor.requests = tally.total
            except Closed as how:
                tally.note(one, str(how))
                session.drop()
            except OSError:
                tally.note(one, "closed")
                session.drop()
        session.drop()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    told = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if time.monotonic() - told > 20:
            told = time.monotonic()
            last = monitor.samples[-1] if monitor.samples else None
            tell(f"{tally.total - begun:,} of {requests:,}; {last}; wrong: {dict(tally.wrong)}")


def _settle(context: AttackContext, monitor: ProcessMonitor, files: int) -> Any:
    """Let go of everything, wait until the process has done so too; return a look at it."""
    while context.held:
        context.held.pop().close()
    monitor.calm(30, files + 2)
    monitor.tidy()
    return monitor.sample()


def _let_go(context: AttackContext, patience: float) -> int:
    """Hold calls open that do not go on; return how many are not ended in time."""
    while context.held:
        context.held.pop().close()
    calls: list[tuple[Connection, int]] = []
    body = hostile_attacks.message(b"x" * 2000, length=1 << 20)
    for method in ("Download", "Upload", "Status", "Attend"):
        with suppress(Closed, OSError):
            call = Connection(context.link, context.contexts["idler"])
            calls += [(call, stream := call.open(hostile_attacks.LINK + method))]
            call.put(stream, body[:1000])
    ended = 0
    until = time.monotonic() + patience + 20
    for call, stream in calls:
        try:
            ended += call.wait(stream, max(0.1, until - time.monotonic())).ended
        except Closed:
            ended += 1
        call.close()
    return 4 - ended


def _tell_traceback(log: Path) -> None:
    text = log.read_text(errors="replace")
    if (at := text.find("Traceback")) >= 0:
        tell(text[max(0, at - 300) : at + 2500])


def _goes_on(traffic: Path) -> bool:
    """Whether honest messages are still answered, now that the attack is over."""
    answered, end = _read(traffic).get("answered", 0), time.monotonic() + 15
    while time.monotonic() < end:
        if _read(traffic).get("answered", 0) > answered + 2:
            return True
        time.sleep(0.2)
    return False


def _left(spool: Path) -> int:
    """Return how many files stay in the spool when the parcels that were open are withdrawn."""
    begun = set(spool.glob("*"))
    end = time.monotonic() + 10
    while begun and time.monotonic() < end:
        time.sleep(0.2)
        begun &= set(spool.glob("*"))
    return len(begun)


def _start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, str(HERE / "hostile_victims.py"), *arguments],
            stdout=stream, stderr=stream, env=environment,
        )  # fmt: skip


def _until(check: Any, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise SystemExit(f"it did not begin in time\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _vkeys(site: str) -> tuple[str, str]:
    from privet.privacy.evidence.keys import FileSigner
    from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name

    found = []
    for name, type_ in (("ledger", SIGN), ("witness", COSIGN)):
        public = FileSigner.generate().public
        found.append(str(Key(key_name(name, site, public), public, type_)))
    return found[0], found[1]


def _leaf(authority: Any, site: str, begin: int = -1, end: int = 1) -> tuple[bytes, bytes]:
    """Return a certificate, valid between two days from now, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from privet.common.link.identity import common_name, private_pem, site_uri

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = common_name(site or "nobody")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begin))
        .not_valid_after(now + timedelta(days=end))
    )
    if site:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(site_uri(site))])
        builder = builder.add_extension(names, critical=False)
    found = builder.sign(authority._key if authority else key, hashes.SHA256())
    return found.public_bytes(serialization.Encoding.PEM), private_pem(key)


def _bad_requests(right: bytes) -> dict[str, bytes]:
    """Return certificate requests that must not be granted."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    from privet.common.link.identity import common_name

    keys: dict[str, Any] = {
        "rsa": rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "ed448": ed448.Ed448PrivateKey.generate(), "p-384": ec.generate_private_key(ec.SECP384R1()),
        "k1": ec.generate_private_key(ec.SECP256K1()),
    }  # fmt: skip
    made = {}
    for name, key in keys.items():
        builder = x509.CertificateSigningRequestBuilder().subject_name(common_name("Newcomer"))
        hashed = None if name.startswith("ed") else hashes.SHA256()
        made[name] = builder.sign(key, hashed).public_bytes(serialization.Encoding.PEM)
    lines = right.splitlines()
    turned = bytearray(right)
    turned[len(turned) // 2] ^= 1
    return {
        **made, "cut": right[:200], "turned": bytes(turned), "empty": b"",
        "rubbish": b"\0" * 60_000,
        "certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "many": b"\n".join(lines[:-2] + lines[:1]) * 30, "key": b"-----BEGIN PRIVATE KEY-----",
    }  # fmt: skip


def main() -> None:
    """Run the campaign."""
    options = parser(__doc__)
    options.add_argument("--requests", type=int, help="to the coordinator")
    options.add_argument("--messages", type=int, help="to the site")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    quick = arguments.quick
    requests = arguments.requests or (1_500 if quick else 110_000)
    started = time.monotonic()
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        found, tally = attack_coordinator(
            requests, Path(name) / "a", patience=2.0 if quick else 60.0, seed=arguments.seed
        )
        rows += _rows("coordinator", found)
        failed += [f"coordinator: {what}" for what in found.failed]
        for kind, words in sorted(tally.words.items()):
            rows.append(row(kind, sum(words.values()), "requests", None, None, came=dict(words)))
        for example in tally.examples:
            tell(example)
        messages = arguments.messages or (400 if quick else 20_000)
        found, did = attack_site(
            messages, Path(name) / "b", large=60 if quick else 10_000, seed=arguments.seed
        )
        rows += _rows("site", found)
        failed += [f"site: {what}" for what in found.failed]
        for kind, count in sorted(did.items()):
            rows.append(row(f"coordinator: {kind}", count, "streams", None, None))
    rows.append(row("time", round(time.monotonic() - started, 1), "s", None, None))
    finish(rows, arguments.json, _line)
    if failed:
        tell("missed: " + "; ".join(failed))
        sys.exit(1)


def _rows(who: str, found: Verdict) -> list[Row]:
    return [
        row(f"{who}: {name}", value, unit, None if goal is None else "goal", goal)
        for name, value, unit, goal in found.rows
    ]


def _line(one: Row) -> str:
    goal = f" (goal {one['peer_value']:g})" if one["peer"] else ""
    came = "  " + ", ".join(f"{k}: {v}" for k, v in one["came"].items()) if "came" in one else ""
    return f"{one['name']:60.60} {one['value']:>9g} {one['unit']}{goal}{came}"


if __name__ == "__main__":
    main()
