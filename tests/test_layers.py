"""Who may import whom: the table of docs/how-it-works.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dsa_profiler"
CORE = {
    "", "errors", "model", "columns", "results", "marks", "plan", "config", "session", "messages",
    "presets",
}  # fmt: skip
DATA = {"numpy", "pandas"}
OUTSIDE = {  # what each folder may import beyond the standard library
    "core": {"tomli"},
    "workloads": {"torch", "tensorrt_llm", "nvtx", "numpy", "deep_gemm", "tomli"},
    "capture": {"pynvml", "ray"},
    "trace": {"numpy", "pyarrow", "connectorx"},
    "analysis": {*DATA, "tomli", "rapidfuzz"},
    "export": {
        "tomli",
        *DATA,
        "sqlite_utils",
        "pyarrow",
        "yaml",
        "aiconfigurator",
        "aiconfigurator_core",
    },
    "report": {*DATA, "plotly", "jinja2", "markupsafe"},
    "pipeline": {"numpy"},
    "cli": {*DATA, "rich", "tomli"},
}
INSIDE = {  # parts of the package beyond the core
    "core": set(),
    "workloads": set(),
    "capture": set(),
    "trace": set(),
    "analysis": set(),
    "export": set(),
    "report": set(),
    "pipeline": {"trace", "analysis", "export"},
    "cli": {"capture", "trace", "analysis", "export", "report", "pipeline"},
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    if name in CORE or name.startswith("__"):
        return "core"
    return name


def imports(path: Path) -> set[str]:
    """Every module that a file may load at run time; blocks for type checkers do not count."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path: Path) -> None:
    part = part_of(path)
    if path.name == "__main__.py":
        return  # hands over to cli, and does nothing else
    for name in imports(path):
        head, *rest = name.split(".")
        if head == "dsa_profiler":
            target = rest[0] if rest else ""
            inside_core = target in CORE or target not in INSIDE
            assert inside_core or target == part or target in INSIDE[part], f"{part} imports {name}"
        elif head not in sys.stdlib_module_names:
            assert head in OUTSIDE[part], f"{part} imports {head}"


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, dsa_profiler.cli, dsa_profiler.cli.verbs\n"
        "heavy = {'torch', 'pandas', 'numpy', 'plotly', 'pyarrow', 'rich', 'sqlite_utils'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
