// State, the address (#function=decode&node=...&code=asm, #view=passes&pass=3), and the page around the views.
"use strict";

const FUNCTIONS = new Map(DATA.functions.map((f) => [f.name, f]));
const STATE = {
  view: "graph",
  function: FUNCTIONS.has("decode") ? "decode" : DATA.functions[0].name,
  node: null,
  candidate: null, // index; null = the chosen one
  code: "loop",
  pass: Math.max(0, DATA.passes.runs.findIndex((r) => r.functions.some((f) => f.hunks.length))),
  split: false,
  query: "",
  open: new Set(), // blocks that show all their layers: "decode/1"
  sizes: {},
};

// ---- address ----

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const node = given.get("node");
  const owners = DATA.functions.filter((f) => f.nodes.some((n) => n.name === node)).map((f) => f.name);
  const wanted = [given.get("function"), STATE.function, ...owners];
  const name = wanted.find((x) => FUNCTIONS.has(x) && (!node || owners.length === 0 || owners.includes(x)));
  if (name !== STATE.function) STATE.sizes = startSizes(name);
  STATE.function = name;
  if (STATE.node !== node) STATE.candidate = null;
  STATE.node = owners.includes(name) ? node : null;
  STATE.view = given.get("view") === "passes" || given.has("pass") ? "passes" : "graph";
  const pass = Number(given.get("pass") ?? STATE.pass);
  STATE.pass = pass in DATA.passes.runs ? pass : 0;
  if (CODE_TABS.some(([x]) => x === given.get("code"))) STATE.code = given.get("code");
}

function go(changes) {
  Object.assign(STATE, changes);
  const parts = { function: STATE.function };
  if (STATE.view === "passes") Object.assign(parts, { view: "passes", pass: STATE.pass });
  else if (STATE.node) Object.assign(parts, { node: STATE.node, code: STATE.code });
  const hash = "#" + new URLSearchParams(parts);
  if (hash === location.hash) draw();
  else location.hash = hash; // draws when the address has changed
}

const startSizes = (name) => Object.fromEntries(FUNCTIONS.get(name).dims.map((d) => [d.name, d.start]));

const ACTIONS = {
  select: (node) => go({ node, candidate: null }),
  toggle: (key) => {
    if (!STATE.open.delete(key)) STATE.open.add(key);
    drawList();
    document.querySelector(`[data-block="${key.split("/")[1]}"]`)?.focus();
  },
  pick: (candidate) => {
    STATE.candidate = candidate;
    drawPanel();
    document.querySelector(".candidates [aria-selected=true]")?.focus();
  },
  code: (code) => go({ code }),
  pass: (pass) => go({ pass }),
  split: (split) => {
    STATE.split = split;
    drawPanel();
  },
};

// ---- the page ----

const PLACES = {
  head: h("header", { id: "head" }),
  summary: h("section", { id: "summary", "aria-label": "summary" }),
  list: h("nav", { id: "list", "aria-label": "nodes" }),
  panel: h("main", { id: "panel" }),
};

function drawHead() {
  const theme = h("button", { type: "button", class: "quiet", "aria-label": "light or dark", onclick: flipTheme }, "◐");
  const names = DATA.functions.map((f) => [f.name, f.name]);
  PLACES.head.replaceChildren(
    h("h1", {}, h("span", { class: "brand" }, "strata"), DATA.model.name),
    choices("view", [["graph", "Graph"], ["passes", "Passes"]], STATE.view, (view) => go({ view })),
    choices("function", names, STATE.function, (name) => {
      const kept = FUNCTIONS.get(name).nodes.some((n) => n.name === STATE.node) ? STATE.node : null;
      STATE.sizes = startSizes(name);
      go({ function: name, node: kept });
    }),
    h("span", { class: "grow" }),
    h("span", { class: "note target", "data-tip": DATA.model.target }, targetText()),
    theme);
}

