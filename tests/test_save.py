"""Saving: transformers reads the checkpoint bit for bit, and a killed save never leaves half a checkpoint."""

import errno
import itertools
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import minibert
from minibert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, checkpoint
from minibert.checkpoint import write_atomically

from .checkpoints import CLASSIFIER, assert_equal_parameters, saved
from .models import HEADS, batch, model, tensors

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


@pytest.fixture
def old_and_new(tmp_path):
    """Two checkpoints whose weights fit each other's config: a mixture of them would load without an error."""
    for name in ("old", "new"):
        saved(tmp_path / name, CLASSIFIER, id2label={0: f"{name} no", 1: f"{name} yes"})
    return tmp_path / "old", tmp_path / "new"


def which(folder, candidates, kind=DistilBertForSequenceClassification):
    """The name of the candidate that a folder holds, config and every weight."""
    loaded = kind.from_pretrained(folder)
    for candidate in candidates:
        original = kind.from_pretrained(candidate)
        same_weights = all(map(torch.equal, loaded.state_dict().values(), original.state_dict().values()))
        if same_weights and loaded.config.id2label == original.config.id2label:
            return candidate.name
    return "a mixture"


def killed_saves(how, old, new, out, kind="model"):
    """The folders that killed saves of `new` over `old` leave behind; see killed_saves.py."""
    subprocess.run([sys.executable, Path(__file__).with_name("killed_saves.py"), how, kind, old, new, out], check=True)
    return [out / str(i) for i in range(len(os.listdir(out)))]


@needs_fork
def test_a_save_killed_at_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path, old_and_new):
    folders = killed_saves("every-step", *old_and_new, tmp_path / "out")
    left = [which(folder, old_and_new) for folder in folders]
    assert left == ["old"] * left.count("old") + ["new"] * left.count("new")
    assert min(Counter(left).values()) >= 4
    assert sorted(os.listdir(folders[-1])) == ["config.json", "model.safetensors"]  # this one was not killed


@needs_fork
def test_a_save_killed_at_any_time_leaves_the_old_checkpoint_or_the_new(tmp_path, old_and_new):
    folders = killed_saves("random-times", *old_and_new, tmp_path / "out")
    assert {which(folder, old_and_new) for folder in folders} <= {"old", "new"}


def saver(new, old, folder, kind=DistilBertForSequenceClassification):
    """A process that saves one checkpoint and the other in turn until it is killed."""
    if child := os.fork():
        return child
    for made in itertools.cycle([kind.from_pretrained(source) for source in (new, old)]):
        made.save_pretrained(folder)
    raise AssertionError


def stop(*children):
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def load_until_both_are_found(load, least):
    """What was loaded how often, in at least so many loads: on a busy machine the first save may come late."""
    end = time.monotonic() + 60
    found = Counter(load() for _ in range(least))
    while len(found) < 2 and time.monotonic() < end:
        found[load()] += 1
    return found


@needs_fork
def test_loading_while_another_process_saves_never_mixes_two_checkpoints(tmp_path, old_and_new):
    old, new = old_and_new
    shutil.copytree(old, tmp_path / "busy")
    child = saver(new, old, tmp_path / "busy")
    try:
        found = load_until_both_are_found(lambda: which(tmp_path / "busy", old_and_new), 60)
    finally:
        stop(child)
    assert set(found) == {"old", "new"}, found


@needs_fork
@pytest.mark.parametrize("attempt", range(2))
def test_two_processes_that_save_at_once_leave_one_checkpoint(tmp_path, old_and_new, attempt):
    old, new = old_and_new
    shutil.copytree(old, tmp_path / "busy")
    children = [saver(new, old, tmp_path / "busy"), saver(old, new, tmp_path / "busy")]
    time.sleep(1)
    stop(*children)
    assert which(tmp_path / "busy", old_and_new) in ("old", "new")


