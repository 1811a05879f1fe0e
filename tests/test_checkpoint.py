"""Loading a folder: every mismatch is an error that names it, and no weight is random if the file holds it."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

import minibert
from minibert import (
    DEMO,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    DistilBertTokenizer,
)
from minibert.checkpoint import CheckpointFiles
from minibert.weights import compare_tensors, split_encoder_and_head

from .checkpoints import CLASSIFIER, WEIGHTS, assert_equal_parameters, rewrite, rewrite_config, saved, write_tensors
from .models import HEADS, batch, model, tensors

WORDS = "distilbert.embeddings.word_embeddings.weight"
PROJECTOR = "vocab_projector.weight"


def load(folder, **arguments):
    return DistilBertForSequenceClassification.from_pretrained(folder, **arguments)


# What was saved is loaded


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, head):
    ours = model(head)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path)
    assert loaded.config == ours.config
    assert not loaded.training
    assert_equal_parameters(ours, loaded)
    inputs = batch(head)
    expected = tensors(ours(**inputs))
    for name, value in tensors(loaded(**inputs)).items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("head", HEADS)
def test_the_bare_encoder_is_taken_from_any_file(tmp_path, head):
    ours = model(head)
    ours.save_pretrained(tmp_path)
    assert_equal_parameters(getattr(ours, "distilbert", ours), DistilBertModel.from_pretrained(tmp_path))


def test_files_that_model_and_tokenizer_share_are_loaded_as_a_folder_is(tmp_path):
    classifier = saved(tmp_path)
    assert_equal_parameters(DistilBertForSequenceClassification.from_files(CheckpointFiles(tmp_path)), classifier)
    with pytest.raises(ValueError, match=r"classifier.weight is \(2, 32\), the config says \(3, 32\)"):
        DistilBertForSequenceClassification.from_files(CheckpointFiles(tmp_path), num_labels=3)
    encoder, head = split_encoder_and_head(classifier.state_dict(), "here")
    config = classifier.config.changed(num_labels=3)
    with pytest.raises(ValueError, match=r"here: .*classifier.weight is \(2, 32\), the config says \(3, 32\)"):
        DistilBertForSequenceClassification.from_tensors(config, encoder, head, "here")


def test_config_json_is_read_once(tmp_path):
    ours = saved(tmp_path)
    files = CheckpointFiles(tmp_path)
    assert DistilBertConfig.from_files(files) == ours.config
    rewrite_config(tmp_path, dropout=0.5)  # another process saves
    assert DistilBertConfig.from_files(files) == ours.config
    assert files.read_whole("config.json", lambda: DistilBertConfig.from_files(files)).dropout == 0.5
    assert DistilBertConfig.from_files(files).dropout == 0.5


def test_loading_draws_no_random_number(tmp_path):
    saved(tmp_path)
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_a_loaded_model_never_changes_the_file(tmp_path):
    classifier = saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    loaded = load(tmp_path).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1)
    loaded(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    optimizer.step()
    assert not torch.equal(loaded.classifier.weight, classifier.classifier.weight)
    assert (tmp_path / WEIGHTS).read_bytes() == content
    assert_equal_parameters(load(tmp_path), classifier)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_are_float32_whatever_the_file_holds(tmp_path, stored):
    classifier = saved(tmp_path)
    rewrite(tmp_path, lambda name, tensor: (name, tensor.to(stored)))
    assert_equal_parameters(load(tmp_path), classifier.to(stored).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_what_the_parameters_become(tmp_path, dtype):
    classifier = saved(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    assert_equal_parameters(loaded, classifier.to(dtype))
    for name in (str(dtype), str(dtype).removeprefix("torch.")):
        assert load(tmp_path, dtype=name).dtype == load(tmp_path, torch_dtype=name).dtype == dtype
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (load(tmp_path, dtype="auto").dtype, load(tmp_path).dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "int8", "half precision", None])
def test_a_dtype_that_cannot_compute_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=rf'dtype must be "auto" or one of torch.float32, .*, got {dtype!r}'):
        load(tmp_path, dtype=dtype)


# Old names


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: name.removeprefix("distilbert."),
        lambda name: re.sub(
            r"(?i)(layer_?norm)\.weight", r"\1.gamma", re.sub(r"(?i)(layer_?norm)\.bias", r"\1.beta", name)
        ),
    ],
    ids=["module", "no prefix", "gamma and beta"],
)
def test_old_names_are_understood(tmp_path, rename):
    classifier = saved(tmp_path)
    rewrite(tmp_path, lambda name, tensor: (rename(name), tensor))
    assert_equal_parameters(load(tmp_path), classifier)


def test_old_position_ids_are_left_out(tmp_path):
    classifier = saved(tmp_path)
    with_positions = load_file(tmp_path / WEIGHTS) | {"distilbert.embeddings.position_ids": torch.arange(16)[None]}
    write_tensors(with_positions, tmp_path / WEIGHTS)
    assert_equal_parameters(load(tmp_path), classifier)


def test_two_names_for_one_parameter_are_refused(tmp_path):
    saved(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    write_tensors(stored | {"module.classifier.bias": stored["classifier.bias"] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"the file holds classifier.bias twice, once as"):
        load(tmp_path)


# The masked-LM projector


def test_a_tied_projector_is_not_in_the_file_and_tied_again_on_loading(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    assert PROJECTOR not in load_file(tmp_path / WEIGHTS)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = DistilBertForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.vocab_projector.weight is loaded.distilbert.embeddings.word_embeddings.weight


def test_a_projector_that_is_stored_and_equal_is_tied(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    stored = load_file(tmp_path / WEIGHTS)
    write_tensors(stored | {PROJECTOR: stored[WORDS].clone()}, tmp_path / WEIGHTS)
    loaded = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.vocab_projector.weight is loaded.distilbert.embeddings.word_embeddings.weight


def test_a_projector_that_differs_stays_untied(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    stored = load_file(tmp_path / WEIGHTS)
    write_tensors(stored | {PROJECTOR: stored[WORDS] + 1}, tmp_path / WEIGHTS)
    loaded = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.vocab_projector.weight, stored[WORDS] + 1)
    assert torch.equal(loaded.distilbert.embeddings.word_embeddings.weight, stored[WORDS])
    loaded.save_pretrained(tmp_path)
    assert_equal_parameters(DistilBertForMaskedLM.from_pretrained(tmp_path), loaded)


def test_a_projector_that_the_config_unties_stays_untied_though_equal(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    stored = load_file(tmp_path / WEIGHTS)
    write_tensors(stored | {PROJECTOR: stored[WORDS].clone()}, tmp_path / WEIGHTS)
    rewrite_config(tmp_path, tie_word_embeddings=False)
    loaded = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.vocab_projector.weight is not loaded.distilbert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("kind", [DistilBertForMaskedLM, DistilBertModel])
def test_a_word_table_stored_only_as_the_projector_is_found(tmp_path, kind):
    masked_lm = saved(tmp_path, "DistilBertForMaskedLM")
    rewrite(tmp_path, lambda name, tensor: (PROJECTOR if name == WORDS else name, tensor))
    expected = masked_lm if kind is DistilBertForMaskedLM else masked_lm.distilbert
    assert_equal_parameters(kind.from_pretrained(tmp_path), expected)


def test_an_untied_projector_that_is_missing_is_named(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    rewrite_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing \['vocab_projector.weight'\]"):
        DistilBertForMaskedLM.from_pretrained(tmp_path)


# Strict loading


def test_everything_that_does_not_match_is_named_at_once(tmp_path):
    saved(tmp_path)

    def damage(name, tensor):
        if name == "classifier.bias":
            return None
        if name == "classifier.weight":
            return name, tensor[:1]
        if name == "pre_classifier.bias":
            return name, tensor.long()
        return (name + "s" if name == "pre_classifier.weight" else name), tensor

    rewrite(tmp_path, damage)
    with pytest.raises(ValueError, match="the file and the model do not match") as error:
        load(tmp_path)
    for complaint in (
        str(tmp_path),
        "missing ['classifier.bias', 'pre_classifier.weight']",
        "unexpected ['pre_classifier.weights']",
        "classifier.weight is (1, 32), the config says (2, 32)",
        "pre_classifier.bias is torch.int64, not one of torch.float32, ",
    ):
        assert complaint in str(error.value)


@pytest.mark.parametrize("kind", [DistilBertForSequenceClassification, DistilBertModel])
def test_names_of_another_model_are_never_random_weights(tmp_path, kind):
    saved(tmp_path)
    rewrite(tmp_path, lambda name, tensor: (f"bert.{name}", tensor))
    with pytest.raises(ValueError, match=r"says n_layers=2, the file holds 0 \(its tensors: bert\.classifier\.bias, "):
        kind.from_pretrained(tmp_path)


def test_the_bare_encoder_tolerates_a_head_but_nothing_else(tmp_path):
    saved(tmp_path)
    write_tensors(load_file(tmp_path / WEIGHTS) | {"pooler.weight": torch.zeros(2)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"unexpected \['pooler.weight'\]"):
        DistilBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "head", [head for head in HEADS if head not in (CLASSIFIER, "DistilBertModel", "DistilBertForMultipleChoice")]
)
def test_another_head_is_refused(tmp_path, head):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected \[.*pre_classifier.weight"):
        getattr(minibert, head).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("false", "message"),
    [
        ({"dim": 10**6, "vocab_size": 10**6, "n_heads": 1}, r"the config says \(1000000, 1000000\)"),
        (
            {"dim": 10**6, "max_position_embeddings": 10**6, "sinusoidal_pos_embds": True},
            r"the config says \(1000000, ",
        ),
        ({"hidden_dim": 10**6, "dim": 10**6}, r"the config says \(2, 1000000\)"),
        ({"n_layers": 1000}, "config.json says n_layers=1000, the file holds 2"),
        ({"n_layers": 1}, "config.json says n_layers=1, the file holds 2"),
        ({"num_labels": 3, "id2label": None}, r"classifier.bias is \(2,\), the config says \(3,\)"),
    ],
)
def test_a_false_config_allocates_no_memory(tmp_path, false, message):
    saved(tmp_path)
    rewrite_config(tmp_path, **false)  # the first three ask for terabytes
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_an_error_names_the_first_six_of_the_tensors(n):
    names = [f"layer.{i}" for i in range(n)]
    found = {name: torch.zeros(2) for name in names}
    listed = str(names[:6]) + (" and 1 more" if n == 7 else "")
    assert compare_tensors(found, {}) == [f"unexpected {listed}"]
    assert compare_tensors({}, {name: torch.Size([3]) for name in names}) == [f"missing {listed}"]
    problems = [f"{name} is (2,), the config says (3,)" for name in names[:6]] + ["and 1 more"] * (n == 7)
    assert compare_tensors(found, {name: torch.Size([3]) for name in names}) == problems
    assert compare_tensors(found, {name: torch.Size([2]) for name in names}) == []


def test_the_error_about_many_tensors_is_short(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda name, tensor: (name, tensor.flatten()[:1]))
    with pytest.raises(ValueError, match="and 34 more") as error:
        load(tmp_path)
    many = {f"more.{i}": torch.zeros(1) for i in range(10_000)}
    write_tensors(load_file(tmp_path / WEIGHTS) | many, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="and 9994 more") as other:
        load(tmp_path)
    assert max(len(str(each.value)) for each in (error, other)) < 1000


# The arguments that transformers has


def test_a_config_takes_the_place_of_the_files(tmp_path):
    classifier = saved(tmp_path)
    config = dataclasses.replace(classifier.config, dropout=0.5, id2label={0: "no", 1: "yes"})
    loaded = load(tmp_path, config=config)
    assert loaded.config == config
    assert loaded.distilbert.embeddings.dropout.p == 0.5
    assert_equal_parameters(loaded, classifier)
    with pytest.raises(ValueError, match=r"config must be a minibert.DistilBertConfig, got dict"):
        load(tmp_path, config=config.to_dict())


def test_fields_of_the_config_may_be_given(tmp_path):
    classifier = saved(tmp_path)
    loaded = load(tmp_path, dropout=0, problem_type="regression", label2id={"no": 0, "yes": 1})
    expected = {"dropout": 0, "problem_type": "regression", "id2label": {0: "no", 1: "yes"}}
    assert loaded.config == dataclasses.replace(classifier.config, **expected)
    with pytest.warns(UserWarning, match="DistilBERT has no low_cpu_mem_usage: the config keeps them without effect"):
        load(tmp_path, low_cpu_mem_usage=True)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_device_map_and_eager_attention_are_taken(tmp_path, device_map):
    saved(tmp_path)
    assert load(tmp_path, device_map=device_map, attn_implementation="eager").device.type == "cpu"
    assert load(tmp_path, device_map={"": "meta"}).device.type == "meta"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device_map": "auto"}, "device_map must be one device, such as \"cuda:0\", got 'auto'"),
        ({"device_map": {"distilbert": 0, "classifier": 1}}, "device_map must be one device"),
        ({"attn_implementation": "sdpa"}, "must be \"eager\", got 'sdpa': for speed use minibert.pack"),
    ],
)
def test_what_only_transformers_can_do_is_refused(tmp_path, argument, message):
    saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **argument)


@pytest.mark.parametrize("name", ["subfolder", "variant", "gguf_file", "quantization_config", "load_in_8bit"])
@pytest.mark.parametrize("kind", [DistilBertForSequenceClassification, DistilBertConfig, DistilBertTokenizer])
def test_a_keyword_that_chooses_other_files_is_refused(tmp_path, kind, name):
    saved(tmp_path)
    DistilBertTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"minibert has no {name}=: pass the folder itself"):
        kind.from_pretrained(tmp_path, **{name: "other"})
    kind.from_pretrained(tmp_path, **{name: None})  # chooses nothing


@pytest.mark.parametrize("name", ["trust_remote_code", "force_download"])
@pytest.mark.parametrize("kind", [DistilBertForSequenceClassification, DistilBertConfig, DistilBertTokenizer])
def test_a_keyword_without_an_effect_is_taken_without_a_warning(tmp_path, kind, name):
    saved(tmp_path)
    DistilBertTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path)
    kind.from_pretrained(tmp_path, **{name: True})


@pytest.mark.parametrize("kind", [DistilBertForSequenceClassification, DistilBertConfig])
def test_the_warning_of_an_unknown_keyword_names_the_line_of_the_caller(tmp_path, kind):
    saved(tmp_path)
    with pytest.warns(UserWarning, match="DistilBERT has no use_cache") as record:
        kind.from_pretrained(tmp_path, use_cache=True)
    with pytest.warns(UserWarning, match="DistilBERT has no use_cache") as more:
        DistilBertConfig(use_cache=True)
    assert {warning.filename for warning in (*record, *more)} == {__file__}


def test_a_dtype_that_no_model_computes_in_is_refused(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    projector = load_file(tmp_path / WEIGHTS)[WORDS].to(torch.float8_e4m3fn)
    write_tensors(load_file(tmp_path / WEIGHTS) | {PROJECTOR: projector}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"vocab_projector.weight is torch.float8_e4m3fn, not one of torch.float32, "):
        minibert.DistilBertForMaskedLM.from_pretrained(tmp_path)
    write_tensors(load_file(tmp_path / WEIGHTS) | {PROJECTOR: projector.double()}, tmp_path / WEIGHTS)
    loaded = minibert.DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.vocab_projector.weight, projector.float())
