// Shows the data that page.py put into the page: for each run (one state of the model, without the mask or with it) the
// scores of every row, layer and head. S is the number of tokens, padding included. A map is (S, S): (query, key).
(() => {
const data = JSON.parse(element("data").textContent);
const S = data.tokens[0].length;
const states = [...new Set(data.runs.map(run => run.state))];
const at = { row: 0, layer: 0, head: 0, query: 0, masked: false, state: states[0] };  // layer, head: indices
const LINE = 18;  // height of a token in the head view

// ---- Numbers: from float16 to probabilities

// Returns a function that computes its result once for each list of arguments.
function remember(compute) {
  const known = new Map();
  return (...key) => {
    const name = key.join();
    if (!known.has(name)) known.set(name, compute(...key));
    return known.get(name);
  };
}

// One row of one layer, all heads: (H, S, S).
const unpacked = remember((run, what, row, layer) => readHalves(data.runs[run][what][layer][row]));
const ofHead = (run, what, row, layer, head) =>
  unpacked(run, what, row, layer).subarray(head * S * S, (head + 1) * S * S);
const scores = (run, row, layer, head) => ofHead(run, "scores", row, layer, head);
const additive = (run, row, key) => data.runs[run].masked && !data.real[row][key] ? data.mask : 0;
const edited = (run, layer) => layer in data.runs[run].probs;  // then page.py also sends the probabilities

const probs = remember((run, row, layer, head) => {
  if (edited(run, layer)) return ofHead(run, "probs", row, layer, head);
  const values = scores(run, row, layer, head).slice();
  const mask = data.real[row].map((_, key) => additive(run, row, key));
  for (let start = 0; start < S * S; start += S) {
    const keys = values.subarray(start, start + S);
    let greatest = -Infinity, sum = 0;
    for (let i = 0; i < S; i++) greatest = Math.max(greatest, keys[i] += mask[i]);
    for (let i = 0; i < S; i++) sum += keys[i] = Math.exp(keys[i] - greatest);
    for (let i = 0; i < S; i++) keys[i] /= sum;
  }
  return values;
});

const runOf = (state, masked) => data.runs.findIndex(run => run.state === state && run.masked === masked);
const differing = () => at.state === "difference";

// The values of a map: the probabilities of a run, or what the change adds to them.
function shown(layer, head) {
  if (!differing()) return probs(runOf(at.state, at.masked), at.row, layer, head);
  const [before, after] = states.map(state => probs(runOf(state, at.masked), at.row, layer, head));
  return after.map((p, i) => p - before[i]);
}

// The share of attention that real queries give to padding, mean over these queries.
function padMass(values) {
  const real = data.real[at.row];
  let sum = 0;
  for (let query = 0; query < S; query++)
    for (let key = 0; key < S; key++) if (real[query] && !real[key]) sum += values[query * S + key];
  return sum / real.reduce((a, b) => a + b);
}

// ---- Colours: they follow √|value|, so that small weights stay visible

let full = 1;  // the value with the full colour: 1, or the largest difference in this row

function readScale() {
  full = 1;
  if (!differing()) return;
  full = 0;
  buttons.forEach((line, layer) => line.forEach((_, head) =>
    shown(layer, head).forEach(x => { full = Math.max(full, Math.abs(x)); })));
  full ||= 1;
}

let palette;

function drawLegend() {
  palette = readPalette(differing() ? "plus" : "high");
  const stops = (differing() ? [0, 255, 510] : [255, 510]).map(i => `rgb(${palette.scale[i]})`);
  const parts = differing() ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  const ticks = parts.map(part => String(+(part * Math.abs(part) * full).toPrecision(2)).replace("-", "−"));
  element("legend").style.borderImage = `linear-gradient(to right, ${stops}) 1`;
  element("legend").replaceChildren(...ticks.map(tick => make("span", tick)));
}

const paint = (canvas, values) => paintMap(canvas, values, palette, data.real[at.row], full);

// ---- Parts of the page

const token = position => data.tokens[at.row][position];
const padded = position => data.real[at.row][position] ? "" : "pad";
const runName = run => (states.length > 1 ? `${run.state}, ` : "") + (run.masked ? "with mask" : "without mask");

const buttons = data.layers.map((_, layer) => data.heads.map((_, head) => {
  const button = make("button", "", { type: "button", onclick: () => move({ layer, head }) });
  button.append(make("canvas"), make("span"));
  button.firstChild.style.imageRendering = S > 52 ? "auto" : "pixelated";
  return button;
}));

function buildGrid() {
  const titles = make("tr");
  titles.append(make("th"), ...data.heads.map(head => make("th", `head ${head}`, { scope: "col" })));
  element("grid").append(titles, ...buttons.map((line, layer) => {
    const row = make("tr");
    row.append(make("th", `layer ${data.layers[layer]}`, { scope: "row" }), ...line.map(button => {
      const cell = make("td");
      cell.append(button);
      return cell;
    }));
    return row;
  }));
}

function drawGrid() {
  const hasPadding = data.real[at.row].includes(0);
  const masses = [];
  buttons.forEach((line, layer) => line.forEach((button, head) => {
    const values = shown(layer, head);
    const [canvas, caption] = button.children;
    paint(canvas, values);
    masses.push(padMass(values));
    const change = differing() ? values.reduce((most, x) => Math.max(most, Math.abs(x)), 0).toFixed(2) : "";
    caption.textContent = differing() ? `Δ ${change}` : hasPadding ? percent(masses.at(-1)) : "";
    const meaning = differing() ? `largest change ${change}` : `${percent(masses.at(-1))} to padding`;
    button.setAttribute("aria-label", `layer ${data.layers[layer]}, head ${data.heads[head]}, ${meaning}`);
  }));
  const mean = percent(masses.reduce((a, b) => a + b) / masses.length);
  element("grid-note").textContent = differing() ? "Below each its largest change (Δ)" : hasPadding
    ? `Below each: attention from real queries to [PAD]; mean ${mean}`
    : "This row has no [PAD], so its mask changes nothing";
}

function drawChosen() {
  buttons.forEach((line, layer) => line.forEach((button, head) => {
    const chosen = layer === at.layer && head === at.head;
    button.setAttribute("aria-pressed", chosen);
    button.tabIndex = chosen ? 0 : -1;  // Tab goes to the chosen one, the arrows to the others
  }));
  const name = `Layer ${data.layers[at.layer]}, head ${data.heads[at.head]}`;
  const run = differing() ? `after − before, ${at.masked ? "with" : "without"} mask`
    : runName(data.runs[runOf(at.state, at.masked)]);
  element("map-title").textContent = `${name}, ${run}`;
  element("map").setAttribute("aria-label", `${name}: attention of ${S} queries, down, to ${S} keys, across`);
  element("hover").textContent = "Point at a cell to see its numbers, click to choose its query";
  paint(element("map"), shown(at.layer, at.head));
}

// The labels of the large map, and the hatching over its padded keys.
function drawAxes() {
  const cell = Math.max(12, Math.min(26, Math.floor(460 / S)));
  document.documentElement.style.setProperty("--cell", `${cell}px`);
  document.documentElement.style.setProperty("--label", `${Math.min(13, cell - 1)}px`);
  element("map").style.width = element("map").style.height = `${cell * S}px`;
  const labels = onclick => data.tokens[at.row].map((text, i) =>
    make("li", text, { className: padded(i), title: `${i} ${text}`, onclick: () => onclick(i) }));
  element("keys").replaceChildren(...labels(() => {}));
  element("queries").replaceChildren(...labels(query => move({ query })));
  element("query").replaceChildren(
    ...data.tokens[at.row].map((text, i) => make("option", `${i} ${text}`, { value: i })));
  element("plot").replaceChildren(element("map"), make("i", "", { className: "frame" }));
  element("plot").lastChild.style.cssText = `left: 0; width: 100%; height: ${cell}px`;
  data.real[at.row].forEach((real, i) => {
    if (real) return;
    const hatch = make("i", "", { className: "hatch" });
    hatch.style.cssText = `top: 0; height: 100%; left: ${i * cell}px; width: ${cell}px`;
    element("plot").append(hatch);
  });
}

function drawLines() {
  const weights = shown(at.layer, at.head).subarray(at.query * S, (at.query + 1) * S);
  const y = position => (position + 0.7) * LINE;
  const text = (i, x, side, anchor) => makeSvg("text", {
    x, y: y(i) + 4, "text-anchor": anchor,
    class: [side, padded(i), side === "query" && i === at.query ? "chosen" : ""].join(" "),
  }, token(i));
  const colour = weight => `var(--${!differing() ? "high" : weight < 0 ? "minus" : "plus"})`;
  const lines = Array.from(weights, (weight, i) => makeSvg("line", {
    x1: 125, y1: y(at.query), x2: 245, y2: y(i), "stroke-width": 2, style: `stroke: ${colour(weight)}`,
    "stroke-opacity": strength(weight, full).toFixed(3), "data-weight": weight,
  }));
  const queries = data.tokens[at.row].map((_, i) => text(i, 118, "query", "end"));
  queries.forEach((label, query) => label.addEventListener("click", () => move({ query })));
  const svg = element("lines");
  svg.setAttribute("width", 370);
  svg.setAttribute("height", (S + 0.5) * LINE);
  svg.replaceChildren(...lines, ...queries, ...data.tokens[at.row].map((_, i) => text(i, 252, "key", "start")));
  const order = Array.from(weights.keys()).sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]));
  const strongest = order.slice(0, 3).map(i => `${token(i)} ${weights[i].toFixed(4)}`);
  svg.setAttribute("aria-label", `From ${token(at.query)}, strongest first: ${strongest.join(", ")}`);
}

