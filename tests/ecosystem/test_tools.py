"""accelerate, peft, captum, bertviz, datasets, a DataLoader with workers, pipelines and sentence-transformers."""

import json
import pickle
from functools import partial

import pytest
import torch

import minibert
from minibert import DistilBertForSequenceClassification, DistilBertModel, DistilBertTokenizer
from minibert.pipeline import Embedder, MaskFiller, QuestionAnswerer, TextClassifier, TokenClassifier

from .small_data import about, reviews, save_checkpoint

TEXTS = ["the film was great", "a dull and weak story with some warm lives"]
LEARNING_RATE = 3e-3


def collate(tokenizer):
    def batch(rows):
        padded = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return dict(padded) | {"labels": torch.tensor([row["label"] for row in rows])}

    return batch


# accelerate


@pytest.fixture
def accelerate():
    """The package; what it keeps for the whole process is forgotten before and after a test."""
    import accelerate
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_gives_the_losses_of_a_plain_loop(classifier, accelerate):
    tokenizer = DistilBertTokenizer.from_pretrained(classifier)
    runs = []
    for accelerator in (None, accelerate.Accelerator()):
        torch.manual_seed(3)
        model = DistilBertForSequenceClassification.from_pretrained(classifier).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        loader = torch.utils.data.DataLoader(reviews(24), batch_size=8, collate_fn=collate(tokenizer))
        if accelerator:
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        losses = []
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss) if accelerator else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0][0] != runs[0][-1]


def test_accelerate_casts_the_outputs_of_bfloat16_back(ours, accelerate):
    model, tokenizer = ours
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    exact = model(**inputs).logits
    output = accelerate.Accelerator(mixed_precision="bf16").prepare(model)(**inputs)
    assert type(output).__name__ == "LogitsOutput"
    assert output.logits.dtype == torch.float32
    assert 0 < (output.logits - exact).abs().max() < 0.1  # it did run in bfloat16


# peft


def test_lora_trains_its_adapter_and_merges_and_is_loaded_again(bare, tmp_path):
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    tokenizer = DistilBertTokenizer.from_pretrained(bare)
    torch.manual_seed(0)
    base = DistilBertForSequenceClassification.from_pretrained(bare, num_labels=2)
    base.save_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, lora_alpha=16, target_modules=["q_lin", "v_lin"], lora_dropout=0.1
    )
    model = get_peft_model(base, settings).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = collate(tokenizer)(reviews(24))
    losses = []
    for _ in range(40):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model.eval()(**inputs).logits
    for name, parameter in model.named_parameters():
        if "lora_" not in name and "modules_to_save" not in name and "classifier" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, before[plain]), name

    model.save_pretrained(tmp_path / "adapter")
    fresh = DistilBertForSequenceClassification.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=0, atol=1e-6)

    merged = model.merge_and_unload()
    assert type(merged) is DistilBertForSequenceClassification
    torch.testing.assert_close(merged(**inputs).logits, logits, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = DistilBertForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded(**inputs).logits, logits, rtol=0, atol=1e-5)


# captum and bertviz


def test_captum_attributes_the_logit_to_the_tokens(ours):
    from captum.attr import LayerIntegratedGradients

    model, tokenizer = ours
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    baseline = torch.where(inputs.input_ids > 4, tokenizer.mask_token_id, inputs.input_ids)  # special tokens stay

    def logit(input_ids, attention_mask):
        return model(input_ids, attention_mask).logits[:, 1]

    gradients = LayerIntegratedGradients(logit, model.distilbert.embeddings.word_embeddings)
    attributions = gradients.attribute(
        inputs.input_ids, baseline, additional_forward_args=(inputs.attention_mask,), n_steps=64
    )
    assert attributions.shape == (*inputs.input_ids.shape, model.config.dim)
    with torch.no_grad():
        change = logit(**inputs) - logit(baseline, inputs.attention_mask)
    torch.testing.assert_close(attributions.sum((1, 2)).float(), change, rtol=0.01, atol=0.01)  # completeness
    assert attributions[inputs.attention_mask == 0].abs().max() == 0


