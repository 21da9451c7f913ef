"""Stand-ins for numpy values and random generators beside the weights: read past, never made.

The unpickler is given a stand-in for each name that their pickles call. A stand-in only keeps what it is called with:
no array is allocated and no foreign object is built, whatever the pickle says. Written again, it becomes the same call.
"""

from __future__ import annotations

import importlib
import pickle
from functools import cache
from typing import Any

RANDOM = (
    *("_pickle.__generator_ctor", "_pickle.__bit_generator_ctor", "_pickle.__randomstate_ctor"),
    *("_mt19937.MT19937", "_pcg64.PCG64", "_pcg64.PCG64DXSM", "_philox.Philox", "_sfc64.SFC64"),
    *("bit_generator.SeedSequence", "bit_generator.__pyx_unpickle_SeedSequence"),
)
CORE = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
NAMES = (
    *("numpy.ndarray", "numpy.dtype", "random.Random", "builtins.bytes", "__builtin__.bytes"),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in CORE),
    *(f"numpy.random.{name}" for name in RANDOM),
)
"""What pickles of numbers, plain arrays and generators call, by any version of numpy; `bytes` where there are none."""


class Unread:
    """In place of an object that was read past.

    Attributes:
        stands_for: Dotted name of what would have made it.
        arguments: What it was called with.
        state: What it would have been filled with, or None.
    """

    stands_for: str
    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> Unread:
        """Keeps whatever the pickle passes."""
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Keeps the values unseen."""
        self.state = state


@cache
def stand_ins() -> tuple[tuple[Any, str], ...]:
    """Pairs of a stand-in and the name that it stands for, as `torch.serialization.safe_globals` takes them."""
    return tuple((type("Unread", (Unread,), {"stands_for": name}), name) for name in NAMES)


class Pickler(pickle.Pickler):
    """Writes stand-ins as the calls that they were read from; nothing is called."""

    def reducer_override(self, obj: Any) -> Any:
        """The call, its state with it; everything else as usual."""
        if not isinstance(obj, Unread):
            return NotImplemented
        arguments = tuple(_real(kind.stands_for) if (kind := _stand_in(each)) else each for each in obj.arguments)
        call = (_real(obj.stands_for), arguments)
        return call if obj.state is None else (*call, obj.state)


def _stand_in(value: object) -> type[Unread] | None:
    return value if isinstance(value, type) and issubclass(value, Unread) else None


def _real(name: str) -> Any:
    """What one of NAMES names in the numpy that is installed."""
    assert name in NAMES
    name = name.replace("numpy.core.", "numpy._core.").replace("__builtin__.", "builtins.")
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
