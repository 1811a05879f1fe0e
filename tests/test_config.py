"""Old and new config.json files are read; a value that no DistilBERT can have is refused by name."""

import copy
import dataclasses
import json
import logging
import pickle
import sys
from contextlib import suppress

import pytest

from minibert import DistilBertConfig, checkpoint
from minibert.config import ALIASES, SIZES

BASE_2019 = {  # distilbert-base-uncased as first published: no model_type, no architectures
    "activation": "gelu",
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "finetuning_task": None,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "n_heads": 12,
    "n_layers": 6,
    "num_labels": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "torchscript": False,
    "vocab_size": 30522,
}
BASE_2021 = {
    "_name_or_path": "distilbert-base-uncased",
    "activation": "gelu",
    "architectures": ["DistilBertForSequenceClassification"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "finetuning_task": "sst-2",
    "hidden_dim": 3072,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "torch_dtype": "float32",
    "transformers_version": "4.10.0.dev0",
    "type_vocab_size": 2,  # a stray one of BERT
    "vocab_size": 30522,
}
ALIASED = {"model_type": "distilbert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "content",
    [BASE_2019, BASE_2021 | {"id2label": None}, {"model_type": "distilbert"}, {"n_layers": 6, "dim": 768}],
)
def test_an_old_file_and_an_almost_empty_one_are_distilbert_base(content):
    assert DistilBertConfig.from_dict(content) == DistilBertConfig()


def test_aliases_mean_dim_layers_and_heads():
    config = DistilBertConfig.from_dict(ALIASED | {"dim": 64})  # both names are fine while they agree
    assert (config.dim, config.n_layers, config.n_heads) == (64, 3, 4)


def test_class_numbers_are_strings_in_json():
    config = DistilBertConfig.from_dict(BASE_2021)
    assert config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert config.label2id == {"NEGATIVE": 0, "POSITIVE": 1}
    assert config.num_labels == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {0: "LABEL_0", 1: "LABEL_1"}),
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"id2label": {0: "no", 1: "maybe", 2: "yes"}}, {0: "no", 1: "maybe", 2: "yes"}),
        ({"id2label": {0: "no", 1: "yes"}, "num_labels": 2}, {0: "no", 1: "yes"}),
    ],
)
def test_num_labels_and_id2label_complete_each_other(given, expected):
    config = DistilBertConfig(**given)
    assert config.id2label == expected
    assert config.num_labels == len(expected)


def test_num_labels_wins_over_the_names_that_old_fine_tuning_left_in_place(caplog):
    config = DistilBertConfig.from_dict(BASE_2021 | {"num_labels": 3})
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert "id2label names 2 classes of 3" in caplog.text


