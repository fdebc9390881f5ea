"""``strata viz``: the data is complete, the page needs nothing else, and a real browser shows it."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from strata.app.inspect import define_model
from strata.app.viz import kernels, passes
from strata.app.viz.data import Subject, model_data
from strata.app.viz.graph import blocks_of
from strata.app.viz.kernels import Budget
from strata.app.viz.page import render_page, write_page
from strata.app.viz.passes import Change, PassLog, diff
from strata.compiler.artifact_cache import Options
from strata.compiler.driver import trace
from strata.core.errors import UserError
from strata.core.knobs import knobs
from strata.graph.text import parse_function, print_function
from strata.ir.instruments import instruments
from strata.loop.text import parse_func
from strata.passes.loops import LoopStage, run_loop_passes
from strata.planner.stacks import MAX_COMPARED

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MIB = 1 << 20


def subject():
    options = Options()
    definition = define_model(None, "tiny", options)
    traced = trace(definition.module, None, definition.cache_record, definition.config)
    return Subject("tiny", traced, options)


@pytest.fixture(scope="module")
def tiny():
    return model_data(subject())


@pytest.fixture(scope="module")
def page(strata, tmp_path_factory) -> Path:
    """The demo model's page."""
    path = tmp_path_factory.mktemp("viz") / "demo.html"
    result = strata("viz", "-o", path)
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(rf"{re.escape(str(path))}: \d\.\d\d MiB\n", result.stdout)
    return path


def data_of(text):
    """The data in a page."""
    embedded = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert embedded is not None
    return json.loads(embedded[1])


# ---- data ----


def test_every_launch_has_its_stack(tiny, strata):
    assert [f["name"] for f in tiny["functions"]] == ["prefill", "decode", "score"]
    plan = json.loads(
        strata("inspect", "--shape", "tiny", "--stage", "plan", "--function", "decode", "--json").stdout
    )
    launches = plan["decode"]["launches"]
    decode = tiny["functions"][1]
    assert [(n["name"], n["op"]) for n in decode["nodes"]] == [(x["node"], x["op"]) for x in launches]
    for node, launch in zip(decode["nodes"], launches, strict=True):
        stack = tiny["stacks"][tiny["dispatch"][node["dispatch"]]["stack"]]
        assert [c["name"] for c in stack["candidates"]] == [c["name"] for c in launch["candidates"]]
        assert all(c["origin"] == "rule" and c["source"] for c in stack["candidates"])
        chosen = {r[2] for r in tiny["dispatch"][node["dispatch"]]["ranges"]}
        assert chosen == {c["candidate"] for c in launch["choices"]}
    assert decode["arena_bytes"] == plan["decode"]["arena_bytes"]


def test_ranges_cover_all_sizes_and_costs_go_with_them(tiny):
    for entry in tiny["dispatch"]:
        for before, after in itertools.pairwise(entry["ranges"]):
            assert before[1] + 1 == after[0]
        stack = tiny["stacks"][entry["stack"]]
        sizes = [[p[0] for p in c["points"]] for c in stack["candidates"]]
        assert all(x == sorted(set(x)) for x in sizes)
        assert all(seconds > 0 for c in stack["candidates"] for _, seconds in c["points"])
        lo, hi = entry["ranges"][0][0], entry["ranges"][-1][1]
        assert sizes[0][0] == lo
        assert sizes[0][-1] in (hi, MAX_COMPARED)


def test_every_kernel_has_its_texts(tiny):
    for stack in tiny["stacks"]:
        parse_function(stack["body"])
        parse_func(stack["naive"])
        for c in stack["candidates"]:
            assert parse_func(tiny["kernels"][c["kernel"]]["loop"]).name == c["kernel"]
    chosen = {
        tiny["stacks"][d["stack"]]["candidates"][k]["kernel"]
        for d in tiny["dispatch"]
        for _, _, k in d["ranges"]
    }
    for name, kernel in tiny["kernels"].items():
        assert ("asm" in kernel) == ("llvm" in kernel) == (name in chosen)
        if name in chosen:
            assert re.search(rf"^{name}\.impl:$", kernel["asm"], re.MULTILINE)
            assert f"@{name}.impl" in kernel["llvm"]


