"""Write the golden results anew: ``python -m tests.golden`` in the root of the repository, then review the diff."""

from __future__ import annotations

import json
from pathlib import Path

from sextant.studies.answer import answer, question
from sextant.studies.catalogue import scenario_names

ENGINES = ("analytic", "event")
FOLDER = Path(__file__).parent


def metrics(scenario: str) -> dict[str, dict[str, object]]:
    """Every metric of the first point of a shipped scenario, and what limits it, by engine."""
    found = {engine: answer(question(scenario, [f"engine={engine}"])) for engine in ENGINES}
    return {
        engine: {
            "metrics": {name: float(values[0]) for name, values in sorted(each.columns.items())},
            "limits": list(each.limits[0]),
        }
        for engine, each in found.items()
    }


if __name__ == "__main__":
    for scenario in scenario_names():
        path = FOLDER / f"{scenario}.json"
        path.write_text(json.dumps(metrics(scenario), indent=2) + "\n", encoding="utf-8")
        print(f"{path.name}: step_time_s", *(found["metrics"]["step_time_s"] for found in metrics(scenario).values()))
