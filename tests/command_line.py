"""Run the command line in this process, and make a checkpoint for it."""

import torch

import minibert
from minibert import cli

from .models import model

OFFICIAL = "distilbert-base-uncased-finetuned-sst-2-english"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] today is a nice day but what about tomorrow im not sure ! ? .".split()


def save_classifier(folder):
    """Save a classifier with random weights and its tokenizer."""
    torch.manual_seed(0)
    model("DistilBertForSequenceClassification", id2label={0: "NEGATIVE", 1: "POSITIVE"}).save_pretrained(folder)
    vocab = {word: i for i, word in enumerate(WORDS)}
    minibert.DistilBertTokenizer(vocab, model_max_length=16).save_pretrained(folder)


def load(checkpoint):
    """The classifier and its tokenizer."""
    return (
        minibert.DistilBertForSequenceClassification.from_pretrained(checkpoint),
        minibert.DistilBertTokenizer.from_pretrained(checkpoint),
    )


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err
