"""The command line as a user meets it: answers on stdout, messages on stderr, exit codes 0, 1, 2, never a traceback."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import sextant
from sextant.studies import cli, workers

ROOT = Path(sextant.__file__).parents[1]
DECODE = "deepseek_v3_h800_decode"
TRAINING = "deepseek_v3_h800_training"
RUN = [sys.executable, "-c", "from sextant.studies.cli import main; main()"]
RUN_KEYS = ["scenario", "points", "breakdown", "provenance", "published", "memory", "warnings", "versions", "seed"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sx(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["sextant", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(stopped.value.code or 0), out, err)

    return run


def process(*words: str, **options) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*RUN, *words], capture_output=True, text=True, env=env, timeout=60, **options)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A training step that takes a moment: 4 stages, 8 micro-batches."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"base: {TRAINING}\nname: small\nplan: {{pipeline: 4, data: 64}}\ncluster: {{n_devices: 256, "
        "tiers.infiniband.n_devices: 32}\nload: {batch: 512}\npublished: []\n"
    )
    return path


# ---- exit codes, in a process of their own


def test_exit_codes_of_the_process() -> None:
    answered = process("run", DECODE)
    assert (answered.returncode, answered.stdout.splitlines()[0]) == (0, "DeepSeek-V3 decode step on 144 H800")
    assert all(line.startswith("note: ") for line in answered.stderr.splitlines())
    infeasible = process("run", DECODE, "--set", "load.batch=512")
    assert infeasible.returncode == 1
    assert "infeasible: hbm: weights, cache and activations do not fit: 121.9 GB too much" in infeasible.stdout
    refused = process("run", DECODE, "--set", "load.bach=512")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "error: --set load.bach=512: load.bach: 'load' has no field 'bach'; did you mean 'batch'?\n"
    )


def test_a_reader_that_leaves_early_changes_nothing() -> None:
    for words, code in ((("list", "models"), 0), (("run", DECODE, "--set", "load.batch=512", "--json"), 1)):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as closed:
            ran = subprocess.run(
                [*RUN, *words], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (code, "") or ran.stderr.startswith("note: ")
        assert ran.returncode == code


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['sextant', '--help']\nfrom sextant.studies import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'numpy', 'scipy', 'matplotlib', 'yaml', 'pydantic', 'rich', 'simpy', 'networkx'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=30)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--install-completion" in ran.stdout


def test_a_terminal_without_unicode_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"base: {DECODE}\nname: \u00e9tude \u6df1\n", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([*RUN, "run", str(path)], capture_output=True, text=True, env=env, timeout=60)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0] == "\\xe9tude \\u6df1"


# ---- wrong input: one message, exit 2, nothing on stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rnu",), "No such command 'rnu'"),
        (("run",), "Missing argument 'SCENARIO'"),
        (("run", DECODE, "--bogus"), "No such option"),
        (("run", "no_such.yaml"), "no_such.yaml: there is no such file, nor a shipped scenario of that name; "),
        (("run", "deepseek_v3_h800_decod"), "did you mean 'deepseek_v3_h800_decode'"),
        (("run", "/"), "/: is a directory, not a file"),
        (("run", DECODE, "--set", "plan.data"), "expected path=value; write for example plan.pipeline=8"),
        (("run", DECODE, "--set", "plan.dta=2"), "plan.dta: 'plan' has no field 'dta'; did you mean 'data'?"),
        (("run", DECODE, "--set", "load.batch=-3"), "load.batch: must not be negative, got -3"),
        (("run", DECODE, "--set", "model=deepseek-v9"), "unknown model 'deepseek-v9'; did you mean"),
        (("run", DECODE, "--set", "axes.load.batch=[1,x]"), "expected a number, got 'x'"),
        (("run", DECODE, "--trace"), "--trace writes a file; add --out DIR"),
        (("run", DECODE, "--out", "/dev/null"), "--out /dev/null: cannot be made a folder (File exists)"),
        (("run", DECODE, "--out", "/proc/nowhere"), "--out /proc/nowhere: cannot be made a folder"),
        (("run", DECODE, "--workers", "none"), "--workers none: expected a number of processes"),
        (("run", DECODE, "--workers", "0"), "--workers 0: expected a number of processes"),
        (("run", DECODE, "--workers", "tcp://h:8786"), "--workers tcp://h:8786: dask.distributed is not supported yet"),
        (("check", "nothing"), "nothing: there is no such file"),
        (("list", "model"), "unknown kind 'model'; did you mean 'models'?"),
        (("list",), "Missing argument"),
        (("show", "gpus", "h801"), "unknown GPU 'h801'; did you mean 'h800'"),
        (("show", "model", "deepsek-v3"), "unknown model 'deepsek-v3'; did you mean 'deepseek-v3'"),
        (("show", "cluster", "x"), "unknown cluster 'x'"),
        (("show", "op", "gem"), "unknown operator 'gem'; did you mean 'gemm'"),
        (("show", "scenario", "x"), "unknown scenario 'x'"),
        (("show", "thing", "x"), "unknown kind 'thing'"),
        (("compare", DECODE, "absent.yaml"), "absent.yaml: there is no such file"),
        (("validate", "published", "nothing_so"), "no predicted figure begins with 'nothing_so'"),
        (("validate", "publishd"), "No such command 'publishd'"),
    ],
)
def test_wrong_input_is_one_message(words: tuple[str, ...], message: str, sx: Callable[..., Ran]) -> None:
    ran = sx(*words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.startswith("error: ") and len(ran.err.splitlines()) == 1


def test_every_fault_of_a_file_is_told_at_once_with_its_place(sx: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"base: {DECODE}\nsed: 1\nload: {{bach: 2}}\n")
    ran = sx("run", str(path))
    assert (ran.code, ran.out) == (2, "")
    assert [line.split(": ")[1] for line in ran.err.splitlines()] == [f"{path}:2:1", f"{path}:3:8"]


def test_no_arguments_print_the_help_and_fail(sx: Callable[..., Ran]) -> None:
    ran = sx()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: sextant [OPTIONS] COMMAND")


def test_a_folder_that_cannot_be_written(sx: Callable[..., Ran], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere, so a folder stands where a file should go.
        (tmp_path / "points.csv").mkdir()
        ran = sx("run", DECODE, "--out", str(tmp_path))
        assert f"{tmp_path}/points.csv: cannot be written" in ran.err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["points.csv"]
    else:
        tmp_path.chmod(0o500)
        ran = sx("run", DECODE, "--out", str(tmp_path))
        assert f"--out {tmp_path}: cannot be written" in ran.err
    assert (ran.code, ran.out) == (2, "")


def test_an_interrupt_ends_quietly_and_leaves_no_file(
    sx: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sextant.studies import report

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_breakdown_csv", interrupted)
    ran = sx("run", DECODE, "--out", str(tmp_path))
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["points.csv", "result.json"]


# ---- answers


def test_run_json_has_the_keys_of_the_contract(sx: Callable[..., Ran]) -> None:
    ran = sx("run", DECODE, "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err, list(found)) == (0, "", RUN_KEYS)
    (point,) = found["points"]
    assert list(point) == ["metrics", "feasible", "limits"] and point["feasible"] is True
    assert {"tpot_s", "tokens_per_s_per_device", "kv_bytes_per_token", "hbm_bytes", "usd_per_million_tokens",
            "exposed_comm_s", "step_time_s", "tokens_per_s"} <= set(point["metrics"])  # fmt: skip
    assert point["metrics"]["kv_bytes_per_token"] == 70272.0
    assert sum(found["provenance"].values()) == pytest.approx(1.0)
    assert found["versions"]["sextant"] == sextant.__version__
    assert {pair["metric"] for pair in found["published"]} == {"tpot_s", "tokens_per_s_per_device"}


def test_a_sweep_names_its_axes_in_every_point(sx: Callable[..., Ran]) -> None:
    ran = sx("run", DECODE, "--set", "axes.load.batch=[32,64,1280]", "--json")
    points = json.loads(ran.out)["points"]
    assert [p["load.batch"] for p in points] == [32, 64, 1280]
    assert [p["feasible"] for p in points] == [True, True, False]
    assert points[2]["limits"] == ["hbm: weights, cache and activations do not fit: 391.5 GB too much"]
    text = sx("run", DECODE, "--set", "axes.load.batch=[32,64,1280]").out.splitlines()
    assert text[0] == "DeepSeek-V3 decode step on 144 H800: 3 points, 2 feasible"
    assert text[1].split()[:5] == ["batch", "time", "per", "output", "token"]


@pytest.mark.parametrize("scenario", [TRAINING, DECODE])
def test_the_short_table_fits_a_terminal(
    scenario: str, sx: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ran = sx("run", scenario, "--out", str(tmp_path / "out"))
    lines = ran.out.splitlines()
    assert ran.code == 0 and len(lines) <= 40 and max(map(len, lines)) <= 100
    assert "feasible" in lines[-4:] and "results: " in ran.out
    text = ran.out
    wanted = {
        TRAINING: ("step ", "1F:", "1B:", "1W:", "1F1B:", "bubble", "optimizer", "MFU, causal", "MFU, non-causal",
                   "tokens per day", "272.8 B", "GPU hours per trillion tokens", "180.0 K", "USD", "19.926 s"),
        DECODE: ("time per output token", "47.6 ms", "tokens/s per GPU", "1,850", "USD per million tokens",
                 "70.272 kB"),
    }[scenario]  # fmt: skip
    assert [word for word in wanted if word not in text] == []
    assert "memory of the fullest GPU" in text and "fits" in text and "published: " in text
    unwanted = {TRAINING: ("tokens/s", "USD per million"), DECODE: ("\nstep ",)}[scenario]
    assert [word for word in unwanted if word in text] == []


def test_a_changed_scenario_is_not_passed_off_as_the_published_one(sx: Callable[..., Ran]) -> None:
    ran = sx("run", DECODE, "--set", "load.batch=64")
    assert "note: the published figures are of the scenario without --set load.batch\n" in ran.err


def test_check_runs_nothing_and_tells_every_source(sx: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from sextant.studies import answer

    monkeypatch.delattr(answer, "evaluate")
    leaves = json.loads(sx("check", DECODE, "--set", "load.batch=64", "--json").out)
    found = {leaf["path"]: leaf for leaf in leaves}
    assert found["load.batch"]["source"] == "--set load.batch=64"
    assert found["plan.data"]["source"].endswith(f"{DECODE}.yaml:10")
    assert all(leaf["source"] for leaf in leaves)
    text = sx("check", DECODE).out.splitlines()
    assert text[0].split() == ["field", "value", "source"]
    assert len(text) < 240 and max(map(len, text)) <= 160


def test_user_text_is_never_markup_nor_a_command_to_the_terminal(sx: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f'base: {DECODE}\nname: "[red]x[/red] [/] \\e[31m\\a \\n"\n')
    for words in (("run", str(path)), ("check", str(path)), ("compare", str(path), DECODE),
                  ("run", str(path), "--set", "axes.load.batch=[1,2]")):  # fmt: skip
        ran = sx(*words)
        if ran.code == 2:
            assert "\x1b" not in ran.err
            continue
        assert "[red]x[/red] [/] \\x1b[31m\\x07 \\n" in ran.out
        assert "\x1b" not in ran.out and "\x07" not in ran.out
    hostile = sx("run", "[red]\x1b[31m.yaml")
    assert hostile.code == 2 and "[red]\\x1b[31m.yaml" in hostile.err and "\x1b" not in hostile.err


def test_compare_and_validate(sx: Callable[..., Ran]) -> None:
    found = json.loads(sx("compare", DECODE, DECODE, "--json").out)
    assert list(found) == ["a", "b", "metrics", "operators", "resources"]
    assert all(row["a"] == row["b"] for section in ("metrics", "operators") for row in found[section])
    assert "operators: no difference" in sx("compare", DECODE, DECODE).out
    rows = json.loads(sx("validate", "published", "kv_cache", "--json").out)
    assert [row["error"] for row in rows] == [0.0, 0.0, 0.0]


# ---- several processes


SWEEP = ("--set", "axes={plan.pipeline: [1, 2], load.batch: [64, 128]}", "--set", "plan.data=64",
         "--set", "plan.expert=32", "--set", "plan.redundant_experts=0")  # fmt: skip


def test_workers_give_the_same_bytes(sx: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = sx("run", DECODE, *SWEEP, "--json")
    assert alone.code == 0 and len(json.loads(alone.out)["points"]) == 4
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert sx("run", DECODE, *SWEEP, "--json", "--workers", "2") == alone


def test_a_worker_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from sextant.simulator.errors import InputError
    from sextant.studies import answer

    asked = answer.question(
        DECODE, ["axes.plan.overlap=[none, two_batch]", "axes.plan.pipeline={linspace: [1, 400, 400]}"]
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def kill(_: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(InputError, match="a worker process died"):
        workers.answer(asked, 2, kill)


# ---- traces


def test_a_trace_holds_every_rank_for_the_whole_step(sx: Callable[..., Ran], small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = sx("run", str(small), "--out", str(out), "--trace", "--json")
    assert ran.code in (0, 1), ran.err
    step_s = json.loads(ran.out)["points"][0]["metrics"]["step_time_s"]
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["rank 00", "rank 01", "rank 02", "rank 03"]
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(1e6 * step_s, rel=1e-9)
    for pid in range(4):
        mine = [e for e in spans if e["pid"] == pid and " to rank " not in e["name"]]
        # 8 micro-batches pass every rank, half of them from either end of the pipeline.
        assert sum("F" in e["name"] for e in mine) == sum("B" in e["name"] for e in mine) == 8
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in zip(mine, mine[1:], strict=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((DECODE,), "--trace: a trace shows a training pipeline, got load.phase: decode"),
        ((TRAINING, "--set", "engine=analytic"), "got engine: analytic; add --set engine=event"),
    ],
)
def test_no_trace_without_a_simulated_pipeline(
    words: tuple[str, ...], message: str, sx: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = sx("run", *words, "--out", str(tmp_path), "--trace")
    assert (ran.code, ran.out, list(tmp_path.iterdir())) == (2, "", [])
    assert message in ran.err


def test_an_interrupted_sweep_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    sets = ("--set", "axes={plan.pipeline: [2, 4, 8, 16], load.batch: [15360, 30720, 61440, 122880]}")
    ran = subprocess.Popen(
        [*RUN, "run", TRAINING, *sets, "--workers", "2", "--out", str(tmp_path)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        # A suite started in the background of a shell inherits ignored interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(1.5)
    os.killpg(ran.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = ran.communicate(timeout=20)
    assert (ran.returncode, out, err) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 5
    while running(ran.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(ran.pid) == []


def running(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [args for pgid, stat, args in rows if int(pgid) == group and not stat.startswith("Z")]
