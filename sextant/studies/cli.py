"""The command line: ``sextant run | search | sensitivity | check | list | show | compare | import | predict | measure |
fit | validate``.

stdout is the answer, stderr progress and warnings. Exit 0: answered; 1: nothing is feasible; 2: bad input.
Libraries are imported inside the commands, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

import sextant
from sextant.simulator.errors import InputError
from sextant.studies import cli_validate, plan_commands
from sextant.studies.console import answer_of, notes, plain, print_json, put, question, say

#: Exit codes, as documented.
ANSWERED, NOTHING_FEASIBLE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
#: A file of fewer kernel cases is over before its progress is worth a line.
_PROGRESS_ROWS = 200_000

app = typer.Typer(
    name="sextant", help=sextant.__doc__, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(cli_validate.app, name="validate")

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
    answer = answer_of(asked, n_workers)
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
        notes(answer)
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
    kind: Annotated[str, typer.Argument(help="models, gpus, clusters, topologies, ops, studies or scenarios")],
    json: AsJson = False,
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
    kind: Annotated[str, typer.Argument(help="model, gpu, cluster, topology, op or scenario")],
    name: Annotated[str, typer.Argument(help="Its name, as `sextant list` prints it.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a model or topology first, e.g. n_streams=4."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for card.json, of a model also figures.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show one model, GPU, cluster, topology, operator or scenario, with the source of its numbers."""
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
    found = comparison.compare(*(answer_of(asked) for asked in questions))
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
