"""Plans for machines as tables of the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .units import si

_UNITS = {"byte": "B", "second": "s"}

if TYPE_CHECKING:
    from strata.planner.devices.explain import Explanation, Offer
    from strata.planner.devices.request import RequestPlan
    from strata.planner.devices.result import DeviceLoad, MachinePlan
    from strata.planner.thresholds import Threshold


def run_tables(plan: MachinePlan, point: int) -> Iterator[Table | str]:
    """A plan at one point: devices, causes, and how good it is."""
    at = "".join(f" · {name} = {values[point]}" for name, values in plan.graph.points.items())
    title = f"{plan.graph.workload.name} on {plan.graph.machine.name}{at}"
    yield _devices(plan.loads(point), title)
    yield _causes(plan, point)
    yield _verdict(
        float(plan.times_s[point]),
        float(plan.energies_j[point]),
        plan.objective.text,
        float(plan.values[point]),
        float(plan.bounds[point]),
        plan.gap(point),
    )


def request_tables(plan: RequestPlan) -> Iterator[Table | str]:
    """A request: its two phases, devices, and how good the plan is."""
    name = plan.prefill.graph.workload.name.removesuffix(" prefill")
    title = (
        f"{name} on {plan.prefill.graph.machine.name} · prompt {plan.prompt}, new tokens {plan.new_tokens}, "
        f"batch {plan.batch}"
    )
    table = _table(title, ("phase",), ("runs", "time", "energy", "time per run"))
    for phase, part in (("prefill", plan.prefill), ("decode", plan.decode)):
        if part is not None:
            runs, time_s = part.graph.num_points, float(part.times_s.sum())
            energy = si(float(part.energies_j.sum()), "J")
            table.add_row(phase, str(runs), si(time_s, "s"), energy, si(time_s / runs, "s"))
    yield table
    yield _devices(plan.devices, "All runs")
    yield _verdict(plan.time_s, plan.energy_j, plan.objective.text, plan.value, plan.lower_bound, plan.gap)


def range_tables(plan: MachinePlan) -> Iterator[Table | str]:
    """A plan at several points: those where it changes, and the last one."""
    graph = plan.graph
    (name, lengths), *_ = graph.points.items()
    title = f"{graph.workload.name} on {graph.machine.name} · {plan.objective.text} · where the plan changes"
    devices = [d.name for d in graph.machine.devices]
    table = _table(title, (), (name, "time", "energy", *(f"{d}: ops/matmuls" for d in devices), "gap"))
    changed = (plan.choices[:, 1:] != plan.choices[:, :-1]).any(axis=0).nonzero()[0] + 1
    for point in sorted({0, *changed.tolist(), graph.num_points - 1}):
        loads = plan.loads(point)
        table.add_row(
            str(lengths[point]),
            si(float(plan.times_s[point]), "s"),
            si(float(plan.energies_j[point]), "J"),
            *(f"{loads[d].ops}/{loads[d].matmuls}" for d in devices),
            f"{plan.gap(point):.2%}",
        )
    yield table


def threshold_tables(title: str, found: tuple[Threshold, ...]) -> Iterator[Table | str]:
    """The lengths at which a plan changes, and what changes."""
    if not found:
        yield f"{title}: one plan is the best at all lengths"
        return
    table = _table(title, (), ("from",), ("op", "works", "before", "after"))
    for threshold in found:
        for k, change in enumerate(threshold.changes):
            count = f"{change.name}" + (f" x{len(change.works)}" if len(change.works) > 1 else "")
            first = str(threshold.length) if k == 0 else ""
            table.add_row(first, change.op, count, change.before, change.after)
    yield table


def explanation_tables(plan: MachinePlan, found: Explanation) -> Iterator[Table | str]:
    """All candidates of a work with their terms and moves, and why the chosen one won."""
    others = f" and {len(found.alike) - 1} more like it" if len(found.alike) > 1 else ""
    title = f"{found.work.name} ({found.work.op}){others}"
    table = _table(title, ("candidate", "for", "at"), ("amount", "time", "energy"))
    for offer in found.offers:
        table.add_section()
        mark = " (chosen)" if offer.is_chosen else ""
        estimates = offer.candidate.estimates
        time, energy = si(float(estimates.time_s[0]), "s"), si(float(estimates.energy_j[0]), "J")
        table.add_row(
            offer.candidate.name + mark, f"on {offer.candidate.device}", estimates.source, "", time, energy
        )
        for cause, place, amount, time, energy in _rows(plan, offer):
            table.add_row("", cause, place, amount, time, energy)
    yield table
    yield _why(plan, found)


def _rows(plan: MachinePlan, offer: Offer) -> Iterator[tuple[str, str, str, str, str]]:
    for t in offer.candidate.estimates.terms:
        amount = si(float(t.amount[0]), _UNITS.get(t.unit, t.unit))
        yield t.cause.value, t.place, amount, si(float(t.time_s[0]), "s"), si(float(t.energy_j[0]), "J")
    for move in offer.moves:
        value = plan.graph.workload.values[move.transfer.value].name
        time, energy = float(move.estimates.time_s[0]), float(move.estimates.energy_j[0])
        yield "move", f"{move.origin} -> {move.to}", value, si(time, "s"), si(energy, "J")


def _why(plan: MachinePlan, found: Explanation) -> str:
    """The plan with each other candidate, all else as planned, against the plan."""
    chosen, unit = found.chosen, _unit(plan.objective.text)
    if len(found.offers) == 1:
        return f"{chosen.candidate.name}: the only candidate\n"
    what = plan.objective.text
    if what == "makespan":  # what is late in an execution order depends on all of it
        what = "time, one op after the other,"
    lines = [f"{chosen.candidate.name}: the plan has {what} {si(chosen.value, unit)}"]
    for offer in (o for o in found.offers if not o.is_chosen):
        more = si(offer.value - chosen.value, unit)
        time, energy = si(offer.time_s - chosen.time_s, "s"), si(offer.energy_j - chosen.energy_j, "J")
        lines.append(
            f"{offer.candidate.name}: {more} more, all other choices as they are "
            f"({time}, {energy}, moves included)"
        )
    return "\n".join(lines) + "\n"


def explanation_figures(found: Explanation) -> dict[str, Any]:
    """The same as JSON says it."""
    return {
        "name": found.work.name,
        "op": found.work.op,
        "alike": [w.name for w in found.alike],
        "candidates": [
            {
                "name": offer.candidate.name,
                "device": offer.candidate.device,
                "is_chosen": offer.is_chosen,
                "time_s": float(offer.candidate.estimates.time_s[0]),
                "energy_j": float(offer.candidate.estimates.energy_j[0]),
                "source": offer.candidate.estimates.source,
                "terms": [
                    {
                        "cause": t.cause.value,
                        "place": t.place,
                        "amount": float(t.amount[0]),
                        "unit": t.unit,
                        "time_s": float(t.time_s[0]),
                        "energy_j": float(t.energy_j[0]),
                    }
                    for t in offer.candidate.estimates.terms
                ],
                "moves": [
                    {
                        "value": move.transfer.value,
                        "from": move.origin,
                        "to": move.to,
                        "time_s": float(move.estimates.time_s[0]),
                        "energy_j": float(move.estimates.energy_j[0]),
                    }
                    for move in offer.moves
                ],
                "plan": {"time_s": offer.time_s, "energy_j": offer.energy_j, "value": offer.value},
            }
            for offer in found.offers
        ],
    }


def _devices(loads: dict[str, DeviceLoad], title: str) -> Table:
    table = _table(title, ("device",), ("ops", "matmuls", "time", "energy"))
    for name, d in loads.items():
        table.add_row(name, str(d.ops), str(d.matmuls), si(d.time_s, "s"), si(d.energy_j, "J"))
    return table


def _causes(plan: MachinePlan, point: int) -> Table:
    from .plan_report.data import MOVES, spent_of

    sums: dict[tuple[str, str], list[float]] = {}
    for s in spent_of(plan, point):
        where = f"{s.device} ({s.place})" if s.op == MOVES else s.place
        entry = sums.setdefault((s.cause, where), [0.0, 0.0])
        entry[0] += s.time_s
        entry[1] += s.energy_j
    table = _table("Where it goes", ("cause", "place"), ("time alone", "energy"))
    for (cause, where), (time_s, energy_j) in sorted(sums.items(), key=lambda x: -x[1][1]):
        table.add_row(cause, where, si(time_s, "s"), si(energy_j, "J"))
    return table


def _verdict(time_s: float, energy_j: float, objective: str, value: float, bound: float, gap: float) -> str:
    unit = _unit(objective)
    proof = "no plan is better" if gap < 1e-9 else f"no plan is below {si(bound, unit)}: gap {gap:.2%}"
    return f"time {si(time_s, 's')} · energy {si(energy_j, 'J')} · {objective} {si(value, unit)}: {proof}\n"


def _unit(objective: str) -> str:
    return {"time": "s", "makespan": "s", "energy": "J", "edp": "J s"}.get(objective, "")


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...], more: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, min_width=len(title))
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    for column in more:
        table.add_column(column, overflow="fold")
    return table
