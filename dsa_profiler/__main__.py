"""`python -m dsa_profiler` is the console script `dsa-profiler`."""

import sys

from dsa_profiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
