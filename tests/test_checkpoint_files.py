"""The files of a checkpoint: shards, pickles, damaged files, and names that are not a folder."""

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

from .checkpoints import WEIGHTS, assert_equal_parameters, rewrite_config, saved, write_tensors


def load(folder):
    return DistilBertForSequenceClassification.from_pretrained(folder)


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
    rezip(path, zipfile.ZIP_STORED, lambda name, content: content.replace(cpu, gpu))
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


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch, from 2.14 on, before it is refused
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(2), "'classifier.bias' is not one"),  # two numbers in its shape, one in the file
        (torch.zeros(2).to_sparse(), "'classifier.bias' is not one"),
        (
            torch.sparse_coo_tensor([[9]], [0.0], (2,), check_invariants=False),
            "'classifier.bias' is not one|size is 2 but found index 9",  # torch sees it first from 2.14 on
        ),
        (torch.zeros(2, device="meta"), "'classifier.bias' is not one"),
        (torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "'classifier.bias' is not one|it calls"),
        ([0.0, 0.0], "'classifier.bias' is not one"),
    ],
    ids=["strides of 0", "sparse", "index out of range", "meta", "nested", "list"],
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


def rezip(path, compression, replace):
    """Write the entries of a zip file anew; `replace` returns the content of an entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, replace(name, content))


def test_a_compressed_pickle_is_refused_before_it_fills_the_memory(tmp_path):
    saved(tmp_path)
    pickled(tmp_path, load_file(tmp_path / WEIGHTS) | {"classifier.bias": torch.zeros(1_000_000)})
    path = tmp_path / "pytorch_model.bin"
    rezip(path, zipfile.ZIP_DEFLATED, lambda name, content: content)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=r"not a file of tensors only \(it is compressed"):
        load(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_makes_a_huge_value_of_a_few_bytes_is_refused(tmp_path, monkeypatch, zipped):
    saved(tmp_path)
    pickled(tmp_path, {}, _use_new_zipfile_serialization=zipped)
    path, bomb = tmp_path / "pytorch_model.bin", b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\nK\x09\x85Rs."
    if zipped:
        rezip(path, zipfile.ZIP_STORED, lambda name, content: bomb if name.endswith(".pkl") else content)
    else:
        path.write_bytes(path.read_bytes().replace(pickle.dumps({}, protocol=2), bomb))
    assert torch.load(path, weights_only=True) == {"a": bytearray(9)}  # with more digits it would fill the memory
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("it was unpickled"))
    with pytest.raises(ValueError, match=r"not a file of tensors only \(it calls __builtin__ bytearray\)"):
        load(tmp_path)


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
