"""The user's data of any kind as batches: Python objects, files of arrays, and the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.data.array_files import array_file
from gbnn_compress.data.batches import Batch, mapped, read_batch, tensors_in
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.datasets import load_data as load_images
from gbnn_compress.data.random_states import seeded
from gbnn_compress.data.user_code import attempt, folder_of, importable, is_user_code, user_attribute
from gbnn_compress.errors import DataError, GbnnError, one_line

COLLATED = 32
"""Number of single inputs that are collated into one batch."""

SLICED = 128
"""Length of the batches that arrays are split into."""

TAKES = "a specification, a DataLoader, a list of batches, a Dataset, a tensor, or a function that returns an iterator"


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of inputs of any kind. Each pass over them reads the user's data again.

    Attributes:
        spec: Name of the data, for messages: the specification, or the type of the object.
        make: Makes an iterator over the values of one pass.
        loader: The user's object; None for files.
        option: The option that names the data, for messages.
        folder: Folder of the user's code, whose modules can be imported during a pass; None for objects.
        chosen: Whether the batch at a position is among them; None: all are.
    """

    spec: str
    make: Callable[[], Iterator[Any]]
    loader: Any = None
    option: str = "--data"
    folder: Path | None = None
    chosen: Callable[[int], bool] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """A fresh pass, the same each time if the data draw only from the usual random generators."""
        return self.pass_with(0)

    def pass_with(self, seed: int) -> Generator[Batch, None, None]:
        """A fresh pass; another seed shuffles and augments in another way where the data do so.

        Raises:
            DataError: The data raise an exception, yield nothing, or yield batches of different keys or types.
        """
        first: str | None = None
        for position, value in enumerate(self._values(seed)):
            if self.chosen is not None and not self.chosen(position):
                continue
            form = form_of(value)
            if first is not None and form != first:
                raise DataError(
                    f"`{self.option}`: expected each batch of `{self.spec}` to be like the first, {first}, got {form}"
                    f" at position {position}; yield the same keys and types in each batch"
                )
            first = form
            batch = read_batch(value)
            if batch.size == 0:
                raise DataError(
                    f"`{self.option}`: expected at least one input in each batch, got none from `{self.spec}` at"
                    f" position {position}"
                )
            yield batch
        if first is None:
            raise DataError(f"`{self.option}`: `{self.spec}` yields nothing, expected at least one batch of inputs")

    @cached_property
    def first(self) -> Batch:
        """The first batch."""
        batches = self.pass_with(0)
        try:
            return next(batches)
        finally:
            batches.close()

    @property
    def has_targets(self) -> bool:
        """Whether the first batch has targets."""
        return self.first.targets is not None

    @property
    def has_labels(self) -> bool:
        """Whether the targets of the first batch are integers of shape (B,). The other batches are not read."""
        return labels_of(self.first) is not None

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 (N,), if every batch has integer targets of shape (B,), else None. Reads all batches once."""
        if not self.has_labels:
            return None
        found = [labels_of(batch) for batch in self]
        parts = [each for each in found if each is not None]
        return np.concatenate(parts) if len(parts) == len(found) else None

    @cached_property
    def n_inputs(self) -> int:
        """Number of inputs. Reads all batches once."""
        return sum(batch.size for batch in self)

    def only(self, chosen: Callable[[int], bool]) -> Batches:
        """The batches at some positions, counted from 0 in the whole data."""
        before = self.chosen
        return replace(self, chosen=lambda position: chosen(position) and (before is None or before(position)))

    def _values(self, seed: int) -> Iterator[Any]:
        """The values of one pass; what the user's data raise becomes one line."""
        values, position = seeded(self.make, loader=self.loader, seed=seed), 0
        try:
            while True:
                try:
                    with nullcontext() if self.folder is None else importable(self.folder):
                        value = next(values)
                except StopIteration:
                    return
                except GbnnError:
                    raise
                except Exception as error:
                    raise DataError(
                        f"`{self.option}`: `{self.spec}` fails at batch {position} ({one_line(error)})"
                    ) from error
                yield as_tensors(value, option=self.option, spec=self.spec)
                position += 1
        finally:
            values.close()


