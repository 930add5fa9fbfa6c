"""The Flower ``ClientApp`` of a site.

Three messages: ``query`` (which site is this?), ``train`` and ``evaluate`` (an order).
Nothing that happens here becomes a Flower error, whose text would travel to the
coordinator: every reply is a status from the closed list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from privet.client.site import Site
from privet.common.errors import InputError
from privet.common.order import Status
from privet.common.wire import decode_order, encode_reply

_LOG = logging.getLogger("privet.client")
"""What goes wrong before a site has its own log; it stays on the site's machine."""

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

    def answer(message: Message, context: Context) -> Message:
        try:
            order, model = decode_order(message.content)
        except InputError:
            return Message(
                encode_reply(_name(context), Status.REFUSED_PARAMETERS), reply_to=message
            )
        try:
            site = site_of(context)
        except Exception:
            _LOG.exception("the site could not be opened")
            return Message(encode_reply(order.site, Status.FAILED), reply_to=message)
        result = site.answer(order, model)
        return Message(encode_reply(site.name, result.status, result.release), reply_to=message)

    app.query()(query)
    app.train()(answer)
    app.evaluate()(answer)
    return app
