"""Run directories: what they hold, who may write in them, and what of them is refused."""

import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from toy import KINDS, Walk, contents, raises_at, reinforce, toy

import npg
from npg.lab import runs
from npg.lab.runs import Run
from npg.lab.statistics import statistics

STEPS, SEED = 150, 3


def train(out, make_env=Walk, *fault, agent=toy, env=None, seed=SEED, **settings) -> npg.History:
    """A run, by default of an online method on a walk."""
    env = make_env(*fault) if env is None else env
    how = {"steps": STEPS, "record_every": 20, "checkpoint_every": 20, "seed": seed}
    return npg.train(agent(env), env, **how | settings, out=out)


def assert_same_state(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


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
    for position in range(0, len(data), 29):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x80]) + data[position + 1 :])
        agent = npg.make_agent("reinforce", env)
        try:
            history = resume(copied, agent, env)
        except ValueError:
            refused += 1
        else:
            assert_same_state(agent.state(), state)
            assert history["steps"][-1] >= 300
    assert refused > 100


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
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be used: state must hold .*\(64,\).*got .*\(3,\)"):
        copied.make_agent(copied.make_env())


def test_a_missing_checkpoint_is_named_and_its_metrics_are_not_begun_anew(finished, tmp_path):
    copied, env = copy(finished, tmp_path), npg.make_env("FrozenLake-v1")
    (copied.path / "checkpoint.npz").unlink()
    before = files(copied.path)
    for use in (copied.load, lambda: resume(copied, npg.make_agent("reinforce", env), env)):
        with pytest.raises(ValueError, match=r"has no checkpoint\.npz: the run ended before its first checkpoint"):
            use()
    assert files(copied.path) == before


@pytest.mark.parametrize("agent", [toy, reinforce])
def test_a_directory_that_was_left_before_its_first_checkpoint_is_resumed_from_the_beginning(agent, tmp_path):
    train(tmp_path / "whole", agent=agent)
    train(tmp_path / "left", agent=agent)
    for name in ("checkpoint.npz", "metrics.csv"):
        (tmp_path / "left" / name).unlink()
    train(tmp_path / "left", agent=agent, resume=True)
    assert contents(tmp_path / "left") == contents(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"agent": 1}', '{"agent": {}, "env": {}}', "\x00"])
