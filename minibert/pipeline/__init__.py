"""From texts to results: for each task a callable that takes any iterable of texts and yields a result for each.

    classifier = TextClassifier("distilbert-base-uncased-finetuned-sst-2-english")
    for result in classifier(["Today is a nice day!", "But what about tomorrow?"]):
        print(result.label, result.score)

Results come in the order of the texts, and lazily: a batch of texts is read when its first result is asked for. A
limit on tokens, not on texts, sets the size of a batch. The model is packed, so nothing is padded, and sorting texts by
length gains nothing. Where `model.batch_invariant` is True, a text's result has the same bits in every batch.
A pipeline can be pickled with its weights and sent to another process. For a progress bar, wrap the texts.

A mapping of columns is a batch too, and comes back with columns of results beside its own: label and score, entities,
masks, answers or embedding. So a pipeline can be passed to the `map` of `datasets`, and its class to Ray Data:

    dataset.map(classifier, batched=True)
    dataset.map_batches(TextClassifier, fn_constructor_args=[checkpoint], compute=ActorPoolStrategy(size=4), num_cpus=1)

Every program that uses torch on several threads and then forks has this problem: the child process hangs when it uses
several threads too. Start processes with `multiprocessing.get_context("spawn")`, or let each child begin with
`torch.set_num_threads(1)`, as the workers of a DataLoader do.

Entities and answers of a long text are searched in several overlapping rows. The other tasks need the whole text in one
row: they refuse a long text, or cut it with `truncation=True`, and the logger "minibert" reports each text that is cut.
"""

from .base import OneRowPipeline, Pipeline, plan_batches
from .embedding import Embedder
from .fill_mask import Candidate, MaskFiller
from .question_answering import Answer, QuestionAnswerer, best_spans
from .text_classification import Classification, TextClassifier, label_scores
from .token_classification import Entity, LabelledSpan, TokenClassifier, group_words, stitch

__all__ = [
    "Answer",
    "Candidate",
    "Classification",
    "Embedder",
    "Entity",
    "LabelledSpan",
    "MaskFiller",
    "OneRowPipeline",
    "Pipeline",
    "QuestionAnswerer",
    "TextClassifier",
    "TokenClassifier",
    "best_spans",
    "group_words",
    "label_scores",
    "plan_batches",
    "stitch",
]
