"""A sensitivity as a table and as a figure of bars."""

from __future__ import annotations

from pathlib import Path

from sextant.simulator.units import dimension, show
from sextant.studies.figures import save_figure, styled
from sextant.studies.files import folder, save
from sextant.studies.metrics import METRICS, shown
from sextant.studies.report import dumps
from sextant.studies.sensitivity import Rate, Sensitivity
from sextant.studies.tables import add, grid, rendered, wrapped

_N_BARS = 20
_MORE, _LESS = "#2f6690", "#d9a441"


def text(found: Sensitivity) -> str:
    """The rates that move the metric, the most first, and the names of those that do not."""
    label = METRICS[found.metric].label if found.metric in METRICS else found.metric
    percent = f"{100 * found.change:g}%"
    lines = [found.scenario, f"{label}: {shown(found.metric, found.base)}", ""]
    table = grid("rate", ">value", f">+{percent}", f">-{percent}", ">% per %")
    for rate in found.rates:
        add(table, (_name(rate), _value(rate), _moved(rate.more, found.base), _moved(rate.less, found.base),
                    f"{rate.elasticity:+.3f}"))  # fmt: skip
    lines.append(rendered(table))
    if found.idle:
        lines += ["", *wrapped("no effect: " + ", ".join(path.removeprefix("cluster.") for path in found.idle))]
    return "\n".join(lines)


def write(found: Sensitivity, out: str | Path) -> list[Path]:
    """sensitivity.json and the figure in folder ``out``; returns the files."""
    place = folder(out)
    return [save(place / "sensitivity.json", lambda f: f.write(dumps(found.as_json()) + "\n")), *_draw(found, place)]


def _draw(found: Sensitivity, place: Path) -> list[Path]:
    """A pair of bars for each of the rates that matter most: the metric with more and with less of it."""
    import matplotlib.pyplot as plt

    rates = found.rates[:_N_BARS]
    if not rates:
        return []
    with styled():
        figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.3 * len(rates)))
        rows = range(len(rates))
        for values, sign, colour in (
            ([r.more for r in rates], "+", _MORE), ([r.less for r in rates], "-", _LESS),
        ):  # fmt: skip
            moved = [100 * (value / found.base - 1) for value in values]
            axes.barh(list(rows), moved, height=0.6, color=colour, label=f"rate {sign}{100 * found.change:g}%")
        axes.set_yticks(list(rows), [_name(r) for r in rates], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(0, color="#444444", lw=0.8)
        axes.set_xlabel(f"change of {found.metric} in %")
        axes.set_title(found.scenario, fontsize=9)
        axes.legend(frameon=False, fontsize=8)
        files = [save_figure(figure, place / f"sensitivity.{kind}") for kind in ("png", "svg")]
        plt.close(figure)
    return files


def _name(rate: Rate) -> str:
    return rate.path.removeprefix("cluster.")


def _value(rate: Rate) -> str:
    """With the unit of its name, or of the mapping it is in (``peak_flops_per_s.bf16``)."""
    *_, outer, name = ("", *rate.path.split("."))
    return show(rate.value, dimension(name) or dimension(outer))


def _moved(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.2f}%" if base else ""
