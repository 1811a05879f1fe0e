"""What the decorators of the data classes promise: what cannot be changed, what is equal to what."""

import inspect
from dataclasses import FrozenInstanceError, fields

import pytest

import minibert
from minibert import pipeline
from minibert.study.exercises import Exercise
from minibert.tokenizer.wordpiece import AddedToken

FROZEN = [pipeline.Classification, pipeline.Entity, pipeline.Candidate, pipeline.Answer, Exercise, AddedToken]
PIPELINES = [
    pipeline.TextClassifier,
    pipeline.TokenClassifier,
    pipeline.MaskFiller,
    pipeline.QuestionAnswerer,
    pipeline.Embedder,
]


@pytest.mark.parametrize("kind", FROZEN)
def test_a_result_cannot_be_changed_and_equals_another_of_the_same_values(kind):
    names = [field.name for field in fields(kind)]
    result, same = kind(*names), kind(*names)
    assert result == same
    assert hash(result) == hash(same)
    for name in names:
        with pytest.raises(FrozenInstanceError):
            setattr(result, name, None)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_takes_its_options_by_name_and_equals_only_itself(kind):
    parameters = inspect.signature(kind).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["checkpoint"]
    first, second = object.__new__(kind), object.__new__(kind)
    for each in (first, second):
        vars(each).update({field.name: None for field in fields(kind)})
    assert first != second
    assert len({first, second, first}) == 2


def test_a_tokenizer_equals_only_itself():
    first, second = (minibert.DistilBertTokenizer.from_pretrained(minibert.DEMO) for _ in range(2))
    assert first != second
    assert len({first, second, first}) == 2
