"""What can be checked of an order against the plan alone, before anything is spent."""

from __future__ import annotations

from privet.client.admission import RefusalError
from privet.client.training.protocol import TrainerProtocol, shape_mismatch
from privet.common.flat import Arrays
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.privacy.accounting.plan_events import has_gate_release


def require_planned(order: Order, site: str, plan: Plan) -> None:
    """Check that an order is to this site, and that the plan has such a release.

    Args:
        order: to answer.
        site: name of the site that answers.
        plan: that it approved.

    Raises:
        RefusalError: with the status of the answer.
    """
    if order.site != site or order.plan != plan.digest:
        raise RefusalError(Status.REFUSED_PLAN, "not the plan that this site approved")
    if order.round > plan.last_round:
        raise RefusalError(Status.REFUSED_PLAN, f"the plan has {plan.last_round} rounds")
    if not plan.takes_part(site, order.round):
        raise RefusalError(
            Status.REFUSED_PLAN, f"the plan lets others train in round {order.round}"
        )
    if order.purpose == "train" and not plan.trains:
        raise RefusalError(Status.REFUSED_PLAN, "the plan trains nothing")
    if order.purpose == "evaluate" and not has_gate_release(plan, order.round):
        raise RefusalError(Status.REFUSED_PLAN, "the plan releases no metrics in this round")


def require_trainable(order: Order, model: Arrays, plan: Plan, trainer: TrainerProtocol) -> None:
    """Check the model that came with an order against the plan's.

    Args:
        order: to answer.
        model: that came with it; it is not trusted.
        plan: that the site approved.
        trainer: knows the plan's parameters.

    Raises:
        RefusalError: with the status of the answer.
    """
    shapes = trainer.shapes()
    if order.parameters != tuple(shapes):
        raise RefusalError(
            Status.REFUSED_PARAMETERS, "not the parameters that the plan trains (H17)"
        )
    if fault := shape_mismatch(shapes, model):
        raise RefusalError(Status.REFUSED_PARAMETERS, fault)
    if not plan.trains and order.model != trainer.begins():
        raise RefusalError(Status.REFUSED_PARAMETERS, "not the weights that the plan has measured")
