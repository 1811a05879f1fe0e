"""The files of a checkpoint: shards, pickles, damaged files, and names that are not a folder."""

import io
import json
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minibert
from minibert import DistilBertForSequenceClassification, DistilBertTokenizer
from minibert.checkpoint import CheckpointFiles, read_tensors
from minibert.pickled import DTYPES, MAGIC, read_pickle
from minibert.weights import PROJECTOR, WORDS

from .checkpoints import CLASSIFIER, WEIGHTS, assert_equal_parameters, rewrite_config, saved, write_tensors
from .models import model


def load(folder):
    return DistilBertForSequenceClassification.from_pretrained(folder)


def rezip(path, replace):
    """Write the entries of a zip file anew; `replace` returns the content of an entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, replace(name, content))


def shard(folder, **index):
    """Split model.safetensors in two, with an index."""
    stored = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {"a.safetensors": sorted(stored)[:9], "b.safetensors": sorted(stored)[9:]}
    for filename, names in parts.items():
        write_tensors({name: stored[name] for name in names}, folder / filename)
    weight_map = {name: filename for filename, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map} | index))


def test_shards_are_found_through_their_index(tmp_path):
    classifier = saved(tmp_path)
    shard(tmp_path)
    assert_equal_parameters(load(tmp_path), classifier)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..", "a.bin", 7])
def test_a_shard_name_that_leaves_the_folder_is_refused(tmp_path, name):
    saved(tmp_path)
    (tmp_path.parent / "a.safetensors").write_bytes((tmp_path / WEIGHTS).read_bytes())
    shard(tmp_path, weight_map={"classifier.bias": name})
    with pytest.raises(ValueError, match=f"{re.escape(repr(str(name)))} is not the name of a safetensors file beside"):
        load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "a.safetensors"])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    saved(tmp_path)
    shard(tmp_path, weight_map=weight_map)
    with pytest.raises(ValueError, match=r"index.json has no weight_map"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    saved(tmp_path)
    shard(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(OSError, match=r"b.safetensors is missing, though another file of the checkpoint names it"):
        load(tmp_path)


def test_the_weights_file_that_config_json_names_comes_first(tmp_path):
    classifier = saved(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "other.safetensors")
    saved(tmp_path / "another")
    (tmp_path / "another" / WEIGHTS).rename(tmp_path / WEIGHTS)
    rewrite_config(tmp_path, transformers_weights="other.safetensors")
    assert_equal_parameters(load(tmp_path), classifier)
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(OSError, match=r"other\.safetensors is missing, though another file of the checkpoint names it"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "adapter_model.bin", ["other.safetensors"]])
def test_config_json_must_name_a_safetensors_file(tmp_path, name):
    saved(tmp_path)
    rewrite_config(tmp_path, transformers_weights=name)
    with pytest.raises(ValueError, match="is not the name of a safetensors file beside config"):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    saved(tmp_path)
    shard(tmp_path)
    write_tensors(
        load_file(tmp_path / "b.safetensors") | {"classifier.bias": torch.ones(2)}, tmp_path / "b.safetensors"
    )
    with pytest.raises(ValueError, match=r"b.safetensors holds \['classifier.bias'\], and so does another shard"):
        load(tmp_path)


def pickled(folder, content, **options):
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_where_there_is_no_safetensors_file(tmp_path, zipped):
    classifier = saved(tmp_path)
    pickled(tmp_path, load_file(tmp_path / WEIGHTS), _use_new_zipfile_serialization=zipped)
    assert_equal_parameters(load(tmp_path), classifier)


def test_a_pickle_of_a_model_on_a_gpu_is_read_without_one(tmp_path):
    classifier = saved(tmp_path)
    pickled(tmp_path, load_file(tmp_path / WEIGHTS))
    cpu, gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"  # the device of each tensor
    path = tmp_path / "pytorch_model.bin"
    rezip(path, lambda name, content: content.replace(cpu, gpu))
    with zipfile.ZipFile(path) as archive:
        assert any(gpu in archive.read(name) for name in archive.namelist())
    assert_equal_parameters(load(tmp_path), classifier)


class CallsTorch:
    """Calls a function of torch when it is unpickled."""

    def __reduce__(self):
        return torch.set_default_dtype, (torch.float64,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_calls_no_function_of_torch_that_makes_no_tensor(tmp_path, zipped):
    saved(tmp_path)
    pickled(tmp_path, {"classifier.bias": CallsTorch()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="not a file of tensors only"):
        load(tmp_path)
    assert torch.get_default_dtype() == torch.float32


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_hostile_pickle_is_never_run(tmp_path, monkeypatch, write):
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    pickled(tmp_path, {})
    write({"classifier.bias": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: not a file of tensors only .*Replace it with an intact copy"
    ):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(2), "'classifier.bias' is not one"),  # two numbers in its shape, one in the file
        (torch.zeros(2).to_sparse(), "it calls torch"),
        (torch.zeros(2, device="meta"), "it calls torch"),
        (torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "it calls torch"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "it calls torch._utils _rebuild_tensor_v3"),
        ([0.0, 0.0], "'classifier.bias' is not one"),
    ],
    ids=["strides of 0", "sparse", "meta", "nested", "float8", "list"],
)
def test_a_pickled_tensor_whose_numbers_are_not_in_the_file_is_refused(tmp_path, tensor, message):
    saved(tmp_path)
    pickled(tmp_path, load_file(tmp_path / WEIGHTS) | {"classifier.bias": tensor})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_pickled_tensor_that_is_stored_negated_keeps_its_sign(tmp_path):
    saved(tmp_path)
    negated = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert negated.is_neg()
    pickled(tmp_path, load_file(tmp_path / WEIGHTS) | {"classifier.bias": negated})
    loaded = load(tmp_path)
    assert loaded.classifier.bias.tolist() == [-2.0, 4.0]
    loaded.save_pretrained(tmp_path / "new")
    assert load_file(tmp_path / "new" / WEIGHTS)["classifier.bias"].tolist() == [-2.0, 4.0]


def test_a_pickle_of_something_else_is_refused(tmp_path):
    saved(tmp_path)
    pickled(tmp_path, [torch.zeros(2)])
    with pytest.raises(ValueError, match="expected a dict from names to tensors, got list"):
        load(tmp_path)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_torch_saves_of_dense_tensors_is_read_as_torch_reads_it(tmp_path, zipped):
    words = torch.arange(12.0).reshape(3, 4)
    made = {str(dtype): (torch.arange(6) % 2).to(dtype) for dtype in DTYPES.values()}
    made |= {"words": words, "tied": words, "view": words[1:, 2], "transposed": words.T, "scalar": torch.tensor(7.0)}
    made |= {"parameter": torch.nn.Parameter(words + 1), "gradient": words.clone().requires_grad_(), "": words[:0]}
    made["parameter"]._is_hf_initialized = True  # as transformers 5 marks what it has loaded
    made |= {"empty": torch.zeros(0, 3), "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag}
    content = model(CLASSIFIER).state_dict()  # with an attribute, `_metadata`
    content.update(made)
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "file", weights_only=True)
    found = read_pickle(tmp_path / "file")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert same(found[name], tensor.detach()), name


@pytest.mark.parametrize("zipped", [True, False])
def test_two_tied_tensors_may_share_their_numbers(tmp_path, zipped):
    made = saved(tmp_path, "DistilBertForMaskedLM")
    state = made.state_dict()
    pickled(
        tmp_path,
        state | {PROJECTOR: state[f"distilbert.{WORDS}"]},
        _use_new_zipfile_serialization=zipped,
    )
    assert_equal_parameters(minibert.DistilBertForMaskedLM.from_pretrained(tmp_path), made)


def number(value):
    return b"J" + struct.pack("<i", value)


def call(name, *arguments):
    """The bytes that call a function in a pickle."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(length, key="0", size=None):
    """The bytes of a float32 tensor in a pickle."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(length) + b"tQ"
    view = number(0), b"(" + number(size or length) + b"t", b"(K\x01t", b"\x89", call("collections OrderedDict")
    return call("torch._utils _rebuild_tensor_v2", storage, *view)


def pickle_of(values):
    return b"\x80\x02}" + b"".join(text(name) + value + b"s" for name, value in values.items()) + b"."


def archive(*records, compression=zipfile.ZIP_STORED):
    """A zip file; records may have the same name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written, warnings.catch_warnings(action="ignore"):
        for name, content in (*records, ("version", b"3")):
            written.writestr(f"archive/{name}", content)
    return file.getvalue()