def test_edges_go_forward_to_what_exists(tiny):
    for function in tiny["functions"]:
        names = {v["name"] for v in function["inputs"]}
        for index, node in enumerate(function["nodes"]):
            for operand in node["inputs"]:
                assert operand["from"] < index
                assert (operand["kind"] == "node") == (operand["from"] >= 0)
                assert operand["kind"] != "input" or operand["name"] in names
                assert operand["place"]
        assert all(0 <= v["from"] < len(function["nodes"]) for v in function["outputs"])
    decode = tiny["functions"][1]
    kinds = {n["inputs"][1]["kind"] for n in decode["nodes"] if n["op"] == "matmul"}
    assert kinds == {"param"}
    logits, best, cache = (v["from"] for v in decode["outputs"])
    assert (logits, best) == (len(decode["nodes"]) - 2, len(decode["nodes"]) - 1)
    assert decode["nodes"][best]["op"] == "argmax"
    assert decode["nodes"][cache]["op"] == "kv_append"


def test_layers_that_repeat(tiny):
    (block,) = tiny["functions"][1]["blocks"]
    assert (block["repeats"], block["name"]) == (2, "model.layers.#")
    nodes = tiny["functions"][1]["nodes"][block["start"] :][: block["length"] * 2]
    assert [n["name"].replace("layers.0", "layers.1") for n in nodes[: block["length"]]] == [
        n["name"] for n in nodes[block["length"] :]
    ]


def _named(*names):
    return [{"name": n, "op": "add", "type": "f32[4]", "dispatch": 0} for n in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), []),
        (("a", "b"), []),
        (("in", "h.0.a", "h.0.b", "h.1.a", "h.1.b", "h.2.a", "h.2.b", "out"), [(1, 2, 3, "h.#")]),
        (
            ("x0.a", "x0.b", "x1.a", "x1.b", "y", "z0:a", "z0:b", "z1:a", "z1:b"),
            [(0, 2, 2, "x#"), (5, 2, 2, "z#")],
        ),
    ],
)
def test_blocks(names, expected):
    blocks = [(b["start"], b["length"], b["repeats"], b["name"]) for b in blocks_of(_named(*names))]
    assert blocks == expected


def test_sizes_to_start_with(tiny):
    prefill, decode, _ = tiny["functions"]
    assert next(d for d in prefill["dims"] if d["name"] == "n")["start"] == 128
    assert next(d for d in decode["dims"] if d["name"] == "n")["start"] == 1
    append = next(n for n in decode["nodes"] if n["op"] == "kv_append")
    assert tiny["dispatch"][append["dispatch"]]["scale"] == {"dim": "n", "lo": 1, "hi": 512, "at": 512}


def test_options_are_followed_and_named(strata):
    options = ("--function", "decode", "--format", "bf16", "--range", "n=2..16", "--json")
    data = json.loads(strata("viz", "--shape", "tiny", *options).stdout)
    (decode,) = data["functions"]
    assert [(d["lo"], d["hi"]) for d in decode["dims"] if d["name"] == "n"] == [(2, 16)]
    assert data["model"]["name"] == "tiny"
    assert data["model"]["options"] == [
        ["format", "bf16"],
        ["pipeline", "set_range{dim=n,lo=2,hi=16},default"],
    ]
    assert {f["name"] for run in data["passes"]["runs"] for f in run["functions"]} == {"decode"}


# ---- passes ----


def _sides(hunks):
    """Old and new lines of hunks with all lines; of unchanged ones only the new text is known."""
    old = [x for h in hunks for x in h[1]]
    new = [x for h in hunks for x in (h[1] if h[0] == "=" else h[2])]
    return old, new


def test_passes_are_watched_and_their_diffs_give_the_text(tiny):
    runs = tiny["passes"]["runs"]
    names = [r["pass"] for r in runs]
    assert names[:3] == ["canonicalize", "fold_transpose", "fold_constants"]
    assert {"fuse", "plan_memory"} <= set(names)
    assert all(a["after"] == b["before"] for a, b in itertools.pairwise(runs))
    fuse = runs[names.index("fuse")]
    assert fuse["after"] < fuse["before"]
    assert fuse["time_s"] > 0
    lowered = subject().traced.lower("default").module
    for part, function in zip(fuse["functions"], lowered.functions, strict=True):
        _, new = _sides(part["hunks"])
        assert [tiny["passes"]["lines"][x] for x in new] == print_function(function).splitlines()
        assert part["removed"] > 0
        assert part["added"] > 0


