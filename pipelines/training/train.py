"""The training itself: one process, or as many as a launcher starts.

A step is a function of the weights so far, the recipe's seed and the step's number: the loader's
batches are, and every other random number is drawn from a seed of (seed, step, rank). So nothing is
lost by stopping: a run that was stopped in the middle of an epoch goes on as if it had not been.

Processes may have a disk each: the first writes, and whoever has the newest checkpoint reads it for
all. What fails in one process ends them all, each with one line.
"""

import json
import math
import reprlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pipelines.errors import PipelineError
from pipelines.loading.batches import MixingSet, OnDecodeError, PreprocessConfig
from pipelines.loading.image_map import OnMixingDecodeError
from pipelines.loading.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from pipelines.loading.remote_sets import Remote
from pipelines.loading.workers import worker_errors
from pipelines.models.opening import (
    begin_with,
    first_weights,
    open_model,
    shapes_are_told,
)
from pipelines.provenance.run_record import Ending, recorded
from pipelines.shards.remote import RemoteShards
from pipelines.system.files import check_no_file, folder_lock, world_errors, write_file
from pipelines.system.process_group import LostProcessError, Processes, lost_are_told
from pipelines.training.checkpoint_content import (
    check_tensors,
    optimizer_state,
    scaler_state,
)
from pipelines.training.checkpoints import (
    Newest,
    checkpoint_path,
    damage_is_told,
    find_newest,
    keep_newest,
    save_checkpoint,
    share_checkpoint,
)
from pipelines.training.data import outputs_for
from pipelines.training.history import show_in_tensorboard, write_metrics
from pipelines.training.losses import averaged, loss_of_views
from pipelines.training.recipes import Recipe
from pipelines.training.rivals import RivalAugment, seed_of
from pipelines.training.run_settings import settings_of
from pipelines.training.stopping import Stopping

_LOST_LOCK_S = 120.0
"""NFS 4 frees the locks of a machine that is gone after 90 s (Linux, nfsv4leasetime)."""

_WORD_S = 2.0
"""Several times what a process takes to hear that another one stops."""

VIEWS = 3
"""Of each picture, for the Jensen-Shannon divergence."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train, on what, and where results go.

    out: folder of checkpoints and metrics. train: shards, here or at an address; validation, test:
    others, or None; see `pipelines.loading.remote_sets.open_set`.
    preprocess: of the pictures; its PixMix is the recipe's. resume: go on from the newest
    checkpoint of `out`, if there is one. keep: how many checkpoints stay. checkpoint_every: steps
    after which there is one within an epoch, too; None for one at its end alone.
    weights: of the network to begin with; pretrained: the name of torchvision's, such as
    IMAGENET1K_V1.
    on_decode_error, max_decode_errors, on_mixing_decode_error: see `LoaderConfig`. An
    evaluation skips samples where training does not raise an error for them.
    cache_dir, remote: where shards of addresses are kept, and how they are read.
    """

    out: Path
    recipe: Recipe
    preprocess: PreprocessConfig
    train: RemoteShards
    validation: RemoteShards | None = None
    test: RemoteShards | None = None
    mixing_set: MixingSet | None = None
    weights: Path | None = None
    pretrained: str | None = None
    resume: bool = False
    keep: int = 2
    checkpoint_every: int | None = None
    num_workers: int = 0
    n_threads: int = 1
    shuffle_window: int | None = None
    shard_partitions: int = 1
    on_decode_error: OnDecodeError = "raise"
    max_decode_errors: int = 100
    on_mixing_decode_error: OnMixingDecodeError = "raise"
    compile: bool = False
    sync_batch_norm: bool = False
    cache_dir: Path | None = None
    remote: Remote | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a progress bar shows of a step. waited: part of the time that was spent on data."""

    step: int
    steps: int
    epoch: int
    loss: float
    samples_per_second: float
    waited: float


Show = Callable[[Shown], None]

ShowEpoch = Callable[[Mapping[str, Any]], None]
"""Called with the record of an epoch: a line of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training ended. finished: whether all epochs are done; history: a record an epoch."""

    finished: bool
    step: int
    history: list[dict[str, Any]]
    checkpoint: Path


def train(
    training: Training,
    processes: Processes,
    show: Show = lambda _: None,
    show_epoch: ShowEpoch = lambda _: None,
    begun: Callable[[], None] = lambda: None,
    stopping: Stopping | None = None,
) -> Trained:
    """Train a network, or resume a training that was stopped.

    SIGTERM and SIGUSR1 end it after the step in hand, with a checkpoint. For dropout, torch's
    generator is seeded anew in each step.

    Args:
        training: what, on what, and where to.
        processes: this process among the others; see `processes.joined`.
        show: called after each step, in the first process.
        show_epoch: called after each epoch, in the first process.
        begun: called when OUT/run.json is written, in the first process.
        stopping: also ends it while it waits; None to obey signals between steps alone.

    Returns:
        How it ended, the same in every process.

    Raises:
        PipelineError: if `out` holds another training, the data do not fit, the loss is no number,
            the disk is full, or another process or a worker of this one was lost.
        ValueError: if numbers of the recipe do not fit the data or the number of processes.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    with (
        world_errors(training.out, jobs=1, elsewhere="choose another --out, or "),
        lost_are_told(),
        # Of a worker that is killed, torch tells wherever the main thread is.
        worker_errors(),
        _in_use(training, processes),
    ):
        run = _Run(training, processes, show, show_epoch, stopping or Stopping())
        with _recorded(run, begun):
            return run.run()