def test_a_damaged_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged, or of another version"):
        Run(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"agent":' * 100_000], ids=["lists", "dicts"])
def test_a_config_that_is_nested_deep_is_damaged_too(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged, or of another version"):
        Run(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((place, None) for place in ("seed", "steps", "record_every", "agent", "env", "rebuildable", "machine")),
        *((f"env {name}", None) for name in ("id", "num_envs", "kwargs", "wrappers")),
        *(("env num_envs", value) for value in (-1, 1.5, "2", True)),
        *((place, 1) for place in ("agent", "env", "env id", "env kwargs", "env wrappers", "env normalize", "machine")),
        *((place, []) for place in ("agent", "env", "steps", "record_every", "checkpoint_every")),
        *((place, -1) for place in ("seed", "steps", "record_every", "checkpoint_every")),
    ],
)
def test_a_config_without_what_it_must_hold_is_damaged(place, value, finished, tmp_path):
    copied = copy(finished, tmp_path)
    *outer, name = place.split()
    part = config = copied.config
    for key in outer:
        part = part[key]
    part.pop(name, None) if value is None else part.update({name: value})
    (copied.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is damaged, or of another version"):
        Run(copied.path)


def test_a_directory_without_a_config_is_not_a_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.json"):
            Run(path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A finished run on a walk, with evaluations."""
    out = tmp_path_factory.mktemp("runs") / "evaluated"
    train(out, steps=60, eval_every=30)
    return out


@pytest.mark.parametrize("table", ["metrics", "evaluations"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b'"' + data,
        lambda data: data.replace(b"steps,", b'"steps,'),
        lambda data: data.replace(b"steps,", b"step,"),
        lambda data: data.replace(b"\n", b"\nx", 2),
        lambda data: b"\xff" + data,
        lambda data: data.replace(b"\n", b"\x00\n", 2),
        lambda data: data.replace(b"\n", b",9\n", 2),
    ],
    ids=["begins with a quote", "quote", "another column", "no number", "no text", "zeros", "a longer row"],
)
def test_a_table_that_is_damaged_is_named(damage, table, evaluated, tmp_path):
    out = copy(evaluated, tmp_path).path
    path = out / f"{table}.csv"
    path.write_bytes(damage(path.read_bytes()))
    for use in (lambda: Run(out).rows(table), lambda: train(out, steps=60, eval_every=30, resume=True)):
        with pytest.raises(ValueError, match=rf"{table}\.csv"):
            use()


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
    machine = {name: os.environ.get(name) for name in runs.THREADS}
    assert config["machine"] == {"cores": os.cpu_count()} | machine
    versions = {"npg": npg.__version__, "numpy": np.__version__, "gymnasium": gymnasium.__version__}
    assert versions.items() <= config["versions"].items()


def test_a_run_on_an_unregistered_environment_is_not_rebuilt(tmp_path):
    train(tmp_path, steps=20)
    with pytest.raises(ValueError, match=r"environment.*use npg\.evaluate"):
        Run(tmp_path).make_env()


def test_a_run_on_a_wrapped_environment_is_not_rebuilt_without_its_wrapper(tmp_path):
    env = gymnasium.wrappers.TransformReward(npg.make_env("FrozenLake-v1"), lambda r: -r)
    npg.train(npg.make_agent("reinforce", env), env, steps=20, out=tmp_path)
    with pytest.raises(ValueError, match=r"use npg\.evaluate"):
        Run(tmp_path).make_env()


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


# Each array of a checkpoint


def with_dtype(dtype):
    return lambda array: array.astype(dtype) if array.dtype != dtype else None


def in_place(change):
    """Another array of the same shape and dtype."""
    return lambda array: np.asarray(change(array), array.dtype).reshape(array.shape)


DAMAGES = {
    "missing": None,
    "complex": with_dtype(complex),
    "of another precision": lambda array: array.astype(np.float64 if array.dtype == np.float32 else np.float32),
    "bool": with_dtype(bool),
    "object": with_dtype(object),
    "shape": lambda array: array[None],
    "empty": lambda array: array.reshape(-1)[:0],
    "NaN": lambda array: np.full(array.shape, np.nan),
}
"""What no array of a checkpoint may be; None where it would be none."""
COUNTS = {
    "negative": in_place(lambda array: -1 - array),
    "far below": in_place(lambda array: array - 10**15),
    "far beyond": in_place(lambda array: array + 10**15),
    "fractional": lambda array: array + 0.5,
}
NO_GENERATORS = {
    "empty": lambda array: np.frombuffer(b"{}".ljust(400), np.uint8),
    "zeros": np.zeros_like,
    "of another kind": lambda array: np.frombuffer(array.tobytes().replace(b"PCG64", b"MT199"), np.uint8),
    "negative": lambda array: np.frombuffer(array.tobytes().replace(b": ", b":-"), np.uint8),
}


def damages_of(name: str, array: np.ndarray) -> dict:
    """By name: the arrays that must be refused in the place of one."""
    found = dict(DAMAGES)
    if name.startswith("count."):
        found |= COUNTS
    elif "rng" in name or name.endswith("np_random"):
        found |= NO_GENERATORS
    elif array.dtype.kind == "i" and array.size:
        found["negative"] = COUNTS["negative"]
    elif name in ("window", "collector.finished") and array.size:
        found |= {"fractional": COUNTS["fractional"], "negative": COUNTS["negative"]}
    elif name.startswith("env.") and name.endswith((".var", ".count")):
        found["negative"] = COUNTS["negative"]
    made = {damage: change and change(array) for damage, change in found.items()}
    return {
        damage: other
        for damage, other in made.items()
        if damage == "missing" or (other is not None and not same(other, array))
    }


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def save(out: Path, arrays: dict) -> None:
    with open(out / "checkpoint.npz", "wb") as file:
        np.savez(file, **arrays)


def refusal(use) -> str:
    """What the ``ValueError`` says, if there is one."""
    try:
        use()
    except ValueError as error:
        return str(error)
    return ""


def assert_refused(out: Path, name: str, array: np.ndarray, use) -> None:
    """With each damage of one array ``use`` raises, and leaves all files as they are."""
    data, arrays = (out / "checkpoint.npz").read_bytes(), Run(out).load()
    for damage, other in damages_of(name, array).items():
        save(out, {key: a for key, a in (arrays | {name: other}).items() if a is not None})
        before = files(out)
        assert "checkpoint.npz" in refusal(use), f"{name}, {damage}: {other!r} was taken for {array!r}"
        assert files(out) == before, f"{name}, {damage}"
    (out / "checkpoint.npz").write_bytes(data)


@pytest.mark.parametrize(
    ("agent", "kind"),
    [(toy, "vector, normalised"), (toy, "native"), (reinforce, "scalar")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_run_goes_on_from_no_checkpoint_of_which_an_array_is_damaged(agent, kind, tmp_path, fast_disk):
    out, make_env = tmp_path / "run", KINDS[kind]
    train(out, make_env, agent=agent)
    with pytest.raises(RuntimeError, match="stop"):
        train(tmp_path / "stopped", make_env, raises_at(50, RuntimeError("stop")), agent=agent)
    out = tmp_path / "stopped"
    env = make_env()
    for name, array in Run(out).load().items():
        assert_refused(out, name, array, lambda: train(out, env=env, agent=agent, resume=True))
    train(out, make_env, agent=agent, resume=True)
    assert contents(out) == contents(tmp_path / "run")


@pytest.mark.parametrize("normalize", [False, True])
def test_no_agent_is_made_of_a_checkpoint_of_which_an_array_is_damaged(normalize, tmp_path):
    env = npg.make_vec("CartPole-v1", 2)
    env = npg.envs.normalized(env, rewards=True) if normalize else env
    npg.train(npg.make_agent("ppo_clip", env, n_steps=8, scale=1.0), env, steps=64, out=tmp_path)
    run, arrays = Run(tmp_path), Run(tmp_path).load()
    names = [name for name in arrays if name.startswith(("agent.", "env."))]
    assert len(names) == 8 + len(statistics(env))
    for name in names:
        assert_refused(tmp_path, name, arrays[name], lambda: run.make_agent(run.make_env()))
    run.make_agent(run.make_env())


# Who may write


def test_a_directory_in_which_a_run_is_trained_is_refused_with_the_process(tmp_path):
    train(tmp_path / "whole")
    out, tried = tmp_path / "run", []

    def callback(row):
        with pytest.raises(ValueError, match=f"^run directory {out} is being trained in by process {os.getpid()}$"):
            train(out, resume=True)
        with pytest.raises(ValueError, match="already exists"):
            train(out)
        tried.append(row)

    train(out, callback=callback)
    assert len(tried) == 8
    assert contents(out) == contents(tmp_path / "whole")
    train(out, steps=2 * STEPS, resume=True)


@pytest.mark.process
def test_a_lock_is_that_of_a_process_and_ends_with_it_however_it_ends(tmp_path):
    train(tmp_path / "whole")
    out = tmp_path / "run"
    code = f"""
import time
import npg
from toy import Walk, toy
env = Walk()
how = dict(steps={STEPS}, record_every=20, checkpoint_every=20, seed={SEED})
npg.train(toy(env), env, **how, out={str(out)!r}, callback=lambda row: row["steps"] == 60 and time.sleep(600))
"""
    path = os.pathsep.join([str(Path(npg.__file__).parents[1]), str(Path(__file__).parents[1])])
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}) as process:
        try:
            while process.poll() is None and not (out / "metrics.csv").exists():
                time.sleep(0.01)
            before = Run(out).config
            with pytest.raises(ValueError, match=f"is being trained in by process {process.pid}$"):
                train(out, steps=10 * STEPS, resume=True)
            assert Run(out).config == before
        finally:
            process.kill()  # which it cannot handle
    train(out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_where_there_are_no_locks_a_warning_says_so_once(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for resume in (False, True):
        with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\): train in it only") as warned:
            train(tmp_path / "run", steps=100 + 50 * resume, resume=resume)
        assert len(warned) == 1
    monkeypatch.undo()
    train(tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_of_two_who_begin_at_once_in_one_directory_one_is_refused(tmp_path, monkeypatch):
    mkdir, quicker = Path.mkdir, []

    def late(self, **kwargs):
        mkdir(self, **kwargs)
        if not quicker:
            quicker.append(self)
            train(self, seed=1)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(ValueError, match="already exists"):
        train(tmp_path / "run")
    assert Run(tmp_path / "run").config["seed"] == 1
    monkeypatch.undo()
    train(tmp_path / "other", seed=1)
    assert contents(tmp_path / "run") == contents(tmp_path / "other")


# The machine


@pytest.mark.parametrize(
    ("there", "here", "cores", "warns"),
    [
        ({}, {}, 0, False),
        ({}, {}, 1, True),
        ({}, {"OMP_NUM_THREADS": "2"}, 0, True),
        ({"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "2"}, 0, True),
        (dict.fromkeys(runs.THREADS, "1"), dict.fromkeys(runs.THREADS, "1"), 1, False),
        (dict.fromkeys(runs.THREADS, "1"), {}, 0, True),
    ],
)
def test_a_run_that_goes_on_with_other_threads_says_so(there, here, cores, warns, tmp_path, monkeypatch):
    def have(variables, cores):
        for name in runs.THREADS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "cpu_count", lambda: 4 + cores)

    have(there, 0)
    train(tmp_path, steps=40)
    assert Run(tmp_path).config["machine"] == {"cores": 4} | dict.fromkeys(runs.THREADS) | there
    have(here, cores)
    if warns:
        with pytest.warns(UserWarning, match=r"^the run began with .*'cores': 4.* and goes on with .*: it may end"):
            train(tmp_path, steps=40, resume=True)
    else:
        train(tmp_path, steps=40, resume=True)


def test_a_link_that_is_called_lock_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    train(tmp_path / "run")
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        train(tmp_path / "run", resume=True, steps=2 * STEPS)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "checkpoint.npz", "evaluations.csv"])
@pytest.mark.parametrize("ending", ["", ".tmp"])
def test_links_in_place_of_files_are_replaced_and_not_written_through(name, ending, tmp_path):
    out, precious = tmp_path / "run", tmp_path / "precious"
    train(out, eval_every=50)
    whole = files(out)
    link = out / (name + ending)
    precious.write_bytes(whole[name] if not ending else b"mine")
    before = precious.read_bytes()
    link.unlink(missing_ok=True)
    link.symlink_to(precious)
    train(out, resume=True, steps=2 * STEPS)
    assert precious.read_bytes() == before
    assert not any(path.is_symlink() for path in out.iterdir())
    assert len(Run(out).rows("evaluations")) == 2 * len(whole["evaluations.csv"].splitlines()[1:])


def test_a_resumed_run_evaluates_as_it_began(tmp_path):
    whole = train(tmp_path / "whole", steps=2 * STEPS, eval_every=60, deterministic=False)
    train(tmp_path / "run", eval_every=60, deterministic=False)
    with pytest.raises(ValueError, match="deterministic must be False, as the evaluations began, got True"):
        train(tmp_path / "run", resume=True, deterministic=True)
    resumed = train(tmp_path / "run", resume=True, steps=2 * STEPS)
    at_its_end = [row for row in resumed.evaluations if row["steps"] == STEPS]
    assert [row for row in resumed.evaluations if row not in at_its_end] == whole.evaluations
    assert len(at_its_end) == 1


@pytest.mark.parametrize("name", ["machine", "agent", "env"])
def test_a_table_of_the_config_that_is_a_list_is_refused(name, finished, tmp_path):
    run = copy(finished, tmp_path)
    (run.path / "config.json").write_text(json.dumps(run.config | {name: []}))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        Run(run.path)
