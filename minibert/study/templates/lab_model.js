// DistilBERT's classifier and its tokenizer, once more in plain JavaScript and in float64: model.py, the classifier of
// heads.py, mask.py and wordpiece.py, with the same names in the same order. The tests hold every step against
// oracle.py, every id against wordpiece.py, and every edit against `edit` of steps.py.
//
// Shapes: B rows, S tokens, D dim, H heads, E = D / H, L labels, V vocabulary. Scores are (query, key).
// A tensor is { shape, data }: data is a Float64Array, the last axis changes fastest.

// ---- Tensors

const tensor = (shape, data = new Float64Array(shape.reduce((a, b) => a * b))) => ({ shape, data });
const add = (x, y) => tensor(x.shape, x.data.map((value, i) => value + y.data[i % y.data.length]));  // y may lack the B
const apply = (f, x) => tensor(x.shape, x.data.map(value => f(value)));

// Rows of one length, each replaced by f(row, where to write, number of the row).
function eachRow(x, f) {
  const length = x.shape.at(-1), out = tensor(x.shape);
  for (let start = 0; start < x.data.length; start += length)
    f(x.data.subarray(start, start + length), out.data.subarray(start, start + length), start / length);
  return out;
}

// x yᵀ: (…, N, D) and (…, M, D) -> (…, N, M); y may have two axes only. No product is skipped: 0 · NaN is NaN.
function matmulTransposed(x, y) {
  const [M, D] = y.shape.slice(-2), shared = y.shape.length === 2;
  const N = shared ? x.data.length / D : x.shape.at(-2);
  const out = tensor([...x.shape.slice(0, -1), M]), a = x.data, b = y.data;
  for (let i = 0, o = 0; o < out.data.length; i += D) {
    let j = shared ? 0 : Math.floor(i / (N * D)) * M * D;
    for (let m = 0; m < M; m++, o++) {
      let sum = 0;
      for (let d = 0; d < D; d++, j++) sum += a[i + d] * b[j];
      out.data[o] = sum;
    }
  }
  return out;
}

// The last two axes exchanged: (…, N, M) -> (…, M, N).
function transpose(x) {
  const [N, M] = x.shape.slice(-2), out = tensor([...x.shape.slice(0, -2), M, N]);
  for (let start = 0; start < x.data.length; start += N * M)
    for (let n = 0; n < N; n++)
      for (let m = 0; m < M; m++) out.data[start + m * N + n] = x.data[start + n * M + m];
  return out;
}

// exp(x) / Σ exp(x) over the keys. Subtracting the largest value first changes nothing except the overflow.
const softmax = x => eachRow(x, (row, out) => {
  const largest = row.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += out[i] = Math.exp(row[i] - largest);
  for (let i = 0; i < row.length; i++) out[i] /= sum;
});

// 2 / √π e^(-x²) Σ (2x²)ⁿ x / (1 · 3 · 5 … (2n + 1)): all terms have one sign, so nothing cancels.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const gelu = x => x * (1 + erf(x / Math.SQRT2)) / 2;  // the exact GELU, x Φ(x)
const relu = x => x < 0 ? 0 : x;  // NaN stays NaN

// ---- The mask

// How a number is rounded in each precision: to the nearest, ties to even; and the largest finite number.
const PRECISIONS = {
  float64: { round: x => x, max: Number.MAX_VALUE },
  float32: { round: Math.fround, max: (2 - 2 ** -23) * 2 ** 127 },
  bfloat16: { round: x => roundTo(x, 7, -126, PRECISIONS.bfloat16.max), max: (2 - 2 ** -7) * 2 ** 127 },
  float16: { round: x => roundTo(x, 10, -14, PRECISIONS.float16.max), max: 65504 },
};

function roundTo(x, bits, smallestExponent, max) {
  if (x === 0 || !Number.isFinite(x)) return x;
  const unit = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), smallestExponent) - bits);  // of the last bit kept
  const rounded = (x / unit + 1.5 * 2 ** 52 - 1.5 * 2 ** 52) * unit;  // float64 itself rounds to an integer here
  return Math.abs(rounded) > max ? Math.sign(x) * Infinity : rounded;
}

const METHODS = ["none", "finfo.min", "-inf", "-1e4", "-1e9", "multiply", "rows"];

// (B, S), 1 = a key to attend to -> (B, 1, 1, S): 0, or the number that is added to the score of a hidden key; null
// where nothing is added. "rows" hides queries in place of keys, a common mistake: (B, 1, S, S).
function additive_mask(attention_mask, method, precision) {
  if (method === "none" || method === "multiply") return null;
  const { round, max } = PRECISIONS[precision];
  const [B, S] = attention_mask.shape, Q = method === "rows" ? S : 1;
  const ignore = method === "finfo.min" || method === "rows" ? -max : round(method === "-inf" ? -Infinity : +method);
  return eachRow(tensor([B, 1, Q, S]), (_, out, number) => {
    for (let key = 0; key < S; key++) {
      const bit = method === "rows" ? number : number * S + key;  // the query's, or the key's
      out[key] = attention_mask.data[bit] ? 0 : ignore;
    }
  });
}

