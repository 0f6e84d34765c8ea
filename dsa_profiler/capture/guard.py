"""A temporary folder that goes away with its owner, however the owner ends.

A process that is killed cleans up nothing, and on a cluster nobody comes back to the node to do it.
So a second process, which outlives the first, waits for the end of a pipe that the owner holds:
the kernel closes it whatever happens. It then ends what still runs in the folder and removes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsa_profiler.capture import child
from dsa_profiler.errors import EnvironmentFault


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A folder for the block; it and every process of its recordings are gone soon afterwards.

    The guard itself makes it, once nothing can end the guard with the owner any more.
    """
    command = [sys.executable, "-m", "dsa_profiler.capture.guard", prefix]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as guard:
        assert guard.stdout is not None
        made = guard.stdout.readline().rstrip("\n")
        if not made:  # Path("") is the working directory, and `home` is removed below
            raise EnvironmentFault(
                "no-temporary-folder",
                "no temporary folder could be made for a recording",
                "free space, or set TMPDIR to a folder that can be written to",
            )
        home = Path(made)
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Wait in a process that is nobody's child: Ray kills the children of a worker it ends."""
    first = os.getpid()
    if os.fork():
        os._exit(0)
    os.setsid()
    while os.getppid() == first:
        time.sleep(0.001)
    home = Path(tempfile.mkdtemp(prefix=sys.argv[1]))
    try:
        print(home, flush=True)
        sys.stdin.read()
    finally:
        child.end(home)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
