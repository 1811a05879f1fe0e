"""transformers.Trainer with a model and a tokenizer of minibert, against the same with those of transformers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minibert import DistilBertForMaskedLM, DistilBertForSequenceClassification, DistilBertTokenizer

from .small_data import reviews

transformers = pytest.importorskip("transformers")


def rows(tokenizer, n, seed=0):
    """A list of dicts, as a data set gives them."""
    return [dict(tokenizer(row["text"])) | {"label": row["label"]} for row in reviews(n, seed)]


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def trainer(pair, folder, **arguments):
    model, tokenizer = pair
    settings = {
        "num_train_epochs": 5,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **settings | arguments),
        train_dataset=rows(tokenizer, 96),
        eval_dataset=rows(tokenizer, 18, seed=1),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )


def losses(trained):
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}, {"gradient_checkpointing": True}])
def test_training_gives_the_losses_metrics_and_predictions_of_transformers(ours, theirs, tmp_path, arguments):
    trained = []
    for pair in (ours, theirs):
        trained.append(trainer(pair, tmp_path, **arguments))  # sets the seed
        trained[-1].train()
    assert len(losses(trained[0])) == 60
    assert losses(trained[0]) == losses(trained[1])  # to the last bit: both have mapped their weights from one file
    assert sum(losses(trained[0])[-12:]) < 0.7 * sum(losses(trained[0])[:12])  # the last epoch and the first
    metrics = [one.evaluate() for one in trained]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"]
    assert metrics[0]["eval_accuracy"] == metrics[1]["eval_accuracy"] > 0.6
    predictions = [one.predict(one.eval_dataset).predictions for one in trained]
    assert predictions[0].dtype == np.float32
    assert np.array_equal(*predictions)


def test_gradient_checkpointing_changes_no_bit(classifier, tmp_path):
    weights = []
    for arguments in ({}, {"gradient_checkpointing": True}):
        pair = (
            DistilBertForSequenceClassification.from_pretrained(classifier),
            DistilBertTokenizer.from_pretrained(classifier),
        )
        trainer(pair, tmp_path, max_steps=3, **arguments).train()
        weights.append(pair[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_training_ends_in_the_same_bits_and_finds_the_best_model(classifier, tmp_path):
    def pair():
        return (
            DistilBertForSequenceClassification.from_pretrained(classifier),
            DistilBertTokenizer.from_pretrained(classifier),
        )

    arguments = {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 3}
    whole = trainer(pair(), tmp_path, **arguments)
    whole.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (12, 24, 36)]
    resumed = trainer(pair(), tmp_path, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert losses(resumed)[12:] == losses(whole)[12:]  # the first epoch was logged before the checkpoint
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name

    arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.03}
    best = trainer(pair(), tmp_path / "best", **arguments)
    best.train()
    evaluated = [entry["eval_loss"] for entry in best.state.log_history if "eval_loss" in entry]
    assert best.evaluate()["eval_loss"] == pytest.approx(min(evaluated), rel=1e-6)
    stored = load_file(f"{best.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in best.model.state_dict().items())


def test_what_is_saved_after_training_is_read_by_both(ours, tmp_path):
    model, tokenizer = ours
    one = trainer(ours, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)
    one.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not (checkpoint / "config.json").exists()  # Trainer writes it for classes of transformers only
    model.config.save_pretrained(checkpoint)  # which makes of it a checkpoint that anybody can load
    model.save_pretrained(tmp_path / "final")
    tokenizer.save_pretrained(tmp_path / "final")
    batch = tokenizer("the film was great", return_tensors="pt")
    logits = model.eval()(**batch).logits
    name = "DistilBertForSequenceClassification"
    for folder in (checkpoint, tmp_path / "final"):
        mine = DistilBertForSequenceClassification.from_pretrained(folder)
        assert (
            DistilBertTokenizer.from_pretrained(folder)("a great film").input_ids == tokenizer("a great film").input_ids
        )
        other = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager")
        torch.testing.assert_close(mine(**batch).logits, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(other(**batch).logits, logits, rtol=0, atol=1e-5)


def test_a_tied_masked_lm_trains_and_its_checkpoint_is_loaded(bare, tmp_path):
    tokenizer = DistilBertTokenizer.from_pretrained(bare)
    model = DistilBertForMaskedLM.from_pretrained(bare)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    settings = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_steps": 4, "max_steps": 4}
    arguments = transformers.TrainingArguments(str(tmp_path), learning_rate=1e-3, **settings)
    data = [dict(tokenizer(row["text"])) for row in reviews(32)]
    transformers.Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
    assert model.vocab_projector.weight is model.distilbert.embeddings.word_embeddings.weight
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert torch.equal(stored["distilbert.embeddings.word_embeddings.weight"], model.vocab_projector.weight)
    model.config.save_pretrained(tmp_path / "checkpoint-4")
    again = DistilBertForMaskedLM.from_pretrained(tmp_path / "checkpoint-4")
    assert torch.equal(again.vocab_projector.weight, model.vocab_projector.weight)
    assert again.vocab_projector.weight is again.distilbert.embeddings.word_embeddings.weight
