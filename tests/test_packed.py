"""The fast path: what the model computes at real tokens, without padding, with the same bits in any batch."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import minibert
from minibert import (
    DistilBertForSequenceClassification,
    DistilBertModel,
    DistilBertTokenizer,
    kernels,
    pack,
    packed,
    trial,
)
from minibert.kernels import Int8Linear, MklLinear, OneDnnLinear
from minibert.model import MultiHeadSelfAttention

from .machine import needs
from .models import BASE_SIZES, HEADS, SIZES, batch, model, tensors

each_head = pytest.mark.parametrize("head", HEADS)
each_kernel = pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs("int8"))], ids=["float32", "int8"])
ON_CLS = ("DistilBertForSequenceClassification", "DistilBertForMultipleChoice")
LONG = {"max_position_embeddings": 512, "initializer_range": 0.02}
BASE_SHAPE = BASE_SIZES | {"dim": 768, "n_heads": 12, "n_layers": 6, "hidden_dim": 3072}


def real_tokens(inputs):
    """(B, S) bools; the rows of multiple choice one after the other."""
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    return (torch.ones_like(ids) if mask is None else mask).bool().flatten(0, -2)


def is_by_token(name, tensor):
    """Whether an output has a value for each token: all but the logits of a head on [CLS], (B, L) or (B, C)."""
    return name != "logits" or tensor.ndim == 3


def largest_difference(first, second, real):
    """Over all outputs, at real tokens where an output has a value for each token."""
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    worst = 0.0
    for name, tensor in first.items():
        assert tensor.shape == second[name].shape
        assert tensor.dtype == second[name].dtype
        at = real if is_by_token(name, tensor) else ...
        worst = max(worst, (tensor[at] - second[name][at]).abs().max().item())
    return worst


def random_batch(head, rows, longest, kind="ragged", vocab_size=50):
    """Rows of random lengths, some with holes, ids as the head takes them."""
    inputs = batch(head, shape=(rows, longest), vocab_size=vocab_size)
    lengths = torch.randint(1, longest + 1, (*inputs["input_ids"].shape[:-1], 1))
    mask = torch.arange(longest) < lengths
    if kind == "holes":
        mask &= (torch.rand(mask.shape) < 0.7) | (torch.arange(longest) == 0)
    return inputs | {"attention_mask": mask.long()}


@each_head
@pytest.mark.parametrize("kind", ["ragged", "left", "holes", "ones", "none"])
def test_at_real_tokens_it_is_the_model(head, kind):
    if kind == "left" and head in ON_CLS:
        pytest.skip("refused, see below")
    for shape in ((3, 7), (1, 7), (3, 1), (1, 1)):
        inputs = batch(head, kind, shape)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-5)):
            each = model(head).to(dtype)
            fast, real = pack(each), real_tokens(inputs)
            assert largest_difference(each(**inputs), fast(**inputs), real) < tolerance
            states = {"output_hidden_states": True}
            assert largest_difference(each(**inputs, **states), fast(**inputs, **states), real) < tolerance


@each_head
@pytest.mark.parametrize("kind", ["ragged", "holes"])
def test_random_lengths_up_to_512_stay_within_rounding(head, kind):
    each = model(head, **LONG, dim=64, hidden_dim=128)
    for rows, longest in ((1, 512), (7, 300), (64, 40)):
        inputs = random_batch(head, rows, longest, kind)
        with torch.no_grad():
            assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-5
    exact = each.double()
    with torch.no_grad():
        assert largest_difference(exact(**inputs), pack(exact)(**inputs), real_tokens(inputs)) < 1e-12


@each_head
def test_the_base_shape_stays_within_rounding(head):
    each = model(head, **BASE_SHAPE)
    batches = [random_batch(head, rows, longest, "holes", vocab_size=1000) for rows, longest in ((1, 512), (64, 20))]
    few = random_batch(head, 3, 30, "holes", vocab_size=1000)
    with torch.no_grad():
        for inputs in batches:
            assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-5
        each.double()
        assert largest_difference(each(**few), pack(each)(**few), real_tokens(few)) < 1e-12


@each_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_exact_result(head, dtype):
    each, inputs = model(head, initializer_range=0.02).to(dtype), batch(head)
    exact = copy.deepcopy(each).double()
    real, expected = real_tokens(inputs), exact(**inputs)
    of_model, of_packed = (tensors(output) for output in (each(**inputs), pack(each)(**inputs)))
    for name, tensor in tensors(expected).items():
        at = real if is_by_token(name, tensor) else ...
        worst = (of_model[name][at] - tensor[at]).abs().max()
        assert (of_packed[name][at] - tensor[at]).abs().max() <= 2 * worst + 2e-3, name


@each_head
def test_padded_slots_hold_zeros_or_what_no_argmax_chooses(head):
    each = model(head)
    inputs = batch(head)
    padded = ~real_tokens(inputs)
    for name, tensor in tensors(pack(each)(**inputs, output_hidden_states=True)).items():
        if name.endswith("_logits"):
            assert (tensor[padded] == torch.finfo(torch.float32).min).all()
        elif tensor.ndim == 3:
            assert (tensor[padded] == 0).all()


@each_head
@pytest.mark.parametrize("kind", ["ragged", "holes", "none"])
def test_position_ids_and_word_embeddings_are_the_models(head, kind):
    each, inputs = model(head).double(), batch(head, kind)
    position_ids = torch.randint(0, 16, inputs["input_ids"].shape)
    embeds = torch.randn(*position_ids.shape, 32, dtype=torch.float64)
    for given in ({"position_ids": position_ids}, {"inputs_embeds": embeds, "position_ids": position_ids}):
        arguments = {**inputs, **given}
        if "inputs_embeds" in given:
            del arguments["input_ids"]
        assert largest_difference(each(**arguments), pack(each)(**arguments), real_tokens(inputs)) < 1e-12
    before = embeds.clone()
    pack(each)(**arguments)
    assert torch.equal(embeds, before)


def test_one_row_of_position_ids_serves_every_row():
    each, inputs = model().double(), batch()
    inputs |= {"position_ids": torch.arange(7).flip(0)[None], "token_type_ids": torch.ones(3, 7, dtype=torch.long)}
    assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-12


ODD_SIZES = {
    "one head": {"n_heads": 1, "dim": 64},
    "odd": {"activation": "relu", "n_heads": 3, "dim": 15, "hidden_dim": 25},
}
ODD_SIZES |= {"heads of 8": {"n_heads": 4, "dim": 32}, "one odd head": {"n_heads": 1, "dim": 21, "hidden_dim": 65}}


@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_relu_and_one_head_and_odd_sizes_work_too(sizes):
    each = model(**sizes)
    fast, inputs = pack(each), batch()
    assert largest_difference(each(**inputs), fast(**inputs), real_tokens(inputs)) < 1e-5


@needs("batch_invariant")
@pytest.mark.parametrize("head", ["DistilBertForSequenceClassification", "DistilBertForTokenClassification"])
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_odd_sizes_give_the_same_bits_too(head, sizes):
    fast = pack(model(head, **LONG | sizes), batch_invariant=True)
    for rows, longest in ((40, 33), (5, 140)):
        inputs = random_batch(head, rows, longest)
        assert_same_bits_alone(fast, inputs, tensors(fast(**inputs)), range(rows))


def attention_by_rows(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What torch documents of its variable-length attention, which runs on GPUs alone: (T, H, E) -> (T, H, E)."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    contexts = []
    for i in range(len(cu_seq_k) - 1):
        q, (k, v) = query[cu_seq_q[i] : cu_seq_q[i + 1]], (x[cu_seq_k[i] : cu_seq_k[i + 1]] for x in (key, value))
        probs = (torch.einsum("qhe,khe->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        contexts.append(torch.einsum("hqk,khe->qhe", probs, v))
    return torch.cat(contexts)


@each_head
def test_the_attention_of_gpus_is_called_as_torch_documents_it(head, monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "varlen_attention", lambda q: calls.append(q) or attention_by_rows)
    each = model(head).double()
    for inputs in (random_batch(head, 7, 15, "holes"), batch(head, "ones"), batch(head, "ones", (3, 1))):
        assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-12
    assert len(calls) == 3 * SIZES["n_layers"]


def test_the_attention_of_gpus_stays_there_and_takes_these_arguments():
    assert kernels.varlen_attention(torch.zeros(3, 2, 8, dtype=torch.bfloat16)) is None
    varlen = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    ours = inspect.signature(attention_by_rows).parameters
    assert list(inspect.signature(varlen).parameters)[: len(ours)] == list(ours)


def one_row(inputs, i, spare):
    """Row i alone, and `spare` slots of padding."""
    mask = inputs["attention_mask"][i : i + 1]
    length = int(mask.reshape(-1, mask.shape[-1]).any(0).nonzero().max()) + 1 + spare
    return {name: tensor[i : i + 1, ..., :length] for name, tensor in inputs.items()}


def assert_same_bits_alone(fast, inputs, together, rows, spare=0):
    """Whether rows that run alone, and with `spare` slots of padding, have what they have in the batch."""
    for i in rows:
        row = one_row(inputs, i, spare)
        at = row["attention_mask"].bool()[0]
        for name, tensor in tensors(fast(**row)).items():
            if is_by_token(name, tensor):
                assert torch.equal(tensor[0, at], together[name][i, : len(at)][at]), name
            else:
                assert torch.equal(tensor[0], together[name][i]), name


@needs("batch_invariant")
@each_kernel
@each_head
@pytest.mark.parametrize("ffn_rows", [1024, 7])
def test_a_text_gets_the_same_bits_alone_padded_in_any_batch_and_order(head, int8, ffn_rows, monkeypatch):
    monkeypatch.setattr(packed, "FFN_ROWS", ffn_rows)
    fast = pack(model(head, **LONG, dim=64, hidden_dim=192), int8=int8, batch_invariant=True)
    assert fast.batch_invariant
    for rows, longest in ((2, 9), (33, 21), (9, 200), (30, 90)):  # the last has more than 1,024 tokens
        inputs = random_batch(head, rows, longest, "holes" if rows == 9 else "ragged")
        order = torch.randperm(rows)
        together = tensors(fast(**inputs))
        shuffled = tensors(fast(**{name: tensor[order] for name, tensor in inputs.items()}))
        assert all(torch.equal(shuffled[name], tensor[order]) for name, tensor in together.items())
        for spare in (0, 3):
            assert_same_bits_alone(fast, inputs, together, range(0, rows, 1 + rows // 5), spare)


@needs("batch_invariant")
@each_kernel
@each_head
def test_threads_do_not_change_the_bits(head, int8):
    fast = pack(model(head, **LONG, dim=64, hidden_dim=192), int8=int8, batch_invariant=True)
    inputs, before = random_batch(head, 9, 200), torch.get_num_threads()
    try:
        results = [tensors(fast(**inputs)) for n in (1, 2, 3) if torch.set_num_threads(n) is None]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result[name], tensor) for result in results for name, tensor in results[0].items())


@needs("base_invariant")
@each_kernel
@each_head
def test_the_base_shape_gives_the_same_bits_alone_and_in_a_batch(head, int8):
    fast = pack(model(head, **BASE_SHAPE | {"n_layers": 2}), int8=int8, batch_invariant=True)
    inputs = random_batch(head, 16, 150, vocab_size=1000)
    assert_same_bits_alone(fast, inputs, tensors(fast(**inputs)), range(16))


def test_batch_invariance_is_claimed_only_where_it_holds(monkeypatch):
    for each in (model().double(), model().to(torch.bfloat16)):
        assert not pack(each).batch_invariant
        with pytest.raises(ValueError, match=r"PackedModel\(.* on this machine: there is no such kernel for torch\."):
            pack(each, batch_invariant=True)
    with monkeypatch.context() as without_onednn:
        without_onednn.setattr(torch.backends.mkldnn, "enabled", False)
        with pytest.raises(ValueError, match=r"F\.linear|oneDNN is switched off|run alone"):
            pack(model(), batch_invariant=True)
    for kernel in (MklLinear, OneDnnLinear):
        monkeypatch.setattr(kernel, "is_available", staticmethod(lambda: False))
    assert "F.linear" in repr(pack(model()))
    with pytest.raises(ValueError, match=r"cannot give the same bits in every batch .*q_lin runs on F\.linear"):
        pack(model(), batch_invariant=True)


@pytest.fixture
def fresh_trial():
    """A process tries each kernel once: forget what was found, before a fault is planted and after."""
    trials = (trial.linear_difference, trial.attention_difference, trial.gelu_difference)
    for each in trials:
        each.cache_clear()
    yield
    for each in trials:
        each.cache_clear()


def with_fault(function, is_faulty):
    """A function that adds one bit's worth to its result where `is_faulty(arguments)`."""

    def faulty(*arguments):
        result = function(*arguments)
        return result.nextafter(torch.tensor(9.0)) if is_faulty(*arguments) else result

    return faulty