@needs_fork
def test_a_save_over_one_that_was_killed_may_be_killed_too(tmp_path, old_and_new):
    old, new = old_and_new
    interrupted = tmp_path / "interrupted"  # config.json names the old weights, model.safetensors holds the new ones
    shutil.copytree(old, interrupted)
    (interrupted / "model.safetensors").rename(interrupted / "model-1.safetensors")
    shutil.copy(new / "model.safetensors", interrupted)
    config = json.loads((interrupted / "config.json").read_text()) | {"transformers_weights": "model-1.safetensors"}
    (interrupted / "config.json").write_text(json.dumps(config))
    folders = killed_saves("every-step", interrupted, new, tmp_path / "out")
    left = [which(folder, old_and_new) for folder in folders]
    assert left == ["old"] * left.count("old") + ["new"] * left.count("new")
    assert set(left) == {"old", "new"}


@needs_fork
def test_a_config_saved_over_a_killed_save_leaves_its_weights(tmp_path, old_and_new):
    old, new = old_and_new
    for folder in killed_saves("every-step", old, new, tmp_path / "out"):
        left = which(folder, old_and_new)
        DistilBertConfig.from_pretrained(folder).save_pretrained(folder)
        assert which(folder, old_and_new) == left


@needs_fork
def test_a_first_save_killed_at_any_step_leaves_nothing_or_the_whole(tmp_path, old_and_new):
    (tmp_path / "nothing").mkdir()
    folders = killed_saves("every-step", tmp_path / "nothing", old_and_new[1], tmp_path / "out")
    whole = [folder for folder in folders if (folder / "config.json").exists()]
    assert len(folders) > len(whole) > 5
    assert {which(folder, old_and_new) for folder in whole} == {"new"}


@needs_fork
def test_a_save_deletes_what_killed_saves_left_and_nothing_else(tmp_path, old_and_new):
    old, new = old_and_new
    mine = ["model-00001-of-00002.safetensors", ".mine.tmp", "model-mine.safetensors"]
    mine += [name.replace(".", f"-{'0' * 32}.") for name in ("config.json", "model.safetensors", "vocab.txt")]
    for name in mine:
        (old / name).write_text("mine")
    (folder, *_) = killed_saves("every-step", old, new, tmp_path / "out")
    left = [path for path in (tmp_path / "out").glob("*/*") if not (old / path.name).exists()]
    assert any(path.name.startswith("model-minibert-") for path in left)
    assert any(path.name.startswith(".config.json.") for path in left)
    assert any(path.is_dir() for path in left)
    for path in left:
        if path.parent != folder:
            path.rename(folder / path.name)
    DistilBertForSequenceClassification.from_pretrained(new).save_pretrained(folder)
    assert sorted(os.listdir(folder)) == sorted(["config.json", "model.safetensors", *mine])
    assert which(folder, old_and_new) == "new"


@needs_fork
def test_a_process_forked_during_a_save_does_not_keep_the_folder_locked(tmp_path, monkeypatch):
    children = []

    def fork_and_sync(descriptor):
        if not (child := os.fork()):
            signal.pause()
        children.append(child)

    made = model(CLASSIFIER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fork_and_sync)  # called while the folder is locked
        made.save_pretrained(tmp_path)
    again = threading.Thread(target=made.save_pretrained, args=(tmp_path,), daemon=True)
    again.start()
    again.join(20)
    stop(*children)
    assert not again.is_alive()


@pytest.mark.parametrize("posix", [True, False])
def test_a_save_waits_until_the_folder_is_not_locked(tmp_path, monkeypatch, posix):
    pytest.importorskip("fcntl" if posix else "filelock")
    if not posix:
        monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows: there is a lock file
    (tmp_path / f"model-minibert-{'0' * 32}.safetensors").touch()  # of a killed save
    saver = threading.Thread(target=saved, args=(tmp_path,))
    with checkpoint._locked(tmp_path):
        assert (tmp_path / ".lock").exists() != posix
        saver.start()
        saver.join(0.3)
        assert not (tmp_path / "config.json").exists()
    saver.join()
    assert set(os.listdir(tmp_path)) - {".lock"} == {"config.json", "model.safetensors"}


