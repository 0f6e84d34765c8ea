"""Kernel names without their spelling: what nsys and Kineto print differently, read the same.

A demangled name is parsed by its brackets, not by a pattern: it holds `operator<<`, `->`,
`(anonymous namespace)` and lambdas, and reaches 600 characters. nsys prints `<unnamed>`,
`(int)128`, `(bool)1`, `const float *` and `[lambda(float) (instance 3)]` where Kineto prints
`(anonymous namespace)`, `128`, `true`, `float const*` and `{lambda(float)#3}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

CLOSES = {"<": ">", "(": ")", "[": "]", "{": "}"}
ANONYMOUS = "(anonymous namespace)"
DEEPEST = 64
"""Brackets deeper than any compiler's are read as plain text, so that no name can exhaust us."""

_TOKEN = re.compile(
    r"\boperator\s*(?:\(\)|\[\]|<=>|<<=?|>>=?|->\*?|&&|\|\||\+\+|--|[-+*/%^&|=!<>]=?|[~,])"
    r"|[\w$~.@]+|::|->|\S"
)
_MEMORY = re.compile(r"\[.*\]|Mem(?:cpy|set) .*", re.DOTALL)
_NUMBER = re.compile(r"(\d+)[uUlL]*")
_ARCH = re.compile(r"sm\d{2,3}[af]?")
_ARCH_IN_BASE = re.compile(r"(?:^|_|[a-z](?=Sm))(sm\d{2,3})", re.IGNORECASE)
_TRITON_NUMBER = re.compile(r"(triton_\w+?)_\d+")


@dataclass(slots=True)
class _Group:
    """A bracket and what stands in it."""

    bracket: str
    items: list[_Group | str] = field(default_factory=list)


_NAMELESS: list[_Group | str] = ["anonymous", "namespace"]


@dataclass(frozen=True, slots=True)
class Name:
    """A kernel name taken apart.

    base       last component: no namespace, template arguments, parameters or Triton's number.
    namespace  the components before it, without anonymous ones.
    arch       `sm90` and the like from a namespace or the base; empty where the name is silent.
    template   template arguments of the base, in one spelling.
    canonical  the whole name in one spelling, without return type and parameters.
    """

    base: str
    namespace: tuple[str, ...]
    arch: str
    template: str
    canonical: str


@lru_cache(maxsize=1 << 16)
def parse(text: str) -> Name:
    """Take a demangled (or plain) kernel name apart. Never fails: brackets left open are closed."""
    if _MEMORY.fullmatch(text):
        return Name(text, (), "", "", text)
    parts = _components(_tree(text.replace("<unnamed>", ANONYMOUS)))
    if not parts:
        return Name(text, (), "", "", text)
    base = _TRITON_NUMBER.sub(r"\1", parts[-1][0]) if "triton" in text else parts[-1][0]
    namespace = tuple(name for name, _ in parts[:-1] if name != ANONYMOUS)
    arch = next((n for n in namespace if _ARCH.fullmatch(n)), "")
    if not arch and (match := _ARCH_IN_BASE.search(base)):
        arch = match.group(1).lower()
    spelled = [name + template for name, template in parts[:-1]] + [base + parts[-1][1]]
    return Name(base, namespace, arch, parts[-1][1][1:-1], "::".join(spelled))


def _tree(text: str) -> list[_Group | str]:
    """Tokens nested by their brackets. A closing bracket that closes nothing is a plain token."""
    root = _Group("")
    stack = [root]
    for token in _TOKEN.findall(text):
        if token in CLOSES and len(stack) <= DEEPEST:
            group = _Group(token)
            stack[-1].items.append(group)
            stack.append(group)
        elif len(stack) > 1 and token == CLOSES[stack[-1].bracket]:
            stack.pop()
        else:
            stack[-1].items.append("".join(token.split()) if "operator" in token else token)
    return root.items


def _components(items: list[_Group | str]) -> list[tuple[str, str]]:
    """(name, template arguments) of each part of the qualified name, the outermost first.

    Read from the end: what follows the last parameter list is dropped, and two names without `::`
    between them mark the end of the return type.
    """
    end = len(items)
    for place in range(len(items) - 1, 0, -1):
        item = items[place]
        followed = place + 1 < len(items) and items[place + 1] == "::"
        if _is_parameters(item) and not followed:
            end = place
            break
    parts: list[tuple[str, str]] = []
    place = end - 1
    while place >= 0:
        template = ""
        item = items[place]
        if isinstance(item, _Group) and item.bracket == "<" and place:
            template = _spell([item])
            place -= 1
        while place > 0 and _is_parameters(items[place]):
            place -= 1
        parts.append((_spell([items[place]]), template))
        place -= 1
        if place < 0 or items[place] != "::":
            break
        place -= 1
        if place >= 0 and items[place] == "const":
            place -= 1
    return parts[::-1]


def _is_parameters(item: _Group | str) -> bool:
    return isinstance(item, _Group) and item.bracket == "(" and item.items != _NAMELESS


def _spell(items: list[_Group | str]) -> str:
    """One spelling of a token tree. Iterative brackets, recursive by nesting only."""
    out: list[str] = []
    for argument in _arguments(_without_casts(items)):
        words: list[str] = []
        for item in _const_last(argument):
            piece = _spell_group(item) if isinstance(item, _Group) else _plain(item)
            if words and _is_word(words[-1][-1:]) and _is_word(piece[:1]):
                words.append(" ")
            words.append(piece)
        out.append("".join(words))
    return ",".join(out)


def _spell_group(group: _Group) -> str:
    items = group.items
    if group.bracket in "[(" and items[:1] == ["lambda"] and len(items) == 3:
        instance = items[2]
        if isinstance(instance, _Group) and instance.items[:1] == ["instance"]:
            return f"{{lambda{_spell([items[1]])}#{_spell(instance.items[1:])}}}"
    return f"{group.bracket}{_spell(items)}{CLOSES[group.bracket]}"


def _without_casts(items: list[_Group | str]) -> list[_Group | str]:
    """`(int)128` reads 128 and `(bool)1` reads true."""
    out: list[_Group | str] = []
    for place, item in enumerate(items):
        follower = items[place + 1] if place + 1 < len(items) else ""
        numeric = isinstance(follower, str) and (follower == "-" or follower[:1].isdigit())
        if _is_parameters(item) and numeric and not _names_something(out):
            continue
        before = items[place - 1] if place else ""
        if isinstance(before, _Group) and before.items == ["bool"] and item in ("0", "1"):
            item = "true" if item == "1" else "false"
        out.append(item)
    return out


def _names_something(before: list[_Group | str]) -> bool:
    """Whether a bracket after these items is a parameter list rather than a cast."""
    return bool(before) and isinstance(before[-1], str) and _is_word(before[-1][-1:])


def _arguments(items: list[_Group | str]) -> list[list[_Group | str]]:
    out: list[list[_Group | str]] = [[]]
    for item in items:
        if item == ",":
            out.append([])
        else:
            out[-1].append(item)
    return out


def _const_last(items: list[_Group | str]) -> list[_Group | str]:
    """`const float *` reads `float const*`."""
    if items[:1] != ["const"]:
        return items
    place = next((n for n, item in enumerate(items) if item in ("*", "&")), len(items))
    return [*items[1:place], "const", *items[place:]]


def _plain(token: str) -> str:
    match = _NUMBER.fullmatch(token)
    return match.group(1) if match else token


def _is_word(character: str) -> bool:
    return character.isalnum() or character in "_$"
