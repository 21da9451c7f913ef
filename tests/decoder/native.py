"""The C decoder: built where its tools are, and called from Python."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "decoder"

Normals = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)

NO_MEMBER = ctypes.c_size_t(-1).value


class Decoded(NamedTuple):
    """One tensor: its dtype, its shape, and the bytes of its values."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Refused(Exception):
    """The decoder refuses a file."""

    def __init__(self, code: int, sentence: str, member: int | None = None) -> None:
        super().__init__(sentence)
        self.code, self.member = code, member


def missing(*tools: str) -> str | None:
    """Why a part of the decoder cannot be built here; None if it can."""
    for tool in ("make", "gcc", *tools):
        if shutil.which(tool) is None:
            return f"`{tool}` is not installed"
    found = subprocess.run(
        ["gcc", "-E", "-include", "zlib.h", "-x", "c", "/dev/null"], capture_output=True, check=False
    )
    return "the headers of zlib are not installed" if found.returncode else None


def build(target: str) -> Path:
    """Make a target of the Makefile; processes that test at the same time wait for each other."""
    (FOLDER / "build").mkdir(exist_ok=True)
    with (FOLDER / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = subprocess.run(["make", "-C", str(FOLDER), target], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    return FOLDER / target


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("dimensions", ctypes.c_size_t),
        ("shape", ctypes.POINTER(ctypes.c_uint64)),
        ("size", ctypes.c_uint64),
        ("size_bytes", ctypes.c_uint64),
        ("tied_to", ctypes.c_size_t),
    ]


class Library:
    """`gbnn.h`."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        self._room: ctypes.Array[ctypes.c_char] | None = None
        for name in ("gbnn_error_message", "gbnn_dtype_name"):
            getattr(self._c, name).restype = ctypes.c_char_p
        self._c.gbnn_describe.restype = _Tensor
        for name in ("gbnn_member_count", "gbnn_tensor_count"):
            getattr(self._c, name).restype = ctypes.c_size_t

    def members(self, data: bytes) -> int:
        """Number of networks in a file."""
        with _File(self, data) as file:
            return int(self._c.gbnn_member_count(file))

    def decode(
        self,
        data: bytes,
        *,
        member: int = 0,
        normals: Iterator[float] | None = None,
        backwards: bool = False,
        draw_ties: bool = False,
    ) -> dict[str, Decoded]:
        """All tensors of a member, at the mean or in the draw that standard normal numbers give.

        Tied tensors are decoded at the mean, unless they are to be drawn, too, which is refused.

        Raises:
            Refused: The file is refused.
        """
        with _File(self, data) as file:
            count = self._c.gbnn_tensor_count(file, ctypes.c_size_t(member))
            found = {}
            for index in reversed(range(count)) if backwards else range(count):
                name, tensor = self._decode(file, member, index, normals, draw_ties=draw_ties)
                found[name] = tensor
            return dict(reversed(found.items())) if backwards else found

    def skim(self, data: bytes) -> int:
        """Decode a single file into memory that is used again for each tensor; returns the number of values."""
        total = 0
        with _File(self, data) as file:
            member = ctypes.c_size_t(0)
            infos = [
                self._c.gbnn_describe(file, member, ctypes.c_size_t(index))
                for index in range(self._c.gbnn_tensor_count(file, member))
            ]
            size_bytes = max((info.size_bytes for info in infos), default=0)
            if self._room is None or len(self._room) < size_bytes:
                self._room = ctypes.create_string_buffer(size_bytes)
            for index, info in enumerate(infos):
                if info.tied_to == NO_MEMBER:
                    self.check(self._c.gbnn_decode(file, member, ctypes.c_size_t(index), self._room))
                    total += info.size
        return total

    def _decode(
        self, file: ctypes.c_void_p, member: int, index: int, normals: Iterator[float] | None, *, draw_ties: bool
    ) -> tuple[str, Decoded]:
        place = (file, ctypes.c_size_t(member), ctypes.c_size_t(index))
        info = self._c.gbnn_describe(*place)
        out = ctypes.create_string_buffer(info.size_bytes + 1)
        if normals is None or (info.tied_to != NO_MEMBER and not draw_ties):
            self.check(self._c.gbnn_decode(*place, out))
        else:
            self.check(self._c.gbnn_draw(*place, Normals(lambda _: next(normals)), None, out))
        name = ctypes.string_at(info.name, info.name_bytes).decode()
        dtype = self._c.gbnn_dtype_name(info.dtype).decode()
        return name, Decoded(dtype, tuple(info.shape[: info.dimensions]), out.raw[: info.size_bytes])

    def check(self, code: int, member: int | None = None) -> None:
        """Raise what an error code says."""
        if code:
            raise Refused(code, self._c.gbnn_error_message(code).decode(), member)

    def open(self, data: bytes) -> ctypes.c_void_p:
        """An open file."""
        file, member = ctypes.c_void_p(), ctypes.c_size_t()
        code = self._c.gbnn_open(data, ctypes.c_size_t(len(data)), ctypes.byref(file), ctypes.byref(member))
        self.check(code, None if member.value == NO_MEMBER else member.value)
        return file

    def close(self, file: ctypes.c_void_p) -> None:
        """Free an open file."""
        self._c.gbnn_close(file)


class _File:
    """An open file, which is closed at the end of a `with` block."""

    def __init__(self, library: Library, data: bytes) -> None:
        self._library, self._data = library, data

    def __enter__(self) -> ctypes.c_void_p:
        self._file = self._library.open(self._data)
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.close(self._file)


class Driver:
    """A process that reads one file after the other, built so that it stops at whatever C does not define."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def read(self, data: bytes) -> tuple[int, int]:
        """Error code and checksum of all tensors.

        Raises:
            AssertionError: The process has stopped.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if len(answer) != 3:
            assert self._process.stderr is not None
            raise AssertionError(self._process.stderr.read().decode()[-4000:])
        return int(answer[0]), int(answer[2])

    def stop(self) -> None:
        """End the process, which then says whether memory was lost."""
        _, errors = self._process.communicate()
        assert self._process.returncode == 0, errors.decode()[-4000:]
