"""The report: what it says of a real bundle, of a broken one, and what it never says."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_kit as kit

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting.interval import Interval, NoInterval
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.report import input, intervals, phrases, write_report
from privet.privacy.audit.report.claims import claim_of, facts, held
from privet.privacy.audit.report.context import view
from privet.privacy.audit.verify import RULES, AuditedRecord, Fault, Verdict, verify

HEADINGS = """In short / Spent and left / For those who sign / What the number means / Who promises what /
What is not proved / Who sees what / Spent and left, in detail / Over time / Runs and refusals /
Refusals / Charges without a release / Claims / Assumption register / Witnesses /
Keys, pauses, withdrawals / Plans / Two numbers and a colour / Who approved the plans / Software /
Check it yourself / Words / Where this report may help""".replace("\n", " ").split(" / ")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page holds: headings, text, attributes; tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[tuple[int, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def bundle(files: Path, plan_value: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small real run, with figures from the gate."""
    from privet.simulations.run import Setting, run_plan

    folder = tmp_path_factory.mktemp("report")
    value = plan_value(
        title="Two numbers and a colour", metrics={"source": "gate", "noise_multiplier": 20.0},
        attested={"H12": "the ranges are round numbers"},
    )  # fmt: skip
    run_plan(Plan.parse(value), Setting(base=files), folder / "run")
    return write_bundle([folder / "run"], folder / "run.bundle").path


@pytest.fixture(scope="module")
def verdict(bundle: Path) -> Verdict:
    return verify(bundle, bundle.parent / "run" / "roster-fingerprints.json", keep=True)


@pytest.fixture(scope="module")
def folder(verdict: Verdict, bundle: Path) -> Path:
    out = bundle.parent / "out"
    paths = write_report(verdict, out, bundle=bundle)
    assert [path.name for path in paths] == ["report.html", "report.json", "registry.json"]
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def written(found: Verdict, out: Path, **options: Any) -> tuple[Page, dict[str, Any]]:
    paths = write_report(found, out, **options)
    return Page(paths[0].read_text(encoding="utf-8")), json.loads(paths[1].read_text())


# --- a real bundle ------------------------------------------------------------------------


def test_the_headings_of_a_whole_report(page: Page) -> None:
    assert page.headings[0] == (1, "Privacy report")
    assert [text for _, text in page.headings[1:]] == HEADINGS
    levels = [level for level, _ in page.headings]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_page_one_says_what_whose_and_how_it_was_verified(page: Page, verdict: Verdict) -> None:
    assert verdict.ok and verdict.roster == "pinned"
    for words_ in (
        "This was a simulation.", "Two numbers and a colour", "North, East, South",
        "no fault was found, and the keys are those of the roster you supplied",
        "per record, add or remove one", "one record", "is no evidence about a real deployment",
        "by the metrics mechanism",
    ):  # fmt: skip
        assert words_ in page.text
    short = page.text[: page.text.index("Spent and left, in detail")]
    for title, _ in phrases.NOT_PROVED:
        assert title in short


def test_an_unpinned_roster_is_said_with_what_it_means(bundle: Path, tmp_path: Path) -> None:
    page, value = written(verify(bundle, keep=True), tmp_path / "out")
    assert "but the roster is not pinned" in page.text
    assert "whoever made it could have made the keys too" in page.text
    assert value["roster"] == "unpinned"


def test_no_epsilon_without_its_terms(folder: Path, verdict: Verdict) -> None:
    value = json.loads((folder / "report.json").read_text())
    assert len(value["sites"]) == 3
    for site, finding in zip(value["sites"], verdict.sites, strict=True):
        assert site["epsilon"] == finding.epsilon
        assert {"delta", "unit", "relation", "cap", "left", "claim"} <= site.keys()
        assert site["left"] == pytest.approx(site["cap"] - site["epsilon"])
    text = (folder / "report.html").read_text(encoding="utf-8")
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        if re.search(r"ε (spent|of record)", table):
            assert "δ 0.0001, per record, add or remove one" in table