def test_where_a_folder_cannot_be_locked_a_save_deletes_nothing_of_another(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")  # as on some network file systems

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    name = f"model-minibert-{'0' * 32}.safetensors"
    (tmp_path / name).touch()
    saved(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", name, "model.safetensors"]


# The tokenizer's files

LENGTHS = {"old": 3, "new": 4}  # each tokenizer's model_max_length


@pytest.fixture
def old_and_new_tokenizers(tmp_path):
    """Two tokenizers in files of each kind: the vocabulary and the settings of one would fit the other's."""
    for name, length in LENGTHS.items():
        vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", name, "word"])}
        DistilBertTokenizer(vocab, model_max_length=length).save_pretrained(tmp_path / name)
    tokens = [(word, i) for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "old", "word"])]
    parts = {"normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"}}
    content = {"model": {"type": "WordPiece", "vocab": dict(tokens)}, "added_tokens": [], **parts}
    (tmp_path / "old" / "tokenizer.json").write_text(json.dumps(content))  # is read in place of vocab.txt
    return tmp_path / "old", tmp_path / "new"


def which_tokenizer(folder):
    """Whose vocabulary, if the settings are of the same tokenizer."""
    tokenizer = DistilBertTokenizer.from_pretrained(folder)
    (word,) = tokenizer.get_vocab().keys() & {"old", "new"}
    return word if tokenizer.model_max_length == LENGTHS[word] else "a mixture"


@needs_fork
def test_a_save_of_a_tokenizer_killed_at_any_step_leaves_the_old_one_or_the_new(tmp_path, old_and_new_tokenizers):
    folders = killed_saves("every-step", *old_and_new_tokenizers, tmp_path / "out", "tokenizer")
    left = [which_tokenizer(folder) for folder in folders]
    assert left == ["old"] * left.count("old") + ["new"] * left.count("new")
    assert min(Counter(left).values()) >= 4
    assert sorted(os.listdir(folders[-1])) == ["tokenizer_config.json", "vocab.txt"]


@needs_fork
def test_loading_a_tokenizer_while_another_process_saves_never_mixes_two(tmp_path, old_and_new_tokenizers):
    old, new = old_and_new_tokenizers
    (old / "tokenizer.json").unlink()
    shutil.copytree(old, tmp_path / "busy")
    child = saver(new, old, tmp_path / "busy", DistilBertTokenizer)
    try:
        found = load_until_both_are_found(lambda: which_tokenizer(tmp_path / "busy"), 100)
    finally:
        stop(child)
    assert set(found) == {"old", "new"}, found


def test_only_a_killed_save_makes_tokenizer_config_name_the_vocabulary(tmp_path, old_and_new_tokenizers):
    old, new = old_and_new_tokenizers
    config = json.loads((new / "tokenizer_config.json").read_text())
    for name in (str(old / "vocab.txt"), "../old/vocab.txt", 3, None, "", "vocab.txt", f"vocab-{'0' * 32}.txt"):
        (new / "tokenizer_config.json").write_text(json.dumps(config | {"vocab_file": name}))
        assert which_tokenizer(new) == "new"
    (new / "tokenizer_config.json").write_text(json.dumps(config | {"vocab_file": f"vocab-minibert-{'0' * 32}.txt"}))
    with pytest.raises(OSError, match="it has no tokenizer"):
        which_tokenizer(new)


@needs_fork
@pytest.mark.reference
def test_transformers_finds_the_old_checkpoint_or_the_new_as_well(tmp_path, old_and_new):
    transformers = pytest.importorskip("transformers")
    kind = transformers.DistilBertForSequenceClassification
    folders = killed_saves("every-step", *old_and_new, tmp_path / "out")
    left = [which(folder, old_and_new, kind) for folder in folders]
    assert left == ["old"] * left.count("old") + ["new"] * left.count("new")


