// The graph of a function: rows in order of execution, and a lane for every value from its maker to its users.
"use strict";

const ROW = 30;
const LANE = 13;

// What is shown, top to bottom: inputs, nodes, heads of blocks and layers, outputs. While searching: hits only.
function graphRows(fn, state) {
  const query = state.query.trim().toLowerCase();
  if (query) {
    const hit = (n) => [n.name, n.op, n.does].some((x) => x.toLowerCase().includes(query));
    return fn.nodes.flatMap((node, index) => (hit(node) ? [{ kind: "node", index, node }] : []));
  }
  const rows = fn.inputs.map((value) => ({ kind: "input", value }));
  const blocks = new Map(fn.blocks.map((b) => [b.start, b]));
  for (let index = 0; index < fn.nodes.length; ) {
    const block = blocks.get(index);
    if (!block) {
      rows.push({ kind: "node", index, node: fn.nodes[index] });
      index += 1;
      continue;
    }
    const open = state.open.has(`${fn.name}/${block.start}`);
    rows.push({ kind: "block", block, open });
    for (let layer = 0; layer < (open ? block.repeats : 1); layer++) {
      if (open) rows.push({ kind: "layer", block, layer });
      for (let k = 0; k < block.length; k++) {
        const at = index + layer * block.length + k;
        rows.push({ kind: "node", index: at, node: fn.nodes[at], block, layer, folded: !open });
      }
    }
    index += block.length * block.repeats;
  }
  rows.push(...fn.outputs.map((value) => ({ kind: "output", value })));
  return rows;
}

// Where the maker of a value is shown: row numbers by node index; nodes of a folded layer stand for all layers.
function rowOfNode(fn, rows) {
  const found = new Map();
  rows.forEach((row, at) => {
    if (row.kind !== "node") return;
    for (let k = 0; k < (row.folded ? row.block.repeats : 1); k++) {
      found.set(row.index + k * (row.block?.length ?? 0), at);
    }
  });
  return found;
}

function graphEdges(fn, rows) {
  const inputs = new Map(rows.flatMap((r, at) => (r.kind === "input" ? [[r.value.name, at]] : [])));
  const made = rowOfNode(fn, rows);
  const edges = [];
  rows.forEach((row, to) => {
    const operands = row.kind === "node" ? row.node.inputs : row.kind === "output" ? [row.value] : [];
    for (const operand of operands) {
      const from = operand.from >= 0 ? made.get(operand.from) : inputs.get(operand.name);
      if (from !== undefined && from < to && (operand.from >= 0 || operand.kind === "input")) {
        edges.push({ from, to, type: operand.type });
      }
    }
  });
  return edges;
}

// A lane per value while it is alive; a node whose operand ends takes that lane over, so that streams are straight.
function assignLanes(rows, edges) {
  const last = new Map();
  for (const { from, to } of edges) last.set(from, Math.max(last.get(from) ?? 0, to));
  const busy = []; // lane -> row whose value is in it
  const lanes = rows.map((row, at) => {
    const ending = [];
    busy.forEach((from, lane) => {
      if (from !== null && last.get(from) <= at) {
        if (last.get(from) === at) ending.push(lane);
        busy[lane] = null;
      }
    });
    if (row.kind === "block" || row.kind === "layer") return null;
    const free = busy.indexOf(null);
    const lane = ending.length ? Math.min(...ending) : free >= 0 ? free : busy.length;
    if (lane === busy.length) busy.push(null);
    if (last.has(at)) busy[lane] = at;
    return lane;
  });
  return { lanes, width: busy.length };
}

function edgePath(x0, y0, x1, y1) {
  if (x0 === x1) return `M${x0} ${y0}V${y1}`;
  const turn = y1 - ROW * 0.72;
  return `M${x0} ${y0}V${turn}C${x0} ${y1 - ROW * 0.2} ${x1} ${turn + ROW * 0.2} ${x1} ${y1}`;
}

function drawLanes(rows, edges) {
  const { lanes, width } = assignLanes(rows, edges);
  const x = (at) => 12 + lanes[at] * LANE;
  const y = (at) => at * ROW + ROW / 2;
  const name = (at) => rows[at].node?.name ?? rows[at].value.name;
  const parts = edges.map(({ from, to, type }) => {
    const d = edgePath(x(from), y(from), x(to), y(to));
    const tip = `${type}\n${name(from)} → ${name(to)}`;
    return s("g", { class: "edge", "data-from": from, "data-to": to, "data-tip": tip },
      s("path", { d }), s("path", { d, class: "hit" }));
  });
  const dots = rows.map((row, at) => {
    if (lanes[at] === null) return null;
    const color = row.node ? opColor(row.node.op) : "var(--dim)";
    const shape = { cx: x(at), cy: y(at), r: row.node ? 4.5 : 3.5, class: row.node ? "dot" : "dot end" };
    return s("circle", { ...shape, style: `--op:${color}`, "data-tip": row.node?.type ?? row.value.type });
  });
  const size = { width: 18 + width * LANE, height: rows.length * ROW };
  return { width: size.width, svg: s("svg", { class: "lanes", ...size, "aria-hidden": "true" }, parts, dots) };
}

