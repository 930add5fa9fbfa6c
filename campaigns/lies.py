"""Named lies: each was told by the owner of true keys, and each needs a rule or a label.

A lie changes the meaning of a bundle for the members who tell it, and returns whether they have
anything to tell in this bundle. Lies about a site's ledger are told by every site of the coalition,
those about plans, orders and the journal by the coordinator: sites approve a plan by its digest.
What the verifier or the report must say instead of refusing a lie is its ``label``.
"""

from __future__ import annotations

from typing import Any

from lying import (
    Liars,
    Lie,
    Tree,
    add,
    claims_no_more,
    journal_of,
    kind_of,
    place_of,
    predicates,
    says_less,
)
from meaning import Original, sha

# populations and claims


def _allow(tree: Tree, who: Liars, **changes: Any) -> bool:
    """Change what the policies allow, and nothing of what was done under them."""
    for log in who.ledgers(tree):
        for predicate in predicates(log, "policy"):
            predicate["policy"].setdefault("allow", {}).update(changes)
    return bool(who.ledgers(tree))


def two_populations(tree: Tree, who: Liars) -> bool:
    """The later rounds of one run are charged to a second population, disjoint "."."""
    for log in who.ledgers(tree):
        first, data = predicates(log, "population")[0], predicates(log, "data-set")[0]
        for predicate in predicates(log, "policy"):
            for part, name in (("populations", first["population"]), ("data", data["data_set"])):
                known = predicate["policy"].get(part, {})
                if name in known:
                    known["others"] = {**known[name]}
            if "others" in predicate["policy"].get("data", {}):
                predicate["policy"]["data"]["others"].update(population="others", disjoint=".")
        for predicate in predicates(log, "reserved"):
            if predicate["round"] > 1:
                predicate.update(population="others", data_set="others")
        common = ("sequence", "time", "log")
        fields = {key: value for key, value in first.items() if key not in common}
        at = place_of(log, "data-set") + 1
        add(log, at, "population", **{**fields, "population": "others"})
        add(log, at + 1, "data-set", data_set="others", population="others", disjoint=".")
    return bool(who.ledgers(tree))


def all_self_tests(tree: Tree, who: Liars) -> bool:
    """Every row of the list from H1 to H32 is said to be tested."""
    for log in who.ledgers(tree):
        for predicate in predicates(log, "reserved"):
            predicate["self_tests"] = [f"H{number}" for number in range(1, 33)]
    return bool(who.ledgers(tree))


# policies


def cap_above_policy(tree: Tree, who: Liars) -> bool:
    """A cap of 300 is registered where the policy says 3."""
    for log in who.ledgers(tree):
        for predicate in predicates(log, "population"):
            predicate["epsilon"] = "300.0"
    return bool(who.ledgers(tree))


def more_rounds_than_allowed(tree: Tree, who: Liars) -> bool:
    """A run of two rounds under a policy that allows one."""
    return _allow(tree, who, max_rounds=1)


def coordinator_not_allowed(tree: Tree, who: Liars) -> bool:
    """Orders of a coordinator that the policy does not name are answered."""
    return _allow(tree, who, coordinators=["sha256:" + sha(b"another coordinator")])


def model_not_allowed(tree: Tree, who: Liars) -> bool:
    """A model is trained that the policy forbids."""
    return _allow(tree, who, models=["another"])


def task_not_allowed(tree: Tree, who: Liars) -> bool:
    """A task is trained that the policy forbids."""
    return _allow(tree, who, tasks=["another"])


def metrics_not_allowed(tree: Tree, who: Liars) -> bool:
    """Figures come from a source that the policy forbids."""
    return _allow(tree, who, metrics=["off"])


def plan_not_listed(tree: Tree, who: Liars) -> bool:
    """A plan runs that is not among those of a policy that allows no others."""
    return _allow(tree, who, plans=["sha256:" + sha(b"another plan")], approval="listed")


def one_approver_twice(tree: Tree, who: Liars) -> bool:
    """Two approvers are needed, and one name is written twice."""
    for log in who.ledgers(tree):
        for predicate in predicates(log, "plan-approved"):
            predicate.update(by=["Dr. A", "Dr. A"], how="manual")
    return _allow(tree, who, approval="manual", approvers=2, plans=[])


