"""What the how-to pages show is what the commands print: digests, figures and refusals."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: its language, "" for what a command prints.
        text: what is in it.
        before: the paragraph above it.
    """

    kind: str
    text: str
    before: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        above = [part for part in text[: match.start()].split("\n\n") if part.strip()]
        found.append(Block(match[1], match[2], above[-1]))
    return found


def written(block: Block, folder: Path) -> Path:
    """Write a file that a page shows, under the name that stands above it."""
    name = re.findall(r"`([\w./-]+\.(?:toml|py))`", block.before)[-1]
    path = folder / str(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    return path


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run one line of a page; return its exit code and all that it printed."""
    words = shlex.split(command.split(";")[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = os.pathsep.join(filter(None, [value, environment.get(name, "")]))
    if words[0] == "cp":
        *sources, target = words[1:]
        for pattern in sources:
            for path in folder.glob(pattern):
                (folder / target / path.name).write_bytes(path.read_bytes())
        return 0, ""
    assert words[0] == "privet", command
    done = subprocess.run(
        [sys.executable, "-c", "from privet.cli import main; main()", *words[1:]],
        cwd=folder, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def missing(shown: str, printed: str) -> list[str]:
    """Return the lines of a page that were not printed; … stands for anything."""
    there = [line.strip() for line in printed.splitlines()]

    def stands(line: str) -> bool:
        pattern = ".*".join(map(re.escape, line.strip().split("…")))
        return any(re.fullmatch(pattern, other) for other in there)

    return [line for line in shown.splitlines() if line.strip() and not stands(line)]


def test_a_line_that_was_not_printed_is_found() -> None:
    """The control."""
    assert missing("a … c\nb", "x a b c\n a z c \nb") == []
    assert missing("a … c\nb", "a b d\nB") == ["a … c", "b"]


def test_the_budget_page_shows_what_is_printed(root: Path, tmp_path: Path) -> None:
    blocks = blocks_of(root / "docs" / "how-to" / "budget.md")
    policy = next(block for block in blocks if block.kind == "toml")
    outputs = [block for block in blocks if block.kind == "" and "privet budget" not in block.text]
    assert run("privet init mine", tmp_path)[0] == 0
    path = written(policy, tmp_path)
    code, printed = run("privet budget mine/plan.toml mine/site.toml", tmp_path)
    assert (code, missing(outputs[0].text, printed)) == (3, [])
    digest = re.search(r"Digest (sha256:\w+)", printed)
    assert digest is not None
    path.write_text(policy.text.replace("[allow]", f'[allow]\nplans = ["{digest[1]}"]'))
    code, printed = run("privet budget mine/plan.toml mine/site.toml", tmp_path)
    assert (code, missing(outputs[1].text, printed)) == (0, [])
    path.write_text(policy.text.replace("epsilon = 8.0", "epsilon = 2.0"))
    code, printed = run("privet budget mine/plan.toml mine/site.toml", tmp_path)
    assert (code, missing(outputs[2].text, f"{printed}\n{code}")) == (3, [])


@pytest.mark.long
@pytest.mark.slow
def test_the_page_of_own_models_shows_what_is_printed(root: Path, tmp_path: Path) -> None:
    blocks = blocks_of(root / "docs" / "how-to" / "own-model-and-task.md")
    task = next(b for b in blocks if b.kind == "python" and "own/tasks.py" in b.before)
    plan = next(b for b in blocks if b.kind == "toml" and "own/plan.toml" in b.before)
    centred = next(b for b in blocks if b.kind == "python" and "make_centred" in b.text)
    refused = next(b for b in blocks if b.kind == "" and "refused-self-test" in b.text)
    commands = [line for b in blocks if b.kind == "sh" for line in b.text.splitlines()]
    tasks, plan_file = written(task, tmp_path), written(plan, tmp_path)
    for command in dict.fromkeys(commands):
        code, printed = run(command, tmp_path)
        assert code == 0, f"{command}\n{printed}"
    tasks.write_text(task.text + "\n\n" + centred.text)
    changed = plan.text.replace("tasks:make_model", "tasks:make_centred")
    plan_file.write_text(changed.replace("options = { hidden = 8 }\n", ""))
    command = next(line for line in commands if "own/plan.toml" in line)
    code, printed = run(command.replace("run1", "run2"), tmp_path)
    assert (code, missing(refused.text, printed)) == (1, [])