@needs("batch_invariant")
@pytest.mark.usefixtures("fresh_trial")
@pytest.mark.parametrize(
    ("where", "name", "is_faulty", "says"),
    [
        (OneDnnLinear, "forward", lambda self, x: len(x) == 7, "prepacked for oneDNN, .* 7 of 128 rows"),
        (OneDnnLinear, "forward", lambda self, x: x.data_ptr() % 64 == 32, "rows have other bits"),
        (OneDnnLinear, "forward", lambda self, x: torch.get_num_threads() == 2, "rows have other bits when they run"),
        (OneDnnLinear, "forward", lambda self, x: torch.get_num_threads() == 8, r"run alone \(threads: 8\)"),
        (OneDnnLinear, "forward", lambda self, x: len(x) > 66, "rows have other bits when they run alone"),
        (
            trial,
            "attention",
            lambda q, k, v: q.shape[2] == 1 and len(q) == 1,
            "attention with 4 heads of 8 over 1 token",
        ),
        (
            trial,
            "attention",
            lambda q, k, v: k.shape[2] == 31 and len(q) < 3,
            "attention with 4 heads of 8 over 31 tok",
        ),
        (trial.InPlaceGELU, "forward", lambda self, x: len(x) == 33, "GELU of 64 numbers: 33 of 128 rows"),
    ],
    ids=["7 rows", "an address", "2 threads", "8 threads", "many rows", "one query", "31 tokens", "GELU"],
)
def test_a_kernel_that_breaks_its_promise_is_found_out(monkeypatch, where, name, is_faulty, says):
    monkeypatch.setattr(MklLinear, "is_available", staticmethod(lambda: False))
    assert pack(model()).batch_invariant
    for each in (trial.linear_difference, trial.attention_difference, trial.gelu_difference):
        each.cache_clear()
    monkeypatch.setattr(where, name, with_fault(getattr(where, name), is_faulty))
    assert not pack(model()).batch_invariant
    with pytest.raises(ValueError, match=says):
        pack(model(), batch_invariant=True)


