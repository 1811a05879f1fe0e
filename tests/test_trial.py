"""The trial by itself: which numbers of rows, lengths, threads and addresses it tries."""

import os

import pytest
import torch

from minibert import trial
from minibert.kernels import PreparedLinear
from minibert.trial import TRIAL_OFFSETS, TRIAL_ROWS, at_offset, differ, numbers

from .machine import needs

X = numbers(128, 4)


def tried(row_counts=TRIAL_ROWS, **options):
    """(number of rows, threads, numbers beyond 64 bytes) of each run after the first, of all rows."""
    runs = []

    def run(x):
        runs.append((len(x), torch.get_num_threads(), x.data_ptr() % 64 // x.element_size()))
        return x

    assert differ(run, X, row_counts, "nothing", **options) is None
    return runs[1:]


def test_few_rows_are_tried_with_one_and_with_two_threads_and_every_number_up_to_17():
    runs = tried()
    assert [rows for rows, _, _ in runs] == [1, 1, 2, 2, 3, 3, *range(4, 18), 33, 64, 64, 128]
    assert [threads for _, threads, _ in runs] == [1, 2] * 12
    assert [offset for _, _, offset in runs] == [0, 0, 4, 4, 8, 8, 1, 1] * 3
    assert TRIAL_OFFSETS == (0, 4, 8, 1)
    assert [offset for _, _, offset in tried((1, 1, 2, 2), offsets=(0, 4))] == [0, 0, 4, 4]
    assert tried((1, 1, 2, 2), thread_counts=[1]) == [(1, 1, 0), (1, 1, 4), (2, 1, 8), (2, 1, 1)]  # after a fork


@pytest.mark.parametrize("count", sorted({*TRIAL_ROWS} - {128}))
def test_one_number_in_one_row_is_found(count):
    def run(x):
        x = x.clone()
        x[-1, -1] += float(len(x) == count)
        return x

    found = differ(run, X, TRIAL_ROWS, "a kernel")
    assert found.startswith(f"a kernel: {count} of 128 rows have other bits when they run alone (threads: ")


@needs("batch_invariant")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 9, 16, 17, 31, 33, 65])
@pytest.mark.parametrize("queries", ["all", "one"])
def test_attention_is_tried_over_few_and_over_many_tokens(monkeypatch, length, queries):
    right = trial.attention

    def faulty(q, k, v):
        count = length if queries == "all" else 1
        return right(q, k, v) + (len(q) == 1 and k.shape[2] == length and q.shape[2] == count) * torch.ones(())

    monkeypatch.setattr(trial, "attention", faulty)
    found = trial.attention_difference.__wrapped__(2, 16)
    assert found.startswith(f"attention with 2 heads of 16 over {length} tokens: 1 of 5 rows")


def test_a_linear_layer_is_tried_with_few_threads_and_with_many():
    runs = []

    class Recorder(PreparedLinear):
        label = "a recorder"
        is_available = staticmethod(lambda: True)

        def forward(self, x):
            runs.append((len(x), torch.get_num_threads()))
            return x

    assert trial.linear_difference.__wrapped__(Recorder, 5, 3) is None
    all_rows, few = (128, torch.get_num_threads()), [(rows, 1 + i % 2) for i, rows in enumerate(TRIAL_ROWS)]
    assert runs == [all_rows, *few, all_rows, (1, 8), (17, 8), (64, 8)]


@needs("onednn")
def test_the_shapes_of_the_model_are_tried(monkeypatch):
    asked = []
    monkeypatch.setattr(trial, "attention_difference", lambda *shape: asked.append(shape))
    monkeypatch.setattr(trial, "gelu_difference", lambda *shape: asked.append(shape))
    assert trial.find_difference(torch.nn.Identity(), 4, 32, 64) is None
    assert asked == [(4, 8), (64,)]
    plain = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2))
    assert trial.find_difference(plain, 4, 32, 64).startswith("1 runs on F.linear")


@pytest.mark.parametrize(
    ("few", "expected"),  # number of rows, threads, numbers beyond 64 bytes
    [([1, 2], [(1, 1, 0), (1, 2, 0), (2, 1, 4), (2, 2, 4)]), ([1], [(1, 1, 0), (1, 1, 4), (2, 1, 0), (2, 1, 4)])],
    ids=["one process", "a forked process"],
)
def test_attention_is_tried_in_one_row_and_in_two(monkeypatch, few, expected):
    runs, all_rows = [], (5, torch.get_num_threads(), 0)

    def record(q, k, v):
        runs.append((tuple(q.shape), tuple(k.shape), torch.get_num_threads(), q.data_ptr() % 64 // 4))
        return torch.zeros_like(q)

    monkeypatch.setattr(trial, "attention", record)
    before = trial.TRIAL_THREADS.copy()
    trial.TRIAL_THREADS[:] = few
    try:
        assert trial.attention_difference.__wrapped__(2, 16) is None
    finally:
        trial.TRIAL_THREADS[:] = before
    assert runs == [
        ((rows, 2, queries, 16), (rows, 2, length, 16), threads, offset)
        for length in (1, 2, 3, 4, 5, 7, 9, 16, 17, 31, 33, 65)
        for rows, threads, offset in (all_rows, *expected)
        for queries in (length, 1)
    ]


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork here")
def test_a_forked_process_tries_one_thread_alone():
    # There torch hangs with several threads, if it had several before the fork.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, bytes(trial.TRIAL_THREADS))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert list(os.read(reading, 10)) == [1]
    os.close(reading)


@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_a_copy_lies_where_it_should(offset):
    copy = at_offset(X[3:5], offset)
    assert copy.data_ptr() % 64 == 4 * offset
    assert torch.equal(copy, X[3:5])


def test_the_numbers_of_a_trial_are_the_same_each_time_and_differ_from_row_to_row():
    before = torch.get_rng_state()
    first, second = numbers(66, 768), numbers(66, 768)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(len(numbers(100, width).unique(dim=0)) == 100 for width in (46, 64, 768, 2047))
    assert first.min() < -2 < 2 < first.max()
