"""What pixmix-train prints on stderr while it trains: a bar of steps, and a line an epoch."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.system.progress import ShowProgress, in_words

if TYPE_CHECKING:
    from pipelines.training.recipes import Recipe
    from pipelines.training.train import Shown


class TrainingProgress:
    """Shows each step in a bar, and prints a line after each epoch.

    epoch 3 of 40, train loss 0.5123, train error 16.67 %, test error 12.50 %, 8,412 images/s,
    2 min left
    """

    def __init__(
        self,
        show: ShowProgress,
        recipe: "Recipe",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin before the first step.

        Args:
            show: the bar.
            recipe: of the training.
            clock: seconds from any moment on.
        """
        self._show, self._recipe, self._clock = show, recipe, clock
        self._steps = 0
        # (step, seconds) after the first step of this start, which may compile kernels; at the
        # beginning of this epoch; and after its last step so far.
        self._first: tuple[int, float] | None = None
        self._epoch: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def step(self, shown: "Shown") -> None:
        """Show a step."""
        now = self._clock()
        if self._first is None:
            self._first = shown.step, now
        if self._epoch is None:
            spent = self._recipe.batch_size / max(shown.samples_per_second, 1e-9)
            self._epoch = shown.step - 1, now - spent
        self._last, self._steps = (shown.step, now), shown.steps
        self._show(
            shown.step,
            shown.steps,
            f"epoch {shown.epoch + 1} of {self._recipe.epochs}, loss {shown.loss:.3f}, "
            f"{shown.samples_per_second:,.0f} images/s, data wait {100 * shown.waited:.0f} %",
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Print the line of an epoch, after its evaluation."""
        from pipelines.training.history import metrics_of

        parts = [metrics_of(record, self._recipe.epochs)]
        if self._epoch is not None and self._first is not None:
            (begun, since), (step, until) = self._epoch, self._last
            rate = (step - begun) * self._recipe.batch_size / max(until - since, 1e-9)
            parts.append(f"{rate:,.0f} images/s")
            if step < self._steps:
                first, first_ended = self._first if step > self._first[0] else self._epoch
                a_step = (self._clock() - first_ended) / (step - first)
                parts.append(f"{in_words((self._steps - step) * a_step)} left")
        self._epoch = None
        self._show.line(", ".join(parts))
