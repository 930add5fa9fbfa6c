"""Start a site's client: an endpoint and a dialer for each coordinator, from the site's folder."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from privet.client.data.loader import FOLDER as SNAPSHOTS
from privet.client.endpoint import SiteEndpoint
from privet.client.housekeeping import keep_house
from privet.client.link.coordinators import LINK, STATE, Membership, memberships, place_for
from privet.client.link.dial import Dialer
from privet.client.link.join import (
    Join,
    enrol,
    keep,
    request_by_file,
    require_own,
    trusted,
    was_used,
)
from privet.client.link.move import move, require_same_federation
from privet.client.link.renewal import Renewal
from privet.client.newest_head import NewestHeads
from privet.client.operator.check_record import require_checked
from privet.client.operator.decisions import OperatorDecisions, public_keys
from privet.client.training.worker.remote import RemoteTrainer
from privet.client.turns import Turns
from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.files.lock import CLIENT, alone
from privet.common.files.private_files import FILE_MODE, make_private, private_folder
from privet.common.link.identity import is_due, read_certificate
from privet.common.link.proxy import use_proxy_variables
from privet.common.link.validity import is_signed_by
from privet.common.output.process_output import in_loop
from privet.common.plan import Plan
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.witness import Witness
from privet.privacy.policy import Policy

_LOG = logging.getLogger("privet.client")
_LAST_ANSWER_INTERVAL_S = 0.05


def come_in(join: Join, folder: Path) -> None:
    """Enrol with a coordinator: the site's first, one more, or a known one again.

    A newer join file's address is used even if nobody answers at its enrolment server.

    Args:
        join: the join file.
        folder: the site's folder, with its ledger.

    Raises:
        InputError: if the site enrolled with this join file before, or the invitation is refused.
        RunError: if the coordinator cannot be reached.
    """
    ledger, witness = public_keys(folder)
    require_own(join, str(ledger))
    place = place_for(join, folder)
    if _require_new(join, place):
        move(place, join=join)
    enrol(join, place, str(ledger), str(witness))


def come_in_by_file(join: Join, folder: Path, out: Path) -> None:
    """Write the enrolment request into a file, readable by its owner only.

    Args:
        join: the join file.
        folder: the site's folder, with its ledger.
        out: the file; it must not exist.

    Raises:
        InputError: if the site enrolled with this join file before, or ``out`` exists.
    """
    ledger, witness = public_keys(folder)
    require_own(join, str(ledger))
    place = place_for(join, folder)
    _require_new(join, place)
    if out.exists():
        raise InputError(f"{out} exists; name another file")
    asked = request_by_file(join, place, str(ledger), str(witness))
    write_atomic(out, (json.dumps(asked, indent=2) + "\n").encode(), mode=FILE_MODE)


def take_certificate(join: Join, folder: Path, path: Path) -> None:
    """Store the certificate with which the coordinator answered a request by file.

    Args:
        join: the join file.
        folder: the site's folder.
        path: file of the certificate.

    Raises:
        InputError: if it cannot be read, no trusted authority signed it, or the site requested
            none.
        RunError: if it is not for this site and its key.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    place = place_for(join, folder)
    if not any(place.glob("*link.key")):
        raise InputError(f"{folder}: this site asked for no certificate; use --request first")
    if not any(is_signed_by(read_certificate(pem), one) for one in trusted(join, place)):
        raise InputError(
            f"{path}: not signed by an authority that this site trusts. Ask for another; or, if "
            "the coordinator's operator confirms by phone that the federation has a new one, move "
            f"{place / 'authority.pem'} away and run this again"
        )
    keep(join, place, pem)


def _require_new(join: Join, place: Path) -> bool:
    """Check that a join file can enrol the site; return whether the site was enrolled before.

    Any file but the last is accepted, whatever certificate is there: that one may be lost at the
    coordinator, or its key at the site. A token works once, so an old file has no effect.

    Args:
        join: the join file.
        place: folder of that coordinator's certificate.

    Raises:
        InputError: if the site enrolled with this file last, or the file is of another federation.
    """
    path = place / "link.pem"
    if not path.exists() or not (place / "join.json").exists():
        return False
    if was_used(join, place):
        if not is_due(read_certificate(path.read_bytes())):
            raise InputError(
                f"{place}: this site has its certificate already, by this join file; another one "
                "is made with `privet server enroll … --again`"
            )
        return False
    require_same_federation(join, place)
    return True


