"""Variational fine-tuning of a shared network from its checkpoint.

Minimises the objective of `objective.py` plus lambda times the bits of the ids; that last part is minimised where
latent weights are assigned to components. The ratio rises from that of a file that loses next to nothing to the target;
at each stage rate control finds bank and lambda anew for the latent weights as they have become. Then the bank is
trained as well, and lambda only follows the size of the file; in the end nothing moves but what is trained.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from gbnn_compress.errors import GbnnError
from gbnn_compress.training import processes
from gbnn_compress.training.batch_norm import running_statistics
from gbnn_compress.training.objective import Loss, loss_of
from gbnn_compress.training.schedule import Optimisers, Schedule
from gbnn_compress.training.shared_weights import SharedWeights

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images float32 (B, C, H, W), preprocessed, and labels int64 (B,)."""

STAGES = 16
"""Times that rate control is asked while the ratio rises."""

CHECKS = 16
"""Times that the size of the file is looked at afterwards, and lambda corrected by as much as the file is too large.
Weights gather at the thresholds as they learn, and sizes come to go with lambda^-1 or steeper. Corrections by what one
codebook asks for (`trainer.LAMBDA_BY_SIZE`) swung up until ResNet-20 at 50x had lost five points."""

SETTLED = 0.75
"""Share of the steps after which thresholds stay where they are, if they can. Later steps are too small to bring
weights back that a moving threshold has carried along: cross-entropy at 50x rose from .38 to .50 as rates fell."""

FITTING = (0.9, 1.015)
"""Sizes over those aimed at that then are left as they are. Others move lambda alone, and by the root of the excess:
thresholds that followed means and members threw LeNet-5 at 200x to 350x and back to 100x; and from 217x back to 200x,
they made it lose in the last epoch what it had won in the three before."""

KEPT = 0.98
"""Weight of the steps before in the averages that are shown."""

APART = 1_000_003
"""Between the seeds of two epochs, which so differ from those of other processes and of other runs."""

State = Mapping[str, Any]
"""All that changes in training, at the end of an epoch: nested dicts, lists and values with tensors in them."""


@dataclass(frozen=True)
class Progress:
    """What there is to say after an epoch.

    Attributes:
        epoch: Epochs done.
        epochs: Epochs in all.
        losses: `cross_entropy`, `distillation` and `divergence`, in nats an input.
        bits_per_weight: Code lengths of the ids, before contexts.
        relative_size: Bytes of the file over what is aimed at.
        seconds_left: At the pace so far.
    """

    epoch: int
    epochs: int
    losses: Mapping[str, float]
    bits_per_weight: float
    relative_size: float
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """How far training came.

    Attributes:
        steps: Done, and in the weights.
        interrupted: Whether Ctrl-C ended it.
    """

    steps: int
    interrupted: bool


