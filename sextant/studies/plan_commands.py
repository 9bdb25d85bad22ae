"""The commands about plans and machines: ``sextant search`` and ``sextant sensitivity``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sextant.simulator.errors import InputError
from sextant.studies.console import plain, print_json, put, question, say

if TYPE_CHECKING:
    from sextant.studies.scenario import Question

File = Annotated[str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a shipped one.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. load.batch=7680; may be repeated."),
]
#: Exit code, as documented.
NOTHING_FEASIBLE = 1
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def search(
    scenario: File,
    sets: Sets = None,
    by: Annotated[str, typer.Option(metavar="METRIC", help="What makes a plan good.")] = "",
    top: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many plans to show.")] = 10,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for all plans, json and a figure.")] = None,
    json: AsJson = False,
    workers: Annotated[str, typer.Option(metavar="N", help="Processes that share the plans.")] = "1",
) -> None:
    """Evaluate every parallel plan of a model on a cluster: the best, the Pareto front, and what rules others out.

    The scenario's own plan says what is not searched (formats, placement ...); `search:` in it may list the values of
    a field. --by takes any metric, such as step_time_s, usd_per_trillion_tokens or hbm_bytes.
    """
    from sextant.studies import answer, files, plans, search_report, tables
    from sextant.studies import search as searching
    from sextant.studies import workers as processes

    n_workers = processes.count(workers)
    asked = _of_a_phase(question(scenario, sets, checks=(answer.searchable,)), "search")
    by = by or plans.objective(asked.scenario)
    if out:
        files.folder(out)
    found = searching.search(asked.scenario, progress("plans"), n_workers)
    plans.metric(found, by)
    written = search_report.write(found, by, top, out) if out else []
    if json:
        print_json(search_report.as_json(found, by, top))
    else:
        text = search_report.text(found, by, top)
        put(text + ("\n" + tables.results(Path(out), written) if out else ""), sys.stdout)
        for note in found.warnings:
            say(f"note: {plain(note)}")
    if not found.feasible.any():
        raise typer.Exit(NOTHING_FEASIBLE)


def sensitivity(
    scenario: File,
    sets: Sets = None,
    by: Annotated[str, typer.Option(metavar="METRIC", help="The metric that is watched.")] = "",
    change: Annotated[str, typer.Option(metavar="SHARE", help="By how much each rate changes.")] = "10%",
    kernels: Annotated[bool, typer.Option("--kernels", help="Also the fitted coefficients of kernels.")] = False,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for json and a figure.")] = None,
    json: AsJson = False,
) -> None:
    """Change every rate of the machine alone, and show how much each moves a metric, the most first."""
    from sextant.studies import files, sensitivity_report, tables
    from sextant.studies import sensitivity as sensing

    asked, amount = _of_a_phase(question(scenario, sets), "sensitivity"), sensing.share(change)
    if out:
        files.folder(out)
    found = sensing.study(asked.scenario, by, amount, kernels=kernels, progress=progress("rates"))
    written = sensitivity_report.write(found, out) if out else []
    if json:
        print_json(found.as_json())
    else:
        text = sensitivity_report.text(found)
        put(text + ("\n" + tables.results(Path(out), written) if out else ""), sys.stdout)


def _of_a_phase(asked: Question, command: str) -> Question:
    """``asked``, unless a study answers it: what these commands vary is the step of one phase."""
    if asked.study:
        remedy = "write a scenario without `study`, or use `sextant run`"
        raise InputError(f"a {command} is of the scenario's phase, but the study {asked.study} answers it; {remedy}")
    return asked


def progress(what: str) -> Callable[[int, int], None]:
    """A line on a terminal's stderr that counts, at most a hundred times."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if done == total or done % max(1, total // 100) == 0:
            end = "\n" if done == total else ""
            print(f"\r{what}: {100 * done // total}%", end=end, file=sys.stderr, flush=True)

    return show
