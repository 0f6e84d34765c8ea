"""The command line: one verb a file, loaded only when called.

Results go to stdout, all else to stderr. An error is one line of what, with the slug that `help`
explains, and one of the cure; its traceback goes to a log file, never to the user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dsa_profiler.errors import DsaError, EnvironmentFault, Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    from dsa_profiler.cli import verbs

    try:
        return verbs.dispatch(list(sys.argv[1:] if argv is None else argv))
    except DsaError as error:
        return _told(error)
    except ModuleNotFoundError as error:
        if (error.name or __package__).startswith(__package__.partition(".")[0]):
            print(f"error: {_log_bug(error)}", file=sys.stderr)
            return int(Exit.BUG)
        return _told(_missing(error))
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return int(Exit.OK)
    except Exception as error:
        print(f"error: {_log_bug(error)}", file=sys.stderr)
        return int(Exit.BUG)


def _told(error: DsaError) -> int:
    print(f"error: {_line(error.what)} [{error.slug}]", file=sys.stderr)
    print(f" cure: {_line(error.cure)}", file=sys.stderr)
    return int(error.exit_code)


def _missing(error: ModuleNotFoundError) -> EnvironmentFault:
    """A dependency left out, as on machines without a network."""
    return EnvironmentFault(
        "dependency-missing",
        f"the Python package {error.name} is not installed",
        "pip install dsa-profiler with its dependencies; `run --record-only` needs fewer",
    )


def _line(text: str) -> str:
    """One line, whatever a file's name or a library's message holds."""
    return " ".join(text.split())


def _log_bug(error: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="dsa-profiler-bug-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    return (
        f"a bug in dsa_profiler ({type(error).__name__}: {error})\n"
        f" cure: please report it with the log {log.name}"
    )
