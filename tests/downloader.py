"""Download an address: a process that test_remote.py starts many times, and kills.

Arguments: URL SHA256 N_BYTES CACHE SECONDS. Prints "held" when the file is complete, and holds it
for SECONDS before the exit.
"""

import sys
import time
from pathlib import Path

from pipelines.shards.cache import ShardCache
from pipelines.shards.remote import fetch
from pipelines.system.objects import RemoteAccess


def main(url: str, sha256: str, n_bytes: str, folder: str, seconds: str) -> None:
    cache = ShardCache(folder=Path(folder))
    access = RemoteAccess(attempts=3, first_wait_s=0.01, stall_s=20)
    with fetch(url, sha256=sha256, n_bytes=int(n_bytes), cache=cache, access=access):
        print("held", flush=True)  # noqa: T201
        time.sleep(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
