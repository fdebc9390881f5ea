// What is known about one node: candidates and their costs, operands, schedule, loops, machine code.
"use strict";

const CODE_TABS = [
  ["loop", "Scheduled loop"],
  ["naive", "Naive loop"],
  ["trace", "Schedule"],
  ["asm", "Assembly"],
  ["llvm", "LLVM"],
  ["graph", "Graph"],
];

function rangeText(dim, lo, hi) {
  return lo === hi ? (/^\d/.test(dim) ? "always" : `${dim} = ${lo}`) : `${dim} = ${lo} … ${hi}`;
}

function panel(fn, index, state, actions) {
  const node = fn.nodes[index];
  const stack = stackOf(node);
  const chosen = chosenOf(node, state.sizes);
  const shown = Math.min(state.candidate ?? chosen, stack.candidates.length - 1);
  return h("article", {
    class: "panel",
    "aria-label": node.name,
    "data-node": node.name,
    "data-candidate": stack.candidates[chosen].name,
  },
    panelHead(fn, node, index, state, actions),
    section("Candidates", candidateTable(node, stack, chosen, shown, state, actions), costChart(node, stack, state)),
    section("Operands", operandTable(fn, node, actions)),
    section("Code", codeView(stack, shown, state, actions)));
}

const section = (title, ...children) => h("section", {}, h("h3", {}, title), ...children);

function panelHead(fn, node, index, state, actions) {
  const go = (to, text, label) => h("button", {
    type: "button", class: "quiet", "aria-label": label, disabled: !fn.nodes[to],
    onclick: () => actions.select(fn.nodes[to].name),
  }, text);
  const { dim, ranges } = dispatchOf(node);
  const names = stackOf(node).candidates.map((c) => c.name);
  const runs = ranges.map(([lo, hi, k]) =>
    h("li", {}, h("i", { class: "swatch", style: `--op:${candidateColor(k)}` }),
      h("b", {}, names[k]), h("span", { class: "note" }, rangeText(dim, lo, hi))));
  return h("header", {},
    h("div", { class: "title" }, h("h2", { tabindex: -1 }, node.name),
      h("span", { class: "pager" }, go(index - 1, "↑", "previous node"),
        `${index + 1} of ${fn.nodes.length}`, go(index + 1, "↓", "next node"))),
    h("p", { class: "facts" }, h("span", { class: "op", style: `--op:${opColor(node.op)}` }, node.op),
      h("code", {}, node.type), h("span", { class: "note" }, `computes ${node.does}, into ${node.place}`)),
    h("ul", { class: "runs" }, runs));
}

function candidateTable(node, stack, chosen, shown, state, actions) {
  const size = sizeOf(node, state.sizes);
  const { dim, ranges, scale } = dispatchOf(node);
  const scaled = scaleOf(node, state.sizes) !== 1;
  const times = stack.candidates.map((c) => estimate(node, c.points, state.sizes));
  const best = Math.min(...times.filter((t) => t !== null));
  const flop = estimate(node, stack.work, state.sizes, 1);
  const bytes = estimate(node, stack.work, state.sizes, 2);
  const rows = stack.candidates.map((c, k) => {
    const used = ranges.filter((r) => r[2] === k).map(([lo, hi]) => rangeText(dim, lo, hi)).join(", ");
    const pick = () => actions.pick(k);
    return h("tr", {
      class: k === chosen ? "chosen" : null, "aria-selected": String(k === shown), tabindex: 0, onclick: pick,
      onkeydown: (e) => (e.key === "Enter" || e.key === " ") && (e.preventDefault(), pick()),
    },
      h("td", {}, h("i", { class: "swatch", style: `--op:${candidateColor(k)}` }), c.name,
        k === chosen && h("span", { class: "badge" }, "chosen")),
      h("td", {}, c.origin),
      h("td", {}, used || "never", c.when && h("span", { class: "note" }, ` (legal for ${c.when})`)),
      h("td", { class: "number" }, timeText(times[k])),
      h("td", { class: "number" }, times[k] === null ? "" : `${figure(times[k] / best)}×`),
      h("td", { class: "number" }, times[k] ? rateText(flop / times[k], "flop/s") : ""),
      h("td", { class: "number" }, times[k] ? rateText(bytes / times[k], "B/s") : ""),
      h("td", {}, c.source, scaled && h("span", { class: "note" }, `, from ${scale.dim} = ${scale.at}`)));
  });
  const at = scale ? `at ${scale.dim} = ${state.sizes[scale.dim]}` : /^\d/.test(dim) ? "estimate" : `at ${dim} = ${size}`;
  const heads = ["candidate", "from", "runs for", at, "of best", "compute", "memory", "source"];
  return h("div", { class: "scroll" }, h("table", { class: "candidates" },
    h("thead", {}, h("tr", {}, heads.map((x) => h("th", {}, x)))), h("tbody", {}, rows)));
}

// ---- cost over size ----

const CHART = { width: 660, height: 230, left: 58, right: 14, top: 26, bottom: 34 };

function logScale(lo, hi, from, to) {
  const [a, b] = [Math.log(lo), Math.log(hi)];
  return (v) => from + ((Math.log(v) - a) / (b - a || 1)) * (to - from);
}
// Round times between two, in seconds: 1, 2, 5 of every decade, or the decades alone.
function roundTimes(lo, hi) {
  const steps = hi / lo < 300 ? [1, 2, 5] : [1];
  const found = [];
  for (let e = Math.floor(Math.log10(lo)); 10 ** e <= hi; e++) found.push(...steps.map((k) => k * 10 ** e));
  return found.filter((v) => lo <= v && v <= hi);
}
function powersOf(base, lo, hi, most) {
  const first = Math.ceil(Math.log(lo) / Math.log(base) - 1e-9);
  const last = Math.floor(Math.log(hi) / Math.log(base) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first + 1) / most));
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, k) => base ** (first + k * step));
}

