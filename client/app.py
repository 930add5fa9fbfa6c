"""The Flower ``ClientApp`` of a site.

The app answers four messages: ``query`` (the site's name), ``query.show`` (show the site's log and
cosign the others' logs), ``train`` and ``evaluate`` (an order; the reply to a release may include
the answer to ``query.show``). No error here becomes a Flower error, whose text would travel to the
coordinator: every reply is a status from the closed list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.client.admission import RefusalError
from privet.client.site import Answer, LogQuery
from privet.common.compat.flower import claim_identity, number_message
from privet.common.errors import InputError
from privet.common.flat import Arrays
from privet.common.flower.wire import (
    SHOW,
    decode_order,
    decode_show,
    encode_reply,
    encode_show,
    pack,
    unpack,
)
from privet.common.order import Order, Status
from privet.privacy.evidence.log import Evidence

_LOG = logging.getLogger("privet.client")
"""What goes wrong before a site has its own log; it stays on the site's machine."""

KINDS = ("query", "query.show", "train", "evaluate")


class AnsweringSite(Protocol):
    """Answers the messages; :class:`privet.client.site.Site` does, and has the details.

    Attributes:
        name: as in the plan.
    """

    name: str

    def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
        """Answer one order."""

    def reserve_ahead(self, order: Order, model: Arrays, head: str = "") -> bool:
        """Return whether an order that :meth:`answer` will answer may be trained."""

    def shown(self, ask: LogQuery) -> dict[str, Any]:
        """Return evidence of the site's log, and cosign the others'."""


SiteOf = Callable[[Context], AnsweringSite]

OnAnswer = Callable[[Order, Status], None]
Unopened = Callable[[Order], Status]
"""Says how an order is answered whose site could not be opened."""


def create_app(
    site_of: SiteOf,
    on_answer: OnAnswer = lambda order, status: None,
    unopened: Unopened = lambda order: Status.FAILED,
    is_stopped: Callable[[], bool] = lambda: False,
) -> ClientApp:
    """Return the app.

    Args:
        site_of: finds the site of a Flower context.
        on_answer: called with each order, and the status of its answer.
        unopened: returns the status of an order's answer when ``site_of`` raises.
        is_stopped: whether the site is connected but its ledger is too old to take part. It then
            still answers with its name, so that it may come back in the same run.
    """
    app = ClientApp()

    def query(message: Message, context: Context) -> Message:
        return Message(encode_reply(_name(context), Status.PRESENT), reply_to=message)

    def _name(context: Context) -> str:
        try:
            return site_of(context).name
        except RefusalError:
            return str(context.node_config["site"]) if is_stopped() else ""
        except Exception:
            _LOG.exception("the site could not be opened")
            return ""

    def show(message: Message, context: Context) -> Message:
        try:
            reply = site_of(context).shown(_asked(decode_show(message.content)))
        except RefusalError:
            reply = {"status": str(Status.REFUSED_ROLLBACK if is_stopped() else Status.FAILED)}
        except Exception:
            _LOG.exception("the site's log could not be sent")
            reply = {"status": str(Status.FAILED)}
        return Message(encode_show(reply), reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        try:
            order, model, head = decode_order(message.content)
        except InputError:
            return Message(encode_reply(_name(context), Status.FAILED), reply_to=message)
        try:
            site = site_of(context)
        except Exception as error:
            if not isinstance(error, RefusalError):  # a refusal was logged with its reason
                _LOG.exception("the site could not be opened")
            status = unopened(order)
            on_answer(order, status)
            return Message(encode_reply(order.site, status), reply_to=message)
        result = site.answer(order, model, head)
        on_answer(order, result.status)
        shown = None if result.release is None else _shown_beside(site, message.content)
        content = encode_reply(site.name, result.status, result.release, shown)
        return Message(content, reply_to=message)

    app.query()(query)
    app.query("show")(show)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def serve(
    app: ClientApp, context: Context, kind: str, records: bytes, arrays: Arrays
) -> tuple[bytes, Arrays]:
    """Answer one message of the link through the app, as any Flower runtime would.

    Args:
        app: of :func:`create_app`.
        context: of the site (:func:`context_of`).
        kind: of the message, one of :data:`KINDS`.
        records: the message without its arrays, encoded.
        arrays: the model beside it, or empty.

    Returns:
        The reply without its arrays, encoded; and its arrays.

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


def _shown_beside(site: AnsweringSite, content: RecordDict) -> dict[str, Any] | None:
    """Return the evidence that an order asks for beside its release; None if it asks for none.

    Evidence that cannot be given here is requested again, in a message of its own.
    """
    if SHOW not in content:
        return None
    try:
        return site.shown(_asked(decode_show(content)))
    except Exception:
        _LOG.exception("the site's log could not be sent")
        return None


def _asked(value: dict[str, Any]) -> LogQuery:
    """Read a coordinator's question about logs.

    Raises:
        InputError: if it is malformed.
    """
    try:
        return LogQuery(
            str(value["head"]),
            tuple(int(size) for size in value["since"]),
            tuple(str(slot) for slot in value["slots"]),
            {str(k): Evidence.from_json(shown) for k, shown in value["shown"].items()},
            _held(value.get("copy")),
            {str(k): list(pieces) for k, pieces in value.get("keep", {}).items()},
            None if value.get("journal") is None else dict(value["journal"]),
            None if value.get("seen") is None else tuple(str(log) for log in value["seen"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the message asks for no log: {error!r}") from error


def _held(value: Any) -> tuple[int, str] | None:
    """Read how far the coordinator's copy of the log reaches; None if it keeps none."""
    return None if value is None else (int(value[0]), str(value[1]))