def test_keys_of_the_json(folder: Path) -> None:
    value = json.loads((folder / "report.json").read_text())
    assert value["format"] == "privet/report/v1"
    assert set(value) == {
        "format", "made", "verified", "roster", "faults",
        "notes", "simulation", "unchecked", "coordinator", "period", "claim", "conditional_on",
        "in_words", "sites", "signing", "runs",
        "refusals", "aborted", "honesty", "witnesses", "changes", "approvals", "plans", "code",
        "code_pinned", "witnessed", "unfinished",
        "programs", "not_proved",
    }  # fmt: skip
    assert len(value["honesty"]) == 32
    assert value["runs"][0]["rounds"] == 2
    assert value["runs"][0]["releases"] == value["runs"][0]["metric_releases"] == 6
    assert value["claim"] == "conditional"
    states = {row["id"]: row["state"] for row in value["honesty"]}
    assert states["H6"] == states["H16"] == "tested"
    assert states["H12"] == "attested"
    assert states["H13"] == "enforced"
    assert {key for key in states if states[key] == "unknown"} == set(value["conditional_on"])
    assert set(value["conditional_on"]) == {"H11", "H21", "H31", "H32"}


def test_the_same_bundle_gives_the_same_bytes(folder: Path, bundle: Path, tmp_path: Path) -> None:
    again = verify(bundle, bundle.parent / "run" / "roster-fingerprints.json", keep=True)
    for path in write_report(again, tmp_path / "again", bundle=bundle):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_nothing_is_loaded_from_anywhere(folder: Path, page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    loading = {"src", "href", "srcset", "data", "action", "xlink:href", "background"}
    assert [v for _, name, v in page.attributes if name in loading and v[:1] != "#"] == []
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {v[1:] for _, name, v in page.attributes if name == "href"} <= ids
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)


def test_it_is_accessible(page: Page) -> None:
    attributes = page.attributes
    assert ("html", "lang", "en") in attributes
    heads = page.tags.count("th")
    assert heads == len([1 for tag, name, _ in attributes if (tag, name) == ("th", "scope")])
    assert page.tags.count("table") == page.tags.count("caption")
    named = [n for tag, n, _ in attributes if tag == "svg" and n in ("aria-label", "aria-hidden",
                                                                     "aria-labelledby")]  # fmt: skip
    assert page.tags.count("svg") == len(named)
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = [v for _, n, value in attributes if n == "aria-labelledby" for v in value.split()]
    assert set(pointed) <= set(ids)


@pytest.mark.parametrize("pinned", [True, False])
def test_what_it_never_says(page: Page, pinned: bool, tmp_path: Path) -> None:
    other, _ = written(kit.verdict(kit.three_sites(), pinned=pinned), tmp_path / "out")
    for text in (page.text, other.text):
        assert not re.search(
            r"\b(complian\w*|complies|safe\w*|anonym\w+|lawful)\b", text, re.I
        ) or (
            re.findall(r"\b(?:complian\w*|complies|safe\w*|anonym\w+|lawful)\b", text, re.I)
            == ["safetensors"]
        )


# --- faults -------------------------------------------------------------------------------

FAULTS = [
    Fault("Lakeside", 14, "signature", "the signature is false"),
    Fault(None, None, "bundle", "the file is cut"),
]


def test_faults_come_first_and_figures_are_only_claimed(tmp_path: Path) -> None:
    page, value = written(kit.verdict(kit.three_sites(), faults=FAULTS), tmp_path / "out")
    assert page.headings[1] == (2, "Verification found 2 faults")
    first = page.text[: page.text.index("In short")]
    for said in ("Do not rely on the numbers", "Lakeside", "entry 14", "the signature is false"):
        assert said in first
    assert "Verified: no fault" not in page.text
    assert page.text.count("Claimed, not verified.") >= 4
    assert value["verified"] is False
    assert value["claim"] == "none"
    assert {site["claim"] for site in value["sites"]} == {"none"}
    registry = json.loads((tmp_path / "out" / "registry.json").read_text())
    assert "not verified" in registry["deployment"]["administrative"]["notes"]


def test_a_bundle_that_was_changed(bundle: Path, tmp_path: Path) -> None:
    lines = bundle.read_bytes().splitlines(keepends=True)
    broken = tmp_path / "broken.bundle"
    broken.write_bytes(b"".join(lines[:-9] + lines[-8:]))
    found = verify(broken, keep=True)
    assert not found.ok
    page, _ = written(found, tmp_path / "out")
    assert page.headings[1][1].startswith("Verification found")


