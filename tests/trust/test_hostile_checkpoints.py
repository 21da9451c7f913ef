"""Checkpoints made to run code, to fill the memory or to end the process: exit code 2, one line, at once."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from gbnn_compress_cli.main import main

GOOD = {"fc.weight": torch.arange(12.0).reshape(4, 3)}
OWNED = "owned"
"""The file that any code of theirs would make."""


class Calls:
    """Pickles as the call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def command(name: str, argument: str, *, protocol: bytes = b"\x80\x02") -> bytes:
    """A pickle that calls a function, by its dotted name, with one text."""
    module, _, attribute = name.rpartition(".")
    text = argument.encode()
    return (
        b"".join(
            (
                protocol,
                b"c",
                module.encode(),
                b"\n",
                attribute.encode(),
                b"\n",
                b"X",
                struct.pack("<I", len(text)),
                text,
            )
        )
        + b"\x85R."
    )


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content: object) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def archive(pickled: bytes, *, others: dict[str, bytes] | None = None, packed: bool = False) -> bytes:
    """A zip file as torch.save writes it, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as out:
        for name, data in {"net/data.pkl": pickled, "net/version": b"3\n", "net/byteorder": b"little"}.items():
            out.writestr(name, data)
        for name, data in (others or {}).items():
            out.writestr(name, data)
    return file.getvalue()


def state_pickle(size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, numel: int = 4) -> bytes:
    """The pickle of a state dict with one tensor, described at will."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Storage) else None

    file = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    tensor = Calls(rebuild, Storage(), offset, size, stride, False, OrderedDict())
    Pickler(file, protocol=2).dump({"w": tensor})
    return file.getvalue()


def described(size: tuple[int, ...], stride: tuple[int, ...], **options: int) -> bytes:
    return archive(state_pickle(size, stride, **options), others={"net/data/0": bytes(16)})


def repacked(data: bytes, **members: bytes) -> bytes:
    """A good archive, compressed, with further members."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(name, content)
    return file.getvalue()


def doubled(depth: int) -> dict[str, Any]:
    """Dictionaries that each hold the one before twice: 2 ** depth ways through them."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = dict(GOOD)
    value["model"] = value
    return value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = dict(GOOD)
    for _ in range(depth):
        value = {"state_dict": value}
    return value


def deep(opening: bytes, closing: bytes, count: int) -> bytes:
    """A pickle of a dictionary whose key or value is nested deeply."""
    return b"\x80\x02}" + opening * count + closing * count + b"K\x01s."


def tensors(header: str, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}})


TWO = '{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"v":{"dtype":"F32","shape":[2],"data_offsets":%s}}'


def numpy_call(name: str, *arguments: object, state: object = None) -> bytes:
    """A pickle of a state dict beside an object that numpy would make: a name, arguments and state at will."""

    def packed(value: object) -> bytes:
        if isinstance(value, str) and value.startswith("!"):
            module, _, attribute = value[1:].rpartition(".")
            return f"c{module}\n{attribute}\n".encode()
        if isinstance(value, tuple):
            return b"(" + b"".join(map(packed, value)) + b"t"
        return pickle.dumps(value, protocol=2)[2:-1]

    call = packed(f"!{name}") + packed(arguments) + b"R" + (b"" if state is None else packed(state) + b"b")
    return b"\x80\x02}(X\x01\x00\x00\x00a" + call + b"u."