def assert_refused(path, content, reason):
    """Write a hostile file; it must be refused for this reason."""
    path.with_name("config.json").write_text("{}")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a file of tensors only ({reason}")):
        read_tensors(CheckpointFiles(path.parent))


def test_what_python_2_saved_is_read(tmp_path):
    hooks = call("collections OrderedDict", b"]")  # there an empty list is the argument of an empty one
    content = pickle_of({"w": tensor(3).replace(call("collections OrderedDict"), hooks)})
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(archive(("data.pkl", content), ("data/0", torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes())))
    assert read_pickle(path)["w"].tolist() == [1, 2, 3]
    items = b"]]" + text("w") + b"a" + tensor(3) + b"aa"
    content = b"\x80\x02" + call("collections OrderedDict", items) + b"."
    path.write_bytes(archive(("data.pkl", content), ("data/0", bytes(12))))
    assert read_pickle(path)["w"].tolist() == [0, 0, 0]


OLD = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)  # how a file before torch 1.6 begins


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "reason"),
    [  # with more digits each of these would fill the memory, or give memory of this process as weights
        (call("torch FloatTensor", number(9)), "it calls torch FloatTensor"),
        (call("torch FloatStorage", number(9)), "'torch.dtype' object is not callable"),
        (b"ctorch\nFloatStorage\n" + number(9) + b"\x85\x81", "torch.save does not write NEWOBJ"),
        (call("torch UntypedStorage", number(9)), "it calls torch UntypedStorage"),
        (call("builtins bytearray", number(9)), "it calls builtins bytearray"),
        (call("collections OrderedDict", b"]"), "expected a dict from names to dense tensors"),
        (b"\x8f", "torch.save does not write EMPTY_SET"),
        (
            call("torch._utils _rebuild_device_tensor_from_cpu_tensor"),
            "it calls torch._utils _rebuild_device_tensor_from_cpu_tensor",
        ),
        (call("torch._utils _rebuild_from_type_v2"), "it calls torch._utils _rebuild_from_type_v2"),
        (b"}" + tensor(0) + b"K\x01s", "the keys of its dicts are not names"),
        (tensor(-1), "expected a dict from names to dense tensors"),
        (tensor(10**6), "its tensors have more bytes than the file"),
        (text("x" * 10**6), ""),  # a pickle of more than 1 MB
    ],
)
def test_a_pickle_calls_nothing_and_takes_no_memory(tmp_path, zipped, value, reason):
    content = pickle_of({"w": value})
    file = archive(("data.pkl", content)) if zipped else OLD + content + pickle.dumps([], 2)
    assert_refused(tmp_path / "pytorch_model.bin", file, reason)


