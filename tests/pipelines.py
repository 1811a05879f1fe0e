"""Checkpoints with random weights and a small vocabulary for the tests of pipelines, and texts to run them on."""

import random

import torch

import minibert

from .models import model

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] ada love ##lace charles bab ##bage was born in lon ##don and paris ##ian by the of "
    "france is who when capital a math ##ema ##tician ##s 1815 18 ##15 , . ! ? - ' e ##e 東 京 it not nice day today"
).split()
TEXT_WORDS = ["Ada", "Lovelace", "Charles", "Babbage's", "was", "born", "in", "London", "1815", ",", "mathematicians"]
TEXT_WORDS += ["Parisian", "é", "東京", "?", "unknowable", "ee", "day.", "(the", "capital)", "not-nice", "😀", "todays"]


def saved(folder, head, *, positions=48, **config):
    """Save a model and its tokenizer, and return the folder."""
    torch.manual_seed(0)
    model(head, vocab_size=len(WORDS), max_position_embeddings=positions, **config).save_pretrained(folder)
    vocab = {word: i for i, word in enumerate(WORDS)}
    minibert.DistilBertTokenizer(vocab, model_max_length=positions).save_pretrained(folder)
    return folder


def random_texts(count, longest=12, seed=0):
    """Texts of 1 to `longest` words, with different white space between them."""
    chance = random.Random(seed)
    return [
        "".join(chance.choice(TEXT_WORDS) + chance.choice((" ", " ", "  ", "\n")) for _ in range(length)).rstrip()
        for length in (chance.randint(1, longest) for _ in range(count))
    ]
