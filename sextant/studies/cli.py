"""The command line: ``sextant run | search | sensitivity | check | list | show | compare | import | predict | measure |
fit | validate``.

stdout is the answer, stderr progress and warnings. Exit 0: answered; 1: nothing is feasible; 2: bad input.
Libraries are imported inside the commands, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

import sextant
from sextant.simulator.errors import InputError, nearest
from sextant.studies import plan_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sextant.studies.report import Answer
    from sextant.studies.scenario import Check, Question

#: Exit codes, as documented.
ANSWERED, NOTHING_FEASIBLE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
#: A sweep of fewer points is over before a progress bar is drawn.
_BAR_POINTS = 2000
#: A file of fewer kernel cases is over before its progress is worth a line.
_PROGRESS_ROWS = 200_000

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
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped, rather than ending the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_guarded())


def _guarded() -> int:
    try:
        code = app(prog_name="sextant", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of an interrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else ANSWERED
    except InputError as error:
        for problem in error.problems:
            say(f"error: {plain(str(problem))}")
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        # typer may bring a click of its own: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()  # type: ignore[attr-defined]
        say(text if text.startswith("Usage") else f"error: {plain(text)} (sextant --help lists what there is)")
        return BAD_INPUT


def plain(text: str) -> str:
    """``text`` on one line, with everything that a terminal might obey escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(text: str) -> None:
    """A message on stderr."""
    put(text, sys.stderr)


def put(text: str, file: TextIO) -> None:
    """Print and flush; a reader that has gone away (``| head -1``) has seen enough and changes no exit code."""
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        put(f"sextant {sextant.__version__}", sys.stdout)
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
    workers: Annotated[str, typer.Option(metavar="N", help="Processes that share a sweep's groups.")] = "1",
) -> None:
    """Answer a scenario: a short table, or JSON; with --out also files."""
    from sextant.studies import files, report, tables
    from sextant.studies import workers as processes

    n_workers = processes.count(workers)
    if trace and not out:
        raise InputError("--trace writes a file; add --out DIR")
    asked = question(scenario, sets)
    if out:
        files.folder(out)
    answer = _answer(asked, n_workers)
    if trace and (problem := report.simulated(answer)):
        raise InputError(f"--trace: {problem}")
    written = report.write(answer, out) if out else []
    if out and trace:
        written.append(report.write_trace(answer, out))
    if json:
        print_json(report.as_json(answer))
    else:
        text = tables.answer(answer)
        if out:
            text += "\n" + tables.results(Path(out), written)
        put(text, sys.stdout)
        _notes(answer)
    if not answer.result.feasible.any():
        raise typer.Exit(NOTHING_FEASIBLE)


for _command in (plan_commands.search, plan_commands.sensitivity):
    app.command()(_command)