@needs("batch_invariant")
@pytest.mark.usefixtures("fresh_trial")
def test_the_first_kernel_that_passes_the_trial_is_taken(monkeypatch):
    class First(OneDnnLinear):
        label = "the first kernel"

    class Faulty(OneDnnLinear):
        label = "a faulty kernel"
        forward = with_fault(OneDnnLinear.forward, lambda self, x: len(x) == 3)

    monkeypatch.setattr(trial, "MklLinear", First)
    assert "the first kernel" in repr(pack(model()))
    monkeypatch.setattr(trial, "MklLinear", Faulty)
    assert "weights prepacked for oneDNN" in repr(pack(model()))
    monkeypatch.setattr(trial, "OneDnnLinear", Faulty)
    assert "a faulty kernel" in repr(pack(model()))  # still faster than F.linear
    assert not pack(model()).batch_invariant


@pytest.mark.usefixtures("fresh_trial")
def test_the_kernel_that_is_taken_in_any_case_is_tried_only_for_who_asks(monkeypatch):
    monkeypatch.setattr(MklLinear, "is_available", staticmethod(lambda: False))
    fast = pack(model())
    assert trial.linear_difference.cache_info().misses == 0
    if fast.batch_invariant:
        assert trial.linear_difference.cache_info().misses > 0


