"""The Flower ``ClientApp`` of a site.

Four messages: ``query`` (which site is this?), ``query.show`` (show your log, cosign those
of the others), ``train`` and ``evaluate`` (an order).
Nothing that happens here becomes a Flower error, whose text would travel to the
coordinator: every reply is a status from the closed list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.client.site import Asked, Site
from privet.common.errors import InputError
from privet.common.flat import Arrays
from privet.common.order import Status
from privet.common.wire import (
    claim_identity,
    decode_order,
    decode_show,
    encode_reply,
    encode_show,
    number_message,
    pack,
    unpack,
)
from privet.privacy.log import Evidence

_LOG = logging.getLogger("privet.client")
"""What goes wrong before a site has its own log; it stays on the site's machine."""

KINDS = ("query", "query.show", "train", "evaluate")

SiteOf = Callable[[Context], Site]


def create_app(site_of: SiteOf) -> ClientApp:
    """Return the app; ``site_of`` finds the site that a Flower context stands for."""
    app = ClientApp()

    def query(message: Message, context: Context) -> Message:
        return Message(encode_reply(_name(context), Status.PRESENT), reply_to=message)

    def _name(context: Context) -> str:
        try:
            return site_of(context).name
        except Exception:
            _LOG.exception("the site could not be opened")
            return ""

    def show(message: Message, context: Context) -> Message:
        try:
            reply = site_of(context).shown(_asked(decode_show(message.content)))
        except Exception:
            _LOG.exception("the site's log could not be shown")
            reply = {"status": str(Status.FAILED)}
        return Message(encode_show(reply), reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        try:
            order, model, head = decode_order(message.content)
        except InputError:
            return Message(encode_reply(_name(context), Status.FAILED), reply_to=message)
        try:
            site = site_of(context)
        except Exception:
            _LOG.exception("the site could not be opened")
            return Message(encode_reply(order.site, Status.FAILED), reply_to=message)
        result = site.answer(order, model, head)
        return Message(encode_reply(site.name, result.status, result.release), reply_to=message)

    app.query()(query)
    app.query("show")(show)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def serve(
    app: ClientApp, context: Context, kind: str, records: bytes, arrays: Arrays
) -> tuple[bytes, Arrays]:
    """Answer one message of the link through the app; the same as on any Flower runtime.

    Raises:
        InputError: if the message is malformed.
    """
    if kind not in KINDS:
        raise InputError(f"a message of kind {kind[:40]!r} is not one that a site answers")
    claim_identity(context.run_id)
    message = Message(unpack(records, arrays), context.node_id, kind)
    number_message(message)
    return pack(app(message, context).content)


def context_of(site: str) -> Context:
    """Return the Flower context of a site on the link."""
    return Context(
        run_id=1,
        node_id=1,
        node_config=UserConfig({"site": site}),
        state=RecordDict(),
        run_config=UserConfig(),
    )


def _asked(value: dict[str, Any]) -> Asked:
    """Read what a coordinator wants to see.

    Raises:
        InputError: if it is malformed.
    """
    try:
        return Asked(
            str(value["head"]),
            tuple(int(size) for size in value["since"]),
            tuple(str(slot) for slot in value["slots"]),
            {str(k): Evidence.from_json(shown) for k, shown in value["shown"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the message asks for no log: {error!r}") from error