def empty_policy(tree: Tree, who: Liars) -> bool:
    """The policy says nothing at all."""
    for log in who.ledgers(tree):
        for predicate in predicates(log, "policy"):
            predicate["policy"] = {}
    return bool(who.ledgers(tree))


# histories that nobody witnessed


def run_cut_short(tree: Tree, who: Liars) -> bool:
    """The coordinator drops its last round and says that the run failed before it."""
    journal = journal_of(tree)
    rounds = [n for n, entry in enumerate(journal["entries"]) if kind_of(entry) == "round"]
    if not who.chief or len(rounds) < 2:
        return False
    last = journal["entries"][rounds[-1]]["statement"]["predicate"]
    before = journal["entries"][rounds[-2]]["statement"]["predicate"]
    del journal["entries"][rounds[-1]]
    for closed in predicates(journal, "run-closed"):
        closed.update(how="failed", rounds=before["round"], model=before["shown"], fault="stopped")
    tree["receipts"] = [r for r in tree["receipts"] if r["round"] != last["round"]]
    own = {item["size"] for item in before["witnessed"] if item["log"] == journal["log"]}
    journal["checkpoints"] = [c for c in journal["checkpoints"] if c["size"] in own] + journal[
        "checkpoints"
    ][-1:]
    for log in tree["logs"]:
        if log["role"] == "site":
            keep = [w["size"] for w in before["witnessed"] if w["log"] == log["log"]]
            kept = [c for c in log["checkpoints"][:-1] if c["size"] in keep]
            log["checkpoints"] = kept + log["checkpoints"][-1:]
            _quorum_of(log, who.original)
    return True


def _quorum_of(log: Tree, original: Original) -> None:
    """Leave the cosignatures of a quorum on the last checkpoint, which no journal names."""
    last = log["checkpoints"][-1]
    last["signatures"] = last["signatures"][: 1 + original.tree["roster"]["quorum"]]


def ledger_nobody_witnessed(tree: Tree, who: Liars) -> bool:
    """A site drops its last charge; journal and orders are left out, and so is every witness."""
    sites = who.ledgers(tree)
    for log in sites:
        last = max(n for n, entry in enumerate(log["entries"]) if kind_of(entry) == "reserved")
        log["entries"] = log["entries"][:last]
    tree["orders"], tree["receipts"] = [], []
    tree["logs"] = [log for log in tree["logs"] if log["role"] == "site"]
    for log in tree["logs"]:
        log["checkpoints"] = log["checkpoints"][-1:]
        _quorum_of(log, who.original)
    return bool(sites)


# charges, plans and orders


def charge_given_back(tree: Tree, who: Liars) -> bool:
    """A release is said to be an abort that never opened the data, and costs nothing."""
    sites, gone = who.ledgers(tree), set()
    for log in sites:
        at = max(n for n, e in enumerate(log["entries"]) if kind_of(e).endswith("released"))
        statement = log["entries"][at]["statement"]
        old = statement["predicate"]
        gone.add((log["log"], old["sequence"]))
        common = {key: old[key] for key in ("sequence", "time", "log", "reservation")}
        statement["predicate"] = {**common, "data_opened": False, "reason": "does-not-fit"}
        statement["predicateType"] = "urn:privet:ledger:v1:aborted"
    follows = who.chief or who.in_time  # it is told that the site failed
    for value in predicates(journal_of(tree), "round") if follows else []:
        for part, purpose in (("joined", "train"), ("metrics", "evaluate")):
            out = {i["site"] for i in value[part] if (i["log"], i["entry"]) in gone}
            value[part] = [item for item in value[part] if item["site"] not in out]
            for item in value["orders"]:
                if item["site"] in out and item["purpose"] == purpose:
                    item["answer"] = "failed"
            tree["receipts"] = [
                r for r in tree["receipts"]
                if (r["round"], r["purpose"]) != (value["round"], purpose) or r["site"] not in out
            ]  # fmt: skip
    return bool(sites)


def _plan(tree: Tree, who: Liars, section: str, **changes: Any) -> bool:
    for plan in tree["plans"]:
        plan[section].update(changes)
    return who.chief


def plan_promises_less(tree: Tree, who: Liars) -> bool:
    """A plan asks for an epsilon of 0.01 and costs many times as much."""
    return _plan(tree, who, "privacy", epsilon=0.01)