@pytest.mark.parametrize("name", ["num_labels", "output_attentions"])
def test_what_is_ignored_is_shown_on_one_short_line(caplog, name):
    value = "\x1b[31mHACK\x1b]0;title\x07\n1\t0.99\tforged" + "a" * 10_000
    with suppress(ValueError):  # num_labels is refused after the warning
        DistilBertConfig.from_dict(BASE_2021 | {name: value})
    (message,) = caplog.messages
    assert "HACK" in message
    assert message.isprintable()  # no escape sequence, no line break
    assert len(message) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hidden_size": 64, "dim": 32}, "dim is 32 but hidden_size, another name for it, is 64"),
        ({"activation": "gelu_new"}, r"activation must be one of \('gelu', 'relu'\), got 'gelu_new'"),
        ({"dim": 100, "n_heads": 12}, r"dim \(100\) must be divisible by n_heads \(12\)"),
        ({"n_layers": 0}, "n_layers must be an integer from 1 to 1000, got 0"),
        ({"n_layers": True}, "n_layers must be an integer from 1 to 1000, got True"),
        ({"dim": "768"}, "dim must be an integer from 1 to 1000000, got '768'"),
        ({"vocab_size": 30522.0}, "vocab_size must be an integer"),
        ({"vocab_size": 10**12}, "vocab_size must be an integer from 1 to 1000000, got 1000000000000"),
        ({"dropout": 1.5}, "dropout must be a probability from 0 to 1, got 1.5"),
        ({"qa_dropout": None}, "qa_dropout must be a probability from 0 to 1, got None"),
        ({"initializer_range": float("nan")}, "initializer_range must be a number of at least 0, got nan"),
        ({"initializer_range": "small"}, "initializer_range must be a number of at least 0, got 'small'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"pad_token_id": 30522}, r"pad_token_id must be a token id below vocab_size \(30522\) or None, got 30522"),
        ({"pad_token_id": -1}, "pad_token_id must be a token id"),
        ({"problem_type": "ranking"}, "problem_type must be None or one of .*, got 'ranking'"),
        ({"id2label": ["no", "yes"]}, r"id2label must map class numbers to names, got \['no', 'yes'\]"),
        ({"id2label": {"no": 0}}, "id2label must map class numbers to names"),
        ({"id2label": {"1": "no", "2": "yes"}}, r"id2label must name the classes 0 to 1 \(num_labels\)"),
        ({"num_labels": 0}, "num_labels must be an integer from 1"),
        ({"id2label": {"0": "no", "00": "yes"}}, "id2label names a class twice"),
        ({"id2label": {"0": "no" * 501}}, "id2label has a name of 1002 characters, 1000 are the most: 'nono"),
        ({"n_layers": 1001}, "n_layers must be an integer from 1 to 1000, got 1001"),
        ({"num_labels": 100_001}, "num_labels must be an integer from 1 to 100000, got 100001"),
        ({"initializer_range": 10**400}, "initializer_range must be a number of at least 0, got 1000"),
    ],
)
def test_an_impossible_value_is_refused_by_name(content, message):
    with pytest.raises(ValueError, match=message):
        DistilBertConfig.from_dict({"model_type": "distilbert"} | content)


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 1_000_000, "n_layers": 1000, "num_labels": 100_000},
        {"dim": 1, "n_heads": 1, "n_layers": 1, "hidden_dim": 1, "max_position_embeddings": 1},
        {"vocab_size": 1, "pad_token_id": 0, "num_labels": 1},
        {"dropout": 1, "attention_dropout": 1.0, "initializer_range": sys.float_info.max},
        {"dropout": 0, "qa_dropout": 0.0, "initializer_range": 0, "pad_token_id": None},
        {"pad_token_id": 30521, "id2label": {0: "n" * 1000}},
    ],
)
def test_the_largest_and_the_smallest_values_are_taken(values):
    config = DistilBertConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize("name", ["dim", "activation", "dropout", "pad_token_id", "problem_type", "id2label"])
def test_an_error_shows_the_beginning_of_a_long_value(name):
    with pytest.raises(ValueError, match=name) as error:
        DistilBertConfig(**{name: "a" * 10_000})
    assert "aaa" in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("label2id", [{"a": [0]}, {"a": "0"}, {"a": True}, ["a"], "a"])
def test_label2id_must_map_names_to_numbers(label2id):
    with pytest.raises(ValueError, match="label2id must map names to class numbers, got "):
        DistilBertConfig(label2id=label2id)


@pytest.mark.parametrize(
    ("content", "model_type"),
    [
        (BASE_2021 | {"model_type": "bert"}, "'bert'"),
        ({}, "None"),
        ({"n_layers": 12, "emb_dim": 2048, "n_heads": 16}, "None"),  # an XLM of 2019
    ],
)
def test_another_architecture_is_refused_by_name(content, model_type):
    with pytest.raises(ValueError, match=f"model_type is {model_type}: minibert reads DistilBERT checkpoints only"):
        DistilBertConfig.from_dict(content)


def test_a_whole_number_is_saved_as_transformers_reads_it():
    assert json.loads(DistilBertConfig(initializer_range=1).to_json_string(), parse_int=str)["initializer_range"] == 1.0


def test_a_config_survives_json():
    config = DistilBertConfig(dim=64, n_heads=4, id2label={0: "nö", 1: "yes"}, problem_type="regression", dropout=0)
    assert DistilBertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# In Python


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_both_names_of_a_size_are_taken_and_read(alias, name):
    config = DistilBertConfig(**{alias: 24})
    assert getattr(config, alias) == getattr(config, name) == config.get(alias) == config.get(name) == 24
    with pytest.raises(ValueError, match=f"{name} is 24 but {alias}, another name for it, is 12"):
        DistilBertConfig(**{alias: 12, name: 24})


