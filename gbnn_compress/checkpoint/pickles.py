"""Checks of pickles before they are loaded: `weights_only` keeps code from running, but not the process from crashing.

Nested tuples are hashed and deleted by recursion in C, which overflows the stack if they are nested deeply enough. Deep
lists and dictionaries only take time.
"""

from __future__ import annotations

import pickletools
from typing import IO, TYPE_CHECKING

from gbnn_compress.errors import CheckpointError

if TYPE_CHECKING:
    import mmap

MAX_DEPTH = 100

_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_FILLINGS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
_MARK = -1


def check_pickles(file: IO[bytes] | mmap.mmap, *, count: int) -> None:
    """Refuse pickles that nest tuples, lists or dictionaries deeply, or are truncated.

    Args:
        file: Consecutive pickles.
        count: Number of pickles.

    Raises:
        CheckpointError: A pickle nests containers more than MAX_DEPTH deep, or is damaged.
    """
    for _ in range(count):
        try:
            _check(file)
        except (ValueError, IndexError, KeyError, EOFError, MemoryError) as error:
            raise CheckpointError(
                f"holds a damaged pickle, or objects that are no weights ({str(error)[:80]}): download or save it again"
            ) from error


def _check(file: IO[bytes] | mmap.mmap) -> None:
    """Track the depth of the containers on the unpickler's stack, without building any object."""
    stack: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        if opcode.name in _PUT:
            memo[int(str(argument))] = stack[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif opcode.name in _GET:
            stack.append(memo[int(str(argument))])
        elif opcode.name == "MARK":
            stack.append(_MARK)
        else:
            taken = _popped(opcode, stack)
            depth = max(taken, default=0)
            if opcode.name in _TUPLES:
                depth += 1
            elif opcode.name in _FILLINGS:  # the container comes last
                depth = max(taken[-1], max(taken[:-1], default=-1) + 1)
            if depth > MAX_DEPTH:
                raise CheckpointError(
                    f"nests tuples, lists or dictionaries more than {MAX_DEPTH} deep: save it without them"
                )
            stack.extend([depth] * len(opcode.stack_after))


def _popped(opcode: pickletools.OpcodeInfo, stack: list[int]) -> list[int]:
    """Pop the entries that an opcode takes from the stack, last one first."""
    before = opcode.stack_before
    taken: list[int] = []
    fixed = len(before)
    if pickletools.markobject in before:
        fixed = before.index(pickletools.markobject)
        while (depth := stack.pop()) != _MARK:
            taken.append(depth)
    taken += [stack.pop() for _ in range(fixed)]
    return taken
