"""Time contenders interleaved, with warm-up, quartiles and a check for other load on the machine.

An absolute speed says little, because another program on the same machine can halve it. So
contenders run A B A B ... in one process, ratios are computed round by round, and a fixed
calibration loop runs before every round and after the last. If its time varies, the machine was
busy.

Programs are measured by `run_command`, which starts this module as a separate process, so that the
peak memory is not mixed with that of other children of the benchmark::

    python -m pipelines.bench.timing FOLDER PATTERN COMMAND...

runs a command and prints one line of JSON; PATTERN matches the first file expected in FOLDER.
"""

import json
import resource
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pipelines.errors import PipelineError
from pipelines.provenance import processor, system, versions
from pipelines.system.processes import PYTHON_MODULE, available_cores, child, child_environment
from pipelines.system.progress import Progress
from pipelines.text_table import aligned

Clock = Callable[[], float]
"""Returns the time in seconds."""

OURS = "ours"

BUSY_VARIATION = 0.15
"""On an idle machine the calibration time varies by less than this share of its minimum."""

_CALIBRATION_STEPS = 250_000
_MAX_ROWS_NAMED = 3
_POLL_SECONDS = 0.01
_LINE_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of n values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median and quartiles (interpolated linearly) of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], n=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, n=len(values))

    def __str__(self) -> str:
        """Format the median, with the quartiles if there are several values."""
        if self.n == 1:
            return number(self.median)
        return f"{number(self.median)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: its name in the table.
        run: does the work of round 0, 1, ... and returns the number of units done.
        start: overhead of `run`, such as starting a program; its time is subtracted.
    """

    name: str
    run: Callable[[int], float]
    start: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A developers' target for a figure; it is only written to the JSON.

    Attributes:
        figure: name of the figure.
        unit: its unit.
        rule: whether the figure must be at least or at most the bar.
        bar: required value.
        aim: desired value; None for the bar.
        value: computes the figure from a row.
    """

    figure: str
    unit: str
    rule: Literal["at least", "at most"]
    bar: float
    aim: float | None = None
    value: Callable[["Row"], float]

    def judge(self, row: "Row") -> dict[str, Any]:
        """Return figure, bar, aim and verdict as plain JSON values."""
        value = self.value(row)
        aim = self.bar if self.aim is None else self.aim
        sign = 1 if self.rule == "at least" else -1
        met = [sign * value >= sign * mark for mark in (aim, self.bar)]
        verdict = "aim met" if met[0] and aim != self.bar else "met" if met[1] else "NOT MET"
        return {
            "figure": self.figure, "unit": self.unit, "value": value, "rule": self.rule,
            "bar": self.bar, "aim": aim, "verdict": verdict,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The rate of an alternative in the same rounds; ratio: our rate over it."""

    name: str
    rate: Spread
    ratio: Spread


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of a benchmark.

    Attributes:
        name: its name.
        unit: of the rates.
        rate: our rate, in units per second.
        alternatives: the others.
        calibration_variation: variation of the calibration time, as a share of its minimum.
        details: further figures.
        targets: results of `Target.judge`.
    """

    name: str
    unit: str
    rate: Spread
    alternatives: tuple[Alternative, ...] = ()
    calibration_variation: float
    details: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def busy(self) -> bool:
        """Whether other programs used the machine meanwhile."""
        return self.calibration_variation > BUSY_VARIATION


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A benchmark to run.

    Attributes:
        name: its name.
        unit: of the rates.
        contenders: ours first, then the alternatives.
        scale: units of work per unit of the rates.
        targets: developers' targets.
        details: returns further figures at the end.
    """

    name: str
    unit: str
    contenders: tuple[Contender, ...]
    scale: float = 1.0
    targets: tuple[Target, ...] = ()
    details: Callable[[], Mapping[str, float]] = dict

    def run(
        self, rounds: int, clock: Clock = time.perf_counter, tick: Callable[[], None] = lambda: None
    ) -> Row:
        """Run the contenders interleaved, and return the row.

        The order, where round 0 is a warm-up and not counted::

            calibrate  A0 B0  calibrate  A1 B1  calibrate  A2 B2  calibrate

        Args:
            rounds: number of counted rounds, at least 1.
            clock: read before and after each run.
            tick: called after each run, (rounds + 1) * len(contenders) times.

        Raises:
            ValueError: if a run took no longer than its start.
        """
        rates: list[list[float]] = [[] for _ in self.contenders]
        calibrations = []
        for round_index in range(rounds + 1):
            calibrations.append(calibrate(clock))
            for contender, counted in zip(self.contenders, rates, strict=True):
                rate = _time(contender, round_index, clock) / self.scale
                if round_index > 0:
                    counted.append(rate)
                tick()
        calibrations.append(calibrate(clock))
        ours = rates[0]
        alternatives = [
            Alternative(
                name=contender.name,
                rate=Spread.of(theirs),
                ratio=Spread.of([a / b for a, b in zip(ours, theirs, strict=True)]),
            )
            for contender, theirs in zip(self.contenders[1:], rates[1:], strict=True)
        ]
        row = Row(
            name=self.name,
            unit=self.unit,
            rate=Spread.of(ours),
            alternatives=tuple(alternatives),
            # The first calibration is a warm-up.
            calibration_variation=variation(calibrations[1:]),
            details=dict(self.details()),
        )
        return with_verdicts(row, self.targets)


def with_verdicts(row: Row, targets: Sequence[Target]) -> Row:
    """Return a row with the verdicts of targets."""
    return Row(**{**vars(row), "targets": tuple(target.judge(row) for target in targets)})


def variation(seconds: Sequence[float]) -> float:
    """Return by how much the longest time exceeds the shortest, as a share of the shortest."""
    return max(seconds) / min(seconds) - 1


def calibrate(clock: Clock = time.perf_counter) -> float:
    """Return the time of a fixed loop of integer work in seconds, about 0.02."""
    start = clock()
    state = 1
    for _ in range(_CALIBRATION_STEPS):
        # The generator of Numerical Recipes modulo 2^32, whose steps depend on each other.
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
    return clock() - start


def _time(contender: Contender, round_index: int, clock: Clock) -> float:
    """Return the rate of one run in units per second."""
    begin = clock()
    units = contender.run(round_index)
    seconds = clock() - begin
    if contender.start is not None:
        begin = clock()
        contender.start(round_index)
        seconds -= clock() - begin
    if seconds <= 0:
        raise ValueError(f"{contender.name} took no longer than its start; increase its work")
    return units / seconds


def run_comparisons(
    comparisons: Sequence[Comparison], rounds: int, progress: Progress, *, more: int = 0
) -> list[Row]:
    """Return one row per comparison.

    Args:
        comparisons: run one after another.
        rounds: number of counted rounds of each.
        progress: called with the number of finished runs and of all runs.
        more: number of runs that the caller does afterwards.
    """
    total = (rounds + 1) * sum(len(each.contenders) for each in comparisons) + more
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    return [each.run(rounds, tick=tick) for each in comparisons]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, and restore its number of threads afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- results -------------------------------------------------------------------------------------


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return the CPU model, cores, operating system and versions as plain JSON values.

    packages: distributions to list in addition to Python and this project.
    """
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": system(),
        "versions": versions(tuple(packages)),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """Format the result of `machine` as one line."""
    listed = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['processor']}, {cores}, {machine['system']}; {listed}"


