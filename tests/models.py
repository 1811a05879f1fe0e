"""Small models and batches that the tests share."""

import torch

import minibert
from minibert import DistilBertConfig

SIZES = {
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "initializer_range": 0.3,  # at 0.02 a wrong GELU or LayerNorm epsilon would still pass
}
BASE_SIZES = {
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}  # distilbert-base, few words
HEADS = {
    "DistilBertModel": None,
    "DistilBertForMaskedLM": {"labels": lambda ids: torch.where(ids % 3 == 0, ids, -100)},
    "DistilBertForSequenceClassification": {"labels": lambda ids: ids[:, 0] % 2},
    "DistilBertForTokenClassification": {"labels": lambda ids: torch.where(ids % 3 == 0, ids % 2, -100)},
    "DistilBertForQuestionAnswering": {
        "start_positions": lambda ids: ids[:, 0] % 4 - 1,  # -1 is clamped to 0
        "end_positions": lambda ids: ids[:, 0] % 4 + 4,  # some lie beyond the text
    },
    "DistilBertForMultipleChoice": {"labels": lambda ids: ids[:, 0, 0] % ids.shape[1]},
}
MASKS = {
    "ragged": lambda b, s: (torch.arange(s) < torch.linspace(1, s, b).long()[:, None]).long(),
    "left": lambda b, s: (torch.arange(s) >= torch.linspace(s - 1, 0, b).long()[:, None]).long(),
    "holes": lambda b, s: torch.where(torch.arange(s) == 0, 1, torch.randint(0, 2, (b, s))),
    "ones": lambda b, s: torch.ones(b, s, dtype=torch.long),
    "none": lambda b, s: None,
}
SHAPES = [(3, 7), (1, 7), (3, 1), (1, 1)]


def model(head="DistilBertModel", **config):
    """A model with random weights, LayerNorm's included, in eval mode."""
    made = getattr(minibert, head)(DistilBertConfig(**SIZES | config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):  # fresh ones are 0 and 1: they would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def batch(head="DistilBertModel", mask="ragged", shape=(3, 7), vocab_size=SIZES["vocab_size"]):
    """Inputs of a model: random ids and a mask; for multiple choice with two choices a row."""
    rows, length = shape
    choices = 2 if head == "DistilBertForMultipleChoice" else 1
    ids = torch.randint(1, vocab_size, (rows * choices, length))
    attention_mask = MASKS[mask](rows * choices, length)
    if choices > 1:
        ids = ids.view(rows, choices, length)
        attention_mask = attention_mask if attention_mask is None else attention_mask.view(rows, choices, length)
    return {"input_ids": ids, "attention_mask": attention_mask}


def labels(head, ids):
    """The labels that a head's loss takes, some of them to be ignored or clamped."""
    return {name: make(ids) for name, make in HEADS[head].items()}


def tensors(output):
    """Every tensor of an output, by name; tuples spread out."""
    named = {}
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits", "loss", "hidden_states", "attentions"):
        value = getattr(output, name, None)
        if isinstance(value, tuple):
            named |= {f"{name}[{i}]": tensor for i, tensor in enumerate(value)}
        elif value is not None:
            named[name] = value
    return named
