"""Inputs made from `--input NAME:DTYPE:SHAPE`, for networks without data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, arguments, read_batch
from gbnn_compress.data.coloured_noise import EXPONENTS, coloured
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, listed, one_line

if TYPE_CHECKING:
    import torch

EXAMPLE = "input_ids:int64:batch,sequence"

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

BATCH_SIZE = 2
"""Default number of inputs in a batch: more than 1, because exporters take an axis of size 1 for a fixed one."""

AXIS_SIZES = (8, 32, 64, 128, 256, 512, 1024, 4096, 16384)
"""Sizes that are tried for named axes other than the batch axis; the second such axis gets twice the size, ..."""

SMALLEST_IMAGE = 4
"""Smallest height and width of floating inputs with four axes that are taken as images."""

INTEGER_RANGES = (1000, 100, 10, 2)
"""Ranges that are tried for integer inputs, largest first; values are below the range. Any embedding takes the last."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    Attributes:
        name: Argument of `forward`, or any name for a network with a single argument.
        dtype: One of DTYPES.
        shape: Sizes; an axis of free size has a name instead. Axes of equal name have equal sizes.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    @property
    def axes(self) -> dict[int, str]:
        """Axis -> name of each axis of free size."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}


def parse_inputs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Read several `NAME:DTYPE:SHAPE`.

    Raises:
        GbnnError: A text has another form, or two have the same name.
    """
    if isinstance(texts, str):
        texts = [texts]
    specs = tuple(map(parse_input, texts))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise GbnnError(f"`--input`: `{name}` is given {names.count(name)} times, expected once per argument")
    return specs


def parse_input(text: str) -> InputSpec:
    """Read `NAME:DTYPE:SHAPE`, such as `input_ids:int64:batch,sequence` or `audio:float32:batch,1024`.

    Raises:
        GbnnError: The text has another form.
    """
    if not isinstance(text, str):
        raise GbnnError(f"`inputs`: expected texts such as {EXAMPLE}, got `{type(text).__name__}`")
    name, first, rest = text.partition(":")
    dtype, second, shape = rest.partition(":")
    name, dtype = name.strip(), dtype.strip().removeprefix("torch.")
    if not (first and second and name):
        raise GbnnError(f"`--input`: expected NAME:DTYPE:SHAPE, such as {EXAMPLE}, got `{text}`")
    if dtype not in DTYPES:
        raise GbnnError(f"`--input {text}`: expected a dtype of {', '.join(DTYPES)}, got `{dtype}`; such as {EXAMPLE}")
    return InputSpec(name, dtype, tuple(_size(part, text) for part in shape.split(",")) if shape.strip() else ())


def made_batch(
    inputs: Sequence[str] | Sequence[InputSpec],
    network: torch.nn.Module,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    run: Callable[[torch.nn.Module, Batch], Any] | None = None,
) -> Batch:
    """Make a batch on which the network runs.

    Floating inputs are standard normal. Integers are at least 0 and below the largest range of INTEGER_RANGES with
    which the network runs. Integers of inputs that are named as masks are 0 or 1, the first of each row is 1. Booleans
    are true.

    Args:
        inputs: The inputs, as text or parsed.
        network: Runs on the CPU, in evaluation mode; it is not changed.
        seed: Seed of the values.
        batch_size: Size of the first named axis.
        run: `run(network, batch)`, a forward pass. None: the network is called with the batch's inputs.

    Raises:
        GbnnError: An input has a wrong form, or is no argument of the network.
        ArchitectureError: The network runs on none of the sizes that are tried.
    """
    return next(made_batches(inputs, network, seed=seed, batch_sizes=(batch_size,), run=run))


def made_batches(
    inputs: Sequence[str] | Sequence[InputSpec],
    network: torch.nn.Module,
    *,
    seed: int = 0,
    batch_sizes: Sequence[int] = (BATCH_SIZE,),
    run: Callable[[torch.nn.Module, Batch], Any] | None = None,
    coloured: bool = False,
) -> Iterator[Batch]:
    """Make batches of several sizes, with other values in each.

    Args:
        inputs: The inputs, as text or parsed.
        network: Runs on the CPU, in evaluation mode; it is not changed.
        seed: Seed of the first batch's values; batch i has seed + i.
        batch_sizes: Size of the first named axis in each batch. The first size must run; of the others, only those
            with which the network runs are yielded. In every second batch, other named axes are twice as long, if the
            network takes that.
        run: `run(network, batch)`, a forward pass. None: the network is called with the batch's inputs.
        coloured: Whether floating inputs with four axes, taken as images, are noise in which neighbouring values are
            alike: amplitudes fall with frequency f as f^-a, with another a in every second batch.

    Raises:
        GbnnError: An input has a wrong form, or is no argument of the network.
        ArchitectureError: The network runs on none of the sizes that are tried.
    """
    specs = tuple(each if isinstance(each, InputSpec) else parse_input(each) for each in inputs)
    parse_inputs([f"{spec.name}:{spec.dtype}:" for spec in specs])
    attempt = _Attempt(specs, network, run or _called, takes_values=run is not None, coloured=coloured)
    size = attempt.first_size(batch_sizes[0], seed)
    ranges = attempt.largest_ranges(_sizes(specs, batch_sizes[0], size), seed)
    yield attempt.batch(_sizes(specs, batch_sizes[0], size), ranges, seed)
    for number, batch_size in enumerate(batch_sizes[1:], start=1):
        for length in dict.fromkeys((size * (1 + number % 2), size)):
            sizes = _sizes(specs, batch_size, length)
            if attempt.error(sizes, ranges, seed + number) is None:
                yield attempt.batch(sizes, ranges, seed + number)
                break


