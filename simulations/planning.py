"""From a name, a file and options to a run: a plan with calibrated noise, and a setting.

A plan is validated where it is read, and once more if command-line options change it. Attestations
and noise are added to a valid plan and are not validated again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from privet.common.config import cache_folder, data_folder
from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated as resolve
from privet.simulations import scenarios
from privet.simulations.plan_values import Values, changes_of

if TYPE_CHECKING:
    from privet.simulations.records import SiteRecords

Engine = Literal["auto", "inline", "ray"]
EvidenceLevel = Literal["full", "light", "off"]
FULL_UP_TO = 20
"""Sites up to which a simulation has its evidence in full, unless another level is asked for."""
LIGHT_UP_TO = 1000
"""Sites up to which it has ledgers by default: each keeps the plan, which names all sites."""


@dataclass(frozen=True)
class Setting:
    """How a plan is run: everything that is not in the plan.

    Attributes:
        engine: ``auto`` trains sites together in this process where the model allows it, else one
            after another, as ``inline`` does; ``ray`` is Flower's Ray engine.
        ray_address: an existing Ray cluster, or None to start one.
        noise_seed: makes noise reproducible. The claim becomes ``none``.
        data_dir: folder of the records, or None.
        base: folder that the plan's relative paths start from.
        ledgers: folder of ledgers that last over runs; None: new ones in the run folder.
        cap: lifetime ε of each site's population where its ledger is new.
        open_again: let the plan run where its failures closed it, in ledgers that last.
        evidence: ``full``: every site cosigns every other log; ``light``: a few do; ``off``: there
            are no ledgers, and the claim is ``none``. None takes ``full`` up to 20 sites,
            ``light`` up to 1,000 and ``off`` beyond, where no other setting needs ledgers.
        jobs: processes that train a round's sites; None: one, and as many as there are cores
            where much training is left after the second round.
        cache: folder of what a frozen encoder reads out of texts; ``none`` keeps it nowhere. None
            takes the user's cache folder for a scenario, and keeps nothing of a user's own records.
        measured: split that the model's public metrics are of.
    """

    engine: Engine = "auto"
    ray_address: str | None = None
    noise_seed: int | None = None
    data_dir: Path | None = None
    base: Path = Path()
    ledgers: Path | None = None
    cap: float | None = None
    open_again: bool = False
    evidence: EvidenceLevel | None = None
    jobs: int | None = None
    cache: Path | Literal["none"] | None = None
    measured: Literal["test", "validation"] = "test"

    def cache_of(self, plan: Plan) -> Path | None:
        """Return the folder where a plan's features are kept; None keeps them nowhere."""
        if self.cache == "none" or not plan.model.reads_features:
            return None
        if self.cache is None and scenarios.of(plan) is None:
            return None
        return self.cache or cache_folder()

    def evidence_of(self, plan: Plan) -> EvidenceLevel:
        """Return the evidence level of a run of ``plan``.

        Raises:
            InputError: if there is none with the other settings.
        """
        if plan.privacy is not None and plan.privacy.is_central:
            return self._without_evidence("privacy.trust 'central'")
        needs_ledgers = self.ledgers is not None or self.cap is not None or self.open_again
        if self.evidence == "off":
            return self._without_evidence("--evidence off")
        if self.evidence is not None:
            return self.evidence
        if len(plan.sites) <= FULL_UP_TO:
            return "full"
        is_light = len(plan.sites) <= LIGHT_UP_TO or needs_ledgers or self.engine == "ray"
        return "light" if is_light else "off"

    def _without_evidence(self, why: str) -> EvidenceLevel:
        if self.evidence not in (None, "off"):
            raise InputError(
                f"{why} leaves nothing to prove at a site: it goes without --evidence "
                f"{self.evidence}"
            )
        if self.ledgers is not None or self.cap is not None or self.open_again:
            raise InputError(
                f"{why} keeps no ledgers, so it goes without --ledgers, --cap and --open-again"
            )
        if self.engine == "ray":
            raise InputError(
                f"{why} counts in one process what is spent, so it goes without --engine ray"
            )
        return "off"


def find_plan(reference: str, model: str | None = None) -> tuple[Plan, Path]:
    """Return the plan of a scenario or a file, and the folder of its relative paths.

    Args:
        reference: name of a scenario; or path of a plan, which ends with ``.toml`` or has a ``/``.
        model: kind of another model; for a scenario, the name of another of its models. None keeps
            the plan's.

    Raises:
        InputError: if there is no such scenario, file or model.
    """
    if reference.endswith(".toml") or "/" in reference:
        path = Path(reference)
        plan = Plan.load(path)
        if model:
            plan = plan.redrafted(model={"kind": model})
        return plan, path.parent
    return scenarios.get(reference).make_plan(model), Path()