PICKLES = {
    "os.system": lambda: command("os.system", f"touch {OWNED}"),
    "posix.system": lambda: command("posix.system", f"touch {OWNED}"),
    "eval": lambda: command("builtins.eval", f"open('{OWNED}', 'w')"),
    "exec": lambda: command("__builtin__.exec", f"open('{OWNED}', 'w')", protocol=b"\x80\x03"),
    "popen": lambda: command("subprocess.Popen", f"touch {OWNED}"),
    "import": lambda: command("importlib.import_module", "antigravity"),
    "torch-load": lambda: command("torch.load", "other.pth"),
    "torch-nested-global": lambda: command("torch.serialization.os.system", f"touch {OWNED}"),
    "module-global": lambda: command("torch._utils.sys.modules.__getitem__", "os"),
    "attribute": lambda: command("builtins.getattr", "x"),
    "zip-os.system": lambda: archive(command("os.system", f"touch {OWNED}")),
    "zip-eval-beside-weights": lambda: saved({**GOOD, "x": Calls(eval, f"open('{OWNED}', 'w')")}),
    "legacy-eval": lambda: legacy({**GOOD, "x": Calls(eval, f"open('{OWNED}', 'w')")}),
    "hidden-in-optimizer": lambda: saved({"state_dict": GOOD, "optimizer": Calls(exec, f"open('{OWNED}', 'w')")}),
    "numpy-huge": lambda: archive(numpy_call("numpy._core.multiarray._reconstruct", "!numpy.ndarray", (2**40,), 1)),
    "numpy-huge-zeros": lambda: archive(numpy_call("numpy.ndarray", (2**40,))),
    "numpy-huge-bytes": lambda: archive(numpy_call("builtins.bytes", 2**40)),
    "numpy-objects": lambda: archive(
        numpy_call(
            "numpy.core.multiarray._reconstruct", "!numpy.ndarray", (0,), 1, state=(1, (9,), "O", False, [8] * 9)
        )
    ),
    "numpy-scalar-of-objects": lambda: archive(numpy_call("numpy.core.multiarray.scalar", "O", 8)),
    "numpy-fromfile": lambda: archive(numpy_call("numpy.fromfile", "/etc/passwd")),
    "numpy-load": lambda: archive(numpy_call("numpy.load", "x.npy", None, True)),
    "numpy-f2py": lambda: archive(numpy_call("numpy.f2py.capi_maps.eval", "1")),
    "numpy-hidden-call": lambda: archive(numpy_call("numpy.ndarray", "!os.system")),
    "numpy-runstring": lambda: archive(
        numpy_call("numpy.testing._private.utils.runstring", f"open('{OWNED}','w')", {})
    ),
    "numpy-generator": lambda: archive(numpy_call("numpy.random._pickle.__generator_ctor", "!posix.system")),
    "numpy-attribute": lambda: archive(numpy_call("numpy.ndarray.tofile", OWNED)),
    "whole-module": lambda: saved(torch.nn.Linear(2, 2)),
    "torchscript": lambda: archive(b"", others={"net/constants.pkl": b"", "net/code/x.py": b"import os"}),
    "cut": lambda: saved(GOOD)[:-40],
    "no-pickle": lambda: archive(b"\x80\x02"),
    "unknown-opcode": lambda: archive(b"\x80\x02\xff."),
    "empty-stack": lambda: archive(b"\x80\x02R."),
    "memo-of-nothing": lambda: archive(b"\x80\x02h\x07."),
    "endless-text": lambda: archive(b"\x80\x02X\xff\xff\xff\xffa."),
    "endless-bytes": lambda: archive(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa."),
    "huge-bytearray": lambda: archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R."),
    "deep-tuple-as-key": lambda: archive(deep(b"N", b"", 1)[:3] + b"N" + b"\x85" * 2_000_000 + b"K\x01s."),
    "deep-tuple-legacy": lambda: b"\x80\x02}N" + b"\x85" * 2_000_000 + b"K\x01s.",
    "deep-list": lambda: archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "doubled-dictionaries": lambda: saved(doubled(200)),
    "cyclic-dictionary": lambda: saved(cyclic()),
    "nested-state-dicts": lambda: saved(nested(100)),
    "surrogate-name": lambda: archive(b"\x80\x02}X\x03\0\0\0\xed\xa0\x80K\x01s."),
    "huge-view": lambda: described((2**33,), (0,)),
    "huge-views": lambda: described((2**20, 2**20, 2**20), (0, 0, 0)),
    "size-past-storage": lambda: described((100, 100), (100, 1)),
    "negative-offset": lambda: described((2, 2), (2, 1), offset=-8),
    "offset-past-storage": lambda: described((2, 2), (2, 1), offset=2**40),
    "negative-size": lambda: described((-2, 2), (2, 1)),
    "negative-stride": lambda: described((2, 2), (-2, 1)),
    "storage-past-file": lambda: described((2**40,), (1,), numel=2**40),
    "storage-missing": lambda: archive(state_pickle((2, 2), (2, 1))),
    "zip-bomb": lambda: repacked(saved(GOOD), **{"net/bomb": bytes(300_000_000)}),
    "zip-bomb-of-weights": lambda: repacked(saved({"w": torch.zeros(8000, 8000)})),
    "zip-path-traversal": lambda: archive(b"\x80\x02}.", others={f"../{OWNED}": b"x", f"/{OWNED}": b"x"}),
    "zip-of-nothing": lambda: b"PK\x05\x06" + bytes(18),
    "zip-without-directory": lambda: b"PK\x03\x04" + bytes(100),
    "metadata-as-a-name": lambda: saved({"__metadata__": torch.ones(2, 2)}),
    "forty-dimensions": lambda: saved({"w": torch.ones([1] * 40)}),
}

SAFETENSORS = {
    "length-past-file": lambda: tensors(one(), length=2**40),
    "length-huge": lambda: struct.pack("<Q", 2**63) + b"{" * 100,
    "header-empty": lambda: tensors("{}"),
    "header-no-json": lambda: tensors("{not json"),
    "header-list": lambda: tensors('{"w":[1,2]}'),
    "header-deep": lambda: tensors('{"w":' + "[" * 100_000),
    "offset-negative": lambda: tensors(one(data_offsets=[-16, 0])),
    "offset-reversed": lambda: tensors(one(data_offsets=[16, 0])),
    "offset-past-file": lambda: tensors(one(data_offsets=[0, 2**40], shape=[2**38])),
    "offset-huge": lambda: tensors(one(data_offsets=[0, 2**70])),
    "overlapping": lambda: tensors(TWO % "[8,16]"),
    "hole": lambda: tensors(TWO % "[20,28]", bytes(28)),
    "shape-huge": lambda: tensors(one(shape=[2**40, 2**40])),
    "shape-overflow": lambda: tensors(one(shape=[2**63, 2])),
    "shape-negative": lambda: tensors(one(shape=[-2, -2])),
    "shape-other": lambda: tensors(one(shape=[3, 2])),
    "dtype-unknown": lambda: tensors(one(dtype="OBJECT")),
    "duplicate-name": lambda: tensors(TWO.replace('"v"', '"w"') % "[16,24]", bytes(24)),
    "metadata-numbers": lambda: tensors('{"__metadata__":{"a":1},' + one()[1:]),
    "surrogate-name": lambda: tensors('{"\\ud800":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'),
    "bytes-left-over": lambda: tensors(one(), bytes(99)),
}

FILES = {f"{name}.pth": make for name, make in PICKLES.items()} | {
    f"{name}.safetensors": make for name, make in SAFETENSORS.items()
}


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported first takes no part in the time."""
    path = tmp_path_factory.mktemp("first") / "net.pth"
    path.write_bytes(b"\x80\x02.")
    main([str(path), "--target-ratio", "8", "-q"])


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_nothing_runs_and_one_line_says_why(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.write_bytes(FILES[name]())
    start = time.process_time()
    code = main([name, "--target-ratio", "8", "-q"])
    seconds = time.process_time() - start
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(f"gbnn-compress: error: `{name}`")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert seconds < 1


def test_the_attacks_differ_from_a_good_file_in_one_thing_only(tmp_path: Path) -> None:
    from gbnn_compress.checkpoint.read import read_checkpoint

    good = {
        "described.pth": described((2, 2), (2, 1)),
        "one.safetensors": tensors(one()),
        "two.safetensors": tensors(TWO % "[16,24]", bytes(24)),
        "repacked.pth": repacked(saved(GOOD)),
        "nested.pth": saved(nested(20)),
    }
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
        assert read_checkpoint(tmp_path / name).tensors
