"""The loop, evaluation and run directories, on REINFORCE and on a toy agent with traces that the loop cannot know."""

import builtins
import errno
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise, product

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from toy import (
    AGENTS,
    BOTH,
    KINDS,
    LONG,
    Measured,
    Ring,
    Toy,
    Walk,
    contents,
    measured,
    raises_at,
    reinforce,
    signals_at,
    toy,
    walks,
    without_seconds,
)

import npg
from npg.envs import DEFAULT_TIME_LIMIT, normalized
from npg.envs.spaces import normalizers
from npg.envs.tabular import TabularVectorEnv
from npg.lab import training
from npg.lab.runs import Run
from npg.optimizers import Adam
from npg.problems import two_state

STEPS, RECORD_EVERY, SEED = 150, 20, 3


def cases(kinds) -> dict:
    """Names of (agent for an environment, environment with a fault or without)."""
    made = {f"{agent}, {kind}": (AGENTS[agent], make_env) for kind, make_env in kinds.items() for agent in AGENTS}
    alike = [f"toy, Steps(1), {kind}" for kind in kinds if kind not in ("scalar", "NEXT_STEP", "scalar, normalised")]
    return {name: case for name, case in made.items() if name not in alike}


def every(some: dict):
    return pytest.mark.parametrize("case", some.values(), ids=some)


CASES = cases(KINDS)
every_case, every_long_case = every(CASES), every(cases(LONG))
every_normalized_case = every({name: case for name, case in CASES.items() if "normalised" in name})
every_plain_case = every({name: case for name, case in CASES.items() if "normalised" not in name})
ONLINE, EPISODIC = (toy, Walk), (reinforce, Walk)


def run(
    case,
    out,
    *fault,
    env=None,
    steps=STEPS,
    record_every=RECORD_EVERY,
    checkpoint_every=RECORD_EVERY,
    seed=SEED,
    **kwargs,
) -> npg.History:
    """Train a new agent of ``case`` on a new environment with ``fault``, or on ``env``."""
    make_agent, make_env = case
    env = make_env(*fault) if env is None else env
    return npg.train(
        make_agent(env),
        env,
        steps=steps,
        record_every=record_every,
        checkpoint_every=checkpoint_every,
        seed=seed,
        out=out,
        **kwargs,
    )


