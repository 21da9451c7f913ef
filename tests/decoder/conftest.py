"""Parts of the decoder, built once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "format"))
sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))

from native import Driver, Library, build, missing


def needed(*tools: str) -> None:
    reason = missing(*tools)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def library() -> Library:
    needed()
    return Library(build("build/libgbnn.so"))


@pytest.fixture(scope="session")
def tool() -> Path:
    needed()
    return build("build/gbnn-decode")


@pytest.fixture(scope="session")
def package() -> Path:
    needed("clang", "wasm-ld", "node")
    build("dist/index.d.ts")
    return build("dist/index.mjs")


@pytest.fixture(params=["driver", "driver-small"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    needed()
    process = Driver(build(f"build/{request.param}"))
    yield process
    process.stop()
