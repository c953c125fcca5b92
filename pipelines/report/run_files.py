"""What the folder of a training holds: its metrics, its run.json and what an evaluation found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.provenance.run_record import RunRecord, read_run_record
from pipelines.report.headlines import HEADLINES, Found, is_found
from pipelines.report.short_names import names_of
from pipelines.system.files import read_json, read_regular

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"

_MOST_BYTES = 2**28
_LARGEST = 1e6
"""Of the figures of an evaluation: a mean corruption error beside AlexNet's may be above 1."""

_Number = (
    Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
    | Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
    | None
)

_TRAIN_AGAIN = "give the command of the training again with --resume auto, which writes it anew"
_EVALUATE_AGAIN = "write it anew: pixmix-eval ... --json > evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        name: tells it from the others.
        history: a record for each epoch, as in metrics.jsonl.
        found: suite -> value -> number, of pixmix-eval; or empty.
        record: run.json; None for a run of an earlier release.
    """

    name: str
    history: tuple[Mapping[str, Any], ...]
    found: Found
    record: RunRecord | None = None


class _Evaluation(msgspec.Struct):
    networks: Annotated[dict[str, dict[str, dict[str, Any]]], msgspec.Meta(min_length=1)]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read metrics and run.json of trainings and, where there is one, an evaluation of each.

    Args:
        folders: each an --out of pixmix-train: FOLDER/metrics.jsonl, and FOLDER/evaluation.json as
            `pixmix-eval --json` prints it (of its networks the first).

    Raises:
        PipelineError: if a folder holds no metrics, or a file is damaged.
        OSError: if a file cannot be read, or is not a regular file.
    """
    whole = [folder.resolve() for folder in folders]
    doubled = [folders[i] for i, each in enumerate(whole) if each in whole[:i]]
    if doubled:
        raise PipelineError(f"{doubled[0]} is given twice; give each training once")
    return [
        Run(
            name=name,
            history=_history(folder / METRICS),
            found=_found(folder / EVALUATION),
            record=read_run_record(folder),
        )
        for name, folder in zip(names_of(folders), folders, strict=True)
    ]


def files_read(folder: Path) -> list[Path]:
    """Return the files of a training's folder that a report must not write over."""
    names = (METRICS, EVALUATION, "run.json", "metrics.csv")
    return [folder / name for name in names]


def _history(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        content = read_regular(path, max_bytes=_MOST_BYTES)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} is not there: {path.parent} is no folder of pixmix-train, or its first epoch "
            "has not ended"
        ) from error
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{path}, line {number}"
        record = read_json(line, dict[str, _Number], where, _TRAIN_AGAIN)
        wrong = [name for name in ("epoch", "step") if not isinstance(record.get(name), int)]
        wrong += [] if record.get("train_loss") is not None else ["train_loss"]
        if wrong:
            raise PipelineError(f"{where} is damaged: it has no {wrong[0]}; {_TRAIN_AGAIN}")
        records.append(record)
    if not records:
        raise PipelineError(f"{path} is empty; its first epoch has not ended")
    return tuple(records)


def _found(path: Path) -> Found:
    try:
        content = read_regular(path, max_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return {}
    networks = read_json(content, _Evaluation, str(path), _EVALUATE_AGAIN).networks
    found = next(iter(networks.values()))
    for suite, value, _ in HEADLINES:
        measured = found.get(suite, {})
        if value in measured and measured[value] is None:
            # NaN, as JSON has it: nothing was measured.
            del measured[value]
    if not is_found(found):
        raise PipelineError(
            f"{path} is damaged: it is not what pixmix-eval --json prints; {_EVALUATE_AGAIN}"
        )
    for suite, value, _ in HEADLINES:
        number = found.get(suite, {}).get(value, 0.0)
        if not -_LARGEST <= number <= _LARGEST:
            raise PipelineError(
                f"{path} is damaged: {suite}.{value} is {number:g}, which no evaluation gives; "
                f"{_EVALUATE_AGAIN}"
            )
    return found