@dataclass(frozen=True)
class _Attempt:
    """Forward passes on made inputs."""

    specs: tuple[InputSpec, ...]
    network: torch.nn.Module
    run: Callable[[torch.nn.Module, Batch], Any]
    takes_values: bool
    coloured: bool

    def first_size(self, batch_size: int, seed: int) -> int:
        """The first of AXIS_SIZES with which the network runs."""
        ranges = dict.fromkeys((spec.name for spec in self.specs), INTEGER_RANGES[-1])
        found: list[Exception] = []
        free = set(chain.from_iterable(spec.axes.values() for spec in self.specs))
        for size in AXIS_SIZES if len(free) > 1 else AXIS_SIZES[:1]:
            error = self.error(_sizes(self.specs, batch_size, size), ranges, seed)
            if error is None:
                return size
            if isinstance(error, GbnnError):
                raise error
            found.append(error)
        sizes = _sizes(self.specs, batch_size, AXIS_SIZES[0])
        shapes = ", ".join(f"`{spec.name}` {list(_shape(spec, sizes))}" for spec in self.specs)
        raise ArchitectureError(
            f"`{type(self.network).__name__}` fails on inputs made for `--input` ({shapes}: {one_line(found[0])});"
            " give the sizes that it takes in place of names, or real inputs with `--data`"
        )

    def largest_ranges(self, sizes: Mapping[str, int], seed: int) -> dict[str, int]:
        """For each input, the largest of INTEGER_RANGES with which the network runs, the other inputs being small."""
        small = dict.fromkeys((spec.name for spec in self.specs), INTEGER_RANGES[-1])
        ranges = dict(small)
        for spec in self.specs:
            if "int" in spec.dtype and not _is_mask(spec):
                limit = 128 if spec.dtype.endswith("t8") else INTEGER_RANGES[0]
                tried = [each for each in INTEGER_RANGES if each <= limit]
                ranges[spec.name] = next(
                    (each for each in tried if self.error(sizes, {**small, spec.name: each}, seed) is None),
                    INTEGER_RANGES[-1],
                )
        return ranges if self.error(sizes, ranges, seed) is None else small

    def error(self, sizes: Mapping[str, int], ranges: Mapping[str, int], seed: int) -> Exception | None:
        """The exception of a forward pass, or None."""
        import torch

        batch = self.batch(sizes, ranges, seed)
        try:
            with _evaluating(self.network), torch.no_grad():
                self.run(self.network, batch.on(torch.device("cpu")))
        except Exception as error:  # whatever the user's own network raises
            return error
        return None

    def batch(self, sizes: Mapping[str, int], ranges: Mapping[str, int], seed: int) -> Batch:
        """A batch with the given sizes of named axes, and ranges of integers by input."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        made = {spec.name: _values(spec, _shape(spec, sizes), ranges[spec.name], generator) for spec in self.specs}
        if self.coloured:
            exponent = EXPONENTS[seed % len(EXPONENTS)]
            made = {name: coloured(each, exponent) if _is_image(each) else each for name, each in made.items()}
        if self.takes_values:
            return read_batch(next(iter(made.values())) if len(made) == 1 else made)
        return _as_arguments(made, self.network)


def _as_arguments(made: Mapping[str, torch.Tensor], network: torch.nn.Module) -> Batch:
    """Inputs by argument; a single input that `forward` has no argument for is positional."""
    parameters = inspect.signature(network.forward).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    by_keyword = [name for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    unknown = [name for name in made if name not in by_keyword and not takes_any]
    if unknown and len(made) == 1:
        lone = made[unknown[0]]
        return Batch(lone, lone)
    if unknown:
        raise DataError(
            f"`--input {unknown[0]}`: `{type(network).__name__}.forward` has no such argument; it has"
            f" {listed(by_keyword)}"
        )
    return read_batch(dict(made))


def _called(network: torch.nn.Module, batch: Batch) -> Any:
    args, kwargs = arguments(network, batch)
    return network(*args, **kwargs)


def _values(spec: InputSpec, shape: tuple[int, ...], below: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    values = torch.randint(below, shape, generator=generator)
    if _is_mask(spec) and values.dim():
        values[..., 0] = 1
    return values.to(dtype)


def _is_image(made: torch.Tensor) -> bool:
    return made.dtype.is_floating_point and made.dim() == 4 and min(made.shape[2:]) >= SMALLEST_IMAGE


def _is_mask(spec: InputSpec) -> bool:
    return "mask" in spec.name.lower()


def _sizes(specs: Sequence[InputSpec], batch_size: int, size: int) -> dict[str, int]:
    """Size of each named axis: the first one is the batch axis, others are multiples of `size`."""
    names = list(dict.fromkeys(chain.from_iterable(spec.axes.values() for spec in specs)))
    return {name: size * number if number else batch_size for number, name in enumerate(names)}


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


def _size(part: str, text: str) -> str | int:
    part = part.strip()
    if part.isidentifier():
        return part
    if part.isdecimal() and int(part) >= 1:
        return int(part)
    raise GbnnError(
        f"`--input {text}`: expected names of free axes and sizes of at least 1, separated by commas, got `{part}`;"
        f" such as {EXAMPLE}"
    )


@contextmanager
def _evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module's mode is restored."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
