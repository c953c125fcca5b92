"""Progress on stderr: a bar for a terminal, plain lines for a log."""

import io
import sys
from dataclasses import replace

import pytest

from pipelines.cli.train import TrainingProgress
from pipelines.system.progress import PlainLines, in_words, progress_bar
from pipelines.training.recipes import StepProgress, named_recipe

DIGITS = named_recipe("digits")


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(steps: list[tuple[float, int, int]]) -> list[str]:
    """Return the lines printed for a sequence of (seconds, done, total)."""
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines("images", stream, clock)
    for clock.now, done, total in steps:
        lines(done, total)
    lines.close()
    text = stream.getvalue()
    assert "\r" not in text
    return text.splitlines()


def test_a_log_shows_rate_time_left_and_a_last_line() -> None:
    steps = [(float(second), 10 * second, 400) for second in range(41)]
    assert lines_of(steps) == [
        "100 of 400 images (25 %), 10 per s, 30 s left",
        "200 of 400 images (50 %), 10 per s, 20 s left",
        "300 of 400 images (75 %), 10 per s, 10 s left",
        "400 of 400 images, took 40 s",
    ]


def test_the_rate_does_not_count_items_done_before() -> None:
    assert lines_of([(0, 1000, 1100), (10, 1010, 1100), (11, 1011, 1100)]) == [
        "1,010 of 1,100 images (91 %), 1 per s, 90 s left",
        "1,011 of 1,100 images (91 %), 1 per s, 89 s left",
    ]


def test_lines_of_a_run_of_days_are_a_minute_apart() -> None:
    day = 24 * 3600
    assert len(lines_of([(second, second, 2 * day) for second in range(day)])) < 24 * 60 + 60


def test_a_new_total_starts_a_new_count() -> None:
    found = lines_of([(0, 0, 5), (1, 5, 5), (1, 0, 7), (3, 7, 7), (3, 0, 7), (4, 7, 7)])
    assert found == [
        "5 of 5 images, took 1 s",
        "7 of 7 images, took 2 s",
        "7 of 7 images, took 1 s",
    ]


def test_a_terminal_shows_a_bar_and_a_log_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress_bar("samples") as show:
            show(0, 2)
            show.line("a permanent line")
            show(2, 2, "a note")
        shown = capsys.readouterr()
        assert ("\r" in shown.err) == terminal
        assert "a permanent line\n" in shown.err
        assert "a note" in shown.err
        assert shown.out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "2 h"), (12000, "3 h 20 min")],
)
def test_durations_are_shown_in_two_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
    assert in_words(100 * 3600) == "4 days 4 h"


def test_the_line_of_an_epoch_shows_errors_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = PlainLines("steps", stream, clock)
    progress = TrainingProgress(bar, replace(DIGITS, epochs=3, batch_size=100), clock)

    def step(number: int, epoch: int, rate: float) -> None:
        shown = StepProgress(
            step=number, steps=6, epoch=epoch, loss=1.0, samples_per_second=rate, data_wait=0.0
        )
        progress.step(shown)

    clock.now = 30.0
    step(1, 0, 100 / 30)  # This step compiles kernels.
    clock.now = 31.0
    step(2, 0, 100.0)
    clock.now = 32.0
    record = {"epoch": 1, "step": 2, "train_loss": 2.0, "train_error": 0.5, "test_error": 0.25}
    progress.epoch(record)
    clock.now = 33.0
    step(3, 1, 100.0)
    clock.now = 34.0
    step(4, 1, 100.0)
    clock.now = 36.0
    progress.epoch({**record, "epoch": 2, "validation_error": 0.125})
    assert stream.getvalue().splitlines() == [
        "epoch 1 of 3, train loss 2.0000, train error 50.00 %, test error 25.00 %, 6 images/s, "
        "8 s left",
        "epoch 2 of 3, train loss 2.0000, train error 50.00 %, validation error 12.50 %, "
        "test error 25.00 %, 100 images/s, 4 s left",
    ]
