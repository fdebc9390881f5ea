"""``strata plan --machine``: which device computes which op, at what cost, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.core.errors import UserError

if TYPE_CHECKING:
    from strata.planner.devices.limits import Limits
    from strata.planner.devices.request import RequestPlan
    from strata.planner.devices.result import MachinePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """Options of ``strata plan --machine`` and ``strata thresholds``, as they were typed; see ``options``.

    Attributes:
        model: Model folder, hub id or name of a shape.
        graph: Graph-executor JSON instead.
        pin: ``PATTERN=DEVICE``.
        allow: ``PATTERN=DEVICE,DEVICE``.
        devices: With commas.
        power_cap, time_limit, energy_limit: W, s and J of a run.
        max_loss: Nats per token.
    """

    machine: str
    model: str | None = None
    graph: Path | None = None
    objective: str = "energy"
    seq_len: str | None = None
    phase: str = "prefill"
    prompt: int | None = None
    new_tokens: int | None = None
    batch: int | None = None
    traced_len: int | None = None
    format: str | None = None
    kv_dtype: str | None = None
    activations: str | None = None
    granularity: str | None = None
    max_context: int | None = None
    pin: Sequence[str] = ()
    allow: Sequence[str] = ()
    devices: str | None = None
    load: Sequence[Path] = ()
    power_cap: float | None = None
    time_limit: float | None = None
    energy_limit: float | None = None
    max_loss: float | None = None

    def limits(self) -> Limits:
        """What a plan may not exceed; a loss of accuracy is measured on the model, product by product.

        Raises:
            UserError: a number that is not > 0, or no weights to measure a loss with.
        """
        from strata.app.simulation import loss_budget
        from strata.planner.devices.limits import Limits

        budgets = ()
        if self.max_loss is not None:
            budgets = (loss_budget(self.max_loss, self.machine, self.model, self.graph),)
        return Limits(
            time_s=self.time_limit, energy_j=self.energy_limit, power_w=self.power_cap, budgets=budgets
        )

    def arguments(self) -> dict[str, Any]:
        """What the Python functions take, besides objective, lengths and phase; runs the user's files.

        Raises:
            UserError: two models, or a malformed rule.
        """
        from strata.assets import DEMO_MODEL
        from strata.compiler.user_file import costs_of_files

        if self.graph is not None and self.model is not None:
            raise UserError(f"got the model {self.model} and --graph {self.graph}; expected one of them")
        names = ("batch", "traced_len", "format", "kv_dtype", "activations", "granularity", "max_context")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        pins = dict(rule("--pin", "PATTERN=DEVICE", text) for text in self.pin)
        allowed = dict(rule("--allow", "PATTERN=DEVICE,DEVICE", text) for text in self.allow)
        return given | {
            "model": self.graph if self.graph is not None else self.model or DEMO_MODEL,
            "machine": self.machine,
            "pins": pins,
            "allowed": {pattern: _words(devices) for pattern, devices in allowed.items()},
            "costs": costs_of_files(self.load),
            "devices": None if self.devices is None else _words(self.devices),
        }


def options_of(given: Mapping[str, Any]) -> MachineOptions:
    """The options among the parameters of a command."""
    known: dict[str, Any] = {f.name: given[f.name] for f in fields(MachineOptions) if f.name in given}
    known |= {name: tuple(known[name] or ()) for name in ("pin", "allow", "load")}
    known["model"] = given["model"] or given.get("shape")
    return MachineOptions(**known)


def rule(option: str, form: str, text: str) -> tuple[str, str]:
    """Pattern and devices of a rule.

    Raises:
        UserError: it is not of the form.
    """
    pattern, equals, devices = text.partition("=")
    if not pattern or not equals or not devices:
        raise UserError(f"{option}: got {text!r:.60}; expected {form}")
    return pattern, devices


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def run(
    options: MachineOptions, explain: str | None, report: Path | None, simulate: bool, as_json: bool
) -> None:
    """Plan and print."""
    from strata.app.simulation import simulated, simulation_figures, simulation_lines
    from strata.compiler.machine_plan import REQUEST, plan
    from strata.planner.devices.request import RequestPlan

    is_request = options.phase == REQUEST or options.prompt is not None or options.new_tokens is not None
    lengths = _lengths(options, is_request)
    found = plan(
        objective=options.objective,
        seq_len=lengths,
        phase=REQUEST if is_request else options.phase,
        new_tokens=options.new_tokens,
        limits=options.limits(),
        **options.arguments(),
    )
    if isinstance(found, RequestPlan):
        if simulate:
            raise UserError("--simulate runs the model over a text; expected --phase prefill")
        if explain is not None:
            _show_explained_request(found, explain, as_json)
        else:
            _show_request(found, as_json)
        if report is not None:
            from strata.app.plan_report.build import build_request_report
            from strata.app.plan_report.page import write_report

            write_report(build_request_report(found), report)
        return
    if explain is not None and found.graph.num_points > 1:
        raise UserError(f"--explain: got {found.graph.num_points} lengths; expected one")
    simulation = simulated(found, options.model, options.graph) if simulate else None
    if explain is not None:
        _show_explanations(found, explain, as_json)
    elif as_json:
        entries = [run_figures(found, point) for point in range(found.graph.num_points)]
        if simulation is not None:
            entries[0]["simulation"] = simulation_figures(simulation)
        _print_json(entries if found.graph.num_points > 1 else entries[0])
    else:
        from strata.app import machine_tables

        tables = machine_tables.run_tables(found, 0) if found.graph.num_points == 1 else None
        show(tables or machine_tables.range_tables(found))
        if simulation is not None:
            show([simulation_lines(simulation)])
    if report is not None:
        from strata.app.plan_report.build import build_report
        from strata.app.plan_report.page import write_report

        write_report(build_report(found, found.graph.num_points - 1), report)


def _lengths(options: MachineOptions, is_request: bool) -> str | None:
    if not is_request:
        return options.seq_len
    if options.phase == "decode":
        raise UserError("--prompt and --new-tokens describe a request; expected --phase request")
    if options.prompt is not None and options.seq_len is not None:
        raise UserError("got --prompt and --seq-len; expected one of them: the prompt's length")
    return options.seq_len if options.prompt is None else str(options.prompt)


def run_figures(plan: MachinePlan, point: int) -> dict[str, Any]:
    """A plan at one point as JSON says it."""
    from strata.app.plan_report.data import spent_of

    spent = spent_of(plan, point)
    causes = dict.fromkeys(s.cause for s in spent)
    return {
        "model": plan.graph.workload.name,
        "machine": plan.graph.machine.name,
        **_sizes(plan, point),
        "objective": plan.objective.text,
        "time_s": float(plan.times_s[point]),
        "energy_j": float(plan.energies_j[point]),
        "value": float(plan.values[point]),
        "lower_bound": float(plan.bounds[point]),
        "gap": plan.gap(point),
        "devices": _devices(plan.loads(point)),
        "causes": {
            cause: {
                "time_alone_s": sum(s.time_s for s in spent if s.cause == cause),
                "energy_j": sum(s.energy_j for s in spent if s.cause == cause),
            }
            for cause in causes
        },
    }


def _sizes(plan: MachinePlan, point: int) -> dict[str, int]:
    return {name: int(values[point]) for name, values in plan.graph.points.items()}


def _devices(loads: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"ops": d.ops, "matmuls": d.matmuls, "time_s": d.time_s, "energy_j": d.energy_j}
        for name, d in loads.items()
    }


def request_figures(plan: RequestPlan) -> dict[str, Any]:
    """A request as JSON says it."""
    parts = {"prefill": plan.prefill, "decode": plan.decode}
    return {
        "model": plan.prefill.graph.workload.name.removesuffix(" prefill"),
        "machine": plan.prefill.graph.machine.name,
        "prompt": plan.prompt,
        "new_tokens": plan.new_tokens,
        "batch": plan.batch,
        "objective": plan.objective.text,
        "time_s": plan.time_s,
        "energy_j": plan.energy_j,
        "value": plan.value,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "devices": _devices(plan.devices),
        **{
            name: {"time_s": float(part.times_s.sum()), "energy_j": float(part.energies_j.sum())}
            for name, part in parts.items()
            if part is not None
        },
    }


def _show_request(plan: RequestPlan, as_json: bool) -> None:
    from strata.app import machine_tables

    if as_json:
        _print_json(request_figures(plan))
    else:
        show(machine_tables.request_tables(plan))


def _show_explained_request(plan: RequestPlan, pattern: str, as_json: bool) -> None:
    """Ops of the prompt's run, and of the runs of the first and the last new token."""
    from strata.app.machine_tables import explanation_figures, explanation_tables
    from strata.planner.devices.explain import explain

    if plan.objective.text == "edp":
        raise UserError(
            "--explain: the edp of a request is not a sum over its runs, so no run explains it; expected "
            "another objective, or --phase prefill or decode"
        )
    runs = [(plan.prefill, 0)]
    if plan.decode is not None:
        runs += [(plan.decode, point) for point in dict.fromkeys((0, plan.new_tokens - 1))]
    found = [(p, point, explain(p, pattern, point)) for p, point in runs]
    if as_json:
        _print_json(
            [
                {"run": p.graph.workload.name, **_sizes(p, point), "ops": [*map(explanation_figures, ops)]}
                for p, point, ops in found
            ]
        )
        return
    for p, point, ops in found:
        sizes = ", ".join(f"{name} = {size}" for name, size in _sizes(p, point).items())
        show([f"{p.graph.workload.name} · {sizes}"])
        show(table for e in ops for table in explanation_tables(p, e))


def _show_explanations(plan: MachinePlan, pattern: str, as_json: bool) -> None:
    from strata.app.machine_tables import explanation_figures, explanation_tables
    from strata.planner.devices.explain import explain

    found = explain(plan, pattern)
    if as_json:
        _print_json([explanation_figures(e) for e in found])
    else:
        show(table for e in found for table in explanation_tables(plan, e))


def show(tables: Iterable[Any]) -> None:
    """Print tables and lines."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, markup=False)
    for table in tables:
        console.print(table)


def _print_json(figures: object) -> None:
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
