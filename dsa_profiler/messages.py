"""What every slug of an error, a warning or a finding means: the source of `help` and the docs."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from importlib import resources
from types import MappingProxyType

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAD = """# Messages

Every error is one line of what happened, with its slug in brackets, and one line of cure; warnings
and findings carry a slug as well. `dsa-profiler help SLUG` prints an entry of this page.
"""


@cache
def sections() -> MappingProxyType[str, dict[str, str]]:
    """Section -> slug -> meaning, in the order of the file."""
    text = resources.files("dsa_profiler").joinpath("messages.toml").read_text("utf-8")
    return MappingProxyType(tomllib.loads(text))


def meaning(slug: str) -> str | None:
    """What a slug means; None for one that does not exist."""
    return next((entries[slug] for entries in sections().values() if slug in entries), None)


def slugs() -> tuple[str, ...]:
    return tuple(slug for entries in sections().values() for slug in entries)


def near(slug: str) -> str | None:
    """The slug that was probably meant."""
    found = difflib.get_close_matches(slug, slugs(), n=1)
    return found[0] if found else None


def document() -> str:
    """docs/messages.md."""
    parts = [HEAD]
    for section, entries in sections().items():
        parts.append(f"## {section}\n")
        parts += [f"### {slug}\n\n{text}\n" for slug, text in entries.items()]
    return "\n".join(parts)
