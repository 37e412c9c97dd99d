"""A comparison is the same whoever carries out its runs, in which order, and however often it is stopped."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from inspect import signature
from multiprocessing import get_context
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import stats
from toy import Walk, contents

import npg
from npg._threads import THREADS
from npg.algorithms import ALGORITHMS
from npg.lab import cli, compare, plotting
from npg.lab.runs import Run

CORRIDOR = "npg/ShortCorridor-v0"
DRAWING = {name: getattr(plotting, name) for name in ("comparison", "sensitivity")}
QUICK = {"steps": 300, "episodes": 1, "deterministic": False, "threshold": -50.0}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch, fast_disk):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = os.pathsep.join([str(Path(npg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    for name in THREADS:
        monkeypatch.setenv(name, "1")
    for name in DRAWING:  # which takes longer than the runs
        monkeypatch.setattr(plotting, name, lambda *args: None)


class Here(Executor):
    """Carries each run out in this process, once there are ``n``, in an order drawn from ``seed``."""

    def __init__(self, n: int = 1, seed: int = 0) -> None:
        self.n, self.seed = n, seed
        self.waiting, self.done = [], []

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        self.waiting.append((future, fn, args, kwargs))
        if len(self.waiting) == self.n:
            random.Random(self.seed).shuffle(self.waiting)
            for each, call, given, named in self.waiting:
                each.set_result(call(*given, **named))
                self.done.append(given[0])
            self.waiting = []
        return future


@pytest.fixture
def npg_(capsys):
    """``npg compare`` in this process: (exit status, stdout, stderr)."""

    def run(*argv) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main(["compare", *map(str, argv)])
        except SystemExit as error:  # argparse
            status = error.code
        return status, *capsys.readouterr()

    return run


def compared(methods="reinforce", envs=CORRIDOR, seeds=2, executor=None, **how):
    return npg.compare(methods, envs, seeds, executor=executor or Here(), **QUICK | how)


def without_clock(table: str) -> str:
    """The table without its last column, the seconds to a threshold."""
    return re.sub(r" +(seconds|\d+\.\d|–)$", "", table, flags=re.M)


def rows(out) -> list[dict[str, str]]:
    with open(Path(out) / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def learned(out) -> dict[str, tuple]:
    """What each run left, but for seconds."""
    runs = sorted(Path(out).glob("**/config.json"))
    return {str(run.parent.relative_to(out)): contents(run.parent) for run in runs}


def start(*argv) -> subprocess.Popen:
    """``npg compare`` in a process and group of its own."""
    command = [sys.executable, "-m", "npg", "compare", *map(str, argv)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **streams)


def test_the_table_does_not_depend_on_who_carries_out_the_runs_nor_in_which_order():
    tables, left = set(), []
    with ThreadPoolExecutor(3) as threads:
        for k, executor in enumerate((Here(), Here(6, seed=1), Here(6, seed=2), threads)):
            comparison = compared(["reinforce", "a2c"], seeds=3, executor=executor, out=f"{k}")
            tables.add(without_clock(str(comparison)))
            left.append(learned(f"{k}"))
    assert len(tables) == 1
    assert len(left[0]) == 6
    assert all(each == left[0] for each in left)


@pytest.mark.process
def test_the_table_does_not_depend_on_the_number_of_workers_and_each_has_one_thread(npg_, monkeypatch):
    here = compared(["reinforce", "a2c"], out="here")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    options = ["--steps", 300, "--set", "episodes=1", "--sample", "--threshold", -50, "--seeds", 2]
    for workers in (1, 2):
        status, out, err = npg_("reinforce,a2c", CORRIDOR, *options, "--workers", workers, "--out", f"by{workers}")
        assert status == 0, err
        head, table = out.split("\n\n", 1)
        assert head == f"comparison by{workers}"
        assert without_clock(table.rstrip("\n")) == without_clock(str(here))
        assert learned(f"by{workers}") == learned("here")
        for path in Path(f"by{workers}").glob("**/config.json"):
            assert json.loads(path.read_text())["machine"] == {"cores": os.cpu_count()} | dict.fromkeys(THREADS, "1")
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"


def test_a_run_is_the_one_of_npg_train_and_its_score_what_that_prints(npg_, capsys):
    for sample in ([], ["--sample"]):
        options = ["--steps", 400, "--set", "episodes=1", *sample]
        comparison = compared(envs="CartPole-v1", steps=400, deterministic=not sample, out=f"runs{len(sample)}")
        for result in comparison.results:
            out = f"train{len(sample)}{result.seed}"
            cli.main(
                ["train", "reinforce", "CartPole-v1", "--seed", f"{result.seed}", "--out", out, *map(str, options)]
            )
            assert f"mean return {result.score:.2f} (std {result.std:.2f}, 100 episodes)" in capsys.readouterr().out
            assert contents(Path(out)) == contents(result.path)


def test_a_comparison_in_the_same_directory_trains_only_what_is_new():
    first = compared(seeds=2, out="runs")
    executor = Here()
    assert str(compared(seeds=2, executor=executor, out="runs")) == str(first)
    assert executor.done == []
    more = compared(["reinforce", "a2c"], seeds=range(3), executor=executor, out="runs")
    assert [(task.method, task.seed) for task in executor.done] == [("reinforce", 2), *(("a2c", k) for k in range(3))]
    assert more.results[:2] == first.results


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(monkeypatch):
    compared(seeds=1, out="whole")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda run, arrays, save=Run.save: halt(run, arrays, save))
        failed = compared(seeds=1, out="stopped").failed
    assert [result.error for result in failed] == ["RuntimeError: halt"]
    resumed = []
    monkeypatch.setattr(Run, "load", lambda run, load=Run.load: resumed.append(load(run)) or resumed[-1])
    assert compared(seeds=1, out="stopped").failed == []
    assert 0 < int(resumed[-1]["count.steps"]) < 300
    assert learned("stopped") == learned("whole")


def test_a_run_that_was_killed_before_it_had_its_config_begins():
    directory = Path("runs/reinforce/npg_ShortCorridor-v0/seed0")
    directory.mkdir(parents=True)
    for name in ("lock", "config.json.tmp"):
        (directory / name).write_text("{")
    assert compared(seeds=1, out="runs").failed == []


def halt(run, arrays, save):
    save(run, arrays)
    if arrays["count.steps"] > 100:
        raise RuntimeError("halt")


def without_the_clock_of(out: str) -> list[dict[str, str]]:
    clocks = {"seconds", "seconds_to", "path"}
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows(out)]


KILLED = ["reinforce,a2c", CORRIDOR, "CartPole-v1", "--seeds", 2, "--steps", 30_000, "--sample", "--workers", 2]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("kills", [pytest.param(1, id="once"), pytest.param(10, id="ten times")])
def test_killed_at_random_moments_and_started_again_it_gives_the_same_table(kills):
    begun = time.monotonic()
    whole, _ = start(*KILLED, "--out", "whole").communicate()
    seconds, rng, killed = time.monotonic() - begun, random.Random(kills), 0
    for _ in range(kills):
        process = start(*KILLED, "--out", "killed")
        time.sleep(rng.uniform(0, 0.5) * seconds)
        killed += process.poll() is None
        process.kill()  # its workers find out by themselves
        process.communicate()
    assert killed > 0
    again = start(*KILLED, "--out", "killed")
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert without_clock(out).replace("killed", "whole") == without_clock(whole)
    assert learned("killed") == learned("whole")
    assert without_the_clock_of("killed") == without_the_clock_of("whole")


def members(group: int) -> list[int]:
    """The processes of a group that live."""
    shown = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True).stdout.splitlines()[1:]
    return [int(pid) for pid, of, state in map(str.split, shown) if int(of) == group and not state.startswith("Z")]


LONG = ["reinforce", "CartPole-v1", "--steps", 10**7, "--seeds", 4, "--workers", 2, "--out", "runs"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "training"),
    [
        pytest.param(signal.SIGINT, 0, id="Ctrl-C early"),
        pytest.param(signal.SIGINT, 2, id="Ctrl-C late", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 2, id="killed"),
    ],
)
def test_stopped_it_leaves_no_process_behind_and_after_ctrl_c_it_says_how_to_go_on(number, training):
    process = start(*LONG)
    while process.poll() is None and not Path("runs").exists():
        time.sleep(0.01)
    time.sleep(0.3)  # at least until the workers have been started
    while process.poll() is None and len(list(Path("runs").glob("**/metrics.csv"))) < training:
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to all of them
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert process.returncode == 130
        said = [line for line in err.splitlines() if line and not line.startswith("run ")]
        assert said == ["npg: interrupted; 0 of 4 runs are done in runs; start the comparison again to go on"]
    begun = time.monotonic()
    while members(process.pid) and time.monotonic() - begun < 10:
        time.sleep(0.05)
    assert members(process.pid) == []
    for path in Path("runs").glob("**/config.json"):
        Run(path.parent).load()


@pytest.mark.process
def test_ctrl_c_is_for_the_process_that_was_started_not_for_its_workers():
    process = start(*LONG)
    while process.poll() is None and len(list(Path("runs").glob("**/metrics.csv"))) < 2:
        time.sleep(0.01)
    workers = [pid for pid in members(process.pid) if pid != process.pid]
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert {*members(process.pid)} == {process.pid, *workers}
    process.kill()
    assert "KeyboardInterrupt" not in process.communicate()[1]


def test_means_intervals_and_paired_differences_are_those_of_t_tests():
    seeds = [5, 3, 8, 0]
    comparison = compared(["reinforce", "a2c"], seeds=seeds, out="runs")
    scores = {s.name: [r.score for r in comparison.results if r.name == s.name] for s in comparison.summaries}
    assert [r.seed for r in comparison.results] == 2 * seeds
    for s in comparison.summaries:
        x = np.array(scores[s.name])
        low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
        np.testing.assert_allclose((s.mean - s.half, s.mean + s.half), (low, high))
        assert (s.median, s.worst, s.worst_seed) == (np.median(x), x.min(), seeds[x.argmin()])
        assert (s.runs, s.finished) == (4, 4)
    first, second = comparison.summaries
    assert np.isnan(first.difference)
    low, high = stats.ttest_rel(scores["a2c"], scores["reinforce"]).confidence_interval(0.95)
    ends = (second.difference - second.difference_half, second.difference + second.difference_half)
    np.testing.assert_allclose(ends, (low, high))
    reference, line = str(comparison).splitlines()[2:]
    for words in ("a2c", "4/4", f"{second.mean:.2f} ± {second.half:.2f}", f"{second.worst:.2f} (seed"):
        assert words in line
    assert f"{second.difference:+.2f} ± {second.difference_half:.2f}" in line
    assert "  –  " in reference


def test_results_csv_has_a_row_for_each_run_in_their_order():
    comparison = compared(["reinforce", "a2c"], [CORRIDOR, "CartPole-v1"], out="runs")
    assert len(comparison.results) == 8
    for row, result in zip(rows("runs"), comparison.results, strict=True):
        assert (row["method"], row["env"], int(row["seed"])) == (result.method, result.env, result.seed)
        for name in ("score", "std", "steps", "seconds", "steps_to"):
            assert float(row[name]) == getattr(result, name)
        assert (row["solved"], Path(row["path"]), row["error"]) == (str(result.solved), result.path, "")
        assert Run(result.path).rows("evaluations")[-1]["mean"] == result.score


def with_rows(path: Path, returns: list[float], evaluations: list[float], window: int = 100) -> None:
    """Rewrite what a run has recorded."""
    run = Run(path)
    kept = {"metrics": run.rows()[0], "evaluations": run.rows("evaluations")[0]}
    for name, column, values in (("metrics", "mean_return", returns), ("evaluations", "mean", evaluations)):
        (path / f"{name}.csv").unlink()
        for k, value in enumerate(values):
            row = kept[name] | {"steps": 100.0 * (k + 1), column: value}
            run.append(row | ({"window": window, "seconds": k + 1.5} if name == "metrics" else {}), name)


def test_a_threshold_is_reached_at_the_first_record_of_enough_episodes():
    compared(seeds=3, out="runs")
    paths = [Path("runs/reinforce/npg_ShortCorridor-v0") / f"seed{k}" for k in range(3)]
    with_rows(paths[0], [-90, -50, -60], [-49])
    with_rows(paths[1], [-90, -80, -20], [-51])
    with_rows(paths[2], [-10, -10, -10], [-50], window=19)
    comparison = compared(seeds=3, out="runs")
    assert [(r.steps_to, r.seconds_to, r.solved) for r in comparison.results] == [
        (200, 2.5, True),
        (300, 3.5, False),
        (np.inf, np.inf, True),
    ]
    (s,) = comparison.summaries
    assert (s.solved, s.steps_to, s.seconds_to) == (2 / 3, 300, 3.5)
    assert re.search(r"2/3 +300 +3\.5$", str(comparison))
    assert re.search(r"1/3 +– +–$", str(compared(seeds=3, out="runs", threshold=-49.5)))


def test_of_a_method_that_learns_off_policy_the_evaluations_reach_the_threshold():
    how = {"steps": 300, "deterministic": False, "threshold": -50, "executor": Here(), "out": "runs"}
    comparison = npg.compare("off_pac", CORRIDOR, 1, **how)
    (result,) = comparison.results
    assert [row["steps"] for row in Run(result.path).rows("evaluations")] == [30.0 * k for k in range(1, 11)]
    with_rows(result.path, [-10] * 10, [-90, -20, -60])
    (result,) = npg.compare("off_pac", CORRIDOR, 1, **how).results
    assert (result.steps_to, result.seconds_to, result.solved) == (200, 2.5, False)


def test_an_environment_has_its_own_threshold_and_one_without_has_none():
    comparison = compared(envs=["CartPole-v1", CORRIDOR], threshold=None, out="runs")
    assert comparison.thresholds == {"CartPole-v1": 475.0}
    first, second = str(comparison).split("\n\n")
    assert first.splitlines()[0] == "CartPole-v1, threshold 475"
    assert first.splitlines()[2].split()[-3:] == ["0/2", "–", "–"]
    assert second.splitlines()[0] == CORRIDOR
    assert "solved" not in second
    assert [result.solved for result in comparison.results] == [False, False, None, None]


def broken(step, reward):
    if step == 60:
        raise RuntimeError("the wheel came off")
    return reward


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())
    return gymnasium.register


def test_where_no_run_succeeds_there_is_a_picture_and_a_table_all_the_same(register, drawn):
    register("Broken-v0", lambda: Walk(broken))
    for sweep in ({}, {"alpha": [0.1, 1]}):
        comparison = compared(envs="Broken-v0", seeds=1, num_envs=0, sweep=sweep, out=f"runs{len(sweep)}")
        assert [result.error for result in comparison.results] == ["RuntimeError: the wheel came off"] * (
            1 + len(sweep)
        )
        assert str(comparison).count("0/1") == 2 * (1 + len(sweep))
    assert [len(picture.axes) for picture in drawn] == [1, 1]


def test_a_single_seed_has_no_interval(drawn):
    how = {"sweep": {"alpha": [0.1, 1]}, "env_settings": {"max_episode_steps": 20}, "out": "runs"}
    comparison = compared(["reinforce", "a2c"], seeds=1, **how)
    assert "±" not in str(comparison)
    assert all(np.isnan(s.half) and np.isfinite(s.mean) for s in comparison.summaries)
    assert len(drawn[0].axes[0].containers) == 2


def test_a_failed_run_is_reported_and_stops_no_other(register, npg_, monkeypatch):
    register("Broken-v0", lambda: Walk(broken))
    register("Walk-v0", Walk)
    comparison = compared(envs=["Broken-v0", "Walk-v0"], num_envs=0, out="runs", threshold=0.5)
    assert [result.error for result in comparison.results] == 2 * ["RuntimeError: the wheel came off"] + 2 * [None]
    assert comparison.failed == comparison.results[:2]
    failed, fine = comparison.summaries
    assert (failed.runs, failed.finished, failed.solved, failed.worst_seed) == (2, 0, 0.0, None)
    assert np.isnan(failed.mean)
    assert (fine.runs, fine.finished) == (2, 2)
    assert re.search(r"^reinforce +0/2 +nan", str(comparison), flags=re.M)
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: comparison)
    status, out, err = npg_("reinforce", "Broken-v0")
    assert (status, out) == (1, f"comparison runs\n\n{comparison}\n")
    one = "npg: failed: runs/reinforce/Broken-v0/seed{}: RuntimeError: the wheel came off\n"
    assert err == one.format(0) + one.format(1)


def test_a_worker_that_dies_is_reported_and_the_comparison_can_go_on(monkeypatch):
    class Dying(Here):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            future.set_exception(BrokenExecutor("a worker died"))
            return future

    comparison = compared(executor=Dying(), out="runs")
    assert {r.error for r in comparison.results} == {
        "BrokenExecutor: a worker died; start the comparison again to go on"
    }
    assert compared(out="runs").failed == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": 400}, "steps must be 300 to go on with runs/reinforce/npg_ShortCorridor-v0/seed0, as it began, got"),
        ({"alpha": 0.5}, "alpha must be 0.001953125 to resume runs/reinforce/npg_ShortCorridor-v0/seed0, as the run"),
        ({"deterministic": True}, "deterministic must be False to go on with"),
        ({"eval_every": 100}, "eval_every must be 300 to go on with"),
        ({"num_envs": 2}, "num_envs must be 0 to resume"),
        ({"env_settings": {"max_episode_steps": 50}}, "kwargs must be {'max_episode_steps': 1000} to resume"),
    ],
    ids=str,
)
def test_a_directory_of_other_settings_is_refused(changed, says):
    compared(seeds=1, out="runs")
    before, executor = learned("runs"), Here()
    with pytest.raises(ValueError, match=re.escape(says)):
        compared(seeds=2, out=Path("runs"), executor=executor, **changed)
    assert executor.done == []
    assert learned("runs") == before


def test_without_a_name_a_comparison_has_the_directory_of_its_arguments():
    first = compared(seeds=1, steps=100)
    assert first.out.parent == Path("runs")
    assert first.out.name.startswith("compare-reinforce-npg_ShortCorridor-v0-")
    assert compared(seeds=2, steps=100, threshold=0).out == first.out
    assert compared(seeds=1, steps=101).out != first.out
    assert compared(seeds=1, steps=100, gamma=0.5).out != first.out


BAD = {
    "unknown method": ({"methods": ["reinforce", "dreaming"]}, "algorithm must be one of .*, got 'dreaming'"),
    "no method": ({"methods": []}, "methods must be one or several names, each of them once, got"),
    "a method twice": ({"methods": ["a2c", "a2c"]}, "methods must be .* each of them once"),
    "unknown environment": ({"envs": "CartPool-v1"}, "environment 'CartPool-v1' is not registered"),
    "no seeds": ({"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
    "a bad seed": ({"seeds": [0, -1]}, r"seeds must be integers of at least 0, each of them once, got \[0, -1\]"),
    "a seed twice": ({"seeds": [3, 3]}, "seeds must be .* each of them once"),
    "a bad setting": ({"alpha": -1}, "reinforce on npg/ShortCorridor-v0: alpha must be .*, got -1"),
    "a setting of none": (
        {"delta": 1},
        "no method has the setting 'delta'; among them they have .*gamma",
    ),
    "a swept setting of none": ({"sweep": {"delta": [1]}}, "no method has the setting 'delta'"),
    "an empty sweep": ({"sweep": {"alpha": []}}, r"the sweep of alpha must be one or several values, got \[\]"),
    "a value twice": ({"sweep": {"alpha": [1.0, 1.0]}}, "values of a sweep must have names that differ"),
    "fixed and swept": ({"alpha": 1, "sweep": {"alpha": [1]}}, "must have one value or be swept, got both for alpha"),
    "bad steps": ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
    "bad num_envs": ({"num_envs": -1}, "num_envs must be an integer of at least 0 and at most 100,000, got -1"),
    "bad eval_every": ({"eval_every": 0}, "eval_every must be an integer of at least 1, got 0"),
    "bad workers": ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
    "workers of an executor": ({"workers": 2}, "workers must be left out where an executor is given, got 2"),
    "bad threshold": ({"threshold": np.nan}, "threshold must be a number, got nan"),
    "bad env_settings": ({"env_settings": {"num_envs": 3}}, "env_settings must be of one environment, got num_envs"),
    "an environment twice": ({"envs": [CORRIDOR, CORRIDOR]}, "envs must be .* each of them once"),
}


@pytest.mark.parametrize(("how", "says"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named_and_nothing_is_trained(how, says):
    executor = Here()
    with pytest.raises(ValueError, match=says):
        compared(**{"methods": "reinforce", "executor": executor} | how)
    assert executor.done == []
    assert not Path("runs").exists()


def test_what_is_no_executor_is_refused():
    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor, got 3"):
        compared(executor=3)


def test_all_pairs_that_do_not_fit_are_named():
    pattern = "copdac_q on CartPole-v1: .*; copdac_q on npg/ShortCorridor-v0: "
    with pytest.raises((ValueError, TypeError), match=pattern) as error:
        npg.compare(["copdac_q", "a2c"], ["CartPole-v1", "Pendulum-v1", CORRIDOR], 1, executor=Here(), steps=10)
    assert "a2c on" not in str(error.value)
    assert "Pendulum" not in str(error.value)


def test_no_setting_of_a_method_has_the_name_of_an_argument():
    taken = {*signature(npg.compare).parameters} - {"settings"}
    for cls in ALGORITHMS.values():
        assert not taken & {*signature(cls).parameters}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    for name, draw in DRAWING.items():
        monkeypatch.setattr(plotting, name, draw)
    figures, savefig = [], figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kw: (figures.append(self), savefig(self, *args, **kw)))
    return figures


def test_the_figure_has_a_panel_for_each_environment_a_line_for_each_run_and_says_which(drawn):
    compared(["reinforce", "a2c"], [CORRIDOR, "CartPole-v1"], seeds=3, threshold=None, out="runs")
    (picture,) = drawn
    assert Path("runs/compare.png").read_bytes().startswith(b"\x89PNG")
    corridor, cartpole = picture.axes
    assert (corridor.get_title(), cartpole.get_title()) == (CORRIDOR, "CartPole-v1")
    for axes, env in ((corridor, CORRIDOR), (cartpole, "CartPole-v1")):
        thin = [line for line in axes.lines if line.get_linewidth() < 1]
        drawn_runs = [run for m in ("reinforce", "a2c") for run in recorded("runs", m, env)]
        for line, run in zip(thin, drawn_runs, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), run)
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        for method in ("reinforce", "a2c"):
            assert f"{method}, {env}, 3 runs" in texts
        assert ("threshold 475" in texts) == (env == "CartPole-v1")
        assert axes.get_xlabel() == "environment steps"


def recorded(out, method, env):
    for seed in range(3):
        table = Run(Path(out) / method / env.replace("/", "_") / f"seed{seed}").rows()
        yield np.array([(row["steps"], row["mean_return"]) for row in table if np.isfinite(row["mean_return"])])


def test_a_sweep_trains_every_combination_of_what_a_method_has_and_draws_it_against_the_values(drawn):
    sweep = {"alpha": [0.001, 0.1], "baseline": ["none", "linear"]}
    how = {"sweep": sweep, "env_settings": {"max_episode_steps": 20}, "out": "runs"}
    comparison = compared(["reinforce", "a2c"], **how)
    names = [f"reinforce alpha={a} baseline={b}" for a in (0.001, 0.1) for b in ("none", "linear")]
    names += ["a2c alpha=0.001", "a2c alpha=0.1"]
    assert [s.name for s in comparison.summaries] == names
    assert len(comparison.results) == 12
    for result in comparison.results:
        agent = Run(result.path).config["agent"]
        assert {name: agent[name] for name in result.values} == result.values
    assert {(row["alpha"], row["baseline"]) for row in rows("runs") if row["method"] == "a2c"} == {
        ("0.001", ""),
        ("0.1", ""),
    }
    (picture,) = drawn
    by_alpha, by_baseline = picture.axes
    assert [axes.get_xlabel() for axes in picture.axes] == ["alpha", "baseline"]
    assert [axes.get_xscale() for axes in picture.axes] == ["log", "linear"]
    labels = [text.get_text() for text in by_alpha.get_legend().get_texts()]
    assert labels == ["reinforce baseline=none", "reinforce baseline=linear", "a2c"]
    line, _, (bars,) = by_alpha.containers[-1]
    s = comparison.summaries[-2:]
    np.testing.assert_array_equal(line.get_xydata(), [(0.001, s[0].mean), (0.1, s[1].mean)])
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [(each.mean - each.half, each.mean + each.half) for each in s])
    assert [text.get_text() for text in by_baseline.get_xticklabels()] == ["none", "linear"]


def test_without_matplotlib_the_figure_is_left_out_and_said_to_be(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(plotting, "comparison", DRAWING["comparison"])
    with pytest.warns(UserWarning, match=r"no compare.png: plotting needs matplotlib: pip install 'npg\[plot\]'"):
        comparison = compared(out="runs")
    assert len(rows("runs")) == len(comparison.results) == 2
    assert not Path("runs/compare.png").exists()


@pytest.mark.process
def test_progress_is_over_all_runs_on_stderr_and_the_options_reach_them(npg_):
    options = ["--steps", 200, "--num-envs", 2, "--seeds", "4-5", "--workers", 1, "--out", "runs", "--eval-every", 100]
    sets = [
        "--set",
        "gamma=0.5",
        "--env-set",
        "max_episode_steps=30",
        "--sweep",
        "alpha=0.1,1e-2",
        "--set",
        "n_steps=5",
    ]
    status, out, err = npg_("reinforce,a2c", CORRIDOR, *options, *sets)
    assert status == 0, err
    lines = err.splitlines()
    assert all(re.fullmatch(r"run \d of 8, 0 failed(, about \d+ s left)?, \d+\.\d s", line) for line in lines), err
    assert lines[-1].startswith("run 8 of 8, 0 failed, ")
    for alpha in ("0.1", "0.01"):
        for seed in (4, 5):
            config = Run(f"runs/a2c/npg_ShortCorridor-v0/alpha={alpha}/seed{seed}").config
            assert (config["seed"], config["steps"], config["eval_every"], config["deterministic"]) == (
                seed,
                200,
                100,
                True,
            )
            assert (config["env"]["num_envs"], config["env"]["kwargs"]["max_episode_steps"]) == (2, 30)
            assert [config["agent"][name] for name in ("gamma", "n_steps", "alpha")] == [0.5, 5, float(alpha)]
    _, again, err = npg_("reinforce,a2c", CORRIDOR, *options, *sets)
    assert again == out
    assert err.startswith("run 8 of 8, 0 failed, 0.")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["a2c", CORRIDOR, "--seeds", "ten"], "--seeds must be a number, or FIRST-LAST, got 'ten'"),
        (["a2c", CORRIDOR, "--seeds", "5-3"], "seeds must be integers of at least 0, each of them once, got []"),
        (["a2c", CORRIDOR, "--sweep", "alpha"], "--sweep must be NAME=VALUE, got 'alpha'"),
        (["dreaming", CORRIDOR], "algorithm must be one of"),
        (["a2c", CORRIDOR, "--out", "file"], "file"),
    ],
    ids=str,
)
def test_a_bad_argument_of_the_command_is_one_line(argv, says, npg_):
    Path("file").touch()
    status, out, err = npg_(*argv)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("npg: error: ")
    assert says in err


def test_without_dask_the_command_says_what_to_install(npg_, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    status, _, err = npg_("a2c", CORRIDOR, "--dask", "tcp://127.0.0.1:1")
    assert (status, err) == (1, "npg: error: --dask needs dask: pip install 'npg[dask]'\n")


@pytest.mark.process
def test_a_process_that_has_not_loaded_numpy_computes_with_one_thread(monkeypatch):
    for name in THREADS:
        monkeypatch.delenv(name)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        comparison = compared(seeds=1, executor=pool, out="runs")
    machine = Run(comparison.results[0].path).config["machine"]
    assert {machine[name] for name in THREADS} == {"1"}


SCRIPT = f"""
import numpy
import npg

