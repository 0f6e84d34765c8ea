"""Example:  dsa-profiler completion bash

Print a completion script for bash, zsh or fish: verbs, and the options of each verb. In the
start-up file of bash or zsh:  eval "$(dsa-profiler completion bash)"
of fish:  dsa-profiler completion fish | source
"""

from __future__ import annotations

import argparse
import json

from dsa_profiler.errors import Exit

PROGRAM = "dsa-profiler"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(SHELLS))
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    script = SHELLS[args.shell]()
    if args.json:
        print(json.dumps({"schema": 1, "shell": args.shell, "script": script}))
    else:
        print(script, end="")
    return int(Exit.OK)


def _options() -> dict[str, list[str]]:
    """Verb -> its options, asked of each verb's own parser."""
    from dsa_profiler.cli import verbs

    parsers = {name: verbs.parser(name) for name in verbs.VERBS}
    return {name: sorted(p._option_string_actions) for name, p in parsers.items()}


def _bash() -> str:
    options = _options()
    cases = "\n".join(
        f'    {verb}) words="{" ".join(found)}" ;;' for verb, found in options.items()
    )
    return f"""_dsa_profiler() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _dsa_profiler {PROGRAM}
"""


def _zsh() -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    from dsa_profiler.cli.verbs import VERBS

    lines = []
    for verb, options in _options().items():
        told = VERBS[verb].help.replace("\\", "").replace("'", "")
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {verb} -d '{told}'")
        for option in options:
            kind = "l" if option.startswith("--") else "s"
            seen = f"'__fish_seen_subcommand_from {verb}'"
            lines.append(f"complete -c {PROGRAM} -n {seen} -{kind} {option.lstrip('-')}")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
