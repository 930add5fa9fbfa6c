"""Change a real bundle in every way we can think of; none of it may be accepted.

    python campaigns/tamper.py --json                 100,000 mutations
    python campaigns/tamper.py --quick                1,000

A bundle of 3 sites and 20 rounds is made by a simulation, and a second one for replays.
Each mutation changes the first, sets the digest in its last line right again (an opponent
can), and is verified against the pinned roster. Accepted mutations and errors that are not
faults are counted, with what was changed. A first line that is not a bundle's any more is refused
as wrong input, which counts as rejected. Batches of lines that did not change are read
once in a process, and signatures over the same bytes checked once: the answer cannot
differ. All that follows from them is done anew each time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from harness import Row, finish, parser, row, tell

Lines = list[bytes]
Change = Callable[[random.Random, Lines, "Material"], Lines | None]


class Material:
    """The bundles, and keys that are not in the roster."""

    def __init__(self, bundle: Path, roster: Path, other: Path) -> None:
        self.lines = bundle.read_bytes().split(b"\n")[:-1]
        self.other = other.read_bytes().split(b"\n")[:-1]
        self.roster = roster
        self.leaves = [n for n, line in enumerate(self.lines) if line.startswith(b'{"payload"')]


def bit(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """One bit of one byte flipped, anywhere."""
    return _at(rng, lines, rng.randrange(len(lines)), lambda b: b ^ (1 << rng.randrange(8)))


def byte(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """One byte replaced by any other, anywhere; places are drawn line by line."""
    return _at(rng, lines, rng.randrange(len(lines)), lambda b: (b + rng.randrange(1, 256)) % 256)


def digit(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A digit in the readable lines replaced by another digit."""
    return _of_kind(rng, lines, b"0123456789")


