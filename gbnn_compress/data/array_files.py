"""Files of arrays as a network takes them: npz and safetensors files whose arrays are not images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.data.batches import TARGETS
from gbnn_compress.errors import DataError, listed, one_line

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

WRITING = {
    "npz": "`numpy.savez_compressed(file, x=...)`",
    "safetensors": "`safetensors.torch.save_file({'x': ...}, file)`",
}


def array_file(spec: str) -> Any:
    """The arrays of `npz:FILE` or `safetensors:FILE`.

    Returns:
        `x`, or `(x, y)`, or name -> array for arrays that are named after the arguments of `forward`. None if the file
        is an npz file of images (`x` uint8 with 3 or 4 axes), or none at all, which `data.datasets` reads or refuses.

    Raises:
        DataError: The file cannot be read, or holds no inputs.
    """
    scheme, _, rest = spec.partition(":")
    path = Path(rest)
    if scheme == "npz" and (not path.is_file() or not zipfile.is_zipfile(path)):
        return None
    arrays = _npz(path) if scheme == "npz" else _safetensors(spec, path)
    if arrays is None:
        return None
    inputs = [name for name in arrays if name not in TARGETS]
    if not inputs:
        raise DataError(
            f"`{path}`: expected an array `x`, or arrays named after the arguments of `forward`, got"
            f" {listed(arrays) or 'no array'}; write it with {WRITING[scheme]}"
        )
    if inputs != ["x"]:
        return arrays
    return arrays["x"] if "y" not in arrays else (arrays["x"], arrays["y"])


def _npz(path: Path) -> dict[str, Array] | None:
    """All arrays of an npz file; None if `data.datasets` reads or refuses it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            x = archive["x"] if "x" in names else None
            if not set(names) - {"y"} or (x is not None and x.dtype == np.uint8 and x.ndim in (3, 4)):
                return None
            return {name: archive[name] if name != "x" or x is None else x for name in names}
    except Exception as error:  # numpy, zipfile and zlib each raise their own exceptions
        raise DataError(
            f"`{path}` cannot be read ({one_line(error)}), save it again with plain numeric arrays"
        ) from error


def _safetensors(spec: str, path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"`{spec}`: no file `{path}`")
    try:
        return dict(load_file(path))
    except Exception as error:
        raise DataError(
            f"`{path}` cannot be read ({one_line(error)}), write it with {WRITING['safetensors']}"
        ) from error
