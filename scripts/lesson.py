# %% [markdown]
# # What padding does, and how the attention mask undoes it
#
# This is a notebook in the percent format: each `# %%` begins a cell, and a cell shows its last value. VS Code and
# PyCharm open the file as it is. For Jupyter or Colab convert it: `jupytext --to notebook scripts/lesson.py`. The
# pictures need matplotlib: `pip install '.[plot]'`.
#
# A model reads a batch of texts as one rectangle of token ids. Short texts are filled up with [PAD]. If the model does
# not know which tokens are [PAD], it reads them like words, and the result of the short text changes.
#
# Here you see that happen inside a small DistilBERT that says whether a film review is positive or negative.

# %%
import torch

from minibert import DEMO, DistilBertForSequenceClassification, DistilBertTokenizer, additive_mask, study

tokenizer = DistilBertTokenizer.from_pretrained(DEMO)
model = DistilBertForSequenceClassification.from_pretrained(DEMO)
texts = ["Today is a nice day!", "But what about tomorrow? Im not sure."]
inputs = tokenizer(texts, padding=True, return_tensors="pt")
tokens = [tokenizer.convert_ids_to_tokens(row) for row in inputs.input_ids.tolist()]
tokens[0]

# %% [markdown]
# The first text has 8 tokens, the second 13. So the first row ends with five [PAD]. The attention mask says which
# tokens are real: 1 = real, 0 = padding.

# %%
inputs.attention_mask

# %% [markdown]
# ## 1. The logits move
#
# The logits of the short text, NEGATIVE and POSITIVE: alone, padded without the mask, padded with the mask.

# %%
with torch.no_grad():
    alone = model(inputs.input_ids[:1, :8]).logits
    without_mask = model(inputs.input_ids).logits
    with_mask = model(**inputs).logits
torch.stack([alone[0], without_mask[0], with_mask[0]])

# %% [markdown]
# The move is small here, and the answer stays POSITIVE. It is not always so. Next: ten short texts beside a text of 24
# words. Without the mask half of them get another label.

# %%
study.label_flips(model, tokenizer)

# %% [markdown]
# ## 2. Where the mask acts
#
# Attention computes a score for each pair of a query and a key: `q kᵀ / √E`. The mask is added to the scores. It is 0
# where a key is real, and the smallest number of the dtype where a key is padding. After the softmax such a key has the
# probability exp(-3.4e38) = 0, exactly.

# %%
additive_mask(inputs.attention_mask, torch.float32)[0]

# %% [markdown]
# Every value in the formulas has a name, and can be captured while the model runs.

# %%
with study.capture(model, "*.layer.0.attention.*") as steps, torch.no_grad():
    model(**inputs)
steps

# %% [markdown]
# The trace lists all of them. Below the list it shows one query in full: what [CLS] of the first text computes for each
# key, in the head where [PAD] would draw the most attention.

# %%
study.trace(model, inputs, tokens)

# %% [markdown]
# The same as a picture, without and with the mask. The hatched columns are [PAD].

# %%
study.attention_figure(model, tokenizer, texts, layer=0, head=3)

# %% [markdown]
# ## 3. How much attention [PAD] draws
#
# Without the mask [PAD] gets over 40% of the attention. If each query attended to all keys alike, it would get 38%. So
# this model prefers [PAD] a little: nobody taught it what [PAD] is.

# %%
share = study.pad_mass(model, inputs, mask=False)
share

# %%
share.plot()

# %% [markdown]
# In layer 0 the mask does one thing only: it removes the share of [PAD] and scales the other probabilities up, so that
# they sum to 1 again. In later layers the probabilities differ more, because their inputs differ already.

# %%
study.renormalisation(model, inputs)

# %% [markdown]
# ## 4. How it reaches the logits
#
# The classifier reads [CLS] alone. There are two routes from [PAD] to [CLS]: [CLS] attends to [PAD] itself, and the
# other tokens attend to [PAD] before [CLS] attends to them. Hide [PAD] from one side, and about a third of the leak is
# left.

# %%
study.leak_routes(model, inputs)

# %% [markdown]
# Layer by layer: how far each text is from itself alone. The longer text has no padding, and does not move.

# %%
study.padding_drift(model, tokenizer, texts, mask=False).plot()

# %% [markdown]
# ## 5. Rounding is not a leak
#
# With the mask the logits can still differ in the seventh digit, because sums run in another order. That is rounding:
# it shrinks when the numbers get more precise. A leak does not.

# %%
ladder = study.precision_ladder(model, inputs)
ladder

# %%
ladder.plot()

# %% [markdown]
# The strictest test: put other ids into the padded slots. With the mask no real position changes by a single bit.

# %%
study.check_pad_invariance(model, inputs)

# %% [markdown]
# ## 6. Other ways to mask
#
# Most of them are right for a row that has real keys. They differ in a row that has none.

# %%
study.compare_masks()

# %% [markdown]
# ## 7. What the answer rests on
#
# Which token carries "good"? Run "a bad film" with one hidden state of "a good film" in it, and see how much of the
# answer comes back (activation patching). At first it is the word; in the last layer it is [CLS], which the classifier
# reads.

# %%
good, bad = tokenizer("a good film", return_tensors="pt"), tokenizer("a bad film", return_tensors="pt")
patching = study.patch(
    model,
    good,
    bad,
    "position",
    lambda output: output.logits[0, 1] - output.logits[0, 0],
    tokens=["[CLS]", "a", "good / bad", "film", "[SEP]"],
)
patching.plot()

# %% [markdown]
# Integrated gradients ask the same of every word of one text: blue adds to the class, red takes from it.

# %%
names = [tokenizer.convert_ids_to_tokens(good.input_ids[0].tolist())]
study.integrated_gradients(model, good, tokens=names)

# %% [markdown]
# ## 8. Change something
#
# `edit` replaces any value while the model runs. Here layer 0 attends to all keys alike.

# %%
with study.edit(model, {"*.layer.0.attention.scores": lambda scores: scores * 0}), torch.no_grad():
    flat = model(**inputs).logits
flat - with_mask

# %% [markdown]
# All heads on one page, with the numbers behind each map: click on a head, and point at a token.

# %%
study.attention_page(model, tokenizer, texts)

# %% [markdown]
# Now it is your turn: `minibert exercise` lists ten changes to the model. Predict what each one breaks.