def missing_coordinators(policy_file: Path, ledger: Ledger) -> dict[str, str]:
    """Return by name the order keys that the policy does not admit, of the site's coordinators.

    Args:
        policy_file: of the site.
        ledger: its own; it holds the handovers of order keys.

    Raises:
        InputError: if the policy is wrong, or the site is not enrolled.
    """
    policy, keys = Policy.load(policy_file), ledger.state.order_keys
    found = {one.name: one.join.coordinator["orders"] for one in memberships(policy_file.parent)}
    return {name: key for name, key in found.items() if not policy.may_ask(key, keys)}


@contextmanager
def only_client(policy_file: Path) -> Iterator[None]:
    """Lock a site for this process: its folder, and its ledger, which another folder may name.

    Two clients of one ledger would close each other's reservations.

    Raises:
        InputError: if another process holds one of them.
    """
    home, ledger = policy_file.parent, Policy.load(policy_file).ledger_folder
    with ExitStack() as held:
        for folder in dict.fromkeys(one.resolve() for one in (home, ledger) if one.is_dir()):
            held.enter_context(alone(folder, CLIENT))
        yield


def make_endpoint(
    policy_file: Path, passphrase: str | None, *, unconfined: bool = False, seed: str = ""
) -> SiteEndpoint:
    """Return the endpoint of a site for its first coordinator.

    Args:
        policy_file: the site's ``site.toml``.
        passphrase: of its keys; None for keys that are not encrypted.
        unconfined: train even if the kernel cannot close the network to the trainer.
        seed: makes the noise reproducible, for tests only; "" draws it freshly.

    Raises:
        InputError, PrivateKeyError, RefusedError: as :func:`make_endpoints`.
    """
    return make_endpoints(
        policy_file, passphrase, unconfined=unconfined, seed=seed, only_first=True
    )[0]


def make_endpoints(
    policy_file: Path,
    passphrase: str | None,
    *,
    unconfined: bool = False,
    seed: str = "",
    only_first: bool = False,
    not_restored: bool = False,
) -> list[SiteEndpoint]:
    """Return the endpoints of a site, one for each coordinator.

    Args:
        policy_file: the site's ``site.toml``.
        passphrase: of its keys; None for keys that are not encrypted.
        unconfined: train even if the kernel cannot close the network to the trainer.
        seed: makes the noise reproducible, for tests only; "" draws it freshly.
        only_first: leave the other coordinators out.
        not_restored: the operator's statement that the ledger was not restored from an older copy;
            then no coordinator waits until each other one has sent the head that it saw.

    Raises:
        InputError: if the policy is wrong, or the site is not enrolled.
        PrivateKeyError: if a key cannot be opened.
        RefusedError: if the policy sets ``min_units`` and no check of the data holds.
    """
    # A client stays for days: what it computes with is loaded now, not in the middle of an order.
    import privet.common.compat.dp_accounting
    import privet.privacy.accounting.ceiling  # noqa: F401

    desk = OperatorDecisions.open(policy_file, passphrase)
    policy, ledger = desk.policy, desk.ledger
    home = policy_file.parent
    for name in (LINK, STATE, "offers", "offline", "outbox", SNAPSHOTS, "trainer"):
        with suppress(FileNotFoundError):
            make_private(home / name)
    require_checked(policy, home)
    keep_house(home, functools.partial(Policy.load, policy_file))
    every = memberships(home)
    if len(every) > 1 and only_first:
        text = "no other coordinator is asked what it saw of the ledger: it must be the newest"
        _LOG.warning(text, extra={"coordinators": ", ".join(one.name for one in every[1:])})
        every = every[:1]
    found = _with_certificate(every)
    for one in found:
        if one.join.site != policy.site:
            raise InputError(f"{policy_file}: site '{policy.site}' enrolled as '{one.join.site}'")
    signer = FileSigner.load(policy.ledger_folder / "witness.pem", passphrase)
    witness = Witness(policy.ledger_folder / "witness.json", signer, policy.site)

    def training_for(place: Path, plan: Plan, policy: Policy, data_set: str) -> RemoteTrainer:
        trainer = RemoteTrainer(
            plan, policy, data_set, place, _closed(policy, home), unconfined, seed
        )
        trainer.start()
        return trainer

    awaited = [one.name for one in found] if len(found) > 1 and not not_restored else []
    if len(found) > 1 and not_restored:
        _LOG.warning("the ledger is taken for the newest: its operator says it was not restored")
    read = functools.partial(Policy.load, policy_file)
    turns = Turns(heads=NewestHeads(awaited))
    endpoints = []
    for one in found:
        private_folder(one.state)
        training = functools.partial(training_for, one.state)
        endpoints.append(SiteEndpoint(read, ledger, witness, one, training, turns))
    return endpoints


