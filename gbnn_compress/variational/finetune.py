"""Variational fine-tuning of a shared network from its checkpoint.

Minimises the objective of `objective.py` plus lambda times the bits of the ids; that last part is minimised where
latent weights are assigned to components. The ratio rises from that of a file that loses next to nothing to the target;
at each stage rate control finds bank and lambda anew for the latent weights as they have become. Then the bank is
trained as well, and lambda only follows the size of the file; in the end nothing moves but what is trained.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from gbnn_compress.errors import GbnnError
from gbnn_compress.variational.objective import Loss, loss_of
from gbnn_compress.variational.schedule import Optimisers, Schedule
from gbnn_compress.variational.shared import SharedWeights

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

FITTING = (0.992, 1.015)
"""Sizes over those aimed at that then are left as they are."""

KEPT = 0.98
"""Weight of the steps before in the averages that are shown."""


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
    """

    network: torch.nn.Module
    shared: SharedWeights
    schedule: Schedule
    recode: Callable[[float], None]
    relative_size: Callable[[], float]
    tell: Callable[[str], None]
    _losses: dict[str, float] = field(default_factory=dict)
    _parts: int = 1
    _good: tuple[Mapping[str, torch.Tensor], SharedWeights, int] | None = None

    def run(
        self, batches: Callable[[int], Iterator[Batch]], *, after_epoch: Callable[[Progress], None], seed: int
    ) -> int:
        """Train until the schedule ends, or Ctrl-C, or a loss that is no number: then the last epoch's state is kept.

        Args:
            batches: Maps an epoch to its shuffled batches, the same for the same epoch.
            after_epoch: Told how it goes.
            seed: Of the posterior draws.

        Returns:
            Steps done. The codebook is that of the target.

        Raises:
            GbnnError: The loss is no longer finite in the first epoch.
        """
        self._teacher = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self._optimisers = Optimisers(self.network, self.shared, self.schedule)
        self._generator = torch.Generator(device=self.shared.device).manual_seed(seed)
        start, step = time.perf_counter(), 0
        self.network.train()
        try:
            for epoch in range(1, self.schedule.epochs + 1):
                for images, labels in batches(epoch):
                    self._before(step)
                    self._step(images, labels, step)
                    step += 1
                after_epoch(self._progress(epoch, time.perf_counter() - start))
                self._good = copy.deepcopy((self.network.state_dict(), self.shared, step))
        except KeyboardInterrupt:
            pass
        except _DivergedError as error:
            if self._good is None:
                raise
            self.tell(f"{error}; going back to the end of the last epoch")
            self.network.load_state_dict(self._good[0])
            vars(self.shared).update(vars(self._good[1]))
            step = self._good[2]
        if step < self.schedule.steps and step <= self.schedule.rising:
            self.recode(1.0)
        self.network.eval()
        return step

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
            if step <= settled or not FITTING[0] < size < FITTING[1]:
                self.shared.reprice(self.shared.book.penalty * size)
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
            generator=self._generator if self.schedule.noisy and self.shared.noise else None,
        )

    def _learn(self, loss: Loss, step: int) -> None:
        total = loss.total(distillation=self.schedule.distillation, beta=self.schedule.beta_at(step))
        if not bool(total.detach().isfinite()):
            raise _DivergedError(
                f"the loss became {float(total.detach())} at step {step + 1}: lower `finetune.learning_rate`"
            )
        self._optimisers.step(total)
        for name in ("cross_entropy", "distillation", "divergence"):
            value = float(getattr(loss, name).detach())
            self._losses[name] = KEPT * self._losses.get(name, value) + (1 - KEPT) * value

    def _progress(self, epoch: int, seconds: float) -> Progress:
        return Progress(
            epoch=epoch,
            epochs=self.schedule.epochs,
            losses=dict(self._losses),
            bits_per_weight=self.shared.bits(self.shared.ids()) / self.shared.n_weights,
            relative_size=self.relative_size(),
            seconds_left=seconds / epoch * (self.schedule.epochs - epoch),
        )


class _DivergedError(GbnnError):
    """The loss is no longer a number."""


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
