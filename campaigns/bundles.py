"""The bundles that are forged: real runs, whose keys lie in their folders."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from meaning import Keys
from trial import Trial

from privet.client.operator.decisions import OperatorDecisions, note_policy
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.officers import ssh_text

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@dataclass(frozen=True)
class Made:
    """A bundle, its roster, and the folders with the keys of everybody in it."""

    name: str
    bundle: Path
    roster: Path
    folders: tuple[Path, ...]

    def trial(self, folder: Path) -> Trial:
        """Return what forges it, with its files in ``folder``."""
        lines = self.bundle.read_bytes().split(b"\n")[:-1]
        return Trial(lines, self.roster, keys_in(self.folders), folder)


def keys_in(folders: tuple[Path, ...]) -> Keys:
    """Return every private key that lies unencrypted in the folders."""
    keys = Keys()
    for path in (path for folder in folders for path in folder.rglob("*.pem")):
        text = path.read_bytes()
        if b"PRIVATE KEY" in text:
            key = load_pem_private_key(text, None)
            if isinstance(key, Ed25519PrivateKey):
                keys.add(key)
    return keys


def simulated(folder: Path, source: str) -> Made:
    """Run three sites for two rounds; ``source`` of the figures is ``gate`` or ``public``."""
    import privet
    from privet.simulations.starter import write_starter

    write_starter(folder / "plan")
    metrics: dict[str, Any] = {"source": source}
    if source == "gate":
        metrics["every"] = 1
    plan = privet.Plan.load(folder / "plan" / "plan.toml").changed(
        training={"rounds": 2}, metrics=metrics, threads=1
    )
    run = privet.simulate(plan, out=folder / "run", base=folder / "plan", seed=0).out
    bundle = write_bundle([run], folder / "run.bundle").path
    return Made(source, bundle, run / "roster-fingerprints.json", (run,))


def _with_officer(home: Path, plan: str) -> None:
    """Have an officer of a site approve a plan by her own key, in place of its policy's list.

    The key lies elsewhere: whoever forges the site's ledger does not have it.
    """
    officer = FileSigner.generate()
    path = home / "site.toml"
    text = path.read_text().replace(f'plans = ["{plan}"]', "plans = []")
    path.write_text(f'{text}[officers]\n"Ada" = "{ssh_text(officer.public)}"\n')
    desk = OperatorDecisions.open(path, None)
    note_policy(desk.policy, desk.ledger)
    desk.approve(plan, "Ada", lambda public: officer)
    path.write_text(f"{path.read_text()}# changed\n".replace("100000\n", "50000\n"))
    desk = OperatorDecisions.open(path, None)
    desk.sign_policy("Ada", lambda public: officer)


def linked(folder: Path) -> Made:
    """Run three sites and a coordinator, each a process, for two rounds over gRPC with TLS."""
    sys.path.insert(0, str(BENCHMARKS))
    from federation_fixture import FederationFixture, follow, plan_for

    names = ["North", "East", "South"]
    metrics = {"source": "gate", "noise_multiplier": 20.0}
    federation = FederationFixture(folder / "federation", plan_for(names, 2, metrics=metrics))
    _with_officer(federation.folder / "North", federation.plan.digest)
    try:
        run = federation.submit()
        federation.start_all()
        follow(run, federation, seconds=300)
    finally:
        federation.close()
    homes = tuple(federation.folder / name for name in names)
    bundle = write_bundle([run.folder, *homes], folder / "run.bundle").path
    roster = run.folder / "roster-fingerprints.json"
    return Made("link", bundle, roster, (federation.folder,))