if __name__ == "__main__":
    print(npg.compare("a2c", {CORRIDOR!r}, 1, workers=1, steps=50, deterministic=False, out="runs"))
"""


@pytest.mark.process
def test_from_a_script_that_imports_numpy_workers_have_one_thread_too():
    Path("script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{CORRIDOR}\nmethod  runs ")
    machine = Run(f"runs/a2c/{CORRIDOR.replace('/', '_')}/seed0").config["machine"]
    assert {machine[name] for name in THREADS} == {"1"}


def test_carrying_out_does_not_change_the_threads_of_a_process_that_has_loaded_numpy(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    compared(seeds=1, out="runs")
    assert os.environ["OMP_NUM_THREADS"] == "3"


MODULE = """
import time
import gymnasium


class Waiting(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, seconds):
        self.seconds = seconds

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        time.sleep(self.seconds)
        return 1, float(action), True, False, {}


gymnasium.register("Waiting-v0", Waiting, max_episode_steps=10)
"""


@pytest.mark.process
def test_workers_find_an_environment_in_a_module_of_the_working_directory(npg_):
    Path("waiting.py").write_text(MODULE)
    options = ["--seeds", 1, "--steps", 10, "--env-set", "seconds=0", "--workers", 1, "--out", "runs"]
    status, out, err = npg_("a2c", "waiting:Waiting-v0", *options)
    assert (status, "a2c      1/1" in out) == (0, True), err


@pytest.mark.slow
@pytest.mark.process
def test_two_workers_are_nearly_twice_as_fast_as_one(npg_):
    # Runs that wait instead of computing: the ratio is then that of the work, on however busy a machine.
    Path("waiting.py").write_text(MODULE)
    seconds = {}
    for workers in (1, 2):
        begun = time.perf_counter()
        options = ["--seeds", 20, "--steps", 300, "--env-set", "seconds=0.006", "--workers", workers]
        assert npg_("a2c", "waiting:Waiting-v0", *options, "--out", f"by{workers}")[0] == 0
        seconds[workers] = time.perf_counter() - begun
    assert seconds[1] / seconds[2] >= 1.8


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
def test_on_a_dask_cluster_the_table_is_the_same(npg_):
    distributed = pytest.importorskip("dask.distributed")
    here = compared(["reinforce", "a2c"], out="here")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        options = ["--steps", 300, "--set", "episodes=1", "--sample", "--threshold", -50, "--seeds", 2, "--out", "dask"]
        status, out, err = npg_("reinforce,a2c", CORRIDOR, *options, "--dask", cluster.scheduler_address)
    assert status == 0, err
    assert without_clock(out.split("\n\n", 1)[1].rstrip("\n")) == without_clock(str(here))
    assert learned("dask") == learned("here")


MPI = f"""
from mpi4py.futures import MPIPoolExecutor
import npg

if __name__ == "__main__":
    with MPIPoolExecutor(2) as executor:
        print(npg.compare(["reinforce", "a2c"], {CORRIDOR!r}, 2, executor=executor, out="mpi", **{QUICK}))
"""


@pytest.mark.slow
@pytest.mark.process
def test_with_mpi_the_table_is_the_same():
    pytest.importorskip("mpi4py")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("mpiexec", path=beside) is None:
        pytest.skip("mpiexec must be on PATH, or MPIPoolExecutor waits for ever")
    here = compared(["reinforce", "a2c"], out="here")
    Path("script.py").write_text(MPI)
    environment = os.environ | {"PATH": beside}
    run = [sys.executable, "script.py"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert without_clock(done.stdout.rstrip("\n")) == without_clock(str(here))
    assert learned("mpi") == learned("here")