@needs("mkl")
def test_a_layout_made_while_torch_has_many_threads_is_the_same():
    linear, x, before = nn.Linear(64, 48), torch.randn(33, 64), torch.get_num_threads()
    torch.set_num_threads(16)
    try:
        many = MklLinear.of(linear).requires_grad_(False)
        assert torch.get_num_threads() == 16
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        assert torch.equal(many(x), MklLinear.of(linear)(x))
        assert torch.allclose(many(x), linear(x), atol=1e-5)


@each_kernel
@each_head
def test_pickles_and_deep_copies_give_the_same_and_share_nothing(head, int8):
    fast, inputs = pack(model(head), int8=int8), batch(head)
    expected = tensors(fast(**inputs))
    for other in (pickle.loads(pickle.dumps(fast)), copy.deepcopy(fast)):
        assert repr(other) == repr(fast)
        for name, tensor in tensors(other(**inputs)).items():
            if fast.batch_invariant:  # elsewhere the last bits depend on where the copied weights lie
                assert torch.equal(tensor, expected[name])
            assert torch.allclose(tensor, expected[name], atol=1e-5)
        assert other.encoder.embeddings.LayerNorm.weight is not fast.encoder.embeddings.LayerNorm.weight


@needs("int8", "batch_invariant")
def test_a_pickle_is_refused_where_its_kernels_are_not(monkeypatch):
    int8, invariant = pickle.dumps(pack(model(), int8=True)), pickle.dumps(pack(model(), batch_invariant=True))
    monkeypatch.setattr(Int8Linear, "is_available", staticmethod(lambda: False))
    with pytest.raises(ValueError, match="int8 needs float32 on an x86 CPU where oneDNN"):
        pickle.loads(int8)
    for kernel in (MklLinear, OneDnnLinear):
        monkeypatch.setattr(kernel, "is_available", staticmethod(lambda: False))
    with pytest.raises(ValueError, match="cannot give the same bits in every batch"):
        pickle.loads(invariant)


