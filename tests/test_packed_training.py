"""Training without padding: the loss and the gradients of the model itself, dropout, and the tools that wrap it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn

from minibert import DistilBertModel, PackedForTraining, packed

from .machine import needs
from .models import HEADS, batch, labels, model
from .test_packed import LONG, ODD_SIZES, real_tokens

CLASSIFIER, TAGGER, MASKED_LM = (
    f"DistilBertFor{task}" for task in ("SequenceClassification", "TokenClassification", "MaskedLM")
)
TRAINED = [head for head in HEADS if head != "DistilBertForQuestionAnswering"]
each_head = pytest.mark.parametrize("head", TRAINED)
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}


def labelled(head, mask="ragged", shape=(3, 7)):
    """A batch with labels; of tokens, some in each row are labelled, and none in a padded slot."""
    inputs = batch(head, mask, shape)
    ids = inputs["input_ids"]
    if head in (TAGGER, MASKED_LM):
        real = torch.ones_like(ids) if inputs["attention_mask"] is None else inputs["attention_mask"]
        is_first = (real == 1) & (real.cumsum(1) == 1)
        return inputs | {"labels": torch.where(is_first | (real == 1) & (ids % 3 == 0), ids % 2, -100)}
    return inputs | (labels(head, ids) if HEADS[head] else {})


def loss_of(output, real):
    """The loss; for the encoder, which has none, a mean over the values of its real tokens, each with a weight."""
    if isinstance(getattr(output, "loss", None), torch.Tensor):
        return output.loss
    states = output.last_hidden_state[real]
    return (states * torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)).mean()


def gradients(run, inputs, real):
    """The loss, and by name the gradients of the parameters."""
    run.zero_grad()
    loss = loss_of(run(**inputs), real)
    loss.backward()
    return loss, {name.removeprefix("model."): parameter.grad for name, parameter in run.named_parameters()}


def assert_gradients_of_the_model(each, inputs, tolerance):
    real = real_tokens(inputs)
    loss, expected = gradients(copy.deepcopy(each), inputs, real)
    of_packed, found = gradients(PackedForTraining(each), inputs, real)
    assert abs(of_packed - loss) < tolerance
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < tolerance, name
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3


@each_head
@pytest.mark.parametrize("kind", ["ragged", "left", "holes", "ones", "none"])
def test_loss_and_gradients_are_those_of_the_model(head, kind):
    if kind == "left" and head in (CLASSIFIER, "DistilBertForMultipleChoice"):
        pytest.skip("refused, see below")
    # In float32 with weights of the size that training starts from: with larger ones the model's own gradients are 1e-5
    # away from those in float64.
    for dtype, tolerance, spread in ((torch.float64, 1e-12, 0.3), (torch.float32, 1e-5, 0.02)):
        for shape in ((3, 7), (1, 7)):
            each = model(head, **NO_DROPOUT, initializer_range=spread).to(dtype).train()
            assert_gradients_of_the_model(each, labelled(head, kind, shape), tolerance)


@each_head
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_odd_sizes_and_long_rows_too(head, sizes, monkeypatch):
    monkeypatch.setattr(packed, "FFN_ROWS", 100)
    each = model(head, **LONG | NO_DROPOUT | sizes).double().train()
    for shape in ((9, 40), (2, 200)):
        assert_gradients_of_the_model(each, labelled(head, "ragged", shape), 1e-12)


@pytest.mark.parametrize("head", [CLASSIFIER, MASKED_LM])
def test_a_model_without_layers_has_the_same_loss(head):
    each = model(head, **NO_DROPOUT).double().train()
    each.distilbert.transformer.layer = nn.ModuleList()
    inputs = labelled(head)
    assert abs(PackedForTraining(each)(**inputs).loss - each(**inputs).loss) < 1e-12


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "wanted"),
    [("regression", 1, torch.randn(3)), ("multi_label_classification", 4, torch.ones(3, 4))],
)
def test_every_loss_of_a_classifier(problem_type, num_labels, wanted):
    each = model(CLASSIFIER, **NO_DROPOUT, problem_type=problem_type, num_labels=num_labels).double().train()
    assert_gradients_of_the_model(each, batch(CLASSIFIER) | {"labels": wanted.double()}, 1e-12)


def test_some_steps_of_training_end_in_the_weights_of_the_model():
    each = model(MASKED_LM, **NO_DROPOUT).double()
    other = copy.deepcopy(each)
    for run in (each, PackedForTraining(other)):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(run.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            run.train()(**labelled(MASKED_LM)).loss.backward()
            optimizer.step()
    for name, parameter in each.named_parameters():
        assert (other.get_parameter(name) - parameter).abs().max() < 1e-9, name
    assert other.vocab_projector.weight is other.distilbert.embeddings.word_embeddings.weight


# What it returns


@each_head
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_model_at_real_tokens_and_zeros_elsewhere(head, training):
    each = model(head, **NO_DROPOUT if training else {}).double().train(training)
    inputs = batch(head)
    expected, found = each(**inputs)[0], PackedForTraining(each)(**inputs)[0]
    assert found.shape == expected.shape
    if expected.ndim == 3:  # a value for each token
        real = real_tokens(inputs)
        assert (found[~real] == 0).all()
        expected, found = expected[real], found[real]
    assert (found - expected).abs().max() < 1e-12


def test_a_masked_lm_computes_the_logits_of_labelled_tokens_alone():
    each, inputs = model(MASKED_LM).double(), labelled(MASKED_LM, "ragged", (5, 9))
    padded, output = each(**inputs), PackedForTraining(each)(**inputs)
    chosen = inputs["labels"] != -100
    assert output.logits.shape == (chosen.sum(), 50)
    assert (output.logits - padded.logits[chosen]).abs().max() < 1e-12
    assert torch.isclose(F.cross_entropy(output.logits, inputs["labels"][chosen]), padded.loss)


def test_without_gradients_it_evaluates():
    run = PackedForTraining(model(CLASSIFIER))
    assert not run.training
    with torch.no_grad():
        assert not run(**labelled(CLASSIFIER)).loss.requires_grad


def test_the_last_layer_of_a_head_on_cls_runs_for_one_token_of_each_row():
    run, sizes = PackedForTraining(model(CLASSIFIER, n_layers=1)), []
    ffn = run.model.distilbert.transformer.layer[0].ffn
    right = ffn.forward
    ffn.forward = lambda x: sizes.append(len(x)) or right(x)
    run(**batch(CLASSIFIER))
    assert sizes == [3]


@each_head
def test_autocast_works(head):
    each, inputs = model(head, **NO_DROPOUT).train(), labelled(head)
    real = real_tokens(inputs)
    _, exact = gradients(copy.deepcopy(each).double(), inputs, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_model, of_packed = (
            gradients(run, inputs, real)[1] for run in (copy.deepcopy(each), PackedForTraining(each))
        )
    distances = [
        max((found[name] - exact[name]).abs().max().item() for name in exact) for found in (of_model, of_packed)
    ]
    assert 1e-5 < distances[1] < 2 * distances[0] + 1e-3


# Dropout


@each_head
def test_a_seed_fixes_the_dropout(head):
    run, inputs = PackedForTraining(model(head, dropout=0.3).train()), labelled(head)
    real = real_tokens(inputs)

    def drawn(seed):
        torch.manual_seed(seed)
        return gradients(run, inputs, real)[0].item()

    assert drawn(1) == drawn(1) != drawn(2)
    run.eval()
    assert drawn(1) == drawn(2)


@each_head
def test_a_copy_gives_the_same_bits(head):
    each, inputs = model(head, dropout=0.3).train(), labelled(head, shape=(9, 7))
    real, results = real_tokens(inputs), []
    for size in (0, 1000):
        kept = [torch.empty(size + i) for i in range(100)]  # so that what follows lies elsewhere
        torch.manual_seed(1)
        results.append(gradients(PackedForTraining(copy.deepcopy(each)), inputs, real)[1])
        del kept
    assert all(torch.equal(gradient, results[1][name]) for name, gradient in results[0].items())


@pytest.mark.parametrize("name", NO_DROPOUT)
def test_each_dropout_is_applied_and_its_mean_is_the_model(name):
    each = model(CLASSIFIER, **NO_DROPOUT | {name: 0.1}).train()
    run, inputs = PackedForTraining(each), batch(CLASSIFIER, "ragged", (4, 9))
    row = {key: tensor.repeat(500, 1) for key, tensor in inputs.items()}
    with torch.no_grad():
        many, expected = (one(**row).logits.view(500, 4, 2) for one in (run, each))
    assert many.std(0).min() > 1e-4
    torch.testing.assert_close(many.mean(0), expected.mean(0), atol=5 * many.std(0).max().item() / 500**0.5, rtol=0)
    torch.testing.assert_close(many.std(0), expected.std(0), atol=0, rtol=0.25)


# What is refused


@pytest.mark.parametrize(
    ("head", "change", "says"),
    [
        (CLASSIFIER, {"attention_mask": torch.ones(3, 1, 7, 7, dtype=torch.bool)}, "for a 4-D pattern use the model"),
        (CLASSIFIER, {"attention_mask": batch(mask="left")["attention_mask"]}, "row 0 begins with padding"),
        (CLASSIFIER, {"input_ids": torch.full((3, 7), 50)}, "input_ids contain 50 but vocab_size is 50"),
        (CLASSIFIER, {"input_ids": [[1, 2], [3]]}, "input_ids must be a tensor of int64 or int32, got list"),
        (CLASSIFIER, {"labels": torch.tensor([0, 1])}, r"labels must be int64 of shape \(3,\)"),
        (TAGGER, {"labels": torch.zeros(3, 7, dtype=torch.long)}, "labels hold 0 in a padded slot, row 0, slot 1: use"),
        (MASKED_LM, {"labels": torch.full((3, 7), 9)}, "labels hold 9 in a padded slot, row 0, slot 1: use -100"),
        (MASKED_LM, {"labels": torch.zeros(3, dtype=torch.long)}, r"the shape of the ids, \(3, 7\), got \(3,\)"),
        (MASKED_LM, {"labels": [[0] * 7] * 3}, "labels must be a tensor, got list"),
        ("DistilBertModel", {"labels": torch.tensor([0, 1, 0])}, "DistilBertModel has no loss: leave out labels"),
        ("DistilBertForMultipleChoice", {"input_ids": torch.ones(3, 7, dtype=torch.long)}, r"takes \(B, C, S\) ids"),
    ],
)
def test_what_it_cannot_give_is_refused(head, change, says):
    with pytest.raises(ValueError, match=says):
        PackedForTraining(model(head))(**labelled(head) | change)


def test_models_that_cannot_be_trained_so_are_refused():
    class MyModel(DistilBertModel):
        pass

    with pytest.raises(ValueError, match="the loss of question answering compares padded slots too"):
        PackedForTraining(model("DistilBertForQuestionAnswering"))
    with pytest.raises(ValueError, match="the five heads, not MyModel"):
        PackedForTraining(MyModel(model().config))
    with pytest.raises(ValueError, match="the five heads, not str"):
        PackedForTraining("distilbert-base-uncased")
    each = model(CLASSIFIER)
    each.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"layer\.0 has a forward of its own: use the model itself"):
        PackedForTraining(each)
    each.gradient_checkpointing_disable()
    run = PackedForTraining(each)
    each.classifier.register_forward_hook(lambda *values: None)  # a hook that comes later
    with pytest.raises(ValueError, match=r"a packed model runs no hooks, but there are some on \['classifier'\]"):
        run(**batch(CLASSIFIER))


# Tools


def test_it_can_be_copied_and_its_state_is_the_models():
    run = PackedForTraining(model(MASKED_LM).train())
    other = copy.deepcopy(run)
    assert other.model.vocab_projector.weight is not run.model.vocab_projector.weight
    assert {name.removeprefix("model.") for name in run.state_dict()} == run.model.state_dict().keys()
    other.load_state_dict(run.state_dict())


def rows_of(inputs, rank, world):
    return {name: tensor[rank::world] for name, tensor in inputs.items()}


def train_in_two_processes(rank, folder, each, inputs):
    """What each process runs: two steps with DDP, and two with FSDP2."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for kind in ("ddp", "fsdp2"):
        run = PackedForTraining(copy.deepcopy(each)).train()
        inner = run.model
        if kind == "ddp":
            run = nn.parallel.DistributedDataParallel(run)
        else:
            fully_shard(run, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))
            assert inner.classifier.weight.to_local().numel() < inner.classifier.weight.numel()
        train(run, rows_of(inputs, rank, 2))
        inner.save_pretrained(f"{folder}/{kind}", is_main_process=rank == 0)
        distributed.barrier()
    distributed.destroy_process_group()


