"""Generate datasets on a Ray cluster of two nodes, one of which is killed during the work.

Run as a script with a folder, it prints a report as JSON. It is a process of its own so that the
threads and warnings of Ray end with it.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipelines.errors import PipelineError
from pipelines.generate import ray
from pipelines.generate.generators import versions_of
from pipelines.generate.ray import joined_cluster
from pipelines.shards.output import Folder
from pipelines.system.processes import RunChunks
from shard_sets import run_here
from stripes import Stripes, image_set, make, sharded, tree

N = 16
# A node counts as lost after a few seconds instead of 15.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}


def generate_files(folder: Path, generator: Stripes, run: RunChunks) -> None:
    assert make(image_set(folder, generator, n=N, jobs=9), run=run).complete


def generate_shards(folder: Path, generator: Stripes, run: RunChunks) -> None:
    asked = sharded(Folder(path=folder), generator, n=N, jobs=9, shard_size=4)
    assert make(asked, run=run).complete


def parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/stat")
    try:
        return int(status.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kill_when_it_generates(cluster: Cluster, node: Any, journal: Path, killed: list[int]) -> None:  # noqa: ANN401
    """Kill a node as soon as one of its processes has started an image."""
    raylet = node.all_processes["raylet"][0].process.pid
    while not killed:
        notes = [note.read_text().split() for note in journal.iterdir()]
        killed += {int(each) for note in notes for each in note if parent_of(int(each)) == raylet}
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)


def with_a_killed_node(
    cluster: Cluster, scratch: Path, generate: Callable[[Path, Stripes, RunChunks], None]
) -> dict[str, Any]:
    name = generate.__name__
    generate(scratch / f"{name}-alone", Stripes(), run_here)
    journal = scratch / f"{name}-journal"
    journal.mkdir()
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    generator = Stripes(journal=journal, pause=0.2)
    killed: list[int] = []
    folder = scratch / name
    with joined_cluster(cluster.address) as joined:
        killer = threading.Thread(
            target=kill_when_it_generates, args=(cluster, node, journal, killed)
        )
        killer.start()
        generate(folder, generator, joined.runner(partial(versions_of, generator, "png"), folder))
        killer.join()
    notes = [note.read_text().split() for note in journal.iterdir()]
    return {
        "equal": tree(folder) == tree(scratch / f"{name}-alone"),
        "images": len(notes),
        "generated twice": sum(len(note) > 1 for note in notes),
        "by the killed node": sum(int(each) in killed for note in notes for each in note),
    }


def troubles(cluster: Cluster, scratch: Path) -> dict[str, str]:
    """Return the error of each kind of failure in a task."""
    ray._MAX_RETRIES = 1
    errors = {}
    with joined_cluster(cluster.address) as joined:
        for trouble in ("disk", "memory", "mistake", "killed"):
            generator = Stripes(trouble=trouble, trouble_at=5)
            folder = scratch / trouble
            try:
                generate_files(
                    folder,
                    generator,
                    joined.runner(partial(versions_of, generator, "png"), folder),
                )
            except (PipelineError, ValueError) as error:
                errors[trouble] = f"{type(error).__name__}: {error}"
    return errors


def main(scratch: Path) -> None:
    settings = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        report = {
            "files": with_a_killed_node(cluster, scratch, generate_files),
            "shards": with_a_killed_node(cluster, scratch, generate_shards),
            "troubles": troubles(cluster, scratch),
        }
    finally:
        cluster.shutdown()
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
