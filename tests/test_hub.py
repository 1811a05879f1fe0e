"""The real huggingface_hub client against a Hub on loopback: requests, cache and error messages."""

import io
import json
import os

import pytest
import torch
from safetensors.torch import load, save

from minibert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel, DistilBertTokenizer
from minibert.checkpoint import CheckpointFiles
from minibert.pipeline import TextClassifier

from .checkpoints import NAME, WEIGHTS, cached, load_tiny
from .hub import ONE_WAIT, new_session

LOWER = b'{"do_lower_case": true}'


def pickle_of(tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


# Requests


def test_a_fresh_download_takes_all_files_of_one_commit(hub, tiny_files):
    commit = hub.commit(NAME, tiny_files)
    loaded = load_tiny()
    assert hub.requests == [
        "HEAD main/config.json",
        "GET main/config.json",
        f"HEAD {commit}/{WEIGHTS}",
        f"GET {commit}/{WEIGHTS}",
    ]
    assert torch.equal(loaded.classifier.weight, load(tiny_files[WEIGHTS])["classifier.weight"])


def test_a_second_load_costs_one_request(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    load_tiny()
    hub.requests.clear()
    load_tiny()
    assert hub.requests == ["HEAD main/config.json"]


def test_a_commit_that_is_cached_costs_no_request(hub, tiny_files):
    commit = hub.commit(NAME, tiny_files)
    load_tiny()
    hub.requests.clear()
    load_tiny(revision=commit)
    assert hub.requests == []


def test_weights_come_from_the_commit_of_the_config_though_main_moves_on(hub, tiny_files):
    first = hub.commit(NAME, tiny_files)
    other = {name: tensor + 1 for name, tensor in load(tiny_files[WEIGHTS]).items()}
    hub.after["config.json"] = lambda: hub.commit(NAME, tiny_files | {WEIGHTS: save(other)})
    assert torch.equal(load_tiny().classifier.bias, load(tiny_files[WEIGHTS])["classifier.bias"])
    assert torch.equal(load_tiny().classifier.bias, other["classifier.bias"])  # the next load sees the new head
    assert torch.equal(load_tiny(revision=first).classifier.bias, load(tiny_files[WEIGHTS])["classifier.bias"])


def test_a_model_and_its_tokenizer_may_share_one_commit_though_main_moves_on(hub, tiny_files):
    hub.commit(NAME, tiny_files | {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\nold\n", "tokenizer_config.json": LOWER})
    hub.after[WEIGHTS] = lambda: hub.commit(NAME, tiny_files | {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\nnew\n"})
    files = CheckpointFiles(NAME)
    DistilBertForSequenceClassification.from_files(files)
    assert DistilBertTokenizer.from_files(files).tokenize("old new") == ["old", "[UNK]"]


def test_cache_dir_says_where_files_are_kept(hub, tiny_files, tmp_path):
    hub.commit(NAME, tiny_files)
    load_tiny(cache_dir=tmp_path / "elsewhere")
    assert not cached(tmp_path)
    assert sorted(path.name for path in (tmp_path / "elsewhere").rglob("snapshots/*/*")) == ["config.json", WEIGHTS]


def test_a_folder_of_that_name_comes_first(hub, tiny_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(NAME)
    for name, content in tiny_files.items():
        (tmp_path / NAME / name).write_bytes(content)
    load_tiny()
    assert hub.requests == []


def test_a_renamed_repository_is_followed(hub, tiny_files):
    hub.commit("someone/new-name", tiny_files)
    hub.commit(NAME, {}, moved_to="someone/new-name")
    load_tiny()
    hub.requests.clear()
    load_tiny()
    assert len(hub.requests) == 2  # the old name and the new


def test_shards_come_from_the_hub(hub, tiny_files):
    tensors = load(tiny_files[WEIGHTS])
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    parts = {shard: save({name: tensors[name] for name in part}) for shard, part in shards.items()}
    hub.commit(
        NAME,
        {"config.json": tiny_files["config.json"], "model.safetensors.index.json": json.dumps(index).encode()} | parts,
    )
    assert torch.equal(load_tiny().classifier.weight, tensors["classifier.weight"])


# Without the network


def test_a_cached_checkpoint_loads_when_the_hub_is_out_of_reach(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    load_tiny()
    hub.stop()
    load_tiny()
    assert len(hub.naps) <= ONE_WAIT


def test_what_a_hub_says_of_a_failure_does_not_control_the_terminal(hub, tiny_files, monkeypatch):
    hub.commit(NAME, tiny_files)
    hub.faults["config.json"] = 409
    handler = hub.server.RequestHandlerClass
    send = handler.send_response
    monkeypatch.setattr(
        handler, "send_response", lambda self, status: send(self, status, "\x1b[31mHACK\x07" + "a" * 999)
    )
    with pytest.raises(OSError, match="the download failed") as error:
        load_tiny()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_an_unreachable_hub_is_waited_for_only_once(hub):
    hub.stop()
    files = CheckpointFiles(NAME)
    with pytest.raises(OSError, match=r"someone/tiny: config\.json is not in the cache, and the download failed \(Con"):
        files.find("config.json")
    waited = len(hub.naps)
    with pytest.raises(OSError, match=r"vocab.txt is not in the cache, and the download failed"):
        files.find("vocab.txt")
    assert len(hub.naps) == waited


def test_a_half_cached_checkpoint_says_what_is_missing(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    DistilBertConfig.from_pretrained(NAME)
    hub.stop()
    with pytest.raises(
        OSError, match=r"model\.safetensors, .* is not in the cache.*Try again when the Hub can be reached"
    ):
        load_tiny()


def test_a_cache_that_does_not_know_which_files_there_are_will_do(hub, tiny_files):
    # As `hf download` fills it: all files, and no note that there is no tokenizer.json.
    from huggingface_hub import hf_hub_download

    files = tiny_files | {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nnice\n", "tokenizer_config.json": LOWER}
    hub.commit(NAME, files)
    for filename in files:
        hf_hub_download(NAME, filename)
    hub.stop()
    load_tiny(local_files_only=True)
    tokenizer = DistilBertTokenizer.from_pretrained(NAME, local_files_only=True)
    assert tokenizer("Nice").input_ids == [2, 4, 3]


@pytest.mark.parametrize(
    "kind", [DistilBertConfig, DistilBertTokenizer, DistilBertModel, DistilBertForSequenceClassification]
)
def test_each_class_takes_all_arguments_of_the_hub(hub, tiny_files, tmp_path, kind):
    files = tiny_files | {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\nold\n", "tokenizer_config.json": LOWER}
    first = hub.commit(NAME, files, token="hf_right")
    hub.commit(NAME, {"README.md": b""})
    with pytest.raises(OSError, match=r"no config\.json|no tokenizer"):
        kind.from_pretrained(NAME, token="hf_right")
    with pytest.raises(OSError, match="pass token="):
        kind.from_pretrained(NAME, revision=first)
    where = {"revision": first, "cache_dir": tmp_path / "elsewhere"}
    kind.from_pretrained(NAME, token="hf_right", **where)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("snapshots/*/*.*"))
    hub.requests.clear()
    kind.from_pretrained(NAME, local_files_only=True, **where)
    with pytest.raises(OSError, match="local_files_only=True forbids the download"):
        kind.from_pretrained(NAME, revision=first, local_files_only=True)
    assert hub.requests == []


def test_a_pipeline_reads_its_revision(hub, tiny_files):
    vocabulary = {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\nold\n[PAD]\n", "tokenizer_config.json": LOWER}
    first = hub.commit(NAME, tiny_files | vocabulary)
    hub.commit(NAME, {"README.md": b""})
    (result,) = TextClassifier(NAME, revision=first)(["old"])
    assert result.label in ("LABEL_0", "LABEL_1")


def test_local_files_only_sends_no_request(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    with pytest.raises(OSError, match="not in the cache, and local_files_only=True forbids the download"):
        load_tiny(local_files_only=True)
    assert hub.requests == []
    load_tiny()
    hub.requests.clear()
    load_tiny(local_files_only=True)
    assert hub.requests == []


def test_offline_mode_sends_no_request(hub, tiny_files, monkeypatch):
    from huggingface_hub import constants

    hub.commit(NAME, tiny_files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_session()
    with pytest.raises(OSError, match=r"not in the cache, and the download failed \(OfflineModeIsEnabled"):
        load_tiny()
    assert hub.requests == []


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_known_to_be_missing_is_not_asked_for_again(hub, tiny_files, tmp_path, pinned, elsewhere):
    pickled = {"config.json": tiny_files["config.json"], "pytorch_model.bin": pickle_of(load(tiny_files[WEIGHTS]))}
    commit = hub.commit(NAME, pickled)
    where = {"revision": commit if pinned else None, "cache_dir": tmp_path / "elsewhere" if elsewhere else None}
    load_tiny(**where)
    hub.requests.clear()
    load_tiny(**where)
    assert hub.requests == ([] if pinned else ["HEAD main/config.json"])
    hub.stop()
    load_tiny(**where)
    load_tiny(local_files_only=True, **where)
    assert len(hub.naps) <= ONE_WAIT


def test_a_file_that_main_gains_is_found_though_it_was_missing_before(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    assert CheckpointFiles(NAME).find("vocab.txt") is None
    hub.commit(NAME, tiny_files | {"vocab.txt": b"[PAD]"})
    assert CheckpointFiles(NAME).find("vocab.txt").read_bytes() == b"[PAD]"


# Errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "someone/typo",
            {},
            "someone/typo: no such folder here, and no such repository on the Hub. Check the spelling",
        ),
        (NAME, {"revision": "v9"}, "someone/tiny: no revision 'v9' on the Hub. Pass a branch, a tag or a full"),
        ("someone/gated", {}, "access to this repository is restricted. Ask for access on its Hub page, then log in"),
        (
            "someone/private",
            {},
            "no such repository on the Hub.* if it is private, log in with `hf auth login` or pass",
        ),
        ("someone/private", {"token": "hf_wrong"}, "no such repository on the Hub"),
        ("someone/empty", {}, r"someone/empty: no config\.json in it$"),
        ("someone/no weights", {}, "'someone/no weights': no such folder, and not a valid name on the Hub"),
        ("", {}, "'': no such folder, and not a valid name on the Hub"),
        (
            "someone/no-weights",
            {},
            "no weights in it: neither model.safetensors nor .*index.json nor pytorch_model.bin",
        ),
    ],
)
def test_each_error_is_one_line_with_the_way_out(hub, tiny_files, name, arguments, message):
    hub.commit(NAME, tiny_files)
    hub.commit("someone/gated", tiny_files, token="hf_right", gated=True)
    hub.commit("someone/private", tiny_files, token="hf_right")
    hub.commit("someone/empty", {})
    hub.commit("someone/no-weights", {"config.json": tiny_files["config.json"]})
    with pytest.raises(OSError, match=message) as error:
        load_tiny(name, **arguments)
    assert "\n" not in str(error.value)
    assert "hf_wrong" not in str(error.value)


@pytest.mark.parametrize("gated", [False, True])
def test_a_token_opens_a_private_or_gated_repository(hub, tiny_files, gated):
    hub.commit(NAME, tiny_files, token="hf_right", gated=gated)
    load_tiny(token="hf_right")


def test_the_bare_encoder_and_the_config_come_from_the_hub_too(hub, tiny_files):
    hub.commit(NAME, tiny_files)
    assert DistilBertModel.from_pretrained(NAME).config == DistilBertConfig.from_pretrained(NAME)


# The official weights: the note and the course that this project explains, to 4 decimals

SST2 = "distilbert-base-uncased-finetuned-sst-2-english"
NICE = [101, 2651, 2003, 1037, 3835, 2154, 999, 102]  # Today is a nice day!
TOMORROW = [101, 2021, 2054, 2055, 4826, 1029, 10047, 2025, 2469, 1012, 102]  # But what about tomorrow? Im not sure.
COURSE = "I've been waiting for a HuggingFace course my whole life."


@pytest.mark.hub
@pytest.mark.skipif(os.environ.get("MINIBERT_HUB") != "1", reason="needs the network: set MINIBERT_HUB=1")
def test_the_official_weights_give_the_published_logits():
    tokenizer = DistilBertTokenizer.from_pretrained(SST2)
    official = DistilBertForSequenceClassification.from_pretrained(SST2)
    texts = ["Today is a nice day!", "But what about tomorrow? Im not sure."]
    both = tokenizer(texts, padding=True, return_tensors="pt")
    assert both.input_ids.tolist() == [[*NICE, 0, 0, 0], TOMORROW]
    course = tokenizer(COURSE, add_special_tokens=False).input_ids
    for ids, mask, logits in [
        ([NICE], None, [[-4.3232, 4.6906]]),
        ([NICE], [[1] * 8], [[-4.3232, 4.6906]]),
        (both.input_ids, None, [[-4.1957, 4.5675], [3.9803, -3.2120]]),
        (both.input_ids, both.attention_mask, [[-4.3232, 4.6906], [3.9803, -3.2120]]),
        ([[200, 200, 200]], None, [[1.5694, -1.3895]]),
        ([[200, 200]], None, [[0.5803, -0.4125]]),
        ([[200, 200, 0]], None, [[1.3373, -1.2163]]),
        ([[200, 200, 0]], [[1, 1, 0]], [[0.5803, -0.4125]]),
        ([course], None, [[-2.7276, 2.8789]]),
    ]:
        attention_mask = None if mask is None else torch.as_tensor(mask)
        found = official(torch.as_tensor(ids), attention_mask).logits
        assert torch.allclose(found, torch.tensor(logits), rtol=0, atol=1e-4), (ids, mask, found)