def number(value: float) -> str:
    """Format a number with three significant digits and without an exponent."""
    if value == 0:
        return "0"
    decimals = next((places for places, size in ((0, 100), (1, 10)) if abs(value) >= size), 2)
    return f"{value:,.{decimals}f}"


def document(
    rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return all results as plain JSON values."""
    return {
        "machine": dict(machine),
        "rows": [{**asdict(row), "busy": row.busy} for row in rows],
        "notes": list(notes),
    }


def table(rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Return rates and ratios as text of at most 100 columns."""
    cells: list[tuple[str, ...]] = [("", "rate", "ours / alternative")]
    for row in rows:
        cells.append((f"  {OURS}", number(row.rate.median), ""))
        cells += [
            (f"  {each.name}", number(each.rate.median), f"{each.ratio} x")
            for each in row.alternatives
        ]
    lines = aligned(cells, right={1})
    parts = [lines.pop(0)]
    for row in rows:
        n_lines = 1 + len(row.alternatives)
        parts.append("\n".join([f"{row.name}, in {row.unit}", *lines[:n_lines]]))
        del lines[:n_lines]
    busy = [row.name for row in rows if row.busy]
    remarks = [
        *notes,
        "Rates are medians, ratios are medians [quartiles], of interleaved rounds. Benchmarks use "
        "one thread unless their name says otherwise.",
        *busy_note(busy, len(rows)),
        machine_line(machine),
    ]
    parts.append("\n".join(textwrap.fill(each, _LINE_WIDTH) for each in remarks))
    return "\n\n".join(parts)


def busy_note(busy: Sequence[str], n_rows: int) -> list[str]:
    """Return a remark on the rows that were measured on a busy machine, if there are any."""
    if not busy:
        return []
    which = f"{len(busy)} of {n_rows} rows" if len(busy) > _MAX_ROWS_NAMED else "; ".join(busy)
    return [
        f"The machine was busy during {which}: trust the ratios more than the rates, or run again."
    ]


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """The measurements of a command.

    Attributes:
        seconds: total time.
        first_file_seconds: time until the first file exists; None without a file.
        peak_bytes: peak resident memory of its largest process.
        code: exit code.
        message: last line on stderr.
    """

    seconds: float
    first_file_seconds: float | None
    peak_bytes: int
    code: int
    message: str


def measure_command(folder: Path, pattern: str, command: list[str]) -> CommandRun:
    """Run a command and measure it; `peak_bytes` includes every child of this process."""
    begin = time.perf_counter()
    first = None
    # A file, because a full pipe that is not read would stop the command.
    with TemporaryFile("w+") as errors:
        with child(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            while process.poll() is None:
                if first is None and any(folder.glob(pattern)):
                    first = time.perf_counter() - begin
                time.sleep(_POLL_SECONDS)
            seconds = time.perf_counter() - begin
        errors.seek(0)
        stderr = errors.read().strip().splitlines()
    if first is None and any(folder.glob(pattern)):
        first = seconds
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return CommandRun(
        seconds=seconds,
        first_file_seconds=first,
        # Linux counts in KiB, macOS in bytes.
        peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
        code=process.returncode,
        message=stderr[-1] if stderr else "",
    )


def run_command(folder: Path, pattern: str, module: str, arguments: list[str]) -> CommandRun:
    """Run `python -m module arguments`, and measure it in a separate process.

    Args:
        folder: folder of the expected files; it need not exist yet.
        pattern: pattern of their names, as for `Path.glob`.
        module: a module of this project.
        arguments: of its command line.

    Raises:
        PipelineError: if the command fails.
    """
    here = f"{__package__}.timing"
    command = [*PYTHON_MODULE, here, str(folder), pattern, *PYTHON_MODULE, module, *arguments]
    environment = child_environment()
    with child(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    run = CommandRun(**json.loads(output))
    if run.code != 0:
        raise PipelineError(f"{module} ended with exit code {run.code}: {run.message}")
    return run


if __name__ == "__main__":
    try:
        result = measure_command(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except KeyboardInterrupt:
        # The parent process is interrupted, too, and reports it.
        sys.exit(130)
    sys.stdout.write(json.dumps(asdict(result)))
