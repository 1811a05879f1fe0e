"use strict";
// What the attention page and the laboratory share: numbers, elements, colours. Texts enter a page as text only
// (textContent), never as HTML.
const element = id => document.getElementById(id);

// ---- Numbers

const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const exponent = bits >> 10 & 31, fraction = bits & 1023;
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  return (bits >> 15 ? -1 : 1) * (exponent < 31 ? size : fraction ? NaN : Infinity);
});

// Little-endian float16 in base64 -> Float32Array.
function readHalves(base64) {
  const bytes = atob(base64);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++)
    values[i] = HALVES[bytes.charCodeAt(2 * i) | bytes.charCodeAt(2 * i + 1) << 8];
  return values;
}

const percent = share => share === 0 ? "0" : `${(100 * share).toFixed(1)}%`;
const signed = x => x === 0 ? "0" : (x < 0 ? "−" : "+") + Math.abs(x).toFixed(4);

// ---- Elements

function make(tag, text = "", properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, properties);
}

function makeSvg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function fillTable(table, header, rows) {
  const head = make("thead"), body = make("tbody");
  head.append(make("tr"));
  head.firstChild.append(...header.map(title => make("th", title, { scope: "col" })));
  body.append(...rows.map(cells => {
    const line = make("tr");
    line.append(...cells.map((cell, i) => i ? make("td", cell) : make("th", cell, { scope: "row" })));
    return line;
  }));
  table.replaceChildren(head, body);
}

// In a notebook no map is cut: the frame gets the height of the page, if the notebook lets a page reach its frame.
document.documentElement.classList.toggle("framed", self !== top);
if (frameElement) new ResizeObserver(() => {
  frameElement.style.height = `${document.body.offsetHeight}px`;
}).observe(document.body);

// ---- Colours: they follow √|value|, so that small weights stay visible

const strength = (value, full = 1) => Math.sqrt(Math.min(1, Math.abs(value) / full));

// The colours for -1 to 1: scale, 511 triples; and as pixels, colours and their dimmed variants.
function readPalette(end = "high") {
  const style = getComputedStyle(document.documentElement);
  const [low, minus, high, paper] = ["low", "minus", end, "paper"].map(name =>
    [1, 3, 5].map(i => parseInt(style.getPropertyValue(`--${name}`).trim().slice(i, i + 2), 16)));
  const mix = (from, to, share) => from.map((c, i) => Math.round(c + (to[i] - c) * share));
  const scale = Array.from({ length: 511 }, (_, i) => mix(low, i < 255 ? minus : high, Math.abs(i - 255) / 255));
  const pixels = list => new Uint32Array(new Uint8Array(list.flatMap(colour => [...colour, 255])).buffer);
  return { scale, colours: pixels(scale), dimmed: pixels(scale.map(colour => mix(paper, colour, 0.35))) };
}

// One pixel for each query and key, (S, S). The rows of padded queries are dimmed, since nobody reads them.
// full: the value with the full colour.
function paintMap(canvas, values, palette, real, full = 1) {
  const S = canvas.width = canvas.height = real.length;
  const image = new ImageData(S, S);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < S * S; i++) {  // NaN has no colour: its pixel stays empty
    const table = real[Math.floor(i / S)] ? palette.colours : palette.dimmed;
    pixels[i] = table[255 + Math.round(Math.sign(values[i]) * strength(values[i], full) * 255)];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Call a function when the colours change. A printed page is light, even where the screen is dark.
function onNewColours(repaint) {
  const printing = on => { document.documentElement.classList.toggle("print", on); repaint(); };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
}

