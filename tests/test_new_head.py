"""A head that the file does not have: only on request, drawn at random, with labels of its own."""

import pytest
import torch

import minibert
from minibert import (
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from .checkpoints import assert_equal_parameters, rewrite, rewrite_config, saved
from .models import HEADS, batch, tensors


def load(folder, **arguments):
    return DistilBertForSequenceClassification.from_pretrained(folder, **arguments)


def test_a_new_head_is_drawn_at_random_on_the_old_encoder_and_says_so(tmp_path, caplog):
    classifier = saved(tmp_path)
    rewrite_config(tmp_path, problem_type="regression")
    made = load(tmp_path, new_head=True, id2label={0: "no", 1: "maybe", 2: "yes"})
    assert_equal_parameters(made.distilbert, classifier.distilbert)
    assert made.classifier.weight.shape == (3, 32)
    assert made.classifier.weight.std().item() == pytest.approx(0.3, rel=0.3)
    assert made.config.problem_type is None
    assert made.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert (
        "DistilBertForSequenceClassification: new ['classifier', 'pre_classifier'], drawn at random: train"
        in caplog.text
    )
    assert all(parameter.device.type == "cpu" for parameter in made.parameters())


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["DistilBertForSequenceClassification", "DistilBertForMultipleChoice"])
def test_a_new_head_has_the_bits_that_transformers_draws(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    saved(tmp_path, "DistilBertModel")
    torch.manual_seed(0)
    expected = getattr(transformers, kind).from_pretrained(tmp_path)
    torch.manual_seed(0)
    assert_equal_parameters(getattr(minibert, kind).from_pretrained(tmp_path, new_head=True, num_labels=2), expected)


def test_the_seed_decides_on_a_new_head(tmp_path):
    saved(tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load(tmp_path, new_head=True, num_labels=3).classifier)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert not heads[0].bias.any()


@pytest.mark.parametrize("head", [head for head in HEADS if head != "DistilBertModel"])
def test_every_head_can_be_put_on_the_encoder_of_any_file(tmp_path, head):
    saved(tmp_path)
    kind = getattr(minibert, head)
    rewrite_config(tmp_path, num_labels=5, id2label=None)
    made = kind.from_pretrained(tmp_path, new_head=True, num_labels=3 if kind.head_has_labels else None)
    assert made.config.num_labels == (3 if kind.head_has_labels else 2)
    for name, parameter in made.named_parameters():
        if not name.startswith("distilbert."):
            mean = 1 if name == "vocab_layer_norm.weight" else 0
            spread = 0 if name.endswith("bias") or "norm" in name else 0.3
            assert parameter.mean().item() == pytest.approx(mean, abs=0.2), name
            assert parameter.std(correction=0).item() == pytest.approx(spread, rel=0.4), name
    assert all(torch.isfinite(tensor).all() for tensor in tensors(made(**batch(head))).values())
    made.save_pretrained(tmp_path / "new")
    assert_equal_parameters(kind.from_pretrained(tmp_path / "new"), made)


def test_a_new_head_does_not_take_over_the_names_of_the_old_one(tmp_path):
    saved(tmp_path)
    rewrite_config(tmp_path, id2label={"0": "NEGATIVE", "1": "POSITIVE"})
    assert load(tmp_path, new_head=True, num_labels=2).config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_labels_may_be_renamed_without_a_new_head(tmp_path):
    classifier = saved(tmp_path)
    renamed = load(tmp_path, id2label={0: "no", 1: "yes"})
    assert renamed.config.id2label == {0: "no", 1: "yes"}
    assert_equal_parameters(renamed, classifier)
    assert load(tmp_path, num_labels=2).config == classifier.config


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            DistilBertForSequenceClassification,
            {"num_labels": 3},
            r"classifier.weight is \(2, 32\), .*says \(3, 32\).* new_head=True .* ignore_mismatched_sizes=True",
        ),
        (DistilBertForTokenClassification, {"new_head": True}, "new_head=True needs num_labels= or id2label="),
        (DistilBertModel, {"new_head": True}, "DistilBertModel has no head: leave out new_head=True"),
        (DistilBertForQuestionAnswering, {"new_head": True, "num_labels": 3}, "question answering has 2 labels"),
    ],
)
def test_impossible_labels_are_refused(tmp_path, kind, arguments, message):
    saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        kind.from_pretrained(tmp_path, **arguments)


def test_a_checkpoint_with_another_head_says_how_to_get_a_new_one(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    with pytest.raises(
        ValueError,
        match=r"the file's head \(vocab_layer_norm, vocab_projector, vocab_transform\) is not one for "
        r"DistilBertForSequenceClassification: choose a checkpoint that has",
    ):
        minibert.DistilBertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("stored", ["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForQuestionAnswering"])
@pytest.mark.parametrize("kind", [DistilBertForSequenceClassification, DistilBertForTokenClassification])
def test_labels_ask_for_a_new_head_where_the_file_has_no_classifier(tmp_path, caplog, stored, kind):
    ours = saved(tmp_path, stored)
    for asked in (
        {"num_labels": 3},
        {"label2id": {"a": 0, "b": 1, "c": 2}},
        {"config": ours.config.changed(num_labels=3)},
    ):
        caplog.clear()
        made = kind.from_pretrained(tmp_path, **asked)
        assert made.classifier.weight.shape == (3, 32)
        assert_equal_parameters(made.distilbert, getattr(ours, "distilbert", ours))
        assert f"{kind.__name__}: new ['classifier'" in caplog.text
    found = "the file has no head" if stored == "DistilBertModel" else r"the file's head \(.*\) is not one"
    with pytest.raises(ValueError, match=f"{found} for {kind.__name__}: .* or draw one at random with new_head=True"):
        kind.from_pretrained(tmp_path)  # without labels it is an error


def test_labels_do_not_ask_for_a_new_head_where_the_file_has_another_classifier(tmp_path):
    saved(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"the file's head \(classifier, pre_classifier\) is not one for DistilBertForTokenClassification: choose",
    ):
        DistilBertForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    made = DistilBertForTokenClassification.from_pretrained(tmp_path, num_labels=3, new_head=True)
    assert made.classifier.weight.shape == (3, 32)


def test_half_a_head_is_an_error_though_labels_are_given(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda name, tensor: None if name == "classifier.bias" else (name, tensor))
    with pytest.raises(ValueError, match=r"missing \['classifier.bias'\]"):
        load(tmp_path, num_labels=2)


def test_only_the_layers_of_another_size_are_drawn_if_asked_for(tmp_path, caplog):
    classifier = saved(tmp_path)
    made = load(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert made.classifier.weight.shape == (3, 32)
    assert torch.equal(made.pre_classifier.weight, classifier.pre_classifier.weight)
    assert "new ['classifier'], drawn at random" in caplog.text
    assert_equal_parameters(load(tmp_path, ignore_mismatched_sizes=True), classifier)
    rewrite_config(tmp_path, hidden_dim=32)
    with pytest.raises(ValueError, match=r"lin1.weight is \(64, 32\), the config says \(32, 32\)"):
        load(tmp_path, num_labels=3, ignore_mismatched_sizes=True)  # never layers of the encoder


def test_labels_are_refused_where_the_head_has_none_to_choose(tmp_path):
    saved(tmp_path, "DistilBertForMaskedLM")
    for head in (minibert.DistilBertForMaskedLM, minibert.DistilBertModel):
        with pytest.raises(ValueError, match="has no labels: leave out num_labels="):
            head.from_pretrained(tmp_path, num_labels=5)
