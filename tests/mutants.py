"""Wrong DistilBERTs, each one small edit away from the right one; and the checks that tell them apart.

A mutant is what a from-scratch DistilBERT gets wrong in practice. `python -m tests.mutants` prints which check kills
each, and the value at which it first goes wrong.
"""

import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

import minibert
from minibert.study.compare import compare
from minibert.study.report import table

from . import models

SOURCE = Path(minibert.__file__).parent
LAYER = "transformer.layer.0."


@dataclass(frozen=True)
class Mutant:
    """An edit of the source, and what must come of it.

    Args:
        name: what is wrong.
        file: which file of minibert to edit.
        edits: old text to new text; every occurrence is replaced.
        first: the first value that must be found wrong; for the check of gradients, a parameter.
        check: the first of CHECKS that must find it; those before it must not.
        head: class to build; the base model has no `distilbert.` before its names.
    """

    name: str
    file: str
    edits: dict[str, str]
    first: str
    check: str = "oracle"
    head: str = "DistilBertModel"


MUTANTS = [
    # Embeddings
    Mutant(
        "positions counted from 1",
        "model.py",
        {"torch.arange(words.shape[1], ": "torch.arange(1, words.shape[1] + 1, "},
        "embeddings.position_embeddings",
    ),
    Mutant(
        "word embeddings times √dim, as in Vaswani et al. 2017",
        "model.py",
        {"self.sum(words + ": "self.sum(words * words.shape[-1] ** 0.5 + "},
        "embeddings.sum",
    ),
    Mutant(
        "LayerNorm with PyTorch's epsilon, 1e-5",
        "model.py",
        {"LAYER_NORM_EPS = 1e-12": "LAYER_NORM_EPS = 1e-5"},
        "embeddings.LayerNorm",
    ),
    # The mask
    Mutant(
        "mask with inverted polarity",
        "mask.py",
        {"ignore = attention_mask == 0": "ignore = attention_mask != 0"},
        LAYER + "attention.mask",
    ),
    Mutant(
        "mask on rows (queries), not on columns (keys)",
        "mask.py",
        {"ignore[:, None, None, :]": "ignore[:, None, :, None]"},
        LAYER + "attention.mask",
    ),
    Mutant(
        "causal mask",
        "mask.py",
        {"ignore[:, None, None, :]": "ignore[:, None, None, :] | torch.ones(2 * ignore.shape[1:]).triu(1).bool()"},
        LAYER + "attention.mask",
    ),
    Mutant(
        "mask of -1e4",
        "mask.py",
        {"torch.finfo(dtype).min)": "-1e4)"},
        LAYER + "attention.mask",
    ),
    Mutant(
        "mask ignored",
        "model.py",
        {"additive_mask(attention_mask, hidden_states.dtype)": "None"},
        LAYER + "attention.mask",
    ),
    Mutant(
        "mask in the first layer only",
        "model.py",
        {"layer(hidden_states, mask)": "layer(hidden_states, mask if layer is self.layer[0] else None)"},
        "transformer.layer.1.attention.mask",
    ),
    Mutant(
        "scores multiplied by the mask",
        "model.py",
        {"scores = scores + self.mask(mask)": "scores = scores * (self.mask(mask) == 0)"},
        LAYER + "attention.masked_scores",
    ),
    Mutant(
        "mask multiplied after the softmax",
        "model.py",
        {
            "            scores = scores + self.mask(mask)\n": "            mask = self.mask(mask)\n",
            ".softmax(dim=-1))": ".softmax(dim=-1) * (1 if mask is None else mask == 0))",
        },
        LAYER + "attention.masked_scores",
    ),
    # Attention
    Mutant(
        "q from k_lin and k from q_lin",
        "model.py",
        {
            "self.q(self.split_heads(self.q_lin": "self.q(self.split_heads(self.k_lin",
            "self.k(self.split_heads(self.k_lin": "self.k(self.split_heads(self.q_lin",
        },
        LAYER + "attention.q",
    ),
    Mutant(
        "k qᵀ instead of q kᵀ",
        "model.py",
        {"q @ k.transpose(-2, -1)": "k @ q.transpose(-2, -1)"},
        LAYER + "attention.scores",
    ),
    Mutant(
        "v from k_lin",
        "model.py",
        {"self.v(self.split_heads(self.v_lin": "self.v(self.split_heads(self.k_lin"},
        LAYER + "attention.v_lin",
    ),
    Mutant(
        "heads interleaved, not side by side",
        "model.py",
        {"(self.n_heads, -1)).transpose(1, 2)": "(-1, self.n_heads)).permute(0, 3, 1, 2)"},
        LAYER + "attention.q",
    ),
    Mutant(
        "heads not moved back before they are merged",
        "model.py",
        {"x.transpose(1, 2).flatten(-2)": "x.reshape(x.shape[0], x.shape[2], -1)"},
        LAYER + "attention.out_lin",
    ),
    Mutant(
        "no scale",
        "model.py",
        {"self.scale = (config.dim // config.n_heads) ** -0.5": "self.scale = 1.0"},
        LAYER + "attention.scores",
    ),
    Mutant(
        "scale by √dim, not by √(dim / heads)",
        "model.py",
        {"(config.dim // config.n_heads) ** -0.5": "config.dim**-0.5"},
        LAYER + "attention.scores",
    ),
    Mutant(
        "softmax over the queries",
        "model.py",
        {".softmax(dim=-1)": ".softmax(dim=-2)"},
        LAYER + "attention.probs",
    ),
    # The block
    Mutant(
        "GELU by its tanh approximation",
        "model.py",
        {"nn.GELU()": 'nn.GELU("tanh")'},
        LAYER + "ffn.activation",
    ),
    Mutant(
        "no residual around the attention",
        "model.py",
        {"self.sa_residual(attended + hidden_states)": "self.sa_residual(attended)"},
        LAYER + "sa_residual",
    ),
    Mutant(
        "the block's input added after the FFN",
        "model.py",
        {"self.output_residual(self.ffn(x) + x)": "self.output_residual(self.ffn(x) + hidden_states)"},
        LAYER + "output_residual",
    ),
    Mutant(
        "pre-norm",
        "model.py",
        {
            "self.attention(hidden_states, mask)": "self.attention(self.sa_layer_norm(hidden_states), mask)",
            "x = self.sa_layer_norm(": "x = (",
            "return self.output_layer_norm(": "return (",
            "self.ffn(x) + x": "self.ffn(self.output_layer_norm(x)) + x",
        },
        LAYER + "sa_layer_norm",
    ),
    Mutant(
        "last layer left out",
        "model.py",
        {"for layer in self.layer:": "for layer in self.layer[:-1]:"},
        "transformer.layer.1.attention.q_lin",
    ),
    # The heads
    Mutant(
        "[CLS] taken from the last token",
        "heads.py",
        {"hidden_states[:, 0]": "hidden_states[:, -1]"},
        "pre_classifier",
        head="DistilBertForSequenceClassification",
    ),
    Mutant(
        "mean over all tokens in place of [CLS]",
        "heads.py",
        {"hidden_states[:, 0]": "hidden_states.mean(1)"},
        "pre_classifier",
        head="DistilBertForSequenceClassification",
    ),
    Mutant(
        "classifier with tanh, as BERT's pooler",
        "heads.py",
        {"self.activation = nn.ReLU()": "self.activation = nn.Tanh()"},
        "activation",
        head="DistilBertForSequenceClassification",
    ),
    Mutant(
        "LayerNorm before the GELU in the masked-LM head",
        "heads.py",
        {"self.vocab_layer_norm(self.activation(": "self.activation(self.vocab_layer_norm("},
        "vocab_layer_norm",
        head="DistilBertForMaskedLM",
    ),
    Mutant(
        "start and end of the answer swapped",
        "heads.py",
        {"start_logits, end_logits = self.head": "end_logits, start_logits = self.head"},
        "start_logits",
        head="DistilBertForQuestionAnswering",
    ),
    Mutant(
        "choices dealt out by column",
        "heads.py",
        {"output.logits.view(-1, choices)": "output.logits.view(choices, -1).T"},
        "logits",
        head="DistilBertForMultipleChoice",
    ),
    # What only training shows
    Mutant(
        "embeddings' dropout before the LayerNorm",
        "model.py",
        {"self.dropout(self.LayerNorm(x))": "self.LayerNorm(self.dropout(x))"},
        "embeddings.dropout",
        "training",
    ),
    Mutant(
        "attention dropout on the scores",
        "model.py",
        {
            "self.masked_scores(scores).softmax": "self.masked_scores(self.dropout(scores)).softmax",
            "self.dropout(probs) @ v": "probs @ v",
        },
        LAYER + "attention.dropout",
        "training",
    ),
    Mutant(
        "attention dropout on the context",
        "model.py",
        {"self.dropout(probs) @ v": "self.dropout(probs @ v)"},
        LAYER + "attention.dropout",
        "training",
    ),
    Mutant(
        "FFN's dropout before its second layer",
        "model.py",
        {"self.dropout(self.lin2(self.activation(": "self.lin2(self.dropout(self.activation("},
        LAYER + "ffn.dropout",
        "training",
    ),
    Mutant(
        "FFN's dropout after the residual",
        "model.py",
        {
            "return self.dropout(self.lin2(": "return (self.lin2(",
            "self.output_residual(self.ffn(x) + x)": "self.ffn.dropout(self.output_residual(self.ffn(x) + x))",
        },
        LAYER + "output_residual",
        "training",
    ),
    Mutant(
        "answers beyond the text counted as its last token",
        "heads.py",
        {"clamp(0, length)": "clamp(0, length - 1)"},
        "loss",
        "training",
        "DistilBertForQuestionAnswering",
    ),
    Mutant(
        "projector not tied to the words",
        "heads.py",
        {"        self.tie_weights()\n": ""},
        "distilbert.embeddings.word_embeddings.weight",
        "gradients",
        "DistilBertForMaskedLM",
    ),
    Mutant(
        "[PAD]'s embedding trained",
        "model.py",
        {"padding_idx=config.pad_token_id": "padding_idx=None"},
        "embeddings.word_embeddings.weight",
        "gradients",
    ),
    Mutant(
        "no gradient through the attention probabilities",
        "model.py",
        {"self.dropout(probs)": "self.dropout(probs.detach())"},
        "transformer.layer.1.attention.k_lin.bias",
        "gradients",
    ),
]