def letter(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A letter of a line (base64, hex or a name) replaced by another letter."""
    return _of_kind(rng, lines, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def insert(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A byte put in."""
    number = rng.randrange(len(lines))
    place = rng.randrange(len(lines[number]) + 1)
    lines[number] = lines[number][:place] + bytes([rng.randrange(256)]) + lines[number][place:]
    return lines


def remove(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A byte taken out."""
    number = rng.randrange(len(lines))
    place = rng.randrange(len(lines[number]))
    lines[number] = lines[number][:place] + lines[number][place + 1 :]
    return lines


def drop(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A line dropped."""
    del lines[rng.randrange(len(lines))]
    return lines


def swap(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """Two lines swapped."""
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def duplicate(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A line twice, there or elsewhere."""
    line = rng.choice(lines)
    lines.insert(rng.randrange(len(lines) + 1), line)
    return lines


def replay(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A line of another run put in the place of one of the same kind."""
    number = rng.randrange(len(lines))
    kind = lines[number][:16]
    same = [line for line in material.other if line[:16] == kind]
    if not same:
        return None
    lines[number] = rng.choice(same)
    return lines


def truncate(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """The tail of a log cut off, and its size and last checkpoint made to fit."""
    heads = [n for n, line in enumerate(lines) if line.startswith(b'{"kind":"log"')]
    start = rng.choice(heads)
    value = json.loads(lines[start])
    kept = rng.randrange(value["size"])
    end = next(n for n in range(start + 1, len(lines)) if not _is_leaf(lines[n]))
    last = next(
        n for n in range(end, len(lines)) if not lines[n].startswith(b'{"kind":"checkpoint"')
    )
    notes = [
        line for line in lines[end:last] if int(json.loads(line)["note"].split("\n")[1]) <= kept
    ]
    value["size"] = kept
    head = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return [*lines[:start], head, *lines[start + 1 : start + 1 + kept], *notes, *lines[last:]]


def resign(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """An entry changed and signed again by a key that is not the site's."""
    number = rng.choice([n for n, line in enumerate(lines) if _is_leaf(line)])
    lines[number] = _signed_again(rng, lines[number])
    return lines


def fork(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """From some entry on, a log of one's own: every entry changed and signed again."""
    heads = [n for n, line in enumerate(lines) if line.startswith(b'{"kind":"log"')]
    start = rng.choice(heads)
    size = json.loads(lines[start])["size"]
    first = rng.randrange(size)
    for number in range(start + 1 + first, start + 1 + size):
        lines[number] = _signed_again(rng, lines[number])
    return lines


def uncosign(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A signature line taken out of a checkpoint or a receipt, or put into another one."""
    marked = [n for n, line in enumerate(lines) if b'"note":' in line or b'"proof":' in line]
    number = rng.choice(marked)
    value = json.loads(lines[number])
    key = "note" if "note" in value else "proof"
    body, _, signatures = value[key].rpartition("\n\n")
    kept = signatures.split("\n")[:-1]
    gone = kept.pop(rng.randrange(len(kept)))
    if rng.random() < 0.3:
        kept.insert(rng.randrange(len(kept) + 1), gone.replace("A", "B", 1))
    value[key] = body + "\n\n" + "".join(f"{line}\n" for line in kept)
    lines[number] = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    return lines


def field(rng: random.Random, lines: Lines, material: Material) -> Lines | None:
    """A field of a readable line removed, added, or given another value; still canonical."""
    number = rng.choice([n for n, line in enumerate(lines) if not _is_leaf(line)])
    value = json.loads(lines[number])
    place = value
    while True:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        break
    action = rng.randrange(4)
    if action == 0 and isinstance(place, dict):
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[f"{key}x"] = place[key]
    else:
        others = [0, 1, -1, "", "x", None, True, [], {}, 2**53 - 1, "sha256:" + "0" * 64]
        place[key] = rng.choice(others)
    import rfc8785

    line = rfc8785.dumps(value)
    if line == lines[number]:
        return None
    lines[number] = line
    return lines


CHANGES: dict[str, tuple[Change, int]] = {
    "bit flipped": (bit, 20),
    "byte replaced": (byte, 15),
    "digit replaced": (digit, 8),
    "letter replaced": (letter, 10),
    "byte inserted": (insert, 5),
    "byte removed": (remove, 5),
    "line dropped": (drop, 5),
    "lines swapped": (swap, 6),
    "line duplicated": (duplicate, 4),
    "line of another run": (replay, 6),
    "tail of a log cut": (truncate, 4),
    "signed by another key": (resign, 4),
    "history forked": (fork, 2),
    "signature line changed": (uncosign, 3),
    "field changed": (field, 3),
}


def _at(rng: random.Random, lines: Lines, number: int, change: Callable[[int], int]) -> Lines:
    line = bytearray(lines[number])
    place = rng.randrange(len(line))
    line[place] = change(line[place])
    lines[number] = bytes(line)
    return lines


def _of_kind(rng: random.Random, lines: Lines, alphabet: bytes) -> Lines | None:
    number = rng.randrange(len(lines))
    places = [n for n, value in enumerate(lines[number]) if value in alphabet]
    if not places:
        return None
    line = bytearray(lines[number])
    place = rng.choice(places)
    line[place] = rng.choice([value for value in alphabet if value != line[place]])
    lines[number] = bytes(line)
    return lines


def _is_leaf(line: bytes) -> bool:
    return line.startswith(b'{"payload"')


@functools.cache
def _stranger():  # type: ignore[no-untyped-def]
    from privet.privacy.evidence.keys import FileSigner

    return FileSigner.generate()


def _signed_again(rng: random.Random, line: bytes) -> bytes:
    from privet.privacy.evidence.statement import Entry

    entry = Entry.read(line)
    event = entry.predicate.get("event")
    if event is not None and rng.random() < 0.5:
        entry.predicate["event"] = {"type": "gaussian", "standard_deviation": "99.0",
                                    "sensitivity": "1.0"}  # fmt: skip
    elif rng.random() < 0.5:
        entry.predicate["time"] = entry.predicate["time"].replace("20", "21", 1)
    if rng.random() < 0.5:
        return entry.leaf([_stranger()])
    # The site's own key id kept, over a signature that is not its own.
    made, own = json.loads(entry.leaf([_stranger()])), json.loads(line)
    made["signatures"][0]["keyid"] = own["signatures"][0]["keyid"]
    return json.dumps(made, sort_keys=True, separators=(",", ":")).encode()


def sealed(lines: Lines) -> bytes:
    """Return the file with the digest in its last line set right, if it has such a line."""
    body = b"".join(line + b"\n" for line in lines[:-1])
    last = lines[-1]
    if last.startswith(b'{"kind":"end"'):
        last = b'{"kind":"end","sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
    return body + last + b"\n"


_material: Material


def _work(job: tuple[str, int, int]) -> tuple[str, int, list[str], list[str], Counter[str]]:
    """Try ``count`` mutations of one kind; return those accepted and those that raised.

    A file that does not begin as a bundle any more is refused with InputError: rejected, too.
    """
    from privet.common.errors import InputError
    from privet.privacy.audit.verify import verify

    memoise()
    name, seed, count = job
    rng = random.Random(seed)
    accepted, errors, rules, tried = [], [], Counter[str](), 0
    original = b"\n".join(_material.lines) + b"\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        while tried < count:
            lines = CHANGES[name][0](rng, list(_material.lines), _material)
            if lines is None or not lines:
                continue
            changed = sealed(lines)
            if changed == original:
                continue
            tried += 1
            path.write_bytes(changed)
            try:
                verdict = verify(path, _material.roster, processes=1)
            except InputError as error:
                if changed.split(b"\n", 1)[0] == _material.lines[0]:
                    errors.append(f"{name}, seed {seed}: {error!r}")
                rules["not a bundle"] += 1
                continue
            except Exception as error:
                errors.append(f"{name}, seed {seed}: {error!r}")
                continue
            if verdict.ok:
                accepted.append(f"{name}, seed {seed}: {_difference(lines)}")
            rules.update({fault.rule for fault in verdict.faults})
    return name, tried, accepted, errors, rules


def _difference(lines: Lines) -> str:
    for number, (new, old) in enumerate(zip(lines, _material.lines, strict=False), 1):
        if new != old:
            place = next((n for n, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), -1)
            return f"line {number}, byte {place}: {new[max(0, place - 60) : place + 60]!r}"
    return f"{len(_material.lines)} lines became {len(lines)}"


def memoise() -> None:
    """Let this process read the same batch of lines, and check the same signature, once."""
    from privet.privacy.audit.verify import pool
    from privet.privacy.audit.verify.formats import signatures

    if hasattr(signatures.ed25519, "cache_info"):
        return
    signatures.ed25519 = functools.lru_cache(maxsize=1 << 16)(signatures.ed25519)
    read = pool.Workers._result
    known: dict[object, object] = {}

    def once(self, function, context, lines, future):  # type: ignore[no-untyped-def]
        key = (function.__name__, repr(context), tuple(lines))
        if key not in known:
            if len(known) > 400:
                known.clear()
            known[key] = read(self, function, context, lines, future)
        return known[key]

    pool.Workers._result = once


def _simulate(folder: Path, rounds: int, seed: int) -> Path:
    """Run 3 sites and return the run folder."""
    import privet
    from privet.simulations.starter import write_starter

    write_starter(folder / "plan")
    plan = privet.Plan.load(folder / "plan" / "plan.toml").changed(
        training={"rounds": rounds}, metrics={"source": "gate", "every": 5}, threads=1
    )
    result = privet.simulate(plan, out=folder / "run", base=folder / "plan", seed=seed)
    return result.out


def main() -> None:
    """Run the campaign."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, help="number of mutations")
    options.add_argument("--processes", type=int, default=2)
    arguments = options.parse_args()
    count = arguments.count or (1_000 if arguments.quick else 100_000)
    from privet.privacy.audit.bundle import write_bundle

    global _material
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for place, rounds, seed in (("one", 20, 0), ("other", 5, 1)):
            (folder / place).mkdir()
            run = _simulate(folder / place, 5 if arguments.quick else rounds, seed)
            paths.append(write_bundle([run], folder / f"{place}.bundle").path)
        roster = folder / "one" / "run" / "roster-fingerprints.json"
        _material = Material(paths[0], roster, paths[1])
        rows = _campaign(count, arguments.processes, folder)
    finish(rows, arguments.json, lambda r: f"{r['name']:32} {r['value']:>9g} {r['unit']}")
    if any(r["value"] for r in rows if r["name"] in ("accepted", "errors")):
        sys.exit(1)


def _campaign(count: int, processes: int, folder: Path) -> list[Row]:
    from privet.privacy.audit.verify import verify

    clean = verify(folder / "one.bundle", _material.roster)
    if not clean.ok:
        raise SystemExit(f"the bundle itself has faults: {clean.faults[:3]}")
    weights = sum(weight for _, weight in CHANGES.values())
    jobs = []
    for name, (_, weight) in CHANGES.items():
        share = max(1, count * weight // weights + 1)
        parts = max(1, share // 500)
        jobs += [(name, 1000 * n + len(name), share // parts + 1) for n in range(parts)]
    started, tried = time.monotonic(), Counter[str]()
    accepted: list[str] = []
    errors: list[str] = []
    rules: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for name, done, good, raised, seen in pool.imap_unordered(_work, jobs):
            tried[name] += done
            accepted += good
            errors += raised
            rules += seen
            if sum(tried.values()) // 10_000 != (sum(tried.values()) - done) // 10_000:
                tell(f"{sum(tried.values()):,} mutations, {time.monotonic() - started:.0f} s")
    for text in (accepted + errors)[:20]:
        tell(text)
    rows = [row("mutations", sum(tried.values()), "bundles", None, None)]
    rows += [row(f"  {name}", number, "bundles", None, None) for name, number in tried.items()]
    rows += [
        row("accepted", len(accepted), "bundles", "goal", 0),
        row("errors", len(errors), "exceptions", "goal", 0),
        row("rules that caught them", len(rules), "rules", None, None, rules=dict(rules)),
        row("lines in the bundle", len(_material.lines), "lines", None, None),
        row("time", round(time.monotonic() - started), "s", None, None),
    ]
    return rows


if __name__ == "__main__":
    main()
