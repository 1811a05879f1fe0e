"""What training tools ask of a model: tied weights in a state_dict, saving one, resizing, gradient checkpointing."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibert import DistilBertForMaskedLM, DistilBertForSequenceClassification, DistilBertModel

from .checkpoints import CLASSIFIER, assert_equal_parameters
from .models import HEADS, SIZES, batch, labels, model, tensors

each_head = pytest.mark.parametrize("head", HEADS)
MASKED_LM = "DistilBertForMaskedLM"
WORDS = "distilbert.embeddings.word_embeddings.weight"
PROJECTOR = "vocab_projector.weight"


def is_tied(masked_lm):
    return masked_lm.vocab_projector.weight is masked_lm.distilbert.embeddings.word_embeddings.weight


# state_dict and save_pretrained


def test_a_state_dict_holds_a_tied_pair_once_and_is_loaded_again(tmp_path):
    first, second = model(MASKED_LM), model(MASKED_LM)
    save_file(first.state_dict(), tmp_path / "model.safetensors")  # as a Trainer does; shared tensors are an error
    stored = load_file(tmp_path / "model.safetensors")
    assert PROJECTOR not in stored
    for given in (stored, stored | {PROJECTOR: stored[WORDS]}):  # strict
        again = copy.deepcopy(second)
        again.load_state_dict(given)
        assert is_tied(again)
        assert_equal_parameters(again, first)


def test_a_state_dict_holds_an_untied_projector():
    untied = model(MASKED_LM, tie_word_embeddings=False)
    assert torch.equal(untied.state_dict()[PROJECTOR], untied.vocab_projector.weight)
    with pytest.raises(RuntimeError, match=r"Missing key.*vocab_projector.weight"):
        untied.load_state_dict(model(MASKED_LM).state_dict())


def test_a_tied_model_inside_another_module_is_loaded_again():
    first, second = (torch.nn.ModuleDict({"inner": model(MASKED_LM)}) for _ in range(2))
    assert f"inner.{PROJECTOR}" not in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert_equal_parameters(second, first)


@each_head
def test_a_given_state_dict_is_saved_in_place_of_the_parameters(tmp_path, head):
    each = model(head)
    doubled = {name: tensor * 2 for name, tensor in each.state_dict().items()}
    each.save_pretrained(tmp_path / "plain", state_dict=doubled, safe_serialization=True, max_shard_size="5GB")
    each.save_pretrained(tmp_path / "wrapped", state_dict={f"module.{name}": doubled[name] for name in doubled})
    for folder in ("plain", "wrapped"):
        again = type(each).from_pretrained(tmp_path / folder)
        assert all(torch.equal(again.state_dict()[name], doubled[name]) for name in doubled)


def test_the_dtype_that_is_saved_is_the_dtype_of_the_tensors(tmp_path):
    each = model(CLASSIFIER)
    each.save_pretrained(tmp_path, state_dict={name: tensor.bfloat16() for name, tensor in each.state_dict().items()})
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_projector_that_is_no_longer_tied_is_saved_as_untied(tmp_path):
    each = model(MASKED_LM)
    untied = each.state_dict() | {PROJECTOR: each.vocab_projector.weight + 1}
    each.save_pretrained(tmp_path, state_dict=untied)
    again = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert again.config.tie_word_embeddings is False
    assert torch.equal(again.vocab_projector.weight, untied[PROJECTOR])


def remove_a_layer(each):
    del each.distilbert.transformer.layer[1]


def prune(each):
    each.distilbert.transformer.layer[0].ffn.lin1 = torch.nn.Linear(32, 48)


def share_a_layer(each):
    first, second = each.distilbert.transformer.layer
    second.ffn.lin1.weight = first.ffn.lin1.weight


def change_the_labels(each):
    each.config.num_labels = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_a_layer, r"missing \['distilbert.transformer.layer.1.attention.k_lin.bias', "),
        (prune, r"ffn.lin1.bias is \(48,\), the config says \(64,\)"),
        (share_a_layer, "some tensors share their memory"),
        (lambda each: each.to("meta"), "some tensors share their memory or, on the meta device, have none"),
        (change_the_labels, r"classifier.bias is \(2,\), the config says \(3,\)"),
        (
            lambda each: each.pre_classifier.register_parameter("g", torch.nn.Parameter(torch.ones(1))),
            "pre_classifier.g",
        ),
    ],
)
def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path, change, message):
    model(CLASSIFIER).save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    each = model(CLASSIFIER)
    change(each)
    with pytest.raises(ValueError, match=f"a checkpoint of this model could not be loaded again: .*{message}"):
        each.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_only_the_main_process_writes(tmp_path):
    model(CLASSIFIER).save_pretrained(tmp_path / "new", is_main_process=False, state_dict={})
    assert not (tmp_path / "new").exists()
    for wrong in ({"safe_serialization": False}, {"push_to_hub": True}):
        with pytest.raises(ValueError, match="writes safetensors into a folder: leave out"):
            model(CLASSIFIER).save_pretrained(tmp_path / "new", **wrong)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_a_sharded_model_is_gathered_and_saved(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for head in (CLASSIFIER, MASKED_LM):
            each = model(head)
            plain = copy.deepcopy(each)
            mesh = torch.distributed.init_device_mesh("cpu", (1,))
            fsdp.fully_shard(each, mesh=mesh)
            each.save_pretrained(tmp_path / head)
            assert json.loads((tmp_path / head / "config.json").read_text())["architectures"] == [head]
            assert_equal_parameters(type(plain).from_pretrained(tmp_path / head), plain)
    finally:
        torch.distributed.destroy_process_group()


# Parameters and embeddings


def test_parameters_are_counted():
    each, tied = model(CLASSIFIER), model(MASKED_LM)
    total = sum(parameter.numel() for parameter in each.parameters())
    assert each.num_parameters() == total
    assert each.num_parameters(exclude_embeddings=True) == total - (50 + 16) * 32
    each.distilbert.requires_grad_(False)
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert each.num_parameters(only_trainable=True) == head
    assert each.num_parameters() == total
    assert tied.num_parameters() == sum(tensor.numel() for tensor in tied.state_dict().values())


@pytest.mark.reference
@each_head
def test_parameters_are_counted_as_in_transformers(head):
    transformers = pytest.importorskip("transformers")
    ours = model(head)
    theirs = getattr(transformers, head)(transformers.DistilBertConfig(**ours.config.to_dict()))
    for how in ({}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**how) == theirs.num_parameters(**how)


@each_head
def test_embeddings_are_given_and_replaced(head):
    each = model(head)
    encoder = each.base_model
    assert encoder is getattr(each, "distilbert", each)
    assert isinstance(encoder, DistilBertModel)
    words = each.get_input_embeddings()
    assert words is encoder.embeddings.word_embeddings
    other = torch.nn.Embedding(50, 32)
    each.set_input_embeddings(other)
    assert each.get_input_embeddings() is encoder.get_input_embeddings() is other
    assert each.get_output_embeddings() is getattr(each, "vocab_projector", None)
    if head == MASKED_LM:
        assert is_tied(each)
    with pytest.raises(ValueError, match=r"must be \(50, 32\), got \(51, 32\): use resize_token_embeddings"):
        each.set_input_embeddings(torch.nn.Embedding(51, 32))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("head", ["DistilBertModel", CLASSIFIER, MASKED_LM])
def test_the_vocabulary_grows_by_rows_that_are_the_mean(tmp_path, head, tie):
    each = model(head, tie_word_embeddings=tie)
    config, before = each.config, copy.deepcopy(each)
    assert each.resize_token_embeddings(53) is each.get_input_embeddings()
    assert (each.config.vocab_size, each.base_model.config.vocab_size, config.vocab_size) == (53, 53, 50)
    pairs = [(each.get_input_embeddings().weight, before.get_input_embeddings().weight)]
    if head == MASKED_LM:
        assert is_tied(each) == tie
        pairs += zip(each.vocab_projector.parameters(), before.vocab_projector.parameters(), strict=True)
    for new, old in pairs:
        assert torch.equal(new[:50], old)
        mean = old.double().mean(0).float() if old.ndim == 2 else torch.zeros(())
        assert torch.equal(new[50:], mean.expand_as(new[50:]))
        assert new.requires_grad
    inputs = batch()
    for name, tensor in tensors(before(**inputs)).items():
        found = tensors(each(**inputs))[name]
        assert torch.equal(found[..., : tensor.shape[-1]], tensor)
    assert torch.isfinite(each(inputs["input_ids"] * 0 + 52)[0]).all()
    each.save_pretrained(tmp_path)
    assert_equal_parameters(type(each).from_pretrained(tmp_path), each)


def test_the_vocabulary_shrinks_and_is_rounded_up():
    each = model(MASKED_LM)
    words = each.get_input_embeddings().weight.detach().clone()
    each.resize_token_embeddings(40)
    assert torch.equal(each.get_input_embeddings().weight, words[:40])
    assert each(batch(vocab_size=40)["input_ids"]).logits.shape[-1] == len(each.vocab_projector.bias) == 40
    each.resize_token_embeddings(41, pad_to_multiple_of=8)
    assert each.config.vocab_size == 48
    each.resize_token_embeddings(pad_to_multiple_of=64)
    assert each.config.vocab_size == 64
    parameter = each.get_input_embeddings().weight
    assert each.resize_token_embeddings(64) is each.resize_token_embeddings() is each.get_input_embeddings()
    assert each.get_input_embeddings().weight is parameter
    with pytest.raises(ValueError, match="vocab_size must be an integer from 1"):
        each.resize_token_embeddings(0)
    with pytest.raises(ValueError, match="pad_token_id must be a token id below vocab_size"):
        model(pad_token_id=30).resize_token_embeddings(30)


@pytest.mark.reference
@pytest.mark.parametrize("head", [CLASSIFIER, MASKED_LM])
def test_a_resized_model_is_that_of_transformers(head):
    transformers = pytest.importorskip("transformers")
    ours = model(head)
    theirs = getattr(transformers, head)(
        transformers.DistilBertConfig(**ours.config.to_dict(), attn_implementation="eager")
    ).eval()
    theirs.load_state_dict(dict(ours.named_parameters(remove_duplicate=False)))
    inputs = batch(vocab_size=53)
    results = []
    for each in (ours, theirs):
        each.resize_token_embeddings(53)
        results.append(each(**inputs).logits)
    assert (results[0] - results[1]).abs().max() < 1e-3  # theirs adds noise of 3e-5 standard deviations to the mean


# Gradient checkpointing


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("every", [1, 2])
@each_head
def test_gradients_with_checkpointing_are_the_same_bits(head, every, training):
    plain = model(head).train(training)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(every_n_layers=every)
    assert ["forward" in vars(layer) for layer in saving.base_model.transformer.layer] == [True, every == 1]
    inputs = batch(head)
    inputs |= labels(head, inputs["input_ids"]) if HEADS[head] else {}
    for each in (plain, saving):
        torch.manual_seed(1)
        output = each(**inputs, output_hidden_states=True)
        (output.loss if HEADS[head] else output.last_hidden_state.square().sum()).backward()
    for (name, parameter), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_checkpointing_computes_each_layer_again_until_it_is_disabled():
    each, calls = model().train(), []
    for i, layer in enumerate(each.transformer.layer):
        layer.ffn.register_forward_hook(lambda *_, i=i: calls.append(i))

    def count():
        calls.clear()
        each(**batch()).last_hidden_state.sum().backward()
        return calls.count(0), calls.count(1)

    for enable in (each.gradient_checkpointing_enable, each.activation_checkpointing_enable):
        each.gradient_checkpointing_disable()
        assert count() == (1, 1)
        enable()
        assert count() == (2, 2)
        enable()  # once more: a layer is not wrapped twice
        assert count() == (2, 2)
        enable(None, 2)
        assert count() == (2, 1)
        with pytest.raises(ValueError, match="leave out offload=True"):
            enable(offload=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_takes_the_arguments_of_torch():
    each, inputs = model().train(), batch()
    for enable in (each.gradient_checkpointing_enable, each.activation_checkpointing_enable):
        enable()
        torch.autograd.grad(each(**inputs).last_hidden_state.sum(), [each.embeddings.LayerNorm.weight])
        enable({"use_reentrant": True})
        with pytest.raises(RuntimeError, match=r"use_reentrant=True|not compatible with \.grad"):
            torch.autograd.grad(each(**inputs).last_hidden_state.sum(), [each.embeddings.LayerNorm.weight])


def test_a_model_with_checkpointing_is_copied_and_saved(tmp_path):
    each = model(CLASSIFIER)
    each.gradient_checkpointing_enable({"use_reentrant": False})
    again = copy.deepcopy(each)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    assert (again(**batch()).logits == 0).all()  # the copy runs its own layers
    each.save_pretrained(tmp_path)
    assert_equal_parameters(DistilBertForSequenceClassification.from_pretrained(tmp_path), each)
    assert SIZES["n_layers"] == len(each.base_model.transformer.layer)
