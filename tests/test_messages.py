"""Every slug in the code is explained, and no explanation is of a slug that is gone."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from dsa_profiler import errors, messages
from dsa_profiler.cli import main

ROOT = Path(__file__).parents[1]
RAISERS = {
    name
    for name, thing in vars(errors).items()
    if isinstance(thing, type) and issubclass(thing, (errors.DsaError, errors.Warn))
} | {"Finding", "Problem"}


def slugs_in_code():
    """(slug or pattern, place) of every first argument of an error, a warning or a finding."""
    for path in sorted((ROOT / "dsa_profiler").rglob("*.py")):
        text = path.read_text("utf-8")
        other = "analysis.alignment import" in text  # its Finding is a kernel, and has no slug
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            pattern = pattern_of(node.args[0])
            if name in RAISERS and pattern and not (other and name == "Finding"):
                yield pattern, f"{path.relative_to(ROOT)}:{node.lineno}"


def pattern_of(node):
    """A regular expression for a slug; None where it comes from another message."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value) if node.value else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+"
            for part in node.values
        )
    if isinstance(node, ast.IfExp):
        return f"(?:{pattern_of(node.body)}|{pattern_of(node.orelse)})"
    return None


FOUND = sorted(set(slugs_in_code()))


def test_every_slug_in_the_code_is_explained():
    known = messages.slugs()
    missing = [f"{p} ({where})" for p, where in FOUND if not any(re.fullmatch(p, s) for s in known)]
    assert missing == [], "explain them in dsa_profiler/messages.toml"


def test_every_explanation_is_of_a_slug_in_the_code():
    stale = [s for s in messages.slugs() if not any(re.fullmatch(p, s) for p, _ in FOUND)]
    assert stale == []


def test_no_slug_is_explained_twice():
    assert len(set(messages.slugs())) == len(messages.slugs())
    assert all(text.endswith(".") for s in messages.slugs() if (text := messages.meaning(s)))


def test_the_docs_are_generated():
    kept = (ROOT / "docs" / "messages.md").read_text("utf-8")
    assert kept == messages.document(), "python -m dsa_profiler help --all > docs/messages.md"


def test_help_explains_a_slug_a_verb_and_all(capsys):
    assert main(["help", "marks-lost"]) == 0
    assert capsys.readouterr().out.startswith("marks-lost\n  The recording ran")
    with pytest.raises(SystemExit):
        main(["help", "model"])
    assert "Example:  dsa-profiler model" in capsys.readouterr().out
    assert main(["help"]) == 0
    assert "usage: dsa-profiler" in capsys.readouterr().out
    assert main(["help", "--all"]) == 0
    assert capsys.readouterr().out == messages.document()
    assert main(["help", "grid-empty", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["messages"]) == ["grid-empty"]


def test_an_unknown_topic_gets_a_guess(capsys):
    assert main(["help", "marks-lots"]) == 2
    assert capsys.readouterr().err == (
        "error: no verb and no message 'marks-lots' [topic-unknown]\n"
        " cure: did you mean 'marks-lost'?\n"
    )
