"""Shakespeare's plays by speaker: a language model learns from eight theatre companies.

Source: the public-domain text of char-rnn. All speeches of a speaker are at one company. A record
is one speech, cut into pieces of at most 40 words; the unit of privacy is the record.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.scenarios import Scenario

_FILE = "shakespeare/input.txt"
_SOURCE = "the plays of Shakespeare as one text (char-rnn, tinyshakespeare)"
_WORDS = 40


def probe(data_dir: Path | None) -> Path:
    """Return the path of the text."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the speeches in pieces: text, speaker, company."""
    rows = []
    for speech in probe(data_dir).read_text(encoding="utf-8").split("\n\n"):
        speaker, mark, text = speech.strip().partition(":\n")
        words = text.split()
        if mark and words:
            rows += [
                {"speaker": speaker, "text": " ".join(words[start : start + _WORDS])}
                for start in range(0, len(words), _WORDS)
            ]
    table = pd.DataFrame(rows)
    return table.assign(site=table["speaker"].map(_companies(table["speaker"])))


def _companies(speakers: pd.Series) -> dict[str, str]:
    """Assign the speakers to companies, those who say most first, each to the smallest."""
    sizes = dict.fromkeys(SCENARIO.sites, 0)
    found = {}
    counts = speakers.value_counts()
    for speaker in sorted(counts.index, key=lambda name: (-counts[name], name)):
        company = min(sizes, key=lambda name: (sizes[name], name))
        found[speaker] = company
        sizes[company] += int(counts[speaker])
    return found


SCENARIO = Scenario(
    name="shakespeare",
    title="What does a character say next? Eight theatre companies, 299 speakers",
    data="shakespeare/ in the data folder (public domain)",
    plain={
        "decoder": {
            # One small step at each company, and Adam at the coordinator: what one site would do
            # with all records. Adam at the sites starts again in each round, and got half as far.
            "training": {
                "clip": None, "rounds": 600, "steps": 1, "sample_rate": 0.0085,
                "learning_rate": 1.0,
            },
            "strategy": {
                "kind": "fedadam", "options": {"eta": 0.003, "tau": 1e-8}, "average_last": 50,
            },
            "metrics": {"every": 50},
        },
    },
    load=load,
    probe=probe,
    attested={"H21": "each speaker is at one company"},
    note="Perplexity is per token of Privet's tokenizer, whose vocabulary was learnt on these "
    "plays, among others.",
)  # fmt: skip
