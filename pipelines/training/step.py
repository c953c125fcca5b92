"""Optimizer steps, the agreement of all processes after each step, and saving."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
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
    """Take the steps of a training in one process and save checkpoints, together with the others.

    A step depends only on the weights, the seed of the recipe and the step number: these determine
    the batch, and all other random numbers are drawn from (seed, step, rank). Therefore no random
    state has to be saved.

    Attributes:
        loss: loss of the latest step that was counted; NaN before.
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
        """Release the process group, whose threads would outlive the interpreter."""
        self._module = self._forward = self.state.module

    def batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield images, labels and the seconds waited for them, for the rest of the epoch."""
        if self.state.epoch_ended:
            return
        self._module.train()
        batches = iter(self.state.loader)
        while True:
            started = time.perf_counter()
            with self.processes.watchdog.awaiting(self.state.loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                return
            yield *batch, time.perf_counter() - started

    def take_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer.

        Args:
            images: (B, 3, H, W) or (B, views, 3, H, W) float32, this process's part of the batch.
            labels: (B,) int64.

        Raises:
            PipelineError: if no sample of this part can be decoded.
        """
        state, recipe, device = self.state, self.config.recipe, self.processes.device
        rank = self.processes.world.rank
        n = len(images)
        if n == 0:
            raise PipelineError(
                f"no sample of this process's part of step {state.step} can be decoded; run "
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
        # Dropout draws from torch's generator.
        torch.manual_seed(torch_seed(recipe.seed, state.step, rank))
        rate = recipe.learning_rate_at(state.step, len(state.loader))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        # A forward pass updates the running means of batch norm even if the step is not completed.
        state.buffers = {name: each.clone() for name, each in state.module.named_buffers()}
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        sums = self._backward(
            images.chunk(recipe.grad_accum_steps), labels.chunk(recipe.grad_accum_steps), n
        )
        with self.stopping.consistent:
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
            # The progress of the first step shows its loss.
            self.settle()

    def _backward(self, images: Sequence[Tensor], labels: Sequence[Tensor], n: int) -> Tensor:
        """Compute gradients, part by part; return the sums of losses and correct predictions."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        for i, (part, targets) in enumerate(zip(images, labels, strict=True)):
            with ExitStack() as stack:
                if i + 1 < len(images) and isinstance(self._module, DistributedDataParallel):
                    stack.enter_context(self._module.no_sync())
                with explain_shape_errors(
                    self.state.module, part.flatten(0, -4), self.state.network.classes
                ):
                    logits, loss = self._loss(part, targets)
                scaled: Tensor = self.state.scaler.scale(loss * (len(part) / n))
                scaled.backward()  # type: ignore[no-untyped-call]
            sums[0] += loss.detach().double() * len(part)
            sums[1] += (logits.argmax(1) == targets).sum()
        return sums

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the first views and the mean loss."""
        recipe = self.config.recipe
        smoothing = recipe.label_smoothing
        with autocast(recipe.precision, self.processes.device):
            if not recipe.jsd:
                logits = self._forward(channels_last(images))
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
                return logits.detach(), loss
            # One batch of (views * B, 3, H, W), views first.
            logits = self._forward(channels_last(images.transpose(0, 1).flatten(0, 1)))
            logits = logits.view(VIEWS, len(images), -1)
            loss = loss_of_views(
                logits, labels, jsd_weight=recipe.jsd_weight, label_smoothing=smoothing
            )
            return logits[0].detach(), loss

    def settle(self, *, keep: int = 0) -> bool:
        """Add pending steps to the sums of the epoch, and agree with all processes on stopping.

        The losses of a step are read while the device already computes the next one, so that no
        process waits for them. Every process must call this.

        Args:
            keep: number of latest steps that stay pending.

        Returns:
            Whether all processes have agreed to stop.

        Raises:
            PipelineError: if the loss of a step is NaN or infinite, in any process.
        """
        state = self.state
        counted = state.pending[: len(state.pending) - keep]
        own, nonfinite = self._sums_of(counted)
        requested, failed, *total = self.processes.sum(
            float(self.stopping.requested), float(nonfinite is not None), *own
        )
        with self.stopping.consistent:
            state.pending = state.pending[len(counted) :]
            state.sums.add(*total)
        self.stopped = self.stopped or requested > 0
        if nonfinite is not None:
            self._raise_nonfinite(nonfinite)
        if failed > 0:
            raise PipelineError(
                "the loss became NaN or infinite on another rank; see the log of that rank, and "
                f"its samples in {self.config.out / 'nonfinite-loss-*.json'}"
            )
        return self.stopped

    def _sums_of(self, steps: Sequence[StepResult]) -> tuple[list[float], StepResult | None]:
        """Return loss, correct and seen of this process, and the first step with nonfinite loss."""
        own, nonfinite = [0.0, 0.0, 0.0], None
        for each in steps:
            total, correct = each.sums.tolist()
            self.loss = total / each.n
            if not math.isfinite(self.loss):
                nonfinite = nonfinite or each
                continue
            own = [own[0] + total, own[1] + correct, own[2] + each.n]
        return own, nonfinite

    def _raise_nonfinite(self, step: StepResult) -> None:
        """Write the samples of a step with NaN or infinite loss to a file, and raise.

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
            "consumed": step.position["consumed"],
            "batch_size": self.config.recipe.batch_size,
            "samples": step.indices.tolist(),
            "keys": [self.config.train.key(int(i)) for i in step.indices],
        }
        path = self.config.out / f"nonfinite-loss-{step.step:08d}-{rank}.json"
        write_file(path, (json.dumps(document, indent=1) + "\n").encode())
        raise PipelineError(
            f"the loss of step {step.step} is {loss}; the samples of its batch are in {path}. Use "
            "a smaller --learning-rate, --warmup-epochs 5, or --precision float32"
        )

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint and the metrics in the first process; every process must call this.

        best: whether to write best.pt instead.
        """
        self.settle()
        if self.processes.first and (best or self.state.saved != self.state.step):
            with self.stopping.consistent:
                self._write(best=best)
        self.processes.wait()
        self.processes.watchdog.reset()

    def save_alone(self) -> None:
        """Write a checkpoint of the last complete step from another thread, unless it is saved.

        This process does not wait for the others, so the epoch's losses lack their pending steps.
        """
        if not self.processes.first or self.state.saved == self.state.step:
            return
        own, nonfinite = self._sums_of(self.state.pending)
        if nonfinite is not None:
            self._raise_nonfinite(nonfinite)
        self.state.sums.add(*own)
        self._write(best=False)

    def _write(self, *, best: bool) -> None:
        state, out = self.state, self.config.out
        path = out / "checkpoints" / "best.pt" if best else checkpoint_path(out, state.step)
        with self.processes.watchdog.awaiting(f"{path} to be written"):
            save_checkpoint(path, state.save())
        if not best:
            state.saved = state.step
            keep_latest(out, self.config.keep_checkpoints)
            write_metrics(out, state.history)


# --- Functions of a step --------------------------------------------------------------------------


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def channels_last(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in the memory format of the network, channels last."""
    return images.contiguous(memory_format=torch.channels_last)


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence between the predictions for views of each image.

    Hendrycks et al., AugMix, ICLR 2020, equation 2.

    Args:
        logits: (views, B, classes).

    Returns:
        A scalar, 0 to log(views).
    """
    logs = functional.log_softmax(logits.float(), -1)
    # Clamped as in the authors' code, to avoid log(0).
    mixture = logs.exp().mean(0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - mixture)).sum(-1).mean()


def loss_of_views(
    logits: Tensor, labels: Tensor, *, jsd_weight: float, label_smoothing: float
) -> Tensor:
    """Return the cross entropy of the first view plus the weighted divergence of all views.

    Args:
        logits: (views, B, classes).
        labels: (B,) int64.
        jsd_weight: weight of the Jensen-Shannon divergence.
        label_smoothing: label smoothing of the cross entropy.
    """
    first = functional.cross_entropy(logits[0].float(), labels, label_smoothing=label_smoothing)
    return first + jsd_weight * jensen_shannon(logits)


def update_average(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """Update an exponential moving average of weights in place; integers are copied."""
    with torch.no_grad():
        for name, value in current.items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)
