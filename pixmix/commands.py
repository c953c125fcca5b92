"""The entry points of the commands, which see first that the packages they need are ours."""

import sys
from functools import partial

from pixmix.shadowing import import_beside

MODULES = {
    "pixmix-bench": "pipelines.cli.bench",
    "pixmix-demo": "pipelines.cli.demo",
    "pixmix-eval": "pipelines.cli.evaluate",
    "pixmix-gen": "pipelines.cli.gen",
    "pixmix-shard": "pipelines.cli.shard",
    "pixmix-show": "pipelines.cli.show",
    "pixmix-train": "pipelines.cli.train",
}
"""The module of each command, whose function `main` is the command."""


def _run(name: str) -> None:
    """Run a command, or end with one line where it cannot be imported."""
    try:
        module = import_beside(MODULES[name])
    except ImportError as error:
        sys.exit(f"Error: {error}")
    module.main()


bench = partial(_run, "pixmix-bench")
demo = partial(_run, "pixmix-demo")
evaluate = partial(_run, "pixmix-eval")
gen = partial(_run, "pixmix-gen")
shard = partial(_run, "pixmix-shard")
show = partial(_run, "pixmix-show")
train = partial(_run, "pixmix-train")