def test_tensors_whose_numbers_a_zip_file_does_not_hold_are_refused(tmp_path):
    path, numbers = tmp_path / "pytorch_model.bin", ("data/0", bytes(400))
    one, larger = (pickle_of({"w": tensor(100, size=size)}) for size in (100, 101))
    both = pickle_of({"w": tensor(100, "a"), "v": tensor(300, "A")})
    assert_refused(path, archive(("data.pkl", one), ("data/0", bytes(4000))), "data/0 has 4000 bytes, not 400")
    assert_refused(path, archive(("data.pkl", one), ("data/1", bytes(4000))), "it has no record data/0")
    assert_refused(path, archive(("data.pkl", larger), numbers), "setStorage")
    assert_refused(
        path, archive(("data.pkl", both), ("data/a", bytes(400))), "its tensors have more bytes than the file"
    )
    assert_refused(path, archive(numbers), "it has 0 records data.pkl, not one")
    assert_refused(path, archive(*[("data.pkl", one)] * 3, numbers), "it has 3 records data.pkl, not one")
    file = archive(("data.pkl", one), numbers)
    end = file.index(b"PK\x01\x02")
    assert_refused(path, file[:end] + b"\0" + file[end:], "record data.pkl is not where the index says")
    many = [("data.pkl", one), numbers, *((str(i), b"") for i in range(20_000))]
    assert_refused(path, archive(*many), "a part of it that is not numbers has more than 1000000 bytes")


