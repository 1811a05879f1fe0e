"""The same answers as transformers' pipelines on the same checkpoint."""

import numpy as np
import pytest
import torch

from minibert.pipeline import Embedder, MaskFiller, QuestionAnswerer, TextClassifier, TokenClassifier

from .pipelines import random_texts, saved

pytestmark = pytest.mark.reference
transformers = pytest.importorskip("transformers")
LABELS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]))


def close(score):
    return pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 3},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 2, "problem_type": "regression"},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
    ],
    ids=str,
)
def test_classes_are_those_of_text_classification(tmp_path, config):
    folder, texts = saved(tmp_path, "DistilBertForSequenceClassification", **config), random_texts(30)
    theirs = transformers.pipeline("text-classification", folder, top_k=None)(texts)
    for ours, ranked in zip(TextClassifier(folder, batch_tokens=50)(texts), theirs, strict=True):
        assert ours.label == ranked[0]["label"]
        assert ours.score == close(ranked[0]["score"])
        assert ours.scores == close({each["label"]: each["score"] for each in ranked})


def test_entities_are_those_of_token_classification(tmp_path):
    folder, texts = saved(tmp_path, "DistilBertForTokenClassification", id2label=LABELS), random_texts(60)
    pipeline = transformers.pipeline("token-classification", folder, aggregation_strategy="first")
    n_words = []
    for text, ours in zip(texts, TokenClassifier(folder, batch_tokens=50)(texts), strict=True):
        theirs = [(e["entity_group"], close(e["score"]), e["start"], e["end"]) for e in pipeline(text)]
        assert [(e.label, e.score, e.start, e.end) for e in ours] == theirs
        assert [e.text for e in ours] == [text[e.start : e.end] for e in ours]
        n_words += [len(e.text.split()) for e in ours]
    assert len(n_words) > 100
    assert max(n_words) > 2  # some words were grouped


def test_candidates_are_those_of_fill_mask(tmp_path):
    folder = saved(tmp_path, "DistilBertForMaskedLM")
    texts = [f"[MASK]{text}" if i % 2 else f"[MASK] {text} [MASK]?" for i, text in enumerate(random_texts(20))]
    theirs = transformers.pipeline("fill-mask", folder, top_k=3)(texts)
    for i, (ours, ranked) in enumerate(zip(MaskFiller(folder, top_k=3, batch_tokens=50)(texts), theirs, strict=True)):
        assert len(ours) == 2 - i % 2
        for candidates, expected in zip(ours, [ranked] if i % 2 else ranked, strict=True):
            assert [(c.token, c.token_id, c.score) for c in candidates] == [
                (c["token_str"], c["token"], close(c["score"])) for c in expected
            ]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_pooled_from_those_of_feature_extraction(tmp_path, pooling):
    folder, texts = saved(tmp_path, "DistilBertModel"), random_texts(20)
    theirs = transformers.pipeline("feature-extraction", folder)(texts)
    for ours, states in zip(Embedder(folder, pooling=pooling, batch_tokens=50)(texts), theirs, strict=True):
        states = np.array(states[0])
        assert ours.tolist() == close((states.mean(0) if pooling == "mean" else states[0]).tolist())


def expected_answers(folder, question, context, *, top_k, max_answer_length, size, stride):
    """Answers from transformers' own tokenizer, model and span decoder.

    Version 5 has no question-answering pipeline any more, but still has the parts of it.
    """
    from transformers.pipelines.document_question_answering import select_starts_ends

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.DistilBertForQuestionAnswering.from_pretrained(folder)
    rows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=size,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    whole = tokenizer(context, add_special_tokens=False)
    best, no_answer = {}, 1000000
    for i, ids in enumerate(rows["input_ids"]):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        p_mask = [int(sequence != 1) for sequence in rows.sequence_ids(i)]
        p_mask[0] = 0  # [CLS] takes part in the softmax
        starts, ends, scores, no_answer = select_starts_ends(
            output.start_logits.numpy(),
            output.end_logits.numpy(),
            p_mask,
            np.ones((1, len(ids)), int),
            no_answer,
            len(ids) ** 2,
            True,
            max_answer_length,
        )
        for start, end, score in zip(starts, ends, scores, strict=True):
            if start <= end < start + max_answer_length and start > 0:
                first = whole.word_to_chars(rows.token_to_word(i, start)).start
                last = whole.word_to_chars(rows.token_to_word(i, end)).end
                best[first, last] = max(best.get((first, last), 0), score)
    best[0, 0] = no_answer
    return sorted(((context[s:e], close(p), s, e) for (s, e), p in best.items()), key=lambda a: -a[1].expected)[:top_k]


@pytest.mark.parametrize("longest", [10, 60], ids=["one window", "several windows"])
def test_answers_are_the_best_spans_of_transformers_logits(tmp_path, longest):
    folder = saved(tmp_path, "DistilBertForQuestionAnswering")
    pairs = list(zip(random_texts(12, 3, seed=1), random_texts(12, longest), strict=True))
    answerer = QuestionAnswerer(folder, top_k=5, max_answer_length=4, handle_impossible_answer=True, batch_tokens=100)
    several = 0
    for (question, context), ours in zip(pairs, answerer(pairs), strict=True):
        room = 48 - len(answerer.tokenizer.encode(question)) - 1
        several += len(answerer.tokenizer.tokenize(context)) > room
        theirs = expected_answers(
            folder, question, context, top_k=5, max_answer_length=4, size=48, stride=min(128, room // 2)
        )
        assert [(a.text, a.score, a.start, a.end) for a in ours] == theirs
    assert several == 0 if longest == 10 else several > 5
