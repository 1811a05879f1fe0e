"""What the pipelines promise: order, laziness, batches by tokens, windows, and clear errors."""

import itertools
import pickle
import subprocess
import sys
from dataclasses import astuple, is_dataclass

import numpy as np
import pytest
import torch

import minibert
from minibert.pipeline import (
    Answer,
    Embedder,
    Entity,
    LabelledSpan,
    MaskFiller,
    QuestionAnswerer,
    TextClassifier,
    TokenClassifier,
    best_spans,
    group_words,
    label_scores,
    plan_batches,
    stitch,
)

from .machine import needs
from .models import model
from .pipelines import WORDS, random_texts, saved

TASKS = {
    TextClassifier: "DistilBertForSequenceClassification",
    TokenClassifier: "DistilBertForTokenClassification",
    MaskFiller: "DistilBertForMaskedLM",
    QuestionAnswerer: "DistilBertForQuestionAnswering",
    Embedder: "DistilBertModel",
}
LONG_TEXT = "".join(random_texts(40, 12))
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each task."""
    return {task: saved(tmp_path_factory.mktemp(head), head) for task, head in TASKS.items()}


def inputs_of(task, count=20):
    texts = random_texts(count)
    if task is MaskFiller:
        return [f"{text} [MASK]" for text in texts]
    return [("when was Ada born?", text) for text in texts] if task is QuestionAnswerer else texts


def flat(result):
    """A result as one list of values, for comparison to rounding."""
    if is_dataclass(result):
        result = astuple(result)
    if isinstance(result, torch.Tensor):
        result = result.tolist()
    if isinstance(result, dict):
        result = list(result.values())
    return [value for item in result for value in flat(item)] if isinstance(result, list | tuple) else [result]


@each_task
def test_results_come_in_order_and_do_not_depend_on_the_batch(checkpoints, task):
    texts = inputs_of(task)
    pipeline = task(checkpoints[task], batch_tokens=64)
    alone = [flat(*pipeline([text])) for text in texts]
    together = [flat(result) for result in pipeline(iter(texts))]
    assert len({str(result) for result in alone}) > len(texts) // 2
    assert together == [pytest.approx(values, abs=1e-5) for values in alone]
    if pipeline.model.batch_invariant:
        assert together == alone  # to the bit


@needs("batch_invariant")
@pytest.mark.parametrize("config", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}], ids=str)
def test_sigmoid_scores_do_not_depend_on_the_batch(tmp_path, config):
    texts = random_texts(70)
    classifier = TextClassifier(saved(tmp_path, TASKS[TextClassifier], **config))
    together = [result.scores for result in classifier(texts)]
    assert together == ([result.scores for text in texts for result in classifier([text])])


@each_task
def test_a_pickled_pipeline_gives_the_same_results(checkpoints, task):
    pipeline, texts = task(checkpoints[task]), inputs_of(task, 5)
    copy = pickle.loads(pickle.dumps(pipeline))
    expected = [flat(result) for result in pipeline(texts)]
    results = [flat(result) for result in copy(texts)]
    assert results == [pytest.approx(values, abs=1e-5) for values in expected]
    if pipeline.model.batch_invariant:  # elsewhere the last bits depend on where the copied weights lie
        assert results == expected


@each_task
def test_batches_keep_to_the_limit_of_tokens(checkpoints, task):
    pipeline, texts = task(checkpoints[task], batch_tokens=40), inputs_of(task)
    batches, forward = [], pipeline.forward
    pipeline.forward = lambda rows: batches.append([len(row) for row in rows]) or forward(rows)
    list(pipeline(texts))
    assert all(sum(lengths) <= 40 or len(lengths) == 1 for lengths in batches)
    assert all(sum(a) + b[0] > 40 for a, b in itertools.pairwise(batches))  # and no batch could take the next row
    assert sum(map(len, batches)) == len(texts)


def test_an_endless_stream_is_read_one_text_beyond_the_batch(checkpoints):
    read = []
    stream = ("ada was born" for _ in itertools.count() if not read.append(None))  # 5 tokens each
    results = TextClassifier(checkpoints[TextClassifier], batch_tokens=20)(stream)
    assert len(read) == 0
    next(results)
    assert len(read) == 4 + 1
    assert len(list(itertools.islice(results, 3))) == 3
    assert len(read) == 4 + 1
    next(results)
    assert len(read) == 8 + 1


def failing_stream():
    yield from ["ada", "was", "born"]
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("texts", "error", "says"),
    [
        (lambda: ["ada", "was", "born", "ada " * 50], ValueError, "text 4: it has 52 tokens"),
        (failing_stream, OSError, "the disk is gone"),
    ],
    ids=["a long text", "a stream"],
)
@pytest.mark.parametrize("batch_tokens", [3, 6, 1024])
def test_texts_before_an_error_have_results(checkpoints, texts, error, says, batch_tokens):
    results = TextClassifier(checkpoints[TextClassifier], batch_tokens=batch_tokens)(texts())
    assert len(list(itertools.islice(results, 3))) == 3
    with pytest.raises(error, match=says):
        next(results)


def test_no_texts_give_no_results(checkpoints):
    assert list(Embedder(checkpoints[Embedder])([])) == []


def test_gradients_are_off_inside_and_as_they_were_outside(checkpoints):
    vector = next(Embedder(checkpoints[Embedder])(["ada"]))
    assert not vector.requires_grad
    assert torch.is_grad_enabled()


def test_batches_are_planned_in_order():
    rows = [[0] * length for length in (9, 2, 3, 2, 30, 5, 5, 1)]
    planned = [[len(row) for row in batch] for batch in plan_batches(rows, 10)]
    assert planned == [[9], [2, 3, 2], [30], [5, 5], [1]]
    assert list(plan_batches([], 10)) == []


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        ({"num_labels": 2}, [[0.25, 0.75]]),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, [[0.5, 0.75]]),
        ({"num_labels": 2, "problem_type": "regression"}, [[0.0, 1.0986123]]),
        ({"num_labels": 1}, [[0.5], [0.75]]),
    ],
    ids=str,
)
def test_scores_are_probabilities_or_the_logits_themselves(config, scores):
    logits = torch.tensor([0.0, 1.0986123]).view(-1, config["num_labels"])  # ln 3
    assert torch.allclose(label_scores(minibert.DistilBertConfig(**config), logits), torch.tensor(scores))


def test_a_classification_has_the_scores_of_all_labels(checkpoints):
    (result,) = TextClassifier(checkpoints[TextClassifier])(["ada"])
    assert result.scores.keys() == {"LABEL_0", "LABEL_1"}
    assert result.scores[result.label] == result.score == max(result.scores.values())


@pytest.mark.parametrize("overlap", [0, 1, 4, 5])
def test_a_token_comes_from_the_window_that_shows_more_text_around_it(overlap):
    size, length = 11, 60
    starts = range(0, length - overlap, size - overlap)
    windows = [[(i, w) for i in range(start, min(start + size, length))] for w, start in enumerate(starts)]
    joined = stitch(windows, overlap)
    assert [i for i, _ in joined] == list(range(length))
    for i, chosen in joined:
        # The distance to the nearer edge of each window; an end of the text is not an edge.
        margins = {}
        for w, window in enumerate(windows):
            if window[0][0] <= i <= window[-1][0]:
                left = i - window[0][0] if w > 0 else length
                right = window[-1][0] - i if w < len(windows) - 1 else length
                margins[w] = min(left, right)
        assert margins[chosen] == max(margins.values())


def test_every_word_of_a_long_text_is_tagged_once(checkpoints):
    text = LONG_TEXT
    tagger = TokenClassifier(checkpoints[TokenClassifier], batch_tokens=100)
    assert len(tagger.encode(text).input_ids) > 3
    (entities,) = tagger([text])  # no label is O here, so they cover the text
    assert len(entities) > 20
    assert all(entity.text == text[entity.start : entity.end] for entity in entities)
    between = [0, *(index for entity in entities for index in (entity.start, entity.end)), len(text)]
    assert between == sorted(between)
    assert all(text[start:end].strip() == "" for start, end in zip(between[::2], between[1::2], strict=True))


def test_windows_go_from_left_to_right_whatever_side_the_tokenizer_truncates(tmp_path, checkpoints):
    folder = saved(tmp_path, TASKS[TokenClassifier])
    tokenizer = minibert.DistilBertTokenizer.from_pretrained(folder)
    tokenizer.truncation_side = tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    texts = [LONG_TEXT, "ada"]
    assert list(TokenClassifier(folder)(texts)) == list(TokenClassifier(checkpoints[TokenClassifier])(texts))


def test_words_of_one_entity_type_are_grouped_and_b_starts_a_new_group():
    text = "ann bo cy di ed flo gus"
    labels = ["I-PER", "I-PER", "B-PER", "O", "MISC", "MISC", "I-LOC"]
    spans = [(0, 3), (4, 6), (7, 9), (10, 12), (13, 15), (16, 19), (20, 23)]
    words = [LabelledSpan(label, i / 10, *span) for i, (label, span) in enumerate(zip(labels, spans, strict=True))]
    assert group_words(words, text) == [
        Entity("PER", 0.05, "ann bo", 0, 6),
        Entity("PER", 0.2, "cy", 7, 9),
        Entity("MISC", 0.45, "ed flo", 13, 19),
        Entity("LOC", 0.6, "gus", 20, 23),
    ]
    assert group_words([], "") == []


def test_each_mask_is_filled_by_itself_with_at_most_the_whole_vocabulary(checkpoints):
    filler = MaskFiller(checkpoints[MaskFiller], top_k=1000)
    (masks,) = filler(["[MASK] was born in [MASK]"])
    assert len(masks) == 2
    for ranked in masks:
        assert sorted(candidate.token for candidate in ranked) == sorted(WORDS)
        assert sum(candidate.score for candidate in ranked) == pytest.approx(1)
        assert ranked == sorted(ranked, key=lambda candidate: -candidate.score)
        assert all(WORDS[candidate.token_id] == candidate.token for candidate in ranked)


def test_spans_of_whole_words_come_best_first():
    # Tokens 1 and 2 are one word. Spans in tokens: 0-0 .06, 0-1 .24, 1-1 .12, 1-2 .15, 2-2 .05; 0-2, .3, is too long.
    probs = torch.tensor([[0.6, 0.1], [0.3, 0.4], [0.1, 0.5]])
    found = list(best_spans(probs, [(0, 3), (4, 9), (4, 9)], max_length=2))
    assert [span for span, _ in found] == [(0, 9), (4, 9), (0, 3)]
    assert [score for _, score in found] == pytest.approx([0.24, 0.15, 0.06])


def test_answers_are_whole_words_of_the_context_also_in_windows(checkpoints):
    context = "mathematicians Lovelace " * 40
    answerer = QuestionAnswerer(checkpoints[QuestionAnswerer], top_k=20)
    pair = ("who?", context)
    assert len(answerer.encode(pair).input_ids) > 3
    (answers,) = answerer([pair])
    assert len(answers) == len({(answer.start, answer.end) for answer in answers}) == 20
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
    for answer in answers:
        assert answer.text == context[answer.start : answer.end]
        assert set(answer.text.split()) <= {"mathematicians", "Lovelace"}


def test_no_answer_is_an_answer_with_handle_impossible_answer(checkpoints):
    pairs = [("who?", "Ada Lovelace was born in London"), ("who?", "")]
    without = list(QuestionAnswerer(checkpoints[QuestionAnswerer], top_k=100)(pairs))
    answerer = QuestionAnswerer(checkpoints[QuestionAnswerer], top_k=100, handle_impossible_answer=True)
    full, empty = answerer(pairs)
    assert [answer for answer in full if answer.text] == without[0]
    assert len(full) == len(without[0]) + 1
    assert without[1] == []
    assert empty == [Answer("", 1.0, 0, 0)]  # [CLS] has all of the probability


def test_the_score_of_no_answer_is_the_lowest_score_of_cls_in_any_window(checkpoints):
    answerer = QuestionAnswerer(checkpoints[QuestionAnswerer], top_k=10**6, handle_impossible_answer=True)
    pair = ("who?", LONG_TEXT)
    encoding = answerer.encode(pair)
    of_windows = []
    for i, ids in enumerate(encoding.input_ids):
        with torch.no_grad():
            output = answerer.model(torch.tensor([ids]))
        takes_part = [j for j, sequence_id in enumerate(encoding.sequence_ids(i)) if j == 0 or sequence_id == 1]
        start, end = (logits[0, takes_part].softmax(0)[0] for logits in (output.start_logits, output.end_logits))
        of_windows.append((start * end).item())
    assert len(of_windows) > 3
    (answers,) = answerer([pair])
    assert [answer.score for answer in answers if not answer.text] == [pytest.approx(min(of_windows), rel=1e-3)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_is_the_mean_of_the_hidden_states_or_the_one_of_cls(checkpoints, pooling):
    embedder = Embedder(checkpoints[Embedder], pooling=pooling)
    (vector,) = embedder(["Ada was born"])
    with torch.no_grad():
        states = embedder.model(**embedder.tokenizer(["Ada was born"], return_tensors="pt")).last_hidden_state[0]
    assert torch.allclose(vector, states.mean(0) if pooling == "mean" else states[0], atol=1e-6)


def test_a_long_text_is_cut_with_truncation_and_the_log_says_so(checkpoints, caplog):
    words = ["ada"] * 60
    (cut,) = Embedder(checkpoints[Embedder], truncation=True)([" ".join(words)])
    assert caplog.messages == ["cut from 62 to 48 tokens: 'ada ada ada ada ada ada ada ada ada ada ada ada ada ada ada"]
    (short,) = Embedder(checkpoints[Embedder])([" ".join(words[:46])])
    assert torch.equal(cut, short)
    (cut,) = Embedder(checkpoints[Embedder], truncation=True, max_length=10)([" ".join(words)])
    (short,) = Embedder(checkpoints[Embedder])([" ".join(words[:8])])
    assert torch.equal(cut, short)


@each_task
def test_without_arguments_the_limits_are_those_of_the_docstring(tmp_path, task):
    pipeline = task(saved(tmp_path, TASKS[task], positions=600))
    assert (pipeline.max_length, pipeline.batch_tokens) == (384 if task is QuestionAnswerer else 512, 1024)
    words = ["ada"] * 800
    if task is TokenClassifier:
        encoding = pipeline.encode(" ".join(words))
        starts = [encoding.word_ids(i)[1] for i in range(len(encoding.input_ids))]
        assert starts == [0, 510 - 128]
    if task is QuestionAnswerer:
        encoding = pipeline.encode(("who?", " ".join(words)))
        starts = [encoding.word_ids(i)[encoding.sequence_ids(i).index(1)] for i in range(len(encoding.input_ids))]
        window = 384 - 5  # [CLS] who ? [SEP] … [SEP]
        assert starts == [0, window - 128, 2 * (window - 128)]
        (answers,) = pipeline([("who?", " ".join(words[:40]))])
        (all_answers,) = task(tmp_path, top_k=10**6)([("who?", " ".join(words[:40]))])
        assert answers == all_answers[:1]
        assert {len(answer.text.split()) for answer in all_answers} == set(range(1, 16))
        assert len(all_answers) == sum(41 - length for length in range(1, 16))
    if task is MaskFiller:
        assert [len(ranked) for ranked in next(pipeline(["[MASK] and [MASK]"]))] == [5, 5]


def test_the_limit_of_the_tokenizer_holds_too(tmp_path):
    folder = saved(tmp_path, TASKS[TokenClassifier])
    tokenizer = minibert.DistilBertTokenizer.from_pretrained(folder)
    for of_tokenizer, of_pipeline in ((20, 20), (None, 48)):
        tokenizer.model_max_length = of_tokenizer
        tokenizer.save_pretrained(folder)
        assert TokenClassifier(folder).max_length == of_pipeline
    for given, overlap in ((3, 0), (9, 3), (10, 4), (512, 23)):
        assert TokenClassifier(folder, max_length=given).overlap == overlap


def test_the_smallest_limits(checkpoints):
    pipeline = Embedder(checkpoints[Embedder], max_length=3, batch_tokens=1)
    assert len(list(pipeline(["ada", "born"]))) == 2
    answerer = QuestionAnswerer(checkpoints[QuestionAnswerer], max_length=6, max_answer_length=1, top_k=9)
    assert answerer.encode(("who?", "ada was")).input_ids == [  # one token of the context in each window
        answerer.tokenizer.encode("who?", word) for word in ("ada", "was")
    ]
    (answers,) = answerer([("who?", "ada was")])
    assert {answer.text for answer in answers} == {"ada", "was"}
    with pytest.raises(ValueError, match="no room for the context in a window of 5 tokens"):
        list(QuestionAnswerer(checkpoints[QuestionAnswerer], max_length=5)([("who?", "ada")]))
    ((ranked,),) = MaskFiller(checkpoints[MaskFiller], top_k=1)(["[MASK]"])
    assert len(ranked) == 1


@pytest.mark.parametrize(
    ("task", "options", "texts", "says"),
    [
        (TextClassifier, {}, ["ada", "ada " * 50], "text 2: it has 52 tokens, more than 48: truncate or split it"),
        (TextClassifier, {}, ["ada", None], "text 2: expected a str, got NoneType"),
        (TextClassifier, {"batch_tokens": 0}, [], "batch_tokens must be at least 1, got 0"),
        (MaskFiller, {}, ["[MASK]", "ada"], r"text 2: it has no \[MASK\] to fill"),
        (MaskFiller, {"truncation": True}, ["ada " * 50 + "[MASK]"], r"text 1: it has no \[MASK\]"),
        (MaskFiller, {"top_k": 0}, [], "top_k must be at least 1, got 0"),
        (QuestionAnswerer, {"top_k": 0}, [], "top_k must be at least 1, got 0"),
        (QuestionAnswerer, {"max_answer_length": -1}, [], "max_answer_length must be at least 1, got -1"),
        (QuestionAnswerer, {}, ["ab"], r"text 1: expected a pair \(question, context\), got str 'ab'"),
        (QuestionAnswerer, {}, [{"question": "a", "context": "b"}], r"text 1: expected a pair .* got dict"),
        (QuestionAnswerer, {}, [("a",)], r"text 1: expected a pair .* got tuple"),
        (TextClassifier, {}, ["ada", "\u200b\ufeff"], "text 2: it has no tokens"),
        (TextClassifier, {}, ["ada", ["ada", "love"]], "text 2: expected a str, got list"),
        (TokenClassifier, {}, [("ada", "love")], "text 1: expected a str, got tuple"),
        (TokenClassifier, {}, [None], "text 1: expected a str, got NoneType"),
        (TextClassifier, {"max_length": 2}, [], "max_length must be at least 3, got 2"),
        (QuestionAnswerer, {}, [("ada " * 45, "ada")], "text 1: the question leaves no room .* window of 48 tokens"),
        (Embedder, {"pooling": "max"}, [], "pooling must be 'mean' or 'cls', got 'max'"),
    ],
)
def test_a_bad_input_is_refused_with_the_way_out(checkpoints, task, options, texts, says):
    with pytest.raises(ValueError, match=says):
        list(task(checkpoints[task], **options)(texts))


def test_one_str_in_place_of_a_list_is_refused_at_once(checkpoints):
    with pytest.raises(TypeError, match=r"got one str: pass \[text\]"):
        TextClassifier(checkpoints[TextClassifier])("ada")


COLUMNS = {
    TextClassifier: lambda results: {"label": [r.label for r in results], "score": [r.score for r in results]},
    TokenClassifier: lambda results: {"entities": [[vars(entity) for entity in r] for r in results]},
    MaskFiller: lambda results: {"masks": [[[vars(best) for best in mask] for mask in r] for r in results]},
    QuestionAnswerer: lambda results: {"answers": [[vars(answer) for answer in r] for r in results]},
    Embedder: lambda results: {"embedding": [r.tolist() for r in results]},
}


def to_batch(task, inputs, make=list):
    names = ("question", "context") if task is QuestionAnswerer else ("text",)
    columns = zip(*inputs, strict=True) if task is QuestionAnswerer else [inputs]
    return {name: make(column) for name, column in zip(names, columns, strict=True)}


class Frame:
    """Like a data frame: `dict` takes it, but it is no Mapping, and iterates over the names of its columns."""

    def __init__(self, columns):
        self.columns = columns

    def keys(self):
        return self.columns.keys()

    def __getitem__(self, name):
        return self.columns[name]

    def __iter__(self):
        return iter(self.columns)


@each_task
@pytest.mark.parametrize("make", [list, lambda column: np.array(column, object), np.array, tuple])
def test_a_mapping_of_columns_comes_back_with_the_columns_of_results(checkpoints, task, make):
    pipeline, inputs = task(checkpoints[task]), inputs_of(task)
    batch = to_batch(task, inputs, make) | {"id": range(len(inputs))}
    given = dict(batch)
    columns = pipeline(batch)
    assert batch == given
    assert all(columns[name] is column for name, column in given.items())
    expected = COLUMNS[task](list(pipeline(inputs)))
    assert list(columns) == [*given, *expected]
    for name, column in expected.items():
        found = [vector.tolist() for vector in columns[name]] if task is Embedder else columns[name]
        assert found == column  # to the bit: these are the same batches


def test_a_series_of_texts_has_keys_but_is_no_mapping_of_columns(checkpoints):
    class Series(list):
        def keys(self):
            return range(len(self))

    classifier = TextClassifier(checkpoints[TextClassifier])
    assert list(classifier(Series(["ada", "love"]))) == list(classifier(["ada", "love"]))


def test_an_empty_mapping_of_columns_gets_empty_columns(checkpoints):
    assert TextClassifier(checkpoints[TextClassifier])({"text": []}) == {"text": [], "label": [], "score": []}


def test_the_columns_of_texts_have_the_names_that_the_pipeline_is_told(checkpoints):
    frame = Frame({"body": ["ada"], "q": ["who?"]})
    columns = TextClassifier(checkpoints[TextClassifier], text_column="body")(frame)
    assert list(columns) == ["body", "q", "label", "score"]
    answerer = QuestionAnswerer(checkpoints[QuestionAnswerer], question_column="q", text_column="body")
    assert answerer(frame)["answers"] == [[vars(answer) for answer in r] for r in answerer([("who?", "ada")])]


@pytest.mark.parametrize(
    ("task", "batch", "error", "says"),
    [
        (Embedder, {"body": ["ada"], "id": [1]}, ValueError, "there is no column 'text', only 'body', 'id'"),
        (QuestionAnswerer, {"context": ["ada"]}, ValueError, "there is no column 'question', only 'context'"),
        (QuestionAnswerer, {"question": ["who?"], "context": []}, ValueError, "shorter"),
        (Embedder, {"text": "ada"}, TypeError, "column 'text' is one str: use map_batches, or map with batched=True"),
        (TextClassifier, {"text": ["ada"], "label": [1]}, ValueError, "have a column 'label', and the input has one"),
        (TextClassifier, {"text": ["ada", None]}, ValueError, "^text 2: .* got NoneType .in the batch .* with 'ada'.$"),
    ],
)
def test_a_mapping_that_cannot_be_a_batch_is_refused(checkpoints, task, batch, error, says):
    with pytest.raises(error, match=says):
        task(checkpoints[task])(batch)


def test_a_vocabulary_without_a_mask_is_refused(tmp_path):
    folder = saved(tmp_path, "DistilBertForMaskedLM")
    vocab = {"[MUSK]" if word == "[MASK]" else word: i for i, word in enumerate(WORDS)}
    minibert.DistilBertTokenizer(vocab, model_max_length=48).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"the vocabulary has no \[MASK\]"):
        MaskFiller(folder)


def test_a_checkpoint_with_another_head_is_refused(checkpoints):
    with pytest.raises(ValueError, match=r"unexpected .*qa_outputs"):
        TextClassifier(checkpoints[QuestionAnswerer])


@pytest.mark.parametrize("n_rows", [len(WORDS) + 24, len(WORDS) - 3])
def test_only_tokens_of_the_vocabulary_and_of_the_model_fill_a_mask(tmp_path, n_rows):
    folder = saved(tmp_path, "DistilBertForMaskedLM")
    torch.manual_seed(0)
    model("DistilBertForMaskedLM", vocab_size=n_rows, max_position_embeddings=48).save_pretrained(folder)
    filler = MaskFiller(folder, top_k=1000)
    ((ranked,),) = filler(["[MASK] was born"])
    with torch.no_grad():
        logits = filler.model(**filler.tokenizer(["[MASK] was born"], return_tensors="pt")).logits[0, 1]
    expected = dict(enumerate(logits.softmax(-1).tolist()))
    assert [candidate.token for candidate in ranked] == [WORDS[candidate.token_id] for candidate in ranked]
    assert len(ranked) == min(n_rows, len(WORDS))
    for candidate in ranked:
        assert candidate.score == pytest.approx(expected[candidate.token_id], abs=1e-6)


def test_classes_of_the_same_name_are_refused(tmp_path):
    folder = saved(tmp_path, "DistilBertForSequenceClassification", id2label={0: "GOOD", 1: "BAD", 2: "GOOD"})
    with pytest.raises(ValueError, match=r"2 classes are named 'GOOD': rename them in config\.json"):
        TextClassifier(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned")
def test_a_forked_process_with_one_thread_does_not_hang(checkpoints):
    program = f"""
import os, torch
from minibert.pipeline import TextClassifier
classify = TextClassifier({str(checkpoints[TextClassifier])!r})
torch.set_num_threads(2)
torch.randn(500, 500) @ torch.randn(500, 500)  # from here on, a second thread hangs in a child
if os.fork() == 0:
    torch.set_num_threads(1)
    print(classify.model.batch_invariant, next(classify(["ada"])).label, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[1:] == [next(TextClassifier(checkpoints[TextClassifier])(["ada"])).label], done.stderr
