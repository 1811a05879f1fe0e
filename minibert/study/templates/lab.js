// The laboratory's interface: the state that the reader changes, the runs of the model that follow from it, and the
// parts of the page that show them. The model and the tokenizer are in lab_model.js.
(() => {
const data = JSON.parse(element("data").textContent);
const { n_layers, n_heads } = data.config;
const model = new DistilBertForSequenceClassification(data.config, read_weights(data));
const tokenizer = new DistilBertTokenizer(data.tokenizer);
const tokenOf = new Map(data.tokenizer.vocab.map(([token, id]) => [id, token]));
data.tokenizer.added_tokens.forEach(({ id, content }) => tokenOf.set(id, content));
const idOf = new Map([...tokenOf].map(([id, token]) => [token, id]));
const MOST_TEXTS = 4;
const ROUNDING = 1e-9;  // a smaller difference is rounding: sums in another order
const range = size => Array.from({ length: size }, (_, i) => i);

// ---- The state: all that a link restores

// A slot is named by its row and its place: 0t3 is the token 3 of text 0, 0p1 the [PAD] 1 of row 0. So a change stays
// with its token when the row is padded on the other side.
const PLAIN = {
  texts: data.texts, pads: 0, left: false, method: "finfo.min", precision: "float64",
  flip: [],    // slots whose bit is not the usual one: 1 for a token of the text, 0 for [PAD]
  put: {},     // slot of [PAD] -> the id that is there instead
  off: [],     // heads knocked out, "layer.head"
  scale: {},   // "layer.head" -> factor of its scores
};
const VIEW = { row: 0, slot: 0, layer: 0, head: 0 };
let state = { ...PLAIN, ...VIEW };

const lengths = data.texts.map(text => tokenizer.encode(text).input_ids.length);
const subject = lengths.indexOf(Math.min(...lengths));  // the text that gets padding
const pads = new Set(lengths).size > 1 ? 0 : 4;
const RUNS = [
  ["1 Alone, no mask", { texts: [data.texts[subject]], method: "none" }],
  ["2 Alone, mask", { texts: [data.texts[subject]] }],
  ["3 Padded, no mask", { method: "none", pads, row: subject }],
  ["4 Padded, mask", { pads, row: subject }],
];
const run = number => ({ ...PLAIN, row: 0, slot: 0, ...RUNS[number][1] });
const same = (x, y) => JSON.stringify(x) === JSON.stringify(y);
const sameBatch = other => Object.keys(PLAIN).every(name => same(other[name], state[name]));

function writeState() {
  const fields = new URLSearchParams(state.texts.map(text => ["text", text]));
  const pairs = object => Object.entries(object).map(pair => pair.join(":"));
  const written = {
    pads: state.pads || "", left: state.left ? 1 : "", method: state.method, precision: state.precision,
    flip: state.flip, put: pairs(state.put), off: state.off, scale: pairs(state.scale),
    at: [state.row, state.slot, state.layer, state.head],
  };
  for (const [name, value] of Object.entries(written)) if (String(value)) fields.append(name, value);
  return `#${fields}`;
}

// A state from the text after #, and the fields that could not be read: nothing that a link says is trusted.
function readState(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^[^#]*#/, ""));
  const read = { ...PLAIN, ...VIEW }, unread = [];
  const list = (pattern, value) => value.split(",").filter(item => pattern.test(item) || refuse());
  const object = (pattern, value) => Object.fromEntries(list(pattern, value).map(item => item.split(":")));
  const number = (value, end) => /^\d{1,4}$/.test(value) && +value < end ? +value : refuse();
  const choice = (value, values) => values.includes(value) ? value : refuse();
  const refuse = () => { throw new Error("unreadable"); };
  const SLOT = /^[0-3][tp]\d{1,4}$/, HEAD = /^\d{1,3}\.\d{1,3}$/;
  const readers = {
    pads: value => ({ pads: number(value, data.tokenizer.max_length) }),
    left: value => ({ left: choice(value, ["1"]) === "1" }),
    method: value => ({ method: choice(value, METHODS) }),
    precision: value => ({ precision: choice(value, Object.keys(PRECISIONS)) }),
    flip: value => ({ flip: list(SLOT, value) }),
    put: value => ({ put: Object.fromEntries(Object.entries(object(/^[0-3]p\d{1,4}:\d{1,7}$/, value))
      .map(([slot, id]) => [slot, tokenOf.has(+id) ? +id : refuse()])) }),
    off: value => ({ off: list(HEAD, value) }),
    scale: value => ({ scale: Object.fromEntries(Object.entries(object(/^\d{1,3}\.\d{1,3}:[0-4](\.\d{1,2})?$/, value))
      .map(([head, factor]) => [head, +factor])) }),
    at: value => {
      const [row, slot, layer, head, ...more] = value.split(",");
      if (more.length) refuse();
      return { row: number(row, MOST_TEXTS), slot: number(slot, 9999), layer: number(layer, n_layers),
        head: number(head, n_heads) };
    },
  };
  const texts = fields.getAll("text");
  if (texts.length) read.texts = texts.slice(0, MOST_TEXTS);
  if (texts.length > MOST_TEXTS) unread.push(`${texts.length} texts, more than ${MOST_TEXTS}`);
  for (const [name, value] of fields) {
    if (name === "text") continue;
    try {
      Object.assign(read, Object.hasOwn(readers, name) ? readers[name](value) : refuse());
    } catch {
      unread.push(`${name}=${value}`.slice(0, 60));
    }
  }
  return { read, unread };
}

// ---- From the state to runs of the model

// The rows of the padded batch: for each slot its name, id, whether it is a token of the text, and its bit.
function batchOf({ texts, pads, left, flip, put }) {
  const encoded = texts.map(text => tokenizer.encode(text));
  const S = Math.min(data.tokenizer.max_length, Math.max(...encoded.map(row => row.input_ids.length)) + pads);
  const { pad_id } = data.tokenizer;
  return encoded.map(({ input_ids, truncated }, row) => {
    const real = input_ids.map((id, i) => ({ name: `${row}t${i}`, id, real: true }));
    const padding = range(S - real.length).map(i => ({ name: `${row}p${i}`, id: put[`${row}p${i}`] ?? pad_id }));
    const slots = (left ? [...padding, ...real] : [...real, ...padding]).map(slot =>
      ({ ...slot, real: !!slot.real, bit: +(!!slot.real !== flip.includes(slot.name)) }));
    return { slots, truncated, input_ids };
  });
}

const known = new Map();  // recent runs: a flipped bit runs its own row again, and no other

function remember(key, compute) {
  const name = JSON.stringify(key);
  if (known.size > 60) known.clear();
  if (!known.has(name)) known.set(name, compute());
  return known.get(name);
}

const row1 = values => tensor([1, values.length], Float64Array.from(values));

// All steps of one row of the batch, with the mask and the changes of the state.
function runRow({ slots }, { method, precision, off, scale }) {
  const ids = slots.map(slot => slot.id), bits = slots.map(slot => slot.bit);
  return remember([ids, method === "none" ? [] : bits, method, precision, off, scale], () => {
    const mask = row1(bits);
    return model.forward(row1(ids), additive_mask(mask, method, precision),
      edits(data.config, mask, { method, precision, off, scale }));
  });
}

// All steps of a text by itself: no padding, no mask, nothing changed.
const runAlone = ({ input_ids }) => remember(input_ids, () => model.forward(row1(input_ids)));

const attention = (steps, layer, step) => steps[`distilbert.transformer.layer.${layer}.attention.${step}`].data;

// (S, S) of one head.
function ofHead(steps, layer, head, step) {
  const values = attention(steps, layer, step), S2 = values.length / n_heads;
  return values.subarray(head * S2, (head + 1) * S2);
}

// What a row has become: steps, its own run, and how far each hidden state of a real token is from its own run.
function resultOf(row) {
  const steps = runRow(row, state), alone = runAlone(row);
  const first = row.slots.findIndex(slot => slot.real);
  const drift = ["embeddings.LayerNorm", ...range(n_layers).map(i => `transformer.layer.${i}.output_layer_norm`)]
    .map(name => {
      const own = alone[`distilbert.${name}`].data, now = steps[`distilbert.${name}`].data;
      const D = own.length / row.input_ids.length;
      return own.reduce((most, value, i) => Math.max(most, Math.abs(value - now[first * D + i])), 0);
    });
  return { ...row, steps, alone, drift, logits: steps.logits.data, own: alone.logits.data };
}

let rows = [];  // the results, one for each row of the batch
let S = 0;

function compute() {
  const batch = batchOf(state);
  S = batch[0].slots.length;
  rows = batch.map(resultOf);
  state.row = Math.min(state.row, rows.length - 1);
  state.slot = Math.min(state.slot, S - 1);
}

// The share of attention that the given queries give to padding, mean over them.
function padShare(probs, queries) {
  const { slots } = rows[state.row];
  let sum = 0;
  for (const query of queries) for (let key = 0; key < S; key++) if (!slots[key].real) sum += probs[query * S + key];
  return sum / queries.length;
}

const realQueries = () => range(S).filter(slot => rows[state.row].slots[slot].real);

// ---- Numbers as text

const fixed = (x, digits = 4) => Number.isNaN(x) ? "NaN" : x.toFixed(digits).replace("-", "−");
const share = x => Number.isNaN(x) ? "NaN" : percent(x);
const change = x => Number.isNaN(x) ? "NaN" : Math.abs(x) < ROUNDING ? "0" : signed(x);

function additive(x) {
  if (x === 0) return "0";
  return Number.isFinite(x) ? x.toPrecision(2).replace("-", "−") : "−inf";
}

function sum(x) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : "−inf";
  return Math.abs(x) < 1000 ? fixed(x, 3) : x.toPrecision(5).replace("-", "−");
}

// ---- The batch

let cells = [];  // lines of buttons: tokens of row 0, bits of row 0, tokens of row 1, …
let drawnBatch = "";

function buildBatch() {
  const head = make("tr");
  head.append(make("th", "slot", { scope: "row" }), ...range(S).map(slot => make("th", slot, { scope: "col" })));
  cells = [];
  const lines = rows.flatMap(({ slots }, row) => ["token", "bit"].map(kind => {
    const line = make("tr", "", { className: `${kind}s` });
    const buttons = slots.map((_, slot) => make("button", "", { type: "button", className: kind, tabIndex: -1 }));
    buttons.forEach((button, slot) => Object.assign(button.dataset, { row, slot, line: cells.length }));
    cells.push(buttons);
    line.append(make("th", kind === "token" ? `row ${row}` : "mask", { scope: "row" }), ...buttons.map(button => {
      const cell = make("td");
      cell.append(button);
      return cell;
    }));
    return line;
  }));
  element("batch").replaceChildren(head, ...lines);
  cells[0][0].tabIndex = 0;
}

function drawBatch() {
  const shape = `${rows.length} ${S}`;
  if (shape !== drawnBatch) buildBatch();
  drawnBatch = shape;
  element("batch").classList.toggle("unused", state.method === "none");
  rows.forEach(({ slots }, row) => slots.forEach(({ id, real, bit }, slot) => {
    const token = cells[2 * row][slot], flip = cells[2 * row + 1][slot], text = tokenOf.get(id) ?? `id ${id}`;
    token.textContent = text;
    token.title = `slot ${slot}: ${text}, id ${id}`;
    token.classList.toggle("pad", !real);
    token.setAttribute("aria-pressed", row === state.row && slot === state.slot);
    token.setAttribute("aria-label", `row ${row}, slot ${slot}, ${text}: choose this query`);
    flip.textContent = bit;
    flip.setAttribute("aria-pressed", bit === 1);
    flip.setAttribute("aria-label", `mask of row ${row}, slot ${slot}, ${text}: ${bit}`);
  }));
}

function drawTexts() {
  const list = element("texts");
  if (list.children.length !== state.texts.length) list.replaceChildren(...state.texts.map((_, row) => {
    const line = make("div", "", { className: "text" });
    const label = make("label", `Text ${row}`, { htmlFor: `text-${row}` });
    const input = make("input", "", { id: `text-${row}`, autocomplete: "off", spellcheck: false });
    input.addEventListener("input", () => changeText(row, input.value));
    const remove = make("button", "Remove", { type: "button", onclick: () => removeText(row) });
    remove.setAttribute("aria-label", `Remove text ${row}`);
    line.append(label, input, remove);
    return line;
  }));
  [...list.children].forEach((line, row) => {
    if (line.children[1].value !== state.texts[row]) line.children[1].value = state.texts[row];
    line.children[2].disabled = state.texts.length === 1;
  });
}

const ofRow = (row, slot) => slot.startsWith(row);

function changeText(row, text) {
  const kept = state.flip.filter(slot => !ofRow(row, slot));  // its tokens are others now
  update({ texts: state.texts.with(row, text), flip: kept, row });
}

// The rows below move up, and their changes with them.
function removeText(row) {
  const move = slot => slot[0] > row ? `${slot[0] - 1}${slot.slice(1)}` : slot;
  update({
    texts: state.texts.toSpliced(row, 1),
    flip: state.flip.filter(slot => !ofRow(row, slot)).map(move),
    put: Object.fromEntries(Object.entries(state.put).filter(([slot]) => !ofRow(row, slot))
      .map(([slot, id]) => [move(slot), id])),
  });
}

function setBit(row, slot, bit) {
  const { name, bit: old } = rows[row].slots[slot];
  if (bit === old) return;
  const { flip } = state;
  update({ flip: flip.includes(name) ? flip.filter(other => other !== name) : [...flip, name], row });
}

// ---- What happened, in sentences

function notices() {
  const said = [], length = data.tokenizer.max_length;
  rows.forEach(({ slots, truncated, steps }, row) => {
    if (truncated) said.push(`Text ${row} is truncated to the ${length} tokens that the model can take.`);
    if (state.method !== "none" && slots.every(slot => !slot.bit)) said.push(`Row ${row}: ${explainEmpty(steps)}`);
  });
  if (state.method === "rows") said.push(
    "The mask hides queries, not keys: real queries still attend to [PAD], and the row of a hidden query is uniform.");
  if (state.method === "multiply") said.push(
    "The probabilities are multiplied by the bits after the softmax: a row no longer sums to 1.");
  if (state.method === "none" && state.flip.length) said.push(
    "No mask is used, so the bits change nothing: choose another method under “Mask by”.");
  if (state.precision !== "float64") said.push(
    `Emulated: only the scores and the mask are rounded to ${state.precision}; all else stays float64.`);
  if (state.left && rows.some(({ slots }) => !slots[0].real)) said.push(
    "Padding on the left: positions begin at [PAD], and the classifier reads slot 0, which is [PAD].");
  if (!asked) said.push(...moves());
  return said.join(" ");
}

// The largest move of each row's logits.
function moves() {
  const moved = rows.map(({ logits, own }, row) => {
    const differences = Array.from(logits, (x, i) => x - own[i]), sizes = differences.map(Math.abs);
    if (sizes.some(Number.isNaN)) return `Row ${row}: the logits are NaN.`;
    const label = sizes.indexOf(Math.max(...sizes));
    if (sizes[label] < ROUNDING) return "";
    return `Row ${row}: the logit of ${data.labels[label]} moved by ${change(differences[label])}.`;
  }).filter(sentence => sentence);
  return moved.length ? moved : ["Every row has the logits of its own run."];
}

// Called where every bit of a row is 0: what the first head of layer 0 makes of query 0.
function explainEmpty(steps) {
  const probs = ofHead(steps, 0, 0, "probs").subarray(0, S);
  const start = "every bit is 0, so no key is left. ";
  const end = " No answer is right here: minibert in Python refuses such a mask.";
  if (probs.some(Number.isNaN)) return start + "All masked scores are −inf. The softmax subtracts the largest score, "
    + "and −inf − (−inf) is NaN." + end;
  if (probs.every(p => p === 0)) return start + "The softmax runs over all keys, then each probability is multiplied "
    + "by 0: zeros." + end;
  if (probs.every(p => p === probs[0])) return start + "The mask is so large that adding a score does not change it. "
    + `All masked scores are equal, so the softmax gives 1/${S} to each slot, [PAD] included: uniform.` + end;
  return start + "The same number is added to every score, and the softmax does not depend on a number that all keys "
    + "share: this is the attention without a mask, rounded." + end;
}

// ---- The logits, the layers

function movedBar(difference) {
  const bar = make("span", "", { className: "moved" }), part = make("i");
  const size = Math.min(1, Math.abs(difference)) * 50 || 0;  // percent of the bar, whose ends are −1 and +1
  part.style.cssText = `width: ${size}%; ${difference < 0 ? "right" : "left"}: 50%;`
    + `background: var(--${difference < 0 ? "minus" : "plus"})`;
  bar.append(part);
  bar.setAttribute("aria-hidden", true);
  return bar;
}

function drawLogits() {
  const lines = rows.flatMap(({ logits, own }, row) =>
    data.labels.map((label, i) =>
      [`${row} ${label}`, fixed(own[i]), fixed(logits[i]), change(logits[i] - own[i]), ""]));
  fillTable(element("logits"), ["row, label", "alone", "now", "moved by", "−1 … +1"], lines);
  const [body] = element("logits").tBodies;
  rows.forEach(({ logits, own }, row) => data.labels.forEach((_, i) => {
    const line = body.rows[row * data.labels.length + i];
    line.classList.toggle("first", i === 0 && row > 0);
    line.lastChild.append(movedBar(logits[i] - own[i]));
  }));
}

function drawDrift() {
  const header = ["row", "embeddings", ...range(n_layers).map(layer => `layer ${layer}`)];
  fillTable(element("drift"), header, rows.map(({ drift }, row) =>
    [row, ...drift.map(x => Number.isNaN(x) ? "NaN" : x < ROUNDING ? "0" : fixed(x))]));
  rows.forEach(({ drift }, row) => {
    const first = drift.findIndex(x => !(x < ROUNDING));
    const line = element("drift").tBodies[0].rows[row];
    if (first < 0) return;
    line.cells[first + 1].className = "first";
    line.cells[first + 1].title = "moved first";
  });
}

// ---- Predict first: the logit that the reader is asked about, as it was before the change

let asked = null;

function ask(before) {
  const { row } = state, { own } = rows[row];
  const label = own.indexOf(own.reduce((a, b) => Math.max(a, b)));
  asked ??= { row, label, before: before[row]?.logits[label] ?? own[label] };
  element("asked").textContent = `Row ${asked.row}: the logit of ${data.labels[asked.label]} was `
    + `${fixed(asked.before)}. Which way does it go?`;
  element("verdict").textContent = "";
  showQuestion(true);
}

function showQuestion(open) {
  element("question").hidden = !open;
  element("answers").classList.toggle("hidden", open);
  element("answers").inert = open;
}

function answer(guess) {
  const now = rows[asked.row]?.logits[asked.label] ?? NaN, moved = now - asked.before;
  const way = Math.abs(moved) < 5e-5 ? 0 : Math.sign(moved);
  const what = Number.isNaN(moved) ? "it became NaN" : way === 0 ? "it stayed" : `it moved by ${change(moved)}`;
  element("verdict").textContent = `${guess === way ? "Right" : "Not so"}: ${what}, to ${fixed(now)}.`;
  asked = null;
  showQuestion(false);
}

// ---- The heads, and one query of the chosen one

const heads = range(n_layers).map(layer => range(n_heads).map(head => {
  const button = make("button", "", { type: "button", onclick: () => update({ layer, head }) });
  button.append(make("canvas"), make("span"));
  button.firstChild.style.imageRendering = "pixelated";
  return button;
}));
let palette;

function buildHeads() {
  const titles = make("tr");
  titles.append(make("th"), ...range(n_heads).map(head => make("th", `head ${head}`, { scope: "col" })));
  element("grid").append(titles, ...heads.map((line, layer) => {
    const row = make("tr");
    row.append(make("th", `layer ${layer}`, { scope: "row" }), ...line.map(button => {
      const cell = make("td");
      cell.append(button);
      return cell;
    }));
    return row;
  }));
}

function drawHeads() {
  const { slots, steps } = rows[state.row], real = slots.map(slot => slot.real), queries = realQueries();
  const padded = real.includes(false), shares = [];
  heads.forEach((line, layer) => line.forEach((button, head) => {
    const probs = ofHead(steps, layer, head, "probs"), name = `${layer}.${head}`;
    const chosen = layer === state.layer && head === state.head, off = state.off.includes(name);
    paintMap(button.firstChild, probs, palette, real);
    shares.push(padShare(probs, queries));
    const factor = state.scale[name] ?? 1, scaled = factor === 1 ? "" : `×${factor} `;
    button.lastChild.textContent = scaled + (padded ? share(shares.at(-1)) : "–");
    button.classList.toggle("off", off);
    button.setAttribute("aria-pressed", chosen);
    button.setAttribute("aria-label", `layer ${layer}, head ${head}, ${share(shares.at(-1))} to padding`
      + (off ? ", knocked out" : "") + (scaled && `, scores ${scaled}`));
    button.tabIndex = chosen ? 0 : -1;
  }));
  const mean = shares.reduce((a, b) => a + b) / shares.length;
  element("heads-title").textContent = `All heads, row ${state.row}`;
  element("heads-note").textContent = padded
    ? `Below each: attention from real queries to [PAD]; mean ${share(mean)}`
    : "This row has no [PAD]";
  const name = `${state.layer}.${state.head}`, factor = state.scale[name] ?? 1;
  element("head-name").textContent = `layer ${state.layer}, head ${state.head}`;
  element("off").checked = state.off.includes(name);
  if (+element("scale").value !== factor) element("scale").value = factor;
  element("scale-value").textContent = factor;
}

function drawNumbers() {
  const { row, slot, layer, head } = state, { slots, steps, alone, input_ids } = rows[row];
  const ofQuery = step => ofHead(steps, layer, head, step).subarray(slot * S, (slot + 1) * S);
  const scores = ofQuery("scores"), masked = ofQuery("masked_scores"), probs = ofQuery("probs");
  const mask = steps[`distilbert.transformer.layer.${layer}.attention.mask`]?.data;
  const first = mask?.length > S ? slot * S : 0;  // "rows" has a row for each query
  const own = ofHead(alone, layer, head, "probs"), n = input_ids.length, start = slots.findIndex(s => s.real);
  const aloneAt = key => slots[slot].real && slots[key].real ? own[(slot - start) * n + key - start].toFixed(4) : "–";
  const formula = state.method === "none" ? "softmax(score)" : state.method === "multiply" ? "softmax(score) · bit"
    : "softmax(score + mask)";
  const text = tokenOf.get(slots[slot].id);
  element("numbers-title").textContent = `Layer ${layer}, head ${head}: what query ${slot}, ${text}, computes`;
  element("numbers-note").textContent = `${formula} = probability; [PAD] gets ${share(padShare(
    ofHead(steps, layer, head, "probs"), [slot]))} of this query's attention`;
  fillTable(element("numbers"), ["key", "score", "+ mask", "= masked score", "probability", "alone"],
    slots.map(({ id }, key) =>
      [`${key} ${tokenOf.get(id)}`, sum(scores[key]), mask ? additive(mask[first + key]) : "none", sum(masked[key]),
        probs[key] === 0 ? "0" : fixed(probs[key]), aloneAt(key)]));
  [...element("numbers").tBodies[0].rows].forEach((line, key) => {
    line.className = slots[key].real ? "" : "pad";
    line.cells[4].className = "share";
    line.cells[4].style.setProperty("--part", `${100 * (probs[key] || 0)}%`);
  });
}

// ---- Drawing and changing

function draw() {
  drawTexts();
  drawBatch();
  drawLogits();
  drawDrift();
  drawHeads();
  drawNumbers();
  const chosen = rows[state.row].slots[state.slot], token = element("token");
  token.disabled = chosen.real;
  token.placeholder = chosen.real ? "choose a [PAD]" : "a token";
  token.value = chosen.real ? "" : tokenOf.get(chosen.id);
  element("notice").textContent = notices();
  element("method").value = state.method;
  element("precision").value = state.precision;
  element("left").checked = state.left;
  element("add-text").disabled = state.texts.length === MOST_TEXTS;
  element("add-pad").disabled = S === data.tokenizer.max_length;
  element("remove-pad").disabled = state.pads === 0;
  RUNS.forEach((_, number) => element("runs").children[number].setAttribute("aria-pressed", sameBatch(run(number))));
  clearTimeout(draw.later);
  draw.later = setTimeout(writeLink, 200);  // browsers slow a page down that writes its address at each key
}

function writeLink() {
  const written = writeState();
  if (document.activeElement !== element("state")) element("state").value = written;
  if (location.protocol !== "about:" && location.hash !== written) history.replaceState(null, "", written);
}

// Change the state, run what depends on it, and show it. Only a change of the batch is asked about.
function update(to) {
  const before = rows;
  Object.assign(state, to);
  compute();
  if (element("predict").checked && Object.keys(to).some(name => name in PLAIN)) ask(before);
  draw();
}

function restore(fragment) {
  const { read, unread } = readState(fragment);
  update(read);
  if (unread.length) element("notice").textContent = `This part of the link could not be read: ${unread.join("; ")}`;
}

// ---- Controls

element("runs").append(...RUNS.map(([name], number) =>
  make("button", name, { type: "button", onclick: () => update(run(number)) })));
const METHOD_NAMES = { none: "no mask", multiply: "multiply after softmax", rows: "rows in place of columns" };
element("method").append(...METHODS.map(value => make("option", METHOD_NAMES[value] ?? `adding ${value}`, { value })));
element("precision").append(...Object.keys(PRECISIONS).map(value =>
  make("option", value === "float64" ? value : `${value} (emulated)`, { value })));

const on = (name, event, act) => element(name).addEventListener(event, act);
on("method", "change", event => update({ method: event.target.value }));
on("precision", "change", event => update({ precision: event.target.value }));
on("left", "change", event => update({ left: event.target.checked }));
on("add-text", "click", () => update({ texts: [...state.texts, "a good film"], row: state.texts.length, slot: 0 }));
on("add-pad", "click", () => update({ pads: state.pads + 1 }));
on("remove-pad", "click", () => update({ pads: state.pads - 1 }));
on("reset", "click", () => update({ ...PLAIN, texts: state.texts }));
on("off", "change", event => {
  const name = `${state.layer}.${state.head}`;
  update({ off: event.target.checked ? [...state.off, name] : state.off.filter(other => other !== name) });
});
on("scale", "input", event => {
  const { [`${state.layer}.${state.head}`]: _, ...others } = state.scale, factor = +event.target.value;
  update({ scale: factor === 1 ? others : { ...others, [`${state.layer}.${state.head}`]: factor } });
});
on("question", "click", event => event.target.value && answer(+event.target.value));
on("predict", "change", event => {
  asked = null;
  if (!event.target.checked) showQuestion(false);
});
on("state", "change", event => restore(event.target.value));
on("copy", "click", async () => {
  const link = location.protocol === "about:" ? writeState() : location.href.replace(/#.*|$/, writeState());
  try {
    await navigator.clipboard.writeText(link);
    element("notice").textContent = "Copied.";
  } catch {
    element("state").value = link;
    element("state").select();
    element("notice").textContent = "This browser does not let the page copy: press Ctrl+C now.";
  }
});
addEventListener("hashchange", () => location.hash !== writeState() && restore(location.hash));

// A token, or a text that is one token, into the chosen slot of padding.
on("token", "change", event => {
  const text = event.target.value.trim(), ids = idOf.has(text) ? [idOf.get(text)] : tokenizer.wordpiece.split(text);
  const { name } = rows[state.row].slots[state.slot];
  if (ids.length === 1) return update({ put: { ...state.put, [name]: ids[0] } });
  element("notice").textContent =
    `“${text.slice(0, 40)}” is ${ids.length} tokens, and a slot holds one: try nice, ##s or [MASK]`;
});

// Bits: a press flips one, a drag sets those that it meets to the same value.
let painting = null, pressed = false;

on("batch", "pointerdown", event => {
  const { row, slot } = event.target.dataset;
  if (!event.target.classList.contains("bit") || event.button) return;
  event.target.releasePointerCapture?.(event.pointerId);  // so that a finger, too, meets other bits
  pressed = true;
  painting = { row: +row, bit: 1 - rows[row].slots[slot].bit };
  setBit(+row, +slot, painting.bit);
});
on("batch", "pointerover", event => {
  const { row, slot } = event.target.dataset;
  if (painting && event.target.classList.contains("bit") && +row === painting.row) setBit(+row, +slot, painting.bit);
});
addEventListener("pointerup", () => { painting = null; setTimeout(() => { pressed = false; }); });
addEventListener("pointercancel", () => { painting = null; pressed = false; });
on("batch", "click", event => {
  const { row, slot } = event.target.dataset;
  if (event.target.classList.contains("token")) update({ row: +row, slot: +slot });
  else if (event.target.classList.contains("bit") && !pressed) setBit(+row, +slot, 1 - rows[row].slots[slot].bit);
});

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const clamp = (x, size) => Math.max(0, Math.min(size - 1, x));

on("batch", "keydown", event => {
  if (!(event.key in ARROWS) || !event.target.dataset.line) return;
  event.preventDefault();
  const [down, right] = ARROWS[event.key], { line, slot, row } = event.target.dataset;
  const to = cells[clamp(+line + down, cells.length)][clamp(+slot + right, S)];
  if (event.shiftKey && right && to.classList.contains("bit"))
    setBit(+row, +to.dataset.slot, rows[row].slots[slot].bit);
  to.focus();
});
on("batch", "focusin", event => {  // one stop of the Tab key
  cells.flat().forEach(button => { button.tabIndex = button === event.target ? 0 : -1; });
});
on("grid", "keydown", event => {
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  const [down, right] = ARROWS[event.key];
  update({ layer: clamp(state.layer + down, n_layers), head: clamp(state.head + right, n_heads) });
  heads[state.layer][state.head].focus();
});

// ---- The tour

const favourite = () => {  // the label with the largest logit in the text's own run
  const { own, logits } = rows[state.row], label = own.indexOf(own.reduce((a, b) => Math.max(a, b)));
  return { name: data.labels[label], own: fixed(own[label]), now: fixed(logits[label]),
    moved: change(logits[label] - own[label]) };
};
const chosenShare = () =>
  share(padShare(ofHead(rows[state.row].steps, state.layer, state.head, "probs"), [state.slot]));
const nothingLeft = { ...run(3), method: "-inf", flip: range(lengths[subject]).map(i => `${subject}t${i}`) };
const TOUR = [
  ["One text", run(0), () => `Here is one text, as ${S} tokens. No mask is used, and the logit of `
    + `${favourite().name} is ${favourite().now}. Remember this number.`],
  ["A mask of ones", run(1), () => "Now the same text has a mask. Each bit is 1: attend to this key. The mask adds 0 "
    + `to every score, so the logit is still ${favourite().now}.`],
  ["Padding", run(2), () => `All rows of a batch must have one length, so [PAD] fills row ${state.row}. No mask is `
    + `used. The model attends to [PAD] as to any token, and the logit of ${favourite().name} moves by `
    + `${favourite().moved}.`],
  ["Why it moves", run(2), () => `Look at the numbers of the query [CLS] in layer ${state.layer}, head ${state.head}: `
    + `[PAD] gets ${chosenShare()} of its attention, and the real tokens share the rest. Layer 0 moves first. The `
    + "layers after it compute from values that have already moved."],
  ["The mask", run(3), () => `With the mask, ${additive(-PRECISIONS.float64.max)} is added to the score of each [PAD]. `
    + `exp() of such a number is exactly 0, so [PAD] gets ${chosenShare()}, and the logit of ${favourite().name} is `
    + `${favourite().now} again.`],
  ["Nothing left", nothingLeft, () => `The last mask hides every key of row ${state.row}. With −inf the row becomes `
    + "NaN. Choose other methods under “Mask by”: each gives something else. Then end the tour, undo all changes, "
    + "and flip bits yourself."],
];
let step = -1;

function visit(number) {
  step = number;
  const open = step >= 0 && step < TOUR.length;
  element("guide").hidden = !open;
  document.body.classList.toggle("touring", open);
  if (!open) return element("tour").focus();
  const [title, to, text] = TOUR[step];
  element("predict").checked = false;
  asked = null;
  showQuestion(false);
  update({ ...to, layer: 0, head: leakiest });
  element("guide-title").textContent = `${step + 1} of ${TOUR.length}: ${title}`;
  element("guide-text").textContent = text();
  element("back").disabled = step === 0;
  element("next").textContent = step === TOUR.length - 1 ? "Finish" : "Next";
  element("guide-title").focus();
}

on("tour", "click", () => visit(0));
on("next", "click", () => visit(step + 1));
on("back", "click", () => visit(step - 1));
on("end", "click", () => visit(-1));

// ---- Start: the padded batch with its mask, and the head of layer 0 in which [CLS] attends most to [PAD] without it

element("about").textContent = `A DistilBERT of ${n_layers} layers of ${n_heads} heads. The page holds the weights of `
  + `the checkpoint exactly, as ${data.dtype}, and computes in float64. It needs no network. Made with minibert.`;
onNewColours(() => { palette = readPalette(); drawHeads(); });
palette = readPalette();
buildHeads();
Object.assign(state, run(2));
compute();
const leakiest = range(n_heads).reduce((most, head) =>
  [most, head].reduce((a, b) => padShare(ofHead(rows[state.row].steps, 0, a, "probs"), [0])
    >= padShare(ofHead(rows[state.row].steps, 0, b, "probs"), [0]) ? a : b));
state.head = VIEW.head = leakiest;
if (location.hash.length > 1) restore(location.hash);
else update(run(3));
})();
