"""Variational fine-tuning of a shared network from its checkpoint.

Training minimises the objective of `objective.py` plus lambda times the bits of the ids. Gradients serve the first
part; the assignment of latent weights to components serves the second.

The ratio rises in stages, from one at which a file loses next to nothing to the target. At each stage, rate control
finds a new bank and lambda for the current latent weights. After the last stage the bank is trained as well, and lambda
only follows the size of the file. In the end the thresholds between components stay, too.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.errors import GbnnError, one_line
from gbnn_compress.predict.running import copied
from gbnn_compress.training import processes
from gbnn_compress.training.batch_norm import running_statistics
from gbnn_compress.training.goal import Goal, out_of_memory
from gbnn_compress.training.loaded import APART
from gbnn_compress.training.objective import Loss, loss_of
from gbnn_compress.training.schedule import Optimisers, Schedule
from gbnn_compress.training.shared_weights import SharedWeights

KEPT = 0.98
"""Weight of the earlier steps in the running averages of the losses."""

State = Mapping[str, Any]
"""Everything that training changes, at the end of an epoch: nested dicts, lists and values with tensors in them."""


class RateControl(Protocol):
    """What training needs of rate control."""

    def recode(self, fraction: float) -> None:
        """Make the shared weights adopt the codebook of a stage; the ratio reaches the target at fraction 1."""

    def relative_size(self) -> float:
        """Bytes of the current file over the wanted bytes."""
        ...


@dataclass(frozen=True)
class Progress:
    """The state of training after an epoch.

    Attributes:
        epoch: Epochs done.
        epochs: Epochs in all.
        losses: The parts of the loss, by the names of `Loss.values`.
        bits_per_weight: Code lengths of the ids, before contexts.
        relative_size: Bytes of the file over the wanted bytes.
        seconds_left: At the pace so far.
    """

    epoch: int
    epochs: int
    losses: Mapping[str, float]
    bits_per_weight: float
    relative_size: float
    seconds_left: float


@dataclass(frozen=True)
class TrainingOutcome:
    """How far training came.

    Attributes:
        steps: Steps that the weights have behind them.
        interrupted: Whether Ctrl-C ended training.
        last: The progress after the last epoch of this run; None where it finished no epoch.
    """

    steps: int
    interrupted: bool
    last: Progress | None


class FineTuning:
    """A network in training.

    Unshared tensors of the network are trained in place, and its batch-norm statistics follow. Shared weights are
    handed in at each step; the network's own stay as they were.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        shared: SharedWeights,
        schedule: Schedule,
        control: RateControl,
        *,
        seed: int,
        on_progress: Callable[[str], None],
        keep: Callable[[State], None],
        start: State | None = None,
        goal: Goal | None = None,
        teacher: torch.nn.Module | None = None,
    ) -> None:
        """Prepare for training, or for its continuation.

        Args:
            network: Holds the checkpoint's weights.
            shared: Its shared weights.
            schedule: How long and how fast to train.
            control: Finds the codebooks.
            seed: Of the posterior draws, and of dropout and other chance in the network.
            on_progress: Called with one line of text when training does not go as usual.
            keep: Called with the state at the end of each epoch, which it must not change.
            start: The state to continue from, which stays as it is; None begins at the first step.
            goal: What the network is trained towards; default: labels and the checkpoint's logits.
            teacher: The checkpoint's network, which is not changed; default: the network as it is now.
        """
        self._network, self._shared, self._schedule, self._control = network, shared, schedule, control
        self._seed, self._on_progress, self._keep = seed + processes.rank(), on_progress, keep
        self._goal = goal or Goal()
        original = copied(network if teacher is None else teacher).to(shared.device)  # calibration runs on the CPU
        self._teacher = original.eval().requires_grad_(requires_grad=False)
        self._generator = torch.Generator(device=shared.device).manual_seed(self._seed)
        self._epoch, self._step, self._parts, self._losses = 0, 0, 1, dict[str, float]()
        self._good = start
        self._last: Progress | None = None
        if start is not None:
            self._go_back(start)
        self._optimisers = Optimisers(network, shared, schedule)
        if start is not None:
            self._optimisers.restore(start["optimisers"])
            self._generator.set_state(start["generators"][processes.rank()])
        elif schedule.coded:
            self._optimisers.watch_bank()

    def run(
        self, batches: Callable[[int], Iterator[Batch]], *, after_epoch: Callable[[Progress], None] = lambda _: None
    ) -> TrainingOutcome:
        """Train until the schedule ends, or until Ctrl-C; a loss that is not finite ends it at the last epoch's state.

        Args:
            batches: Maps an epoch to its shuffled batches, the same for the same epoch.
            after_epoch: Called with the progress after each epoch.

        Returns:
            How far training came. The codebook is that of the target.

        Raises:
            GbnnError: The network or the user's loss fails, the loss is not finite in the first epoch, or the weights
                of several processes differ.
            KeyboardInterrupt: Ctrl-C with several processes, each of which would stop at another step.
        """
        interrupted = False
        self._network.train(self._goal.in_training_mode)
        try:
            with _own_chance(self._shared.device):
                self._train(batches, after_epoch)
        except KeyboardInterrupt:
            if processes.count() > 1:
                self._on_progress("interrupted: the same command continues after the last finished epoch")
                raise
            self._on_progress("interrupted: writing the file of the steps done; Ctrl-C again writes nothing")
            interrupted = True
        except _DivergedError as error:
            if self._good is None:
                raise
            self._on_progress(f"{error}; going back to the end of the last epoch")
            self._go_back(self._good)
        if self._step < self._schedule.steps and self._step <= self._schedule.rising and not self._schedule.coded:
            self._control.recode(1.0)
        self._network.eval()
        return TrainingOutcome(self._step, interrupted, self._last)

    def _train(self, batches: Callable[[int], Iterator[Batch]], after_epoch: Callable[[Progress], None]) -> None:
        """All epochs that are left."""
        began, first = time.perf_counter(), self._epoch + 1
        for epoch in range(first, self._schedule.epochs + 1):
            torch.manual_seed(self._seed + APART * epoch)
            for batch in batches(epoch):
                self._before_step()
                self._learn_batch(batch)
                self._step += 1
            self._epoch = epoch
            pace = (time.perf_counter() - began) / (epoch - first + 1)
            self._last = self._progress(pace)
            self._require_same_weights()
            self._good = self._state()
            self._keep(self._good)  # before `after_epoch`, which may end the run
            after_epoch(self._last)

    def _state(self) -> State:
        """A copy of everything that a continuation needs to give the same bytes."""
        replaced = set(self._shared.own.values())
        plain = {name: t for name, t in self._network.state_dict().items() if name not in replaced}
        state = {
            "epoch": self._epoch,
            "step": self._step,
            "network": plain,
            "shared": self._shared.state(),
            "optimisers": self._optimisers.state(),
            "losses": self._losses,
            "parts": self._parts,
        }
        return {**copy.deepcopy(state), "generators": processes.gathered(self._generator.get_state())}

    def _go_back(self, state: State) -> None:
        """Take over a state, but for the optimisers and the generator."""
        self._network.load_state_dict(state["network"], strict=False)
        self._shared.restore(state["shared"])
        self._epoch, self._step, self._parts = state["epoch"], state["step"], state["parts"]
        self._losses = dict(state["losses"])

    def _require_same_weights(self) -> None:
        """Processes with different weights would average gradients of different networks."""
        if processes.count() == 1:
            return
        weights = [*self._shared.latent.values(), self._shared.coding.means]
        digest = hashlib.sha256(b"".join(w.detach().cpu().numpy().tobytes() for w in weights)).hexdigest()
        if len(set(processes.gathered(digest))) > 1:
            raise GbnnError(
                f"after epoch {self._epoch} the weights of the processes differ, expected the same: run all of them on"
                " machines of one kind, with the same versions"
            )

    def _before_step(self) -> None:
        """Let rate control act where it is due, and set the learning rates."""
        step, schedule, shared = self._step, self._schedule, self._shared
        fraction = schedule.stage_at(step)
        if fraction is not None:
            self._control.recode(fraction)
            self._optimisers.watch_bank()
        elif schedule.checks_size(step):
            size, penalty = self._control.relative_size(), shared.coding.book.penalty
            smallest, largest = schedule.pacing.accepted
            if not schedule.has_settled(step):
                shared.reprice(penalty * size)
            elif not smallest < size < largest:
                shared.reprice(penalty * math.sqrt(size), recount=False)
        self._optimisers.set_rates(step)

    def _learn_batch(self, batch: Batch) -> None:
        """One optimiser step, or where memory is short, several with a part of the batch each."""
        while True:
            try:
                for part in _parts(batch, self._parts):
                    self._learn(self._loss(part))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self._parts >= batch.size:
                    raise
                if len(_parts(batch, 2)) == 1:
                    raise GbnnError(
                        f"out of memory with a batch of {batch.size} inputs: give smaller batches"
                    ) from error
                if processes.count() > 1:  # the others would wait for as many steps as they take themselves
                    raise GbnnError(
                        f"out of memory with {batch.size} images per process: lower `finetune.batch_size`"
                    ) from error
            else:
                return
            self._parts *= 2
            left = max(batch.size // self._parts, 1)
            self._on_progress(f"out of memory: continuing with {left} images per step")

    def _loss(self, batch: Batch) -> Loss:
        return loss_of(
            self._network,
            self._teacher,
            self._shared,
            batch,
            goal=self._goal,
            dataset_size=self._schedule.dataset_size,
            half=self._schedule.half,
            generator=self._generator if self._schedule.noisy and self._shared.coding.noise else None,
        )

    def _learn(self, loss: Loss) -> None:
        total = loss.total(distillation=self._schedule.distillation, beta=self._schedule.beta_at(self._step))
        mean = total.detach().clone()
        processes.average_([mean])  # not finite in one process is not finite in all: they stop at the same step
        if not bool(mean.isfinite()):
            step = self._step + 1
            raise _DivergedError(f"the loss became {float(mean)} at step {step}: lower `finetune.learning_rate`")
        self._follow(total)
        processes.average_(running_statistics(self._network))
        self._losses = {
            name: KEPT * self._losses.get(name, value) + (1 - KEPT) * value for name, value in loss.values().items()
        }

    def _follow(self, total: torch.Tensor) -> None:
        """A step of the optimisers."""
        if not total.requires_grad:
            raise GbnnError(
                "the outputs do not depend on the weights that are trained: the network gives no gradients"
                " (torch.no_grad or detach), or `forward` does not call the network that it is given; use `--epochs 0`"
            )
        try:
            self._optimisers.step(total)
        except RuntimeError as error:
            if out_of_memory(error) or processes.count() > 1:
                raise
            raise GbnnError(
                f"the network gives no gradients ({one_line(error)}): do nothing in place that gradients need, or use"
                " `--epochs 0`"
            ) from error

    def _progress(self, pace: float) -> Progress:
        coding = self._shared.coding
        return Progress(
            epoch=self._epoch,
            epochs=self._schedule.epochs,
            losses=self._losses,
            bits_per_weight=coding.bits(self._shared.ids()) / self._shared.n_weights,
            relative_size=self._control.relative_size(),
            seconds_left=pace * (self._schedule.epochs - self._epoch),
        )


class _DivergedError(GbnnError):
    """The loss is not finite."""


def _own_chance(device: torch.device) -> AbstractContextManager[None]:
    """Dropout and its like draw from torch's global generators, which have their old state after the block."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts, where it consists of a tensor of inputs and, with targets, of one as long."""
    inputs, targets = batch.inputs, batch.targets
    if count == 1 or not isinstance(inputs, torch.Tensor):
        return [batch]
    if targets is None:
        return [read_batch(part) for part in inputs.chunk(count)]
    if not isinstance(targets, torch.Tensor) or not targets.dim() or len(targets) != len(inputs):
        return [batch]
    return [read_batch(pair) for pair in zip(inputs.chunk(count), targets.chunk(count), strict=True)]