@pytest.mark.parametrize(("step", "left"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_save_that_fails_leaves_the_old_checkpoint_or_the_new(old_and_new, monkeypatch, step, left):
    old, new = old_and_new
    made = DistilBertForSequenceClassification.from_pretrained(new)
    steps = itertools.count(1)

    def full(descriptor):
        if next(steps) == step:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        made.save_pretrained(old)
    assert which(old, [new, old]) == left
    extra = set(os.listdir(old)) - {"config.json", "model.safetensors"}
    assert len(extra) == (left == "new")  # the new weights under a name of their own, which config.json names


def test_a_first_save_that_fails_leaves_no_file(tmp_path):
    made = model(CLASSIFIER)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as if the disk were full after 1000 bytes
    try:
        with pytest.raises(OSError, match="cannot be written to"):
            made.save_pretrained(tmp_path / "fresh")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "fresh") == []


def test_a_save_without_room_for_a_folder_says_so(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left on device"):
        model(CLASSIFIER).save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_save_that_cannot_bring_back_the_usual_name_leaves_the_new_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    made = model(CLASSIFIER)
    with pytest.raises(OSError, match="directory"):
        made.save_pretrained(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert_equal_parameters(DistilBertForSequenceClassification.from_pretrained(tmp_path), made)


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = saved(tmp_path)
    assert_equal_parameters(DistilBertForSequenceClassification.from_pretrained(tmp_path), made)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    saved(tmp_path, CLASSIFIER)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_model_may_be_saved_over_the_file_it_is_mapped_from(tmp_path):
    saved(tmp_path, CLASSIFIER)
    loaded = DistilBertForSequenceClassification.from_pretrained(tmp_path)
    expected = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path)
    again = DistilBertForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in expected.items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(again.state_dict()[name], tensor)


def test_files_are_as_readable_as_the_user_makes_files(tmp_path):
    saved(tmp_path, CLASSIFIER)
    (tmp_path / "mine").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "mine").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="the modes of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_what_replaces_a_private_file_is_never_readable_for_others(tmp_path, monkeypatch, mode):
    tokenizer = DistilBertTokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    for path in tmp_path.iterdir():
        path.chmod(mode)
    seen, sync = [], os.fsync

    def look(descriptor):
        paths = [*tmp_path.glob(".*"), *tmp_path.glob("vocab-*")]
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in paths)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(tmp_path / "file", b"new")
    tokenizer.save_pretrained(tmp_path)
    assert len(seen) >= 5
    assert not [oct(found) for found in seen if found & ~(mode | 0o700)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


@needs_fork
def test_a_config_that_is_saved_deletes_what_a_killed_save_of_it_left(tmp_path, old_and_new):
    old, new = old_and_new
    folders = killed_saves("every-step", old, new, tmp_path / "out")
    (folder, *_) = [folder for folder in folders if any(".config.json." in name for name in os.listdir(folder))]
    DistilBertConfig.from_pretrained(folder).save_pretrained(folder)
    assert not any(".config.json." in name for name in os.listdir(folder))
    assert which(folder, old_and_new) in ("old", "new")


def test_a_config_is_saved_over_one_that_cannot_be_read(tmp_path):
    for content in (b"[" * 100_000, b"\xff", b"[]"):
        (tmp_path / "config.json").write_bytes(content)
        DistilBertConfig().save_pretrained(tmp_path)
        assert DistilBertConfig.from_pretrained(tmp_path) == DistilBertConfig()
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**11)  # sparse: it takes no room on the disk
    DistilBertConfig().save_pretrained(tmp_path)
    assert DistilBertConfig.from_pretrained(tmp_path) == DistilBertConfig()


