"""A compressed network in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gbnn_compress.checkpoint.original import laid_out, open_original
from gbnn_compress.data.architectures import load_weights
from gbnn_compress.errors import DataError, GbnnError, require_seed
from gbnn_compress.files import require_writable, same_file, write_atomically
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.draws import Sampler, sampler
from gbnn_compress.predict.models import extra_notes, open_network
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.prediction import Prediction
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import copied
from gbnn_compress.report import sizes
from gbnn_compress.report.schema import Report
from gbnn_compress.types import Artifact

if TYPE_CHECKING:
    import torch


class CompressedNetwork:
    """An artifact with the network to run it in, once that is known.

    Attributes:
        artifact: What the file holds.
        notes: What the network that `to_module` loaded last left out, one sentence each.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.notes: tuple[str, ...] = ()
        self._module: torch.nn.Module | None = None
        self._source: Sampler | None = None
        self._strict: bool | None = None
        self._device: torch.device | None = None

    def report(self) -> Report:
        """The report (schema 1), from what the file holds."""
        return sizes.report(self.artifact)

    def state_dict(self, *, seed: int | None = None) -> dict[str, torch.Tensor]:
        """Dense weights: the posterior mean, or one posterior sample with a seed.

        Raises:
            GbnnError: A seed that generators refuse.
        """
        require_seed(seed, option="seed")
        return rebuild(self.artifact, seed=seed)

    def to_module(self, network: torch.nn.Module | str | None = None, *, strict: bool | None = None) -> torch.nn.Module:
        """The network with the posterior-mean weights, in evaluation mode.

        Names may differ by what wrappers put into them: `module.`, `_orig_mod.`, `model.`, or one common prefix.

        Args:
            network: A module to load into, an architecture's specification, or None for the recorded one.
            strict: True: tensors that the network does not have are refused. None: they are left out, and `notes` names
                them; missing ones are refused. False: missing ones keep the network's values, too.

        Raises:
            GbnnError: The architecture is not known, or the weights do not fit it.
        """
        if network is None or isinstance(network, str):
            opened = open_network(self.artifact, network, strict=strict)
            network, spec, fit = opened.network, opened.spec, opened.fit
        else:
            spec = type(network).__name__
            fit = load_weights(network, self.state_dict(), spec=spec, strict=strict)
        self.notes = extra_notes(fit, spec=spec)
        self._module, self._source, self._strict = network.eval(), None, strict
        return network

    def predict(self, x: torch.Tensor, *, samples: int = 16, seed: int = 0, batch_size: int = 128) -> torch.Tensor:
        """Class probabilities, averaged over posterior draws.

        Args:
            x: float32 (N, channels, height, width), preprocessed. The network runs on its device.
            samples: Draws, >= 1; 0 for the posterior mean alone.
            seed: Of the first draw; the same seed gives the same draws.
            batch_size: Inputs that run at once.

        Returns:
            float64 (N, C) on the CPU, rows sum to 1.

        Raises:
            GbnnError: A negative number of samples, inputs that do not fit the network, or the architecture is not
                known; call `to_module` first.
        """
        return self.predict_with_uncertainty(x, samples=samples, seed=seed, batch_size=batch_size).probabilities

    def predict_with_uncertainty(
        self, x: torch.Tensor, *, samples: int = 16, seed: int = 0, batch_size: int = 128
    ) -> Prediction:
        """As `predict`, with how unsure the prediction is and why.

        Args:
            x: As for `predict`.
            samples: As for `predict`.
            seed: As for `predict`.
            batch_size: As for `predict`.

        Returns:
            `probabilities` float64 (N, C), `entropy` and `mutual_information` float64 (N,) in nats, and `samples`.

        Raises:
            GbnnError: As for `predict`.
        """
        if samples < 0:
            raise GbnnError(f"`samples`: expected 0 or more, got {samples}")
        if batch_size < 1:
            raise GbnnError(f"`batch_size`: expected 1 or more, got {batch_size}")
        if len(x) == 0:
            raise DataError("`x` is empty, expected at least one input")
        require_seed(seed, option="seed")
        batches = ((images, None) for images in x.split(batch_size))
        return monte_carlo(self._sampler(x.device), batches, samples=samples, seed=seed, option="x")

    def _sampler(self, device: torch.device) -> Sampler:
        """The posterior in a network of its own: the one that `to_module` gave away is the user's."""
        if self._source is None or self._device != device:
            network = copied(self._module or self.to_module()).to(device)
            self._source = sampler(
                self.artifact,
                network,
                load=lambda tensors: load_weights(network, tensors, spec="the network", strict=self._strict),
            )
            self._device = device
        return self._source


def load(path: str | Path) -> CompressedNetwork:
    """Open an artifact.

    Raises:
        ArtifactError: The file is missing, foreign or damaged.
    """
    return CompressedNetwork(read_artifact(Path(path)))


def decompress(path: str | Path, output: str | Path, *, seed: int | None = None, like: str | Path | None = None) -> int:
    """Write dense weights as a safetensors file, or as a checkpoint was laid out.

    Args:
        path: The artifact.
        output: The file to write; tied tensors are written under each of their names.
        seed: None for the posterior mean, else the seed of one posterior sample.
        like: The checkpoint that the artifact was made of, a file: its layout is written (wrappers, other entries,
            names, ties, metadata) with the artifact's weights in place of its own.

    Returns:
        Bytes written.

    Raises:
        GbnnError: A bad artifact, a tensor of a dtype that safetensors lacks, an output that cannot be written, or a
            checkpoint that does not hold the artifact's tensors.
    """
    target = Path(output)
    if like is None and target.suffix != ".safetensors":
        raise GbnnError(
            f"`-o {target}`: dense weights are written as safetensors; give a name that ends in .safetensors, or the"
            " checkpoint whose layout is wanted with `--like`"
        )
    if like is not None and same_file(target, Path(like)):
        raise GbnnError(f"cannot write `{target}`: it is the checkpoint that `--like` names; choose another `-o`")
    if same_file(target, Path(path)):
        raise GbnnError(f"cannot write `{target}`: it is the artifact itself; choose another `-o`")
    require_writable(target)
    require_seed(seed, option="--sample")
    artifact = read_artifact(Path(path))
    if like is not None:
        original = open_original(Path(like))
        data = laid_out(original, rebuild(artifact, seed=seed), sha256=artifact.facts["checkpoint"]["sha256"])
    else:
        data = _as_safetensors(artifact, target, path=path, seed=seed)
    write_atomically(target, data)
    return len(data)


def _as_safetensors(artifact: Artifact, target: Path, *, path: str | Path, seed: int | None) -> bytes:
    """The bytes of a safetensors file, under the checkpoint's names."""
    import torch
    from safetensors.torch import save

    ties = {info.name for info in artifact.tensors if info.kind == "tied"}
    tensors = rebuild(artifact, seed=seed)
    del artifact
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.complex32, torch.complex128):
            raise GbnnError(
                f"cannot write `{target}`: safetensors has no {str(tensor.dtype).removeprefix('torch.')}, the dtype of "
                f"`{name}`; take it from `gbnn_compress.load({str(path)!r}).state_dict()`"
            )
    owned = {name: tensor.clone() if name in ties else tensor for name, tensor in tensors.items()}
    return save(owned, metadata={"format": "pt"})
