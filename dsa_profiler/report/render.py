"""One offline HTML page: everything inlined, nothing fetched, no script but ours can run.

The Content-Security-Policy allows no source at all except the inline scripts whose hashes it lists,
so that a hostile kernel or host name stays text even if escaping failed. Same input, same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dsa_profiler.report import charts, view
from dsa_profiler.report.charts import Line
from dsa_profiler.results import Results
from dsa_profiler.session import Session, write_atomic

PACKAGE = "dsa_profiler.report"


def write(
    results: Results, session: Session | None, path: Path, lines: Sequence[Line] = ()
) -> Path:
    """The page of a session, or of a bare trace where `session` is None.

    lines  floors, predictions or shipped rows to draw beside the measured latencies.
    """
    shown = view.session_view(results, session, lines)
    return page("session.html", path, data=shown.pop("data"), scripts=SESSION_SCRIPTS, **shown)


SESSION_SCRIPTS = ("page.js", "charts.js", "drawer.js", "session.js")


def page(
    template: str,
    path: Path,
    *,
    data: object,
    scripts: Sequence[str] = ("page.js",),
    styles: Sequence[str] = ("page.css",),
    plotly: bool = True,
    **values: Any,
) -> Path:
    """Render a template that extends `base.html`, and replace `path` atomically.

    data     becomes JSON in `<script type="application/json" id="data">`.
    scripts  assets, in order, as are `styles`; `plotly` brings plotly.js along, packed, for
             charts.js to unpack.
    values   the template's own; `title` and `version` are the base's.
    """
    code = [asset(name) for name in scripts]
    library = [plotly_js()] if plotly else []
    html = (
        _environment()
        .get_template(template)
        .render(
            csp=policy([*code, *library]),
            style="".join(asset(name) for name in styles) + charts.css(),
            data=json_for_html(data),
            scripts=code,
            packed=packed_plotly() if plotly else "",
            **values,
        )
    )
    write_atomic(path, html)
    return path


def policy(scripts: Sequence[str]) -> str:
    """A policy of none: no origin, no network; only these very scripts run."""
    hashes = " ".join(f"'sha256-{_sha256(code)}'" for code in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def json_for_html(value: object) -> str:
    """JSON that cannot leave its script element: `<`, `>` and `&` are escaped.

    Line separators go too, and with them every character beyond ASCII, so that a right-to-left
    mark in a kernel name is visible in the source.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    return resources.files(PACKAGE).joinpath("assets", name).read_text("utf-8")


@cache
def plotly_js() -> str:
    """plotly.js as the installed package carries it. Read as data: importing plotly is slow."""
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")


@cache
def packed_plotly() -> str:
    """plotly.js as base64 of gzip: a page of 2.5 MB instead of 5.5, and tables before charts."""
    return base64.b64encode(gzip.compress(plotly_js().encode(), 6, mtime=0)).decode("ascii")


def _sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