def load_data(data: Any, *, labels: bool | None = True, option: str = "--data") -> Dataset | Batches:
    """Open the data of a specification or an object.

    Args:
        data: A specification of images (`data.datasets`), `npz:FILE` or `safetensors:FILE` with other arrays,
            `path/to/data.py:callable` or `package.module:callable`; or the user's object: a DataLoader, a list of
            batches, any iterable that can be iterated again, a function that returns an iterator over batches, a
            map-style Dataset of single inputs, a tensor or an array, or a mapping of tensors or arrays.
        labels: For images. True: labels are required. None: labels are kept if the data has them. False: labels are
            ignored. Other data keep the targets that they have.
        option: The option that names the data, for messages.

    Returns:
        Images as a `Dataset`, other data as `Batches`, of at least one input.

    Raises:
        DataError: The data are missing, empty, malformed, or of a type that is not known.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Batches):
        return replace(data, option=option)
    if not isinstance(data, str):
        return _opened(batches_of(data, option=option))
    if data.startswith(("npz:", "safetensors:")):
        arrays = array_file(data)
        if arrays is not None:
            return _opened(_sliced(data, arrays, option=option))
    elif is_user_code(data) and not data.startswith(("digits:", "imagefolder:", "torchvision/")):
        return _opened(_from_code(data, option=option))
    return load_images(data, labels=labels)


def check_data(data: Any, *, argument: str) -> None:
    """Refuse data of a type that is not known, without reading them.

    Raises:
        DataError: The object can be iterated only once, or is of a type that is not known.
    """
    if data is None or isinstance(data, str | Dataset | Batches):
        return
    if isinstance(data, Iterator):
        raise DataError(
            f"`{argument}`: expected data that can be read several times, got `{type(data).__name__}`, which is used up"
            " after one pass; give a list, a DataLoader, or a function that returns a new iterator"
        )
    if not _is_data(data):
        raise DataError(f"`{argument}`: expected {TAKES}, got `{type(data).__name__}`")


def _is_data(data: Any) -> bool:
    """Whether an object may yield inputs."""
    import torch

    if isinstance(data, bytes | torch.nn.Module):
        return False
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed or callable(data) or isinstance(data, Iterable)


def batches_of(data: Any, *, option: str, spec: str | None = None) -> Batches:
    """The batches of an object.

    Raises:
        DataError: The object can be iterated only once, or is of a type that is not known.
    """
    import torch

    if isinstance(data, str):
        raise DataError(f"`{option}`: expected {TAKES}, got `str` from `{spec}`")
    check_data(data, argument=option)
    name = spec or getattr(data, "__name__", None) or type(data).__name__
    if isinstance(data, torch.Tensor | np.ndarray):
        return replace(_sliced(name, data, option=option), loader=data)
    if isinstance(data, Mapping):
        return replace(_sliced(name, dict(data), option=option), loader=data)
    loader = _collated(data, option=option)
    if loader is not None:
        return Batches(name, lambda: iter(loader), loader, option)
    if isinstance(data, Iterable) and not isinstance(data, type):
        return Batches(name, lambda: iter(data), data, option)
    return _from_function(data, name=name, option=option)


def labels_of(batch: Batch) -> np.ndarray | None:
    """The targets as int64 (B,) if they are integers of that shape, else None."""
    import torch

    if isinstance(batch.targets, int | float | str | bytes) or batch.targets is None:
        return None
    try:
        found = batch.targets if isinstance(batch.targets, torch.Tensor) else torch.as_tensor(batch.targets)
    except (TypeError, ValueError, RuntimeError):  # targets of any other form, such as lists of boxes
        return None
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    return found.cpu().numpy().astype(np.int64) if whole and found.dim() == 1 and len(found) == batch.size else None


def form_of(value: Any) -> str:
    """The form of a batch in words: its keys, or the types of its parts."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"`{key}`" for key in sorted(map(str, value)))
    if isinstance(value, list | tuple):
        return f"({', '.join(map(form_of, value))})" if len(value) <= 2 else f"a {type(value).__name__}"
    return f"a {type(value).__name__}"