@pytest.mark.parametrize("kept", [1, 3, 40])
def test_a_bundle_that_is_cut_gives_a_report(bundle: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.bundle"
    cut.write_bytes(b"".join(bundle.read_bytes().splitlines(keepends=True)[:kept]))
    page, _ = written(verify(cut, keep=True), tmp_path / "out")
    assert page.headings[1][1].startswith("Verification found")


def test_every_rule_has_words() -> None:
    assert set(phrases.RULES) == set(RULES)


# --- texts from others --------------------------------------------------------------------


def test_what_others_wrote_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    books = [kit.ledger(evil, attested={"H21": "<img src=x onerror=alert(2)>"})]
    books[0].add("paused", by='"><b>me')
    plan = kit.plan("<style>*{display:none}</style>", attested={"H12": "{{ 7 * 7 }}</td>"})
    faults = [Fault(evil, 1, "entry", "<svg/onload=alert(3)>")]
    for number, broken in enumerate(([], faults)):
        found = kit.verdict(books, plans={kit.PLAN: plan}, faults=broken)
        page, _ = written(found, tmp_path / str(number))
        assert not {"script", "img", "b"} & set(page.tags)
        assert page.tags.count("style") == 1
        assert evil in page.text
        assert "{{ 7 * 7 }}" in page.text
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]


@pytest.mark.parametrize(
    "plan",
    [{}, {"name": 1, "task": [], "privacy": "x", "training": 3, "metrics": None},
     {"privacy": {"epsilon": {}, "delta": "nan", "unit": [], "max_records": "1e400"},
      "attested": {"H12": 5, "H11": "no"}}],
)  # fmt: skip
def test_a_plan_may_be_anything(plan: dict[str, Any], tmp_path: Path) -> None:
    found = kit.verdict(kit.three_sites(), plans={kit.PLAN: plan}, faults=FAULTS)
    page, _ = written(found, tmp_path / "out")
    assert "Plans" in page.text


def test_an_empty_record(tmp_path: Path) -> None:
    empty = Verdict(False, "unpinned", FAULTS, [], [], AuditedRecord())
    page, _ = written(empty, tmp_path / "out")
    assert "Nothing was trained yet" in page.text


# --- claims and the assumption register ---------------------------------------------------


def case_of(found: Verdict) -> input.ReportInput:
    assert found.record is not None
    return input.read(found.record)


def states(found: Verdict) -> dict[str, str]:
    case = case_of(found)
    return {row.id: row.state for row in view(case, found, {})["rows"]}


def test_real_sites_with_witnesses_can_be_proved_in_the_model() -> None:
    found = kit.verdict(kit.three_sites(attested={"H21": "one county each"}))
    case = case_of(found)
    assert claim_of(case, found, case.ledgers).word == "proved-in-model"
    state = states(found)
    assert state["H11"] == state["H31"] == state["H32"] == state["H29"] == "enforced"
    assert state["H21"] == "attested"
    # Each of these alone loses it.
    for books, row in (
        (kit.three_sites(), "H21"),
        (kit.three_sites(attested={"H21": "x"}, tests=("H6", "H7")), "H16"),
        (kit.three_sites(attested={"H21": "x"}, runs={"a": kit.PLAN, "b": kit.PLAN}), "H29"),
        (kit.three_sites(attested={"H21": "x"}, setting="simulation"), "H11"),
        ([kit.ledger("North", attested={"H21": "x"})], "H31"),
    ):
        other = kit.verdict(books)
        case = case_of(other)
        got = claim_of(case, other, case.ledgers)
        assert got.word == "conditional"
        assert row in got.conditional


def test_one_site_cannot_attest_for_the_others() -> None:
    books = kit.three_sites(attested={"H21": "one county each"})
    books[1].add("policy", policy={"attested": {}})
    assert states(kit.verdict(books))["H21"] == "unknown"
    books = kit.three_sites(attested={"H21": "one county each"})
    said = dict(view(case_of(kit.verdict(books)), kit.verdict(books), {})["not_proved"])
    assert said["That nobody is at two sites"].endswith(
        "Attested, not proved: each site says: one county each."
    )


def test_a_plan_cannot_attest_what_only_a_ledger_can_show() -> None:
    plan = kit.plan(attested={"H11": "trust me", "H31": "trust me", "H21": "trust me"})
    books = kit.three_sites(setting="simulation")
    state = states(kit.verdict(books, plans={kit.PLAN: plan}))
    assert state["H11"] == state["H31"] == "unknown"
    assert state["H21"] == "attested"


