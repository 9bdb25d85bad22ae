"""What every command does with a terminal: messages, answers, progress; and how it finds the scenario it is asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sextant.simulator.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sextant.studies.report import Answer
    from sextant.studies.scenario import Check, Question

#: A sweep of fewer points is over before a progress bar is drawn.
_BAR_POINTS = 2000


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


def question(scenario: str, sets: list[str] | None = None, checks: Sequence[Check] | None = None) -> Question:
    """The question that a file, or a shipped scenario's name, asks; InputError offers the nearest names."""
    from sextant.studies import answer, catalogue

    found = answer.locate(scenario)
    if "\n" not in scenario and not Path(found).exists():
        known = catalogue.scenario_names()
        remedy = nearest(scenario, known)
        raise InputError(f"{scenario}: there is no such file, nor a shipped scenario of that name; {remedy}")
    return answer.question(scenario, sets or ()) if checks is None else answer.question(scenario, sets or (), checks)


def answer_of(asked: Question, n_workers: int = 1) -> Answer:
    """The answer to a question; a long sweep shows its progress on stderr."""
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


def notes(answer: Answer) -> None:
    """The warnings of an answer, on stderr."""
    from sextant.studies import report

    for warning in answer.result.warnings:
        say(f"note: {plain(warning)}")
    changed = report.changed(answer)
    if changed and answer.question.published and answer.n_points == 1:
        say(f"note: the published figures are of the scenario without --set {plain(', '.join(changed))}")


def print_json(value: object) -> None:
    """``value`` as JSON on stdout."""
    from sextant.studies.report import dumps

    put(dumps(value), sys.stdout)
