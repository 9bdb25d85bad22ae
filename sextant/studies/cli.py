"""The command line: ``sextant run | check | list | show | compare | validate``.

stdout is the answer, stderr progress and warnings. Exit 0: answered; 1: nothing is feasible; 2: bad input.
Libraries are imported inside the commands, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sextant
from sextant.simulator.errors import InputError

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: Exit codes, as documented.
ANSWERED, NOTHING_FEASIBLE, BAD_INPUT = 0, 1, 2

app = typer.Typer(
    name="sextant", help=sextant.__doc__, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
validate_app = typer.Typer(help="Compare predictions with what was published or measured.", no_args_is_help=True)
app.add_typer(validate_app, name="validate")

File = Annotated[str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a shipped one.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. plan.pipeline=8; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main() -> None:
    """Entry point: run a command; a mistake in the input ends in one clear message and exit 2, never a traceback."""
    try:
        app()
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ANSWERED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sextant {sextant.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """How fast, how big and how costly is a sparse model on a cluster, before anyone rents a GPU."""


@app.command()
def run(
    scenario: File,
    sets: Sets = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for csv, json and figures.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.json (needs --out and engine: event).")] = False,
    json: AsJson = False,
) -> None:
    """Answer a scenario: a short table, or JSON; with --out also files."""
    from sextant.studies import report, tables

    answer = _answer(scenario, sets)
    if out:
        files = report.write(answer, out)
        if trace:
            files.append(report.write_trace(answer, out))
    elif trace:
        raise InputError("--trace writes a file; add --out DIR")
    if json:
        _print_json(report.as_json(answer))
    else:
        tables.print_answer(answer)
        if out:
            print(f"results: {out}/ ({', '.join(sorted(f.name for f in files))})")
    if not json:
        for warning in answer.result.warnings:
            print(f"note: {warning}", file=sys.stderr)
    if not answer.result.feasible.any():
        raise typer.Exit(NOTHING_FEASIBLE)


@app.command()
def check(scenario: File, sets: Sets = None, json: AsJson = False) -> None:
    """Show every resolved value of a scenario with its source; run nothing."""
    from sextant.studies import answer, provenance, tables

    leaves = provenance.resolved(answer.question(scenario, sets or ()))
    if json:
        _print_json([{"path": x.path, "value": x.value, "text": x.text, "source": x.source} for x in leaves])
    else:
        tables.print_rows(("field", "value", "source"), [(x.path, x.text, x.source) for x in leaves])


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="models, gpus, clusters, ops, studies or scenarios")], json: AsJson = False
) -> None:
    """List what a scenario may name."""
    from sextant.studies import cards, tables

    rows = cards.listing(kind)
    if json:
        _print_json(rows)
    else:
        tables.print_listing(rows)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="model, gpu, cluster, op or scenario")],
    name: Annotated[str, typer.Argument(help="Its name, as `sextant list` prints it.")],
    json: AsJson = False,
) -> None:
    """Show one model, GPU, cluster, operator or scenario, with the source of its numbers."""
    from sextant.studies import cards, tables

    card = cards.card(kind, name)
    if json:
        _print_json(card)
    else:
        tables.print_card(card)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A.yaml")],
    b: Annotated[str, typer.Argument(metavar="B.yaml")],
    json: AsJson = False,
) -> None:
    """The difference between two scenarios, by metric, operator and resource."""
    from sextant.studies import comparison, tables

    found = comparison.compare(_answer(a), _answer(b))
    if json:
        _print_json(found)
    else:
        tables.print_comparison(found)


@validate_app.command("published")
def validate_published(
    json: AsJson = False,
    prefix: Annotated[str, typer.Argument(help="Only figures whose id starts so.")] = "",
) -> None:
    """Predict every published figure that this version can, and show the errors."""
    from sextant.studies import judged, tables

    rows = judged.published_errors(prefix)
    if json:
        _print_json(rows)
    else:
        tables.print_judged(rows)


def _answer(scenario: str, sets: list[str] | None = None) -> Answer:
    from sextant.studies import answer, axes
    from sextant.studies.report import Answer

    asked = answer.question(scenario, sets or ())
    total = axes.n_points(asked.scenario.axes)
    if total < 2000 or not sys.stderr.isatty():
        return Answer(question=asked, result=answer.answer(asked))
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(Path(scenario).stem, total=total)
        return Answer(question=asked, result=answer.answer(asked, lambda done: bar.update(task, completed=done)))


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, default=_jsonable))


def _jsonable(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)  # type: ignore[attr-defined]
