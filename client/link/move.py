"""A site's coordinator is found elsewhere: by the operator's word, or by a newer join file."""

from __future__ import annotations

from pathlib import Path

from privet.client.link.addresses import Addresses
from privet.client.link.coordinators import memberships, place_for
from privet.client.link.join import Join, trusted
from privet.common.errors import InputError


def move(place: Path, *, address: str = "", join: Join | None = None) -> list[str]:
    """Dial another address from now on; return all that are tried, in their order.

    A client that runs takes it up at its next dialing.

    Args:
        place: folder of a coordinator's certificate and join file.
        address: ``host:port``.
        join: in its place, a join file of the same federation; its invitation is not used.

    Raises:
        InputError: if the site is not enrolled, the join file is of another federation, or it is
            no address.
    """
    kept = Join.kept(place)
    if join is not None:
        require_same_federation(join, place)
        address = join.address
    addresses = Addresses(place, kept.address)
    addresses.take(address)
    return addresses.all()


def place_of(home: Path, *, name: str = "", join: Join | None = None) -> Path:
    """Return the folder of the coordinator that is meant, among those that a site came in to.

    Args:
        home: the site's folder.
        name: what the coordinator is called here; may be left out where there is one.
        join: in its place, a join file of it.

    Raises:
        InputError: if the site came in to none that fits, or to several and none is named.
    """
    known = memberships(home)
    if join is not None:
        place = place_for(join, home)
        return place if any(place == one.link for one in known) else known[0].link
    fits = [one for one in known if name in ("", one.name)]
    if len(fits) != 1:
        names = ", ".join(f"'{one.name}'" for one in known)
        raise InputError(f"say which coordinator moved with --coordinator: {names}")
    return fits[0].link


def require_same_federation(join: Join, place: Path) -> None:
    """Check that a join file is of the federation whose certificate is in ``place``.

    Its authority must be one that the site trusts: a join file that somebody else made up would
    otherwise lead the site to them.

    Raises:
        InputError: if it is not.
    """
    kept = Join.kept(place)
    if join.site != kept.site:
        raise InputError(f"the join file is for site '{join.site}', and this is '{kept.site}'")
    same = join.coordinator["witness"] == kept.coordinator["witness"]
    if join.federation != kept.federation or not same:
        raise InputError(
            f"the join file is of federation '{join.federation}', and {place} is of another one, "
            f"'{kept.federation}', or of one that was made anew. To come in there, too, run "
            "`privet client init` with it"
        )
    trusted(join, place)