def test_a_seed_or_an_open_event_claims_nothing(tmp_path: Path) -> None:
    seeded = kit.verdict(kit.three_sites(reproducible=True))
    page, value = written(seeded, tmp_path / "seed")
    assert value["claim"] == "none"
    assert "No privacy is claimed." in page.text
    bare = kit.verdict(kit.three_sites(), epsilon=None)
    page, value = written(bare, tmp_path / "bare")
    assert value["claim"] == "none"
    assert value["sites"][0]["epsilon"] is None
    assert "∞" in page.text
    assert "No number protects the people there" in page.text
    assert "privacy_parameters" not in json.loads(
        (tmp_path / "bare" / "registry.json").read_text()
    )["deployment"]["privacy_loss"]  # fmt: skip


def test_metrics_are_as_open_as_the_most_open_plan() -> None:
    plans = {
        kit.PLAN: kit.plan(),
        kit.OTHER: kit.plan(metrics={"source": "public"}, attested={"H13": "open data"}),
    }
    books = kit.three_sites(runs={"a": kit.PLAN, "b": kit.OTHER})
    case = case_of(kit.verdict(books, plans=plans))
    assert facts(case, case.ledgers).metrics == "public"
    assert "H13" in (facts(case, case.ledgers).attested or {})
    open_ = view(case, kit.verdict(books, plans=plans), {})["not_proved"]
    assert "Anything about the records of the test split" in dict(open_)
    # H12 is attested by one plan of two only.
    assert "H12" not in (facts(case, case.ledgers).attested or {})


def test_cosignatures_of_the_owner_and_of_strangers_do_not_count() -> None:
    books = [kit.ledger("North"), kit.ledger("South")]
    books[0].witnessed("North", "stranger", "South")
    found = kit.verdict(books)
    case = case_of(found)
    got = held(case, books[0].record)
    assert (got.whole, got.enough, got.heads) == (False, 0, 1)
    assert dict(got.by) == {"South": 1}


# --- runs, refusals, changes --------------------------------------------------------------


def test_refusals_aborts_pauses_and_keys_are_named(tmp_path: Path) -> None:
    page, value = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert value["refusals"] == [
        {"run": "readmission-1", "site": "Lakeside", "status": "refused-paused",
         "purpose": "train", "count": 1, "why": phrases.STATUSES["refused-paused"]}
    ]  # fmt: skip
    assert [row["state"] for row in value["aborted"]] == ["kept"] * 3
    for said in ("the site was restarted in the middle", "counts: data were opened",
                 "changed its key", "paused (by Dr. Ada Okafor)", "one person (one patient)"):  # fmt: skip
        assert said in page.text
    assert value["runs"][0]["rounds"] == 8
    assert [row["what"].split()[0] for row in value["changes"]] == ["changed", "paused", "resumed"]


def test_two_runs_on_one_population(tmp_path: Path) -> None:
    books = kit.three_sites(runs={"readmission-1": kit.PLAN, "second": kit.OTHER})
    plans = {kit.PLAN: kit.plan(), kit.OTHER: kit.plan("A second look")}
    found = kit.verdict(books, plans=plans, epsilon=1.71)
    page, value = written(
        found, tmp_path / "out", interval={("Harbour", "patients"): Interval(1.69, 1.72)}
    )
    assert [run["title"] for run in value["runs"]] == ["Who is readmitted", "A second look"]
    assert "H29" in value["conditional_on"]
    assert "Anything about the records of the test split" not in page.text
    assert "1.690 to 1.720" in page.text
    assert value["sites"][2]["interval"] == [1.69, 1.72]
    assert "a filter that allows for plans chosen later" in page.text


def test_an_independent_accountant_may_be_asked(verdict: Verdict, tmp_path: Path) -> None:
    asked = intervals(verdict)
    assert set(asked) == {(finding.site, finding.population) for finding in verdict.sites}
    for finding in verdict.sites:
        got = asked[finding.site, finding.population]
        if isinstance(got, Interval):
            assert got.low <= (finding.epsilon or 0) + 1e-3
            assert got.high >= (finding.epsilon or 0) - 2e-2
    missing = dict.fromkeys(asked, NoInterval("it is not installed"))
    page, value = written(verdict, tmp_path / "out", interval=missing)
    assert "it is not installed" in page.text
    assert value["sites"][0]["interval"] is None


def test_the_line_over_time_ends_where_the_verifier_says(verdict: Verdict) -> None:
    from privet.privacy.audit.report.claims import lines

    case = case_of(verdict)
    for line, finding in zip(lines(case, verdict), verdict.sites, strict=True):
        values = [point[-1] for point in line.points]
        assert values == sorted(values)
        assert values[-1] == finding.epsilon
        assert len(values) == 4


