"""Any safetensors file, shards with their index, and pickles. Oracle: a safetensors reader of a few lines.

Whatever a pickle says, nothing runs: a call that did would add to RAN.
"""

import io
import json
import os
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import _utils

from minibert import DistilBertForSequenceClassification

from ..models import model
from .tools import accepted, edited, edited_bytes, folder_of, json_value

RAN = []
TINY = {"vocab_size": 5, "max_position_embeddings": 3, "dim": 2, "n_layers": 1, "n_heads": 1, "hidden_dim": 3}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_DTYPES = ["I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4", "I16", "f32"]


def saved():
    """The files of a tiny classifier, and its tensors."""
    torch.manual_seed(0)
    classifier = model("DistilBertForSequenceClassification", **TINY)
    with tempfile.TemporaryDirectory() as name:
        classifier.save_pretrained(name)
        files = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    return json.loads(files["config.json"]), files["model.safetensors"], classifier.state_dict()


CONFIG, SAFETENSORS, STATE = saved()


def parts(data):
    """The header and the numbers of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


HEADER, BODY = parts(SAFETENSORS)


def likely(source):
    options = [*DTYPES, *OTHER_DTYPES, *range(0, len(BODY), 4), *HEADER, len(BODY), 2**63 - 1, 2**64]
    return source.choice(options) if source.once_in(2) else json_value(source)


def safetensors(source, header, body):
    for _ in range(source.integer(0, 2)):
        header = edited(source, header, likely)
    if source.once_in(4):
        body = edited_bytes(source, body)
    text = json.dumps(header).encode()
    if source.once_in(4):
        text = edited_bytes(source, text)
    length = len(text) + (source.choice([1, -1, 8, 2**31, 2**62]) if source.once_in(6) else 0)
    return max(0, length).to_bytes(8, "little") + text + body


def shards(source):
    names = ["a.safetensors", "b.safetensors"]
    tensors = [name for name in HEADER if name != "__metadata__"]
    half = source.integer(0, len(tensors))
    weight_map = {name: names[i >= half] for i, name in enumerate(tensors)}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    likely_name = ["../a.safetensors", "/etc/passwd", "b.safetensors", "a.safetensors\x00", ".safetensors", "c.bin"]
    for _ in range(source.integer(0, 2)):
        index = edited(source, index, lambda source: source.choice(likely_name))
    files = {"model.safetensors.index.json": index}
    for i, name in enumerate(names):
        header = {tensor: dict(HEADER[tensor]) for tensor in tensors if weight_map[tensor] == names[i]}
        body = b""
        for info in header.values():
            start, end = info["data_offsets"]
            info["data_offsets"] = [len(body), len(body) + end - start]
            body += BODY[start:end]
        files[name] = safetensors(source, header, body)
    return files


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(source):
    """Something to stand for a tensor in a pickle."""
    storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)
    numbers = [0, 1, 2, 4, -1, 2**31, 2**40, 2**62]
    size, stride = (tuple(source.several(lambda: source.choice(numbers), 3)) for _ in range(2))
    offset = source.choice(numbers)
    calls = [
        (_utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict())),
        (_utils._rebuild_tensor_v2, (storage, 0, (2,), (source.choice(numbers),), True, None)),
        (_utils._rebuild_tensor, (storage, offset, size, stride)),
        (_utils._rebuild_parameter, (torch.zeros(2), source.choice([True, None]), size)),
        (_utils._rebuild_meta_tensor_no_storage, (torch.float32, size, stride, False)),
        (_utils._rebuild_sparse_tensor, (torch.sparse_coo, (torch.zeros(1, 1).long(), torch.ones(1), size, True))),
        (OrderedDict, ([("a", 1)],)),
        (exec, ("import tests.fuzz.weights; tests.fuzz.weights.RAN.append('exec')",)),
        (RAN.append, ("append",)),
        (os.system, ("true",)),
        (torch.load, ("/etc/passwd",)),
        (bytearray, (2**31,)),  # torch would call it with any number, and so take any memory
        (torch.Size, (size,)),
    ]
    kind = source.integer(0, len(calls) + 2)
    values = [torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex64).conj().imag, torch.ones(2).long()]
    return Call(*calls[kind]) if kind < len(calls) else values[kind - len(calls)]


def pickled(source):
    content = dict(STATE)
    for _ in range(source.integer(0, 2)):
        content[source.choice(list(content))] = hostile(source)
    if source.once_in(8):
        content = source.choice([list(content.values()), {"state_dict": content}, {1: torch.zeros(2)}, torch.zeros(2)])
    file, kind = io.BytesIO(), source.choice(["zip", "zip", "legacy", "pickle"])
    try:
        if kind == "pickle":
            file.write(pickle.dumps(content))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    except Exception:  # such a content cannot be written
        return b""
    data = file.getvalue()
    if kind == "zip" and source.once_in(2):
        data = rezipped(source, data)
    if source.once_in(3):
        data = edited_bytes(source, data)
    return data


def rezipped(source, data):
    """The same archive with one member edited, left out or repeated."""
    file, chosen = io.BytesIO(), source.integer(0, 5)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for i, name in enumerate(old.namelist()):
            member = old.read(name)
            if i == chosen:
                member = edited_bytes(source, member)
                name = source.choice([name, name, "../" + name, name + "x"])
            new.writestr(name, member)
    return file.getvalue()


def make(source):
    kind = source.choice(["safetensors", "safetensors", "shards", "named", "pickle", "pickle"])
    if kind == "shards":
        files = shards(source)
    elif kind == "pickle":
        files = {"pytorch_model.bin": pickled(source)}
    else:
        files = {"model.safetensors": safetensors(source, HEADER, BODY)}
    config = CONFIG
    if kind == "named":
        names = ["model.safetensors", "../x.safetensors", "x.safetensors", "", 1, ["a"], "model.safetensors\x00"]
        config = config | {"transformers_weights": source.choice(names)}
    if source.once_in(6):
        config = edited(source, config)
    return {"config.json": config, **files}


def expected(files):
    """The tensors of the safetensors files that a checkpoint names, by name."""
    index = files.get("model.safetensors.index.json")
    tensors = {}
    for name in sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]:
        header, body = parts(files[name])
        for tensor, info in header.items():
            if tensor != "__metadata__":
                start, end = info["data_offsets"]
                numbers = torch.frombuffer(bytearray(body[start:end]), dtype=DTYPES[info["dtype"]])
                tensors[tensor] = numbers.reshape(info["shape"]).float()
    return tensors


@torch.no_grad()
def check(files):
    RAN.clear()
    with folder_of(files) as folder:
        loaded = accepted(lambda: DistilBertForSequenceClassification.from_pretrained(folder))
        assert not RAN, f"the pickle has run {RAN}"
        if loaded is None:
            return False
        state = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
        if "pytorch_model.bin" not in files:
            for name, tensor in expected(files).items():
                assert_same(state.pop(name), tensor, name)
            assert not state, f"{list(state)} are not in the file"
        logits = loaded(torch.zeros(1, 1, dtype=torch.long)).logits
        loaded.save_pretrained(folder / "new")
        again = DistilBertForSequenceClassification.from_pretrained(folder / "new")
        assert_same(again(torch.zeros(1, 1, dtype=torch.long)).logits, logits, "logits")
    return True


def assert_same(first, second, name):
    assert first.shape == second.shape, name
    assert torch.allclose(first, second, 0, 0, equal_nan=True), name
