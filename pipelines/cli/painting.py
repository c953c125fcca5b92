"""What the commands of `pixmix-gen` share: where a set goes, what paints it, what is said of it."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import SHEET_IMAGES, progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.generate.painted_shards import ShardedResult
    from pipelines.generate.painting import Painter
    from pipelines.generate.ray_runs import RayCluster
    from pipelines.generate.sets import SetRequest, SetResult
    from pipelines.system.processes import Run

SHARD_SIZE = 1000

_ALL_OF_A_CLUSTER = 10**9
"""Tasks at once: as many as it can run."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a set goes. shard_size: None for files of pictures."""

    name: str
    out: str
    shard_size: int | None
    sheet: Path | None


def find_target(
    name: str,
    out: str | None,
    shard_size: int | None,
    sheet: Path | None,
    *,
    to_shards: bool,
    absolute: bool,
) -> Target:
    """Return where a set goes.

    absolute: whether a folder is to be named so that other processes find it, too.

    Raises:
        click.UsageError: if the options do not go together.
    """
    from pipelines.system.objects import is_remote, local_path, shown

    if not to_shards:
        if shard_size is not None:
            raise click.UsageError("--shard-size is of shards; give --to-shards too")
        out = out or f"mixing-set/{name}"
        if is_remote(out):
            raise click.UsageError(
                f"--out {shown(out)} is an address, to which pictures go in shards; give "
                "--to-shards too, or a folder"
            )
        _check_sheet(sheet, Path(out))
        return Target(
            name=name,
            out=str(Path(out).absolute()) if absolute else out,
            shard_size=None,
            sheet=sheet,
        )
    if sheet is not None:
        raise click.UsageError(
            "--sheet draws files of pictures; leave it out with --to-shards, and draw the shards "
            f"afterwards: pixmix-show set DIR --sheet {sheet}"
        )
    out = out or f"shards/{name}"
    if absolute and not is_remote(out):
        out = str(local_path(out).absolute())
    return Target(name=name, out=out, shard_size=shard_size or SHARD_SIZE, sheet=None)


def _check_sheet(sheet: Path | None, out: Path) -> None:
    if sheet is not None and sheet.resolve().is_relative_to(out.resolve()):
        raise click.BadParameter(
            f"{sheet} lies inside the set, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint="'--sheet'",
        )
    if sheet is not None:
        from pipelines.errors import PipelineError
        from pipelines.system.files import check_writable

        try:
            check_writable(sheet.parent, "--sheet")
        except PipelineError as error:
            raise click.BadParameter(str(error), param_hint="'--sheet'") from error


def check_cluster(address: str | None, task_index: int | None, num_tasks: int | None) -> None:
    """Refuse options that a cluster of Ray has no use for.

    Raises:
        click.UsageError: if there are such.
    """
    if address is not None and not (task_index is None and num_tasks is None):
        raise click.UsageError(
            "--ray shares the work among machines itself; leave out --task-index and --num-tasks"
        )


@contextmanager
def joined(
    address: str | None, *, jobs: int | None, gpus_per_task: float = 0.0
) -> "Iterator[RayCluster | None]":
    """Join the cluster of --ray, if that is given."""
    if address is None:
        yield None
        return
    from pipelines.generate.ray_runs import joined_cluster

    with joined_cluster(address or None, gpus_per_task=gpus_per_task, jobs=jobs) as cluster:
        yield cluster


def jobs_at_once(jobs: int | None, cluster: "RayCluster | None") -> int:
    """Return how many processes paint at once where the user does not say."""
    from pipelines.system.processes import available_cores

    return jobs or (available_cores() if cluster is None else _ALL_OF_A_CLUSTER)


def jobs_that_share(cluster: "RayCluster") -> int:
    """Return how many tasks share the memory of a machine, or of a GPU."""
    from pipelines.system.processes import available_cores

    return max(1, int(1 / cluster.num_gpus)) if cluster.num_gpus else available_cores()


def earlier_settings_of(target: Target) -> dict[str, Any]:
    """Return the settings of the set so far, none where there is no set."""
    from pipelines.generate.painted_shards import settings_so_far
    from pipelines.generate.sets import earlier_settings
    from pipelines.shards.output import open_output

    if target.shard_size is None:
        return earlier_settings(Path(target.out))
    return settings_so_far(open_output(target.out))


