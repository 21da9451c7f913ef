"""Stand-ins for numpy values and random generators in a checkpoint, which are not loaded.

The unpickler gets a stand-in for each name that their pickles call. A stand-in only stores the arguments of the call:
no array is allocated and no object of another library is built. When it is pickled, it becomes the same call again.
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
"""Names that pickles of numbers, arrays and generators call, in any numpy version; `bytes` for empty arrays."""


class Unread:
    """Takes the place of an object that is not loaded.

    Attributes:
        stands_for: Dotted name of the class or function that makes the object.
        arguments: Arguments of the call.
        state: State that the object would be restored from, or None.
    """

    stands_for: str
    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> Unread:
        """Store the arguments."""
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Store the state."""
        self.state = state


@cache
def stand_ins() -> tuple[tuple[Any, str], ...]:
    """Pairs of a stand-in and the name that it stands for, as `torch.serialization.safe_globals` takes them."""
    return tuple((type("Unread", (Unread,), {"stands_for": name}), name) for name in NAMES)


class Pickler(pickle.Pickler):
    """A pickler that writes stand-ins as the calls that they were read from. It does not make the calls."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a stand-in to its call and state, and everything else as usual."""
        if not isinstance(obj, Unread):
            return NotImplemented
        arguments = tuple(_real(kind.stands_for) if (kind := _stand_in(each)) else each for each in obj.arguments)
        call = (_real(obj.stands_for), arguments)
        return call if obj.state is None else (*call, obj.state)


def _stand_in(value: object) -> type[Unread] | None:
    return value if isinstance(value, type) and issubclass(value, Unread) else None


def _real(name: str) -> Any:
    """The object with this name in the installed numpy."""
    assert name in NAMES
    name = name.replace("numpy.core.", "numpy._core.").replace("__builtin__.", "builtins.")
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
