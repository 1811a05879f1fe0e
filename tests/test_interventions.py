"""Ablation, patching, and what an answer rests on."""

import pytest
import torch

from minibert.study import (
    ablate_heads,
    capture,
    edit,
    gradient_times_input,
    integrated_gradients,
    label_flips,
    logit_lens,
    patch,
    rollout,
    trace,
    walk,
)
from minibert.study.interventions import Patching

from .models import HEADS, batch, model

CLASSIFIER, CHOICES = "DistilBertForSequenceClassification", "DistilBertForMultipleChoice"
CONTEXT = "distilbert.transformer.layer.{}.attention.context"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", [set, lambda pairs: torch.tensor(sorted(pairs)).numpy()])
def test_a_head_ablated_to_zero_gives_zeros(head, kind):
    each, inputs = model(head), batch(head)
    with ablate_heads(each, kind({(0, 1), (0, 3), (1, 2)})), capture(each, "*.context") as steps:
        each(**inputs)
    first, second = steps.values()  # (B, H, S, E) each
    assert [h for h in range(4) if (first[:, h] == 0).all()] == [1, 3]
    assert [h for h in range(4) if (second[:, h] == 0).all()] == [2]


@pytest.mark.parametrize("mask", ["ragged", "none"])
def test_a_head_ablated_to_its_mean_gives_every_token_the_same(mask):
    each, inputs = model(CLASSIFIER), batch(mask=mask)
    with capture(each, CONTEXT.format(0)) as before:
        each(**inputs)
    with ablate_heads(each, [(0, 1)], how="mean"), capture(each, CONTEXT.format(0)) as after:
        each(**inputs)
        each(**batch(mask="none"))  # no mask left over from the forward before
        each(**inputs)
    real = torch.ones(3, 7).bool() if mask == "none" else inputs["attention_mask"].bool()
    mean = before[CONTEXT.format(0)][:, 1][real].mean(0)
    assert torch.allclose(after[CONTEXT.format(0)][:, 1], mean.expand(3, 7, 8))
    assert torch.equal(after[CONTEXT.format(0)][:, 0], before[CONTEXT.format(0)][:, 0])