function drawNumbers() {
  const ofQuery = values => values.subarray(at.query * S, (at.query + 1) * S);
  const [now, other] = [at.masked, !at.masked].map(masked => runOf(differing() ? states[1] : at.state, masked));
  const chosen = run => ofQuery(probs(run, at.row, at.layer, at.head));
  const number = p => p === 0 ? "0" : p.toFixed(4);  // "0" means exactly 0
  element("numbers-title").textContent = `What query ${at.query}, ${token(at.query)}, computes for each key`;
  const isEdited = edited(now, at.layer);
  element("numbers-note").textContent = differing() ? "Probabilities" : isEdited
    ? "The change is between score and probability: this is not the softmax of the scores"
    : "softmax(score + mask) = probability";
  let header, rows;
  if (differing()) {
    const before = chosen(runOf(states[0], at.masked)), after = chosen(now);
    header = ["key", "before", "after", "after − before"];
    rows = data.tokens[at.row].map((text, i) =>
      [text, number(before[i]), number(after[i]), signed(after[i] - before[i])]);
  } else {
    const score = ofQuery(scores(now, at.row, at.layer, at.head)), p = chosen(now), q = chosen(other);
    header = ["key", "score", "+ mask", "= masked score", "probability", at.masked ? "without mask" : "with mask"];
    rows = data.tokens[at.row].map((text, i) => {
      const mask = additive(now, at.row, i);
      const sum = mask ? (score[i] + mask).toPrecision(4) : score[i].toFixed(3);
      return [text, score[i].toFixed(3), !at.masked ? "none" : mask ? mask.toPrecision(2) : "0",
        isEdited ? "edited" : sum, number(p[i]), number(q[i])];
    });
  }
  fillTable(element("numbers"), header, rows);
  [...element("numbers").tBodies[0].rows].forEach((row, i) => { row.className = padded(i); });
  [...element("queries").children].forEach((label, i) => label.classList.toggle("chosen", i === at.query));
  document.querySelector(".frame").style.top = `${at.query * 100 / S}%`;
}