def _with_certificate(found: list[Membership]) -> list[Membership]:
    """Return the memberships that can connect; or all if none can: they then report why."""
    able = [one for one in found if (one.link / "link.pem").exists()]
    if not able:
        return found
    for one in found:
        if one not in able:
            text = "left out: its certificate has not come yet (`privet client init --certificate`)"
            _LOG.warning(text, extra={"coordinator": one.name})
    return able


def _closed(policy: Policy, home: Path) -> tuple[Path, ...]:
    """Return the folders and files of keys and passwords."""
    sources = [data.sql for data in policy.data.values() if data.sql is not None]
    passwords = [policy.folder / one.password_file for one in sources if one.password_file]
    return policy.ledger_folder, home / LINK, home / "offline", *passwords


def dialer(endpoint: SiteEndpoint, on_state: Callable[[str], None] = lambda state: None) -> Dialer:
    """Return the dialer from an enrolled site to an endpoint's coordinator.

    Args:
        endpoint: the site's endpoint for that coordinator.
        on_state: called with ``connected`` and ``cut``.

    Raises:
        InputError: if its certificate is missing, or the proxy cannot be used.
        PrivateKeyError: if its key does not belong to its certificate.
    """
    if proxy := use_proxy_variables():
        _LOG.info("through an HTTP proxy", extra={"proxy": proxy})
    renewal = Renewal(endpoint.membership.link, endpoint.join.site)
    renewal.require_fit()
    for fault in renewal.faults():
        # No error: a clock may be set, and a certificate replaced, while the client runs.
        _LOG.error("the link cannot work now", extra={"why": fault})
    made = Dialer(
        endpoint.addresses.all, renewal.credentials, endpoint, renewal=renewal, on_state=on_state,
        on_notice=endpoint.take_notice, on_head=endpoint.take_head,
    )  # fmt: skip
    made.on_connected = endpoint.addresses.note_worked
    return made


async def run(*dialers: Dialer, turns: Turns | None = None) -> None:
    """Stay connected to the coordinators until SIGTERM or SIGINT.

    After the first signal no order begins, and an answer in progress is finished and sent before
    the link ends, if its round lasts that long. A second signal ends the link at once. If one of
    several coordinators refuses the site, the others continue.

    Args:
        dialers: one for each coordinator.
        turns: of their endpoints; None ends the link without waiting for an answer.

    Raises:
        RunError: if no coordinator knows this site, or all speak another version.
    """
    turns = turns or Turns()
    several = len(dialers) > 1
    tasks = [asyncio.create_task(_stay(one, several=several)) for one in dialers]
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(in_loop)
    # An order that waits for another coordinator's holds a thread.
    loop.set_default_executor(ThreadPoolExecutor(4 + 4 * len(dialers)))
    stop = _Stop(dialers, tasks, turns)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    if len(faults) == len(ends) and isinstance(faults[0], BaseException):
        raise faults[0]


@dataclass
class _Stop:
    """End the links of a client; called at each signal.

    Attributes:
        dialers: one for each coordinator.
        tasks: in which they run.
        turns: of their endpoints.
    """

    dialers: Sequence[Dialer]
    tasks: Sequence[asyncio.Task[None]]
    turns: Turns
    _last: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        is_second = self.turns.stopping.is_set()
        self.turns.stopping.set()
        for dialer in self.dialers:
            dialer.begin_nothing()
        if not is_second and self._waits:
            _LOG.info(
                "stopping after the answer that is being made; a second signal ends the link at "
                "once, and the answer is kept for the next start",
                extra={"at_most_s": round(self.turns.order_ends - time.monotonic())},
            )
            self._last = asyncio.create_task(self._send_last())
        else:
            self._end()

    @property
    def _waits(self) -> bool:
        in_time = time.monotonic() < self.turns.order_ends
        return in_time and any(one.owes for one in self.dialers)

    async def _send_last(self) -> None:
        while self._waits:
            await asyncio.sleep(_LAST_ANSWER_INTERVAL_S)
        await asyncio.gather(*(one.close() for one in self.dialers))
        self._end()

    def _end(self) -> None:
        for task in self.tasks:
            task.cancel()


async def _stay(dialer: Dialer, *, several: bool) -> None:
    try:
        await dialer.run()
    except Exception as error:
        if several:
            text = "this coordinator does not let the site in; the others are not concerned"
            _LOG.error(text, extra={"address": dialer.address, "why": error})
        raise
