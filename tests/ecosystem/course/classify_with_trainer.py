"""Does the second text answer the first? With Trainer. Arguments: checkpoint, folder of the data, folder to save in."""

import sys

from datasets import load_dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

checkpoint, data, folder = sys.argv[1:]
dataset = load_dataset("json", data_files={part: f"{data}/{part}.json" for part in ("train", "test")})
tokenizer = DistilBertTokenizer.from_pretrained(checkpoint)
model = DistilBertForSequenceClassification.from_pretrained(checkpoint, num_labels=2)


def tokenize(rows):
    return tokenizer(rows["sentence1"], rows["sentence2"], truncation=True)


def compute_metrics(predicted):
    logits, labels = predicted
    return {"accuracy": float((logits.argmax(axis=-1) == labels).mean())}


tokenized = dataset.map(tokenize, batched=True)
arguments = TrainingArguments(
    folder,
    eval_strategy="epoch",
    num_train_epochs=3,
    per_device_train_batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.01,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=tokenized["train"],
    eval_dataset=tokenized["test"],
    data_collator=DataCollatorWithPadding(tokenizer=tokenizer),
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
)
trainer.train()
predictions = trainer.predict(tokenized["test"])
RESULT = {"loss": predictions.metrics["test_loss"], "accuracy": predictions.metrics["test_accuracy"]}
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
