"""The coordinators with which a site is enrolled, a folder for each.

::

    SITE/link/               certificate, key and join file of the first
    SITE/link/NAME/          the same of each further one
    SITE/coordinators/NAME/  the other state for that one: its run, its trainer

All of them share one policy, one ledger and one outbox. A site with one coordinator keeps the
layout of a site that never had another.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.client.link.addresses import Addresses
from privet.client.link.order_keys import order_keys_shown
from privet.client.link.refusals import Refusals
from privet.privacy.policy import Policy

if TYPE_CHECKING:
    from privet.client.link.join import Join
    from privet.privacy.evidence.ledger import Ledger

LINK = "link"
"""Folder of certificate, key and join file, beside the policy."""
STATE = "coordinators"
"""Folder of the state for each further coordinator, beside the policy."""
KEPT = "join.json"


@dataclass(frozen=True)
class Membership:
    """A site's place in one federation.

    Attributes:
        home: folder of the site.
        link: folder of certificate, key and join file.
        join: the join file with which the site enrolled.
    """

    home: Path
    link: Path
    join: Join

    @property
    def is_first(self) -> bool:
        """Whether this coordinator's files lie in ``link`` itself."""
        return self.link == self.home / LINK

    @property
    def name(self) -> str:
        """The coordinator's name at this site, unique among the site's coordinators."""
        if not self.is_first:
            return self.link.name
        # A newer join file may call it as the folder of another one is called.
        name = self.join.federation
        while (self.link / name / KEPT).exists():
            name += "-first"
        return name

    @property
    def state(self) -> Path:
        """Folder for the run, the refusals and the trainer of this coordinator."""
        return self.home if self.is_first else self.home / STATE / self.link.name


def memberships(home: Path) -> list[Membership]:
    """Return a site's memberships, the first coordinator's first.

    Args:
        home: folder of the site.

    Raises:
        InputError: if there is none, or a join file cannot be read.
    """
    from privet.client.link.join import (
        Join,  # it needs gRPC, which a site without a link does not have
    )

    first = home / LINK
    places = sorted(path.parent for path in first.glob(f"*/{KEPT}"))
    if (first / KEPT).exists() or not places:
        places.insert(0, first)
    return [Membership(home, place, Join.kept(place)) for place in places]


def _known(home: Path) -> list[Membership]:
    """Return a site's memberships; none if it is not enrolled."""
    return memberships(home) if is_enrolled(home) else []


def place_for(join: Join, home: Path) -> Path:
    """Return the folder for the certificate that a join file leads to.

    A coordinator is recognised by its keys, whatever its name and address.

    Args:
        join: the join file.
        home: folder of the site.

    Raises:
        InputError: if a stored join file cannot be read.
    """
    first = home / LINK
    known = _known(home)
    for one in known:
        if _is_same(one.join, join):
            return one.link
    if not (first / KEPT).exists():
        return first
    taken = {one.name for one in known}
    wanted = join.federation.replace(" ", "-")
    numbered = (f"{wanted}-{number}" for number in itertools.count(2))
    names = itertools.chain([wanted], numbered)
    # A folder where an enrolment was begun and not finished is taken again.
    return next(first / name for name in names if name not in taken and _is_free(first / name))


def is_enrolled(home: Path) -> bool:
    """Whether a site is enrolled with a coordinator, or has written a request file for one."""
    return any((home / LINK).glob(KEPT)) or any((home / LINK).glob(f"*/{KEPT}"))


def _is_free(place: Path) -> bool:
    return not place.exists() or (place.is_dir() and not (place / KEPT).exists())


def _is_same(kept: Join, join: Join) -> bool:
    """Whether two join files are of one coordinator."""
    return bool(set(kept.coordinator.values()) & set(join.coordinator.values()))


def standing(policy_file: Path, ledger: Ledger) -> dict[str, Any]:
    """Return in JSON values a site's coordinators, and its last refusals to each of them.

    Args:
        policy_file: of the site, which need not be enrolled.
        ledger: the site's own; it holds the handovers of order keys.

    Raises:
        InputError: if policy or join files cannot be read.
    """
    home, policy = policy_file.parent, Policy.load(policy_file)
    found: list[dict[str, Any]] = []
    for one in _known(home):
        addresses, key = Addresses(one.link, one.join.address).all(), one.join.coordinator["orders"]
        value: dict[str, Any] = {"coordinator": one.name, "address": addresses[0]}
        value |= {"addresses": addresses, "orders_key": key}
        value["order_keys"] = order_keys_shown(one.link, policy, ledger)
        value["may_ask"] = policy.may_ask(key, ledger.state.order_keys)
        found.append({**value, **Refusals(one.state).read()})
    kept = found or [Refusals(home).read()]
    return {
        "coordinators": found,
        "last_order": _newest(kept, "last_order"),
        "offer": _newest(kept, "offer"),
    }


def _newest(found: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Return the newest of the answers to several coordinators."""
    values = [one[key] for one in found if one[key] is not None]
    return max(values, key=lambda value: value.get("time", 0), default=None)