def test_the_tanh_approximation_of_gelu_is_kept():
    each, inputs = model().double(), batch()
    exact = pack(each)(**inputs)
    for block in each.transformer.layer:
        block.ffn.activation = nn.GELU("tanh").eval()
    assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-12
    assert largest_difference(exact, pack(each)(**inputs), real_tokens(inputs)) > 1e-5


def test_parameters_are_shared_and_the_model_is_left_as_it_was():
    each = model()
    fast = pack(each)
    assert fast.encoder.embeddings.word_embeddings.weight is each.embeddings.word_embeddings.weight
    assert type(each.transformer.layer[0].ffn.lin1) is nn.Linear
    assert type(each.transformer.layer[0].ffn.activation) is nn.GELU
    assert type(fast.encoder.transformer.layer[0].ffn.activation) is kernels.InPlaceGELU
    assert (fast.config, fast.device, fast.dtype) == (each.config, each.device, each.dtype)


@needs("batch_invariant", "int8")
def test_print_shows_the_kernel():
    float32 = r"PackedModel\(DistilBertModel, torch.float32, cpu, (weights prepacked for (MKL|oneDNN))\)"
    assert (kernel := re.fullmatch(float32, repr(pack(model())))[1])
    assert re.search(r"cpu, int8(, weights within 63)?\)", repr(pack(model(), int8=True)))
    assert f", the head: {kernel})" in repr(pack(model("DistilBertForMaskedLM"), int8=True))
    assert repr(pack(model().double())) == "PackedModel(DistilBertModel, torch.float64, cpu, F.linear)"


@needs("int8")
@pytest.mark.parametrize("size", [1, 2, 3, 31, 64, 100])
def test_int8_products_are_exact_up_to_the_limit(size):
    # The largest numbers there are: where two products of 16 bits overflow, they are wrong by thousands.
    limit = kernels.int8_limit()
    weight = torch.full((5, size), limit, dtype=torch.int8)
    weight[1::2] *= -1
    x = torch.full((3, size), 255, dtype=torch.uint8)
    packed_weight = torch.ops.onednn.qlinear_prepack(weight, None)
    product = kernels.int8_product(x, 128, packed_weight, torch.ones(5), torch.zeros(5, dtype=torch.long))
    assert torch.equal(product.long(), (x.long() - 128) @ weight.long().T)


@needs("int8")
def test_int8_is_refused_where_its_products_are_not_exact(monkeypatch):
    exact = kernels.int8_product
    saturating = lambda *arguments: exact(*arguments).clamp(-(2**15), 2**15 - 1)  # noqa: E731  # as 16 bits would
    monkeypatch.setattr(kernels, "int8_product", saturating)
    kernels.int8_limit.cache_clear()
    try:
        with pytest.raises(ValueError, match="int8 needs float32 on an x86 CPU where oneDNN's int8 products are exact"):
            pack(model(), int8=True)
    finally:
        kernels.int8_limit.cache_clear()


@needs("int8")
def test_int8_keeps_the_demos_labels_and_its_logits_within_a_bound():
    classifier = DistilBertForSequenceClassification.from_pretrained(minibert.DEMO)
    inputs = DistilBertTokenizer.from_pretrained(minibert.DEMO)(SENTENCES, padding=True, return_tensors="pt")
    exact, rounded = pack(classifier)(**inputs).logits, pack(classifier, int8=True)(**inputs).logits
    assert len(set(exact.argmax(1).tolist())) == 2
    assert torch.equal(rounded.argmax(1), exact.argmax(1))
    assert 0 < (rounded - exact).abs().max() < 0.1


