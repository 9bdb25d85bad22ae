"""``sextant validate``: predictions beside what was published or measured."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sextant.studies.console import print_json, put, question

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

app = typer.Typer(help="Compare predictions with what was published or measured.", no_args_is_help=True)


@app.command("published")
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


@app.command("kernels")
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


@app.command("transfer")
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


@app.command("ranks")
def validate_ranks(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Files that sextant measure ranks wrote.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="The GPU that was measured.")] = "h100",
    json: AsJson = False,
) -> None:
    """Predict what several GPUs of one host took together, and show the errors of each kind."""
    from sextant.validate.node import judged

    found = judged.judged(folder, device)
    print_json(judged.as_json(found)) if json else put(judged.table(found), sys.stdout)


@app.command("models")
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


@app.command("engram")
def validate_engram(
    case: Annotated[str, typer.Argument(metavar="CASE", help="Only cases whose names begin so.")] = "",
    device: Annotated[str, typer.Option(metavar="NAME", help="A GPU whose measured blocks are shipped.")] = "h200",
    kernels: Annotated[bool, typer.Option("--kernels", help="mHC's and Engram's kernels inside the passes.")] = False,
    json: AsJson = False,
) -> None:
    """Predict what measured Engram blocks wait for rows, by every way of fetching them, and show the errors."""
    from sextant.studies import engram_table

    found = engram_table.judged_kernels(device, case) if kernels else engram_table.judged(device, case)
    print_json(found.as_json()) if json else put(found.text(), sys.stdout)


@app.command("trace")
def validate_trace(
    profile: Annotated[str, typer.Argument(metavar="FILE", help="A PyTorch profile, .json or .json.gz.")],
    scenario: Annotated[str, typer.Option(metavar="NAME", help="Whose chunk pair it is; else DualPipe's.")] = "",
    json: AsJson = False,
) -> None:
    """Read a profile of kernels: streams, overlap, what takes the time; of a chunk pair also what was predicted."""
    from sextant.studies import trace_table

    found = trace_table.judged(profile, question(scenario) if scenario else None)
    print_json(found.as_json()) if json else put(found.text(), sys.stdout)


@app.command("allocation")
def validate_allocation(
    device: Annotated[str, typer.Option(metavar="NAME", help="A GPU whose measured curves are shipped.")] = "h200",
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for the figure.")] = None,
    json: AsJson = False,
) -> None:
    """Show the measured losses of tiny models over the share of sparse parameters that experts hold."""
    from sextant.studies import allocation_curve
    from sextant.studies.files import folder

    found = allocation_curve.curves(device)
    if out:
        allocation_curve.draw(found, folder(out))
    print_json(allocation_curve.as_json(found)) if json else put(allocation_curve.table(found), sys.stdout)
