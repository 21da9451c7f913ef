"""Pickles, looked at before they are loaded: `weights_only` keeps code from running, not the interpreter from crashing.

Tuples within tuples are hashed and deleted by recursion in C, which ends the process when it goes deep enough. Lists
and dictionaries nested as deep only take time.
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
    """Refuse pickles that nest tuples, lists or dictionaries deeply, or are cut short.

    Args:
        file: Some pickles, one after the other.
        count: How many.

    Raises:
        CheckpointError: One does, or is.
    """
    for _ in range(count):
        try:
            _check(file)
        except (ValueError, IndexError, KeyError, EOFError, MemoryError) as error:
            raise CheckpointError(
                f"holds a damaged pickle, or other things than weights ({str(error)[:80]}): download or save it again"
            ) from error


def _check(file: IO[bytes] | mmap.mmap) -> None:
    """Follow how deep the containers are on the unpickler's stack, without making anything."""
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
                raise CheckpointError(f"nests tuples, lists or dictionaries more than {MAX_DEPTH} deep: leave them out")
            stack.extend([depth] * len(opcode.stack_after))


def _popped(opcode: pickletools.OpcodeInfo, stack: list[int]) -> list[int]:
    """Take from the stack what an opcode takes."""
    before = opcode.stack_before
    taken: list[int] = []
    fixed = len(before)
    if pickletools.markobject in before:
        fixed = before.index(pickletools.markobject)
        while (depth := stack.pop()) != _MARK:
            taken.append(depth)
    taken += [stack.pop() for _ in range(fixed)]
    return taken
