"""A child process and all that it starts: launched apart, found again by a token, ended for sure.

nsys moves its agent and the profiled program into sessions of their own, so a process group does
not hold them together. The environment does: every process of a recording carries the recording's
folder in `DSA_PROFILER_CHUNK`, and nothing without that token is ever signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TOKEN = "DSA_PROFILER_CHUNK"
LOG = "log.txt"


def launch(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that Ctrl-C reaches only the parent.

    Its output goes to `log.txt` in `folder`; it reads nothing.
    """
    env = {**os.environ, **environment, TOKEN: str(folder.resolve())}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )


def members(folder: Path) -> list[int]:
    """Living processes of the recordings in or under `folder`."""
    return [pid for pid in _pids() if pid != os.getpid() and _belongs(pid, folder)]


def send(pid: int, folder: Path, number: signal.Signals) -> bool:
    """Signal `pid` if it belongs to `folder`; the handle is taken first, so no other can be hit."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _belongs(pid, folder):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def end(folder: Path, grace_s: float = 5.0) -> None:
    """End every process of the recordings under `folder`: asked first, killed after the grace."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for pid in members(folder):
            send(pid, folder, number)
        deadline = time.monotonic() + wait_s
        while members(folder):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def log_tail(folder: Path, lines: int = 1) -> str:
    """The last `lines` lines that say something in the log of a recording."""
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    said = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(said[-lines:])


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _belongs(pid: int, folder: Path) -> bool:
    try:
        blob = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    prefix = f"{TOKEN}=".encode()
    home = os.fsencode(folder.resolve())
    for entry in blob.split(b"\0"):
        if entry.startswith(prefix):
            value = entry[len(prefix) :]
            return value == home or value.startswith(home + b"/")
    return False