SENTENCES = [
    "Today is a nice day!",
    "But what about tomorrow? Im not sure.",
    "A warm, funny and moving film.",
    "This is the worst movie I have ever seen.",
    "The plot is thin, but the actors are wonderful.",
    "I was bored after ten minutes and left.",
    "It is not bad at all.",
    "Nothing here is new, and none of it is good.",
    "What a beautiful story, told with love.",
    "The food was cold and the waiter was rude.",
    "I would not recommend this to anyone.",
    "An excellent book that I will read again.",
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": torch.tensor([0, 1, 0])}, "no loss and no attentions"),
        ({"start_positions": torch.tensor([0, 1, 0])}, "no loss and no attentions"),
        ({"return_dict": False}, "gives no tuple: leave out return_dict=False"),
        ({"output_attentions": True}, "no loss and no attentions"),
        ({"attention_mask": torch.ones(3, 1, 7, 7, dtype=torch.bool)}, "for a 4-D pattern use the model itself"),
        ({"attention_mask": batch(mask="left")["attention_mask"]}, "row 0 begins with padding"),
        ({"attention_mask": torch.tensor([[1] * 7, [0] + [1] * 6, [1] * 7])}, "row 1 begins with padding"),
        ({"input_ids": torch.tensor([[50]]), "attention_mask": None}, "input_ids contain 50 but vocab_size is 50"),
        ({"input_ids": None}, "pass either input_ids or inputs_embeds"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 7, 32, requires_grad=True)}, "records no gradient"),
    ],
)
def test_what_it_cannot_give_is_refused(arguments, says):
    head = "DistilBertForSequenceClassification"
    with pytest.raises(ValueError, match=says):
        pack(model(head))(**batch(head) | arguments)


def row_of(output, i, length):
    """Row i of an output of a padded batch, what has an axis of tokens cut to its length, by name."""
    return {name: x[i, :length] if is_by_token(name, x) else x[i] for name, x in tensors(output).items()}


@each_head
def test_rows_are_run_as_they_are(head):
    each = model(head, **LONG)
    fast = pack(each)
    inputs = random_batch("DistilBertModel", 30, 40)
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [ids[:length] for ids, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
    if head == "DistilBertForMultipleChoice":
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}  # one choice each
    padded = fast(**inputs)
    results = fast.rows(rows)
    assert len(results) == 30
    for i, (result, length) in enumerate(zip(results, lengths, strict=True)):
        assert type(result) is type(padded)
        expected = row_of(padded, i, length)
        assert tensors(result).keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(result).items())


@pytest.mark.parametrize("head", [head for head in HEADS if head not in ON_CLS])
def test_rows_give_the_results_at_chosen_tokens(head):
    fast = pack(model(head))
    rows, at = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 1, 2]], [[2, 0], [], [3], [1]]
    for everywhere, chosen, places in zip(fast.rows(rows), fast.rows(rows, at), at, strict=True):
        for name, tensor in tensors(everywhere).items():
            torch.testing.assert_close(tensors(chosen)[name], tensor[places], atol=1e-5, rtol=0)


def test_rows_give_no_results_where_no_tokens_are_chosen():
    first, second = pack(model()).rows([[1, 2, 3], [4]], [[], []])
    assert first.last_hidden_state.shape == second.last_hidden_state.shape == (0, 32)


def sizes_in_the_ffn(fast):
    """A list that gets the number of tokens of each call of a feed-forward layer."""
    sizes = []
    for block in fast.encoder.transformer.layer:
        block.ffn.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    return sizes


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_the_last_layer_of_a_head_on_cls_runs_for_one_token_of_each_row(head, n_layers):
    fast = pack(model(head, n_layers=n_layers))
    sizes = sizes_in_the_ffn(fast)
    of_last = 2 if head in ON_CLS else 5
    fast.rows([[1, 2, 3], [4, 5]])
    assert sizes == [5] * (n_layers - 1) + [of_last]
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    if head == "DistilBertForMultipleChoice":
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    for states in (False, True):
        sizes.clear()
        fast(**inputs, output_hidden_states=states)
        assert sizes == [5] * (n_layers - 1) + [5 if states else of_last]


@pytest.mark.parametrize(
    ("dtype", "requires_grad", "overwritten"),
    [(torch.float32, False, True), (torch.float32, True, False), (torch.bfloat16, False, False)],
)
def test_a_sum_overwrites_what_needs_no_gradient_and_no_other_dtype(dtype, requires_grad, overwritten):
    x, residual = torch.ones(3, dtype=dtype, requires_grad=requires_grad).view(3), torch.full((3,), 2.0)
    found = packed.add(x, residual)
    assert (found.tolist(), found.dtype) == ([3.0] * 3, torch.float32)
    assert (found is x) == overwritten
    assert residual.tolist() == [2.0] * 3