// "host · znver4 · 2 cores" of "host{cpu=znver4,...,num_cores=2}"
function targetText() {
  const [, name, rest = ""] = /^([^{]*)\{?(.*)/.exec(DATA.model.target);
  const facts = Object.fromEntries(rest.replace(/}$/, "").split(",").map((x) => x.split("=")));
  return [name, facts.cpu, facts.num_cores && `${facts.num_cores} cores`].filter(Boolean).join(" · ");
}

function flipTheme() {
  const dark = ROOT.dataset.theme ? ROOT.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  ROOT.dataset.theme = dark ? "light" : "dark";
}

const card = (label, value, note, tip) => h("div", { class: "card", "data-tip": tip },
  h("span", { class: "label" }, label), h("b", {}, value), h("span", { class: "note" }, note));

function drawSummary() {
  const fn = FUNCTIONS.get(STATE.function);
  const first = DATA.passes.runs[0]?.functions.find((f) => f.name === fn.name);
  const kernels = new Set(fn.nodes.flatMap((n) =>
    dispatchOf(n).ranges.map((r) => stackOf(n).candidates[r[2]].kernel)));
  const byOp = new Map();
  for (const n of fn.nodes) byOp.set(n.op, (byOp.get(n.op) ?? 0) + costOf(n, STATE.sizes));
  const total = [...byOp.values()].reduce((a, b) => a + b, 0);
  const sources = [...new Set(fn.nodes.map((n) => stackOf(n).candidates[chosenOf(n, STATE.sizes)].source))].join(", ");
  const ops = [...byOp].sort((a, b) => b[1] - a[1]);
  const options = DATA.model.options.map(([name, value]) => `${name}: ${value}`);
  PLACES.summary.replaceChildren(
    card(`estimate for ${fn.name}`, timeText(total), sources),
    card("launches", fn.nodes.length, first ? `from ${first.before} graph nodes` : ""),
    card("kernels", kernels.size, `${DATA.stacks.length} stacks in the model`),
    card("arena", bytesText(fn.arena_bytes), `${fn.inputs.length} inputs, ${fn.outputs.length} outputs`),
    card("weights", bytesText(DATA.model.params_bytes), `${DATA.model.params} params`),
    card("format", DATA.model.options[0][1], options.slice(1).join(" · "), options.join("\n")),
    h("div", { class: "ops" },
      h("div", { class: "stack", role: "img", "aria-label": "estimated time by op" }, ops.map(([op, time]) =>
        h("i", { style: `--op:${opColor(op)};flex-grow:${(1000 * time) / total}`, "data-tip": `${op}\n${timeText(time)} · ${percent(time, total)}` }))),
      h("ul", {}, ops.map(([op, time]) => h("li", {}, h("i", { class: "swatch", style: `--op:${opColor(op)}` }),
        h("span", {}, op), h("b", {}, percent(time, total)), h("span", { class: "note" }, timeText(time)))))));
}

function slider(dim) {
  const step = Math.log(dim.hi / dim.lo) / 1000;
  const show = () => `${dim.name} = ${STATE.sizes[dim.name]}`;
  const label = h("output", {}, show());
  const place = Math.round(Math.log(STATE.sizes[dim.name] / dim.lo) / step);
  return h("label", { class: "slider" }, label, h("input", {
    type: "range", min: 0, max: 1000, value: place, "aria-label": `size ${dim.name}`,
    oninput: (event) => {
      STATE.sizes[dim.name] = Math.round(dim.lo * Math.exp(step * event.target.value));
      label.textContent = show();
      drawSummary();
      drawList();
      drawPanel();
    },
  }));
}

function drawTools() {
  const fn = FUNCTIONS.get(STATE.function);
  const search = h("input", {
    id: "search", type: "search", placeholder: "Search name or op   /", value: STATE.query, "aria-label": "search nodes",
    oninput: (event) => {
      STATE.query = event.target.value;
      drawList();
    },
    onkeydown: (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        PLACES.list.querySelector("button.row")?.focus();
      }
    },
  });
  return h("div", { class: "tools" }, search, fn.dims.map(slider));
}

const LIST = h("div", { class: "scroller" });

function drawList() {
  const top = LIST.scrollTop;
  LIST.replaceChildren(STATE.view === "passes"
    ? passList(STATE, ACTIONS)
    : graphList(FUNCTIONS.get(STATE.function), STATE, ACTIONS));
  LIST.scrollTop = top;
}

function drawPanel() {
  const fn = FUNCTIONS.get(STATE.function);
  const index = fn.nodes.findIndex((n) => n.name === STATE.node);
  const view = STATE.view === "passes" ? diffView(STATE, ACTIONS)
    : index >= 0 ? panel(fn, index, STATE, ACTIONS)
    : h("p", { class: "empty" }, "Choose a node to see its candidates, schedule, loops and machine code.");
  PLACES.panel.replaceChildren(view);
}

let drawn = ""; // what the frame shows: it is kept while only the selection changes

function draw() {
  const frame = `${STATE.view}/${STATE.function}`;
  const focused = document.activeElement?.dataset?.node;
  if (frame !== drawn) {
    drawHead();
    drawSummary();
    PLACES.list.replaceChildren(...(STATE.view === "graph" ? [drawTools(), LIST] : [LIST]));
    drawn = frame;
  }
  drawList();
  drawPanel();
  const row = [...LIST.querySelectorAll("[aria-current=true]")][0];
  row?.scrollIntoView({ block: "nearest" });
  if (focused && row) row.focus({ preventScroll: true });
  PLACES.panel.scrollTop = 0;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement?.tagName !== "INPUT") {
    event.preventDefault();
    document.getElementById("search")?.focus();
  } else if (event.key === "Escape" && STATE.query) {
    STATE.query = "";
    document.getElementById("search").value = "";
    drawList();
  }
});
addEventListener("hashchange", () => {
  readAddress();
  draw();
});

document.getElementById("page").replaceChildren(...Object.values(PLACES));
STATE.sizes = startSizes(STATE.function);
readAddress();
if (STATE.view === "graph" && !STATE.node) {
  const fn = FUNCTIONS.get(STATE.function);
  const costs = fn.nodes.map((n) => costOf(n, STATE.sizes));
  STATE.node = fn.nodes[costs.indexOf(Math.max(...costs))]?.name ?? null;
}
draw();
ROOT.dataset.ready = "true";