function drawPredictions() {
  const columns = data.runs.map(run => run.predictions[at.row]);
  element("predicted").hidden = !columns[0].length;
  fillTable(element("predictions"), ["", ...data.runs.map(runName)],
    columns[0].map(([name], i) => [name, ...columns.map(column => column[i][1])]));
  for (const { cells } of element("predictions").rows)
    data.runs.forEach((run, i) => cells[i + 1].classList.toggle(
      "now", run.masked === at.masked && (differing() || run.state === at.state)));
}

// ---- Controls

// Change what is shown, and draw the parts that change with it.
function move(to) {
  const everything = ["row", "masked", "state"].some(name => name in to);
  Object.assign(at, to);
  if ("row" in to) {
    at.query = 0;
    drawAxes();
  }
  if (everything) {
    readScale();
    drawLegend();
    drawGrid();
    drawPredictions();
  }
  if (everything || "layer" in to || "head" in to) drawChosen();
  drawLines();
  drawNumbers();
  for (const name of ["row", "state", "query"]) element(name).value = at[name];
  element("mask").checked = at.masked;
}

function find(first) {
  const wanted = element("find").value.toLowerCase();
  const places = [...Array(S).keys()].map(i => (first + i) % S);
  const query = places.find(i => token(i).toLowerCase().includes(wanted));
  element("find").setAttribute("aria-invalid", query === undefined);
  if (!wanted || query === undefined) return;
  move({ query });
  element("queries").children[query].scrollIntoView({ block: "nearest", inline: "nearest" });
}