def test_the_ffn_runs_on_a_limited_number_of_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(packed, "FFN_ROWS", 2)
    fast = pack(model())
    sizes = sizes_in_the_ffn(fast)
    fast.rows([[1, 2, 3], [4, 5]])
    assert sizes == [2, 2, 1] * SIZES["n_layers"]


def test_rows_at_positions_that_there_are_not_are_refused():
    for wrong in ([[0]], [[0], [2]], [[0], [-1]]):
        with pytest.raises(ValueError, match=r"at needs positions in each of 2 rows of \[1, 2\] tokens, got "):
            pack(model()).rows([[1], [2, 3]], wrong)
    with pytest.raises(ValueError, match="gives one result for each row: leave out at="):
        pack(model("DistilBertForSequenceClassification")).rows([[1]], [[0]])


def test_rows_take_the_memory_of_their_tokens():
    each = model("DistilBertForTokenClassification", **LONG, num_labels=16)  # MKL's kernel fills widths up to 16
    results = pack(each).rows([[7] * 512, *([[7, 8]] * 300)])
    assert [len(result.logits) for result in results] == [512, *([2] * 300)]
    storage = {
        result.logits.untyped_storage().data_ptr(): result.logits.untyped_storage().nbytes() for result in results
    }
    assert sum(storage.values()) == (512 + 600) * 16 * 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "rows need 1 to 16 tokens each, but got no rows"),
        ([[1], []], "but row 1 has 0"),
        ([[1] * 16, [2] * 17], "but row 1 has 17"),
        ([[1, 50]], "rows contain 50 but vocab_size is 50"),
        ([[-1]], "rows contain -1"),
        ([[1.5]], "rows must be a tensor of int64 or int32, got torch.float32"),
        (
            torch.ones(2, 3).long(),
            r"as in tokenizer\(texts\)\.input_ids, got Tensor; a padded tensor goes into the ordin",
        ),
        ({"input_ids": [[1]]}, "got dict"),
        ([1, 2], "got list"),
    ],
)
def test_rows_that_the_model_cannot_take_are_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        pack(model()).rows(rows)


def test_the_ordinary_call_refuses_lists():
    with pytest.raises(ValueError, match=r"got a list: for rows without padding use \.rows\(lists\)"):
        pack(model())([[1, 2], [3]])


def test_multiple_choice_needs_its_axis():
    fast = pack(model("DistilBertForMultipleChoice"))
    with pytest.raises(ValueError, match=r"takes \(B, C, S\) ids or \(B, C, S, D\) embeds, got \(3, 7\)"):
        fast(**batch())
    with pytest.raises(ValueError, match=r"got \(3, 7, 32\)"):
        fast(inputs_embeds=torch.zeros(3, 7, 32))
    with pytest.raises(ValueError, match="pass either"):
        fast()


def test_models_that_cannot_be_packed_are_refused():
    class MyModel(DistilBertModel):
        pass

    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        pack(model().train())
    partly = model()
    partly.transformer.layer[0].ffn.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        pack(partly)
    with pytest.raises(ValueError, match="the five heads, not MyModel"):
        pack(MyModel(model().config).eval())
    with pytest.raises(ValueError, match="the five heads, not str"):
        pack("distilbert-base-uncased")
    hooked = model()
    hooked.transformer.layer[1].attention.probs.register_forward_hook(lambda *values: None)
    with pytest.raises(ValueError, match=r"some on \['transformer.layer.1.attention.probs'\]"):
        pack(hooked)
    for layer in hooked.transformer.layer:
        layer.ffn.register_forward_pre_hook(lambda *values: None)
        layer.ffn.lin1.register_forward_hook(lambda *values: None)
    names = [f"transformer.layer.{name}" for name in ("0.ffn", "0.ffn.lin1", "1.attention.probs")]
    with pytest.raises(ValueError, match=re.escape(f"there are some on {names}: remove")):
        pack(hooked)
    with pytest.raises(ValueError, match=r"int8 needs float32 on an x86 CPU .*, got torch.float64 on cpu"):
        pack(model().double(), int8=True)


def test_gradients_are_never_recorded():
    assert not pack(model())(**batch()).last_hidden_state.requires_grad