def test_bertviz_shows_the_attention_of_the_model(ours):
    from bertviz import head_view, model_view

    model, tokenizer = ours
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    attentions = model(**inputs, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    for view in (head_view, model_view):
        page = view(attentions, tokens, html_action="return").data
        script = page[page.index("params = ") + len("params = ") :]
        shown = json.JSONDecoder().raw_decode(script)[0]["attention"][0]
        assert shown["left_text"] == ["[CLS]", "the", "film", "was", "great", "[SEP]"]
        maps = torch.tensor(shown["attn"])  # (layer, head, query, key)
        torch.testing.assert_close(maps, torch.cat(attentions), rtol=0, atol=1e-6)


# datasets and DataLoader


def test_datasets_finds_its_cache_again_after_the_tokenizer_has_been_used(classifier, tmp_path):
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    tokenizer = DistilBertTokenizer.from_pretrained(classifier)
    Dataset.from_list(reviews(24)).save_to_disk(tmp_path / "data")
    calls = tmp_path / "calls"

    def tokenize(rows, tokenizer=tokenizer, calls=str(calls)):
        with open(calls, "a") as file:
            file.write("x")
        return tokenizer(rows["text"], truncation=True)

    def mapped():
        return Dataset.load_from_disk(str(tmp_path / "data")).map(tokenize, batched=True)

    first = mapped()
    used = calls.read_text()
    tokenizer([f"word{i} the film" for i in range(1000)])
    again = mapped()
    assert again._fingerprint == first._fingerprint
    assert calls.read_text() == used  # nothing was computed a second time
    assert again[:]["input_ids"] == tokenizer(again[:]["text"]).input_ids
    other = DistilBertTokenizer.from_pretrained(classifier)
    assert Hasher.hash(other) == Hasher.hash(tokenizer)
    other.do_lower_case = False
    assert Hasher.hash(other) != Hasher.hash(tokenizer)


PIPELINES = {
    TextClassifier: "DistilBertForSequenceClassification",
    TokenClassifier: "DistilBertForTokenClassification",
    MaskFiller: "DistilBertForMaskedLM",
    QuestionAnswerer: "DistilBertForQuestionAnswering",
    Embedder: "DistilBertModel",
}


@pytest.mark.parametrize("task", PIPELINES, ids=lambda task: task.__name__)
def test_datasets_maps_a_pipeline_over_batches_of_columns(task, tmp_path):
    from datasets import Dataset

    save_checkpoint(tmp_path, PIPELINES[task])
    pipeline = task(tmp_path)
    rows = [
        {"id": i, "text": f"anna works in [MASK] {row['text']}", "question": "where ?"}
        for i, row in enumerate(reviews(24))
    ]
    if task is QuestionAnswerer:
        rows = [{"context" if name == "text" else name: value for name, value in row.items()} for row in rows]
    mapped = Dataset.from_list(rows).map(pipeline, batched=True, batch_size=10)
    batches = [{name: [row[name] for row in rows[i : i + 10]] for name in rows[0]} for i in (0, 10, 20)]
    for i, columns in zip((0, 10, 20), map(pipeline, batches), strict=True):
        for name, column in columns.items():
            expected = [vector.tolist() for vector in column] if name == "embedding" else list(column)
            assert mapped[i : i + 10][name] == expected


def test_a_pipeline_takes_a_data_frame_of_pandas_and_one_of_its_columns(classifier):
    import pandas

    pipeline, frame = TextClassifier(classifier, text_column="body"), pandas.DataFrame({"body": TEXTS, "id": [7, 8]})
    results = list(pipeline(TEXTS))
    columns = pandas.DataFrame(pipeline(frame))
    assert list(columns) == ["body", "id", "label", "score"]
    assert columns["label"].tolist() == [result.label for result in results]
    assert columns["id"].tolist() == [7, 8]
    assert list(pipeline(frame["body"])) == results


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader_pad_the_same_batches(classifier, context):
    tokenizer = DistilBertTokenizer.from_pretrained(classifier)
    rows = [dict(tokenizer(row["text"])) for row in reviews(24)]
    arguments = {"batch_size": 8, "collate_fn": partial(tokenizer.pad, pad_to_multiple_of=8, return_tensors="pt")}
    here = list(torch.utils.data.DataLoader(rows, **arguments))
    there = list(torch.utils.data.DataLoader(rows, num_workers=2, multiprocessing_context=context, **arguments))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert a["input_ids"].shape[1] % 8 == 0
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_pickled_tokenizer_and_model_work_as_before(ours):
    model, tokenizer = ours
    model2, tokenizer2 = pickle.loads(pickle.dumps(ours))
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(tokenizer2(TEXTS, padding=True, return_tensors="pt").input_ids, inputs.input_ids)
    torch.testing.assert_close(model2(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)


# pipelines of transformers, and sentence-transformers

TASKS = {
    "text-classification": ("DistilBertForSequenceClassification", TEXTS[0]),
    "token-classification": ("DistilBertForTokenClassification", "anna works in paris"),
    "fill-mask": ("DistilBertForMaskedLM", "the film was [MASK]"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_of_transformers_gives_the_same_answers(task, bare, tmp_path):
    import transformers

    head, text = TASKS[task]
    save_checkpoint(tmp_path, head)
    answers = []
    for library in (minibert, transformers):
        model = getattr(library, head).from_pretrained(tmp_path, attn_implementation="eager")
        tokenizer = library.DistilBertTokenizer.from_pretrained(tmp_path)
        run = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        answers.append(run(text))
    assert answers[0] == about(answers[1], rel=1e-4)
    assert answers[0]


def test_sentence_transformers_reads_a_saved_folder(bare, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model = DistilBertModel.from_pretrained(bare)
    tokenizer = DistilBertTokenizer.from_pretrained(bare)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = Transformer(str(tmp_path))
    embedder = SentenceTransformer(modules=[words, Pooling(model.config.dim)], device="cpu")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**inputs).last_hidden_state, inputs.attention_mask[..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(torch.tensor(embedder.encode(TEXTS)), expected, rtol=0, atol=1e-5)
