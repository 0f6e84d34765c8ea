"""Example:  dsa-profiler help marks-lost

Say what a message means, or how a verb is used. Without an argument, list the verbs; --all prints
every message and --columns every column of the tables, both as Markdown.
"""

from __future__ import annotations

import argparse
import json
import textwrap

from dsa_profiler import messages
from dsa_profiler.errors import Exit, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="SLUG|VERB", nargs="?")
    parser.add_argument("--all", action="store_true", help="every message, as Markdown")
    parser.add_argument("--columns", action="store_true", help="every column, as Markdown")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.cli import verbs

    if args.json:
        print(json.dumps({"schema": 1, "messages": _chosen(args.topic)}, indent=1))
    elif args.columns:
        from dsa_profiler.export import dictionary

        print(dictionary.document(), end="")
    elif args.all:
        print(messages.document(), end="")
    elif args.topic is None:
        print(verbs.overview())
    elif args.topic in verbs.VERBS:
        return verbs.dispatch([args.topic, "--help"])
    else:
        for slug, text in _chosen(args.topic).items():
            print(f"{slug}\n{textwrap.fill(text, 88, initial_indent='  ', subsequent_indent='  ')}")
    return int(Exit.OK)


def _chosen(topic: str | None) -> dict[str, str]:
    if topic is None:
        return {slug: messages.meaning(slug) or "" for slug in messages.slugs()}
    text = messages.meaning(topic)
    if text is None:
        near = messages.near(topic)
        cure = f"did you mean {near!r}?" if near else "`dsa-profiler help --all` lists them"
        raise UsageError("topic-unknown", f"no verb and no message {topic!r}", cure)
    return {topic: text}