def test_hooks_on_all_modules_are_refused():
    with register_module_forward_hook(lambda *values: None), pytest.raises(ValueError, match="some on all modules"):
        pack(model())
    pack(model())


class OtherAttention(MultiHeadSelfAttention):
    """Attention of another kind."""


def replace_attention(each):
    layer = each.distilbert.transformer.layer[1]
    layer.attention = OtherAttention(each.config).eval()


def replace_forward(each):
    each.distilbert.transformer.layer[1].ffn.forward = lambda x: x


def replace_step(each):
    each.distilbert.transformer.layer[0].attention.probs = nn.Softmax(-1).eval()


def change_scale(each):
    each.distilbert.transformer.layer[0].attention.scale = 0.1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replace_attention, r"distilbert\.transformer\.layer\.1\.attention is of class OtherAttention"),
        (replace_forward, r"layer\.1\.ffn has a forward of its own"),
        (replace_step, r"layer\.0\.attention\.probs is of class Softmax"),
        (change_scale, r"layer\.0\.attention\.scale is 0\.1"),
    ],
)
def test_a_model_with_another_part_is_refused(change, says):
    each = model("DistilBertForSequenceClassification")
    change(each)
    with pytest.raises(ValueError, match=rf"runs the formulas of model\.py, but .*{says}: use the model itself"):
        pack(each)


@each_head
@pytest.mark.parametrize("kept", [[1], [0, 0, 1], []], ids=["one removed", "one twice", "all removed"])
def test_a_model_runs_the_layers_that_it_has(head, kept):
    each = model(head).double()
    layers = getattr(each, "distilbert", each).transformer.layer
    blocks = [layers[i] for i in kept]
    getattr(each, "distilbert", each).transformer.layer = nn.ModuleList(blocks).eval()
    inputs = batch(head)
    assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) < 1e-12


@each_kernel
def test_autocast_changes_nothing(int8):
    fast, inputs = pack(model("DistilBertForSequenceClassification"), int8=int8), batch()
    expected = fast(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(**inputs).logits, expected)


def test_a_model_that_was_cast_after_packing_must_be_packed_again():
    each = model()
    fast = pack(each)
    each.half()
    with pytest.raises(ValueError, match=r"packed as torch\.float32 on cpu and is now torch\.float16 on cpu: pack it"):
        fast(**batch())
    with pytest.raises(ValueError, match="pack it again"):
        fast.rows([[1, 2]])


def test_a_model_whose_weights_changed_after_packing_must_be_packed_again():
    each, inputs = model("DistilBertForSequenceClassification"), batch()
    fast = pack(each)
    each.load_state_dict({name: tensor + 0.1 for name, tensor in each.state_dict().items()})
    with pytest.raises(ValueError, match="weights have changed since it was packed: pack it again"):
        fast(**inputs)
    fast = pack(each)
    each(**inputs, labels=torch.tensor([0, 1, 0])).loss.backward()
    fast(**inputs)
    torch.optim.SGD(each.parameters(), 0.1).step()
    with pytest.raises(ValueError, match="pack it again"):
        fast.rows([[1, 2]])


def test_a_model_made_in_inference_mode_is_packed():
    with torch.inference_mode():
        each = model()
        assert torch.equal(pack(each)(**batch()).last_hidden_state[0, 1:], torch.zeros(6, 32))


def test_a_slice_of_the_layers_is_packed():
    each, inputs = model(n_layers=3), batch()
    each.transformer.layer = each.transformer.layer[:2]  # a new ModuleList, in training mode by itself
    assert largest_difference(each(**inputs), pack(each)(**inputs), real_tokens(inputs)) <= 1e-5


@each_kernel
def test_a_linear_layer_without_a_bias_is_packed(int8):
    each, inputs = model("DistilBertForSequenceClassification"), batch()
    each.pre_classifier.bias = each.distilbert.transformer.layer[0].ffn.lin1.bias = None
    limit = 0.5 if int8 else 1e-5
    assert largest_difference(each(**inputs), pack(each, int8=int8)(**inputs), real_tokens(inputs)) <= limit


def test_embeddings_of_another_dtype_are_refused_as_by_the_model():
    each, embeds = model(), torch.zeros(1, 3, 32, dtype=torch.float64)
    for run in (each, pack(each)):
        with pytest.raises(ValueError, match=r"float64"):
            run(inputs_embeds=embeds)