def build(mutant, original):
    """The mutant, with the weights of the original, in float64 like it."""
    model = getattr(load(mutant), mutant.head)(original.config).double().eval()
    model.load_state_dict(dict(original.named_parameters(remove_duplicate=False)))  # the mutant may be untied
    return model


def load(mutant):
    """`heads.py` as a module of a package of its own, whose files are minibert's but for the edited one."""
    package = ModuleType("minibert_mutant")
    with tempfile.TemporaryDirectory() as folder:
        source = (SOURCE / mutant.file).read_text(encoding="utf-8")
        for old, new in mutant.edits.items():
            if old not in source:
                raise ValueError(f"{mutant.name}: {old!r} is no longer in {mutant.file}")
            source = source.replace(old, new)
        Path(folder, mutant.file).write_text(source, encoding="utf-8")
        package.__path__ = [folder, str(SOURCE)]  # searched in this order
        sys.modules[package.__name__] = package
        try:
            return import_module(f"{package.__name__}.heads")
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
                del sys.modules[name]


def against_oracle(mutant, original, inputs, labels):
    """In evaluation, against the papers' formulas in float64."""
    return compare(mutant, "oracle", inputs).first_divergence


def in_training(mutant, original, inputs, labels):
    """In train mode, with the same seed, against the right model: dropout and the loss."""
    return compare(mutant.train(), original.train(), inputs | labels).first_divergence