def make_set(
    target: Target,
    painter: "Painter",
    *,
    n: int,
    format: str,
    chunk: int,
    jobs: int,
    task: tuple[int, int],
    cluster: "RayCluster | None",
) -> tuple[str, dict[str, Any]]:
    """Make the set and show it; return what there is to say of it, as text and for machines."""
    task_index, num_tasks = task
    if target.shard_size is not None:
        from pipelines.generate.painted_shards import ShardedRequest, paint_set
        from pipelines.shards.output import Folder, open_output

        place = open_output(target.out)
        sharded = ShardedRequest(
            place=place,
            painter=painter,
            n=n,
            name=target.name,
            format=format,
            shard_size=target.shard_size,
            chunk=chunk,
            jobs=jobs,
            task_index=task_index,
            num_tasks=num_tasks,
        )
        folder = place.path if isinstance(place, Folder) else None
        run = _run_on(cluster, painter, format, folder)
        with progress_bar("pictures") as progress:
            made = paint_set(sharded, run=run, progress=progress)
        text = sharded_summary(made, closing=num_tasks == 1)
        return text, sharded_document(made)
    from pipelines.generate.sets import SetRequest, generate_set

    request = SetRequest(
        folder=Path(target.out),
        painter=painter,
        n=n,
        format=format,
        chunk=chunk,
        jobs=jobs,
        task_index=task_index,
        num_tasks=num_tasks,
    )
    run = _run_on(cluster, painter, format, request.folder)
    with progress_bar("pictures") as progress:
        result = generate_set(request, run=run, progress=progress)
    if target.sheet is not None:
        _write_sheet(target.sheet, request)
    sheet = target.sheet
    return _summary(request, result, sheet), _document(request, result, sheet)


def _run_on(
    cluster: "RayCluster | None", painter: "Painter", format: str, folder: Path | None
) -> "Run":
    """Return how chunks are run: by processes here, kernels first, or as tasks of a cluster.

    folder: that the pictures go to; None if it is a store.
    """
    if cluster is None:
        return partial(_run_here, painter.kind())
    from pipelines.generate.ray_runs import versions_here

    return cluster.runner(partial(versions_here, painter, format), folder)


def _run_here(kind: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as of Run
    """Call `run_chunks`, with kernels that have been compiled: only where there is work to do."""
    from fractals import BASELINES
    from fractals.sampling import pending, pending_of_baselines
    from pipelines.system.processes import compile_kernels, run_chunks

    if kind == "fractals":
        compile_kernels(pending)
    elif kind in BASELINES:
        compile_kernels(pending_of_baselines)
    run_chunks(*arguments, **options)


def _write_sheet(sheet: Path, request: "SetRequest") -> None:
    """Write a contact sheet of pictures spread over those that are whole."""
    from pipelines.generate.encoding import decode
    from pipelines.generate.plan import spread
    from pipelines.report.figures import contact_sheet, write_image
    from pipelines.shards.images import read_image_file

    names = sorted(path for path in request.images.glob(f"[0-9]*.{request.format}"))
    chosen = [names[position] for position in spread(SHEET_IMAGES, len(names))]
    write_image(contact_sheet([decode(read_image_file(path)) for path in chosen]), sheet)


def _summary(request: "SetRequest", result: "SetResult", sheet: Path | None) -> str:
    if result.complete:
        text = (
            f"{result.n} pictures in {request.images} ({result.painted} of them new); "
            f"{result.manifest['acceptance_rate']:.0%} of the drafts were kept"
        )
    else:
        text = (
            f"{result.whole} of {result.n} pictures in {request.images} "
            f"({result.painted} of them new); the other tasks make it complete"
        )
    return text if sheet is None else f"{text}\na sheet of them in {sheet}"


def _document(request: "SetRequest", result: "SetResult", sheet: Path | None) -> dict[str, Any]:
    return {
        "folder": str(request.folder),
        "images": str(request.images),
        "pictures": result.n,
        "whole": result.whole,
        "painted": result.painted,
        "complete": result.complete,
        "acceptance_rate": result.manifest.get("acceptance_rate"),
        "sheet": None if sheet is None else str(sheet),
    }


def sharded_summary(result: "ShardedResult", *, closing: bool = False) -> str:
    """Return how a set of shards stands, in a line, and what to do.

    closing: it was to be closed; else other tasks may be painting what is missing.
    """
    from pipelines.generate.painted_shards import missing_ranges

    if result.complete:
        shards = "1 shard" if result.n_shards == 1 else f"{result.n_shards:,} shards"
        return f"{result.place}: complete; {result.n:,} pictures in {shards}"
    whole = result.n_shards - len(result.missing)
    text = f"{result.place}: {whole:,} of {result.n_shards:,} shards"
    if not result.missing:
        return f"{text}; pixmix-gen merge {result.place} closes the set"
    missing = missing_ranges(result.missing)
    if not closing:
        return (
            f"{text}; other tasks make {missing}; when they have ended, pixmix-gen merge "
            f"{result.place} closes the set, or says what is missing"
        )
    return (
        f"{text}; missing are {missing}: give again the command that began the set, as any tasks "
        f"or as one, which makes these alone, then pixmix-gen merge {result.place}"
    )


def sharded_document(result: "ShardedResult") -> dict[str, Any]:
    """Return how a set of shards stands, for machines."""
    from pipelines.generate.plan import ranges_of

    return {
        "place": result.place,
        "pictures": result.n,
        "painted": result.painted,
        "shards": result.n_shards,
        "missing": [[each.start, each.stop - 1] for each in ranges_of(result.missing)],
        "complete": result.complete,
    }
