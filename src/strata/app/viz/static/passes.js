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
      `${run.ir} IR · ${timeText(run.time_s)} · ${part.name}: ${part.before} → ${part.after} nodes, ${part.added} lines added, ${part.removed} removed (renumbered values count as unchanged)`))),
    body);
}

function diffRows(hunks, split) {
  const lines = DATA.passes.lines;
  const at = { old: 1, new: 1 };
  return hunks.map((hunk, k) => {
    if (hunk[0] !== "=") return changedRows(hunk[0] === "~", hunk[1].map((x) => lines[x]), hunk[2].map((x) => lines[x]), at, split);
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

// Lines that were changed one by one are shown one by one, with what is different in them.
function changedRows(paired, before, after, at, split) {
  const marks = paired ? before.map((text, k) => innerChange(text, after[k])) : [];
  if (paired && !split) {
    return before.map((text, k) => [lineRow("-", text, at.old++, "", false, marks[k]?.[0]),
      lineRow("+", after[k], "", at.new++, false, marks[k]?.[1])]);
  }
  if (!split) {
    return [
      before.map((text) => lineRow("-", text, at.old++, "", false)),
      after.map((text) => lineRow("+", text, "", at.new++, false)),
    ];
  }
  return Array.from({ length: Math.max(before.length, after.length) }, (_, k) =>
    h("div", { class: "pair" }, half("-", before[k], at, "old", marks[k]?.[0]), half("+", after[k], at, "new", marks[k]?.[1])));
}

// The pieces of two lines as [text, changed], or null if they have little in common. Numbers of values differ
// everywhere after a change, so they count only where nothing else differs.
function innerChange(a, b) {
  const [x, y] = [a, b].map((line) => line.match(/%\d+|\w+|\W/g) ?? []);
  const masked = (line) => line.replace(/%\d+/g, "%");
  const others = masked(a) !== masked(b);
  const same = (p, q) => p === q || (others && p[0] === "%" && q[0] === "%");
  const common = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      common[i][j] = same(x[i], y[j]) ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  if (common[0][0] < 0.4 * Math.max(x.length, y.length)) return null;
  const sides = [[], []];
  const add = (side, text, changed) => {
    const last = side[side.length - 1];
    if (last && last[1] === changed) last[0] += text;
    else side.push([text, changed]);
  };
  let [i, j] = [0, 0];
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && same(x[i], y[j])) {
      add(sides[0], x[i++], false);
      add(sides[1], y[j++], false);
    } else if (j >= y.length || (i < x.length && common[i + 1][j] >= common[i][j + 1])) add(sides[0], x[i++], true);
    else add(sides[1], y[j++], true);
  }
  return sides;
}

function half(sign, text, at, side, mark) {
  if (text === undefined) return h("div", { class: "dl none" });
  return h("div", { class: `dl ${sign === "-" ? "minus" : "plus"}` }, h("span", { class: "no" }, at[side]++), lineText(text, mark));
}
function lineText(text, pieces) {
  if (!pieces) return h("code", {}, tokens(text, "ir"));
  return h("code", {}, pieces.map(([piece, changed]) =>
    changed ? h("mark", {}, tokens(piece, "ir")) : h("span", {}, tokens(piece, "ir"))));
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
