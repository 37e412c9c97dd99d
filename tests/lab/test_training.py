"""The loop, evaluation and run directories, on REINFORCE and on a toy agent with traces that the loop cannot know."""

import builtins
import errno
import io
import json
import os
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from toy import Toy, Walk, contents, raises_at, walks, without_seconds

import npg
from npg.envs import DEFAULT_TIME_LIMIT, normalized
from npg.envs.spaces import normalizers, single_spaces
from npg.lab.runs import Run
from npg.optimizers import Adam

STEPS, RECORD_EVERY, SEED = 150, 20, 3


def toy(env, **settings) -> Toy:
    policy = npg.make_policy(Walk.observation_space, Walk.action_space)
    return Toy(policy, **settings)


def reinforce(env):
    return npg.make_agent("reinforce", env, episodes=4)


# name: (agent for an environment, environment with a fault or without)
CASES = {
    "reinforce, scalar": (reinforce, Walk),
    "reinforce, vector": (reinforce, lambda *fault: walks(2, *fault)),
    "toy, Steps(1), scalar": (toy, Walk),
    "toy, Steps(1), vector": (toy, lambda *fault: walks(3, *fault)),
    "toy, Steps(5), scalar": (lambda env: toy(env, n=5), Walk),
} | {
    f"toy, Steps(5), {mode.name}": (lambda env: toy(env, n=5), lambda *fault, mode=mode: walks(3, *fault, mode=mode))
    for mode in AutoresetMode
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Measured(gymnasium.ObservationWrapper):
    """The walk, observed by numbers of unlike sizes that need to be normalised."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, s):
        return np.array([100 + 2 * s, s * s / 50], dtype=np.float32)


def measured(n: int = 0, *fault, **settings):
    """A measured walk, or n of them as a vector, normalised."""
    if not n:
        return normalized(Measured(Walk(*fault)), **settings)
    walks = [lambda f=f: Measured(Walk(*f)) for f in [fault] + [()] * (n - 1)]
    return normalized(SyncVectorEnv(walks), **settings)


def measured_toy(env, **settings) -> Toy:
    space, actions = single_spaces(env)
    policy = npg.make_policy(space, actions, npg.features.Affine(space, scale=1.0))
    return Toy(policy, **settings)


def measured_reinforce(env, **settings):
    return npg.make_agent("reinforce", env, scale=1.0, episodes=4, **settings)


BOTH = {"observations": True, "rewards": True, "gamma": 0.9}
NORMALIZED = {
    f"{name}, {'vector' if n else 'scalar'}, normalised": (make, lambda *fault, n=n: measured(n, *fault, **BOTH))
    for name, make in (
        ("reinforce", measured_reinforce),
        ("toy, Steps(1)", measured_toy),
        ("toy, Steps(5)", lambda env: measured_toy(env, n=5)),
    )
    for n in (0, 3)
}
every_and_normalized_case = pytest.mark.parametrize("case", (CASES | NORMALIZED).values(), ids=CASES | NORMALIZED)
every_normalized_case = pytest.mark.parametrize("case", NORMALIZED.values(), ids=NORMALIZED)
ONLINE, EPISODIC = CASES["toy, Steps(1), scalar"], CASES["reinforce, scalar"]


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


def first(env) -> Walk:
    env = env.unwrapped
    return env.envs[0].unwrapped if isinstance(env, VectorEnv) else env


def assert_same_state(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


@pytest.fixture
def fast_disk(monkeypatch):
    """Waiting for the disk matters when the machine dies, not when the process does."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def assert_seed_decides(once) -> None:
    """``once(name, seed)`` -> contents of a run."""
    checkpoint, rows = once("a", 0)
    assert (checkpoint, rows) == once("b", 0)
    other_checkpoint, other_rows = once("c", 1)
    assert checkpoint != other_checkpoint
    assert rows != other_rows


@every_and_normalized_case
def test_same_seed_gives_the_same_bytes_and_metrics_and_another_seed_does_not(case, tmp_path):
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


@every_and_normalized_case
def test_writing_files_and_reporting_do_not_change_what_is_learned(case, tmp_path):
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


@every_and_normalized_case
def test_a_run_that_stops_at_any_step_and_is_resumed_ends_as_if_it_had_not_stopped(case, tmp_path, fast_disk):
    env = case[1]()
    run(case, tmp_path / "whole", env=env)
    whole = contents(tmp_path / "whole")
    for k in np.linspace(1, first(env).steps, 15, dtype=int):
        out = tmp_path / f"stopped-{k}"
        with pytest.raises(KeyboardInterrupt):
            run(case, out, raises_at(k, KeyboardInterrupt()))
        history = run(case, out, resume=True)
        assert contents(out) == whole, f"stopped at step {k}"
        assert without_seconds(history.rows) == whole[1]


def test_a_run_that_stops_again_and_again_ends_as_if_it_had_not_stopped(tmp_path, fast_disk):
    run(ONLINE, tmp_path / "whole")
    out = tmp_path / "stopped"
    for _ in range(STEPS // RECORD_EVERY):
        with pytest.raises(KeyboardInterrupt):  # each time one record further
            run(ONLINE, out, raises_at(RECORD_EVERY + 5, KeyboardInterrupt()), resume=out.exists())
    run(ONLINE, out, raises_at(RECORD_EVERY + 5, KeyboardInterrupt()), resume=True)
    assert contents(out) == contents(tmp_path / "whole")


@every_and_normalized_case
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
            run(case, out, steps=60, resume=True)
            assert contents(out) == whole, f"at use {k} of the disk"
            resumed += 1
    assert resumed == full.uses - 8  # but for config.json and the first checkpoint: open, write, flush, rename


def test_a_disk_that_is_full_from_the_start_carries_a_history_too(tmp_path, monkeypatch):
    Full(monkeypatch, 8)
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
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.npz", "config.json", "metrics.csv"]


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
@every_case
def test_a_reward_that_is_not_finite_is_refused(case, value, tmp_path):
    with pytest.raises(ValueError, match=f"^the environment returned a reward that is not finite: .*{value}") as caught:
        run(case, tmp_path / "run", lambda step, reward: value if step == 30 else reward)
    assert "\n" not in str(caught.value)
    assert len(caught.value.history) <= 30 * 3 // RECORD_EVERY
    Run(tmp_path / "run").load()


def test_history_has_a_column_for_each_statistic():
    history = run(EPISODIC, None)
    names = ["steps", "updates", "episodes", "mean_return", "mean_length", "seconds", "advantage_std", "gradient_norm"]
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
def test_a_record_averages_the_episodes_finished_since_the_last_one(case):
    env = Walk()
    history = run(case, None, env=env, record_every=7)
    before = 0
    for row in history.rows:
        finished = [(total, length) for step, total, length in env.finished if before < step <= row["steps"]]
        expected = np.mean(finished, axis=0) if finished else [np.nan, np.nan]
        np.testing.assert_allclose([row["mean_return"], row["mean_length"]], expected, rtol=1e-12)
        assert row["episodes"] == sum(step <= row["steps"] for step, _, _ in env.finished)
        before = row["steps"]
    assert len(env.finished) == history["episodes"][-1] > 5
    assert np.isnan(history["mean_return"]).any() == (case is ONLINE)


def test_steps_are_counted_over_all_columns_without_resets():
    env = walks(3)
    history = run(CASES["toy, Steps(5), NEXT_STEP"], None, env=env)
    assert history["steps"][-1] == sum(column.unwrapped.steps for column in env.envs)
    assert history["episodes"][-1] == sum(len(column.unwrapped.finished) for column in env.envs)


@pytest.mark.parametrize(
    "argument",
    [
        *({name: value} for name in ("steps", "record_every") for value in (0, -1, 1.5, True, "9")),
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on FrozenLake."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    env = npg.make_env("FrozenLake-v1")
    npg.train(npg.make_agent("reinforce", env), env, steps=300, seed=SEED, out=out)
    return out


def copy(finished, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for path in finished.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return Run(out)


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_a_checkpoint_cut_at_any_length_is_called_damaged(finished, tmp_path):
    copied = copy(finished, tmp_path)
    path = copied.path / "checkpoint.npz"
    data = path.read_bytes()
    for length in [*range(0, len(data), 101), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged and cannot be loaded") as caught:
            copied.load()
        assert "\n" not in str(caught.value)


def test_no_changed_byte_of_a_checkpoint_changes_what_is_resumed(finished, tmp_path, fast_disk):
    copied = copy(finished, tmp_path)
    path, env = copied.path / "checkpoint.npz", copied.make_env()
    state = copied.make_agent(env).state()
    data, refused = path.read_bytes(), 0
    for position in range(0, len(data), 13):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x80]) + data[position + 1 :])
        agent = npg.make_agent("reinforce", env)
        try:
            history = resume(copied, agent, env)
        except ValueError:
            refused += 1
        else:
            assert_same_state(agent.state(), state)
            assert history["steps"][-1] >= 300
    assert refused > 200


def resume(run: Run, agent, env) -> npg.History:
    config = run.config
    return npg.train(
        agent, env, steps=config["steps"], seed=SEED, record_every=config["record_every"], out=run.path, resume=True
    )


@pytest.mark.parametrize(
    "content",
    [npz(a=np.ones(3)), npz(a=np.array([{}])), npz(), npy(np.ones(3)), npy(np.array([{}])), b"not at all"],
    ids=["npz of something else", "npz with pickles", "empty npz", "npy", "npy with pickles", "text"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused_by_its_name(content, finished, tmp_path):
    copied = copy(finished, tmp_path)
    (copied.path / "checkpoint.npz").write_bytes(content)
    env = copied.make_env()
    with pytest.raises(ValueError, match=r"checkpoint\.npz"):
        resume(copied, npg.make_agent("reinforce", env), env)
    with pytest.raises(ValueError, match=r"checkpoint\.npz"):
        copied.make_agent(env)


class Planted:
    """Runs ``os.mkdir(name)`` when it is unpickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self):
        return os.mkdir, (self.name,)


def test_a_checkpoint_runs_no_code(finished, tmp_path):
    copied = copy(finished, tmp_path)
    planted = np.array([Planted(str(tmp_path / "planted"))])
    (copied.path / "checkpoint.npz").write_bytes(npz(**{**copied.load(), "agent.theta": planted}))
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged"):
        copied.load()
    assert not (tmp_path / "planted").exists()


def test_a_checkpoint_of_other_settings_is_refused(finished, tmp_path):
    copied = copy(finished, tmp_path)
    (copied.path / "checkpoint.npz").write_bytes(npz(**{**copied.load(), "agent.theta": np.zeros(3)}))
    with pytest.raises(ValueError, match=r"state must hold arrays of shapes .*\(64,\).*got .*\(3,\)"):
        copied.make_agent(copied.make_env())


def test_a_missing_checkpoint_is_named(finished, tmp_path):
    copied = copy(finished, tmp_path)
    (copied.path / "checkpoint.npz").unlink()
    with pytest.raises(ValueError, match=r"has no checkpoint\.npz: the run ended before its first checkpoint"):
        copied.load()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"agent": 1}', '{"agent": {}, "env": {}}', "\x00"])
def test_a_damaged_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        Run(tmp_path)


def test_a_directory_without_a_config_is_not_a_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.json"):
            Run(path)


def some_version(env_id: str) -> str:
    """The version of an environment that this Gymnasium has."""
    return max((name for name in gymnasium.registry if name.startswith(env_id)), key=lambda name: int(name[-1]))


@pytest.mark.parametrize(
    "make_env",
    [
        *(
            lambda env_id=env_id: npg.make_env(some_version(env_id))
            for env_id in ("FrozenLake-v", "Taxi-v", "CliffWalking-v", "Pendulum-v", "MountainCar-v")
        ),
        lambda: npg.make_env("FrozenLake-v1", is_slippery=False, max_episode_steps=9),
        lambda: npg.make_vec("CartPole-v1", 2),
        lambda: npg.make_vec("FrozenLake-v1", 2, map_name="8x8"),
        lambda: npg.make_vec("Pendulum-v1", 2),
        lambda: npg.make_vec("CartPole-v1", 2, vectorization_mode="sync"),
    ],
    ids=lambda make_env: str(make_env()),
)
def test_a_run_directory_rebuilds_its_agent_and_its_environment(make_env, tmp_path):
    env = make_env()
    assert env.spec.max_episode_steps is not None
    agent = npg.make_agent("reinforce", env, episodes=2)
    npg.train(agent, env, steps=20, seed=SEED, out=tmp_path)
    rebuilt = Run(tmp_path)
    env2 = rebuilt.make_env()
    agent2 = rebuilt.make_agent(env2)
    assert str(env2) == str(env)
    assert env2.spec.max_episode_steps == env.spec.max_episode_steps
    assert agent2.config == agent.config == rebuilt.config["agent"]
    assert_same_state(agent2.state(), agent.state())
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            npg.evaluate(agent2, env2, episodes=3, deterministic=deterministic),
            npg.evaluate(agent, env, episodes=3, deterministic=deterministic),
        )


def test_the_config_states_what_a_run_depends_on(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["agent"]["algorithm"] == "reinforce"
    assert config["env"].items() >= {"id": "FrozenLake-v1", "num_envs": 0}.items()
    assert config["env"]["kwargs"].items() >= {"map_name": "4x4", "max_episode_steps": 100}.items()
    assert (config["seed"], config["steps"], config["record_every"]) == (SEED, 300, 6)
    versions = {"npg": npg.__version__, "numpy": np.__version__, "gymnasium": gymnasium.__version__}
    assert versions.items() <= config["versions"].items()


def test_a_run_on_an_unregistered_environment_is_not_rebuilt(tmp_path):
    run(ONLINE, tmp_path, steps=20)
    with pytest.raises(ValueError, match=r"environment.*use npg\.evaluate"):
        Run(tmp_path).make_env()


def test_a_run_on_a_wrapped_environment_is_not_rebuilt_without_its_wrapper(tmp_path):
    env = gymnasium.wrappers.TransformReward(npg.make_env("FrozenLake-v1"), lambda r: -r)
    npg.train(npg.make_agent("reinforce", env), env, steps=20, out=tmp_path)
    with pytest.raises(ValueError, match=r"use npg\.evaluate"):
        Run(tmp_path).make_env()


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
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        agent.load_state({name: array for name, array in state.items() if array is not None})
    assert_same_state(agent.state(), before)


# Records and checkpoints of step-by-step methods


@pytest.mark.parametrize("n", [0, 8])
def test_by_default_a_step_by_step_method_plays_episodes_to_their_time_limit(n):
    env = npg.make_vec("MountainCar-v0", n) if n else npg.make_env("MountainCar-v0")
    policy = npg.make_policy(*single_spaces(env))
    history = npg.train(Toy(policy), env, steps=450 * max(n, 1), seed=SEED)
    assert len(history) == 50
    assert history["episodes"][-1] == 2 * max(n, 1)
    lengths = history["mean_length"]
    assert (lengths[~np.isnan(lengths)] == 200).all()


def test_records_between_checkpoints_are_made_again_when_a_run_is_resumed(tmp_path):
    settings = {"record_every": 10, "checkpoint_every": 40, "steps": 120}
    run(ONLINE, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(ONLINE, tmp_path / "cut", raises_at(75, KeyboardInterrupt()), **settings)
    assert len(caught.value.history) == len(Run(tmp_path / "cut").rows()) == 7
    assert Run(tmp_path / "cut").load()["count.steps"] == 40
    run(ONLINE, tmp_path / "cut", resume=True, **settings)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


# What a run directory cannot rebuild


def test_an_agent_on_features_of_another_space_is_kept_but_not_rebuilt_as_something_else(tmp_path):
    env = npg.make_env("MountainCarContinuous-v0")
    space = gymnasium.spaces.Box(np.array([-10, -1], np.float32), np.array([10, 1], np.float32))
    agent = npg.make_agent("reinforce", env, features=npg.features.Fourier(space, order=2), episodes=1)
    npg.train(agent, env, steps=20, out=tmp_path)
    with pytest.raises(ValueError, match=r"not one that npg\.make_agent builds"):
        Run(tmp_path).make_agent(env)


def test_a_method_that_is_not_registered_is_kept_but_not_rebuilt(tmp_path):
    env = Walk()
    npg.train(toy(env), env, steps=20, out=tmp_path)
    with pytest.raises(ValueError, match=r"not one that npg\.make_agent builds"):
        Run(tmp_path).make_agent(env)


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
    return {name: np.array(part) for name, part in parts.items()}


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("what", [("observation",), ("reward",), ("observation", "reward")], ids=" and ".join)
def test_a_checkpoint_keeps_the_statistics_of_what_is_normalised(what, n, tmp_path):
    env = measured(n, observations="observation" in what, rewards="reward" in what)
    agent = measured_toy(env)
    npg.train(agent, env, steps=60, out=tmp_path)
    saved = {name: array for name, array in Run(tmp_path).load().items() if name.startswith("env.")}
    parts = {"observation": ["mean", "var", "count"], "reward": ["mean", "var", "count", "accumulated"]}
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
    assert len(new) == 7
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


@pytest.mark.parametrize("make", [measured_reinforce, measured_toy])
def test_recorded_returns_are_of_the_rewards_before_they_are_normalised_and_the_agent_learns_from_those_after(make):
    thetas = {}
    for rewards in (True, False):
        env = measured(rewards=rewards)
        agent = make(env)
        history = npg.train(agent, env, steps=200, record_every=20, seed=SEED)
        thetas[rewards], before = agent.theta, 0
        for row in history.rows:
            finished = [total for step, total, _ in env.unwrapped.finished if before < step <= row["steps"]]
            # At most 12 rewards of size 1 for each return: a few roundings of each.
            np.testing.assert_allclose(row["mean_return"], np.mean(finished) if finished else np.nan, atol=1e-13)
            before = row["steps"]
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
    agent = measured_toy(env, alpha=0.5)
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
    agent = measured_toy(env)
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


@pytest.mark.parametrize("n", [0, 3])
def test_an_evaluation_at_each_record_changes_nothing_of_an_episodic_run(n, tmp_path):
    for name in ("with", "without"):
        env = measured(n, **BOTH)
        agent = measured_reinforce(env)
        seen = []

        def callback(row, env=env, agent=agent, seen=seen):
            seen.append(npg.evaluate(agent, env, 3, seed=1))

        callback = callback if name == "with" else None
        npg.train(agent, env, steps=200, record_every=20, out=tmp_path / name, callback=callback)
        assert len(seen) == (len(Run(tmp_path / name).rows()) if callback else 0)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


NORMALIZED_IDS = {
    "scalar": lambda: normalized(npg.make_env("MountainCarContinuous-v0", max_episode_steps=50), **BOTH),
    "vector": lambda: normalized(npg.make_vec("CartPole-v1", 2), **BOTH),
    "observations": lambda: normalized(npg.make_vec("Pendulum-v1", 2)),
    "rewards": lambda: normalized(npg.make_env("FrozenLake-v1"), False, True, 0.5),
}


@pytest.mark.parametrize("make_env", NORMALIZED_IDS.values(), ids=NORMALIZED_IDS)
def test_a_run_directory_rebuilds_the_normalised_environment_with_its_statistics(make_env, tmp_path):
    env = make_env()
    agent = measured_reinforce(env)
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
        npg.train(measured_reinforce(env), env, steps=1, out=tmp_path / name)
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
        npg.train(measured_reinforce(env), env, steps=1, out=tmp_path / str(k))
        with pytest.raises(ValueError, match=r"wrapped environment; use npg\.evaluate"):
            Run(tmp_path / str(k)).make_env()


def test_an_agent_of_a_run_is_not_made_for_an_environment_that_is_normalised_otherwise(tmp_path):
    normal, plain = (npg.make_env("Pendulum-v1") for _ in range(2))
    normal = normalized(normal, observations=False, rewards=True)
    for name, env, other in (("normal", normal, plain), ("plain", plain, normal)):
        npg.train(npg.make_agent("reinforce", env, episodes=1), env, steps=1, out=tmp_path / name)
        with pytest.raises(ValueError, match=r"env must be normalised by statistics of shapes .*, as in training"):
            Run(tmp_path / name).make_agent(other)


@pytest.mark.parametrize("change", [{"rewards": False}, {"gamma": 0.5}, None], ids=str)
def test_resuming_with_another_normalisation_is_refused(change, tmp_path):
    make = measured_toy
    run((make, lambda: measured(**BOTH)), tmp_path, steps=40)
    env = Measured(Walk()) if change is None else measured(**BOTH | change)
    with pytest.raises(ValueError, match=r"^normalize must be .*'rewards': True, 'gamma': 0.9"):
        run((make, None), tmp_path, env=env, resume=True)


def test_a_run_that_was_not_normalised_is_not_resumed_as_one_that_is(tmp_path):
    run((measured_toy, lambda: Measured(Walk())), tmp_path, steps=40)
    with pytest.raises(ValueError, match=r"^normalize must be None to resume"):
        run((measured_toy, measured), tmp_path, resume=True)


class Exploding(Measured):
    """Its observations overflow the variance, though each of them is finite and normalised to 0."""

    def observation(self, s):
        steps = self.unwrapped.steps
        return np.array([s, 1e200 if steps == 30 else steps], dtype=np.float64)


def test_statistics_that_are_not_finite_are_never_saved(tmp_path):
    env = normalized(Exploding(Walk()))
    with pytest.raises(npg.DivergenceError, match=r"^observation\.var is no longer finite at step 40") as caught:
        npg.train(measured_toy(env), env, steps=100, record_every=20, checkpoint_every=20, out=tmp_path)
    assert len(caught.value.history) == 1
    assert all(np.isfinite(a).all() for name, a in Run(tmp_path).load().items() if name != "rng")