def assert_same_state(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


def assert_seed_decides(once) -> None:
    """``once(name, seed)`` -> contents of a run."""
    checkpoint, rows = once("a", 0)
    assert (checkpoint, rows) == once("b", 0)
    other_checkpoint, other_rows = once("c", 1)
    assert checkpoint != other_checkpoint
    assert rows != other_rows


@every_case
def test_same_seed_gives_the_same_bytes_and_metrics_and_another_seed_does_not(case, tmp_path, fast_disk):
    def once(name, seed):
        run(case, tmp_path / name, seed=seed)
        return contents(tmp_path / name)

    assert_seed_decides(once)


@pytest.mark.parametrize(
    "make_env",
    [lambda: npg.make_vec("CartPole-v1", 4), lambda: npg.make_env("FrozenLake-v1")],
    ids=["CartPole-v1, vector", "FrozenLake-v1, scalar"],
)
def test_reinforce_on_gymnasium_environments_depends_on_the_seed_alone(make_env, tmp_path):
    def once(name, seed):
        env = make_env()
        npg.train(npg.make_agent("reinforce", env), env, steps=600, seed=seed, out=tmp_path / name)
        return contents(tmp_path / name)

    assert_seed_decides(once)


@every_case
def test_writing_files_and_reporting_do_not_change_what_is_learned(case, tmp_path, fast_disk):
    make_agent, make_env = case
    env, rows = make_env(), []
    agent = make_agent(env)
    history = npg.train(
        agent,
        env,
        steps=STEPS,
        record_every=RECORD_EVERY,
        checkpoint_every=RECORD_EVERY,
        seed=SEED,
        callback=rows.append,
    )
    run(case, tmp_path / "run")
    assert rows == history.rows
    assert without_seconds(rows) == contents(tmp_path / "run")[1]
    arrays = Run(tmp_path / "run").load()
    for name, array in agent.state().items():
        np.testing.assert_array_equal(arrays[f"agent.{name}"], array, strict=True)


STOPS = {
    "an error": lambda k: raises_at(k, RuntimeError("stop")),
    "Ctrl-C": lambda k: signals_at(k, signal.SIGINT),
    "SIGTERM": lambda k: signals_at(k, signal.SIGTERM),
}
"""Faults that stop a run at step k, the latter ones after the update in hand."""


@every_case
def test_a_run_that_stops_at_any_step_and_is_resumed_ends_as_if_it_had_not_stopped(
    case, tmp_path, fast_disk, monkeypatch
):
    steps = []
    run(case, tmp_path / "whole", lambda step, reward: (steps.append(step), reward)[1])
    whole = contents(tmp_path / "whole")
    hows = product((training.SAVE_SECONDS, 0), STOPS)  # checkpoints at records, or after every update
    for k, (save_seconds, name) in zip(np.linspace(1, len(steps), 6, dtype=int), hows, strict=True):
        out = tmp_path / f"stopped-{k}"
        with monkeypatch.context() as patch:
            patch.setattr(training, "SAVE_SECONDS", save_seconds)
            with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
                run(case, out, STOPS[name](k))
        history = run(case, out, resume=True)
        assert contents(out) == whole, f"stopped at step {k} by {name}"
        assert without_seconds(history.rows) == whole[1]


@every_long_case
def test_no_episode_is_cut_for_a_checkpoint_and_where_checkpoints_are_changes_nothing(case, tmp_path, fast_disk):
    far, near = ({"steps": 330, "checkpoint_every": every} for every in (10_000, RECORD_EVERY))
    whole = run(case, tmp_path / "far", **far)
    assert set(whole["mean_length"][whole["window"] > 0]) == {Ring.limit}
    assert whole["window"][-1] == whole["episodes"][-1] >= 330 // (3 * Ring.limit)
    for k in (45, 101):  # in the middle of an episode, and right after one
        out = tmp_path / f"stopped-{k}"
        with pytest.raises(RuntimeError):
            run(case, out, raises_at(k, RuntimeError()), **near)
        run(case, out, resume=True, **near)
        assert contents(out)[1] == contents(tmp_path / "far")[1], f"stopped at step {k}"
        ends = [Run(path).load() for path in (out, tmp_path / "far")]
        assert_same_state(*({name: a for name, a in arrays.items() if name != "count.checkpoint"} for arrays in ends))


def test_a_run_that_stops_again_and_again_ends_as_if_it_had_not_stopped(tmp_path, fast_disk):
    run(ONLINE, tmp_path / "whole", steps=400)
    out, stops = tmp_path / "stopped", 0
    while True:
        try:  # each time at least one record further, after the episode in flight and the one before it
            fault = raises_at(RECORD_EVERY + 2 * Walk.limit, RuntimeError())
            run(ONLINE, out, fault, steps=400, resume=out.exists())
        except RuntimeError:
            stops += 1
            assert stops < 400 / RECORD_EVERY
        else:
            break
    assert stops > 5
    assert contents(out) == contents(tmp_path / "whole")


@every_case
def test_a_prolonged_run_is_the_longer_run(case, tmp_path, fast_disk):
    run(case, tmp_path / "long", steps=8 * RECORD_EVERY)
    run(case, tmp_path / "prolonged", steps=4 * RECORD_EVERY)
    run(case, tmp_path / "prolonged", steps=8 * RECORD_EVERY, resume=True)
    assert contents(tmp_path / "prolonged") == contents(tmp_path / "long")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    history = run(EPISODIC, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert run(EPISODIC, tmp_path / "run", resume=True).rows == history.rows
    assert contents(tmp_path / "run") == before


def test_seconds_go_on_when_a_run_is_resumed(tmp_path):
    run(ONLINE, tmp_path / "run", steps=STEPS // 2)
    seconds = run(ONLINE, tmp_path / "run", resume=True)["seconds"]
    assert seconds[0] > 0
    assert (np.diff(seconds) > 0).all()


def test_an_interrupt_carries_the_history_and_says_where_the_checkpoint_is(tmp_path):
    whole = run(ONLINE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt) as caught:
        run(ONLINE, tmp_path / "run", raises_at(70, KeyboardInterrupt()))
    assert without_seconds(caught.value.history.rows) == without_seconds(whole.rows[:3])
    (note,) = caught.value.__notes__
    assert "step 60" in note
    assert str(tmp_path / "run") in note
    assert Run(tmp_path / "run").load()["count.steps"] == 60


def test_an_error_of_the_callback_carries_the_history_and_the_run_can_be_resumed(tmp_path):
    def callback(row):
        if row["steps"] == 60:
            raise RuntimeError("the callback's own")

    with pytest.raises(RuntimeError, match="the callback's own") as caught:
        run(ONLINE, tmp_path / "run", callback=callback)
    assert list(caught.value.history["steps"]) == [20, 40, 60]
    run(ONLINE, tmp_path / "run", resume=True)
    run(ONLINE, tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


class Full:
    """Makes the k-th use of the disk fail, counting what opens, flushes, writes and renames."""

    def __init__(self, monkeypatch, k: int) -> None:
        self.k, self.uses = k, 0
        for owner, name in ((os, "replace"), (os, "fsync")):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))
        monkeypatch.setattr("npg.lab.runs.open", self.open, raising=False)

    def use(self) -> bool:
        self.uses += 1
        return self.uses == self.k

    def failing(self, function):
        def call(*args, **kwargs):
            if self.use():
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return call

    def open(self, path, mode="r", **kwargs):
        file = self.failing(builtins.open)(path, mode, **kwargs)
        if mode != "r":
            write = file.write

            def half(data):
                if self.use():
                    write(data[: len(data) // 2])
                    file.flush()
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

            file = _With(file, half)
        return file


class _With:
    """A file with another ``write``."""

    def __init__(self, file, write) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize("case", [ONLINE, EPISODIC], ids=["online", "episodic"])
def test_a_disk_that_fills_up_at_any_moment_loses_nothing(case, tmp_path, monkeypatch):
    run(case, tmp_path / "whole", steps=60)
    whole = contents(tmp_path / "whole")
    with monkeypatch.context() as patch:
        full = Full(patch, 0)
        run(case, tmp_path / "never full", steps=60)
    resumed = 0
    for k in range(1, full.uses + 1):
        out = tmp_path / f"full-{k}"
        with monkeypatch.context() as patch:
            Full(patch, k)
            with pytest.raises(OSError, match="No space left on device") as caught:
                run(case, out, steps=60)
        assert not list(out.glob("*.tmp"))
        if (out / "checkpoint.npz").exists():
            rows = without_seconds(caught.value.history.rows)
            assert rows == whole[1][: len(rows)]
            assert len(rows) - Run(out).load()["count.records"] in (0, 1)
        begun = (out / "config.json").exists()
        run(case, out, steps=60, resume=begun)
        assert contents(out) == whole, f"at use {k} of the disk"
        resumed += begun
    assert resumed == full.uses - 6  # but for the lock, open and write, and config.json: open, write, flush, rename


def test_a_disk_that_is_full_from_the_start_carries_a_history_too(tmp_path, monkeypatch):
    Full(monkeypatch, 10)  # after the lock and config.json, at the last of the first checkpoint
    with pytest.raises(OSError, match="No space left") as caught:
        run(ONLINE, tmp_path / "run")
    assert caught.value.history.rows == []
    assert not (tmp_path / "run" / "checkpoint.npz").exists()
    assert "checkpoint" not in "".join(getattr(caught.value, "__notes__", []))


def test_every_file_is_flushed_to_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (events.append(("replaced", os.stat(a).st_ino, os.path.basename(b))), replace(a, b))
    )
    run(ONLINE, tmp_path / "run", steps=40)
    renames = [(before, event) for before, event in pairwise(events) if isinstance(event, tuple)]
    assert [name for _, (_, _, name) in renames] == ["config.json"] + ["checkpoint.npz"] * 3
    assert all(flushed == inode for flushed, (_, inode, _) in renames)
    assert events.count((tmp_path / "run" / "metrics.csv").stat().st_ino) == 2


@pytest.mark.parametrize("extra", [b"80", b"80.0,", b"80.0,80.0,10.0,", b"\r", b"{whole row}{whole row}80,8"])
def test_rows_later_than_the_checkpoint_and_leftovers_are_dropped(extra, tmp_path):
    run(ONLINE, tmp_path / "whole")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(ONLINE, out, raises_at(70, KeyboardInterrupt()))
    metrics = (out / "metrics.csv").read_bytes()
    row = metrics.splitlines(keepends=True)[-1]
    (out / "metrics.csv").write_bytes(metrics + extra.replace(b"{whole row}", row))
    for name in ("metrics.csv", "checkpoint.npz"):
        (out / f"{name}.tmp").write_bytes(b"cut short")
    run(ONLINE, out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.npz", "config.json", "lock", "metrics.csv"]


@pytest.mark.parametrize("damage", ["a row less", "no rows", "no file", "half a row less"])
def test_metrics_that_lost_rows_of_the_checkpoint_are_refused(damage, tmp_path):
    run(ONLINE, tmp_path)
    path = tmp_path / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    kept = {"a row less": lines[:-1], "no rows": lines[:1], "half a row less": [*lines[:-1], lines[-1][:10]]}
    if damage in kept:
        path.write_bytes(b"".join(kept[damage]))
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv has fewer rows"):
        run(ONLINE, tmp_path, resume=True)


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    broken = (lambda env: toy(env, broken_at=80), Walk)
    with pytest.raises(npg.DivergenceError, match=r"^w is no longer finite at step 80 \(delta .*\); lower") as caught:
        run(broken, tmp_path / "run")
    assert list(caught.value.history["steps"]) == [20, 40, 60]
    with pytest.raises(KeyboardInterrupt):
        run(ONLINE, tmp_path / "good", raises_at(61, KeyboardInterrupt()))
    assert contents(tmp_path / "run") == contents(tmp_path / "good")


def test_divergence_between_records_is_found_at_the_record_without_a_warning(tmp_path):
    with pytest.raises(npg.DivergenceError, match="step 80"):
        run((lambda env: toy(env, broken_at=65), Walk), tmp_path)
    arrays = Run(tmp_path).load()
    assert arrays["count.steps"] == 60
    assert all(np.isfinite(a).all() for name, a in arrays.items() if name != "rng")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_plain_case
def test_a_reward_that_is_not_finite_is_refused(case, value, tmp_path):
    with pytest.raises(ValueError, match=f"^the environment returned a reward that is not finite: .*{value}") as caught:
        run(case, tmp_path / "run", lambda step, reward: value if step == 30 else reward)
    assert "\n" not in str(caught.value)
    assert len(caught.value.history) <= 30 * 3 // RECORD_EVERY
    Run(tmp_path / "run").load()


def test_history_has_a_column_for_each_statistic():
    history = run(EPISODIC, None)
    names = ["steps", "updates", "episodes", "mean_return", "mean_length", "window", "seconds"]
    names += ["advantage_std", "gradient_norm"]
    assert [list(row) for row in history.rows] == [names] * len(history)
    for name in names:
        np.testing.assert_array_equal(history[name], [row[name] for row in history.rows])
    with pytest.raises(KeyError):
        history["no such column"]


@given(steps=st.integers(1, 60), record_every=st.integers(1, 70), n=st.integers(1, 9))
@examples(30)
def test_each_record_is_the_first_update_at_or_after_a_multiple_of_record_every_or_the_end(steps, record_every, n):
    history = run((lambda env: toy(env, n=n), Walk), None, steps=steps, record_every=record_every)
    marks = [*range(record_every, steps, record_every), steps]
    assert list(history["steps"]) == sorted({-(-mark // n) * n for mark in marks})
    np.testing.assert_array_equal(history["updates"] * n, history["steps"])


@pytest.mark.parametrize("record_every", [1, 7, 50])
def test_a_record_of_an_episodic_method_is_at_the_first_end_at_or_after_a_multiple(record_every):
    env = Walk()
    history = run(
        (lambda env: npg.make_agent("reinforce", env, episodes=1), Walk), None, env=env, record_every=record_every
    )
    ends = [step for step, _, _ in env.finished]
    marks = [*range(record_every, STEPS, record_every), STEPS]
    assert list(history["steps"]) == sorted({min(end for end in ends if end >= mark) for mark in marks})


@pytest.mark.parametrize("steps", [1, 49, 50, 149, 500])
def test_there_are_about_fifty_records_by_default(steps):
    history = run(ONLINE, None, steps=steps, record_every=None)
    every = max(steps // 50, 1)
    assert list(history["steps"]) == sorted({*range(every, steps + 1, every), steps})


@pytest.mark.parametrize("case", [ONLINE, EPISODIC], ids=["online", "episodic"])
def test_a_record_averages_the_last_hundred_finished_episodes(case):
    env = Walk()
    history = run(case, None, env=env, steps=900, record_every=3)
    for row in history.rows:
        finished = [(total, length) for step, total, length in env.finished if step <= row["steps"]]
        assert (row["episodes"], row["window"]) == (len(finished), min(len(finished), 100))
        expected = np.mean(finished[-100:], axis=0) if finished else [np.nan, np.nan]
        np.testing.assert_allclose([row["mean_return"], row["mean_length"]], expected, rtol=1e-12)
    assert len(env.finished) == history["episodes"][-1] > 120
    if case is ONLINE:
        assert history["window"][0] == 0
        assert 0 in np.diff(history["episodes"])  # a record in which no episode ended repeats the last


def test_the_last_hundred_episodes_of_more_columns_are_not_the_long_ones():
    """They are those of the last columns, as every column began its episode at the same time."""
    env = walks(120)
    history = run((reinforce, None), None, env=env, steps=1)
    finished = np.array([column.unwrapped.finished[0][1:] for column in env.envs])
    assert (history["episodes"], history["window"]) == (120, 100)
    np.testing.assert_allclose(history.rows[0]["mean_return"], finished[20:, 0].mean(), rtol=1e-12)
    np.testing.assert_allclose(history.rows[0]["mean_length"], finished[20:, 1].mean(), rtol=1e-12)
    assert abs(finished[20:, 1].mean() - np.sort(finished[:, 1])[20:].mean()) > 0.1


def test_steps_are_counted_over_all_columns_without_resets():
    env = walks(3)
    history = run((AGENTS["toy, Steps(5)"], None), None, env=env)
    assert history["steps"][-1] == sum(column.unwrapped.steps for column in env.envs)
    assert history["episodes"][-1] == sum(len(column.unwrapped.finished) for column in env.envs)


@pytest.mark.parametrize(
    "argument",
    [
        *(
            {name: value}
            for name in ("steps", "record_every", "checkpoint_every", "eval_every")
            for value in (0, -1, 1.5, True, "9")
        ),
        *({"seed": value} for value in (-1, 0.5, None)),
    ],
    ids=str,
)
def test_a_bad_number_is_refused_by_its_name_before_anything_is_written(argument, tmp_path):
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"^{name} must be an integer of at least [01], got {value!r}$"):
        run(ONLINE, tmp_path / "run", **{"record_every": None} | argument)
    assert not (tmp_path / "run").exists()


def test_resuming_needs_a_directory():
    with pytest.raises(ValueError, match="resume=True needs out"):
        run(ONLINE, None, resume=True)


@pytest.mark.parametrize("change", [{"seed": SEED + 1}, {"record_every": RECORD_EVERY + 1}], ids=str)
def test_resuming_with_what_cannot_give_the_same_run_is_refused(change, tmp_path):
    run(ONLINE, tmp_path, steps=40)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=next(iter(change))):
        run(ONLINE, tmp_path, resume=True, **change)
    assert contents(tmp_path) == before


def test_a_prolonged_run_that_is_interrupted_goes_on_to_its_new_end(tmp_path):
    run(ONLINE, tmp_path, steps=40)
    with pytest.raises(KeyboardInterrupt):
        run(ONLINE, tmp_path, raises_at(30, KeyboardInterrupt()), steps=100, resume=True)
    assert Run(tmp_path).config["steps"] == 100  # what npg train --resume takes


def test_a_prolonged_run_keeps_its_distance_of_records(tmp_path):
    run(ONLINE, tmp_path, steps=100, record_every=None)
    history = run(ONLINE, tmp_path, steps=200, record_every=None, resume=True)
    np.testing.assert_array_equal(np.diff(history["steps"]), 2)


def test_resuming_with_another_agent_is_refused(tmp_path):
    run(ONLINE, tmp_path, steps=40)
    with pytest.raises(ValueError, match="alpha"):
        run((lambda env: toy(env, alpha=0.5), Walk), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"algorithm|state"):
        run(EPISODIC, tmp_path, resume=True)


@pytest.mark.parametrize("there", ["a run", "a file", "a directory with something in it"])
def test_a_directory_that_exists_is_never_overwritten(there, tmp_path):
    out = tmp_path / "run"
    if there == "a run":
        run(ONLINE, out, steps=40)
    elif there == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    before = {path: path.read_bytes() for path in [out, *out.glob("*")] if path.is_file()}
    with pytest.raises(ValueError, match=f"run directory {out} already exists; choose another or resume it"):
        run(ONLINE, out)
    assert before == {path: path.read_bytes() for path in [out, *out.glob("*")] if path.is_file()}


def test_an_empty_directory_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        run(ONLINE, out, steps=40)
        Run(out).load()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(ONLINE, tmp_path / "file" / "run")


@pytest.mark.parametrize("episodes", [1, 6, 7])
@pytest.mark.parametrize("make_env", [Walk, lambda: walks(3)], ids=["scalar", "vector"])
def test_evaluation_gives_the_undiscounted_returns_of_as_many_whole_episodes_as_asked(make_env, episodes):
    env = make_env()
    agent = toy(env)
    agent.init(np.random.default_rng(0))
    returns = npg.evaluate(agent, env, episodes)
    assert returns.shape == (episodes,)
    columns = [column.unwrapped for column in env.envs] if isinstance(env, VectorEnv) else [env]
    # Round k of the columns gives the k-th len(columns) returns, whatever the lengths of the episodes.
    played = [columns[i % len(columns)].finished[i // len(columns)][1] for i in range(episodes)]
    np.testing.assert_allclose(returns, played, rtol=1e-12)


@pytest.mark.parametrize("make_env", [Walk, lambda: walks(3)], ids=["scalar", "vector"])
def test_evaluation_never_sees_the_seeds_of_training(make_env):
    training, evaluation = set(), set()
    for seed in range(10):
        env = make_env()
        case = (reinforce, make_env)
        run(case, None, env=env, seed=seed)
        training |= seeds_of(env)
        env = make_env()
        agent = toy(env)
        agent.init(np.random.default_rng(0))
        npg.evaluate(agent, env, 3, seed=seed)
        evaluation |= seeds_of(env)
    assert len(training) > 50
    assert len(evaluation) >= 10
    assert not training & evaluation


def seeds_of(env) -> set[int]:
    columns = [column.unwrapped for column in env.envs] if isinstance(env, VectorEnv) else [env]
    return {seed for column in columns for seed in column.seeds}


def test_deterministic_evaluation_takes_the_mode_and_sampled_evaluation_does_not():
    env = npg.make_env("CliffWalking-v1")
    agent = npg.make_agent("reinforce", env)
    agent.init(np.random.default_rng(0))
    # Of equal probabilities the first action, up, is the mode: it never arrives and never falls.
    np.testing.assert_array_equal(npg.evaluate(agent, env, 2), [-DEFAULT_TIME_LIMIT] * 2)
    assert (npg.evaluate(agent, env, 2, deterministic=False) < -DEFAULT_TIME_LIMIT).all()


def test_environments_without_a_time_limit_get_the_stated_one_and_others_keep_theirs():
    assert npg.make_env("CliffWalking-v1").spec.max_episode_steps == DEFAULT_TIME_LIMIT
    assert npg.make_env("FrozenLake-v1").spec.max_episode_steps == 100
    for kwargs, limit in (({}, DEFAULT_TIME_LIMIT), ({"max_episode_steps": 7}, 7)):
        for env in (npg.make_env("CliffWalking-v1", **kwargs), npg.make_vec("CliffWalking-v1", 1, **kwargs)):
            agent = npg.make_agent("reinforce", env)
            agent.init(np.random.default_rng(0))
            assert npg.evaluate(agent, env, 1) == -limit


def test_evaluation_depends_on_its_seed_alone_and_changes_nothing(tmp_path):
    env = Walk()
    agent = toy(env)
    npg.train(agent, env, steps=60, seed=SEED)
    before = agent.state()
    first_returns = npg.evaluate(agent, env, 5, seed=1, deterministic=False)
    np.testing.assert_array_equal(npg.evaluate(agent, env, 5, seed=1, deterministic=False), first_returns)
    assert (npg.evaluate(agent, env, 5, seed=2, deterministic=False) != first_returns).any()
    assert_same_state(agent.state(), before)


@pytest.mark.parametrize("argument", [{"episodes": 0}, {"episodes": -1}, {"episodes": 1.5}, {"seed": -1}], ids=str)
def test_a_bad_number_of_an_evaluation_is_refused_by_its_name(argument):
    env = Walk()
    agent = toy(env)
    agent.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
        npg.evaluate(agent, env, **argument)


def trained() -> Toy:
    env = Walk()
    agent = toy(env)
    npg.train(agent, env, steps=30, seed=SEED)
    return agent


def test_state_is_everything_learned_by_dotted_name_as_copies():
    agent = trained()
    state = agent.state()
    names = {"theta", "w", "z", "z_w", "updates", "ascent.m", "ascent.v", "ascent.t"}
    assert state.keys() == names
    for array in state.values():
        array += 1
    for name, array in agent.state().items():
        assert (array != state[name]).all()


def test_load_state_takes_back_copies():
    agent, other = trained(), toy(Walk())
    other.init(np.random.default_rng(1))
    state = agent.state()
    other.load_state(state)
    assert_same_state(other.state(), agent.state())
    for array in state.values():
        array += 1
    assert_same_state(other.state(), agent.state())
    assert isinstance(other.ascent, Adam)


@pytest.mark.parametrize(
    "change",
    [{"w": np.zeros(8)}, {"ascent.m": np.zeros(3)}, {"ascent.t": np.zeros(1)}, {"more": np.zeros(1)}, {"z": None}],
    ids=str,
)
def test_a_state_of_other_names_or_shapes_is_refused_and_changes_nothing(change):
    agent = trained()
    before = agent.state()
    state = {name: array + 1 for name, array in before.items()} | change
    with pytest.raises(ValueError, match="state must hold arrays "):
        agent.load_state({name: array for name, array in state.items() if array is not None})
    assert_same_state(agent.state(), before)


# Records and checkpoints of step-by-step methods


@pytest.mark.parametrize("n", [0, 8])
def test_by_default_a_step_by_step_method_plays_episodes_to_their_end(n):
    env = npg.make_vec("MountainCar-v0", n) if n else npg.make_env("MountainCar-v0")
    history = npg.train(toy(env), env, steps=450 * max(n, 1), seed=SEED)
    assert len(history) == 50
    assert history["episodes"][-1] == 2 * max(n, 1)
    assert set(history["mean_length"][history["window"] > 0]) == {200}


def test_records_between_checkpoints_are_made_again_when_a_run_is_resumed(tmp_path):
    settings = {"record_every": 10, "checkpoint_every": 40, "steps": 120}
    run(ONLINE, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(ONLINE, tmp_path / "cut", raises_at(75, KeyboardInterrupt()), **settings)
    assert len(caught.value.history) == len(Run(tmp_path / "cut").rows()) == 7
    assert Run(tmp_path / "cut").load()["count.steps"] == 40
    run(ONLINE, tmp_path / "cut", resume=True, **settings)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


class Changing(Toy):
    """Diagnostics in another order, and later with another name."""

    names = (("a", "b"), ("b", "a"), ("a", "c"))

    def update(self, traj, rng):
        super().update(traj, rng)
        return {name: float(ord(name)) for name in self.names[min(int(self.updates), len(self.names)) - 1]}


def test_diagnostics_are_kept_by_name_and_other_names_are_refused(tmp_path):
    env = Walk()
    with pytest.raises(ValueError, match="diagnostics must have the same names"):
        npg.train(Changing(toy(env).policy), env, steps=3, record_every=1, out=tmp_path)
    rows = Run(tmp_path).rows()
    assert [(row["a"], row["b"]) for row in rows] == [(ord("a"), ord("b"))] * 2


def test_an_untrained_agent_says_so():
    env = Walk()
    with pytest.raises(AttributeError, match=r"no attribute 'theta' yet: train the agent"):
        npg.evaluate(toy(env), env, 1)


@pytest.mark.parametrize("record_every", [1, 7, 40, 1000])
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (1, 3), (5, 1), (5, 3)])
def test_the_end_of_a_run_is_saved_however_long_a_collection_is(n, columns, record_every, tmp_path):
    case = (lambda env: toy(env, n=n), lambda: walks(columns) if columns > 1 else Walk())
    history = run(case, tmp_path, steps=61, record_every=record_every, checkpoint_every=1000)
    assert Run(tmp_path).load()["count.steps"] == history["steps"][-1] >= 61


# The first Ctrl-C or SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_signal_ends_the_run_after_the_update_in_hand_and_its_checkpoint(agent, number, tmp_path):
    case, ends = (AGENTS[agent], Walk), {signal.SIGINT: (KeyboardInterrupt, None), signal.SIGTERM: (SystemExit, 143)}
    error, code = ends[number]
    with pytest.raises(error) as caught:
        run(case, tmp_path, signals_at(47, number))
    assert getattr(caught.value, "code", None) == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == USUAL
    saved = Run(tmp_path).load()["count.steps"]
    assert saved == run(case, None, steps=47)["steps"][-1] >= 47
    assert f"the checkpoint of step {saved} is kept" in caught.value.__notes__[0]
    assert list(caught.value.history["steps"]) == [row["steps"] for row in Run(tmp_path).rows()]


USUAL = (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_the_run_at_once(number, tmp_path):
    steps = []

    def fault(step, reward):
        steps.append(step)
        return signals_at(41, number, then=signal.SIGINT)(step, reward)

    with pytest.raises(KeyboardInterrupt):
        run((lambda env: toy(env, n=20), Walk), tmp_path, fault)
    assert len(steps) == 42
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == USUAL
    assert Run(tmp_path).load()["count.steps"] == 40


def test_a_signal_within_a_callback_ends_the_run_after_a_checkpoint_of_that_step(tmp_path):
    def callback(row):
        if row["steps"] == 60:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        run(ONLINE, tmp_path, checkpoint_every=10_000, callback=callback)
    assert Run(tmp_path).load()["count.steps"] == 60


def test_signals_are_left_to_those_who_handle_them_and_where_there_is_nothing_to_save(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt) as caught:
        run(ONLINE, None, signals_at(47, signal.SIGINT))
    assert list(caught.value.history["steps"]) == [20, 40]
    received, steps = [], []
    monkeypatch.setattr(signal, "getsignal", signal.getsignal)
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        run(ONLINE, tmp_path, signals_at(47, signal.SIGTERM), callback=lambda row: steps.append(row["steps"]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert steps[-1] == STEPS


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        history = pool.submit(run, ONLINE, tmp_path).result()
    assert history["steps"][-1] == STEPS


def test_checkpoints_are_saved_by_the_clock_too_unless_that_would_cut(tmp_path, monkeypatch):
    assert training.SAVE_SECONDS == 30
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    rare = {"record_every": 10_000, "checkpoint_every": 10_000}
    with pytest.raises(RuntimeError):
        run(ONLINE, tmp_path / "exact", raises_at(47, RuntimeError()), **rare)
    arrays = Run(tmp_path / "exact").load()
    assert (arrays["count.steps"], arrays["count.records"]) == (46, 0)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="episodes are cut every 10000 steps"):
        run((toy, lambda *fault: Memory(walks(3, *fault))), tmp_path / "cut", raises_at(47, RuntimeError()), **rare)
    assert Run(tmp_path / "cut").load()["count.steps"] == 0


# What has no way back into an episode is cut


class Memory(VectorWrapper):
    """A wrapper that might remember anything."""


class Stateless(TabularVectorEnv):
    """May hold more than what its base knows to save."""


UNKNOWN = {
    "a wrapper": lambda: Memory(walks(3, kind=Ring)),
    "a native one": lambda: Stateless(two_state(), 3, Ring.limit),
    "processes": lambda: AsyncVectorEnv([Ring] * 3),
}
SPAWNS = {"processes": [pytest.mark.process]}
every_unknown = pytest.mark.parametrize(
    "make_env", [pytest.param(make, id=name, marks=SPAWNS.get(name, [])) for name, make in UNKNOWN.items()]
)


def run_cut(make_env, out, **settings) -> list[str]:
    """Train on an environment that has no way back; what is warned of."""
    with closing(make_env()) as env, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run((toy, None), out, env=env, record_every=30, **settings)
    return [str(warning.message) for warning in warned]


@every_unknown
def test_episodes_are_cut_only_where_there_is_no_way_back_with_a_warning_at_the_start_and_if_none_ends(
    make_env, tmp_path, fast_disk
):
    start, *none_ended = run_cut(make_env, tmp_path / "short", steps=300, checkpoint_every=90)
    assert start.startswith("episodes are cut every 90 steps, as if by a time limit, because the state of ")
    assert none_ended == [f"no episode has ended before it was cut, at step {n}" for n in (90, 180, 270, 300)]
    assert Run(tmp_path / "short").rows()[-1]["episodes"] == 0
    # Here episodes end, if not since the last record.
    assert run_cut(make_env, tmp_path / "long", steps=360, checkpoint_every=180) == [start.replace("90", "180")]
    assert Run(tmp_path / "long").rows()[-1]["mean_length"] == Ring.limit


@every_unknown
def test_what_is_cut_is_resumed_exactly_too(make_env, tmp_path, fast_disk):
    def callback(row):
        if row["steps"] == 120:
            raise RuntimeError("stop")

    how = {"steps": 210, "checkpoint_every": 90}
    run_cut(make_env, tmp_path / "whole", **how)
    with pytest.raises(RuntimeError, match="stop"):
        run_cut(make_env, tmp_path / "stopped", **how, callback=callback)
    assert Run(tmp_path / "stopped").load()["count.steps"] == 90
    run_cut(make_env, tmp_path / "stopped", **how, resume=True)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_whole_episodes_are_never_cut_whatever_the_environment(tmp_path):
    run((reinforce, lambda: Memory(walks(3, kind=Ring))), tmp_path)
    assert Run(tmp_path).rows()[-1]["mean_length"] == Ring.limit


# Evaluations


def below(env):
    """The environment below all wrappers that an agent can do without."""
    return env.unwrapped if not normalizers(env) else env.env.env


def play(env):
    env.reset(seed=7)
    for _ in range(2):
        env.step(np.zeros(env.num_envs, dtype=int) if isinstance(env, VectorEnv) else 0)


@every_case
def test_whatever_a_callback_does_to_the_environment_changes_nothing(case, tmp_path, fast_disk):
    run(case, tmp_path / "without")
    env = case[1]()
    agent, rows = case[0](env), []

    def callback(row):
        (
            lambda: npg.evaluate(agent, env, 5),
            lambda: npg.evaluate(agent, below(env), 5),
            lambda: play(env),
            lambda: npg.train(toy(env), env, steps=30, seed=9),
        )[len(rows) % 4]()
        rows.append(row)

    run((lambda env: agent, None), tmp_path / "with", env=env, callback=callback)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")
    assert without_seconds(rows) == contents(tmp_path / "without")[1]


@every_case
def test_evaluations_change_nothing_and_those_after_the_checkpoint_are_made_again(
    case, tmp_path, fast_disk, monkeypatch
):
    def evaluated(name, resume=False):
        env = case[1]()
        agent, eval_env = case[0](env), case[1]() if case[0] in (reinforce, toy) else None  # on env itself
        how = {"steps": 100, "eval_every": 60, "eval_env": eval_env, "resume": resume}
        history = run((lambda env: agent, None), tmp_path / name, env=env, **how)
        return history.evaluations, agent, env

    run(case, tmp_path / "without", steps=100)
    evaluations, agent, env = evaluated("whole")
    assert contents(tmp_path / "whole") == contents(tmp_path / "without")
    assert Run(tmp_path / "whole").rows("evaluations") == evaluations
    first, last = evaluations[0], evaluations[-1]
    assert 60 <= first["steps"] <= last["steps"] == Run(tmp_path / "whole").rows()[-1]["steps"]
    returns = npg.evaluate(agent, env, seed=SEED)
    assert last == {"steps": last["steps"], "mean": returns.mean(), "std": returns.std(), "count": 100}

    append = Run.append

    def cut_short(self, row, name="metrics"):
        append(self, row, name)
        if name == "evaluations":
            raise RuntimeError("after it was written, before the checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", cut_short)
        with pytest.raises(RuntimeError, match="after it was written"):
            evaluated("stopped")
    (row,) = Run(tmp_path / "stopped").rows("evaluations")
    assert row == first
    assert row["steps"] > Run(tmp_path / "stopped").load()["count.steps"]
    assert evaluated("stopped", resume=True)[0] == evaluations
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    tables = [(tmp_path / name / "evaluations.csv").read_bytes() for name in ("stopped", "whole")]
    assert tables[0] == tables[1]


@given(steps=st.integers(1, 60), eval_every=st.integers(1, 70), n=st.integers(1, 9))
@examples(10)
def test_each_evaluation_is_after_the_first_update_at_or_after_a_multiple_of_eval_every_or_the_end(
    steps, eval_every, n
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *args, **kwargs: np.zeros(1))
        history = run((lambda env: toy(env, n=n), Walk), None, steps=steps, eval_every=eval_every)
    marks = [*range(eval_every, steps, eval_every), steps]
    assert [row["steps"] for row in history.evaluations] == sorted({-(-mark // n) * n for mark in marks})


def test_evaluations_are_tenths_apart_on_an_environment_for_them_and_sampled_where_asked():
    env = Walk()
    agent = toy(env)
    history = npg.train(agent, env, steps=200, eval_env=env, deterministic=False)
    assert [row["steps"] for row in history.evaluations] == [*range(20, 201, 20)]
    assert history.evaluations[-1]["mean"] == npg.evaluate(agent, env, deterministic=False).mean()
    assert history.evaluations[-1]["mean"] != npg.evaluate(agent, env).mean()
    assert run(ONLINE, None).evaluations == []


@pytest.mark.filterwarnings("ignore:episodes are cut", "ignore:no episode has ended")
@pytest.mark.parametrize("make_env", [UNKNOWN["a wrapper"], UNKNOWN["a native one"]], ids=["a wrapper", "a native one"])
def test_an_environment_without_a_way_back_is_not_evaluated_on_within_episodes(make_env, tmp_path):
    case = toy, make_env
    with pytest.raises(ValueError, match=r"^eval_env must be given, because the state of .* cannot be saved"):
        run(case, tmp_path / "run", eval_every=30)
    assert not (tmp_path / "run").exists()
    env = make_env()
    agent = toy(env)

    def callback(row):
        npg.evaluate(agent, env, 1)

    with pytest.raises(ValueError, match="is being trained on, and has no way back: evaluate on another one"):
        run((lambda env: agent, None), None, env=env, checkpoint_every=90, callback=callback)
    run(case, tmp_path / "with", checkpoint_every=90, eval_env=make_env(), eval_every=30)
    run(case, tmp_path / "without", checkpoint_every=90)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")
    assert len(run((reinforce, make_env), None, eval_every=STEPS).evaluations) == 1  # between episodes there is


@pytest.mark.parametrize(
    ("eval_env", "error", "says"),
    [
        (Measured(Walk()), ValueError, "the statistics of eval_env must hold arrays"),
        (measured(rewards=True, observations=False), ValueError, "the statistics of eval_env must hold arrays"),
        (Walk(), ValueError, "agent and eval_env must fit: "),
        ("CartPole-v1", TypeError, "eval_env must be a Gymnasium environment, .*, got 'CartPole-v1'"),
    ],
    ids=["not normalised", "normalised otherwise", "other spaces", "a name"],
)
def test_an_environment_for_evaluations_that_does_not_go_with_the_training_is_refused(eval_env, error, says, tmp_path):
    with pytest.raises(error, match=f"^{says}"):
        run((toy, measured), tmp_path / "run", eval_env=eval_env)
    assert not (tmp_path / "run").exists()


# Agents, environments and functions that are none, or do not go together


class Continuous(Walk):
    action_space = gymnasium.spaces.Box(-1, 1, (1,))


def test_what_is_no_agent_no_environment_or_no_function_is_named(tmp_path):
    env = Walk()
    agent = toy(env)
    for wrong in ({"agent": None}, {"agent": "reinforce"}, {"env": None}, {"env": "CartPole-v1"}, {"callback": 1}):
        arguments = {"agent": agent, "env": env, "out": tmp_path / "run", "steps": 9} | wrong
        ((name, value),) = wrong.items()
        with pytest.raises(TypeError, match=f"^{name} must be an? .*, got {value!r}$"):
            npg.train(**arguments)
        if name != "callback":
            with pytest.raises(TypeError, match=f"^{name} must be an? .*, got {value!r}$"):
                npg.evaluate(arguments["agent"], arguments["env"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("agent", "env"),
    [(toy(Walk()), Continuous()), (reinforce(Continuous()), Walk()), (toy(Walk()), Measured(Walk()))],
    ids=["discrete actions", "continuous actions", "observations"],
)
def test_an_agent_that_does_not_fit_the_environment_is_refused_before_the_first_step(agent, env, tmp_path):
    agent.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^agent and env must fit: "):
        npg.train(agent, env, steps=10, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"^agent and env must fit: "):
        npg.evaluate(agent, env)
    assert (env.unwrapped.steps, (tmp_path / "run").exists()) == (0, False)


def test_an_update_that_returns_no_diagnostics_is_named():
    env = Walk()
    agent = toy(env)
    agent.update = lambda traj, rng: None
    with pytest.raises(TypeError, match=r"^Toy\.update must return a dict of diagnostics, got None$"):
        npg.train(agent, env, steps=10)


@pytest.mark.parametrize("flag", [None, "yes", 2, np.nan])
@pytest.mark.parametrize("which", [2, 3])
def test_flags_that_are_not_true_or_false_are_refused(flag, which):
    env = Walk()
    step = env.step
    env.step = lambda action: tuple(flag if i == which else value for i, value in enumerate(step(action)))
    with pytest.raises(ValueError, match=f"must return flags that are True or False, got .*{flag}"):
        run(ONLINE, None, env=env)


# Normalised observations and rewards


def statistics(env) -> dict:
    """What Gymnasium's wrappers have gathered, as copies, by its name in a checkpoint."""
    observations, rewards = (normalizers(env).get(name) for name in ("observation", "reward"))
    parts = {}
    for name, running in (
        ("observation", observations and observations.obs_rms),
        ("reward", rewards and rewards.return_rms),
    ):
        if running:
            parts |= {f"env.{name}.mean": running.mean, f"env.{name}.var": running.var}
            parts[f"env.{name}.count"] = running.count
    if rewards:
        vector = isinstance(env, VectorEnv)
        parts["env.reward.accumulated"] = rewards.accumulated_reward if vector else rewards.discounted_reward
        parts |= {"env.reward.done": rewards._prev_dones} if hasattr(rewards, "_prev_dones") else {}
    return {name: np.array(part, dtype=float) for name, part in parts.items()}


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("what", [("observation",), ("reward",), ("observation", "reward")], ids=" and ".join)
def test_a_checkpoint_keeps_the_statistics_of_what_is_normalised(what, n, tmp_path):
    env = measured(n, observations="observation" in what, rewards="reward" in what)
    agent = toy(env)
    npg.train(agent, env, steps=60, out=tmp_path)
    saved = {name: array for name, array in Run(tmp_path).load().items() if name.startswith("env.")}
    parts = {"observation": ["mean", "var", "count"], "reward": ["mean", "var", "count", "accumulated"]}
    if hasattr(normalizers(env).get("reward"), "_prev_dones"):  # of Gymnasium's later versions
        parts["reward"].append("done")
    assert sorted(saved) == sorted(f"env.{name}.{part}" for name in what for part in parts[name])
    assert_same_state(saved, statistics(env))
    assert all(array.dtype == np.float64 for array in saved.values())
    if "observation" in what:
        assert (np.abs(saved["env.observation.mean"] - [106, 0.2]) < [3, 0.2]).all()
        assert saved["env.observation.count"] > 60


@every_normalized_case
def test_statistics_begin_as_those_of_gymnasium(case, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path, raises_at(1, KeyboardInterrupt()))
    arrays, new = Run(tmp_path).load(), statistics(case[1]())
    assert len(new) >= 7
    for name, array in new.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_checkpoint_of_an_environment_that_is_not_normalised_has_nothing_of_it(tmp_path):
    run(ONLINE, tmp_path, steps=20)
    assert not [name for name in Run(tmp_path).load() if name.startswith("env.")]
    assert Run(tmp_path).config["env"] == {"id": None, "num_envs": 0, "kwargs": {}, "wrappers": []}


@every_normalized_case
def test_statistics_begin_anew_with_a_run_as_all_that_is_learned(case, tmp_path):
    env = case[1]()
    run(case, tmp_path / "once", env=env)
    run(case, tmp_path / "again", env=env)
    run(case, tmp_path / "other", seed=SEED + 1, env=env)
    assert contents(tmp_path / "again") == contents(tmp_path / "once") != contents(tmp_path / "other")


@pytest.mark.parametrize("make", [reinforce, toy])
def test_recorded_returns_are_of_the_rewards_before_they_are_normalised_and_the_agent_learns_from_those_after(make):
    thetas = {}
    for rewards in (True, False):
        env = measured(rewards=rewards)
        agent = make(env)
        history = npg.train(agent, env, steps=200, record_every=20, seed=SEED)
        thetas[rewards] = agent.theta
        for row in history.rows:
            finished = [total for step, total, _ in env.unwrapped.finished if step <= row["steps"]]
            # At most 12 rewards of size 1 for each return: a few roundings of each.
            np.testing.assert_allclose(row["mean_return"], np.mean(finished) if finished else np.nan, atol=1e-13)
        assert len(env.unwrapped.finished) > 5
    assert not np.allclose(thetas[True], thetas[False], rtol=1e-3)


def fixed(statistics: dict, n: int):
    """The walk with observations scaled by given numbers, and raw rewards."""

    def scaled(s):
        mean, var = statistics["env.observation.mean"], statistics["env.observation.var"]
        return ((s - mean) / np.sqrt(var + 1e-8)).astype(np.float32)

    def make():
        env = Measured(Walk())
        return gymnasium.wrappers.TransformObservation(env, scaled, env.observation_space)

    return SyncVectorEnv([make] * n) if n else make()


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [0, 3])
def test_evaluation_normalises_by_the_statistics_of_training_changes_none_and_gives_raw_returns(n, deterministic):
    env = measured(n, **BOTH)
    agent = toy(env, alpha=0.5)
    npg.train(agent, env, steps=100, seed=SEED)
    before = statistics(env)
    returns = npg.evaluate(agent, env, 7, deterministic=deterministic)
    assert_same_state(statistics(env), before)
    assert all(wrapper.update_running_mean for wrapper in normalizers(env).values())
    np.testing.assert_allclose(
        returns, npg.evaluate(agent, fixed(before, n), 7, deterministic=deterministic), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_array_equal(returns, npg.evaluate(agent, env, 7, deterministic=deterministic))


def test_an_evaluation_that_fails_changes_no_statistics_and_a_frozen_wrapper_stays_frozen():
    env = measured(0, raises_at(125, KeyboardInterrupt()), **BOTH)
    agent = toy(env)
    npg.train(agent, env, steps=100, seed=SEED)
    before = statistics(env)
    normalizers(env)["reward"].update_running_mean = False
    with pytest.raises(KeyboardInterrupt):
        npg.evaluate(agent, env, 50)
    assert_same_state(statistics(env), before)
    assert {name: wrapper.update_running_mean for name, wrapper in normalizers(env).items()} == {
        "observation": True,
        "reward": False,
    }


NORMALIZED_IDS = {
    "scalar": lambda: normalized(npg.make_env("MountainCarContinuous-v0", max_episode_steps=50), **BOTH),
    "vector": lambda: normalized(npg.make_vec("CartPole-v1", 2), **BOTH),
    "observations": lambda: normalized(npg.make_vec("Pendulum-v1", 2)),
    "rewards": lambda: normalized(npg.make_env("FrozenLake-v1"), False, True, 0.5),
}


@pytest.mark.parametrize("make_env", NORMALIZED_IDS.values(), ids=NORMALIZED_IDS)
def test_a_run_directory_rebuilds_the_normalised_environment_with_its_statistics(make_env, tmp_path):
    env = make_env()
    agent = reinforce(env)
    npg.train(agent, env, steps=200, seed=SEED, out=tmp_path)
    rebuilt = Run(tmp_path)
    env2 = rebuilt.make_env()
    assert str(env2) == str(env)
    agent2 = rebuilt.make_agent(env2)
    assert_same_state(agent2.state(), agent.state())
    assert_same_state(statistics(env2), statistics(env))
    for name, wrapper in normalizers(env).items():
        assert getattr(normalizers(env2)[name], "gamma", None) == getattr(wrapper, "gamma", None)
    np.testing.assert_array_equal(npg.evaluate(agent2, env2, 3), npg.evaluate(agent, env, 3))


def test_the_config_states_what_is_normalised(tmp_path):
    for name, make_env in NORMALIZED_IDS.items():
        env = make_env()
        npg.train(reinforce(env), env, steps=1, out=tmp_path / name)
    configs = {name: Run(tmp_path / name).config["env"] for name in NORMALIZED_IDS}
    assert {name: config["normalize"] for name, config in configs.items()} == {
        "scalar": BOTH,
        "vector": BOTH,
        "observations": {"observations": True, "rewards": False, "gamma": 0.99},
        "rewards": {"observations": False, "rewards": True, "gamma": 0.5},
    }
    assert all(config["wrappers"] == [] for config in configs.values())


@pytest.mark.parametrize("n", [0, 2])
def test_a_normalised_environment_in_another_wrapper_or_with_another_epsilon_is_not_rebuilt_as_a_plain_one(n, tmp_path):
    made = npg.make_vec("Pendulum-v1", n) if n else npg.make_env("Pendulum-v1")
    wrappers = gymnasium.wrappers.vector if n else gymnasium.wrappers
    outside = wrappers.TransformReward(normalized(made, rewards=True), lambda r: -r)
    inside = normalized(wrappers.TransformReward(made, lambda r: -r), rewards=True)
    epsilons = [wrappers.NormalizeObservation(made, epsilon=0.1), wrappers.NormalizeReward(made, epsilon=0.1)]
    for k, env in enumerate([outside, inside, *epsilons]):
        npg.train(reinforce(env), env, steps=1, out=tmp_path / str(k))
        with pytest.raises(ValueError, match=r"wrapped environment; use npg\.evaluate"):
            Run(tmp_path / str(k)).make_env()


def test_an_agent_of_a_run_is_not_made_for_an_environment_that_is_normalised_otherwise(tmp_path):
    normal, plain = (npg.make_env("Pendulum-v1") for _ in range(2))
    normal = normalized(normal, observations=False, rewards=True)
    for name, env, other in (("normal", normal, plain), ("plain", plain, normal)):
        npg.train(npg.make_agent("reinforce", env, episodes=1), env, steps=1, out=tmp_path / name)
        with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be used: the statistics by which env normalises"):
            Run(tmp_path / name).make_agent(other)


@pytest.mark.parametrize("change", [{"rewards": False}, {"gamma": 0.5}, None], ids=str)
def test_resuming_with_another_normalisation_is_refused(change, tmp_path):
    make = toy
    run((make, lambda: measured(**BOTH)), tmp_path, steps=40)
    env = Measured(Walk()) if change is None else measured(**BOTH | change)
    with pytest.raises(ValueError, match=r"^normalize must be .*'rewards': True, 'gamma': 0.9"):
        run((make, None), tmp_path, env=env, resume=True)


def test_a_run_that_was_not_normalised_is_not_resumed_as_one_that_is(tmp_path):
    run((toy, lambda: Measured(Walk())), tmp_path, steps=40)
    with pytest.raises(ValueError, match=r"^normalize must be None to resume"):
        run((toy, measured), tmp_path, resume=True)


class Exploding(Measured):
    """Its observations overflow the variance, though each of them is finite and normalised to 0."""

    def observation(self, s):
        steps = self.unwrapped.steps
        return np.array([s, 1e200 if steps == 30 else steps], dtype=np.float64)


def test_statistics_that_are_not_finite_are_never_saved(tmp_path):
    env = normalized(Exploding(Walk()))
    with pytest.raises(npg.DivergenceError, match=r"^observation\.var is no longer finite at step 40") as caught:
        npg.train(toy(env), env, steps=100, record_every=20, checkpoint_every=20, out=tmp_path)
    assert len(caught.value.history) == 1
    assert all(np.isfinite(a).all() for name, a in Run(tmp_path).load().items() if name != "rng")


def test_evaluated_is_the_policy_that_is_learned_and_not_the_one_that_acts():
    env = npg.make_env("npg/RandomWalk-v0")
    agent = npg.make_agent("off_pac", env)
    agent.init(np.random.default_rng(0))
    right = int(env.unwrapped.mdp.P[3, 1, 4] > 0)
    agent.theta.reshape(2, -1)[right] = 50.0
    assert npg.evaluate(agent, env, 20, deterministic=False).tolist() == [1.0] * 20
    env = npg.make_env("npg/LQR-v0", A=[[0.9]], B=[[1.0]], Q=[[1.0]], R=[[1.0]], S0=[[1.0]])
    agent = npg.make_agent("copdac_q", env, scale=3.0)
    agent.init(np.random.default_rng(0))
    sampled, mode = (npg.evaluate(agent, env, 5, deterministic=deterministic) for deterministic in (False, True))
    np.testing.assert_array_equal(sampled, mode)
