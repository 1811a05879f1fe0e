"""What scripts/fuzz.py searches: one module for each target.

A target has two functions. `make(source)` turns random bytes into an input: Python literals, so that a find can be
printed. `check(value)` runs the input through minibert and through the oracle. It returns whether minibert accepted the
input, and raises an error for a find.
"""

TARGETS = ("config", "weights", "tokenizer", "text", "masks", "packed")