function costChart(node, stack, state) {
  const { dim, ranges } = dispatchOf(node);
  const [lo, hi] = [ranges[0][0], ranges[ranges.length - 1][1]];
  const times = stack.candidates.flatMap((c) => c.points.map((p) => p[1])).filter((t) => t > 0);
  if (lo === hi || times.length === 0) return null;
  const c = CHART;
  const [floor, roof] = [Math.min(...times) / 1.3, Math.max(...times) * 1.3];
  const x = logScale(Math.max(lo, 1), hi, c.left, c.width - c.right);
  const y = logScale(floor, roof, c.height - c.bottom, c.top);
  const at = (size) => x(Math.max(size, 1));
  const ticks = powersOf(2, Math.max(lo, 1), hi, 10).map((v) => s("g", { class: "tick" },
    s("line", { x1: x(v), x2: x(v), y1: c.top, y2: c.height - c.bottom }),
    s("text", { x: x(v), y: c.height - c.bottom + 15, "text-anchor": "middle" }, v)));
  const levels = roundTimes(floor, roof).map((v) => s("g", { class: "tick" },
    s("line", { x1: c.left, x2: c.width - c.right, y1: y(v), y2: y(v) }),
    s("text", { x: c.left - 7, y: y(v) + 4, "text-anchor": "end" }, timeText(v).replace(/\.0+ /, " "))));
  const size = sizeOf(node, state.sizes);
  return h("figure", {},
    s("svg", { class: "chart", viewBox: `0 0 ${c.width} ${c.height}`, role: "img",
      "aria-label": `cost of ${stack.candidates.length} candidates over ${dim}` },
      ranges.map((range, k) => rangeBand(range, at, stack, ranges[k + 1]?.[0] ?? hi)), ticks, levels,
      stack.candidates.map((candidate, k) => curve(candidate, k, at, y)),
      s("line", { class: "now", x1: at(size), x2: at(size), y1: c.top, y2: c.height - c.bottom }),
      s("text", { class: "axis", x: c.width - c.right, y: c.height - 4, "text-anchor": "end" }, `${dim} →`)),
    h("figcaption", {}, "Time per launch over the size, both axes logarithmic. Shaded: what runs there."));
}

function rangeBand([lo, hi, k], at, stack, next) {
  const c = CHART;
  const [from, to] = [at(lo), at(next)];
  return s("g", { class: "band", style: `--op:${candidateColor(k)}`, "data-tip": `${lo} … ${hi}: ${stack.candidates[k].name}` },
    s("rect", { x: from, y: c.top, width: Math.max(to - from, 2), height: c.height - c.top - c.bottom }),
    s("line", { class: "switch", x1: from, x2: from, y1: c.top - 8, y2: c.height - c.bottom }),
    s("text", { x: from + 4, y: c.top - 8 }, `from ${lo}`));
}

function curve(candidate, k, at, y) {
  const points = candidate.points.filter((p) => p[1] > 0).map(([size, time]) => [at(size), y(time), size, time]);
  return s("g", { class: "curve", style: `--op:${candidateColor(k)}` },
    s("path", { d: points.map(([px, py], n) => `${n ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("") }),
    points.map(([cx, cy, size, time]) => s("circle", { cx, cy, r: candidate.source === "measured" ? 3.2 : 2,
      "data-tip": `${candidate.name}\n${timeText(time)} at ${size} (${candidate.source})` })));
}

// ---- operands and code ----

function operandTable(fn, node, actions) {
  const rows = node.inputs.map((o, k) => h("tr", {},
    h("td", {}, `%${o.type.startsWith("cache") ? "cache" : "a"}${k}`),
    h("td", {}, o.from >= 0
      ? h("button", { type: "button", class: "link", onclick: () => actions.select(fn.nodes[o.from].name) }, fn.nodes[o.from].name)
      : `${o.kind} ${o.name}`),
    h("td", {}, h("code", {}, o.type)),
    h("td", {}, o.place, o.stored && h("span", { class: "note" }, ` stored as ${o.stored}`))));
  const heads = ["", "made by", "type", "place"];
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((x) => h("th", {}, x)))), h("tbody", {}, rows)));
}

function codeView(stack, shown, state, actions) {
  const candidate = stack.candidates[shown];
  const kernel = DATA.kernels[candidate.kernel];
  const notCompiled = `${candidate.name} is not chosen for any size, so no code was made for it.`;
  const [text, kind] = {
    loop: [kernel.loop, "ir"],
    naive: [stack.naive, "ir"],
    trace: [candidate.trace.split("; ").join("\n") || "The schedule changes nothing.", "ir"],
    asm: [kernel.asm ?? notCompiled, "asm"],
    llvm: [kernel.llvm ?? notCompiled, "llvm"],
    graph: [stack.body, "ir"],
  }[state.code];
  const label = CODE_TABS.find(([name]) => name === state.code)[1];
  return h("div", { class: "codeview", "data-code": state.code, "data-kernel": candidate.kernel },
    choices("code", CODE_TABS, state.code, actions.code),
    h("p", { class: "note" }, `${candidate.name} · ${candidate.kernel} · `, `${text.trimEnd().split("\n").length} lines`),
    codeBlock(text, kind, label));
}