@dataclass
class FineTuning:
    """A network in training.

    Attributes:
        network: Holding the checkpoint's weights. Norms and biases are trained in place and batch-norm statistics
            follow; shared weights are handed in, its own stay as they were.
        shared: Its shared weights.
        schedule: How long and how fast.
        recode: Makes `shared` adopt the codebook for a stage, in (0, 1]; 1 is the target.
        relative_size: Bytes of the file as things are, over what is aimed at.
        tell: Called with a line when something has to be said.
        keep: Called with the state at the end of each epoch; not to be changed.
    """

    network: torch.nn.Module
    shared: SharedWeights
    schedule: Schedule
    recode: Callable[[float], None]
    relative_size: Callable[[], float]
    tell: Callable[[str], None]
    keep: Callable[[State], None]
    _losses: dict[str, float] = field(default_factory=dict)
    _parts: int = 1
    _good: State | None = None

    def run(
        self,
        batches: Callable[[int], Iterator[Batch]],
        *,
        after_epoch: Callable[[Progress], None],
        seed: int,
        start: State | None = None,
    ) -> Outcome:
        """Train until the schedule ends, or Ctrl-C, or a loss that is no number: then the last epoch's state is kept.

        Args:
            batches: Maps an epoch to its shuffled batches, the same for the same epoch.
            after_epoch: Told how it goes.
            seed: Of the posterior draws, and of whatever chance the network has of its own.
            start: Where to go on; the network and its shared weights as they were made then take it over.

        Returns:
            How far it came. The codebook is that of the target.

        Raises:
            GbnnError: The loss is no longer finite in the first epoch.
            KeyboardInterrupt: Ctrl-C where several processes train, as each would stop at another step.
        """
        self._teacher = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self._generator = torch.Generator(device=self.shared.device).manual_seed(seed + processes.rank())
        first, step = self._begin(start)
        began, interrupted = time.perf_counter(), False
        self.network.train()
        try:
            with _own_chance(self.shared.device):
                for epoch in range(first, self.schedule.epochs + 1):
                    torch.manual_seed(seed + APART * epoch + processes.rank())
                    for images, labels in batches(epoch):
                        self._before(step)
                        self._step(images, labels, step)
                        step += 1
                    pace = (time.perf_counter() - began) / (epoch - first + 1)
                    progress = self._progress(epoch, pace)
                    self._require_same(epoch)
                    self._good = self._state(epoch, step)
                    self.keep(self._good)  # before anybody hears that the epoch is over, and may stop here
                    after_epoch(progress)
        except KeyboardInterrupt:
            if processes.count() > 1:
                self.tell("interrupted: the same command goes on after the last finished epoch")
                raise
            self.tell("interrupted: finishing with what there is; Ctrl-C again writes nothing")
            interrupted = True
        except _DivergedError as error:
            if self._good is None:
                raise
            self.tell(f"{error}; going back to the end of the last epoch")
            self._go_back(self._good)
            step = self._good["step"]
        if step < self.schedule.steps and step <= self.schedule.rising:
            self.recode(1.0)
        self.network.eval()
        return Outcome(step, interrupted)

    def _begin(self, start: State | None) -> tuple[int, int]:
        """The epoch and the step to begin with."""
        if start is not None:
            self._go_back(start)
        self._optimisers = Optimisers(self.network, self.shared, self.schedule)
        if start is None:
            return 1, 0
        self._optimisers.restore(start["optimisers"])
        self._generator.set_state(start["generators"][processes.rank()])
        self._losses, self._parts, self._good = dict(start["losses"]), start["parts"], start
        return start["epoch"] + 1, start["step"]

    def _state(self, epoch: int, step: int) -> State:
        """Everything that `_begin` needs to go on as if nothing had happened, a copy."""
        replaced = set(self.shared.own.values())
        plain = {name: t for name, t in self.network.state_dict().items() if name not in replaced}
        state = {
            "epoch": epoch,
            "step": step,
            "network": plain,
            "shared": self.shared.state(),
            "optimisers": self._optimisers.state(),
            "losses": self._losses,
            "parts": self._parts,
        }
        return {**copy.deepcopy(state), "generators": processes.gathered(self._generator.get_state())}

    def _require_same(self, epoch: int) -> None:
        """Processes whose weights differ assign other ids, and average gradients of different networks."""
        if processes.count() == 1:
            return
        weights = [*self.shared.latent.values(), self.shared.coding.means]
        digest = hashlib.sha256(b"".join(w.detach().cpu().numpy().tobytes() for w in weights)).hexdigest()
        if len(set(processes.gathered(digest))) > 1:
            raise GbnnError(
                f"after epoch {epoch} the weights of the processes differ, expected the same: run all of them on"
                " machines of one kind, with the same versions"
            )

    def _go_back(self, state: State) -> None:
        self.network.load_state_dict(state["network"], strict=False)
        self.shared.restore(state["shared"])

    def _before(self, step: int) -> None:
        """The stage, or the check of the size, that is due; and the learning rates."""
        rising, steps = self.schedule.rising, self.schedule.steps
        settled = round(SETTLED * steps)
        stage, check = max(rising // STAGES, 1), max((settled - rising) // CHECKS, 1)
        if step == 0 or (step <= rising and step % stage == 0):
            self.recode(min((step + stage) / rising, 1.0))
            self._optimisers.watch_bank()
        elif step > rising and (step - rising) % check == 0:
            size = self.relative_size()
            if step <= settled:
                self.shared.reprice(self.shared.coding.book.penalty * size)
            elif not FITTING[0] < size < FITTING[1]:
                self.shared.reprice(self.shared.coding.book.penalty * math.sqrt(size), recount=False)
        self._optimisers.set_rates(step)

    def _step(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> None:
        """One step, or where memory does not do, several with a part of the batch each."""
        parts = zip(images.chunk(self._parts), labels.chunk(self._parts), strict=True)
        try:
            for some, wanted in parts:
                self._learn(self._loss(some, wanted), step)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or self._parts >= len(images):
                raise
            if processes.count() > 1:  # the others would wait for as many steps as they do themselves
                raise GbnnError(
                    f"out of memory with {len(images)} images a process: lower `finetune.batch_size`"
                ) from error
        else:
            return
        self._parts *= 2
        self.tell(f"out of memory: going on with {max(len(images) // self._parts, 1)} images a step")
        self._step(images, labels, step)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> Loss:
        return loss_of(
            self.network,
            self._teacher,
            self.shared,
            images,
            labels,
            dataset_size=self.schedule.dataset_size,
            half=self.schedule.half,
            generator=self._generator if self.schedule.noisy and self.shared.coding.noise else None,
        )

    def _learn(self, loss: Loss, step: int) -> None:
        total = loss.total(distillation=self.schedule.distillation, beta=self.schedule.beta_at(step))
        now = total.detach().clone()
        processes.average_([now])  # no number anywhere is no number everywhere: all stop at the same step
        if not bool(now.isfinite()):
            raise _DivergedError(f"the loss became {float(now)} at step {step + 1}: lower `finetune.learning_rate`")
        self._optimisers.step(total)
        processes.average_(running_statistics(self.network))
        for name in ("cross_entropy", "distillation", "divergence"):
            value = float(getattr(loss, name).detach())
            self._losses[name] = KEPT * self._losses.get(name, value) + (1 - KEPT) * value

    def _progress(self, epoch: int, pace: float) -> Progress:
        return Progress(
            epoch=epoch,
            epochs=self.schedule.epochs,
            losses=dict(self._losses),
            bits_per_weight=self.shared.coding.bits(self.shared.ids()) / self.shared.n_weights,
            relative_size=self.relative_size(),
            seconds_left=pace * (self.schedule.epochs - epoch),
        )


class _DivergedError(GbnnError):
    """The loss is no longer a number."""


def _own_chance(device: torch.device) -> AbstractContextManager[None]:
    """Dropout and its like draw from torch's own generators, which are the user's again after the block."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
