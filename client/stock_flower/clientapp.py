"""What runs at a site under stock Flower, in place of Flower's own ``flwr-clientapp``.

::

    SuperNode ── SuperExec ── flwr-clientapp      the one of `privet client launcher`
                                 │ message; the bundle is dropped unread
                                 resident         the site's gate, installed at the site

Which site it is says the SuperNode's own ``--node-config``, which no coordinator can change. What
goes wrong is told to the operator, on standard error; the coordinator gets a status, and no text.

Flower's program is used as it is, but for four of its functions (:func:`installed_only`): they
fetch, unpack and load the bundle. No public interface has them, so the versions for which this
was read and tested are named, and no other is run.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from privet.common.errors import InputError, PrivetError, RunError
from privet.common.output.logs import Level, Style, set_up
from privet.common.output.process_output import protect_process

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from privet.common.flat import Arrays

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no update check, nothing installed while a run runs."""
KNOWN = ("1.41.0",)
"""Versions of Flower whose ``flwr-clientapp`` was read."""
PROGRAM = "flwr.supernode.runtime.run_clientapp"
"""The module of Flower's that :func:`installed_only` changes."""
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
        require_known(version("flwr"))
        from flwr.supernode.cli import flwr_clientapp
        from flwr.supernode.runtime import run_clientapp

        installed_only(run_clientapp, answer)
    except PrivetError as error:
        sys.exit(f"privet: {error}")
    flwr_clientapp()


def require_known(found: str) -> None:
    """Refuse a Flower whose program was not read.

    Raises:
        RunError: saying which one to install.
    """
    if found not in KNOWN:
        raise RunError(
            f"Flower {found} is installed. Whether its flwr-clientapp can be kept from running a "
            f"bundle was looked at for {', '.join(KNOWN)} only; install flwr=={KNOWN[-1]}"
        )


def installed_only(program: ModuleType, app: Answer) -> None:
    """Change Flower's program so that it runs ``app``, whatever bundle came.

    Args:
        program: Flower's module :data:`PROGRAM`.
        app: answers a message.

    Raises:
        RunError: if a function that is to be replaced is not there.
    """
    from flwr.supercore.fab import Fab

    pull = getattr(program, "pull_task_input", None)

    def pull_without_bundle(client: Any) -> tuple[Any, Any, Any, Fab]:
        message, context, run, fab = pull(client)  # type: ignore[misc]
        return message, context, run, Fab(fab.hash_str, b"", {})

    instead: dict[str, Callable[..., Any]] = {
        "pull_task_input": pull_without_bundle,
        "install_from_fab": lambda content, **how: None,
        "install_app_dependencies": lambda path, **how: None,
        "get_load_client_app_fn": lambda **how: lambda *which: app,
    }
    for name, function in instead.items():
        if not callable(getattr(program, name, None)):
            raise RunError(
                f"{program.__name__} has no '{name}': this is not the Flower that was read"
            )
        setattr(program, name, function)


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
