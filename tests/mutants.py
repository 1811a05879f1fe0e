"""Wrong DistilBERTs, each one small change away from the right one; and the checks that tell them apart.

A mutant is what a from-scratch DistilBERT gets wrong in practice. Most are those of the catalogue, changes of a copy
(see `minibert/study/mistakes.py`). What only training shows is an edit of the source: the place of a dropout, a loss
and a detached gradient are expressions inside a function, which no hook and no other part can reach.
`python -m tests.mutants` prints which check kills each, and the value at which it first goes wrong.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

import minibert
from minibert.study.compare import compare
from minibert.study.mistakes import mistaken
from minibert.study.report import table

from . import models

SOURCE = Path(minibert.__file__).parent
LAYER = "transformer.layer.0."
ATTENTION = LAYER + "attention."


@dataclass(frozen=True)
class Mutant:
    """A mistake, and what must come of it.

    Args:
        name: what is wrong; without edits, its name in the catalogue.
        first: the first value that must be found wrong; for the check of gradients, a parameter.
        check: the first of CHECKS that must find it; those before it must not.
        head: class to build; the base model has no `distilbert.` before its names.
        file: which file of minibert to edit.
        edits: old text to new text; every occurrence is replaced.
    """

    name: str
    first: str
    check: str = "oracle"
    head: str = "DistilBertModel"
    file: str = ""
    edits: dict[str, str] = field(default_factory=dict)


CATALOGUED = [
    Mutant("positions from 1", "embeddings.position_embeddings"),
    Mutant("no positions", "embeddings.position_embeddings"),
    Mutant("sinusoidal positions", "embeddings.position_embeddings"),
    Mutant("word embeddings times √D", "embeddings.word_embeddings"),
    Mutant("[PAD] as zero", "embeddings.word_embeddings"),
    Mutant("no embedding LayerNorm", "embeddings.LayerNorm"),
    Mutant("LayerNorm eps 1e-5", "embeddings.LayerNorm"),
    Mutant("LayerNorm eps 1e-6", "embeddings.LayerNorm"),
    Mutant("LayerNorm eps 1e-3", "embeddings.LayerNorm"),
    Mutant("LayerNorm with unbiased variance", "embeddings.LayerNorm"),
    Mutant("LayerNorm without weight and bias", "embeddings.LayerNorm"),
    Mutant("no mask", ATTENTION + "mask"),
    Mutant("mask of -1e4", ATTENTION + "mask"),
    Mutant("mask of -1e9", ATTENTION + "mask"),
    Mutant("mask of -inf", ATTENTION + "mask"),
    Mutant("mask inverted", ATTENTION + "mask"),
    Mutant("mask inverted, of -1e4", ATTENTION + "mask"),
    Mutant("mask hides queries", ATTENTION + "mask"),
    Mutant("mask hides queries too", ATTENTION + "mask"),
    Mutant("mask in the first layer only", "transformer.layer.1.attention.mask"),
    Mutant("causal mask", ATTENTION + "masked_scores"),
    Mutant("scores multiplied by the mask", ATTENTION + "masked_scores"),
    Mutant("mask multiplied after the softmax", ATTENTION + "masked_scores"),
    Mutant("q and k swapped", ATTENTION + "q_lin"),
    Mutant("k qᵀ in place of q kᵀ", ATTENTION + "scores"),
    Mutant("v from k_lin", ATTENTION + "v_lin"),
    Mutant("heads interleaved", ATTENTION + "q"),
    Mutant("heads merged without moving them back", ATTENTION + "out_lin"),
    Mutant("scale left out", ATTENTION + "scores"),
    Mutant("scale by √D", ATTENTION + "scores"),
    Mutant("scale by E", ATTENTION + "scores"),
    Mutant("softmax over queries", ATTENTION + "probs"),
    Mutant("no bias in q, k and v", ATTENTION + "q_lin"),
    Mutant("no output projection", ATTENTION + "out_lin"),
    Mutant("weights transposed where square", ATTENTION + "q_lin"),
    Mutant("tanh GELU", LAYER + "ffn.activation"),
    Mutant("quick GELU", LAYER + "ffn.activation"),
    Mutant("ReLU for GELU", LAYER + "ffn.activation"),
    Mutant("no residual around the attention", LAYER + "sa_residual"),
    Mutant("no residual around the FFN", LAYER + "output_residual"),
    Mutant("no residuals", LAYER + "sa_residual"),
    Mutant("block's input added after the FFN", LAYER + "output_residual"),
    Mutant("pre-norm", LAYER + "sa_layer_norm"),
    Mutant("last layer missing", "last_hidden_state"),
    Mutant("first layer missing", ATTENTION + "q_lin"),
    Mutant("last layer in place of each", ATTENTION + "q_lin"),
    Mutant("first layer in place of each", "transformer.layer.1.attention.q_lin"),
    *(
        Mutant(name, first, head=head)
        for head in ("DistilBertForSequenceClassification", "DistilBertForMultipleChoice")
        for name, first in {
            "[CLS] from the last slot": "pre_classifier",
            "mean pooling in place of [CLS]": "pre_classifier",
            "mean pooling over padding in place of [CLS]": "pre_classifier",
            "tanh in the classifier": "activation",
            "no activation in the classifier": "activation",
            "no pre_classifier": "pre_classifier",
        }.items()
    ),
    *(
        Mutant(name, "logits", head=head)
        for head in ("DistilBertForSequenceClassification", "DistilBertForTokenClassification")
        for name in ("softmax of the logits", "labels in reverse order")
    ),
    Mutant("LayerNorm before the GELU in the head", "vocab_layer_norm", head="DistilBertForMaskedLM"),
    Mutant("no bias in the projector", "vocab_projector", head="DistilBertForMaskedLM"),
    Mutant("start and end swapped", "qa_outputs", head="DistilBertForQuestionAnswering"),
    Mutant("choices dealt by column", "logits", head="DistilBertForMultipleChoice"),
]
SOURCE_EDITS = [
    Mutant(
        "embeddings' dropout before the LayerNorm",
        "embeddings.dropout",
        "training",
        file="model.py",
        edits={"self.dropout(self.LayerNorm(x))": "self.LayerNorm(self.dropout(x))"},
    ),
    Mutant(
        "attention dropout on the scores",
        LAYER + "attention.dropout",
        "training",
        file="model.py",
        edits={
            "self.masked_scores(scores).softmax": "self.masked_scores(self.dropout(scores)).softmax",
            "self.dropout(probs) @ v": "probs @ v",
        },
    ),
    Mutant(
        "attention dropout on the context",
        LAYER + "attention.dropout",
        "training",
        file="model.py",
        edits={"self.dropout(probs) @ v": "self.dropout(probs @ v)"},
    ),
    Mutant(
        "FFN's dropout before its second layer",
        LAYER + "ffn.dropout",
        "training",
        file="model.py",
        edits={"self.dropout(self.lin2(self.activation(": "self.lin2(self.dropout(self.activation("},
    ),
    Mutant(
        "FFN's dropout after the residual",
        LAYER + "output_residual",
        "training",
        file="model.py",
        edits={
            "return self.dropout(self.lin2(": "return (self.lin2(",
            "self.output_residual(self.ffn(x) + x)": "self.ffn.dropout(self.output_residual(self.ffn(x) + x))",
        },
    ),
    Mutant(
        "answers beyond the text counted as its last token",
        "loss",
        "training",
        head="DistilBertForQuestionAnswering",
        file="heads.py",
        edits={"clamp(0, length)": "clamp(0, length - 1)"},
    ),
    Mutant(
        "projector not tied to the words",
        "distilbert.embeddings.word_embeddings.weight",
        "gradients",
        head="DistilBertForMaskedLM",
        file="heads.py",
        edits={"        self.tie_weights()\n": ""},
    ),
    Mutant(
        "[PAD]'s embedding trained",
        "embeddings.word_embeddings.weight",
        "gradients",
        file="model.py",
        edits={"padding_idx=config.pad_token_id": "padding_idx=None"},
    ),
    Mutant(
        "no gradient through the attention probabilities",
        "transformer.layer.1.attention.k_lin.bias",
        "gradients",
        file="model.py",
        edits={"self.dropout(probs)": "self.dropout(probs.detach())"},
    ),
]
MUTANTS = CATALOGUED + SOURCE_EDITS


def build(mutant, original):
    """The mutant, with the weights of the original, in float64 like it."""
    if not mutant.edits:
        model = mistaken(original, mutant.name)
        model.named_parameters = original.named_parameters  # the oracle takes its weights from here: the right ones
        return model
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


def example(head):
    """A right model, inputs and labels on which every mutant shows."""
    torch.manual_seed(0)
    original = models.model(head, pad_token_id=1).double()
    words = original.get_parameter(original.encoder_prefix + "embeddings.word_embeddings.weight")
    words.data[1] = torch.linspace(-0.3, 0.3, words.shape[1])  # [PAD], which is 0 in a fresh model
    inputs = models.batch(head)
    inputs["input_ids"].view(-1)[0] = 3  # for question answering an answer that ends beyond the text
    labels = models.labels(head, inputs["input_ids"]) if models.HEADS[head] else {}
    inputs["input_ids"][inputs["attention_mask"] == 0] = 1
    return original, inputs, labels


def examine(mutant):
    """The first check that finds the mutant, and the first value that it finds wrong; (None, None) for none."""
    original, inputs, labels = example(mutant.head)
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