def test_tensors_whose_numbers_an_old_file_does_not_hold_are_refused(tmp_path):
    path, length = tmp_path / "pytorch_model.bin", (100).to_bytes(8, "little")
    one, larger = (OLD + pickle_of({"w": tensor(100, size=size)}) for size in (100, 101))
    for keys in ([], ["0", "0"], ["1"], [0], "0", None):
        file = one + pickle.dumps(keys, 2) + length + bytes(4000)
        assert_refused(path, file, "it does not hold the numbers of each tensor once")
    keys = pickle.dumps(["0"], 2)
    assert_refused(path, one + keys + length + bytes(399), "it ends too early")
    assert_refused(path, one + keys + bytes(4000), "storage 0 has 0 values, not 100")
    assert_refused(path, larger + keys + length + bytes(400), "setStorage")


@pytest.mark.parametrize("zipped", [True, False])
def test_many_tensors_on_the_same_numbers_are_refused(tmp_path, zipped):
    many = dict.fromkeys(map(str, range(50)), torch.zeros(100_000))
    torch.save(many, tmp_path / "many", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "pytorch_model.bin", (tmp_path / "many").read_bytes(), "its tensors share their numbers")


def test_a_compressed_pickle_is_refused_before_it_fills_the_memory(tmp_path):
    path, order = tmp_path / "pytorch_model.bin", ("byteorder", bytes(10_000_000))
    for records in ([("data.pkl", bytes(4_000_000))], [("data.pkl", pickle_of({})), order]):
        file = archive(*records, compression=zipfile.ZIP_DEFLATED)
        assert_refused(path, file, "it is compressed, which torch.save does not do")
    archive_of_zeros = ("data.pkl", pickle_of({"w": tensor(1_000_000)})), ("data/0", bytes(4_000_000))
    file = archive(*archive_of_zeros, compression=zipfile.ZIP_DEFLATED)
    assert_refused(path, file, "it is compressed, which torch.save does not do")


# Damaged files, and names that are not a folder


def test_an_error_about_weights_is_one_line_of_some_hundred_characters(tmp_path):
    tensors = saved(tmp_path).state_dict()
    write_tensors({"x" * 2000: tensors.popitem()[1]} | tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"the file and the model do not match: missing .*; unexpected") as error:
        load(tmp_path)
    assert len(str(error.value)) < 800
    header = b'{"a": {"dtype": "\\n", "shape": [], "data_offsets": [0, 0]}}'
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"unknown variant `\\n`.*Replace it with an intact copy"):
        load(tmp_path)


@pytest.mark.parametrize("filename", [WEIGHTS, "config.json", "model.safetensors.index.json", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"\xff" * len(content)],
    ids=["empty", "cut in half", "garbage"],
)
def test_a_damaged_file_is_named_and_left_where_it_is(tmp_path, filename, damage):
    saved(tmp_path)
    if filename == "model.safetensors.index.json":
        shard(tmp_path)
    if filename == "pytorch_model.bin":
        pickled(tmp_path, load_file(tmp_path / WEIGHTS))
    path = tmp_path / filename
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path}: not ")) as error:
        load(tmp_path)
    assert str(error.value).endswith("Replace it with an intact copy")
    assert "\n" not in str(error.value)
    assert path.exists()


def test_a_zip_that_is_not_a_checkpoint_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", "")
    with pytest.raises(ValueError, match="not a file of tensors only"):
        load(tmp_path)


def test_a_folder_without_weights_names_the_files_looked_for(tmp_path):
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(
        OSError, match=r"neither model.safetensors nor model.safetensors.index.json nor pytorch_model.bin"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["./missing", "/missing", "~/missing", "a/b/c", "..\\missing", Path("missing"), Path("a/b")]
)
def test_a_path_that_does_not_exist_is_not_a_hub_name(name):
    with pytest.raises(OSError, match=r"no such folder \(a name on the Hub looks like 'owner/model'\)") as error:
        load(name)
    assert str(error.value).startswith(f"{name}: ")


def test_a_file_is_not_a_folder(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"model.safetensors: no such folder"):
        load(WEIGHTS)


def test_a_huge_vocabulary_is_refused_before_it_is_read(tmp_path):
    saved(tmp_path)
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(10**11)  # sparse: it takes no room on the disk
    with pytest.raises(ValueError, match=r"vocab.txt: 100000000000 bytes are too many for a text file"):
        DistilBertTokenizer.from_pretrained(tmp_path)