def by_gradients(mutant, original, inputs, labels):
    """Gradients against the right model's, from the last parameter back to the first."""
    gradients = []
    for model in (mutant, original):
        output = model.eval()(**inputs)
        sum(tensor.sin().sum() for tensor in models.tensors(output).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, right in reversed(gradients[1].items()):
        if gradients[0][name] is None or (gradients[0][name] - right).abs().max() > 1e-9:
            return name
    return None


CHECKS = {"oracle": against_oracle, "training": in_training, "gradients": by_gradients}


def examine(mutant):
    """The first check that finds the mutant, and the first value that it finds wrong; (None, None) for none."""
    torch.manual_seed(0)
    original = models.model(mutant.head, pad_token_id=1).double()
    inputs = models.batch(mutant.head)
    inputs["input_ids"].view(-1)[0] = 3  # for question answering an answer that ends beyond the text
    labels = models.labels(mutant.head, inputs["input_ids"]) if models.HEADS[mutant.head] else {}
    inputs["input_ids"][inputs["attention_mask"] == 0] = 1
    model = build(mutant, original)
    for name, check in CHECKS.items():
        if first := check(model, original, inputs, labels):
            return name, first
    return None, None


def main():
    """Print the table; 1 if a mutant survives."""
    rows = [(mutant.name, *examine(mutant)) for mutant in MUTANTS]
    print(table(["mutant", "killed by", "first wrong value"], rows), end="\n\n")
    for name, check in CHECKS.items():
        print(f"{name}: {check.__doc__}")
    return int(any(check is None for _, check, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