def test_an_unknown_keyword_is_kept_with_a_warning_and_not_saved():
    with pytest.warns(UserWarning, match="DistilBERT has no torchscript, use_cache: the config keeps them"):
        config = DistilBertConfig(use_cache=False, torchscript=True)
    config.use_cache = True  # as a Trainer does, without a warning
    assert (config.use_cache, config.get("use_cache"), config.get("pruned_heads", {})) == (True, True, {})
    assert config == DistilBertConfig()
    assert config.to_dict() == DistilBertConfig().to_dict()
    with pytest.raises(AttributeError):
        config.pruned_heads  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value"), [("output_attentions", True), ("output_hidden_states", True), ("return_dict", False)]
)
def test_what_a_call_returns_is_not_asked_for_in_the_config(name, value, caplog):
    config, message = DistilBertConfig(), rf"{name} is an argument of the call: model\(…, {name}={value}\)"
    for ask in (
        lambda: setattr(config, name, value),
        lambda: DistilBertConfig(**{name: value}),
        lambda: config.changed(**{name: value}),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    setattr(config, name, not value)  # asks for nothing
    content = DistilBertConfig().to_dict()
    assert DistilBertConfig.from_dict(content | {name: not value}) == config
    assert not caplog.messages
    assert DistilBertConfig.from_dict(content | {name: value}) == config  # files may hold it
    assert caplog.messages == [f"config.json asks for {name}={value} in all calls: ignored"]


@pytest.mark.parametrize("given", ["id2label", "label2id"])
def test_a_number_of_labels_that_contradicts_the_names_is_refused(given):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(ValueError, match=r"id2label must name the classes 0 to 1 \(num_labels\)"):
        DistilBertConfig(num_labels=2).changed(num_labels=2, **{given: names[given]})


def test_the_model_type_stays():
    config = DistilBertConfig()
    config.model_type = "distilbert"
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        config.model_type = "bert"
    assert config.to_dict()["model_type"] == "distilbert"


@pytest.mark.parametrize("name", [*SIZES, *ALIASES])
def test_a_size_cannot_be_set(name):
    config = DistilBertConfig()
    field = ALIASES.get(name, name)
    with pytest.raises(AttributeError, match=rf"{field} cannot be set: dataclasses.replace\(config, {field}=48\)"):
        setattr(config, name, 48)
    assert config == DistilBertConfig()
    assert getattr(dataclasses.replace(config, **{field: 48}), name) == 48


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dropout", 2, "dropout must be a probability"),
        ("problem_type", "ranking", "problem_type must be None or one of"),
        ("pad_token_id", 30522, "pad_token_id must be a token id below vocab_size"),
        ("activation", "gelu_new", "activation must be one of"),
        ("num_labels", 0, "num_labels must be an integer from 1"),
        ("id2label", {1: "no"}, "id2label must name the classes 0 to 0"),
        ("label2id", {"no": "zero"}, "label2id must map names to class numbers"),
        ("label2id", ["no"], "label2id must map names to class numbers"),
    ],
)
def test_every_other_field_is_checked_when_it_is_set(name, value, message):
    config = DistilBertConfig()
    with pytest.raises(ValueError, match=message):
        setattr(config, name, value)
    assert config == DistilBertConfig()


def test_the_three_fields_of_labels_are_set_together():
    config = DistilBertConfig()
    config.label2id = {"no": 0, "maybe": 1, "yes": 2}
    assert (config.num_labels, config.id2label) == (3, {0: "no", 1: "maybe", 2: "yes"})
    config.num_labels = 3
    assert config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    config.num_labels = 1
    assert (config.id2label, config.label2id) == ({0: "LABEL_0"}, {"LABEL_0": 0})
    config.id2label = {"0": "no", "1": "yes"}
    assert (config.num_labels, config.label2id) == (2, {"no": 0, "yes": 1})
    config.dropout, config.problem_type = 0.5, "regression"
    assert config == DistilBertConfig(label2id={"no": 0, "yes": 1}, dropout=0.5, problem_type="regression")
    config.problem_type = config.pad_token_id = None
    assert config == DistilBertConfig(label2id={"no": 0, "yes": 1}, dropout=0.5, pad_token_id=None)


