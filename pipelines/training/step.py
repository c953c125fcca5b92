"""A step of the optimizer, what all processes agree on after it, and when it is saved."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pipelines.errors import PipelineError
from pipelines.models.registry import explain_shape_errors
from pipelines.system.files import write_file
from pipelines.system.process_group import Processes
from pipelines.training.augmentations import AUGMENTATIONS, BaselineAugmentation, torch_seed
from pipelines.training.checkpoints import checkpoint_path, keep_latest, save_checkpoint
from pipelines.training.recipes import VIEWS, Precision, TrainConfig
from pipelines.training.state import StepResult, TrainState
from pipelines.training.stopping import Stopping
from pipelines.training.tracking import write_metrics


class Trainer:
    """Takes and saves the steps of a training in one process, in agreement with the others.

    A step is a function of the weights, the recipe's seed and the step's number: the batches are,
    and every other random number is drawn from a seed of (seed, step, rank). So nothing has to be
    kept for a resume.

    Attributes:
        loss: of the last step that was counted here; NaN before.
        stopped: whether all processes have agreed to stop.
    """

    def __init__(
        self, config: TrainConfig, processes: Processes, state: TrainState, stopping: Stopping
    ) -> None:
        self.config, self.processes, self.state = config, processes, state
        self.stopping = stopping
        self.loss = math.nan
        self.stopped = False
        recipe = config.recipe
        self._baseline = (
            BaselineAugmentation(
                recipe.augment,
                config.preprocess.mean,
                config.preprocess.std,
                severity=recipe.augmix_severity,
                all_ops=recipe.augmix_all_ops,
            )
            if recipe.augment in AUGMENTATIONS
            else None
        )
        self._module = state.module
        if processes.world.size > 1:
            ids = [processes.device.index] if processes.device.type == "cuda" else None
            self._module = DistributedDataParallel(state.module, device_ids=ids)
        self._forward = torch.compile(self._module) if config.compile else self._module

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        """Drop what holds the process group, whose threads would outlive the interpreter."""
        self._module = self._forward = self.state.module

    def batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield images, labels and the seconds waited for them, for the rest of the epoch."""
        if self.state.epoch_ended:
            return
        self._module.train()
        batches = iter(self.state.loader)
        while True:
            asked = time.perf_counter()
            with self.processes.watchdog.awaiting(self.state.loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                return
            yield *batch, time.perf_counter() - asked

    def take_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer.

        Args:
            images: (B, 3, H, W) or (B, views, 3, H, W) float32, this process's part of the batch.
            labels: (B,) int64.

        Raises:
            PipelineError: if no sample of this part can be read.
        """
        state, recipe, device = self.state, self.config.recipe, self.processes.device
        rank = self.processes.world.rank
        n = len(images)
        if n == 0:
            raise PipelineError(
                f"no sample of this process's part of step {state.step} can be read; run "
                "pixmix-shard verify, or pass --on-decode-error substitute"
            )
        if self._baseline is not None:
            images = self._baseline(
                images,
                seed=recipe.seed,
                step=state.step,
                first=rank * n,
                views=VIEWS if recipe.jsd else None,
            )
        # For dropout: a function of the step.
        torch.manual_seed(torch_seed(recipe.seed, state.step, rank))
        rate = recipe.learning_rate_at(state.step, len(state.loader))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        # A forward pass updates the running means of norms, also in a step that is not finished.
        state.buffers = {name: each.clone() for name, each in state.module.named_buffers()}
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        sums = self._backward(
            images.chunk(recipe.grad_accum_steps), labels.chunk(recipe.grad_accum_steps), n
        )
        with self.stopping.whole:
            state.scaler.step(state.optimizer)
            state.scaler.update()
            if state.average is not None and recipe.ema_decay is not None:
                update_average(state.average, state.module.state_dict(), recipe.ema_decay)
            state.buffers, state.position = None, state.loader.state_dict()
            result = StepResult(
                step=state.step,
                sums=sums,
                n=n,
                indices=state.loader.last_indices.copy(),
                position=state.position,
            )
            state.pending.append(result)
            state.step += 1
        self.processes.watchdog.reset()
        if math.isnan(self.loss):
            # So that the first step has a loss to show.
            self.settle()

    def _backward(self, images: Sequence[Tensor], labels: Sequence[Tensor], n: int) -> Tensor:
        """Compute gradients, part by part; return the sums of losses and correct predictions."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        for part, (some, theirs) in enumerate(zip(images, labels, strict=True)):
            with ExitStack() as meanwhile:
                if part + 1 < len(images) and isinstance(self._module, DistributedDataParallel):
                    meanwhile.enter_context(self._module.no_sync())
                with explain_shape_errors(
                    self.state.module, some.flatten(0, -4), self.state.network.classes
                ):
                    logits, loss = self._loss(some, theirs)
                scaled: Tensor = self.state.scaler.scale(loss * (len(some) / n))
                scaled.backward()  # type: ignore[no-untyped-call]
            sums[0] += loss.detach().double() * len(some)
            sums[1] += (logits.argmax(1) == theirs).sum()
        return sums

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the first views, and the mean loss."""
        recipe = self.config.recipe
        smoothing = recipe.label_smoothing
        with autocast(recipe.precision, self.processes.device):
            if not recipe.jsd:
                logits = self._forward(channels_last(images))
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
                return logits.detach(), loss
            # (B, views, ...) side by side in one batch, views first.
            logits = self._forward(channels_last(images.transpose(0, 1).flatten(0, 1)))
            logits = logits.view(VIEWS, len(images), -1)
            loss = loss_of_views(
                logits, labels, jsd_weight=recipe.jsd_weight, label_smoothing=smoothing
            )
            return logits[0].detach(), loss

    def settle(self, *, keep: int = 0) -> bool:
        """Add pending steps to the epoch's sums, and agree with the other processes on stopping.

        What a device has computed is asked for when the next step runs already, so that nobody
        waits for it. Every process must call it.

        Args:
            keep: how many of the latest steps stay pending.

        Returns:
            Whether all processes have agreed to stop.

        Raises:
            PipelineError: if the loss of a step is NaN or infinite, in any process.
        """
        state = self.state
        counted = state.pending[: len(state.pending) - keep]
        own, nonfinite = self._sums_of(counted)
        asked, failed, *total = self.processes.sum(
            float(self.stopping.asked), float(nonfinite is not None), *own
        )
        with self.stopping.whole:
            state.pending = state.pending[len(counted) :]
            state.sums.add(*total)
        self.stopped = self.stopped or asked > 0
        if nonfinite is not None:
            self._refuse(nonfinite)
        if failed > 0:
            raise PipelineError(
                "the loss became NaN or infinite on another rank, whose log says more; its samples "
                f"are in {self.config.out / 'nonfinite-loss-*.json'}"
            )
        return self.stopped

    def _sums_of(self, steps: Sequence[StepResult]) -> tuple[list[float], StepResult | None]:
        """Return loss, correct and seen of this process, and the first step of nonfinite loss."""
        own, nonfinite = [0.0, 0.0, 0.0], None
        for each in steps:
            total, correct = each.sums.tolist()
            self.loss = total / each.n
            if not math.isfinite(self.loss):
                nonfinite = nonfinite or each
                continue
            own = [own[0] + total, own[1] + correct, own[2] + each.n]
        return own, nonfinite

    def _refuse(self, step: StepResult) -> None:
        """Write down the samples of a step whose loss is NaN or infinite.

        Raises:
            PipelineError: always.
        """
        rank = self.processes.world.rank
        loss = step.sums[0].item() / step.n
        document = {
            "step": step.step,
            "loss": str(loss),
            "rank": rank,
            "epoch": step.position["epoch"],
            "last_sample_of_the_batch": step.position["consumed"],
            "batch_size": self.config.recipe.batch_size,
            "samples": step.indices.tolist(),
            "keys": [self.config.train.key(int(i)) for i in step.indices],
        }
        path = self.config.out / f"nonfinite-loss-{step.step:08d}-{rank}.json"
        write_file(path, (json.dumps(document, indent=1) + "\n").encode())
        raise PipelineError(
            f"the loss of step {step.step} is {loss}; the samples of its batch are in {path}. Use "
            "a smaller --learning-rate, a --warmup-epochs, or --precision float32"
        )

    def save(self, path: Path | None = None) -> None:
        """Write a checkpoint and the metrics, in the first process; all processes must call it.

        path: of a checkpoint beside those of the run, as the best one; None for the run's next.
        """
        self.settle()
        if self.processes.first and (path is not None or self.state.saved != self.state.step):
            with self.stopping.whole:
                self._write(path)
        self.processes.wait()
        self.processes.watchdog.reset()

    def save_alone(self) -> None:
        """Write a checkpoint of the last whole step, if there is none, from another thread.

        Other processes are not asked, and those that have not sent their last step do not count in
        the losses of the epoch.
        """
        if not self.processes.first or self.state.saved == self.state.step:
            return
        own, nonfinite = self._sums_of(self.state.pending)
        if nonfinite is not None:
            self._refuse(nonfinite)
        self.state.sums.add(*own)
        self._write(None)

    def _write(self, path: Path | None) -> None:
        state, out = self.state, self.config.out
        where = path or checkpoint_path(out, state.step)
        with self.processes.watchdog.awaiting(f"{where} to be written"):
            save_checkpoint(where, state.save())
        if path is None:
            state.saved = state.step
            keep_latest(out, self.config.keep_checkpoints)
            write_metrics(out, state.history)


# --- Functions of a step --------------------------------------------------------------------------


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in a precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def channels_last(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) images with their channels last in memory, as the network has them."""
    return images.contiguous(memory_format=torch.channels_last)


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence of the predictions for views of the same images.

    logits: (views, B, classes).
    Returns a number, 0 to log(views). Hendrycks et al., AugMix, ICLR 2020, equation 2.
    """
    logs = functional.log_softmax(logits.float(), -1)
    # As in the source, kept from the logarithm of 0.
    mixture = logs.exp().mean(0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - mixture)).sum(-1).mean()


def loss_of_views(
    logits: Tensor, labels: Tensor, *, jsd_weight: float, label_smoothing: float
) -> Tensor:
    """Return the cross entropy of the first view, plus the weighted divergence of all views.

    logits: (views, B, classes); labels: (B,) int64.
    """
    first = functional.cross_entropy(logits[0].float(), labels, label_smoothing=label_smoothing)
    return first + jsd_weight * jensen_shannon(logits)


def update_average(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """Move averaged weights towards the current ones, in place; whole numbers are copied."""
    with torch.no_grad():
        for name, value in current.items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)
