"""What runs at a site under stock Flower, in place of Flower's own ``flwr-clientapp``.

::

    SuperNode ── SuperExec ── flwr-clientapp      the one of `privet client launcher`
                                 │ message; the bundle is dropped unread
                                 daemon           the site's endpoint, installed at the site

Which site it is says the SuperNode's own ``--node-config``, which no coordinator can change. Errors
are reported to the operator, on standard error; the coordinator gets a status, and no text.

Flower's program is used as it is, but for four of its functions, which fetch, unpack and load the
bundle (:mod:`privet.common.compat.flower_clientapp`). The versions for which this was read and
tested are named, and no other is run.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.common.compat.flower_clientapp import QUIET, run_installed
from privet.common.errors import InputError, PrivetError
from privet.common.output.logs import Level, Style, set_up
from privet.common.output.process_output import protect_process

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from privet.common.flat import Arrays

_LOG = logging.getLogger("privet.stock")

Answer = Callable[["Message", "Context"], "Message"]
Ask = Callable[[Path, str, bytes, "Arrays"], "tuple[bytes, Arrays]"]
"""Has a message answered: the policy, its kind, its content taken apart."""


def main() -> None:
    """Answer one message; the arguments are those that Flower's SuperExec gives."""
    os.environ.update(QUIET)
    set_up(Style.TEXT, Level.INFO, texts=False)
    logging.getLogger().setLevel(logging.INFO)  # what Flower says of its own work
    protect_process()
    try:
        run_installed(answer)
    except PrivetError as error:
        sys.exit(f"privet: {error}")


def answer(message: Message, context: Context) -> Message:
    """Answer a message by the site that the SuperNode's own configuration names.

    Nothing is raised: Flower would send the text of an error to the coordinator.
    """
    from flwr.app import Message as Reply

    from privet.common.flower.wire import encode_reply
    from privet.common.order import Status

    try:
        return reply_of(message, policy_of(context.node_config), _ask)
    except PrivetError as error:
        _LOG.error("a message could not be answered", extra={"why": error})
    except Exception:
        _LOG.exception("a message could not be answered")
    return Reply(encode_reply("", Status.FAILED), reply_to=message)


def policy_of(node_config: Any) -> Path:
    """Return the policy that ``--node-config 'policy="/…/site.toml"'`` names.

    Raises:
        InputError: if it names none, or not by an absolute path of a file that is there.
    """
    how = "start the SuperNode with --node-config 'policy=\"/absolute/path/of/site.toml\"'"
    named = node_config.get("policy", "")
    if not isinstance(named, str) or not named:
        raise InputError(f"the SuperNode names no policy: {how}")
    path = Path(named)
    if not path.is_absolute():
        raise InputError(f"the SuperNode's policy '{named}' is a relative path: {how}")
    if not path.is_file():
        raise InputError(f"the SuperNode's policy {named} is not there: {how}")
    return path


def reply_of(message: Message, policy: Path, ask: Ask) -> Message:
    """Return the site's reply to a message of Flower's.

    Raises:
        InputError: if the message is none of Privet's.
    """
    from flwr.app import Message as Reply

    from privet.common.flower.wire import decode_offer, encode_reply, pack, unpack
    from privet.common.link import offer

    kind = message.metadata.message_type
    if kind == f"query.{offer.KIND}":
        said, _ = ask(policy, offer.KIND, decode_offer(message.content), {})
        site = str(tomllib.loads(policy.read_text(encoding="utf-8"))["site"])
        return Reply(encode_reply(site, offer.decode_answer(said)), reply_to=message)
    return Reply(unpack(*ask(policy, kind, *pack(message.content))), reply_to=message)


def _ask(policy: Path, kind: str, records: bytes, arrays: Arrays) -> tuple[bytes, Arrays]:
    from privet.client.stock_flower.daemon import ask

    # SuperExec started this process; the site's ends with it.
    return ask(policy, kind, records, arrays, os.getppid())


if __name__ == "__main__":
    main()