def test_a_diff_sees_through_renumbering():
    old = ["%0: f32[4] = a()", "%1: f32[4] = b()", "%2: f32[4] = add(%1, %1)", "return %2"]
    new = ["%0: f32[4] = b()", "%1: f32[4] = add(%0, %0)", "return %1"]
    assert diff(old, new) == [(Change.OTHER, old[:1], []), (Change.NONE, old[1:], new)]


def test_a_diff_sees_another_operand():
    old = ["%0: f32[4] = a()", "%1: f32[4] = b()", "%2: f32[4] = neg(%1)"]
    new = [*old[:2], "%2: f32[4] = neg(%0)"]
    assert diff(old, new) == [(Change.NONE, old[:2], new[:2]), (Change.LINE, old[2:], new[2:])]


def test_a_diff_follows_a_value_that_is_computed_in_another_way():
    old = [
        "%0: f32[4] = a()",
        "%1: f32[8] = b(%0)",
        "%2: f32[4] = c(%1) {k=1}  # here",
        "%3: f32[4] = neg(%2)",
    ]
    new = [old[0], "%1: f32[4] = c(%0) {k=2}  # here", "%2: f32[4] = neg(%1)"]
    expected = [
        (Change.NONE, old[:1], new[:1]),
        (Change.OTHER, old[1:2], []),
        (Change.LINE, old[2:3], new[1:2]),
        (Change.NONE, old[3:], new[2:]),
    ]
    assert diff(old, new) == expected
    new[1] = "%1: f32[4] = d(%0)  # here"
    assert [(h[0], h[1]) for h in diff(old, new)] == [(h[0], h[1]) for h in expected]


def test_a_diff_keeps_the_values_of_bodies_apart():
    def body(at):
        return [
            f"  %{at}: f32[4] = fused(%0) {{",
            "    body=func @f(%a0: f32[4]) {",
            "      %0: f32[4] = b(%a0)",
            "      return %0",
        ]

    old = ["  %0: f32[4] = a()", "  %1: f32[4] = c()", *body(2), *body(3)]
    new = [old[0], *body(1), *body(2)]
    assert diff(old, new) == [
        (Change.NONE, old[:1], new[:1]),
        (Change.OTHER, old[1:2], []),
        (Change.NONE, old[2:], new[1:]),
    ]


def test_of_long_texts_only_changes_and_their_context_are_kept(monkeypatch):
    monkeypatch.setattr(passes, "TEXT_BYTES", 100)
    log = PassLog(["decode"])
    with instruments(log):
        subject().traced.lower("default")
    hunks = [
        h for r in log.data()["runs"] for f in r["functions"] for h in f["hunks"] if h[0] == "=" and h[2]
    ]
    assert hunks
    assert all(len(head) == len(tail) == passes.CONTEXT_LINES for _, head, _, tail in hunks)


def test_loop_passes_are_seen_where_they_change_something(tiny):
    log = PassLog()
    funcs = [parse_func(s["naive"]) for s in tiny["stacks"]]
    with instruments(log), knobs(loop_pipeline="simplify_loops"):
        for func in funcs:
            run_loop_passes(LoopStage.NAIVE, [func])
    data = log.data()
    assert 0 < len(data["runs"]) < len(funcs)
    for run in data["runs"]:
        (part,) = run["functions"]
        assert (run["ir"], run["pass"], part["name"]) == ("loop", "simplify_loops", "loop")
        assert (part["before"], part["after"]) == (run["before"], run["after"])
        assert part["hunks"]


# ---- limits ----