def _delta(tree: Tree, who: Liars, value: float) -> bool:
    for log in who.ledgers(tree):
        for predicate in predicates(log, "population"):
            predicate["delta"] = repr(value)
        for predicate in predicates(log, "policy"):
            for population in predicate["policy"].get("populations", {}).values():
                population["delta"] = repr(value)
    return _plan(tree, who, "privacy", delta=value)


def delta_of_one_half(tree: Tree, who: Liars) -> bool:
    """A delta of 0.5, which lets half of all records be told."""
    return _delta(tree, who, 0.5)


def delta_above_one_record(tree: Tree, who: Liars) -> bool:
    """A delta above one over the nominal size, which lets one record be told."""
    sizes = [site["nominal_size"] for plan in tree["plans"] for site in plan["sites"]]
    return _delta(tree, who, 2.0 / min(sizes))


def dated_2099(tree: Tree, who: Liars) -> bool:
    """Entries are dated 2099 and cosigned now."""
    for log in tree["logs"]:
        if log["name"] in who.members:
            predicate = log["entries"][-1]["statement"]["predicate"]
            predicate["time"] = "2099" + predicate["time"][4:]
    return bool(who.members)


def _repeat(tree: Tree, releases: list[tuple[str, Tree]]) -> None:
    """Let all releases have the digest of the first, in the journal too."""
    digest = releases[0][1]["digest"]
    where = {(origin, value["sequence"]) for origin, value in releases}
    for _, value in releases:
        value["digest"] = digest
    for value in predicates(journal_of(tree), "round"):
        for item in value["joined"] + value["metrics"]:
            if (item["log"], item["entry"]) in where:
                item["digest"] = digest


def one_release_at_two_sites(tree: Tree, who: Liars) -> bool:
    """Two sites release the same arrays in one round."""
    sites = who.ledgers(tree)
    if len(sites) < 2:
        return False
    _repeat(tree, [(log["log"], predicates(log, "released")[0]) for log in sites[:2]])
    return True


def one_release_in_two_rounds(tree: Tree, who: Liars) -> bool:
    """A site releases the same arrays in two rounds."""
    for log in who.ledgers(tree):
        _repeat(tree, [(log["log"], value) for value in predicates(log, "released")])
    return bool(who.ledgers(tree))


def fewer_sites_than_the_plan_wants(tree: Tree, who: Liars) -> bool:
    """A round joins two sites under a plan that asks for three at least."""
    journal = journal_of(tree)
    for value in predicates(journal, "round"):
        gone = value["joined"].pop()["site"]
        tree["receipts"] = [
            r for r in tree["receipts"]
            if (r["round"], r["purpose"], r["site"]) != (value["round"], "train", gone)
        ]  # fmt: skip
    return _plan(tree, who, "strategy", min_sites=3)


def unequal_parameters(tree: Tree, who: Liars) -> bool:
    """One site is asked for other parameters than the rest."""
    order = tree["orders"][0]["order"]
    order["parameters"] = order["parameters"][:1]
    return who.chief


def more_records_than_the_population(tree: Tree, who: Liars) -> bool:
    """The plan uses 1,000 records of a person, the population allows fewer."""
    for plan in tree["plans"]:
        if plan.get("privacy"):
            plan["privacy"]["max_records"] = 1000
    return who.chief


def control_characters(tree: Tree, who: Liars) -> bool:
    """A title clears the screen and turns the direction of writing."""
    for plan in tree["plans"]:
        plan["title"] = "A title\x1b[2J\u202e"
    return who.chief


LIES: dict[str, Lie] = {
    lie.name: lie
    for lie in (
        Lie(two_populations), Lie(all_self_tests, claims_no_more), Lie(cap_above_policy),
        Lie(more_rounds_than_allowed), Lie(coordinator_not_allowed), Lie(model_not_allowed),
        Lie(task_not_allowed), Lie(metrics_not_allowed), Lie(plan_not_listed),
        Lie(one_approver_twice), Lie(empty_policy), Lie(run_cut_short, says_less),
        Lie(ledger_nobody_witnessed, says_less), Lie(charge_given_back), Lie(plan_promises_less),
        Lie(delta_of_one_half), Lie(delta_above_one_record), Lie(dated_2099),
        Lie(one_release_at_two_sites), Lie(one_release_in_two_rounds),
        Lie(fewer_sites_than_the_plan_wants), Lie(unequal_parameters),
        Lie(more_records_than_the_population), Lie(control_characters),
    )
}  # fmt: skip

__all__ = ["LIES", "Lie", "Liars"]