// What the laboratory changes beside the mask, as functions by the names of the steps that they replace.
// off: heads to knock out, "layer.head"; scale: factors for the scores of heads, by "layer.head".
function edits(config, attention_mask, { method = "finfo.min", precision = "float64", off = [], scale = {} }) {
  const [B, S] = attention_mask.shape, { n_layers, n_heads } = config, changes = {};
  const { round } = PRECISIONS[precision];
  for (let layer = 0; layer < n_layers; layer++) {
    const name = `distilbert.transformer.layer.${layer}.attention.`;
    const factors = Array.from({ length: n_heads }, (_, head) => scale[`${layer}.${head}`] ?? 1);
    const head = (number, rows) => Math.floor(number / rows) % n_heads;  // of a row of (B, H, rows, ·)
    changes[name + "scores"] = scores => eachRow(scores, (row, out, number) => {
      for (let key = 0; key < S; key++) out[key] = round(row[key] * factors[head(number, S)]);
    });
    changes[name + "masked_scores"] = scores => apply(round, scores);
    if (method === "multiply") changes[name + "probs"] = probs => eachRow(probs, (row, out, number) => {
      const b = Math.floor(number / (n_heads * S));
      for (let key = 0; key < S; key++) out[key] = row[key] * attention_mask.data[b * S + key];
    });
    changes[name + "context"] = context => eachRow(context, (row, out, number) => {
      out.set(off.includes(`${layer}.${head(number, S)}`) ? row.map(() => 0) : row);
    });
  }
  return changes;
}

// ---- The model

// A part of the model: its name is its path, as in the checkpoint, and its values are steps of that name.
class Part {
  constructor(model, name) {
    Object.assign(this, { model, name, config: model.config });
  }

  weight(name) {
    return this.model.weights[this.name + name];
  }

  step(name, value) {
    return this.model.step(this.name + name, value);
  }

  // x Wᵀ + b: (…, D) -> (…, D of the output).
  linear(name, x) {
    const bias = this.weight(`${name}.bias`).data, D = bias.length;
    const product = matmulTransposed(x, this.weight(`${name}.weight`));
    return this.step(name, tensor(product.shape, product.data.map((value, i) => value + bias[i % D])));
  }

  // γ (x - mean) / √(variance + ε) + β over the last axis.
  layer_norm(name, x) {
    const weight = this.weight(`${name}.weight`).data, bias = this.weight(`${name}.bias`).data, D = weight.length;
    return this.step(name, eachRow(x, (row, out) => {
      const mean = row.reduce((a, b) => a + b) / D;
      const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / D;
      for (let i = 0; i < D; i++) out[i] = (row[i] - mean) / Math.sqrt(variance + 1e-12) * weight[i] + bias[i];
    }));
  }
}

class Embeddings extends Part {
  // (B, S) ids -> (B, S, D).
  forward(input_ids) {
    const S = input_ids.shape[1], positions = tensor([1, S], Float64Array.from({ length: S }, (_, i) => i));
    const words = this.lookup("word_embeddings", input_ids);
    return this.layer_norm("LayerNorm", this.step("sum", add(words, this.lookup("position_embeddings", positions))));
  }

  lookup(name, ids) {
    const table = this.weight(`${name}.weight`), D = table.shape[1], out = tensor([...ids.shape, D]);
    ids.data.forEach((id, i) => out.data.set(table.data.subarray(id * D, (id + 1) * D), i * D));
    return this.step(name, out);
  }
}

// softmax(q kᵀ / √E + mask) v for each head.
class MultiHeadSelfAttention extends Part {
  // (B, S, D) and an additive mask (B, 1, 1 or S, S) or null -> (B, S, D).
  forward(hidden_states, mask) {
    const [q, k, v] = ["q", "k", "v"].map(name =>
      this.step(name, this.split_heads(this.linear(`${name}_lin`, hidden_states))));  // (B, H, S, E)
    const scale = q.shape[3] ** -0.5;
    let scores = this.step("scores", apply(x => x * scale, matmulTransposed(q, k)));  // (B, H, S, S)
    if (mask !== null) scores = this.add_mask(scores, this.step("mask", mask));
    const probs = this.step("probs", softmax(this.step("masked_scores", scores)));  // each row sums to 1
    const context = this.step("context", matmulTransposed(probs, transpose(v)));  // (B, H, S, E)
    return this.linear("out_lin", this.merge_heads(context));  // (B, S, D)
  }

