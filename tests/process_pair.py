"""One of two processes that start together: python process_pair.py WHAT.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set which one. In the first process the block
is "slow", far beyond the watchdog's limit, "fails", or "ends" the process; or the processes print
how each "shares" the cores. Prints the result.
"""

import os
import sys
import time

from pipelines.errors import PipelineError
from pipelines.system.process_group import Watchdog, join_processes


def main(what: str) -> None:
    watchdog = Watchdog(limit_s=30, first_report_s=1)
    try:
        with watchdog.watching(), join_processes("cpu", watchdog=watchdog) as processes:
            watchdog.limit_s = 1.5
            if what == "shares":
                print(processes.own_cores())  # noqa: T201
                return
            with processes.together():
                if processes.first and what == "slow":
                    time.sleep(6)
                if processes.first and what == "fails":
                    raise PipelineError("it has failed")
                if processes.first and what == "ends":
                    os._exit(9)
            print(processes.broadcast(b"bytes" if processes.first else None, 0).decode())  # noqa: T201
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
