"""analysis.sqlite without us: `python examples/slowest_against_the_floor.py analysis.sqlite`.

The stages that are furthest from what the hardware allows, by time lost; plain SQL on the standard
library, as in Datasette. Without a known GPU there is no floor, and it says so.
"""

from __future__ import annotations

import sqlite3
import sys

QUERY = """
select [case], stage, (median_ns - floor_ns) / 1e6 as lost_ms, roofline_share
from stages where floor_ns is not null order by lost_ms desc limit 10
"""


def main(path: str) -> None:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    rows = database.execute(QUERY).fetchall()
    for case, stage, lost, share in rows:
        print(f"{case}  {stage:<20} {lost:8.3f} ms above its floor, at {share:.0%} of it")
    if not rows:
        print("no floors: the session's GPU is not among the known ones")


if __name__ == "__main__":
    main(sys.argv[1])