def test_a_charge_given_back_lowers_the_line() -> None:
    ledger_state = kit.ledger("North", rounds=3)
    at = next(e for e in reversed(ledger_state.record.entries) if e.kind == "aborted")
    at.predicate["data_opened"] = False
    case = case_of(kit.verdict([ledger_state]))
    [group] = case.groups
    assert [sign for _, sign in group.steps] == [1, 1, 1, -1]
    assert [charge.state for charge in group.charges] == ["released", "released", "returned"]


# --- words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-9), (0.5, 1e-3), (3.0, 1e-5), (30.0, 1e-6)]
)
def test_odds_are_upper_bounds(epsilon: float, delta: float) -> None:
    said = phrases.odds(epsilon, delta)
    gain = math.exp(epsilon)
    for key, least in (("even", gain / (1 + gain)), ("rare", gain / (99 + gain)),
                       ("guess", (gain + delta) / (1 + gain))):  # fmt: skip
        if said[key].startswith("more than"):
            assert least > 0.9989
        else:
            share = float(said[key].removesuffix(" %")) / 100
            assert least - 1e-12 <= share <= least + 0.0011
    assert "100.0 %" not in said.values()


def test_odds_at_log_three() -> None:
    assert phrases.odds(math.log(3), 1e-5) == {
        "even": "75.0 %", "rare": "3.0 %", "guess": "75.1 %", "times": "3.0", "slip": "1 in 100,000",
    }  # fmt: skip


def test_left_is_rounded_down_and_spent_up() -> None:
    assert phrases.figure_of(1.2341) == "1.235"
    assert phrases.left_of(1.2341, 3.0) == "1.765"
    assert phrases.left_of(None, 3.0) == "0"


# --- registry -----------------------------------------------------------------------------

# Of opendp/deployments-registry-data, schemas/deployments-schema.yaml.
REGISTRY = {
    "basic": "name data_curators intended_use data_product_type data_product_region description "
    "publication_date data_product_sector",
    "dp_variant": "variant_name data_domain unprotected_quantities",
    "privacy_loss": "privacy_unit privacy_unit_details privacy_parameters "
    "privacy_parameters_details",
    "deployment_model": "model_name model_name_details actors release_type release_type_details "
    "data_source_type data_source_type_details access_type access_type_details",
    "accounting": "post_processing composition",
    "implementation": "preprocessing_and_hyperparameter_tuning mechanisms justification",
    "administrative": "sources notes registry_authors",
}


def test_the_registry_form_has_the_registrys_fields(folder: Path, verdict: Verdict) -> None:
    value = json.loads((folder / "registry.json").read_text())
    assert set(value) == {"url_slug", "status", "tier", "deployment"}
    assert (value["status"], value["tier"]) == ("Draft", 3)
    deployment = value["deployment"]
    assert set(deployment) == set(REGISTRY)
    for section, fields in REGISTRY.items():
        assert set(deployment[section]) <= set(fields.split())
    basic = deployment["basic"]
    assert set(REGISTRY["basic"].split()) - {"data_product_sector"} == set(basic)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", basic["publication_date"])
    assert re.fullmatch(r"[a-z0-9-]+", value["url_slug"])
    assert basic["data_curators"] == ["North", "East", "South"]
    loss = deployment["privacy_loss"]
    worst = max(finding.epsilon or math.inf for finding in verdict.sites)
    assert loss["privacy_parameters"] == {"epsilon": worst, "delta": 1e-4}
    assert "simulation" in deployment["administrative"]["notes"]


# --- where it goes, and what it needs -----------------------------------------------------


def test_a_report_is_never_overwritten(verdict: Verdict, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never overwritten"):
        write_report(verdict, folder)
    bare = Verdict(True, "pinned", [], [], [])
    with pytest.raises(InputError, match="keep=True"):
        write_report(bare, tmp_path / "new")


def test_an_auditor_needs_neither_torch_nor_flower(
    bundle: Path, tmp_path: Path, root: Path
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from privet.privacy.audit.verify import verify\n"
        "from privet.privacy.audit.report import write_report\n"
        "write_report(verify(Path(sys.argv[1]), keep=True), Path(sys.argv[2]))\n"
        "heavy = {'torch', 'flwr', 'pandas', 'opacus', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), str(tmp_path / "out")],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