def adjusted(
    plan: Plan,
    *,
    epsilon: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    sites: int | None = None,
    clipping: str | None = None,
    start: str | None = None,
    dp: bool = True,
    values: Values | None = None,
) -> Plan:
    """Return the plan with the changes of a command line; None leaves a setting as it is.

    Args:
        plan: to change.
        epsilon: ε to which the noise is calibrated again.
        rounds: number of rounds.
        seed: of split and initial weights.
        sites: number of sites, the first of the plan's.
        clipping: the way gradients are clipped.
        start: digest of the weights to start from.
        dp: False removes privacy (:func:`without_privacy`).
        values: of any keys, such as ``training.steps``; they are set before all else.

    Raises:
        PlanError: if a change makes the plan impossible.
        InputError: if ε or the number of sites does not apply to this plan, or a key has no place.
    """
    if values:
        plan = plan.redrafted(**changes_of(plan, values))
    changes = {} if dp else _plain(plan)
    if dp and epsilon is not None:
        if plan.privacy is None:
            raise InputError("this plan has no [privacy] section to set ε in")
        changes["privacy"] = {"epsilon": epsilon, "noise_multiplier": None}
    if rounds is not None:
        changes.setdefault("training", {})["rounds"] = rounds
        joined = changes.get("strategy", {})
        if "average_last" in joined or "strategy.average_last" not in plan.chosen:
            last = joined.get("average_last", plan.strategy.average_last)
            changes["strategy"] = {**joined, "average_last": max(1, min(last, rounds))}
    if clipping is not None:
        changes.setdefault("training", {})["clipping"] = clipping
    if start is not None:
        changes["model"] = {"start": start}
    if seed is not None:
        changes["seed"] = seed
    if sites is not None:
        if not 1 <= sites <= len(plan.sites):
            raise InputError(f"--sites must lie between 1 and {len(plan.sites)}, not {sites}")
        changes["sites"] = [site.model_dump(mode="json") for site in plan.sites[:sites]]
    return plan.redrafted(**changes) if changes else plan


def without_privacy(plan: Plan) -> Plan:
    """Return the same plan without noise; each unit's gradient keeps its bound.

    A scenario may declare other settings for this case, chosen on the same public split.
    """
    return plan.redrafted(**_plain(plan))


def _plain(plan: Plan) -> dict[str, Any]:
    """Return the changes that take a plan's privacy away."""
    if not plan.trains:
        raise InputError(f"plan '{plan.name}' only measures, which needs privacy")
    changes: dict[str, Any] = {"privacy": None}
    privacy = plan.privacy
    if privacy and not privacy.is_central and "privacy.clip" not in plan.chosen:
        changes["training"] = {"clip": privacy.clip}
    if plan.metrics.source == "gate":
        changes["metrics"] = {"source": "public"}
    if plan.scenario:
        name = scenarios.model_name(plan.model)
        for key, change in scenarios.get(plan.scenario).plain.get(name, {}).items():
            changes[key] = {**changes.get(key, {}), **change}
    training = changes.get("training", {})
    is_chosen = "training.clip_rule" in plan.chosen
    if training.get("clip", plan.training.clip) is None and not is_chosen:
        changes["training"] = {**training, "clip_rule": "bound"}  # there is no bound to come near
    return changes


def attestations(plan: Plan) -> dict[str, str]:
    """Return the attested rows: those of the plan, and its scenario's for its own task.

    They are written into the plan itself, so that ledgers and reports name who attests which row.
    """
    attested = {str(key): why for key, why in plan.attested.items()}
    scenario = scenarios.of(plan)
    if scenario is None or plan.task != scenario.own_plan.task:
        return attested
    return {
        "H12": "an open data set: ranges are round numbers declared in the scenario, settings were "
        "chosen without looking, or on a validation split that counts as public",
        "H13": "an open data set: the test split counts as public",
        **scenario.attested,
        **attested,
    }


def attested(plan: Plan) -> Plan:
    """Return the plan with :func:`attestations` in it."""
    return plan.model_copy(update={"attested": attestations(plan)})


@dataclass(frozen=True)
class RunSpec:
    """One run: its plan, which is not validated again, and how it is run.

    Attributes:
        plan: as its author wrote it, with all attestations; then with its noise, too.
        setting: everything that is not in the plan.
    """

    plan: Plan
    setting: Setting

    @property
    def records(self) -> SiteRecords:
        """Where the records are."""
        from privet.simulations.records import SiteRecords  # `privet budget` has no pandas

        folder = data_folder(self.setting.data_dir)
        return SiteRecords(self.plan, folder and folder.resolve(), self.setting.base.resolve())

    def calibrated(self) -> RunSpec:
        """Return the same run with its noise calibrated.

        Raises:
            InputError: if no noise reaches the ε, or the plan's own costs more.
        """
        return replace(self, plan=resolve(self.plan))


__all__ = ["RunSpec", "Setting", "adjusted", "attested", "find_plan", "resolve", "without_privacy"]