def test_a_text_file_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    config = DistilBertConfig(id2label={0: "a" * 100, 1: "b"})
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "LARGEST_TEXT", 200)
    with pytest.raises(ValueError, match=r"a JSON file of \d+ bytes could not be read again: 200 are the most"):
        config.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert DistilBertConfig.from_pretrained(tmp_path) == config
    assert os.listdir(tmp_path) == ["config.json"]


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(0o640)
    write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
    if os.name == "posix":
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_is_whole_when_the_disk_is_asked_to_keep_it(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    saved(tmp_path / "folder" / "new")
    weights, config = (
        (tmp_path / "folder" / "new" / name).stat().st_size for name in ("model.safetensors", "config.json")
    )
    named = len(f'  "transformers_weights": "model-minibert-{"0" * 32}.safetensors"') + len(",\n")
    assert sizes == [weights, config + named, config]


# transformers


@pytest.fixture
def transformers(caplog):
    """The package, with its warnings in caplog."""
    package = pytest.importorskip("transformers")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    package.utils.logging.disable_progress_bar()
    yield package
    logger.removeHandler(caplog.handler)


@pytest.mark.reference
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_we_save_without_a_warning_and_bit_for_bit(tmp_path, transformers, caplog, head, dtype):
    ours = model(head).to(dtype)
    ours.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, head).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not caplog.records
    assert not any(report.values()), report
    assert theirs.dtype == dtype
    assert_equal_parameters(theirs, ours)
    inputs = batch(head)
    expected = tensors(theirs(**inputs))
    for name, value in tensors(ours(**inputs)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.reference
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_load_what_transformers_saves_bit_for_bit(tmp_path, transformers, head, dtype):
    saved(tmp_path / "ours", head)
    theirs = getattr(transformers, head).from_pretrained(tmp_path / "ours", attn_implementation="eager", dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(minibert, head).from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert_equal_parameters(theirs, ours)
    inputs = batch(head)
    expected = tensors(theirs(**inputs))
    for name, value in tensors(ours(**inputs)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.reference
def test_an_untied_projector_survives_transformers(tmp_path, transformers, caplog):
    ours = saved(tmp_path / "ours", "DistilBertForMaskedLM", tie_word_embeddings=False)
    theirs = transformers.DistilBertForMaskedLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = minibert.DistilBertForMaskedLM.from_pretrained(tmp_path / "theirs")
    assert not caplog.records
    assert torch.equal(back.vocab_projector.weight, ours.vocab_projector.weight)
    assert not torch.equal(back.vocab_projector.weight, back.distilbert.embeddings.word_embeddings.weight)


@pytest.mark.reference
def test_we_load_the_shards_that_transformers_writes(tmp_path, transformers):
    ours = saved(tmp_path / "ours", CLASSIFIER)
    theirs = transformers.DistilBertForSequenceClassification.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    back = DistilBertForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert_equal_parameters(back, ours)


@pytest.mark.reference
def test_the_auto_classes_take_a_folder_with_the_tokenizer_without_a_warning(tmp_path, transformers, caplog):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    tokenizer = DistilBertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=16)
    tokenizer.save_pretrained(tmp_path)
    ours = saved(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not caplog.records
    assert type(their_tokenizer).__name__.startswith("DistilBertTokenizer")
    assert their_tokenizer.model_max_length == 16
    inputs = tokenizer(["Hello world", "Hello"], padding=True, return_tensors="pt")
    assert torch.equal(
        their_tokenizer(["Hello world", "Hello"], padding=True, return_tensors="pt").input_ids, inputs.input_ids
    )
    assert torch.equal(theirs(inputs.input_ids, inputs.attention_mask).logits, ours(**inputs).logits)


def test_a_save_that_fails_over_a_config_that_is_not_utf8_says_why(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(-1))  # a disk that fails
    with pytest.raises(OSError, match="Bad file descriptor"):
        model(CLASSIFIER).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files here")
def test_a_save_leaves_no_file_open(tmp_path):
    made = model(CLASSIFIER)
    made.save_pretrained(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    made.save_pretrained(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
