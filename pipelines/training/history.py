"""What is known of each epoch, written down for people and for other tools."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.system.files import write_file


def write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """Write what is known of each epoch, as metrics.jsonl and metrics.csv, whole or not at all."""
    # JSON has no NaN: a loss that is not finite is null.
    lines = "".join(
        json.dumps({name: _finite(value) for name, value in record.items()}) + "\n"
        for record in history
    )
    write_file(out / "metrics.jsonl", lines.encode())
    columns: list[str] = []
    for record in history:
        columns.extend(name for name in record if name not in columns)
    rows = [",".join(columns)]
    rows += [",".join(_cell(record.get(name)) for name in columns) for record in history]
    write_file(out / "metrics.csv", ("\n".join(rows) + "\n").encode())


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_in_tensorboard(out: Path, record: Mapping[str, Any]) -> None:
    """Write an epoch's numbers for TensorBoard into OUT/tensorboard, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for name, value in record.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, record["step"])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def metrics_of(record: Mapping[str, Any], epochs: int | None = None) -> str:
    """Return an epoch's record as words, for a log.

    Args:
        record: a line of metrics.jsonl.
        epochs: of the whole training; None not to say it.
    """
    errors = [
        f"{name.replace('_', ' ')} {100 * record[name]:.2f} %"
        for name in ("train_error", "validation_error", "test_error")
        if name in record
    ]
    of = "" if epochs is None else f" of {epochs}"
    start = [f"epoch {record['epoch']}{of}", f"train loss {record['train_loss']:.4f}"]
    return ", ".join(start + errors)
