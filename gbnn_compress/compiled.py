"""Compiled inner loops: numba where it can be used; else numpy code that computes the same bytes, more slowly.

numba takes half a second to import, and compiles a loop at its first call, in seconds; later runs load the result from
a cache on disk. So small jobs run on numpy.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

SWITCH = "GBNN_COMPRESS_NUMBA"
"""Environment variable; `0` turns compiled loops off, `1` on for small jobs too."""

WORTHWHILE = 1 << 22
"""Number of weights, in all jobs of a process together, from which compiled loops are used. numpy takes about as long
for them as numba takes to be imported."""

Listener = Callable[[str], None]
"""Is called with one line of text."""

_listeners: list[Listener] = []
_said: set[str] = set()
_lock = threading.Lock()
_work = 0


def loops(name: str, *, work: int | None = None) -> ModuleType | None:
    """The module `gbnn_compress.NAME`, whose functions numba compiles at their first call and caches on disk.

    Args:
        name: Dotted name.
        work: Number of weights of this job; None: it is large.

    Returns:
        None without numba, where its cache cannot be written, where SWITCH turns it off, and for small jobs.
    """
    if work is not None and not _pays(work):
        return None
    # The switch is read each time, so that one process can compare both.
    module, fault = (None, f"{SWITCH} is 0") if os.environ.get(SWITCH) == "0" else _imported(name)
    if module is None:
        _say(f"note: compiled loops are off, so this takes longer, with the same result: {fault}")
    elif not _is_cached(module):
        _say("compiling inner loops, which later runs load from a cache; this takes up to a minute")
    return module


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Within this context, a function hears of compilation, and of what prevents it; None changes nothing."""
    if listener is None:
        yield
        return
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _pays(work: int) -> bool:
    global _work
    setting = os.environ.get(SWITCH)
    if setting in ("0", "1") or _work >= WORTHWHILE:
        return True
    with _lock:
        _work += work
    return _work >= WORTHWHILE


@lru_cache
def _imported(name: str) -> tuple[ModuleType | None, str]:
    """The module, or None and why."""
    try:
        return importlib.import_module(f"gbnn_compress.{name}"), ""
    except ImportError as error:  # no numba, or none for this version of numpy
        return None, f"numba cannot be imported ({error})"
    except RuntimeError:
        return None, "there is no folder that numba may write its cache to; NUMBA_CACHE_DIR can name one"


@lru_cache
def _is_cached(module: ModuleType) -> bool:
    """Whether numba's cache holds functions of this version of a module."""
    source = Path(str(module.__file__))
    folders = {function.stats.cache_path for function in vars(module).values() if hasattr(function, "py_func")}
    indices = [index for folder in folders if folder for index in Path(folder).glob(f"{source.stem}.*.nbi")]
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in indices)


def _say(line: str) -> None:
    """Tell the innermost listener, once per process; nobody if there is none."""
    with _lock:
        new = bool(_listeners) and line not in _said
        if new:
            _said.add(line)
    if new:
        _listeners[-1](line)
