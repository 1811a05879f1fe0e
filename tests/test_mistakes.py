"""What the mistakes of the catalogue do, computed from their names: the numbers in a name are the mistake's."""

import math

import pytest
import torch
import torch.nn.functional as F

from minibert.study import capture
from minibert.study.mistakes import mistaken

from .models import SIZES, batch, model

CLASSIFIER = "DistilBertForSequenceClassification"
D, E = SIZES["dim"], SIZES["dim"] // SIZES["n_heads"]
ATTENTION, FFN = "transformer.layer.0.attention.", "transformer.layer.0.ffn."


def inputs():
    """The same each time."""
    torch.manual_seed(1)
    return batch()


def keys():
    """(B, 1, 1, S), 1 = real key."""
    return inputs()["attention_mask"][:, None, None, :].double()


def normalized(eps, correction=0):
    """LayerNorm of the embeddings, from its definition."""

    def norm(v, m):
        x, part = v["embeddings.sum"], m.embeddings.LayerNorm
        variance = x.var(-1, correction=correction, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() * part.weight + part.bias

    return norm


def scores(scale):
    return lambda v, m: v[ATTENTION + "q"] @ v[ATTENTION + "k"].mT * scale


def hidden_by(number):
    return lambda v, m: torch.where(
        inputs()["attention_mask"].bool()[:, None, None, :], 0.0, torch.tensor(number, dtype=torch.float64)
    )


def sinusoids(v, m):
    """Attention Is All You Need, 3.5: sine at even places, cosine at odd ones."""
    length = v["embeddings.sum"].shape[1]
    table = [
        [(math.sin, math.cos)[i % 2](position / 10000 ** ((i - i % 2) / D)) for i in range(D)]
        for position in range(length)
    ]
    return torch.tensor(table, dtype=torch.float64)[None]


BY_HAND = {
    "positions from 1": (
        "embeddings.position_embeddings",
        lambda v, m: m.embeddings.position_embeddings.weight[None, 1:8],
    ),
    "sinusoidal positions": ("embeddings.position_embeddings", sinusoids),
    "word embeddings times √D": (
        "embeddings.word_embeddings",
        lambda v, m: m.embeddings.word_embeddings(inputs()["input_ids"]) * D**0.5,
    ),
    "LayerNorm eps 1e-5": ("embeddings.LayerNorm", normalized(1e-5)),
    "LayerNorm eps 1e-6": ("embeddings.LayerNorm", normalized(1e-6)),
    "LayerNorm eps 1e-3": ("embeddings.LayerNorm", normalized(1e-3)),
    "LayerNorm with unbiased variance": ("embeddings.LayerNorm", normalized(1e-12, correction=1)),
    "mask of -1e4": (ATTENTION + "mask", hidden_by(-1e4)),
    "mask of -1e9": (ATTENTION + "mask", hidden_by(-1e9)),
    "mask of -inf": (ATTENTION + "mask", hidden_by(-math.inf)),
    "scale left out": (ATTENTION + "scores", scores(1)),
    "scale by √D": (ATTENTION + "scores", scores(D**-0.5)),
    "scale by E": (ATTENTION + "scores", scores(1 / E)),
    "k qᵀ in place of q kᵀ": (ATTENTION + "scores", lambda v, m: scores(E**-0.5)(v, m).mT),
    "causal mask": (
        ATTENTION + "masked_scores",
        lambda v, m: torch.where(
            torch.ones(7, 7).tril().bool(),
            v[ATTENTION + "scores"] + v[ATTENTION + "mask"],
            torch.finfo(torch.float64).min,
        ),
    ),
    "scores multiplied by the mask": (ATTENTION + "masked_scores", lambda v, m: v[ATTENTION + "scores"] * keys()),
    "mask multiplied after the softmax": (
        ATTENTION + "probs",
        lambda v, m: v[ATTENTION + "scores"].softmax(-1) * keys(),
    ),
    "mask inverted": (ATTENTION + "mask", lambda v, m: torch.finfo(torch.float64).min * keys()),
    "mask inverted, of -1e4": (ATTENTION + "mask", lambda v, m: -1e4 * keys()),
    "mask hides queries": (ATTENTION + "mask", lambda v, m: torch.finfo(torch.float64).min * (1 - keys().mT)),
    "mask hides queries too": (
        ATTENTION + "mask",
        lambda v, m: torch.finfo(torch.float64).min * (1 - keys() * keys().mT),
    ),
    "no mask": (ATTENTION + "mask", lambda v, m: 0 * keys()),
    "softmax over queries": (ATTENTION + "probs", lambda v, m: v[ATTENTION + "masked_scores"].softmax(-2)),
    "tanh GELU": (FFN + "activation", lambda v, m: F.gelu(v[FFN + "lin1"], approximate="tanh")),
    "quick GELU": (FFN + "activation", lambda v, m: v[FFN + "lin1"] / (1 + (-1.702 * v[FFN + "lin1"]).exp())),
    "ReLU for GELU": (FFN + "activation", lambda v, m: v[FFN + "lin1"].clamp(min=0)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_mistake_does_what_its_name_says(name):
    original = model().double()
    step, expected = BY_HAND[name]
    wrong = mistaken(original, name)
    with capture(wrong, "*") as values, torch.no_grad():
        wrong(**inputs())
    right = expected(values, original).expand_as(values[step])
    tolerance = 1e-6 if name == "sinusoidal positions" else 1e-12  # that table is computed in float32
    assert torch.allclose(values[step], right, rtol=1e-10, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("[CLS] from the last slot", lambda states, real: states[:, -1]),
        ("mean pooling in place of [CLS]", lambda states, real: (states * real).sum(1) / real.sum(1)),
        ("mean pooling over padding in place of [CLS]", lambda states, real: states.sum(1) / states.shape[1]),
    ],
)
def test_another_vector_is_pooled(name, pooled):
    original = model(CLASSIFIER).double()
    with torch.no_grad():
        states = original.distilbert(**inputs()).last_hidden_state
        given = mistaken(original, name)(**inputs()).logits
        hidden = original.pre_classifier(pooled(states, inputs()["attention_mask"][:, :, None].double())).relu()
    assert torch.allclose(given, original.classifier(hidden), rtol=1e-10)


@pytest.mark.parametrize("mask", ["none", "pattern"])
def test_the_mean_is_over_all_tokens_where_no_padding_mask_says_which_are_real(mask):
    original, each = model(CLASSIFIER).double(), inputs()
    each["attention_mask"] = None if mask == "none" else torch.ones(3, 1, 7, 7).tril().bool()
    wrong = mistaken(original, "mean pooling in place of [CLS]")
    with torch.no_grad():
        for _ in range(2):  # nothing is left of the forward before
            pooled = original.distilbert(**each).last_hidden_state.mean(1)
            expected = original.classifier(original.pre_classifier(pooled).relu())
            assert torch.allclose(wrong(**each).logits, expected, rtol=1e-10)


def test_without_a_mask_its_mistakes_change_nothing():
    original, each = model().double(), {"input_ids": inputs()["input_ids"]}
    for name in ("scores multiplied by the mask", "mask multiplied after the softmax", "no mask"):
        with torch.no_grad():
            same = mistaken(original, name)(**each).last_hidden_state
            assert torch.equal(same, original(**each).last_hidden_state)


BLOCKS = {
    "no residual around the attention": ("sa_residual", lambda v: v["attention.out_lin"]),
    "no residual around the FFN": ("output_residual", lambda v: v["ffn.lin2"]),
    "block's input added after the FFN": ("output_residual", lambda v: v["ffn.lin2"] + v["input"]),
    "no output projection": ("attention.out_lin", lambda v: v["attention.context"].transpose(1, 2).flatten(2)),
    "v from k_lin": ("attention.v_lin", lambda v: v["attention.k_lin"]),
    "heads interleaved": ("attention.q", lambda v: v["attention.q_lin"].view(3, 7, E, 4).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_mistake_in_a_block_is_made_in_each_layer(name, layer):
    wrong = mistaken(model().double(), name)
    with capture(wrong, "*") as values, torch.no_grad():
        wrong(**inputs())
    prefix = f"transformer.layer.{layer}."
    steps = {step.removeprefix(prefix): value for step, value in values.items() if step.startswith(prefix)}
    steps["input"] = values["embeddings" if layer == 0 else "transformer.layer.0"]
    step, expected = BLOCKS[name]
    assert torch.allclose(steps[step], expected(steps), rtol=1e-10, atol=1e-12)


def by_name(wrong, each, prefix=""):
    """The steps of a run."""
    with capture(wrong, f"{prefix}*") as values, torch.no_grad():
        wrong(**each)
    return {name.removeprefix(prefix): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("q and k swapped", {"q": ("k", 1), "k": ("q", 1), "v": ("v", 1)}),
        ("v from k_lin", {"q": ("q", 1), "k": ("k", 1), "v": ("k", 1)}),
        ("no bias in q, k and v", {"q": ("q", 0), "k": ("k", 0), "v": ("v", 0)}),
    ],
)
def test_which_projection_makes_q_k_and_v(name, of):
    original = model().double()
    steps = by_name(mistaken(original, name), inputs())
    for layer, x in enumerate((steps["embeddings"], steps["transformer.layer.0"])):
        attention = original.transformer.layer[layer].attention
        for vector, (source, times) in of.items():
            linear = getattr(attention, f"{source}_lin")
            expected = x @ linear.weight.T + times * linear.bias
            assert torch.allclose(steps[f"transformer.layer.{layer}.attention.{vector}_lin"], expected, rtol=1e-10)


def test_pad_is_zero_and_no_other_word():
    original = model(pad_token_id=3)
    original.embeddings.word_embeddings.weight.data[3] = 1.0  # 0 in a fresh model
    right, wrong = (m.embeddings.word_embeddings.weight for m in (original, mistaken(original, "[PAD] as zero")))
    assert [row for row in range(50) if not torch.equal(right[row], wrong[row])] == [3]
    assert (wrong[3] == 0).all()


def test_layer_norm_without_weight_and_bias_and_none_after_the_embeddings():
    original = model().double()
    steps = by_name(mistaken(original, "LayerNorm without weight and bias"), inputs())
    for norm, x in (("embeddings.LayerNorm", "embeddings.sum"), ("{}.sa_layer_norm", "{}.sa_residual")):
        norm, x = norm.format("transformer.layer.1"), x.format("transformer.layer.1")
        assert torch.allclose(steps[norm], F.layer_norm(steps[x], (D,), eps=1e-12), atol=1e-10)
    steps = by_name(mistaken(original, "no embedding LayerNorm"), inputs())
    assert torch.equal(steps["embeddings"], steps["embeddings.sum"])


def test_pre_norm_normalizes_what_goes_in():
    original = model().double()
    steps = by_name(mistaken(original, "pre-norm"), inputs())
    for layer, x in enumerate((steps["embeddings"], steps["transformer.layer.0"])):
        block, name = original.transformer.layer[layer], f"transformer.layer.{layer}."
        with torch.no_grad():
            x = x + block.attention(block.sa_layer_norm(x), steps[name + "attention.mask"])[0]
            expected = x + block.ffn(block.output_layer_norm(x))
        assert torch.allclose(steps[name.rstrip(".")], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("last layer missing", [0, 1]),
        ("first layer missing", [1, 2]),
        ("last layer in place of each", [2, 2, 2]),
        ("first layer in place of each", [0, 0, 0]),
    ],
)
def test_which_layers_are_left(name, layers):
    original = model(n_layers=3)
    blocks = mistaken(original, name).transformer.layer
    expected = [original.transformer.layer[i].ffn.lin1.weight for i in layers]
    assert all(block.ffn.lin1.weight is weight for block, weight in zip(blocks, expected, strict=True))


def softmax(x):
    return x.exp() / x.exp().sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (CLASSIFIER, "softmax of the logits", softmax),
        (CLASSIFIER, "labels in reverse order", lambda x: x[:, [1, 0]]),
        ("DistilBertForTokenClassification", "labels in reverse order", lambda x: x[:, :, [1, 0]]),
        ("DistilBertForTokenClassification", "softmax of the logits", softmax),
        ("DistilBertForMultipleChoice", "choices dealt by column", lambda x: x.view(-1)[[0, 3, 1, 4, 2, 5]].view(3, 2)),
    ],
)
def test_which_logits_are_returned(head, name, expected):
    original, each = model(head).double(), batch(head)
    with torch.no_grad():
        assert torch.allclose(mistaken(original, name)(**each).logits, expected(original(**each).logits), rtol=1e-10)