def train(run, inputs):
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        run(**inputs).loss.backward()
        optimizer.step()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_ddp_and_fsdp2_in_two_processes_end_in_the_weights_of_one_process(tmp_path):
    each, inputs = model(CLASSIFIER, **NO_DROPOUT), labelled(CLASSIFIER, shape=(6, 7))
    multiprocessing.spawn(train_in_two_processes, (str(tmp_path), each, inputs), nprocs=2)
    alone = copy.deepcopy(each)
    train(PackedForTraining(alone).train(), inputs)
    assert (alone.classifier.weight - each.classifier.weight).abs().max() > 1e-3
    for kind in ("ddp", "fsdp2"):
        together = type(alone).from_pretrained(tmp_path / kind)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(together.get_parameter(name), parameter, rtol=0, atol=1e-5)


@pytest.mark.gpu
@needs("gpu")
@each_head
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_autocast_on_a_gpu_gives_the_gradients_of_the_model(head, dropout):
    each = model(head, **NO_DROPOUT, **LONG | {"dim": 128, "hidden_dim": 256}).cuda().train()
    for layer in each.base_model.transformer.layer:
        layer.attention.dropout.p = dropout
    inputs = {name: tensor.cuda() for name, tensor in labelled(head, "ragged", (9, 100)).items()}
    real = real_tokens(inputs)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found, expected = (gradients(run, inputs, real)[1] for run in (PackedForTraining(copy.deepcopy(each)), each))
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    if dropout == 0:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-2, rtol=0)
