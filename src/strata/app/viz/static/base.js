// Data, DOM helpers, numbers as text, highlighting. No dependency, no request, nothing global but names.
"use strict";

const ROOT = document.documentElement;
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("svg").namespaceURI;

// Errors are written where a person (and a test) sees them.
function report(message) {
  ROOT.dataset.errors += message + "\n";
}
addEventListener("error", (event) => report(event.message));
addEventListener("unhandledrejection", (event) => report(String(event.reason)));

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((x) => x != null && x !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// ---- numbers ----

function figure(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
function scaled(value, step, units) {
  let k = 0;
  while (value >= step && k < units.length - 1) {
    value /= step;
    k += 1;
  }
  return (k === 0 && Number.isInteger(value) ? value : figure(value)) + " " + units[k];
}
const bytesText = (x) => scaled(x, 1024, ["B", "KiB", "MiB", "GiB"]);
const rateText = (x, unit) => scaled(x, 1000, ["", "k", "M", "G", "T"]) + unit;
function timeText(seconds) {
  if (seconds == null) return "";
  if (seconds < 1e-6) return figure(seconds * 1e9) + " ns";
  if (seconds < 1e-3) return figure(seconds * 1e6) + " µs";
  return seconds < 1 ? figure(seconds * 1e3) + " ms" : figure(seconds) + " s";
}
const percent = (part, whole) => (whole > 0 ? Math.round((100 * part) / whole) + " %" : "");

// The second number of [size, value] points at a size: linear in between, constant beyond the ends.
function valueAt(points, size, column = 1) {
  if (points.length === 0) return null;
  const after = points.findIndex((p) => p[0] >= size);
  if (after <= 0) return points[after === 0 ? 0 : points.length - 1][column];
  const [p, q] = [points[after - 1], points[after]];
  return p[column] + ((q[column] - p[column]) * (size - p[0])) / (q[0] - p[0]);
}

// ---- what is chosen, and what it costs ----

const dispatchOf = (node) => DATA.dispatch[node.dispatch];
const stackOf = (node) => DATA.stacks[dispatchOf(node).stack];
function sizeOf(node, sizes) {
  const { dim, ranges } = dispatchOf(node);
  const [lo, hi] = [ranges[0][0], ranges[ranges.length - 1][1]];
  return Math.min(Math.max(sizes[dim] ?? lo, lo), hi);
}
function chosenOf(node, sizes) {
  const size = sizeOf(node, sizes);
  return dispatchOf(node).ranges.find(([lo, hi]) => lo <= size && size <= hi)[2];
}
// How much of a stack's estimates, which are for one size of a dim, this size of it takes.
function scaleOf(node, sizes) {
  const { scale } = dispatchOf(node);
  return scale ? (sizes[scale.dim] ?? scale.at) / scale.at : 1;
}
function estimate(node, points, sizes, column = 1) {
  const value = valueAt(points, sizeOf(node, sizes), column);
  return value === null ? null : value * scaleOf(node, sizes);
}
function costOf(node, sizes) {
  return estimate(node, stackOf(node).candidates[chosenOf(node, sizes)].points, sizes) ?? 0;
}

// ---- colours ----

const OPS = [...new Set(DATA.dispatch.map((d) => d.op))];
const opColor = (op) => `var(--c${OPS.indexOf(op) % 8})`;
const candidateColor = (k) => `var(--c${k % 8})`;

// ---- highlighting ----

const words = (text) => new Set(text.split(" "));
const WORDS = {
  ir: words("func dims return for in parallel unroll vectorize serial block alloc let if else where init and or not " +
    "call register local spatial reduce body loop loops factor"),
  llvm: words("define declare ret br load store getelementptr phi add mul sub icmp fadd fmul fcmp select call sext zext " +
    "trunc bitcast insertelement extractelement shufflevector label private global target datalayout triple attributes"),
};
const TYPE = /^(f64|f32|f16|bf16|i64|i32|i16|i8|i1|u8|u16|u32|bool|cache|ptr|void|float|double|half|bfloat)(x\d+)?$/;
const TOKEN = /("(?:[^"\\]|\\.)*")|([%@!][\w.$-]+)|(-?\b0x[\da-f.]+p[+-]?\d+|-?\b0x[\da-f]+\b|\$?-?\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b)|([A-Za-z_][\w.]*)/gi;
const COMMENT = { ir: /(^\s*\/\/|#).*$/, llvm: /;.*$/, asm: /#.*$/ };

function tokenClass(match, line, kind) {
  if (match[1]) return "str";
  if (match[2]) return "var";
  if (match[3]) return "num";
  const word = match[4];
  if (kind === "asm") {
    if (/^\s+$/.test(line.slice(0, match.index))) return "kw";
    return line.endsWith(":") ? "fn" : null;
  }
  if (WORDS[kind].has(word)) return "kw";
  if (TYPE.test(word)) return "ty";
  return /^[({]/.test(line.slice(match.index + word.length)) ? "fn" : null;
}

// One line of code as DOM nodes.
function tokens(line, kind) {
  const comment = COMMENT[kind]?.exec(line);
  const code = comment ? line.slice(0, comment.index) : line;
  const out = [];
  let end = 0;
  for (const match of code.matchAll(TOKEN)) {
    const name = tokenClass(match, code, kind);
    if (!name) continue;
    out.push(code.slice(end, match.index), h("span", { class: name }, match[0]));
    end = match.index + match[0].length;
  }
  out.push(code.slice(end));
  if (comment) out.push(h("span", { class: "com" }, comment[0]));
  return out;
}
function codeBlock(text, kind, label) {
  const lines = text.replace(/\n+$/, "").split("\n");
  return h(
    "pre",
    { class: "code", tabindex: 0, "aria-label": label },
    lines.map((line) => h("span", { class: "line" }, tokens(line, kind), "\n")),
  );
}

// A row of choices of which one is taken; arrow keys move.
function choices(label, entries, current, pick, role = "tablist") {
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const names = entries.map(([value]) => value);
    const next = names[(names.indexOf(current) + by + names.length) % names.length];
    pick(next);
    document.querySelector(`[data-choice="${label}"] [aria-selected=true]`)?.focus();
  };
  return h(
    "div",
    { class: "choices", role, "aria-label": label, "data-choice": label, onkeydown: step },
    entries.map(([value, text]) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(value === current),
          tabindex: value === current ? 0 : -1,
          onclick: () => pick(value),
        },
        text,
      ),
    ),
  );
}

// ---- tooltips: any element with data-tip ----

const TIP = h("div", { id: "tip", role: "tooltip", hidden: true });
document.body.append(TIP);
document.addEventListener("pointermove", (event) => {
  const owner = event.target.closest?.("[data-tip]");
  TIP.hidden = !owner;
  if (!owner) return;
  TIP.textContent = owner.dataset.tip;
  const x = Math.min(event.clientX + 14, innerWidth - TIP.offsetWidth - 8);
  const below = event.clientY + 18;
  const y = below + TIP.offsetHeight > innerHeight ? event.clientY - TIP.offsetHeight - 8 : below;
  TIP.style.translate = `${Math.max(x, 4)}px ${Math.max(y, 4)}px`;
});
document.addEventListener("scroll", () => (TIP.hidden = true), true);
