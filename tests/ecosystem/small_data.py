"""Small data with a pattern that a tiny model learns in seconds, checkpoints for it, and a comparison of answers."""

import json
import random

import pytest
import torch

from minibert import DistilBertTokenizer

from ..models import model

GOOD = "good fine great lovely superb warm".split()
BAD = "bad dull poor awful weak cold".split()
NAMES = "anna boris clara david emma frank".split()
PLACES = "paris london rome berlin oslo madrid".split()
FILLERS = "a the film story was and with very some of in lives works now here quite".split()
SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
WORDS = SPECIAL + GOOD + BAD + NAMES + PLACES + FILLERS + "who where does do live ? . ##s".split()


def reviews(n, seed=0):
    """Texts of different lengths with a label: 0 bad, 1 good."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        label = i % 2
        words = draw.choices(FILLERS, k=draw.randint(2, 9))
        words.insert(draw.randrange(len(words) + 1), draw.choice((BAD, GOOD)[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def pairs(n, seed=0):
    """Two texts, and whether the second one answers a question: 1 if so."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        second = draw.choice((BAD, PLACES)[i % 2])
        row = {
            "sentence1": f"where does {draw.choice(NAMES)} live ?",
            "sentence2": f"in {draw.choice(FILLERS)} {second}",
        }
        rows.append(row | {"label": i % 2})
    return rows


def entities(n, seed=0):
    """Sentences in words, and a tag for each: 0 O, 1 B-PER, 2 B-LOC."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        words = draw.choices(FILLERS + NAMES + [f"{place}s" for place in PLACES] + PLACES, k=draw.randint(3, 10))
        tags = [1 if word in NAMES else 2 if word.removesuffix("s") in PLACES else 0 for word in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def questions(n, seed=0):
    """Where does someone live? The answer is a place in the context."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        place = draw.choice(PLACES)
        before = " ".join(draw.choices(FILLERS, k=draw.randint(2, 20)))
        after = " ".join(draw.choices(FILLERS, k=draw.randint(2, 20)))
        name = draw.choice(NAMES)
        context = f"{before} {place} {after}"
        answers = {"text": [place], "answer_start": [len(before) + 1]}
        rows.append({"id": str(i), "question": f"where does {name} live ?", "context": context, "answers": answers})
    return rows


def write(folder, make, train=96, test=24):
    """Write train.json and test.json, one row a line, as `datasets.load_dataset("json")` reads them."""
    for name, n, seed in (("train", train, 0), ("test", test, 1)):
        lines = [json.dumps(row) + "\n" for row in make(n, seed)]
        (folder / f"{name}.json").write_text("".join(lines))


def save_checkpoint(folder, head, **config):
    """Save a tiny model with random weights, and its tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "initializer_range": 0.05}
    model(head, **sizes | config).save_pretrained(folder)
    DistilBertTokenizer({word: i for i, word in enumerate(WORDS)}, model_max_length=64).save_pretrained(folder)


def about(answer, rel):
    """To compare with: an answer whose floats may differ by a part `rel` of their size."""
    if isinstance(answer, dict):
        return {name: about(value, rel) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return type(answer)(about(value, rel) for value in answer)
    return pytest.approx(answer, rel=rel, abs=1e-5) if isinstance(answer, float) else answer
