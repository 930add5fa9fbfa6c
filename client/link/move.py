"""Point a site to another address of its coordinator, by its operator or a newer join file."""

from __future__ import annotations

from pathlib import Path

from privet.client.link.addresses import Addresses
from privet.client.link.coordinators import memberships, place_for
from privet.client.link.join import Join, trusted
from privet.common.errors import InputError


def move(place: Path, *, address: str = "", join: Join | None = None) -> list[str]:
    """Connect to another address from now on; return all addresses, in the order of trial.

    A running client uses it at its next connection.

    Args:
        place: folder of a coordinator's certificate and join file.
        address: ``host:port``; "" takes that of ``join``.
        join: instead of an address, a join file of the same federation; its invitation is not used.

    Raises:
        InputError: if the site is not enrolled, the join file is of another federation, or the
            address is malformed.
    """
    kept = Join.kept(place)
    if join is not None:
        require_same_federation(join, place)
        address = join.address
    addresses = Addresses(place, kept.address)
    addresses.take(address)
    return addresses.all()


def place_of(home: Path, *, name: str = "", join: Join | None = None) -> Path:
    """Return the link folder of one of a site's coordinators.

    Args:
        home: the site's folder.
        name: the coordinator's name at this site; "" if there is only one.
        join: instead of a name, a join file of the coordinator.

    Raises:
        InputError: if no coordinator matches, or there are several and none is named.
    """
    known = memberships(home)
    if join is not None:
        place = place_for(join, home)
        return place if place in [one.link for one in known] else known[0].link
    fits = [one for one in known if name in ("", one.name)]
    if len(fits) != 1:
        names = ", ".join(f"'{one.name}'" for one in known)
        raise InputError(f"say which coordinator moved with --coordinator: {names}")
    return fits[0].link


def require_same_federation(join: Join, place: Path) -> None:
    """Check that a join file is of the federation whose certificate is in a folder.

    Its authority must be one that the site trusts: a forged join file would otherwise lead the site
    to another coordinator.

    Args:
        join: the join file.
        place: folder of the coordinator's certificate and join file.

    Raises:
        InputError: if it is of another federation, for another site, or of an untrusted authority.
    """
    kept = Join.kept(place)
    if join.site != kept.site:
        raise InputError(f"the join file is for site '{join.site}', and this is '{kept.site}'")
    same = join.coordinator["witness"] == kept.coordinator["witness"]
    if join.federation != kept.federation or not same:
        raise InputError(
            f"the join file is of federation '{join.federation}', and {place} is of another one, "
            f"'{kept.federation}', or of one that was made again. To enrol there, too, run "
            "`privet client init` with it"
        )
    trusted(join, place)