def test_start_and_end_change_places():
    original, each = model("DistilBertForQuestionAnswering").double(), batch()
    with torch.no_grad():
        right, wrong = original(**each), mistaken(original, "start and end swapped")(**each)
    assert torch.equal(right.start_logits, wrong.end_logits)
    assert torch.equal(right.end_logits, wrong.start_logits)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("tanh in the classifier", lambda m, x: m.pre_classifier(x).tanh()),
        ("no activation in the classifier", lambda m, x: m.pre_classifier(x)),
        ("no pre_classifier", lambda m, x: x.relu()),
    ],
)
def test_what_the_classifier_reads(name, hidden):
    original = model(CLASSIFIER).double()
    with torch.no_grad():
        first = original.distilbert(**inputs()).last_hidden_state[:, 0]
        given = mistaken(original, name)(**inputs()).logits
        assert torch.allclose(given, original.classifier(hidden(original, first)), rtol=1e-10)


def test_parameters_are_shared_and_modules_are_not():
    original = model(CLASSIFIER)
    wrong = mistaken(original, "tanh GELU")
    ours, theirs = dict(original.named_parameters()), dict(wrong.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    twins = zip(original.modules(), wrong.modules(), strict=True)
    assert not any(module is twin or module._forward_hooks is twin._forward_hooks for module, twin in twins)