def as_tensors(value: Any, *, option: str, spec: str) -> Any:
    """A batch with its numpy arrays as tensors.

    Raises:
        DataError: An array is of a dtype that torch has not.
    """
    import torch

    if not isinstance(value, np.ndarray | list | tuple | Mapping):
        return value

    def converted(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        try:
            return torch.from_numpy(np.ascontiguousarray(leaf))
        except TypeError:
            raise DataError(
                f"`{option}`: `{spec}` yields an array of dtype {leaf.dtype}, expected numbers; convert it first"
            ) from None

    return mapped(value, lambda tensor: tensor, converted)


def _opened(batches: Batches) -> Batches:
    """Read the first batch, so that data that cannot be read are refused at once."""
    first, option = batches.first, batches.option
    if next(tensors_in(first.inputs), None) is not None and first.size == 0:
        raise DataError(f"`{option}`: expected at least one input in each batch, got none from `{batches.spec}`")
    return batches


def _collated(data: Any, *, option: str) -> Any:
    """A DataLoader over the single inputs of a Dataset; None for other objects."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, default_collate

    if isinstance(data, DataLoader | list | tuple | str | bytes | range | set | type | torch.nn.Module):
        return None
    single = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not single and not isinstance(data, IterableDataset):
        return None
    lacking = f"`{option}`: `{type(data).__name__}` has no length"
    if single and attempt(lacking, lambda: len(data), error=DataError) == 0:
        raise DataError(f"`{option}`: `{type(data).__name__}` is empty, expected at least one input")
    return DataLoader(data, batch_size=COLLATED, collate_fn=default_collate)


def _from_function(function: Callable[[], Any], *, name: str, option: str) -> Batches:
    """The batches of a function: it returns an iterator at each call, or any other data once."""
    made = attempt(f"`{option}`: `{name}` fails when called without arguments", function, error=DataError)
    if not isinstance(made, Iterator):
        return batches_of(made, option=option, spec=name)
    return Batches(name, lambda: iter(function()), function, option)


def _from_code(spec: str, *, option: str) -> Batches:
    """The batches of the user's own code."""
    with user_attribute(spec, error=DataError) as found:
        return replace(batches_of(found, option=option, spec=spec), folder=folder_of(spec))


def _sliced(spec: str, arrays: Any, *, option: str) -> Batches:
    """Batches of SLICED inputs from arrays that hold all of them along axis 0."""
    whole = as_tensors(arrays, option=option, spec=spec)
    lengths = _lengths(whole, spec=spec, option=option)
    if 0 in lengths.values():
        raise DataError(f"`{option}`: `{spec}` is empty, expected at least one input")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise DataError(f"`{option}`: expected arrays of one length in `{spec}`, got {said}")
    (length,) = set(lengths.values())

    def make() -> Iterator[Any]:
        for start in range(0, length, SLICED):
            yield mapped(whole, lambda tensor: tensor[start : start + SLICED])  # noqa: B023  used at once

    return Batches(spec, make, None, option)


def _lengths(whole: Any, *, spec: str, option: str) -> dict[str, int]:
    """Name -> length of each array.

    Raises:
        DataError: One has no axis, or there is none.
    """
    import torch

    named = whole if isinstance(whole, Mapping) else dict(zip(("x", "y"), _parts(whole), strict=False))
    for name, each in named.items():
        if not isinstance(each, torch.Tensor) or not each.dim():
            got = "a single number" if isinstance(each, torch.Tensor) else f"`{type(each).__name__}`"
            raise DataError(f"`{option}`: expected an array of inputs as `{name}` of `{spec}`, got {got}")
    if not named:
        raise DataError(f"`{option}`: `{spec}` is empty, expected at least one input")
    return {str(name): len(each) for name, each in named.items()}


def _parts(whole: Any) -> tuple[Any, ...]:
    return whole if isinstance(whole, tuple) else (whole,)
