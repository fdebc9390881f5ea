// Passes as diffs: what each one changed in each function.
"use strict";

const FOLD = 3; // unchanged lines that stay around a change

function passList(state, actions) {
  const { runs } = DATA.passes;
  const most = Math.max(...runs.map((r) => r.time_s), 1e-9);
  return h("div", { class: "passes", onkeydown: moveFocus }, runs.map((run, k) => {
    const [added, removed] = passCounts(run);
    const head = (k === 0 || runs[k - 1].pipeline !== run.pipeline) && h("h3", {}, run.pipeline);
    return [head, h("button", {
      type: "button", class: "row pass", "data-pass": k, "aria-current": String(k === state.pass),
      onclick: () => actions.pass(k),
    },
      h("span", { class: "name" }, run.pass),
      h("span", { class: "counts" }, added + removed ? [h("ins", {}, `+${added}`), h("del", {}, `−${removed}`)] : "no change"),
      h("span", { class: "note" }, run.before === run.after ? `${run.after} nodes` : `${run.before} → ${run.after} nodes`),
      h("span", { class: "bar" }, h("i", { style: `inline-size:${Math.max((100 * run.time_s) / most, 1)}%` })),
      h("span", { class: "time" }, timeText(run.time_s)))];
  }));
}

const passCounts = (run) =>
  ["added", "removed"].map((key) => run.functions.reduce((sum, f) => sum + f[key], 0));

function diffView(state, actions) {
  const run = DATA.passes.runs[state.pass];
  if (!run) return h("p", { class: "empty" }, "No pass has run.");
  const part = run.functions.find((f) => f.name === state.function) ?? run.functions[0];
  const body = !part.hunks.length
    ? h("p", { class: "empty" }, `${run.pass} left ${part.name} as it was.`)
    : h("div", { class: `diff ${state.split ? "split" : "unified"}`, tabindex: 0, "aria-label": "diff" }, diffRows(part.hunks, state.split));
  return h("article", { class: "panel", "data-pass": run.pass },
    h("header", {}, h("div", { class: "title" }, h("h2", { tabindex: -1 }, run.pass),
      choices("layout", [["unified", "Unified"], ["split", "Side by side"]], state.split ? "split" : "unified",
        (value) => actions.split(value === "split"))),
    h("p", { class: "facts" }, h("span", { class: "note" },
      `${run.ir} IR · ${run.before} → ${run.after} nodes · ${timeText(run.time_s)} · in ${part.name}: ${part.added} lines added, ${part.removed} removed; renumbered values count as unchanged`))),
    body);
}

function diffRows(hunks, split) {
  const lines = DATA.passes.lines;
  const at = { old: 1, new: 1 };
  return hunks.map((hunk, k) => {
    if (hunk[0] === "~") return changedRows(hunk[1].map((x) => lines[x]), hunk[2].map((x) => lines[x]), at, split);
    const [, head, skipped, tail] = hunk;
    const same = (ids) => ids.map((x) => lineRow(" ", lines[x], at.old++, at.new++, split));
    if (skipped) {
      const before = same(head);
      at.old += skipped;
      at.new += skipped;
      return [before, h("div", { class: "fold" }, `${skipped} unchanged lines`), same(tail)];
    }
    const rows = same(head);
    const keep = [k > 0 ? FOLD : 0, k < hunks.length - 1 ? FOLD : 0];
    if (rows.length <= keep[0] + keep[1] + 1) return rows;
    const hidden = rows.splice(keep[0], rows.length - keep[0] - keep[1]);
    const fold = h("button", { type: "button", class: "fold", onclick: () => fold.replaceWith(...hidden) },
      `⋯ ${hidden.length} unchanged lines`);
    return [rows.slice(0, keep[0]), fold, rows.slice(keep[0])];
  });
}

function changedRows(before, after, at, split) {
  const paired = Math.min(before.length, after.length);
  const marks = Array.from({ length: paired }, (_, k) => innerChange(before[k], after[k]));
  if (!split) {
    return [
      before.map((text, k) => lineRow("-", text, at.old++, "", false, marks[k]?.[0])),
      after.map((text, k) => lineRow("+", text, "", at.new++, false, marks[k]?.[1])),
    ];
  }
  return Array.from({ length: Math.max(before.length, after.length) }, (_, k) =>
    h("div", { class: "pair" }, half("-", before[k], at, "old", marks[k]?.[0]), half("+", after[k], at, "new", marks[k]?.[1])));
}

// Where two lines differ: [start, end] in each, or null if they have little in common.
function innerChange(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const indent = a.length - a.trimStart().length;
  if (head + tail - indent < 0.4 * (Math.max(a.length, b.length) - indent)) return null;
  return [[head, a.length - tail], [head, b.length - tail]];
}

function half(sign, text, at, side, mark) {
  if (text === undefined) return h("div", { class: "dl none" });
  return h("div", { class: `dl ${sign === "-" ? "minus" : "plus"}` }, h("span", { class: "no" }, at[side]++), lineText(text, mark));
}
function lineText(text, mark) {
  if (!mark || mark[0] === mark[1]) return h("code", {}, tokens(text, "ir"));
  return h("code", {}, text.slice(0, mark[0]), h("mark", {}, text.slice(...mark)), text.slice(mark[1]));
}
function lineRow(sign, text, old, now, split, mark) {
  if (split) {
    const side = (number) => h("div", { class: "dl" }, h("span", { class: "no" }, number), lineText(text));
    return h("div", { class: "pair" }, side(old), side(now));
  }
  const name = { "-": "dl minus", "+": "dl plus", " ": "dl" }[sign];
  return h("div", { class: name }, h("span", { class: "no" }, old), h("span", { class: "no" }, now),
    h("span", { class: "sign" }, sign), lineText(text, mark));
}
