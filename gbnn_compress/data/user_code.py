"""The user's own code: objects named by `path/to/file.py:name` or `package.module:name`. It runs only when named."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.errors import GbnnError, did_you_mean, nearest, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def user_attribute(spec: str, *, error: type[GbnnError] = GbnnError) -> Iterator[Any]:
    """Import the user's file or module, and yield what is named. Modules beside it can be imported inside the block.

    Args:
        spec: `path/to/file.py:name` or `package.module:name`.
        error: Class of the exceptions.

    Raises:
        GbnnError: There is no such file or name, or the code cannot be imported.
    """
    source, _, attribute = spec.rpartition(":")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise error(f"`{spec}`: no file `{source}`")
    with importable(folder_of(spec)):
        module = attempt(
            f"`{source}` cannot be imported",
            lambda: _run_file(Path(source)) if is_file else importlib.import_module(source),
            error=error,
        )
        if not hasattr(module, attribute):
            raise error(f"`{source}` has no `{attribute}`{did_you_mean(nearest(attribute, vars(module)))}")
        yield getattr(module, attribute)


def load_function(spec: str, *, option: str) -> Callable[..., Any]:
    """The function that an option names. It can import modules beside its file whenever it runs.

    Args:
        spec: `path/to/file.py:name` or `package.module:name`.
        option: The option, for messages.

    Raises:
        GbnnError: There is no such function, or the code cannot be imported.
    """
    source, _, attribute = spec.rpartition(":")
    if not (source and attribute):
        raise GbnnError(f"`{option}`: expected path/to/file.py:callable or package.module:callable, got `{spec}`")
    with user_attribute(spec) as function:
        if not callable(function):
            raise GbnnError(f"`{option} {spec}` must be callable, got `{type(function).__name__}`")

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with importable(folder_of(spec)):
            return function(*args, **kwargs)

    return called


def is_user_code(spec: str) -> bool:
    """Whether a specification has the form of the user's own code, whether it exists or not."""
    source, _, attribute = spec.rpartition(":")
    named = source.endswith(".py") or all(part.isidentifier() for part in source.split("."))
    return bool(source) and attribute.isidentifier() and named


def folder_of(spec: str) -> Path:
    """The folder whose modules the code may import: that of its file; of a module, the working directory."""
    source = spec.rpartition(":")[0]
    return Path(source).resolve().parent if source.endswith(".py") else Path.cwd()


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the modules of a folder importable inside the block, as `python FILE` does."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def attempt(what: str, action: Callable[[], Any], *, error: type[GbnnError]) -> Any:
    """Run code of a library or the user, and turn any exception into a one-line error."""
    try:
        return action()
    except (Exception, SystemExit) as raised:
        raise error(f"{what} ({one_line(raised)})") from raised


def _run_file(path: Path) -> Any:
    # The prefix keeps a user's `random.py` or `types.py` from shadowing other modules.
    name = f"_gbnn_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module