def test_contradictory_labels_are_refused():
    with pytest.raises(ValueError, match="label2id must be the inverse of id2label"):
        DistilBertConfig(id2label={0: "no", 1: "yes"}, label2id={"no": 1, "yes": 0})
    with pytest.raises(ValueError, match=r"id2label must name the classes 0 to 2 \(num_labels\)"):
        DistilBertConfig(num_labels=3, label2id={"no": 0, "yes": 1})


def test_a_config_is_built_again_from_its_dict_and_copied():
    config = DistilBertConfig(dim=64, n_heads=4, id2label={0: "no", 1: "yes"})
    config.use_cache = False
    for again in (DistilBertConfig(**config.to_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
    assert copy.copy(config).use_cache is False
    assert config.to_dict()["model_type"] == config.model_type == "distilbert"
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        DistilBertConfig(model_type="bert")


def test_a_saved_config_is_read_again_with_other_values(tmp_path):
    config = DistilBertConfig(dim=64, n_heads=4, id2label={0: "nö", 1: "yes"})
    config.save_pretrained(tmp_path / "folder" / "new")
    config.save_pretrained(tmp_path / "new")
    config.save_pretrained(tmp_path / "new")
    text = (tmp_path / "new" / "config.json").read_text("utf-8")
    assert text == (tmp_path / "folder" / "new" / "config.json").read_text("utf-8") == config.to_json_string()
    assert text == json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"
    assert DistilBertConfig.from_pretrained(tmp_path / "new") == config
    other = DistilBertConfig.from_pretrained(tmp_path / "new", num_labels=3, hidden_size=32, dropout=0)
    assert other == dataclasses.replace(config, num_labels=3, id2label=None, dim=32, dropout=0)
    assert DistilBertConfig.from_pretrained(tmp_path / "new", num_labels=2) == config


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("[" * 100_000, "config.json: not valid JSON"),
        ("[]", "config.json: expected a JSON object, got list"),
        ("\udcff", "config.json: not valid JSON"),
        ('{"model_type": "bert"}', "config.json: model_type is 'bert'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        DistilBertConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**8 + 1)  # sparse: it takes no room on the disk
    with pytest.raises(ValueError, match=r"config.json: 100000001 bytes are too many for a text file"):
        DistilBertConfig.from_pretrained(tmp_path)


def test_a_file_of_the_largest_size_is_read(tmp_path, monkeypatch):
    text = DistilBertConfig().to_json_string().encode()
    (tmp_path / "config.json").write_bytes(text)
    monkeypatch.setattr(checkpoint, "LARGEST_TEXT", len(text))
    assert DistilBertConfig.from_pretrained(tmp_path) == DistilBertConfig()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match=r"no config\.json in it"):
        DistilBertConfig.from_pretrained(tmp_path)


@pytest.mark.reference
@pytest.mark.parametrize(
    "content", [BASE_2019 | {"model_type": "distilbert"}, BASE_2021, ALIASED, {"model_type": "distilbert"}]
)
def test_transformers_reads_the_same_from_the_same_file(content):
    transformers = pytest.importorskip("transformers")
    assert transformers.DistilBertConfig.attribute_map == ALIASES
    theirs = transformers.DistilBertConfig.from_dict(content)
    ours = DistilBertConfig.from_dict(content)
    for name, value in ours.to_dict().items():
        assert getattr(theirs, name) == value, name


@pytest.mark.reference
def test_transformers_reads_our_file_without_a_warning(caplog):
    transformers = pytest.importorskip("transformers")
    config = DistilBertConfig(num_labels=3, problem_type="single_label_classification")
    with caplog.at_level(logging.WARNING, "transformers"):
        theirs = transformers.DistilBertConfig.from_dict(config.to_dict())
    assert not caplog.records
    for name, value in config.to_dict().items():
        assert getattr(theirs, name) == value, name
