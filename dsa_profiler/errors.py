"""What can go wrong, told in two lines: what happened, and what cures it.

Every error a user can meet is a `DsaError` with a slug; the command line prints the two lines and
leaves with the exit code of its class. Warnings are values (`Warn`), carried in results.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, a contract with whoever gates CI on them."""

    OK = 0
    BUG = 1
    USAGE = 2
    ENVIRONMENT = 3
    BAD_INPUT = 4
    PARTIAL = 5
    GATE = 6
    INTERRUPTED = 130


class DsaError(Exception):
    """An error with a stable slug, one line of what happened and one line of cure."""

    exit_code = Exit.BUG

    def __init__(self, slug: str, what: str, cure: str) -> None:
        super().__init__(what)
        self.slug = slug
        self.what = what
        self.cure = cure

    def __reduce__(self) -> tuple[type[DsaError], tuple[str, str, str]]:
        return type(self), (self.slug, self.what, self.cure)


class UsageError(DsaError):
    """The command line or a configuration asks for something that does not exist."""

    exit_code = Exit.USAGE


class EnvironmentFault(DsaError):
    """The machine lacks something: no GPU, no nsys, a missing package."""

    exit_code = Exit.ENVIRONMENT


class InputError(DsaError):
    """A file that was handed in cannot be what it should be."""

    exit_code = Exit.BAD_INPUT


class Partial(DsaError):
    """Some cases failed; what was finished is kept."""

    exit_code = Exit.PARTIAL


class GateFailed(DsaError):
    """A check that gates CI did not pass."""

    exit_code = Exit.GATE


class Interrupted(DsaError):
    """The user pressed Ctrl-C; what was finished is kept."""

    exit_code = Exit.INTERRUPTED


@dataclass(frozen=True, slots=True, order=True)
class Warn:
    """A warning as a value: a slug, what was seen, and what to do about it."""

    slug: str
    what: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        return {"slug": self.slug, "what": self.what, "cure": self.cure}