const ARROWS = { ArrowLeft: ["head", -1], ArrowRight: ["head", 1], ArrowUp: ["layer", -1], ArrowDown: ["layer", 1] };

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input[type=search]")) return;
  if (event.key in ARROWS) {
    const [name, step] = ARROWS[event.key];
    const last = data[`${name}s`].length - 1;
    const inGrid = document.activeElement.closest("#grid");
    move({ [name]: Math.max(0, Math.min(last, at[name] + step)) });
    if (inGrid) buttons[at.layer][at.head].focus();
  } else if (event.key === "m") move({ masked: !at.masked });
  else if (event.key === "/") element("find").focus();
  else return;
  event.preventDefault();
});

element("find").addEventListener("input", () => find(at.query));
element("find").addEventListener("keydown", event => {
  if (event.key === "Enter") find(at.query + 1);
  if (event.key === "Escape") event.target.blur();
});
document.forms[0].addEventListener("submit", event => event.preventDefault());
element("row").addEventListener("change", event => move({ row: Number(event.target.value) }));
element("query").addEventListener("change", event => move({ query: Number(event.target.value) }));
element("state").addEventListener("change", event => move({ state: event.target.value }));
element("mask").addEventListener("change", event => move({ masked: event.target.checked }));

function cellAt(event) {
  const box = element("map").getBoundingClientRect();
  const index = (place, start, size) => Math.max(0, Math.min(S - 1, Math.floor((place - start) / size * S)));
  return [index(event.clientY, box.top, box.height), index(event.clientX, box.left, box.width)];
}

element("plot").addEventListener("mousemove", event => {
  const [query, key] = cellAt(event);
  const value = shown(at.layer, at.head)[query * S + key];
  const score = () => scores(runOf(at.state, at.masked), at.row, at.layer, at.head)[query * S + key];
  const numbers = differing() ? signed(value) : `score ${score().toFixed(3)}, probability ${value.toFixed(4)}`;
  element("hover").textContent = `${token(query)} → ${token(key)}: ${numbers}`;
});
element("plot").addEventListener("click", event => move({ query: cellAt(event)[0] }));

onNewColours(() => move({ masked: at.masked }));

element("row").append(
  ...data.tokens.map((row, i) => make("option", `${i} ${row.slice(1, 8).join(" ")}`, { value: i })));
element("state").append(...[...states, "difference"].map(state => make("option", state, { value: state })));
element("state-label").hidden = states.length < 2;
buildGrid();
move({ row: 0 });
})();
