"""Rules of the whole project: who may import whom, what importing costs, what no file may say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "sextant").rglob("*.py"))


def test_import_contracts():
    """studies > validate > hwmodels | workloads > simulator; torch in validate alone; boundary libraries in studies."""
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("name", ["sextant", "sextant.studies.cli", "sextant.studies.training"])
def test_sizing_never_imports_torch(name):
    """torch takes seconds to import, and is an extra."""
    code = f"import {name}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_command_line_starts_without_numbers():
    """Help, version and completion need neither numpy nor matplotlib."""
    heavy = ("numpy", "scipy", "matplotlib", "yaml")
    code = f"import sextant.studies.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_nouns_with_docstrings(path):
    """Every module says what it is; none is a drawer for leftovers."""
    text = path.read_text(encoding="utf-8")
    assert re.match(r'(#!.*\n)?("""|r""")', text), "no module docstring"
    assert path.stem not in {"utils", "common", "base", "helpers", "manager"}
    assert len(text.splitlines()) <= 420, "split it: files stay around 300 lines"


def test_public_functions_have_docstrings():
    """Functions and classes without a leading underscore at module level say what they do."""
    missing = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        if "validate/kernels/" in path.as_posix():
            continue
        for i, line in enumerate(lines):
            if not re.match(r"(def|class) [a-zA-Z]", line):
                continue
            end = next(j for j in range(i, len(lines)) if lines[j].rstrip().endswith((":", ": ...", "# fmt: skip")))
            body = next((text.strip() for text in lines[end + 1 :] if text.strip()), "")
            if not body.startswith(('"""', 'r"""')):
                missing.append(f"{path.relative_to(ROOT)}:{i + 1}: {line}")
    assert not missing, "\n".join(missing)
