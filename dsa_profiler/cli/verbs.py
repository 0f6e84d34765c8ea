"""The table of verbs, the grouped help, and the dispatch to one verb's module.

A verb's module has `add_arguments(parser)` and `run(args) -> int`, and a docstring whose first line
is an example; importing this table loads none of them.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from dsa_profiler import __version__
from dsa_profiler.errors import Exit, UsageError


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its group in the help, its one line, and its module under `dsa_profiler.cli`."""

    group: str
    help: str
    module: str


VERBS: dict[str, Verb] = {
    "run": Verb("record", "profile a grid of cases and report on it", "run"),
    "serve": Verb("record", "record a server for align, one nsys a rank", "serve"),
    "sessions": Verb("record", "what is recorded, and what went wrong", "sessions"),
    "merge": Verb("record", "the sessions of an array job as one", "merge"),
    "analyze": Verb("read", "per-kernel and per-stage times of a trace or session", "analyze"),
    "report": Verb("read", "one offline HTML page of a session", "report"),
    "export": Verb("read", "perf CSVs and tables of a session", "export"),
    "align": Verb("judge", "is the standalone layer what the server runs? gates CI", "align"),
    "compare": Verb("judge", "two sessions: what changed beyond noise; gates CI", "compare"),
    "lint": Verb("judge", "what is wrong with a table of DSA latencies", "lint"),
    "verify": Verb("feed", "ask aiconfigurator for every row of a root of tables", "verify"),
    "explain": Verb("judge", "where a case's time goes, against its floor", "explain"),
    "predict": Verb("foresee", "latencies not measured, with intervals and reasons", "predict"),
    "model": Verb("foresee", "a model's DSA dimensions and layer map", "model"),
    "doctor": Verb("care", "what this machine can record, with cures", "doctor"),
    "bundle": Verb("care", "a session as one file for a colleague", "bundle"),
    "completion": Verb("care", "completion for bash, zsh or fish", "completion"),
    "help": Verb("care", "what a message means, or how a verb is used", "help"),
    "scrub": Verb("care", "a copy of a trace without secrets", "scrub"),
}


NUMBERS = {"int": "whole number", "float": "number"}


def dispatch(argv: list[str]) -> int:
    """Run the verb that `argv` names. Top-level help and version need no verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return int(Exit.OK if argv else Exit.USAGE)
    if argv[0] == "--version":
        print(f"dsa-profiler {__version__}")
        return int(Exit.OK)
    name = argv[0]
    if name not in VERBS:
        raise UsageError("verb-unknown", f"unknown verb {name!r}", _suggest(name))
    args = parser(name).parse_args(argv[1:])
    run = _module(name).run
    if not getattr(args, "silent", False) or getattr(args, "json", False):
        return int(run(args))
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        return int(run(args))


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of a verb. Every verb takes -q: one that does not define it itself is silenced by
    `dispatch`.
    """
    module = _module(name)
    made = _Parser(
        prog=f"dsa-profiler {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(made)
    if "-q" not in made._option_string_actions:
        told = "print nothing but errors"
        made.add_argument("-q", "--quiet", action="store_true", dest="silent", help=told)
    return made


def _module(name: str) -> Any:
    return import_module(f"dsa_profiler.cli.{VERBS[name].module}")


def overview() -> str:
    """The top-level help: verbs by group."""
    lines = [
        "usage: dsa-profiler VERB [options]      (dsa-profiler VERB --help explains one)",
        "",
        "  dsa-profiler run                       profile a grid here, end with a page and tables",
        "",
    ]
    for group in dict.fromkeys(v.group for v in VERBS.values()):
        lines.append(f"{group}:")
        lines += [f"  {n:<12} {v.help}" for n, v in VERBS.items() if v.group == group]
    lines += ["", "exit codes: 0 ok, 1 bug, 2 usage, 3 environment, 4 bad input, 5 partial,"]
    lines += ["            6 a gate failed, 130 interrupted"]
    return "\n".join(lines)


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, VERBS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(VERBS)}"


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line of what, one of the cure, exit 2."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(choices)}"
        name = "/".join(action.option_strings) or action.dest
        raise UsageError("arguments", f"{name}: no such choice: {value!r}", cure)

    def error(self, message: str) -> NoReturn:
        cure = f"see {self.prog} --help"
        if message.startswith("unrecognized arguments: "):
            flag = message.removeprefix("unrecognized arguments: ").split()[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            cure = f"did you mean {near[0]!r}? {cure}" if near else cure
        for kind, told in NUMBERS.items():
            message = re.sub(rf"invalid {kind} value: (.*)", rf"\1 is no {told}", message)
        raise UsageError("arguments", message, cure)