@pytest.mark.parametrize(
    ("heads", "how", "says"),
    [
        ([(2, 0)], "zero", "layer must be 0 to 1, got 2"),
        ([(0, 4)], "zero", "head must be 0 to 3, got 4"),
        ([(-1, 0)], "zero", "layer must be 0 to 1, got -1"),
        ([(0, 0)], "median", "'zero' or 'mean', got 'median'"),
        ((0, 1), "zero", r"heads must be pairs of \(layer, head\), such as \[\(0, 1\)\], got 0"),
        (["01"], "zero", "got '01'"),
        ([(0, 1, 2)], "zero", r"got \(0, 1, 2\)"),
        ([(0, 1.0)], "zero", r"got \(0, 1.0\)"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(heads, how, says):
    with pytest.raises(ValueError, match=says), ablate_heads(model(), heads, how):
        pass


def test_a_mean_over_real_tokens_needs_a_padding_mask():
    each = model()
    with pytest.raises(ValueError, match=r"needs a padding mask"), ablate_heads(each, [(0, 0)], "mean"):
        each(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 1, 3, 3, dtype=torch.bool))


def test_patching_lines_up_real_tokens_whatever_the_padding():
    each = model(CLASSIFIER).double()
    ids, other = torch.randint(1, 50, (2, 1, 5))
    other[0, [0, 1, 3, 4]] = ids[0, [0, 1, 3, 4]]  # the two differ in token 2
    clean = {"input_ids": torch.cat([ids, ids.new_zeros(1, 3)], 1), "attention_mask": torch.tensor([[1] * 5 + [0] * 3])}
    corrupt = {"input_ids": other, "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    result = patch(each, clean, corrupt, "position", lambda output: output.logits[0, 0])
    assert result.patched.shape == (3, 5)
    # At the embeddings only token 2 differs: putting it right restores the clean run, the others change nothing.
    expected = [result.corrupt, result.corrupt, result.clean, result.corrupt, result.corrupt]
    assert torch.allclose(result.patched[0], torch.tensor(expected), atol=1e-6)
    # At the last layer only [CLS], token 0, is read.
    expected = [result.clean, *[result.corrupt] * 4]
    assert torch.allclose(result.patched[2], torch.tensor(expected), atol=1e-6)
    assert "hidden state" in str(result)
    assert str(result).splitlines()[2].split() == ["0", "0%", "0%", "100%", "0%", "0%"]


def test_patching_a_head_puts_in_its_output_of_the_clean_run():
    each = model(CLASSIFIER)
    clean, corrupt = batch(), batch()
    corrupt["attention_mask"] = clean["attention_mask"]
    with capture(each, CONTEXT.format(1)) as said:
        each(**clean)

    def put(context):
        real = clean["attention_mask"].bool()[:, :, None]
        context = context.clone()
        context[:, 2] = torch.where(real, said[CONTEXT.format(1)][:, 2], context[:, 2])
        return context

    result = patch(each, clean, corrupt, "head", lambda output: output.logits[2, 1])
    with edit(each, {CONTEXT.format(1): put}):
        expected = each(**corrupt).logits[2, 1].item()
    assert result.patched.shape == (2, 4)
    assert result.patched[1, 2].item() == pytest.approx(expected, abs=1e-6)
    assert result.to_dict()["axes"] == ["layer", "head"]


@pytest.mark.parametrize(("points", "names"), [("position", ["hidden state", "position"]), ("head", ["layer", "head"])])
def test_every_place_is_patched_in_turn(points, names):
    each, clean, corrupt = model(CLASSIFIER).double(), batch(), batch()  # 1, 4 and 7 real tokens
    real, metric = clean["attention_mask"].bool(), lambda output: output.logits[:, 1].sum()
    blocks = [f"distilbert.transformer.layer.{i}." for i in range(2)]
    if points == "head":
        places = [block + "attention.context" for block in blocks]
    else:
        places = ["distilbert.embeddings", *(block + "output_layer_norm" for block in blocks)]
    result = patch(each, clean, corrupt, points, metric)
    with capture(each, *places) as said, torch.no_grad():
        assert result.clean == metric(each(**clean)).item()
    expected = []
    for place in places:
        row = []
        for index in range(4 if points == "head" else 7):
            chosen = torch.zeros(3, 4, 7, 8) if points == "head" else torch.zeros(3, 7, 32)
            if points == "head":
                chosen[:, index] = real[:, :, None]
            else:
                chosen[:, index] = real[:, index, None]
            put = lambda value, chosen=chosen, place=place: torch.where(chosen.bool(), said[place], value)  # noqa: E731
            with edit(each, {place: put}), torch.no_grad():
                row.append(metric(each(**corrupt)).item())
        expected.append(row)
    assert torch.allclose(result.patched.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert list(result.axes) == names
    assert result.columns == [f"{names[1]} {i}" for i in range(len(row))]


def test_a_patching_prints_how_much_of_the_way_each_place_restores():
    patched = torch.tensor([[1.0, 2.0], [3.0, 1.5]])
    assert str(Patching(("layer", "head"), ["head 0", "head 1"], 3.0, 1.0, patched)).splitlines() == [
        "clean 3.0000, corrupt 1.0000; restored by each place:",
        "layer  head 0  head 1",
        "    0      0%     50%",
        "    1    100%     25%",
    ]


def test_batches_that_do_not_line_up_are_refused():
    each, inputs = model(CLASSIFIER), batch()
    other = inputs | {"attention_mask": torch.ones(3, 7, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"got \[1, 4, 7\] in the clean one and \[7, 7, 7\] in the corrupt"):
        patch(each, inputs, other, "head", lambda output: output.logits[0, 0])
    fewer = {name: value[:2] for name, value in inputs.items()}
    with pytest.raises(ValueError, match=r"got \[1, 4, 7\] in the clean one and \[1, 4\] in the corrupt"):
        patch(each, inputs, fewer, "head", lambda output: output.logits[0, 0])
    with pytest.raises(ValueError, match="the corrupt batch needs an attention_mask"):
        patch(each, inputs, {"input_ids": inputs["input_ids"]}, "head", lambda output: output.logits[0, 0])
    with pytest.raises(ValueError, match=r"nothing to restore: the metric of both runs is 2\.0000"):
        patch(each, inputs, inputs, "head", lambda output: torch.tensor(2.0))
    with pytest.raises(ValueError, match="'position' or 'head', got 'neuron'"):
        patch(each, inputs, inputs, "neuron", lambda output: output.logits[0, 0])


def test_rollout_of_one_layer_is_half_attention_half_residual():
    probs = torch.tensor([[[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]]])  # (1, 1, 3, 3), key 2 is padding
    flow = rollout([probs], torch.tensor([[1, 1, 0]]))
    assert torch.allclose(flow, torch.tensor([[[0.625, 0.375, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]]))


def test_rollout_of_two_layers_is_the_product_of_both():
    first, second = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    heads = torch.stack([first, second])  # their mean is mixed with what a token passes on
    flow = rollout([first[None, None], heads[None]], torch.ones(1, 2))
    mean, identity = (first + second) / 2, torch.eye(2)
    assert torch.allclose(flow[0], (mean + identity) / 2 @ (first + identity) / 2)


def test_rollout_sends_everything_to_real_tokens_with_or_without_the_mask():
    each, inputs = model(), batch()
    real = inputs["attention_mask"].bool()
    for attention_mask in (inputs["attention_mask"], None):
        attentions = each(inputs["input_ids"], attention_mask, output_attentions=True).attentions
        flow = rollout(attentions, inputs["attention_mask"])
        assert torch.allclose(flow.sum(-1)[real], torch.ones(int(real.sum())))
        assert (flow[~real] == 0).all()
        assert (flow.transpose(1, 2)[~real] == 0).all()


def test_gradient_times_input_is_the_derivative_along_the_input():
    each, inputs = model(CLASSIFIER).double(), batch()
    target = torch.tensor([0, 1, 1])
    result = gradient_times_input(each, inputs, target)
    embeds = each.distilbert.embeddings.word_embeddings(inputs["input_ids"])
    step = 1e-6

    def logit(scale):
        logits = each(inputs_embeds=embeds * scale, attention_mask=inputs["attention_mask"]).logits
        return logits.gather(1, target[:, None])[:, 0]

    assert torch.allclose(result.explained, (logit(1 + step) - logit(1 - step)) / (2 * step), atol=1e-4)
    assert (result.scores[inputs["attention_mask"] == 0] == 0).all()
    assert torch.equal(gradient_times_input(each, inputs).target, result.logits.argmax(-1))


def test_integrated_gradients_sum_to_the_change_of_the_logit():
    each, inputs = model(CLASSIFIER, initializer_range=0.1).double(), batch()
    result = integrated_gradients(each, inputs, steps=200)
    assert torch.allclose(result.explained, result.to_explain, atol=1e-3)
    assert (result.scores[inputs["attention_mask"] == 0] == 0).all()
    assert len(str(result).splitlines()) == 1 + 3 * 7


@pytest.mark.parametrize("steps", [1, 2])
def test_integrated_gradients_are_taken_at_the_middle_of_each_part_of_the_way(steps):
    each, inputs = model(CLASSIFIER, pad_token_id=3).double(), batch()
    target, words = torch.tensor([0, 1, 0]), each.distilbert.embeddings.word_embeddings
    words.weight.data[3] = torch.randn(32).double()  # [PAD] is 0 in a fresh model
    embeds, baseline = words(inputs["input_ids"]).detach(), words(torch.full((3, 7), 3)).detach()
    gradients = []
    for middle in {1: [1 / 2], 2: [1 / 4, 3 / 4]}[steps]:
        at = (baseline + middle * (embeds - baseline)).requires_grad_()
        logits = each(inputs_embeds=at, attention_mask=inputs["attention_mask"]).logits
        gradients.append(torch.autograd.grad(logits[range(3), target].sum(), at)[0])
    result = integrated_gradients(each, inputs, target, steps=steps)
    assert torch.allclose(result.scores, ((embeds - baseline) * sum(gradients)).sum(-1) / steps)
    with torch.no_grad():
        start = each(inputs_embeds=baseline, attention_mask=inputs["attention_mask"]).logits
        gained = (each(**inputs).logits - start)[range(3), target]
    assert torch.allclose(result.to_explain, gained)
    assert torch.equal(integrated_gradients(each, inputs).scores, integrated_gradients(each, inputs, steps=32).scores)


ATTRIBUTIONS = [gradient_times_input, integrated_gradients]


@pytest.mark.parametrize("attribute", ATTRIBUTIONS)
def test_one_class_is_explained_for_every_text(attribute):
    each, inputs = model(CLASSIFIER, num_labels=3), batch()
    expected = attribute(each, inputs, torch.tensor([2, 2, 2]))
    assert (expected.scores != 0).any(1).all()
    for target in (2, [2], [2, 2, 2], torch.tensor(2), torch.tensor([2])):
        found = attribute(each, inputs, target)
        assert torch.equal(found.scores, expected.scores)
        assert found.target.tolist() == [2, 2, 2]


@pytest.mark.parametrize("attribute", ATTRIBUTIONS)
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_attributions_need_no_gradients_around_them(attribute, off):
    each, inputs = model(CLASSIFIER), batch()
    expected = attribute(each, inputs)
    with off():
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        assert torch.equal(attribute(each, inputs).scores, expected.scores)


@pytest.mark.parametrize("attribute", ATTRIBUTIONS)
@pytest.mark.parametrize(
    ("target", "says"),
    [
        (2, "target must be 0 to 1, got 2"),
        ([0, -1, 1], "target must be 0 to 1, got -1"),
        ([0, 1], r"target must be a class, or one for each of 3 texts, got \[0, 1\]"),
        (0.5, "target must be a class, .* got 0.5"),
    ],
)
def test_a_class_that_there_is_not_cannot_be_explained(attribute, target, says):
    with pytest.raises(ValueError, match=says):
        attribute(model(CLASSIFIER), batch(), target)


@pytest.mark.parametrize("head", [head for head in HEADS if head != CLASSIFIER])
def test_attributions_and_flips_are_of_a_class_of_a_text(head):
    for look in (*ATTRIBUTIONS, label_flips):
        with pytest.raises(ValueError, match=f"{head} gives none"):
            look(model(head), batch(head))


def test_attributions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        integrated_gradients(model(CLASSIFIER), batch(), steps=0)
    with pytest.raises(ValueError, match="pad_token_id is None"):
        integrated_gradients(model(CLASSIFIER, pad_token_id=None), batch())


@pytest.mark.parametrize("head", [head for head in HEADS if head not in ("DistilBertModel", CHOICES)])
def test_the_logit_lens_ends_in_the_models_own_logits(head):
    each, inputs = model(head), batch(head)
    lens, output = logit_lens(each, inputs), each(**inputs)
    own = output.logits if hasattr(output, "logits") else torch.stack([output.start_logits, output.end_logits], dim=-1)
    assert lens.shape == (3, *own.shape)
    assert torch.equal(lens[-1], own)
    assert not torch.equal(lens[0], lens[-1])


@pytest.mark.parametrize("head", ["DistilBertModel", CHOICES])
def test_the_logit_lens_needs_a_head_that_reads_a_text_a_row(head):
    with pytest.raises(ValueError, match=f"needs a head that reads .*: {head} has none"):
        logit_lens(model(head), batch(head))


@pytest.mark.parametrize(
    "look",
    [
        lambda each, inputs: patch(each, inputs, inputs, "head", lambda output: output.logits[0, 0]),
        lambda each, inputs: gradient_times_input(each, inputs),
        lambda each, inputs: integrated_gradients(each, inputs),
        lambda each, inputs: trace(each, inputs, [["t"] * 7] * 3),
        lambda each, inputs: walk(each, None),
    ],
)
def test_a_model_in_training_mode_is_refused(look):
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        look(model(CLASSIFIER).train(), batch())
