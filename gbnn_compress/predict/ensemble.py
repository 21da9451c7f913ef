"""Several compressed networks of one file, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.alike import in_member, per_member, require_alike
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.network import CompressedNetwork, batches_of, check_drawing, first_outputs
from gbnn_compress.predict.outputs import OutputPrediction, averaged, joined, of_posterior, prediction, together
from gbnn_compress.predict.prediction import Prediction, across_members
from gbnn_compress.report import sizes
from gbnn_compress.report.schema import EnsembleReport
from gbnn_compress.types import Ensemble

if TYPE_CHECKING:
    import torch


class CompressedEnsemble:
    """An ensemble, and the networks that run with its weights.

    Attributes:
        ensemble: The decoded content of the file.
        members: Its networks, in the order of the file.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.members = [CompressedNetwork(member) for member in ensemble.members]

    def report(self) -> EnsembleReport:
        """The report (schema 1) of the file."""
        return sizes.ensemble_report(self.ensemble)

    def to_module(self, network: Any = None, *, strict: bool | None = None) -> list[torch.nn.Module]:
        """Load the posterior-mean weights of each member into a network.

        Args:
            network: A list or tuple with one network per member, in order; or one for all: a callable that makes it,
                the specification of an architecture, or None for the architecture that each member records. A single
                module serves as the pattern of all: each member gets a copy.
            strict: As for `CompressedNetwork.to_module`.

        Returns:
            One network per member, in evaluation mode.

        Raises:
            GbnnError: The number of networks is another one, an architecture is not known, weights do not fit, or one
                module is given for several members.
        """
        found = list[Any]()
        for number, own in enumerate(per_member(network, len(self.members), copy=True, option="`network`")):
            with in_member(number):
                filled = self.members[number].to_module(own, strict=strict)
            if any(filled is each for each in found):
                raise GbnnError(
                    "`network`: expected a module of its own for each member, got one for several; a single module is"
                    " copied for each"
                )
            found.append(filled)
        return found

    def predict(
        self,
        x: Any,
        *,
        samples: int = 16,
        seed: int = 0,
        batch_size: int = 128,
        task: str | None = None,
        output: str | int | None = None,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    ) -> Any:
        """Class probabilities, or the outputs of networks that are no classifiers, averaged over members and draws.

        Args:
            x: A batch, as for `CompressedNetwork.predict`.
            samples: Number of draws of each member. 0: the posterior means.
            seed: Seed of the first draw of each member.
            batch_size: Number of inputs per forward pass, if `x` is a tensor. Other batches run whole.
            task: `classifier` or `other`, of all members. Default: as for `CompressedNetwork.predict`.
            output: Name or position of the one output that counts. Default: every floating output.
            forward: `f(network, batch) -> outputs`, where calling a network with the inputs does not fit.

        Returns:
            Of classifiers, the mean of the members' probabilities, each at its own temperature, float64 (N, C). Of
            other networks, the mean of their outputs, in the nesting of the first member's.

        Raises:
            GbnnError: An argument is out of range, the members' outputs differ in kind or shape, the inputs do not fit
                a network, or an architecture is not known (then call `to_module` first).
        """
        found = self.predict_with_uncertainty(
            x, samples=samples, seed=seed, batch_size=batch_size, task=task, output=output, forward=forward
        )
        return found.probabilities if isinstance(found, Prediction) else found.mean

    def predict_with_uncertainty(
        self,
        x: Any,
        *,
        samples: int = 16,
        seed: int = 0,
        batch_size: int = 128,
        task: str | None = None,
        output: str | int | None = None,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    ) -> Prediction | OutputPrediction:
        """`predict` with the uncertainty of the result, of members and draws together. Takes the same arguments.

        Returns:
            Of classifiers, `probabilities` float64 (N, C), `entropy` and `mutual_information` float64 (N,) in nats. Of
            other networks, `mean` and `standard_deviation`, each in the nesting of the first member's outputs. Of both,
            `samples`: the number of draws of all members.

        Raises:
            GbnnError: As for `predict`.
        """
        check_drawing(samples=samples, seed=seed, batch_size=batch_size)
        batches, how = batches_of(x, batch_size), Forward(forward, output)
        found = []
        for number, member in enumerate(self.members):
            with in_member(number):
                found.append(first_outputs(member, x, batches[0], how, task=task))
        sources, tasks, outputs = zip(*found, strict=True)
        settled = require_alike(tasks, outputs)
        if settled == CLASSIFIER:
            averages = partial(monte_carlo, samples=samples, seed=seed, option="x", forward=how, positions=True)
            return across_members([averages(source, batches) for source in sources])
        weights = together([of_posterior(source, samples=samples, seed=seed) for source in sources])
        draws = averaged(weights, batches, forward=how, option="x")
        return joined([prediction(each, forward=how) for each in draws], [batch.size for batch in batches])
