"""The settings of trainings side by side: those that differ, and all of them as CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from pipelines.provenance.run_record import RunRecord, Session
from pipelines.report.headlines import HEADLINES
from pipelines.report.run_files import Run
from pipelines.system.files import printable, write_file

_HASH_DIGITS = 12
"""That are shown of a hash."""

UNKNOWN = "-"
"""Stands for a setting of a run that does not tell it."""


def differing_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the settings that differ between runs, a row each, of a cell a run.

    The first row has the runs' names. Data and mixing sets differ by their hashes, not by where
    they lie. Of versions, code and machine, each session's counts. Runs without run.json are not
    compared.
    """
    settings = [dict(_settings(run.record)) if run.record else {} for run in runs]
    known = [each for each in settings if each]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({each.get(name) for each in known}) > 1]
    header = ("", *(run.name for run in runs))
    return [
        header,
        *((name, *(each.get(name, UNKNOWN) for each in settings)) for name in differing),
    ]


def _settings(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Give the settings of a run as name and text, in the order of a table."""
    yield from ((name, _text(value) or "none") for name, value in _flat(record.settings.recipe))
    for use, data in record.settings.data.items():
        yield f"{use} data", f"{data.name} {data.sha256[:_HASH_DIGITS]}"
    mixing = record.settings.mixing_set
    yield "mixing set", "none" if mixing is None else mixing.fingerprint[:_HASH_DIGITS]
    weights = record.settings.weights
    if weights is None:
        yield "initial weights", "random"
    else:
        digits = weights.sha256 and weights.sha256[:_HASH_DIGITS]
        yield "initial weights", digits or weights.location
    for name in dict.fromkeys(name for each in record.sessions for name in each.versions):
        yield name, _of_sessions(record, partial(_version, name))
    yield "git commit", _of_sessions(record, _commit)
    yield "CPU", _of_sessions(record, lambda session: session.hardware.cpu)
    yield "cores", _of_sessions(record, lambda session: str(session.hardware.cores))
    yield "GPUs", _of_sessions(record, lambda session: _gpus(session.hardware.gpus))
    yield "processes", _of_sessions(record, lambda session: str(session.hardware.world_size))


def _of_sessions(record: RunRecord, tell: Callable[[Session], str]) -> str:
    """Return what the sessions of a run tell, each change once."""
    return ", then ".join(text for text, _ in groupby(map(tell, record.sessions)))


def _version(package: str, session: Session) -> str:
    return session.versions.get(package, UNKNOWN)


def _commit(session: Session) -> str:
    if session.git is None:
        return "none"
    changed = {True: " with changes", False: "", None: " (changes unknown)"}[session.git.dirty]
    return f"{session.git.commit[:_HASH_DIGITS]}{changed}"


def _gpus(names: Sequence[str]) -> str:
    return ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(names)) or "none"


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of nested mappings, by names such as "pixmix.k"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _text(value: object) -> str:
    """Return a plain JSON value as a cell: nothing for null."""
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return "" if value is None else str(value)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write a row for each run: what it came to, all its settings, and what an evaluation found.

    Columns are named by their places in metrics.jsonl, run.json and evaluation.json, such as
    `test_error`, `recipe.pixmix.k`, `git.commit` and `evaluation.c.mean_error`.

    Args:
        runs: the runs.
        path: the file, whole or absent at any moment; its folder is made if absent.

    Raises:
        OSError: if it cannot be written.
    """
    rows = [dict(_columns(run)) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, printable(text.getvalue()).encode())


def _columns(run: Run) -> Iterator[tuple[str, str]]:
    yield "run", run.name
    yield from ((name, _text(value)) for name, value in run.history[-1].items())
    for suite, value, _ in HEADLINES:
        if value in run.found.get(suite, {}):
            yield f"evaluation.{suite}.{value}", _text(run.found[suite][value])
    if run.record is None:
        return
    record = msgspec.to_builtins(run.record)
    last = record["sessions"][-1]
    facts = {
        "status": record["status"],
        "seconds": record["seconds"],
        **record["settings"],
        **{name: last[name] for name in ("git", "versions", "hardware", "command")},
    }
    yield from ((name, _text(value)) for name, value in _flat(facts) if value is not None)