def test_long_code_is_cut(monkeypatch):
    text = "".join(f"line {k}\n" for k in range(1000))
    assert Budget(MIB).keep(text) == text
    budget = Budget(100)
    kept = budget.keep(text)
    assert kept.startswith("line 0\nline 1\n")
    shown = kept.count("line ") - 1
    assert f"... {1000 - shown} more lines: see strata inspect" in kept
    assert budget.keep(text).startswith("... 1000 more lines") or budget.left_bytes == 0
    monkeypatch.setattr(kernels, "KERNEL_BYTES", 50)
    assert len(Budget(MIB).keep(text)) < 110


def test_the_demo_model_fits_a_mail(page):
    assert page.stat().st_size < 3 * MIB


# ---- the page ----


def test_the_page_loads_nothing(page):
    text = page.read_text()
    assert not re.search(r"https?://", text)
    assert not re.search(r"\b(?:src|href)\s*=|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", text)
    assert "default-src 'none'" in text


def test_names_cannot_break_the_page(tmp_path):
    data = {"model": {"name": "</script><script>boom()</script>"}}
    text = render_page(data)
    assert "<script>boom" not in text
    assert data_of(text) == data


def test_the_default_file_is_named_after_the_model(strata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = strata("viz", "--shape", "tiny", "--function", "decode")
    assert result.stdout.startswith("tiny.html: ")
    assert [x.name for x in tmp_path.iterdir()] == ["tiny.html"]
    assert [f["name"] for f in data_of((tmp_path / "tiny.html").read_text())["functions"]] == ["decode"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--function", "encode"), "--function: got 'encode'; this model has: prefill, decode, score"),
        (("--shape", "huge"), "no shape 'huge'"),
        (("--pipeline", "melt"), "no pass or pipeline 'melt'"),
        (("--pipeline", "dead_code"), "expected fused nodes only: end it with fuse"),
    ],
)
def test_mistakes(strata, options, message):
    given = options if "--shape" in options else ("--shape", "tiny", *options)
    result = strata("viz", *given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_cannot_be_written(tiny, tmp_path):
    with pytest.raises(UserError, match=r"/none/page.html: cannot write the file: No such file"):
        write_page(tiny, tmp_path / "none" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"/folder: cannot write the file: Is a directory"):
        write_page(tiny, tmp_path / "folder")
    assert [x.name for x in tmp_path.iterdir()] == ["folder"]


# ---- in a browser ----

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


def dom(page: Path, address: str, script: str = "") -> str:
    """The page as Chromium has it after its scripts (and one more), as HTML."""
    if script:
        driven = page.with_name("driven.html")
        driven.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        page = driven
    profile = page.with_name("profile")
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
    )
    command = [
        str(CHROMIUM),
        *options,
        f"--user-data-dir={profile}",
        "--window-size=1500,1000",
        "--virtual-time-budget=4000",
        "--dump-dom",
        f"{page.as_uri()}{address}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "CONSOLE" not in result.stderr, result.stderr
    assert 'data-errors=""' in result.stdout[:400], result.stdout[:400]
    assert 'data-ready="true"' in result.stdout[:400]
    return result.stdout


def text_of(fragment: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", fragment))


@needs_browser
def test_a_browser_shows_the_node_of_the_address(page):
    name = "model.layers.3.mlp.gate_up_proj"
    shown = dom(page, f"#function=prefill&node={name}")
    panel = re.search(r'<article class="panel"[^>]*>.*?</article>', shown, re.DOTALL)
    assert panel is not None
    (row,) = re.findall(r'<button[^>]* aria-current="true"', shown)  # of layer 0, which stands for all
    assert 'data-node="model.layers.0.mlp.gate_up_proj"' in row
    data = data_of(page.read_text())
    node = next(n for n in data["functions"][0]["nodes"] if n["name"] == name)
    entry = data["dispatch"][node["dispatch"]]
    stack = data["stacks"][entry["stack"]]
    (chosen,) = (stack["candidates"][k] for lo, hi, k in entry["ranges"] if lo <= 128 <= hi)
    assert f'data-node="{name}" data-candidate="{chosen["name"]}"' in panel[0]
    row = re.search(r'<tr class="chosen".*?</tr>', panel[0])
    assert row is not None
    assert text_of(row[0]).startswith(chosen["name"] + "chosen")
    for candidate in stack["candidates"]:
        assert candidate["name"] in panel[0]
    code = re.search(r'<pre class="code".*?</pre>', panel[0], re.DOTALL)
    assert code is not None
    assert text_of(code[0]).strip() == data["kernels"][chosen["kernel"]]["loop"].strip()
    assert panel[0].count('<g class="curve"') == len(stack["candidates"])
    assert panel[0].count('<g class="band"') == len(entry["ranges"])


@needs_browser
def test_a_browser_follows_clicks_and_keys(page):
    script = """
    const log = {};
    const all = (q) => [...document.querySelectorAll(q)];
    const press = (el, key) => el.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    log.folded = all(".row.node").length;
    log.edges = all(".edge").length;
    all(".row.block")[0].click();
    log.open = all(".row.node").length;
    log.layers = all(".row.layer").length;
    const search = document.getElementById("search");
    search.value = "NO_SUCH"; search.dispatchEvent(new Event("input"));
    log.none = all(".row.node").length;
    search.value = "layers.5.mlp"; search.dispatchEvent(new Event("input"));
    log.found = all(".row.node").map((x) => x.dataset.node);
    press(document.body, "Escape");
    all('.row.node[data-index="8"]')[0].click();
    setTimeout(() => {
      log.panel = all(".panel")[0].dataset.node;
      log.current = all(".row[aria-current=true]").map((x) => x.dataset.node);
      const row = all(".row.node")[1];
      row.focus(); press(row, "ArrowDown");
      log.focus = document.activeElement.dataset.node;
      press(all('[data-choice=code] [aria-selected=true]')[0], "ArrowRight");
      setTimeout(() => {
        log.code = all(".codeview")[0].dataset.code;
        log.address = location.hash;
        press(all(".candidates tbody tr").at(-1), "Enter");
        log.picked = all(".candidates [aria-selected=true]")[0].textContent;
        log.kernel = all(".codeview")[0].dataset.kernel;
        press(all(".candidates tbody tr[class=chosen]")[0], "Enter");
        all('[data-choice=code] button')[3].click();
        setTimeout(() => {
          log.assembly = all("pre.code")[0].textContent.includes(".impl:");
          all('[data-choice=function] button')[0].click();
          setTimeout(() => {
            log.function = all('[data-choice=function] [aria-selected=true]')[0].textContent;
            document.documentElement.dataset.log = JSON.stringify(log);
          }, 50);
        }, 50);
      }, 50);
    }, 50);
    """
    shown = dom(page, "#function=decode", script)
    found = re.search(r'data-log="([^"]*)"', shown)
    assert found is not None
    log = json.loads(html.unescape(found[1]))
    assert (log["folded"], log["open"], log["layers"], log["none"]) == (14, 77, 8, 0)
    assert log["edges"] > 15
    assert log["found"]
    assert all("layers.5.mlp" in name for name in log["found"])
    assert log["panel"] == "model.layers.0.mlp.gate_up_proj"
    assert log["current"] == [log["panel"]]
    assert log["focus"] == "model.layers.0.self_attn.qkv_proj"
    assert log["code"] == "naive"
    assert "code=naive" in log["address"]
    data = data_of(page.read_text())
    node = next(n for n in data["functions"][1]["nodes"] if n["name"] == log["panel"])
    last = data["stacks"][data["dispatch"][node["dispatch"]]["stack"]]["candidates"][-1]
    assert log["picked"].startswith(last["name"])
    assert log["kernel"] == last["kernel"]
    assert log["assembly"]
    assert log["function"] == "prefill"


@needs_browser
def test_a_browser_shows_passes_as_diffs(page):
    shown = dom(page, "#view=passes&pass=1&function=decode")
    panel = re.search(r'<article class="panel" data-pass="fold_transpose">.*?</article>', shown, re.DOTALL)
    assert panel is not None
    removed = re.findall(r'<div class="dl minus">.*?</div>', panel[0])
    added = re.findall(r'<div class="dl plus">.*?</div>', panel[0])
    assert any("permute_dims" in text_of(x) for x in removed)
    assert any("<mark>" in x and "transpose_b=true" in text_of(x) for x in added)
    assert "unchanged lines" in panel[0]
    assert "decode: 292 → 259 nodes, 33 lines added, 66 removed" in text_of(panel[0])