@contextmanager
def _recorded(run: "_Run", begun: Callable[[], None]) -> Iterator[None]:
    """Keep OUT/run.json for the time of a run, in the first process."""
    run.ending.step = run.step
    if not run.processes.first:
        yield
        return
    if run.history:
        # Which a damaged folder may have lost; the checkpoint has not.
        write_metrics(run.training.out, run.history)
    name = run.network["pretrained"]
    settings = settings_of(
        run.training,
        run.loader,
        pretrained=name if isinstance(name, str) else None,
        resumed=run.resumed,
    )
    size = run.processes.world.size
    with recorded(run.training.out, settings, run.ending, world_size=size):
        begun()
        try:
            yield
        finally:
            run.ending.step, run.ending.finished = run.step, run.finished


@contextmanager
def _in_use(training: Training, processes: Processes) -> Iterator[None]:
    """Keep other trainings out of the folder: two would write checkpoints and metrics in turn."""
    other = f"another training to let go of {training.out}"
    with ExitStack() as held:
        with processes.watchdog.awaiting(other), processes.together():
            if processes.first:
                check_no_file(training.out, "--out")
                training.out.mkdir(parents=True, exist_ok=True)
                busy = (
                    f"another training is writing to {training.out}; wait for its end, or choose "
                    "another --out"
                )
                # What goes on may follow a process whose machine was lost a moment ago.
                patience_s = _LOST_LOCK_S if training.resume else 0.0
                lock = folder_lock(training.out / ".lock", busy=busy, patience_s=patience_s)
                held.enter_context(lock)
        yield


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A step that was taken. sums: of losses and of right answers, on the device; n: samples here.

    indices: of the samples; place: the loader's state after it.
    """

    step: int
    sums: Tensor
    n: int
    indices: NDArray[np.int64]
    place: dict[str, Any]


class _Run:
    """The state of a training in one process."""

    def __init__(
        self,
        training: Training,
        processes: Processes,
        show: Show,
        show_epoch: ShowEpoch,
        stopping: Stopping,
    ) -> None:
        self.training, self.processes = training, processes
        self.show, self.show_epoch = show, show_epoch
        self.stopping = stopping
        self.ending = Ending(0)
        self.recipe = training.recipe
        self.device = processes.device
        if training.checkpoint_every is not None and training.checkpoint_every < 1:
            raise ValueError(
                f"checkpoint_every is {training.checkpoint_every}; give 1 step or more, or None"
            )
        newest = find_newest(training.out, processes)
        if newest is not None and not training.resume:
            raise PipelineError(
                f"{training.out} holds a training; --resume auto goes on with it, or choose "
                "another --out"
            )
        with processes.watchdog.awaiting("data, mixing set and network"), processes.together():
            self._prepare(begun=newest is not None)
        self._see_that_all_have_the_same()
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums = {"loss": 0.0, "correct": 0.0, "seen": 0.0}
        self.taken: list[_Taken] = []
        self.loss = math.nan
        self.best = math.inf
        # What all processes have agreed on.
        self.stopped = False
        # After the last whole step.
        self.place = self.loader.state_dict()
        # Of the last whole step, while a forward pass may have changed them; None else.
        self.buffers: dict[str, Tensor] | None = None
        # That are trained, while an evaluation has averages in their place; None else.
        self.current: dict[str, Tensor] | None = None
        self.saved: int | None = None
        self.resumed = newest is not None
        if newest is not None:
            self._go_on(newest)
        running = self.module
        if processes.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            running = DistributedDataParallel(self.module, device_ids=ids)
        self.running = running
        self.called: Callable[[Tensor], Tensor] = running
        if training.compile:
            self.called = torch.compile(running)

    # --- Beginning -------------------------------------------------------------------------------

    def _prepare(self, *, begun: bool) -> None:
        """Open the network and all that it is trained on; begun: it goes on from a checkpoint."""
        training, recipe = self.training, self.recipe
        self._see_that_out_can_be_written()
        shards = training.train.shards
        classes = len(shards.classes) or int(shards.samples["label"].max()) + 1
        self.labels = {
            each.shards.hash: outputs_for(each.shards, shards.classes, classes)
            for each in (training.validation, training.test)
            if each is not None
        }
        self.network = {
            "model": recipe.model,
            "pretrained": training.pretrained,
            "classes": classes,
            "mean": list(training.preprocess.mean),
            "std": list(training.preprocess.std),
            "class_names": list(shards.classes),
            "crop": training.preprocess.crop,
            "image_size": training.preprocess.image_size,
            "evaluation_resize": training.preprocess.resized_side,
        }
        module = open_model(
            recipe.model,
            classes,
            dropout=recipe.dropout,
            seed=recipe.seed,
            # What a checkpoint holds need not be downloaded.
            pretrained=None if begun else training.pretrained,
        )
        if training.weights is not None and not begun:
            try:
                begin_with(module, first_weights(training.weights))
            except ValueError as error:
                raise PipelineError(f"{training.weights}: {error}") from error
        module = module.to(self.device).to(memory_format=torch.channels_last)
        if training.sync_batch_norm:
            if self.device.type != "cuda":
                raise PipelineError(
                    f"norms over all processes are for GPUs, and this is {self.device}; leave "
                    "--sync-batch-norm out"
                )
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.module: nn.Module = module
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.average: dict[str, Tensor] | None = None
        if recipe.ema_decay is not None:
            self.average = {name: value.clone() for name, value in module.state_dict().items()}
        self.loader = self._train_loader()
        self.rival = (
            RivalAugment(
                recipe.augment,
                training.preprocess.mean,
                training.preprocess.std,
                severity=recipe.augmix_severity,
                all_ops=recipe.augmix_all_ops,
            )
            if recipe.augment in ("augmix", "trivialaugment")
            else None
        )

    def _see_that_all_have_the_same(self) -> None:
        """See it where hosts have data of their own: each process would train on another set."""
        check = self.processes.check_same
        # Which the command chooses by the processor, where it is not told.
        check("--precision", self.recipe.precision)
        check("--on-decode-error", self.training.on_decode_error)
        check("recipe", json.dumps(self.recipe.to_json(), sort_keys=True))
        check("--data", json.dumps(self.loader.state_dict(), sort_keys=True))
        check("--mixing-set", str(self.loader.mixing_fingerprint))

    def _see_that_out_can_be_written(self) -> None:
        """See it before an epoch is trained, and not after."""
        if self.processes.first:
            folder = self.training.out / "checkpoints"
            check_no_file(folder, "--out")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(
                self.module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        return torch.optim.SGD(
            self.module.parameters(),
            recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )

    def _train_loader(self) -> TrainLoader:
        training, recipe = self.training, self.recipe
        preprocess = replace(
            training.preprocess,
            pixmix=recipe.pixmix if recipe.augment == "pixmix" else None,
            plain_first=recipe.jsd and recipe.augment == "pixmix",
        )
        if recipe.augment in ("augmix", "trivialaugment"):
            preprocess = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return train_loader(
            training.train,
            training.mixing_set if recipe.augment == "pixmix" else None,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            preprocess=preprocess,
            views=VIEWS if recipe.jsd and recipe.augment == "pixmix" else None,
            rank=self.processes.world.rank,
            world_size=self.processes.world.size,
            num_workers=training.num_workers,
            n_threads=training.n_threads,
            shuffle_window=training.shuffle_window,
            shard_partitions=training.shard_partitions,
            on_decode_error=training.on_decode_error,
            max_decode_errors=training.max_decode_errors,
            on_mixing_decode_error=training.on_mixing_decode_error,
            cache_dir=training.cache_dir,
            remote=training.remote,
        )

    def _go_on(self, newest: Newest) -> None:
        """Go on from a checkpoint, in all processes."""
        content = share_checkpoint(newest, self.processes)
        self._check_recipe(content.recipe, newest.path)
        for name, value in self.network.items():
            begun = content.network.get(name)
            if (
                name in ("mean", "std", "crop", "image_size", "evaluation_resize")
                and begun != value
            ):
                raise PipelineError(
                    f"{name}: {self.training.out} was begun with {begun}, this command says "
                    f"{value}; repeat {begun}, or {_other_out(newest.path)}"
                )
        begun_from = content.network.get("pretrained")
        if self.training.pretrained not in (None, begun_from):
            raise PipelineError(
                f"--pretrained: {self.training.out} was begun with "
                f"{begun_from or 'other weights'}, this command says {self.training.pretrained}; "
                "leave --pretrained out, or choose another --out"
            )
        self.network["pretrained"] = begun_from if isinstance(begun_from, str) else None
        if content.mixing_set != self.loader.mixing_fingerprint:
            raise PipelineError(
                f"{self.training.out} was begun with another mixing set, or with none; repeat that "
                f"one, or {_other_out(newest.path)}"
            )
        with damage_is_told(newest.path):
            own = self.module.state_dict()
            check_tensors(content.state_dict, own, "state_dict")
            if self.average is not None:
                check_tensors(content.current or {}, own, "current")
            optimizer = optimizer_state(content.optimizer, self.optimizer)
            scaler = scaler_state(content.scaler, self.scaler)
        try:
            self.loader.load_state_dict(msgspec.to_builtins(content.loader))
        except ValueError as error:
            raise PipelineError(
                f"{newest.path}: {error}; the data, --validation-share, --shuffle-window and "
                "--shard-partitions are "
                "to be those it was begun with"
            ) from error
        self.module.load_state_dict(content.current or content.state_dict)
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(scaler)
        if self.average is not None:
            self.average = {name: each.to(self.device) for name, each in content.state_dict.items()}
        self.step, self.history, self.best = content.step, content.history, content.best
        self.sums = msgspec.to_builtins(content.sums)
        self.place, self.saved = self.loader.state_dict(), self.step

    def _check_recipe(self, begun: Mapping[str, Any], path: Path) -> None:
        """Refuse to resume with another recipe than that which the training was begun with."""
        now = self.recipe.to_json()
        other = _other_out(path)
        for name in sorted(begun.keys() | now.keys()):
            if name not in now or name not in begun:
                which = "lacks" if name not in begun else "has"
                raise PipelineError(
                    f"{path}: its recipe {which} the field {name:.60}, unlike that of this "
                    f"pixmix-train: another version wrote it; resume with that version, or {other}"
                )
            if begun[name] != now[name]:
                value = (
                    reprlib.repr(begun[name]) if begun[name] != str(begun[name]) else begun[name]
                )
                way_out = "choose another --out" if name == "model" else other
                raise PipelineError(
                    f"{name}: {self.training.out} was begun with {value:.200}, this command says "
                    f"{now[name]}; repeat {value:.200}, or {way_out}"
                )

    # --- The loop --------------------------------------------------------------------------------

    def run(self) -> Trained:
        """Train to the end, or until it is stopped."""
        stopping, watchdog = self.stopping, self.processes.watchdog
        stopping.rescue = self._rescue
        try:
            with (
                stopping.by_signals(),
                self._let_go_of_processes(),
                watchdog.awaiting("the device, or the other processes"),
            ):
                self._train()
        finally:
            stopping.left, stopping.rescue = True, None
        if stopping.interrupted and self.stopped:
            raise KeyboardInterrupt
        return self._trained()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.recipe.epochs

    def _trained(self) -> Trained:
        return Trained(
            finished=self.finished,
            step=self.step,
            history=self.history,
            checkpoint=checkpoint_path(self.training.out, self.step),
        )

    def _train(self) -> None:
        try:
            # Gradients, too, are lost with the process that they come from.
            with lost_are_told():
                while not self.stopped and len(self.history) < self.recipe.epochs:
                    # The end of an epoch may be what a training was stopped in.
                    at_end = self.loader.epoch > len(self.history) or self._epoch()
                    if at_end and self._end_epoch():
                        self._save()
                if self.stopped:
                    self._save()
        except LostProcessError:
            # What was reached is kept; every process has the same weights.
            self.stopping.save()
            # One that stops may be gone before its word is here.
            if not self.stopping.hears_within(_WORD_S):
                raise
            self.stopped = True

    @contextmanager
    def _let_go_of_processes(self) -> Iterator[None]:
        """Drop what holds the process group, whose threads would outlive the interpreter else."""
        try:
            yield
        finally:
            self.running = self.called = self.module

    def _epoch(self) -> bool:
        """Train what is left of an epoch; return whether its end was reached."""
        epoch = self.loader.epoch
        begun = time.perf_counter()
        self.running.train()
        batches = iter(self.loader)
        watchdog = self.processes.watchdog
        while True:
            asked = time.perf_counter()
            with watchdog.awaiting(self.loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                return True
            waited = time.perf_counter() - asked
            self._take_step(*batch)
            watchdog.moved()
            if math.isnan(self.loss):
                # So that there is a loss to show.
                self._settle()
            now = time.perf_counter()
            if self.processes.first:
                spent = now - begun
                self.show(
                    Shown(
                        step=self.step,
                        steps=recipe_steps(self.recipe, self.loader),
                        epoch=epoch,
                        loss=self.loss,
                        samples_per_second=self.recipe.batch_size / max(spent, 1e-9),
                        waited=waited / max(spent, 1e-9),
                    )
                )
            begun = now
            self._settle(but=1)
            if self.stopped:
                return False
            every = self.training.checkpoint_every
            if every is not None and self.step % every == 0 and self.loader.epoch == epoch:
                self._save()

    def _settle(self, *, but: int = 0) -> None:
        """Count the steps that were taken, all or all but the last, and agree on going on.

        What a device has computed is asked for when the next step is on its way already: nobody
        waits for it. Every process must come to the same end.

        Raises:
            PipelineError: if the loss of one is not a number, in any process.
        """
        counted = self.taken[: len(self.taken) - but]
        sums, wrong = self._sums_of(counted)
        asked, failed, *total = self.processes.sum(
            float(self.stopping.asked), float(wrong is not None), *sums.values()
        )
        with self.stopping.whole:
            self.taken = self.taken[len(counted) :]
            for name, value in zip(sums, total, strict=True):
                self.sums[name] += value
        self.stopped = self.stopped or asked > 0
        if wrong is not None:
            self._tell_of_no_number(wrong)
        if failed > 0:
            raise PipelineError(
                "the loss is no number in another process, which says more; its samples are in "
                f"{self.training.out / 'no-number-*.json'}"
            )

    def _sums_of(self, steps: Sequence[_Taken]) -> tuple[dict[str, float], _Taken | None]:
        """Return sums over steps in this process, and the first whose loss is not a number."""
        sums = {"loss": 0.0, "correct": 0.0, "seen": 0.0}
        wrong: _Taken | None = None
        for taken in steps:
            total, correct = taken.sums.tolist()
            self.loss = total / taken.n
            if not math.isfinite(self.loss):
                wrong = wrong or taken
                continue
            sums["loss"] += total
            sums["correct"] += correct
            sums["seen"] += taken.n
        return sums, wrong

    def _take_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer."""
        recipe = self.recipe
        rank = self.processes.world.rank
        if self.rival is not None:
            images = self.rival(
                images,
                seed=recipe.seed,
                step=self.step,
                first=rank * len(images),
                views=VIEWS if recipe.jsd else None,
            )
        # For dropout: a function of the step, so that nothing has to be kept for going on.
        torch.manual_seed(seed_of(recipe.seed, self.step, rank))
        rate = recipe.learning_rate_at(self.step, len(self.loader))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        n = len(images)
        if n == 0:
            raise PipelineError(
                f"no sample of this process's part of step {self.step} can be read; run "
                "pixmix-shard verify, or give --bad-samples substitute"
            )
        # A forward pass counts in the norms' means, of a step that may be left.
        self.buffers = {name: each.clone() for name, each in self.module.named_buffers()}
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        chunks = images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate)
        parts = list(zip(*chunks, strict=True))
        for place, (some, theirs) in enumerate(parts):
            last = place + 1 == len(parts)
            with ExitStack() as meanwhile:
                if not last and isinstance(self.running, DistributedDataParallel):
                    meanwhile.enter_context(self.running.no_sync())
                with shapes_are_told(self.module, some.flatten(0, -4), self.network["classes"]):
                    logits, loss = self._loss(some, theirs)
                scaled: Tensor = self.scaler.scale(loss * (len(some) / n))
                scaled.backward()  # type: ignore[no-untyped-call]
            sums[0] += loss.detach().double() * len(some)
            sums[1] += (logits.argmax(1) == theirs).sum()
        with self.stopping.whole:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None and recipe.ema_decay is not None:
                averaged(self.average, self.module.state_dict(), recipe.ema_decay)
            self.buffers, self.place = None, self.loader.state_dict()
            self.taken.append(
                _Taken(
                    step=self.step,
                    sums=sums,
                    n=n,
                    indices=self.loader.last_indices.copy(),
                    place=self.place,
                )
            )
            self.step += 1

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the first views, and the mean loss."""
        recipe = self.recipe
        with self._precision():
            if not recipe.jsd:
                logits = self.called(_laid_out(images))
                loss = functional.cross_entropy(
                    logits.float(), labels, label_smoothing=recipe.label_smoothing
                )
                return logits.detach(), loss
            # (B, views, ...) side by side in one batch, views first.
            views = images.transpose(0, 1).flatten(0, 1)
            logits = self.called(_laid_out(views))
            logits = logits.view(VIEWS, len(images), -1)
            loss = loss_of_views(
                logits, labels, jsd_weight=recipe.jsd_weight,
                label_smoothing=recipe.label_smoothing,
            )  # fmt: skip
            return logits[0].detach(), loss

    @contextmanager
    def _precision(self) -> Iterator[None]:
        if self.recipe.precision == "float32":
            yield
            return
        dtype = torch.bfloat16 if self.recipe.precision == "bfloat16" else torch.float16
        with torch.autocast(self.device.type, dtype):
            yield

    def _tell_of_no_number(self, taken: "_Taken") -> None:
        loss = taken.sums[0].item() / taken.n
        shards = self.training.train
        places = {
            "step": taken.step,
            "loss": str(loss),
            "rank": self.processes.world.rank,
            "epoch": taken.place["epoch"],
            "last_sample_of_the_batch": taken.place["consumed"],
            "batch_size": self.recipe.batch_size,
            "samples": taken.indices.tolist(),
            "keys": [shards.key(int(i)) for i in taken.indices],
        }
        path = self.training.out / f"no-number-{taken.step:08d}-{self.processes.world.rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(places, indent=1) + "\n").encode())
        raise PipelineError(
            f"the loss of step {taken.step} is {loss}; the samples of its batch are in {path}. "
            "Give a smaller --learning-rate, a --warm-up, or --precision float32"
        )

    # --- The end of an epoch ---------------------------------------------------------------------

    def _end_epoch(self) -> bool:
        """Evaluate the network; return False where the training is to stop before."""
        self._settle()
        record: dict[str, Any] = {
            "epoch": self.loader.epoch,
            "step": self.step,
            "learning_rate": self.recipe.learning_rate_at(self.step, len(self.loader)),
            "train_loss": self.sums["loss"] / self.sums["seen"],
            "train_error": 1 - self.sums["correct"] / self.sums["seen"],
        }
        sets = {"validation": self.training.validation, "test": self.training.test}
        for name, shards in sets.items():
            if shards is not None:
                found = self._evaluate(shards)
                if found is None:
                    return False
                record[f"{name}_loss"], record[f"{name}_error"] = found
        with self.stopping.whole:
            self.history.append(record)
            self.sums = dict.fromkeys(self.sums, 0.0)
        if self.processes.first:
            show_in_tensorboard(self.training.out, record)
            self.show_epoch(record)
        error = record.get("validation_error")
        if error is not None and error < self.best:
            self.best = error
            self._save(self.training.out / "checkpoints" / "best.pt")
        return True

    def _evaluate(self, shards: RemoteShards) -> tuple[float, float] | None:
        """Return the mean cross entropy and the error over a set, each sample once.

        None where the training is to stop before its end.
        """
        world = self.processes.world
        loader: EvalLoader = eval_loader(
            shards,
            batch_size=-(-self.recipe.batch_size // world.size) * world.size,
            preprocess=self.training.preprocess,
            rank=world.rank,
            world_size=world.size,
            num_workers=self.training.num_workers,
            n_threads=self.training.n_threads,
            # A substitute would count twice.
            on_decode_error="raise" if self.training.on_decode_error == "raise" else "skip",
            max_decode_errors=self.training.max_decode_errors,
            cache_dir=self.training.cache_dir,
            remote=self.training.remote,
        )
        loss = wrong = seen = 0.0
        with self._averaged_weights(), torch.no_grad(), self._precision():
            self.module.eval()
            self.processes.share_buffers(self.module)
            outputs = self.labels[shards.shards.hash]
            for images, labels, weights in self._watched(loader):
                there = (labels if outputs is None else outputs[labels]).to(self.device)
                logits = self.module(_laid_out(images.to(self.device))).float()
                each = functional.cross_entropy(logits, there, reduction="none").cpu()
                loss += float((each * weights).sum())
                wrong += float(((logits.argmax(1) != there).cpu() * weights).sum())
                seen += float(weights.sum())
                if self.stopping.asked:
                    break
        asked, loss, wrong, seen = self.processes.sum(float(self.stopping.asked), loss, wrong, seen)
        self.stopped = self.stopped or asked > 0
        return None if self.stopped else (loss / seen, wrong / seen)

    def _watched(self, loader: EvalLoader) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give the batches of an evaluation, each of which counts as a move."""
        batches = iter(loader)
        while True:
            with self.processes.watchdog.awaiting(loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            self.processes.watchdog.moved()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights in the place of the current ones, where they are kept."""
        if self.average is None:
            yield
            return
        current = {name: each.clone() for name, each in self.module.state_dict().items()}
        with self.stopping.whole:
            self.current = current
            self.module.load_state_dict(self.average)
        try:
            yield
        finally:
            with self.stopping.whole:
                self.module.load_state_dict(current)
                self.current = None

    def _save(self, path: Path | None = None) -> None:
        """Write a checkpoint and the metrics so far, in the first process."""
        self._settle()
        if self.processes.first and (path is not None or self.saved != self.step):
            with self.stopping.whole:
                self._write(path)
        self.processes.wait()
        self.processes.watchdog.moved()

    def _rescue(self) -> Trained:
        """Write a checkpoint of the last whole step, if there is none; from another thread.

        Other processes are not asked, and those that did not tell of their last step do not count
        in the losses of the epoch.
        """
        if self.processes.first and self.saved != self.step:
            sums, wrong = self._sums_of(self.taken)
            if wrong is not None:
                self._tell_of_no_number(wrong)
            for name, value in sums.items():
                self.sums[name] += value
            self._write()
        self.ending.step, self.ending.finished = self.step, self.finished
        self.ending.end_now()
        return self._trained()

    def _write(self, path: Path | None = None) -> None:
        """Write a checkpoint of the last whole step: of the run, or apart from its other ones."""
        where = path or checkpoint_path(self.training.out, self.step)
        with self.processes.watchdog.awaiting(f"{where} to be written"):
            buffers = self.buffers or {}
            module = {
                name: buffers.get(name, value) for name, value in self.module.state_dict().items()
            }
            current = self.current or module
            content: dict[str, Any] = {
                "network": self.network,
                "recipe": self.recipe.to_json(),
                "mixing_set": self.loader.mixing_fingerprint,
                # Those that are evaluated; the current ones beside them where they are others.
                "state_dict": self.average or current,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "loader": self.place,
                "step": self.step,
                "history": self.history,
                "sums": self.sums,
                "best": self.best,
            }
            if self.average is not None:
                content["current"] = current
            save_checkpoint(where, content)
        if path is None:
            self.saved = self.step
            keep_newest(self.training.out, self.training.keep)
            write_metrics(self.training.out, self.history)


def _laid_out(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) images with their channels last in memory, as the network has them."""
    return images.contiguous(memory_format=torch.channels_last)


def recipe_steps(recipe: Recipe, loader: TrainLoader) -> int:
    """Return the steps of a whole training."""
    return recipe.epochs * len(loader)


def _other_out(path: Path) -> str:
    """Return the remedy where a checkpoint's training cannot be resumed."""
    return f"begin with its weights in another --out, by --weights {path}"
