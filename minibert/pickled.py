"""pytorch_model.bin: the tensors in a file of `torch.save`, read without `torch.load`.

`torch.load(weights_only=True)` runs no code that a file brings, but it calls functions of torch with any arguments. So
a file of one kilobyte can fill the memory, or get memory of this process as its weights. Here a pickle makes only plain
values and descriptions of tensors. Memory is allocated after the sizes are compared with the file.
"""

import io
import os
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST_PICKLE = 1_000_000  # bytes; the one of a DistilBERT has 10 thousand. It takes about 100 times this memory
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of the old format
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Storage(NamedTuple):
    """What a pickle says of the numbers that one or several tensors share."""

    dtype: torch.dtype
    key: str  # names the place of the numbers in the file
    length: int  # in values of this dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.length * self.dtype.itemsize


class View(NamedTuple):
    """What a pickle says of a tensor: which numbers of a storage it shows."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool


def _storage(kind: str, dtype: torch.dtype, key: str, location: str, length: int, view: None = None) -> Storage:
    if kind != "storage" or type(dtype) is not torch.dtype or type(key) is not str or type(length) is not int or view:
        raise ValueError("it describes the numbers in a way that torch.save does not")
    return Storage(dtype, key, length)


def _tensor(
    storage: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    metadata: dict[str, bool] | None = None,
) -> View:
    return View(storage, offset, size, stride, bool(metadata and metadata.get("neg")))


def _parameter(view: View, requires_grad: bool, hooks: object, state: object = None) -> View:
    return view  # the state is attributes, such as transformers 5 gives its parameters


def _ordered_dict(items: list[Any] | None = None) -> dict[str, Any]:
    """Make a dict whose items follow; Python 2 gives a list of them. It is emptied: else it could be copied often."""
    made: dict[str, Any] = {}
    if items:
        _set_items(made, items)
        items.clear()
    return made


DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,  # the position_ids of old files
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
GLOBALS: dict[str, object] = {  # what a pickle may name, and what stands for it here: functions, and dtypes
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "collections OrderedDict": _ordered_dict,
    **{f"torch {name}Storage": dtype for name, dtype in DTYPES.items()},
}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `torch.save` has written, in its format of today or in that before torch 1.6.

    Raises:
        ValueError: the file holds something else than a dict from names to dense tensors, or not all of their numbers.
        OSError: it cannot be read.
        Exception: the file is damaged. This may be an error of any type.
    """
    with _File(io.FileIO(path)) as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        content, numbers = (_open_zip if is_zip else _open_old)(file)
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict from names to tensors, got {type(content).__name__}")
        for name, view in content.items():
            if type(view) is not View or view.storage.length < 0:
                raise ValueError(f"expected a dict from names to dense tensors, but {name!r:.200} is not one")
        storages = {view.storage.key: view.storage for view in content.values()}
        most = os.fstat(file.fileno()).st_size
        if sum(storage.nbytes for storage in storages.values()) > most:
            raise ValueError("its tensors have more bytes than the file")
        flat = numbers(storages)
    tensors = {}
    for name, (storage, offset, size, stride, _) in content.items():
        if storage != storages[storage.key]:
            raise ValueError(f"{name!r:.200} shares its numbers with a tensor of another dtype")
        tensors[name] = flat[storage.key].as_strided(size, stride, offset)  # an error where the storage is too small
        if tensors[name].nbytes > storage.nbytes:  # with strides of 0
            raise ValueError(f"expected a dict from names to dense tensors, but {name!r:.200} is not one")
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * most:  # two tied tensors share their numbers
        raise ValueError("its tensors share their numbers, and would take more than twice the size of the file")
    return {name: -tensor if content[name].negated else tensor for name, tensor in tensors.items()}