  add_mask(scores, mask) {
    const [, H, S] = scores.shape, Q = mask.shape[2];  // all heads, and for Q = 1 all queries, share a row of the mask
    return eachRow(scores, (row, out, number) => {
      const first = (Math.floor(number / (H * S)) * Q + number % S % Q) * S;
      for (let key = 0; key < S; key++) out[key] = row[key] + mask.data[first + key];
    });
  }

  // (B, S, D) -> (B, H, S, E).
  split_heads(x) {
    const [B, S, D] = x.shape, H = this.config.n_heads, E = D / H, out = tensor([B, H, S, E]);
    for (let b = 0; b < B; b++) for (let s = 0; s < S; s++) for (let h = 0; h < H; h++) for (let e = 0; e < E; e++)
      out.data[((b * H + h) * S + s) * E + e] = x.data[(b * S + s) * D + h * E + e];
    return out;
  }

  // (B, H, S, E) -> (B, S, D).
  merge_heads(x) {
    const [B, H, S, E] = x.shape, out = tensor([B, S, H * E]);
    for (let b = 0; b < B; b++) for (let s = 0; s < S; s++) for (let h = 0; h < H; h++) for (let e = 0; e < E; e++)
      out.data[((b * S + s) * H + h) * E + e] = x.data[((b * H + h) * S + s) * E + e];
    return out;
  }
}

// Two linear layers with a GELU between them, on each position by itself.
class FFN extends Part {
  // (B, S, D) -> (B, S, D).
  forward(x) {
    const activation = this.config.activation === "gelu" ? gelu : relu;
    return this.linear("lin2", this.step("activation", apply(activation, this.linear("lin1", x))));
  }
}

// Attention, then the feed-forward layer; each is added to its input, and the sum normalized.
class TransformerBlock extends Part {
  // (B, S, D) and an additive mask -> (B, S, D).
  forward(hidden_states, mask) {
    const attended = new MultiHeadSelfAttention(this.model, `${this.name}attention.`).forward(hidden_states, mask);
    const x = this.layer_norm("sa_layer_norm", this.step("sa_residual", add(attended, hidden_states)));
    const fed = new FFN(this.model, `${this.name}ffn.`).forward(x);
    return this.layer_norm("output_layer_norm", this.step("output_residual", add(fed, x)));
  }
}

// What lab.py packed -> tensors by their names in the checkpoint.
function read_weights({ dtype, tensors, weights }) {
  const bytes = () => Uint8Array.from(atob(weights), char => char.charCodeAt(0)).buffer;
  const packed = dtype === "float16" ? readHalves(weights)
    : dtype === "float32" ? new Float32Array(bytes()) : new Float64Array(bytes());
  const values = Float64Array.from(packed);
  let end = 0;
  return Object.fromEntries(tensors.map(([name, shape]) => {
    const start = end;
    end += shape.reduce((a, b) => a * b);
    return [name, tensor(shape, values.subarray(start, end))];
  }));
}

// The encoder, and the classifier that reads the first token's hidden state.
class DistilBertForSequenceClassification {
  // weights: tensors by their names in the checkpoint.
  constructor(config, weights) {
    Object.assign(this, { config, weights });
  }

  // Keep a value under its name, or what an edit of that name makes of the value.
  step(name, value) {
    return this.steps[name] = name in this.changes ? this.changes[name](value) : value;
  }

  // (B, S) ids and an additive mask, (B, 1, 1 or S, S) or null -> all steps by name; the last, logits, is (B, L).
  forward(input_ids, mask = null, changes = {}) {
    Object.assign(this, { changes, steps: {} });
    let hidden_states = new Embeddings(this, "distilbert.embeddings.").forward(input_ids);  // (B, S, D)
    for (let layer = 0; layer < this.config.n_layers; layer++)
      hidden_states = new TransformerBlock(this, `distilbert.transformer.layer.${layer}.`).forward(hidden_states, mask);
    const [B, S, D] = hidden_states.shape, head = new Part(this, ""), first = tensor([B, D]);
    for (let b = 0; b < B; b++) first.data.set(hidden_states.data.subarray(b * S * D, b * S * D + D), b * D);
    const x = head.step("activation", apply(relu, head.linear("pre_classifier", first)));
    head.step("logits", head.linear("classifier", x));  // (B, L)
    return this.steps;
  }
}

// ---- The tokenizer

const MAX_WORD_CHARS = 100;  // a longer word is [UNK], whatever its pieces

