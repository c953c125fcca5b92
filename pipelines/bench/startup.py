"""How soon the first batch of a large set comes, and what memory it takes, in new processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipelines.bench.results import Goal, Row
from pipelines.bench.timing import Spread, calibrate, variation
from pipelines.shards.index import SAMPLE, write_index
from pipelines.shards.tars import BLOCK, end_tar, write_member
from pipelines.shards.verify import describe_tar

_BATCH = 16
_RUNS = 3

# What a process is told to run: it prints one line of JSON.
_PROGRAM = """
import json, os, sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(1)
imported = time.perf_counter()
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024
before = private() if sys.platform == "linux" else 0.0
from pipelines.loading.loaders import train_loader
loader = train_loader(sys.argv[1], batch_size=int(sys.argv[2]), cache_dir=sys.argv[3])
images, labels = next(iter(loader))
first = time.perf_counter()
after = private() if sys.platform == "linux" else 0.0
print(json.dumps({"torch": imported - start, "first": first - imported, "memory": after - before}))
"""


def write_large_index(folder: Path, content: bytes, n: int) -> Path:
    """Write a set of n samples that all are one picture in one small shard; return its folder."""
    folder.mkdir(parents=True)
    path = folder / "large-0000.tar"
    with path.open("xb") as tar:
        offset = write_member(tar, "00000000.jpg", content)
        end_tar(tar)
        # A hole, as large as headers of so many samples are.
        tar.truncate(max(tar.tell(), BLOCK * n))
    samples = np.zeros(n, SAMPLE)
    samples["size"], samples["offset"] = len(content), offset
    samples["label"] = np.arange(n) % 1000
    write_index(
        folder, name="large", kind="imagefolder", shards=[describe_tar(path, samples)],
        samples=samples, classes=[], extensions=["jpg"], settings={}, versions={},
    )  # fmt: skip
    return folder


def measure_startup(content: bytes, n: int, folder: Path) -> Row:
    """Return a row on the start of a loader of n samples: kernels are compiled, files cached.

    The rate is of starts, from the end of `import torch` to the first batch of 16.
    """
    where = write_large_index(folder / "large", content, n)
    calibrations, found = [calibrate()], []
    for _ in range(_RUNS + 1):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(where), str(_BATCH), str(folder / "cache")],
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(json.loads(done.stdout))
        calibrations.append(calibrate())
    # The first one warms up.
    firsts = [run["first"] for run in found[1:]]
    seconds = Spread.of(firsts).median
    memory = Spread.of([run["memory"] for run in found[1:]]).median
    torch_seconds = Spread.of([run["torch"] for run in found[1:]]).median
    return Row(
        name=f"first batch of {n:,} samples",
        unit="starts/s",
        rate=Spread.of([1 / first for first in firsts]),
        rivals=(),
        goals=(
            Goal(figure="first batch", unit="s", value=seconds, rule="at most", bar=3, aim=3),
            Goal(
                figure="memory above torch", unit="MB", value=memory, rule="at most", bar=200,
                aim=200,
            ),
        ),
        calibration_variation=variation(calibrations),
        details={"seconds": seconds, "megabytes": memory, "import_torch_seconds": torch_seconds},
        remarks=(f"import torch before it: {torch_seconds:.1f} s",),
    )  # fmt: skip