class _File(io.BufferedReader):
    """A file whose numbers are read by `numbers`, and of whose other parts none may be large, such as a zip's index."""

    def read(self, size: int | None = -1) -> bytes:
        most = LARGEST_PICKLE + 1
        part = super().read(most if size is None or size < 0 else min(size, most))
        if len(part) == most:
            raise ValueError(f"a part of it that is not numbers has more than {LARGEST_PICKLE} bytes")
        return part

    def numbers(self, storage: Storage) -> Tensor:
        """Read the numbers from the present position on."""
        tensor = torch.empty(storage.length, dtype=storage.dtype)
        if self.readinto(tensor.view(torch.uint8).numpy().data) != storage.nbytes:
            raise ValueError("it ends too early")
        return tensor


Content = tuple[Any, Callable[[dict[str, Storage]], dict[str, Tensor]]]  # a pickle's value, and what reads the numbers


def _open_zip(file: _File) -> Content:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    folders = [entry.filename.removesuffix("data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError(f"it has {len(folders)} records data.pkl, not one")
    records = {entry.filename.removeprefix(folders[0]): entry for entry in entries}

    def find(name: str) -> int:
        """Go to the start of a record, and return its size."""
        if name not in records:
            raise ValueError(f"it has no record {name:.60}")
        if records[name].compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, which torch.save does not do")
        file.seek(records[name].header_offset)
        magic, *lengths = struct.unpack("<4s22xHH", file.read(30))  # of the record's name, and of what follows it
        if magic != b"PK\x03\x04":
            raise ValueError(f"record {name:.60} is not where the index says")
        file.seek(sum(lengths), os.SEEK_CUR)
        return records[name].file_size

    def numbers(storages: dict[str, Storage]) -> dict[str, Tensor]:
        flat = {}
        for key, storage in storages.items():
            if (size := find(f"data/{key}")) != storage.nbytes:
                raise ValueError(f"data/{key:.60} has {size} bytes, not {storage.nbytes}")
            flat[key] = file.numbers(storage)
        return flat

    if "byteorder" in records and file.read(find("byteorder")) != sys.byteorder.encode():
        raise ValueError("its numbers have another byte order than those of this machine")
    return _unpickle(io.BytesIO(file.read(find("data.pkl")))), numbers


def _open_old(file: _File) -> Content:
    pickles = io.BytesIO(file.read(LARGEST_PICKLE))
    magic, _, _, content, keys = (_unpickle(pickles) for _ in range(5))
    if magic != MAGIC:
        raise ValueError("torch.save did not write it")
    file.seek(pickles.tell())

    def numbers(storages: dict[str, Storage]) -> dict[str, Tensor]:
        if keys != sorted(storages):
            raise ValueError("it does not hold the numbers of each tensor once")
        flat = {}
        for key in keys:
            if (length := int.from_bytes(file.read(8), "little")) != storages[key].length:
                raise ValueError(f"storage {key:.60} has {length} values, not {storages[key].length}")
            flat[key] = file.numbers(storages[key])
        return flat

    return content, numbers


def _unpickle(file: io.BytesIO) -> Any:
    """Return the value of a pickle as `torch.save` writes it, with a `View` for each tensor."""
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the marks
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "GLOBAL":
                if argument not in GLOBALS:
                    raise ValueError(f"it calls {argument}")
                stack.append(GLOBALS[argument])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                values, stack = stack, outer.pop()
                if opcode.name == "TUPLE":
                    stack.append(tuple(values))
                elif opcode.name == "APPENDS":
                    stack[-1].extend(values)
                else:
                    _set_items(stack[-1], zip(values[::2], values[1::2], strict=True))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [(key, value)])
            case "REDUCE":
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "BUILD":
                stack.pop()  # attributes, such as the `_metadata` of a state_dict
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"torch.save does not write {name}")
    raise ValueError("it ends too early")


def _set_items(target: dict[str, Any], items: Iterable[tuple[Any, Any]]) -> None:
    for key, value in items:
        if type(key) is not str:  # the hash of a nested tuple may take forever
            raise ValueError("the keys of its dicts are not names")
        target[key] = value