// Splits a text into words and words into pieces. A character is a code point, as in Python.
// unicode: lists of [first, last] code points by the names of unicode_tables.py.
class WordPiece {
  constructor({ vocab, unk_id, do_lower_case, strip_accents, tokenize_chinese_chars, added_tokens, unicode }) {
    Object.assign(this, { unk_id, do_lower_case, strip_accents, tokenize_chinese_chars });
    this.vocab = new Map(vocab);  // piece -> id
    this.longest_piece = vocab.reduce((longest, [piece]) => Math.max(longest, [...piece].length), 0);
    const hex = code => `\\u{${code.toString(16)}}`;
    this.classes = Object.fromEntries(Object.entries(unicode.classes).map(([name, ranges]) =>
      [name, `[${ranges.map(([first, last]) => `${hex(first)}-${hex(last)}`).join("")}]`]));
    this.newer_capitals = new Map(unicode.newer_capitals);  // capital -> small letter
    const find = (tokens, spell) => this.finder(new Map(tokens.map(token => [spell(token.content), token])));
    this.as_written = find(added_tokens.filter(token => !token.normalized), content => content);
    this.normalized = find(added_tokens.filter(token => token.normalized), content => this.normalize(content));
  }

  // Text -> ids of its pieces.
  split(text) {
    return this.as_written(text).flatMap(([part, id]) => id !== null ? [id]
      : this.normalized(this.normalize(part)).flatMap(([stretch, id]) => id !== null ? [id]
        : stretch.split(" ").filter(word => word).flatMap(word => this.longest_match_first(word))));
  }

  replace(text, name, by) {
    return text.replace(new RegExp(this.classes[name], "gu"), by);
  }

  // Bring a text into the spelling of the vocabulary, with blanks between words.
  normalize(text) {
    text = this.clean(text);
    if (this.strip_accents) text = this.replace(text, "MARKS", "");
    text = this.replace(text, "PUNCTUATION", " $& ");
    return this.do_lower_case ? Array.from(text, char => this.lower(char)).join("") : text;
  }

  // Drop control characters, make white space blank, set CJK ideographs apart, part accents from their letters.
  clean(text) {
    text = this.replace(this.replace(text, "DROPPED", ""), "WHITE_SPACE", " ");
    if (this.tokenize_chinese_chars) text = this.replace(text, "CJK", " $& ");
    if (!this.strip_accents) return text;
    const newer = new RegExp(this.classes.NEWER, "u"), marks = new RegExp(`${this.classes.REORDERED}{2,}`, "gu");
    const decomposed = Array.from(text, char => newer.test(char) ? char : char.normalize("NFD")).join("");
    return decomposed.replace(marks, run => run.normalize("NFD"));  // brings the marks into their canonical order
  }

  // Lowercase one character, whatever stands beside it: Σ is always σ.
  lower(char) {
    return (this.newer_capitals.get(char) ?? char).toLowerCase();
  }

  // Take the longest piece that the word begins with, then the longest that continues it, to its end.
  longest_match_first(word) {
    const chars = [...word], pieces = [];
    if (chars.length > MAX_WORD_CHARS) return [this.unk_id];
    for (let start = 0, end; start < chars.length; start = end) {
      for (end = Math.min(chars.length, start + this.longest_piece); end > start; end--) {
        const piece = this.vocab.get((start ? "##" : "") + chars.slice(start, end).join(""));
        if (piece !== undefined) {
          pieces.push(piece);
          break;
        }
      }
      if (end === start) return [this.unk_id];
    }
    return pieces;
  }

  // Returns a function that splits a text at added tokens: [token, id] for them, [text, null] between them.
  finder(tokens) {
    const found = [...tokens.keys()].filter(token => token.trim()).sort((a, b) => [...b].length - [...a].length);
    const pattern = new RegExp(found.map(token => token.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "gu");
    const inWord = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
    return text => {
      const parts = [];
      let end = 0;
      for (const { 0: token, index } of found.length ? text.matchAll(pattern) : []) {
        const { id, single_word, normalized } = tokens.get(token), stop = index + token.length;
        const before = [...text.slice(0, index)], after = [...text.slice(stop, stop + 4)];
        // In a normalized text a mark such as _, which belongs to a word too, stands between spaces.
        const marks = normalized ? [before.at(-2), after[1]].filter(char => /^\p{Pc}$/u.test(char)) : [];
        if (single_word && [before.at(-1), after[0], ...marks].some(char => inWord.test(char))) continue;
        parts.push([text.slice(end, index), null], [token, id]);
        end = stop;
      }
      return [...parts, [text.slice(end), null]];
    };
  }
}

// Text -> ids of a row: [CLS], the pieces, [SEP]; truncated to max_length.
class DistilBertTokenizer {
  constructor(settings) {
    Object.assign(this, settings);
    this.wordpiece = new WordPiece(settings);
  }

  encode(text) {
    const ids = this.wordpiece.split(text), room = this.max_length - 2;
    const kept = this.truncation_side === "left" ? ids.slice(Math.max(0, ids.length - room)) : ids.slice(0, room);
    return { input_ids: [this.cls_id, ...kept, this.sep_id], truncated: ids.length > room };
  }
}
