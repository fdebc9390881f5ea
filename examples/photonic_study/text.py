"""What the tables say, in words. Every number and every verdict is computed from the rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments import (
    AS_HONEST,
    AS_PUBLISHED,
    BASES,
    CHARGED,
    CHARGES,
    HELD,
    MAX_LOSS_NATS,
    REAL_GPU,
    TARGET,
    Row,
    Rows,
    Scope,
)
from report import Document, Grid, Section
from variants import (
    CORE,
    CORE_LASER_W,
    DAC_J,
    GPU_J_PER_MAC,
    H100_HBM_J,
    H100_J_PER_MAC,
    H100_W,
    HBM_J,
    HONEST,
    LASER_J_PER_MAC,
    LIGHTCODES_PHU,
    LOCAL_BYTES,
    PEAK_CORES,
    SUMS,
    Electronics,
    Idle,
    Setup,
)

from strata.app.units import si

Tables = dict[str, Rows]
_NOTHING = 0.01  # a saving below this is none


def pick(rows: Rows, **keys: Any) -> Row:
    """The row with these values."""
    return next(r for r in rows if all(r[k] == v for k, v in keys.items()))


def where(rows: Rows, **keys: Any) -> Rows:
    """The rows with these values."""
    return [r for r in rows if all(r[k] == v for k, v in keys.items())]


def _pct(share: float) -> str:
    return f"{share:.1%}"


def _times(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


def _ratio(row: Row) -> float:
    """Energy with all products on light over that without."""
    return 1 - row["forced_saving"]


def _grid(rows: Iterable[Row], columns: dict[str, str]) -> Grid:
    """Some columns of rows, by key and header."""
    return Grid(tuple(columns.values()), tuple(tuple(_cell(k, r[k]) for k in columns) for r in rows))


def _cell(key: str, value: Any) -> str:
    if key in ("saving", "published_saving", "bound", "faster"):
        return _pct(value)
    if key == "forced_saving":
        return _times(1 - value)
    if key in ("ratio", "slowdown"):
        return _times(value)
    for suffix, unit in (("_s", "s"), ("_j", "J"), ("_w", "W")):
        if key.endswith(suffix):
            return si(value, unit) if value > 0 else f"{value:.3g} {unit}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_study(tables: Tables, scope: Scope) -> Document:
    """The report."""
    parts = (_claim_energy, _claim_latency, _claim_mapping, _charges, _static, _knobs, _reuse, _breakeven)
    parts += (_decode, _cores, _accuracy)
    written = [part(tables, scope) for part in parts]
    return Document(
        "What survives of photonic savings in LLM inference",
        "LightCode (arXiv 2509.16443) claims, in simulation, that a photonic unit saves up to 50 % of the "
        "energy of GPT-2 and Llama-7B prefill, that multiplexing and assignment make it more than 10 "
        "times faster, and that plans for time and for energy differ. Here its own graphs and constants "
        "are planned exactly, first as it costs them and then with every charge that it leaves out. "
        f"Models: {', '.join(m.name for m in scope.models)}; tables are of {scope.main.name} where no "
        "model is named. 'Saving' is that of the best plan against the best one without the photonic "
        "unit, so it is never negative; 'ratio' is the energy with every product on light over that "
        "without light.",
        (_in_short(tables, scope), *(conclusion for conclusion, _ in written)),
        tuple(section for _, section in written),
        _limits(),
    )


def _in_short(tables: Tables, scope: Scope) -> str:
    length = scope.main.lengths[-1]
    rows = where(tables["claims"], model=scope.main.name, length=length)
    saving = {r["machine"]: _pct(r["saving"]) for r in rows}
    added = where(tables["ablation"], model=scope.main.name, length=length, kind="base and")
    added = [r for r in added if "GPU at its power" not in r["charge"] and r["charge"] != "nothing else"]
    ends = sum(r["saving"] < _NOTHING for r in added)
    slow = pick(rows, machine=CHARGED)
    stored = pick(tables["ablation"], model=scope.main.name, length=length, kind="lower bound")
    verdict = "Most of these charges leave a saving."
    if 2 * ends > len(added):
        verdict = "The claimed saving rests on what is not charged."
    return (
        f"In short: of the {saving[AS_PUBLISHED]} that light saves in LightCode's model, {saving[CHARGED]} "
        "remain while static power and laser are left out and analog values last as long as their numbers "
        f"are in a local memory of {LOCAL_BYTES / 1024:.0f} KiB, at "
        f"{_times(slow['best_s'] / slow['electronic_s'])} times the time ({_pct(stored['saving'])} if they "
        f"lasted for a whole op); {ends} of {len(added)} ways to charge what is left out, or to convert as "
        "a cycle or a tile needs it, leave nothing. Against a GPU that costs what its datasheet says, a "
        f"unit that holds weights saves {saving[HELD]} before its laser. {verdict}"
    )


Part = tuple[str, Section]


def _claim_energy(tables: Tables, scope: Scope) -> Part:
    main, longest = scope.main, scope.main.lengths[-1]
    rows = where(tables["claims"], model=main.name, length=longest)
    own, honest, charged, real, held = (
        pick(rows, machine=m) for m in (AS_PUBLISHED, AS_HONEST, CHARGED, REAL_GPU, HELD)
    )
    gaps = [
        abs(
            pick(tables["claims"], model=r["model"], length=r["length"], machine=AS_PUBLISHED)["saving"]
            - r["published_saving"]
        )
        for r in tables["published"]
    ]
    same = max(gaps) < 1e-3
    most = max(r["saving"] for r in tables["claims"] if r["machine"] == AS_PUBLISHED)
    survives = [r["machine"] for r in (honest, charged, real, held) if r["saving"] >= TARGET]
    conclusion = (
        f"Energy, claim (i): with LightCode's costs the saving at {longest} tokens is "
        f"{_pct(own['saving'])} ({'as its own figures say' if same else 'NOT what its figures say'}; at "
        f"most {_pct(most)} at any length). With conversion, memories, launches charged and nothing "
        f"disputed it is {_pct(charged['saving'])}, at "
        f"{_times(charged['photonic_s'] / charged['electronic_s'])} times the time; as the machine "
        f"lightcode-honest charges it, static power included, {_pct(honest['saving'])}. With a GPU at the "
        f"power of its datasheet: {_pct(real['saving'])} if local memories kept analog values, "
        f"{_pct(held['saving'])} for a unit that holds weights in 64 x 64 tiles."
    )
    chosen = [r for r in tables["claims"] if r["length"] in _lengths(scope, r["model"])]
    columns = {"model": "model", "machine": "machine", "length": "tokens", "saving": "saving"}
    columns |= {"forced_saving": "ratio", "electronic_j": "without light", "best_j": "best"}
    columns |= {"electronic_s": "time without light", "best_s": "time of best"}
    first = (
        f"Against {len(tables['published'])} published pairs of plans the largest difference of a saving is "
        f"{max(gaps) * 100:.2g} percentage points: the starting point is LightCode's, not a straw man. "
        f"Of the four machines with charges, {len(survives)} save at least {TARGET:.0%} at the longest length"
        f"{': ' + '; '.join(survives) if survives else ''}."
    )
    second = (
        "The machines: lightcode, its model as it is; lightcode-honest, the machine file, whose static "
        "power is that of all devices whatever works; 'charged, no idle power', the same with static "
        "power and laser left out; 'GPU at its power', an H100 of whose products in 8 bits a large one "
        f"draws the datasheet's {H100_W:.0f} W at peak: {si(H100_J_PER_MAC / 2, 'J')} per multiply-add "
        f"instead of {si(GPU_J_PER_MAC, 'J')}, L2 and HBM apart; 'held weights', that with "
        "tiles of 64 x 64 programmed weights, which convert an input per tile column and an output per "
        "tile row. The third to last favours light twice: the GPU's energy is that of a whole chip, the "
        "unit's is light, converters and memories only."
    )
    shortest = max(where(tables["claims"], machine=AS_HONEST), key=lambda r: r["saving"])
    third = (
        f"lightcode-honest saves at most {_pct(shortest['saving'])} at any length, at {shortest['length']} "
        f"tokens of {shortest['model']}."
    )
    return conclusion, Section("(i) Energy", (first, second, third), _grid(chosen, columns), ("claims",))


def _lengths(scope: Scope, model: str) -> tuple[int, ...]:
    return next(m.lengths for m in scope.models if m.name == model)


def _claim_latency(tables: Tables, scope: Scope) -> Part:
    rows = tables["latency"]
    slow, fast = (pick(rows, machine=AS_PUBLISHED, multiplex=m) for m in (1, 20))
    charged = pick(rows, machine=CHARGED, multiplex=20)
    gain = slow["photonic_s"] / fast["photonic_s"]
    best = max(rows, key=lambda r: (r["machine"] == CHARGED, r["multiplex"]))
    behind = best["photonic_s"] / best["electronic_s"]
    helped = any(r["fastest_s"] < r["electronic_s"] * (1 - _NOTHING) for r in rows)
    conclusion = (
        f"Latency, claim (ii): multiplexing 1 to 20 makes the all-photonic run {_times(gain)} times faster "
        f"in LightCode's model ({'more than 10, as claimed' if gain > 10 else 'not more than 10'}), but of "
        f"its own slowest case: the same run takes {_times(fast['photonic_s'] / fast['electronic_s'])} "
        "times as long as electronics alone there, and "
        f"{_times(charged['photonic_s'] / charged['electronic_s'])} times with elementwise work and "
        "bandwidth costed physically. The fastest plan "
        f"{'uses light in some case' if helped else 'never gains time by light'} in this sweep; at "
        f"{best['multiplex']} products per cycle light still takes {_times(behind)} times as long."
    )
    columns = {"multiplex": "products per cycle", "machine": "machine", "photonic_s": "all on light"}
    columns |= {"electronic_s": "electronics", "fastest_s": "fastest plan"}
    text = (
        f"{scope.main.name} at {rows[0]['length']} tokens, one op after the other. {PEAK_CORES} units of "
        "LightCode's size (20 products per cycle at 9.7 GHz) have the peak rate of its GPU. LightCode's "
        "electronics are slow because its GPU does one element per cycle in every op that is no product: "
        "that is what its ratio of times measures."
    )
    return conclusion, Section("(ii) Latency", (text,), _grid(rows, columns), ("latency",))


def _claim_mapping(tables: Tables, scope: Scope) -> Part:
    rows = where(tables["claims"], model=scope.main.name, length=scope.main.lengths[-1])
    own, honest, charged, held = (pick(rows, machine=m) for m in (AS_PUBLISHED, AS_HONEST, CHARGED, HELD))

    def apart(row: Row) -> str:
        return f"{row['apart']} of {row['products']}"

    conclusion = (
        f"Mappings, claim (iii): plans for time and energy put {apart(own)} products on different devices "
        f"in LightCode's model, {apart(charged)} with everything undisputed charged, {apart(honest)} on "
        f"lightcode-honest, {apart(held)} for held weights beside an H100. They differ on "
        f"{'; '.join(r['machine'] for r in rows if r['apart']) or 'none'}; they are the same on "
        f"{'; '.join(r['machine'] for r in rows if not r['apart']) or 'none'}."
    )
    columns = {"machine": "machine", "on_phu_for_energy": "on light for energy"}
    columns |= {"on_phu_for_time": "on light for time", "apart": "products apart", "products": "of"}
    return conclusion, Section("(iii) Mappings", (), _grid(rows, columns), ("mapping",))


def _charges(tables: Tables, scope: Scope) -> Part:
    longest = scope.main.lengths[-1]
    rows = where(tables["ablation"], model=scope.main.name, length=longest)
    steps = where(rows, kind="one by one")
    fatal = next((r["charge"].removeprefix("+ ") for r in steps if r["saving"] < _NOTHING), None)
    alone = [r["charge"] for r in where(rows, kind="alone") if r["saving"] < _NOTHING]
    branches = [
        r["charge"]
        for r in where(rows, kind="base and")
        if r["saving"] < _NOTHING and r["charge"] != "nothing else"
    ]
    before = {r["charge"]: r["saving"] for r in steps}
    conclusion = (
        f"Charges at {longest} tokens: arithmetic and DRAM only {_pct(before['arithmetic, DRAM'])}; + "
        f"on-chip memories {_pct(before['+ on-chip memories'])}; + conversion "
        f"{_pct(before['+ conversion'])}; + bandwidth {_pct(before['+ bandwidth'])}; + re-reads "
        f"{_pct(before['+ re-reads'])}; + launches {_pct(before['+ launches'])}. What ends the saving: "
        f"{fatal or 'none of the charges'}, in this order; alone, {'; '.join(alone) or 'none'}; on top of "
        f"the undisputed ones, any of: {'; '.join(branches) or 'none'}."
    )
    paragraphs = (
        f"Charges in the order {', '.join(CHARGES)}; laser: that of the published core, "
        f"{si(LASER_J_PER_MAC, 'J')} per multiply-add ({CORE.busy_w / CORE.cores:.2f} W of a {CORE.rows} x "
        f"{CORE.cols} core over {CORE.multiplex} wavelengths at {si(CORE.clock_hz, 'Hz')}), which "
        f"LightCode's {si(LIGHTCODES_PHU.j_per_mac, 'J')} may or may not include: detectors alone take "
        f"{si(CORE.j_per_mac, 'J')} in that core. All {CORE_LASER_W:.2f} W for "
        f"LightCode's unit of {LIGHTCODES_PHU.multiplex} products per cycle is 'laser of a whole core', "
        "and too hard on it; lightcode-honest charges its share.",
        _rereads(before, pick(rows, kind="lower bound")),
        _conversions(tables, scope),
    )
    kinds = ("one by one", "lower bound", "base and", "alone")
    shown = [r for r in tables["ablation"] if r["kind"] in kinds]
    columns = {"model": "model", "kind": "how", "charge": "charge", "length": "tokens", "saving": "saving"}
    columns |= {"forced_saving": "ratio", "slowdown": "slowdown"}
    shown = [r for r in shown if r["model"] == scope.main.name]
    return conclusion, Section("Which charge does what", paragraphs, _grid(shown, columns), ("ablation",))


def _rereads(before: dict[str, float], stored: Row) -> str:
    change = before["+ re-reads"] - before["+ bandwidth"]
    return (
        f"Re-reads {'raise' if change > 0 else 'lower'} the saving by {abs(change) * 100:.1f} percentage "
        f"points. GPU and unit have a local memory of {LOCAL_BYTES / 1024:.0f} KiB per core and read again "
        "what does not fit there; the unit converts it again, for an analog value lasts no longer than its "
        "number is there. Had the unit a local memory without limits, all re-reads would be the GPU's, and "
        f"the saving {_pct(stored['saving'])} ('lower bound': of conversions and traffic); modulators "
        "store nothing, which is 'analog values last one cycle'."
    )


def _conversions(tables: Tables, scope: Scope) -> str:
    lines = []
    for length in scope.main.lengths:
        rows = where(tables["ablation"], model=scope.main.name, length=length, kind="one by one")
        a, b = (pick(rows, charge=c)["saving"] for c in ("+ on-chip memories", "+ conversion"))
        lines.append(f"{length} tokens {_pct(a)} to {_pct(b)}")
    return f"Conversion, while nothing is read again, takes the saving from: {'; '.join(lines)}."


def _static(tables: Tables, scope: Scope) -> Part:
    longest = scope.main.lengths[-1]
    rows = where(tables["ablation"], model=scope.main.name, length=longest, kind="base and")
    none, gated, whole, many = (
        pick(rows, charge=c)
        for c in (
            "nothing else",
            "static power, of who works",
            "static power, whole machine",
            "the same, as many cores as the GPU",
        )
    )
    spare = {
        e: pick(tables["allowance"], electronics=e.value, length=longest)
        for e in (Electronics.LIGHTCODE, Electronics.H100_8BIT)
    }
    lightcode, real = spare[Electronics.LIGHTCODE], spare[Electronics.H100_8BIT]
    decides = none["saving"] >= TARGET and whole["saving"] < _NOTHING
    waits = ", because then the GPU pays for waiting and the unit for nothing"
    more = waits if gated["saving"] > none["saving"] else ""
    conclusion = (
        f"Static power {'decides' if decides else 'matters'}, and is an assumption: nobody's, saving "
        f"{_pct(none['saving'])}; whole machine idles ({Setup(idle=Idle.ALL).machine().static_w:.0f} W), "
        f"{_pct(whole['saving'])} (ratio {_times(_ratio(whole))}); the same with {PEAK_CORES} photonic "
        f"cores, {_pct(many['saving'])}; only of the device that works, {_pct(gated['saving'])}{more}. One "
        f"unit of LightCode's size may draw {_watts(lightcode['spare_w'])} for lasers, tuning, clocks and "
        f"control together before the saving is gone ({_watts(real['spare_w'])} against an H100 at its "
        "power)."
    )
    text = (
        f"Allowed power while it works, and for the {PEAK_CORES} cores that have the GPU's peak; negative "
        f"where the unit loses without any. lightcode-honest charges the {HONEST.static_w:.0f} W of its "
        "CPU and GPU to whoever works, and a unit this slow then pays for an idle GPU: a statement about "
        "its size more than about light."
    )
    columns = {"electronics": "GPU", "length": "tokens", "spare_w": "allowed, one core"}
    columns |= {"spare_w_of_cores": f"allowed, {PEAK_CORES} cores"}
    return conclusion, Section("Static power", (text,), _grid(tables["allowance"], columns))


def _watts(power_w: float) -> str:
    return si(power_w, "W") if power_w > 0 else "nothing"


def _knobs(tables: Tables, scope: Scope) -> Part:
    lines = []
    for base in BASES:
        rows = where(tables["sensitivity"], base=base)
        middle = pick(rows, knob="base")["ratio"]
        turned = [
            f"{r['knob']} ({r['setting']}): {r['ratio']:.3g}"
            for r in rows
            if (r["ratio"] < 1) != (middle < 1)
        ]
        lines.append(
            f"'{base}' has a ratio of {middle:.3g}; what turns the verdict: {'; '.join(turned) or 'nothing'}"
        )
    conclusion = f"Sensitivity at 1024 tokens: {'. '.join(lines)}."
    still = [r for r in tables["sensitivity"] if r["knob"] in ("multiplex", "clock of the PHU")]
    spread = max(
        abs(r["ratio"] / pick(tables["sensitivity"], base=r["base"], knob="base")["ratio"] - 1) for r in still
    )
    text = (
        f"{scope.main.name} from its config, every number a byte as in LightCode; each knob alone. "
        f"Multiplexing and clock change the ratio by at most {_pct(spread)}: without static power they buy "
        "time, not energy. A knob can be without effect in one of the bases: programming where nothing is "
        "programmed."
    )
    columns = {"base": "base", "knob": "knob", "setting": "setting", "ratio": "ratio"}
    columns |= {"saving": "saving", "slowdown": "slowdown"}
    return conclusion, Section(
        "How much depends on what", (text,), _grid(tables["sensitivity"], columns), ("sensitivity",)
    )


def _reuse(tables: Tables, scope: Scope) -> Part:
    found = []
    for electronics in Electronics:
        rows = [r for r in where(tables["reuse"], electronics=electronics.value) if r["saving"] >= TARGET]
        side = str(min(r["side"] for r in rows)) if rows else "none of the sizes tried"
        found.append(f"{electronics.value}: {side}")
    conclusion = (
        "Analog values do not keep. If both operands are modulated in each cycle and shared within it "
        f"only, {TARGET:.0%} is saved from this side of the array on ({'; '.join(found)}); LightCode's 20 "
        "products per cycle are an array of 4 x 5."
    )
    text = (
        "n x n outputs per cycle share 2n modulated numbers, integrated over the whole contraction before "
        f"they are read: two DAC samples per n multiply-adds, at LightCode's {si(DAC_J, 'J')}. Published "
        "cores are 12 x 12 to 128 x 128. No loss of light, crosstalk or laser power is charged for the "
        "size here."
    )
    columns = {"electronics": "GPU", "side": "side", "saving": "saving", "forced_saving": "ratio"}
    return conclusion, Section(
        "Reuse of a modulated number", (text,), _grid(tables["reuse"], columns), ("reuse",)
    )


def _breakeven(tables: Tables, scope: Scope) -> Part:
    rows = where(tables["breakeven"], idle=Idle.NOBODY.value)
    now_j = Setup().adc_j_per_sample
    found = []
    for phase in dict.fromkeys(r["phase"] for r in rows):
        for electronics in dict.fromkeys(r["electronics"] for r in rows):
            mine = where(rows, phase=phase, electronics=electronics)
            enough = [r["tile"] for r in mine if r["adc_j"] >= now_j]
            reach = max(mine, key=lambda r: r["adc_j"])
            found.append(
                f"{phase}, {electronics}: "
                + (f"from {min(enough)} x {min(enough)}" if enough else _not_enough(reach))
            )
    conclusion = (
        f"Break-even: a unit that holds weights, with LightCode's converters ({si(now_j, 'J')} per ADC "
        f"sample of 8 bits, DAC in proportion), saves {TARGET:.0%} with tiles ({'; '.join(found)})."
    )
    text = (
        f"The largest energy of an ADC sample at which the best plan still saves {TARGET:.0%}, found by "
        "bisection to 5 %; the dotted lines are LightCode's ADC at other resolutions, twice the energy "
        "per bit. Below, the same with the static power of the whole machine, where wavelengths matter "
        "because time does: the larger arrays have more than the GPU's peak, and what they save then is its "
        "static power. No power of their own is charged for their size. Loading a tile takes no time here, "
        "and a DAC sample per weight."
    )
    columns = {"phase": "phase", "electronics": "GPU", "idle": "static power of", "tile": "tile"}
    columns |= {"wavelengths": "wavelengths", "adc_j": "ADC sample"}
    section = Section("What a unit would need", (text,), _grid(rows, columns), ("breakeven", "surface"))
    return conclusion, section


def _not_enough(reach: Row) -> str:
    if not reach["adc_j"]:
        return "never, not even with free converters"
    return f"none tried, at most {si(reach['adc_j'], 'J')} at {reach['tile']}"


def _decode(tables: Tables, scope: Scope) -> Part:
    rows = where(tables["decode"], phase="decode")
    single = [r for r in rows if r["batch"] == 1]
    most = max(rows, key=lambda r: r["saving"])
    why = "of what one token takes"
    if max(r["bound"] for r in single) < TARGET:
        why = "because nearly all of the energy is that of reading weights and the cache"
    conclusion = (
        "Decoding one sequence: free light and free conversion would save "
        f"{' and '.join(_pct(r['bound']) for r in single)} ({'; '.join(r['base'] for r in single)}), "
        f"{why}; charged, the most saved at any batch up to "
        f"{max(r['batch'] for r in rows)} is {_pct(most['saving'])} (batch {most['batch']})."
    )
    text = (
        "'Bound' is the saving with light, laser, conversion and programming at 0 J and traffic as it is: "
        "no photonic unit attached to these memories in this way can save more. Where it is small no "
        "converter will help."
    )
    columns = {"phase": "phase", "batch": "batch", "base": "base", "saving": "saving", "bound": "bound"}
    columns |= {"forced_saving": "ratio", "electronic_j": "without light"}
    return conclusion, Section("Decode and batches", (text,), _grid(tables["decode"], columns), ("decode",))


def _cores(tables: Tables, scope: Scope) -> Part:
    rows = tables["cores"]
    saves = [r for r in rows if r["saving"] >= TARGET]
    lost = [n for n in dict.fromkeys(r["core"] for r in rows) if all(r["core"] != n for r in saves)]
    best = max(rows, key=lambda r: r["saving"])
    conclusion = (
        f"Published cores beside an H100: {len(saves)} of {len(rows)} cases save {TARGET:.0%} or more; the "
        f"best is {best['core']}, {_pct(best['saving'])} ({best['beside']}, {best['phase']}, "
        f"{best['length']} tokens, {_times(best['slowdown'])} times the "
        f"time){'; never: ' + ', '.join(lost) if lost else ''}. Lightening-Transformer is simulated by its "
        "authors; Lightmatter's is built and measured, with the power of its whole package."
    )
    text = (
        "As their machine files have them, but starting an op takes as long as on the GPU; then without "
        "idle power; then with the GPU's products in 8 bits, which is what an 8-bit unit has to be "
        "compared with."
    )
    columns = {"core": "core", "beside": "beside", "phase": "phase", "length": "tokens", "saving": "saving"}
    columns |= {"forced_saving": "ratio", "slowdown": "slowdown", "faster": "time saved by the fastest plan"}
    return conclusion, Section("Published cores", (text,), _grid(rows, columns), ("cores",))


def _accuracy(tables: Tables, scope: Scope) -> Part:
    needed = []
    for base in dict.fromkeys(r["base"] for r in tables["accuracy"]):
        rows = where(tables["accuracy"], base=base, noise=0.0)
        good = [r for r in rows if r["divergence_nats"] <= MAX_LOSS_NATS]
        if good:
            least = min(good, key=lambda r: r["bits"])
            needed.append(f"{base}: {least['bits']} bits, ratio then {least['ratio']:.3g}")
        else:
            most = max(rows, key=lambda r: r["bits"])
            needed.append(
                f"{base}: more than {most['bits']} (divergence {most['divergence_nats']:.2g} nat there)"
            )
    conclusion = (
        f"Bits: a divergence of at most {MAX_LOSS_NATS} nat per token on the demo model, of "
        f"{min(scope.bits)} to {max(scope.bits)} tried, takes ({'; '.join(needed)}). Each bit doubles the "
        "energy of a conversion."
    )
    text = (
        f"The shipped demo model, {scope.tokens} tokens of held-out text, all products on the unit: ranges "
        "per vector, ADC full scale calibrated on other text, noise relative to full scale. The ratio is "
        f"that of {scope.main.name} prefill at 1024 tokens with converters of as many bits. The demo model "
        "is small and has no outliers in its activations as large models have (Dettmers et al., "
        "LLM.int8(), 2022): they will need more bits."
    )
    columns = {"base": "base", "bits": "bits", "noise": "noise", "perplexity": "perplexity"}
    columns |= {
        "exact_perplexity": "exact",
        "divergence_nats": "divergence, nat",
        "ratio": "ratio",
        "adc_j": "ADC sample",
    }
    return conclusion, Section("Bits and noise", (text,), _grid(tables["accuracy"], columns), ("accuracy",))


def _limits() -> tuple[str, ...]:
    return (
        "Simulation: no photonic hardware was measured, and nothing here is a prediction of a product.",
        "Sources: the GPU's and the unit's constants are LightCode's, those of an H100 its datasheet's "
        "and whitepaper's, laser and converter rates those of Lightening-Transformer's simulator; "
        f"docs/numbers.md lists every number with its source. HBM takes {si(HBM_J, 'J')} per byte with "
        f"LightCode's GPU (its own number) and {si(H100_HBM_J, 'J')} with an H100's.",
        "In favour of light: no loss, crosstalk, calibration, tuning of rings, drift, link between chips "
        "or area; analog values last while their numbers are in a local memory unless said otherwise; "
        "the unit's blocks read as little again as any could (Hong and Kung's bound), the GPU's are tiles "
        "that CUTLASS has; 8 bits everywhere; what an H100 draws apart from L2 and HBM, clocks and control "
        "included, is in its multiply-adds, the unit's energies are those of named parts.",
        "An H100's energies follow from its datasheet and one measurement: a large product at peak draws "
        f"{H100_W:.0f} W, a stream from HBM what it drew, of which all but the HBM's own is taken for the "
        "L2's. In favour of the GPU: at that power boards lower their clock, and take more energy per "
        "multiply-add. Against light: its SRAM, which has LightCode's energies, is filled "
        "from the L2 at the energy that includes the way to the GPU's registers.",
        "Against light: one op at a time, so that nothing overlaps with a slow unit; no fusion of "
        "elementwise ops into it; products of one op are never shared between devices.",
        f"A core that holds weights has room for the sums of {SUMS} rows; batches of more tokens spill them.",
        "Energies of converters double per bit (Walden); from about 10 effective bits on they grow faster.",
        "LightCode's graphs compute attention in full and every op apart; the models from configs skip "
        "what a causal mask hides and have fewer ops. Both have one byte per number.",
        "LightCode's CPU is left out of all machines but its own two: at 0.1 pJ per multiply-add, which "
        "no CPU comes near, it would take the products from an H100.",
        "Every plan is the exact optimum of its costs; of equal energies the faster one is taken.",
    )