// "model.layers.3.mlp.down_proj" within the block "model.layers.#" is "mlp.down_proj".
function shortName(node, block) {
  if (!block?.name) return node.name;
  const parts = node.name.split(/(?<=[.:])/);
  return parts.slice(block.name.split(".").length).join("") || node.name;
}

// Whether a row is the chosen node's; of a folded block, whether it stands for it.
function isCurrent(fn, row, state) {
  if (!row.folded) return row.node.name === state.node;
  const layers = fn.nodes.findIndex((n) => n.name === state.node) - row.index;
  return layers >= 0 && layers % row.block.length === 0 && layers < row.block.length * row.block.repeats;
}

function nodeRow(fn, row, state, most, select) {
  const { node } = row;
  const time = costOf(node, state.sizes);
  const bar = `inline-size:${Math.max((100 * time) / most, 1)}%;--op:${opColor(node.op)}`;
  const chosen = stackOf(node).candidates[chosenOf(node, state.sizes)];
  const tip = `${node.name}\n${node.type} = ${node.op}\n${chosen.name} · ${timeText(time)} ${chosen.source}`;
  return h("button", {
    type: "button",
    class: "row node",
    "data-node": node.name,
    "data-index": row.index,
    "aria-current": String(isCurrent(fn, row, state)),
    "data-tip": tip,
    onclick: () => select(node.name),
  },
    h("span", { class: "name" }, shortName(node, row.block)),
    h("span", { class: "op", style: `--op:${opColor(node.op)}` }, node.op),
    h("span", { class: "type" }, node.type.replace(/<.*>/, "")),
    h("span", { class: "bar" }, h("i", { style: bar })),
    h("span", { class: "time" }, timeText(time)));
}

function blockRow(row, fn, state, total, toggle) {
  const { block, open } = row;
  const inside = fn.nodes.slice(block.start, block.start + block.length * block.repeats);
  const time = inside.reduce((sum, n) => sum + costOf(n, state.sizes), 0);
  return h("button", {
    type: "button",
    class: "row block",
    "aria-expanded": String(open),
    "data-block": block.start,
    onclick: () => toggle(`${fn.name}/${block.start}`),
  },
    h("span", { class: "name" }, h("b", {}, `${block.repeats} × layer`), ` ${block.name}`),
    h("span", { class: "note" }, `${block.length} nodes each`),
    h("span", { class: "note" }, open ? "fold" : "show all"),
    h("span", { class: "time" }, percent(time, total)));
}

function graphList(fn, state, actions) {
  const rows = graphRows(fn, state);
  const edges = graphEdges(fn, rows);
  const times = fn.nodes.map((n) => costOf(n, state.sizes));
  const [most, total] = [Math.max(...times), times.reduce((a, b) => a + b, 0)];
  const { width, svg } = drawLanes(rows, edges);
  const items = rows.map((row) => {
    switch (row.kind) {
      case "node":
        return nodeRow(fn, row, state, most, actions.select);
      case "block":
        return blockRow(row, fn, state, total, actions.toggle);
      case "layer":
        return h("div", { class: "row layer" }, layerName(fn, row));
      default:
        return h("div", { class: "row value", "data-tip": row.value.type },
          h("span", { class: "name" }, row.value.name), h("span", { class: "op" }, row.kind),
          h("span", { class: "type" }, row.value.type.replace(/<.*>/, "")));
    }
  });
  rows.forEach((row, at) => row.block && items[at].classList.add("inside"));
  const searching = state.query.trim() !== "";
  const list = h("div", { class: "rows", style: `--gutter:${searching ? 10 : width}px`, onkeydown: moveFocus },
    !searching && svg, items);
  if (searching && rows.length === 0) list.append(h("p", { class: "empty" }, `No node is called “${state.query}”.`));
  list.addEventListener("pointerover", (event) => lightUp(list, items, event.target));
  list.addEventListener("pointerleave", () => lightUp(list, items, null));
  return list;
}

// "model.layers.3": the part of its nodes' names that they share.
function layerName(fn, { block, layer }) {
  const parts = fn.nodes[block.start + layer * block.length].name.split(/[.:]/);
  return block.name ? parts.slice(0, block.name.split(".").length).join(".") : `layer ${layer}`;
}

// The values that a row makes and takes stand out while the pointer is on it.
function lightUp(list, items, target) {
  const row = target?.closest?.(".row");
  const edge = target?.closest?.(".edge");
  const at = row ? String(items.indexOf(row)) : null;
  for (const g of list.querySelectorAll(".edge")) {
    const on = row ? g.dataset.from === at || g.dataset.to === at : edge && g.dataset.from === edge.dataset.from;
    g.classList.toggle("on", Boolean(on));
  }
}

function moveFocus(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const rows = [...event.currentTarget.querySelectorAll("button.row")];
  rows[rows.indexOf(document.activeElement) + by]?.focus();
}