@app.command()
def check(scenario: File, sets: Sets = None, json: AsJson = False) -> None:
    """Show every resolved value of a scenario with its source; run nothing."""
    from sextant.studies import provenance, tables

    leaves = provenance.resolved(question(scenario, sets))
    if json:
        print_json([{"path": x.path, "value": x.value, "text": x.text, "source": x.source} for x in leaves])
    else:
        put(tables.resolved(leaves), sys.stdout)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="models, gpus, clusters, ops, studies or scenarios")], json: AsJson = False
) -> None:
    """List what a scenario may name."""
    from sextant.studies import cards, tables

    rows = cards.listing(kind)
    if json:
        print_json(rows)
    else:
        put(tables.listing(rows), sys.stdout)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="model, gpu, cluster, op or scenario")],
    name: Annotated[str, typer.Argument(help="Its name, as `sextant list` prints it.")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a model first, e.g. n_streams=4.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for card.json, of a model also figures.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show one model, GPU, cluster, operator or scenario, with the source of its numbers."""
    from sextant.studies import card_table, cards, files, tables

    card = cards.card(kind, name, sets or ())
    model = kind in ("model", "models")
    written = cards.write(card, files.folder(out), figure=model) if out else []
    if json:
        print_json(card)
        return
    text = card_table.card(card) if model else tables.card(card)
    put(text + ("\n" + tables.results(Path(out), written) if out else ""), sys.stdout)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A.yaml")],
    b: Annotated[str, typer.Argument(metavar="B.yaml")],
    json: AsJson = False,
) -> None:
    """The difference between two scenarios, by metric, operator and resource."""
    from sextant.studies import comparison, tables

    questions = [question(name) for name in (a, b)]
    found = comparison.compare(*(_answer(asked) for asked in questions))
    if json:
        print_json(found)
    else:
        put(tables.comparison(found), sys.stdout)


@app.command()
def predict(
    cases: Annotated[
        str, typer.Argument(metavar="CASES.csv", help="Kernel cases, one per row; column op names the kernel.")
    ],
    device: Annotated[str, typer.Option(metavar="NAME", help="A GPU of `sextant list gpus`.")],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Where the rows with predictions go.")] = None,
    json: AsJson = False,
) -> None:
    """Predict the time of every kernel of a CSV; where it has measured times (us), show the errors per operator.

    Without --out, stdout has the rows, or the table of errors where there are measured times.

    Columns left out: format bf16 (fp8 of cast, fp8_block of ep_dispatch, fp32 of sinkhorn), phase prefill, q_len kv_len
    (1 in decode), kv_heads heads, v_head_dim head_dim, causal 1 (0 of encoders), latent ranks 512 + 64 and heads 128 +
    64 / 128, tensor_parallel and expert_parallel 1, routing balanced, n_streams 4, sinkhorn_iters 20, tier hbm, stride
    1, mode normal, n_sms 20, n_nodes n_gpus / 8.
    """
    from sextant.studies import prediction_table

    def progress(n_rows: int) -> None:
        if n_rows >= _PROGRESS_ROWS:
            say(f"{n_rows:,} rows")

    text, outcome = prediction_table.run(cases, device, out, json=json, progress=progress)
    put(text, sys.stdout)
    for note in outcome.notes():
        say(f"note: {plain(note)}")
    if not outcome.n_predicted:
        raise typer.Exit(NOTHING_FEASIBLE)


@app.command("import")
def import_(
    config: Annotated[str, typer.Argument(metavar="CONFIG.json", help="A Hugging Face config.json.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the model.")] = "",
    out: Annotated[str | None, typer.Option(metavar="FILE.yaml", help="Write a model file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model file that exists.")] = False,
    json: AsJson = False,
) -> None:
    """A Hugging Face config as a model: its sizes, the keys that were not used, and with --out a model file."""
    from sextant.studies import import_report, model_file

    found = model_file.imported(config, name)
    summary = import_report.summary(found, config)
    if out:
        summary["written"] = str(model_file.write(found, out, force=force))
    if json:
        print_json(summary)
    else:
        put(import_report.text(summary), sys.stdout)


@validate_app.command("published")
def validate_published(
    json: AsJson = False,
    prefix: Annotated[str, typer.Argument(help="Only figures whose id starts so.")] = "",
) -> None:
    """Predict every published figure that this version can, and show the errors."""
    from sextant.studies import judged, tables

    rows = judged.published_errors(prefix)
    if json:
        print_json(rows)
    else:
        put(tables.judged(rows), sys.stdout)


@validate_app.command("kernels")
def validate_kernels(
    device: Annotated[str, typer.Option(metavar="NAME", help="A GPU whose measured kernels are shipped.")] = "h200",
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Also the kernels that fits have seen.")] = False,
    json: AsJson = False,
) -> None:
    """Predict the shipped measured kernels that no fit has seen, and show the errors of each kind."""
    from dataclasses import asdict

    from sextant.studies import kernel_errors

    found = kernel_errors.judged(device)
    rows = kernel_errors.errors(found if all_rows else found.only(found.held_out))
    if json:
        print_json([asdict(row) for row in rows])
    else:
        put(kernel_errors.table(rows), sys.stdout)


@validate_app.command("transfer")
def validate_transfer(
    source: Annotated[str, typer.Option("--from", metavar="NAME", help="The GPU whose fits predict.")] = "h100",
    target: Annotated[str, typer.Option("--to", metavar="NAME", help="The GPU whose kernels are predicted.")] = "h200",
    rows: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Measured kernels of the target.")] = None,
    json: AsJson = False,
) -> None:
    """Predict one GPU's kernels from its datasheet and another GPU's fits, and show the errors of each kind."""
    from sextant.studies import transfer_errors

    found = transfer_errors.study(source, target, rows or ())
    if json:
        print_json(found.as_json())
    else:
        put(found.text(), sys.stdout)


@validate_app.command("models")
def validate_models(
    case: Annotated[str, typer.Argument(metavar="CASE", help="One case, by what its kernels compute.")] = "",
    device: Annotated[str, typer.Option(metavar="NAME", help="A GPU whose measured models are shipped.")] = "h200",
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the rows as CSV.")] = None,
    json: AsJson = False,
) -> None:
    """Predict the shipped measured models, which no fit has seen, and show the error of each."""
    from sextant.studies import whole_table

    found = whole_table.judged(device, case)
    if out:
        whole_table.write(found.rows, out)
    if json:
        print_json(found.as_json())
    else:
        put(found.text(), sys.stdout)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def measure(context: typer.Context) -> None:
    """Measure kernels on this machine's GPU or CPU; sextant measure --help lists its options. Needs torch."""
    try:
        from sextant.validate import measure as measuring
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        remedy = "torch is not installed; pip install 'sextant-sim[torch]'"
        raise InputError(f"measure runs kernels of torch, and {remedy}") from error
    try:
        code = measuring.main(context.args)
    except SystemExit as stopped:  # argparse has said what is wrong, or shown its help
        code = stopped.code
    raise typer.Exit(code if isinstance(code, int) else BAD_INPUT)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def fit(context: typer.Context) -> None:
    """Fit kernel coefficients of a GPU to measured rows; sextant fit --help lists its options."""
    from sextant.validate import fit as fitting

    try:
        code = fitting.main(context.args)
    except SystemExit as stopped:  # argparse has said what is wrong, or shown its help
        code = stopped.code
    raise typer.Exit(code if isinstance(code, int) else BAD_INPUT)


def question(scenario: str, sets: list[str] | None = None, checks: Sequence[Check] | None = None) -> Question:
    """The question that a file, or a shipped scenario's name, asks; InputError offers the nearest names."""
    from sextant.studies import answer, catalogue

    found = answer.locate(scenario)
    if "\n" not in scenario and not Path(found).exists():
        known = catalogue.scenario_names()
        remedy = nearest(scenario, known)
        raise InputError(f"{scenario}: there is no such file, nor a shipped scenario of that name; {remedy}")
    return answer.question(scenario, sets or ()) if checks is None else answer.question(scenario, sets or (), checks)


def _answer(asked: Question, n_workers: int = 1) -> Answer:
    from sextant.studies import axes, workers
    from sextant.studies.report import Answer

    total = axes.n_points(asked.scenario.axes)
    if total < _BAR_POINTS or not sys.stderr.isatty():
        return Answer(question=asked, result=workers.answer(asked, n_workers))
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("points", total=total)
        return Answer(
            question=asked, result=workers.answer(asked, n_workers, lambda done: bar.update(task, completed=done))
        )


def _notes(answer: Answer) -> None:
    from sextant.studies import report

    for warning in answer.result.warnings:
        say(f"note: {plain(warning)}")
    changed = report.changed(answer)
    if changed and answer.question.published and answer.n_points == 1:
        say(f"note: the published figures are of the scenario without --set {plain(', '.join(changed))}")


def print_json(value: object) -> None:
    """A value as JSON on stdout."""
    from sextant.studies.report import dumps

    put(dumps(value), sys.stdout)
