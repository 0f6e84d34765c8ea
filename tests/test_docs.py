"""The documents hold: every command that they show exists, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dsa_profiler.cli import verbs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:\S*/)?dsa-profiler$")
INLINE = re.compile(r"`dsa-profiler ([^`]+)`")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The arguments of every call of the tool in a code block, as a shell would split them."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        call: list[str] | None = None
        previous = ["", ""]
        for word in words:
            module = (*previous, word)[-2:] == ("-m", "dsa_profiler")
            if module or (COMMAND.fullmatch(word) and call is None):
                found.append(call := [])
            elif word[0] in "|&;<>":
                call = None
            elif call is not None:
                call.append(word)
            previous = [previous[1], word]
    return found


def shown(page: Path) -> list[list[str]]:
    return [call for block in blocks(page.read_text("utf-8")) for call in commands(block)]


def test_commands_are_found_as_a_shell_splits_them() -> None:
    block = (
        "$ .venv/bin/dsa-profiler run -q  # why\ndsa-profiler \\\n lint x && y -m dsa_profiler\n"
    )
    assert commands(block) == [["run", "-q"], ["lint", "x"], []]
    assert sum(len(shown(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_in_a_block_can_be_parsed(page: Path) -> None:
    for verb, *words in filter(None, shown(page)):
        if verb != "--help":
            verbs.parser(verb).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_verb_and_flag_in_a_sentence_exists(page: Path) -> None:
    """Sentences leave arguments out, so only verbs and flags are looked at."""
    for text in INLINE.findall(page.read_text("utf-8")):
        verb, *words = text.split()
        if verb not in verbs.VERBS:
            assert verb in ("VERB", "X", "--help", "--version"), text
            continue
        known = verbs.parser(verb)._option_string_actions
        flags = [w.strip("[]().,").partition("=")[0] for w in words if w.lstrip("[(")[:1] == "-"]
        assert set(flags) <= known.keys(), text


def test_every_help_example_can_be_parsed() -> None:
    for verb in verbs.VERBS:
        parser = verbs.parser(verb)
        example = (parser.description or "").splitlines()[0].removeprefix("Example:")
        ((named, *words),) = commands(example)
        assert named == verb
        parser.parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [p.name for p in PAGES[2:] if f"docs/{p.name}" not in readme] == []
