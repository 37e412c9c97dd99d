"""The command line as a user meets it: what it prints, where, and its exit status."""

import fcntl
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import stats
from toy import Toy, Walk, contents, signals_at

import npg
from npg import __main__ as console
from npg._threads import THREADS
from npg.algorithms import ALGORITHMS, Agent
from npg.algorithms.base import DeterministicAgent
from npg.envs.spaces import normalizers
from npg.lab import cli, equations
from npg.lab.collect import Collector
from npg.lab.presets import PRESETS, Preset
from npg.lab.runs import Run
from npg.problems import short_corridor

SUMMARY = re.compile(r"mean return -?\d+\.\d\d \(std \d+\.\d\d, (\d+) episodes\)")
QUICK = ["--steps", "60", "--set", "episodes=1"]


LINE = r"step \d+ of \d+, (mean -?\d+\.\d of \d+ episodes), \d+\.\d s\n"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in THREADS:  # as the console entry does
        monkeypatch.setenv(name, "1")


@pytest.fixture
def npg_(capsys):
    """Run a command in this process: (exit status, stdout, stderr)."""

    def run(*argv) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(arg) for arg in argv])
        except SystemExit as error:  # argparse
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def register(monkeypatch):
    """Register an environment with Gymnasium for one test."""
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())
    return lambda env_id, entry_point, **kwargs: gymnasium.register(env_id, entry_point=entry_point, **kwargs)


def start(*argv, env=os.environ, **kwargs) -> subprocess.Popen:
    """A command in a process of its own, on the package that is tested here."""
    path = os.pathsep.join([str(Path(npg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "npg", *map(str, argv)], env={**env, "PYTHONPATH": path}, **streams | kwargs
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def config(run) -> dict:
    return json.loads((Path(run) / "config.json").read_text())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1", "MountainCar-v0"])
def test_train_ends_with_the_mean_return_and_says_return_nowhere_else(env_id, npg_):
    status, out, err = npg_("train", "reinforce", env_id, *QUICK)
    assert status == 0
    directory, summary = out.splitlines()
    assert directory == f"run runs/reinforce-{env_id}-seed0"
    assert SUMMARY.fullmatch(summary)[1] == "100"
    assert (out + err).lower().count("return") == 1
    assert re.fullmatch(f"({LINE})+", err)
    Run(directory.removeprefix("run ")).load()


def test_evaluate_prints_what_python_gives_and_sample_takes_sampled_actions(npg_):
    npg_("train", "reinforce", "CartPole-v1", "--steps", 3000, "--out", "run")
    run = Run("run")
    env = run.make_env()
    agent = run.make_agent(env)
    printed = {}
    for option in ([], ["--sample"]):
        status, out, err = npg_("evaluate", "run", "--episodes", 20, "--seed", 5, *option)
        returns = npg.evaluate(agent, env, 20, seed=5, deterministic=not option)
        assert (status, err) == (0, "")
        assert out == f"mean return {returns.mean():.2f} (std {returns.std():.2f}, 20 episodes)\n"
        printed[bool(option)] = out
    assert printed[True] != printed[False]


def test_evaluate_plays_a_hundred_episodes_and_train_shows_the_same_at_its_end_sampled_or_not(npg_):
    shown = {}
    for option in ([], ["--sample"]):
        out = f"run{len(option)}"
        _, trained, _ = npg_("train", "reinforce", "CartPole-v1", "--seed", 7, *QUICK, "--out", out, *option)
        _, evaluated, _ = npg_("evaluate", out, "--seed", 7, *option)
        _, resumed, _ = npg_("train", "--resume", out, *option)
        assert SUMMARY.fullmatch(evaluated.strip())[1] == "100"
        assert trained.splitlines()[-1] == resumed.splitlines()[-1] == evaluated.strip()
        shown[out] = evaluated
    assert shown["run0"] != shown["run1"]
    assert contents(Path("run0")) == contents(Path("run1"))


def test_options_reach_the_run(npg_):
    settings = {
        "gamma=0.5": ("gamma", 0.5),
        "baseline=none": ("baseline", "none"),
        "normalize=scale": ("normalize", "scale"),
        "outer_discount=False": ("outer_discount", False),
        'features={"kind": "fourier", "order": 1}': ("features", {"kind": "fourier", "order": 1, "scale": None}),
        "alpha=1e-3": ("alpha", 1e-3),
    }
    sets = [word for setting in settings for word in ("--set", setting)]
    options = ["--seed", 3, "--num-envs", 2, "--out", "a/b"]
    status, out, _ = npg_("train", "reinforce", "MountainCar-v0", *QUICK, *options, *sets)
    assert (status, out.splitlines()[0]) == (0, "run a/b")
    made = config("a/b")
    assert (made["seed"], made["steps"], made["env"]["num_envs"]) == (3, 60, 2)
    for name, value in settings.values():
        assert made["agent"][name] == value


def test_a_preset_applies_unless_told_otherwise(npg_):
    npg_("train", "reinforce", "CartPole-v1", "--steps", 60, "--out", "preset")
    npg_("train", "reinforce", "CartPole-v1", "--steps", 60, "--num-envs", 0, "--set", "alpha=0.1", "--out", "own")
    assert config("preset")["env"]["num_envs"] == 16
    assert config("own")["env"]["num_envs"] == 0
    assert config("own")["agent"] == config("preset")["agent"] | {"alpha": 0.1}


def test_a_method_that_npg_does_not_know_trains_resumes_and_evaluates_like_any_other(npg_, register, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "toy", Toy)
    register("ns/Walk-v0", Walk)
    options = ["--num-envs", 3, "--set", "n=5"]
    for out in ("whole", "other"):
        assert npg_("train", "toy", "ns/Walk-v0", *options, "--steps", 900, "--out", out)[0] == 0
    assert contents(Path("whole")) == contents(Path("other"))
    assert npg_("evaluate", "whole")[0] == 0
    assert npg_("train", "--resume", "whole", "--steps", 1200)[0] == 0
    assert contents(Path("whole")) != contents(Path("other"))
    assert npg_("train", "toy", "ns/Walk-v0", *QUICK[:2])[1].startswith("run runs/toy-ns_Walk-v0-seed0\n")


def test_runs_without_a_name_never_meet(npg_):
    names = [npg_("train", "reinforce", "FrozenLake-v1", *QUICK)[1].splitlines()[0] for _ in range(3)]
    assert len(set(names)) == 3
    assert npg_("train", "reinforce", "FrozenLake-v1", "--seed", 1, *QUICK)[1].splitlines()[0] not in names


def test_two_runs_started_at_once_do_not_meet(npg_, monkeypatch):
    train, names = cli.train, []

    def slow_train(*args, **kwargs):
        monkeypatch.setattr(cli, "train", train)
        assert cli.main(["train", "reinforce", "FrozenLake-v1", *QUICK]) == 0  # another one, a little later, but faster
        return train(*args, **kwargs)

    monkeypatch.setattr(cli, "train", slow_train)
    status, out, err = npg_("train", "reinforce", "FrozenLake-v1", *QUICK)
    assert (status, err.count("error")) == (0, 0)
    names = [line for line in out.splitlines() if line.startswith("run ")]
    assert len(set(names)) == 2


@pytest.mark.process
def test_python_m_npg_is_the_command(npg_):
    process = start("list")
    assert (*process.communicate(), process.returncode) == (npg_("list")[1], "", 0)


def test_list_names_every_method_every_preset_and_every_environment_of_npg(npg_):
    status, out, err = npg_("list")
    assert (status, err) == (0, "")
    for name in ALGORITHMS:
        assert re.search(f"^{name}: ", out, re.MULTILINE)
    assert "preset CartPole-v1: 16 environments" in out
    (environments,) = re.findall("^environments: any Gymnasium id .* our own are (.*)$", out, re.MULTILINE)
    own = ["ShortCorridor", "RandomWalk", "TwoState", "FourRooms", "Garnet", "LQR"]
    own += ["Baird", "Collision", "Imani", "ContinuousImani", "MountainCar", "MountainCarContinuous"]
    classic = [f"npg/{name}-v1" for name in ("CartPole", "Acrobot", "Pendulum")]
    assert sorted(environments.split(", ")) == sorted([f"npg/{name}-v0" for name in own] + classic)


def test_every_command_has_help(npg_):
    for command in ("train", "compare", "evaluate", "plot", "check"):
        status, out, _ = npg_(command, "--help")
        assert status == 0
        assert "usage: npg" in out


def test_check_passes_and_fails_with_the_gradients(npg_, monkeypatch):
    status, out, err = npg_("check", "--instances", 2)
    assert (status, err) == (0, "")
    header, *rows, last = out.splitlines()
    assert [word in header for word in ("quantity", "equation", "instances", "error", "verdict")] == [True] * 5
    assert all(row.endswith("  ok") for row in rows)
    assert last == f"{len(rows)} passed, 0 failed"

    grad = npg.distributions.Categorical.entropy_grad
    monkeypatch.setattr(npg.distributions.Categorical, "entropy_grad", lambda *args: grad(*args) * 1.001)
    status, out, _ = npg_("check", "--instances", 2)
    assert status == 1
    failed = [row.split()[0] for row in out.splitlines() if row.endswith("FAILED")]
    assert "Categorical.entropy_grad" in failed
    assert out.splitlines()[-1] == f"{len(rows) - len(failed)} passed, {len(failed)} failed"


@pytest.mark.parametrize("argument", ["instances 0", "seed -1"])
def test_a_bad_argument_of_check_is_named(argument, npg_):
    name, value = argument.split()
    status, _, err = npg_("check", f"--{name}", value)
    assert status == 1
    assert re.fullmatch(rf"npg: error: {name} must be .*at least \d, got {value}\n", err)


def test_equations_prints_where_each_is_computed_and_the_test_that_defines_it(npg_):
    status, out, err = npg_("equations")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2 * sum(len(equations.tags(chapter)) for chapter in equations.chapters())
    k = next(i for i, line in enumerate(lines) if line.startswith("(2.3) "))
    assert re.fullmatch(r"\(2\.3\) +npg/distributions\.py:\d+  npg\.distributions\.Categorical\.score", lines[k])
    assert re.fullmatch(r" +tests/test_distributions\.py:\d+  test_\w+", lines[k + 1])
    assert len(npg_("equations", "--all")[1].splitlines()) > len(lines)
    assert npg_("equations", "--write") == (0, "", "")  # they are as they should be


def test_plot_writes_a_picture_and_says_where(npg_):
    npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "run")
    for options, path in (
        ([], "run/learning_curve.png"),
        (["--out", "mine.png"], "mine.png"),
        (["--out", "pic"], "pic.png"),
        (["--out", "run/pic.svg"], "run/pic.svg"),
    ):
        status, out, err = npg_("plot", "run", *options)
        assert (status, out, err) == (0, f"{path}\n", "")
        assert Path(path).read_bytes().startswith(b"\x89PNG" if path.endswith("png") else b"<?xml")


def on_a_terminal(*argv) -> tuple[str, str]:
    """stdout and stderr of a command whose stderr is a terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(*argv, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out, shown.decode()


def test_a_terminal_shows_a_live_bar_and_stdout_only_the_result():
    out, shown = on_a_terminal("train", "reinforce", "FrozenLake-v1", "--steps", 300)
    assert re.search(r"\rmean 0\.\d of \d+ episodes 100%\|█+\| 300/300 \[", shown)
    assert shown.count("\r") > 1
    assert out.splitlines()[0] == "run runs/reinforce-FrozenLake-v1-seed0"
    assert (out + shown).count("return") == 1


def test_without_tqdm_a_terminal_shows_plain_lines(npg_, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = npg_("train", "reinforce", "FrozenLake-v1", *QUICK)
    assert re.fullmatch(f"({LINE})+", err)


def test_progress_of_a_resumed_run_goes_on_where_it_was(npg_, monkeypatch):
    npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "run")
    done = int(Run("run").load()["count.steps"])
    _, _, err = npg_("train", "--resume", "run", "--steps", 600)
    assert int(err.split()[1]) > done
    assert npg_("train", "--resume", "run")[2].split(",")[:2] == err.splitlines()[-1].split(",")[:2]


def assert_refused(result: tuple[int, str, str], *says: str) -> None:
    """One line on stderr that says it all, nothing on stdout."""
    status, out, err = result
    assert status == 1
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("npg: error: ")
    for words in says:
        assert words in err
    assert not list(Path("runs").glob("*"))


BAD_SETTINGS = {
    "gama=1": ["no setting 'gama'", "gamma"],
    "gamma": ["--set must be NAME=VALUE", "'gamma'"],
    "=1": ["--set must be NAME=VALUE"],
    "gamma=1.5": ["gamma must be a number in [0, 1], got 1.5"],
    "gamma=-0.1": ["gamma must be a number in [0, 1], got -0.1"],
    "gamma=NaN": ["gamma must be a number in [0, 1], got nan"],
    "gamma=high": ["gamma must be a number in [0, 1], got 'high'"],
    "gamma=true": ["gamma must be a number in [0, 1], got True"],
    "gamma=": ["gamma must be a number in [0, 1], got ''"],
    "alpha=Infinity": ["alpha must be"],
    "alpha=-1": ["alpha must be", "got -1"],
    "episodes=0": ["episodes must be an integer of at least 1, got 0"],
    "episodes=1.5": ["episodes must be", "got 1.5"],
    "baseline=best": ["baseline must be one of linear, leave_one_out, optimal, none, got 'best'"],
    "alpha_w=-1": ["alpha_w must be a number of at least 1e-12, or None, got -1"],
    "normalize=1": ["normalize must be", "got 1"],
    "policy=1": ["no setting 'policy'"],
    "scale=null": ["infinite bounds", "give scale"],
    "scale=big": ["scale must be", "got 'big'"],
    "scale=-1": ["scale must be", "got -1"],
    "scale=[1, 2]": ["scale must be", "4", "got [1, 2]"],
    "scale=Infinity": ["scale must be", "got inf"],
    'scale={"a": 1}': ["scale must be", "got {'a': 1}"],
    "features=fourrier": ["features must be one of onehot", "fourier", "got 'fourrier'"],
    "features=5": ["features must be one of", "got 5"],
    "features=[1]": ["features must be one of", "got [1]"],
    "features=onehot": ["OneHot needs a Discrete observation space"],
    "baseline_features=nothing": ["features must be one of", "got 'nothing'"],
    'features={"kind": "fourier", "ordre": 1}': ["fourier features take", "order", "got 'ordre'"],
    'features={"kind": "fourier", "order": -1}': ["order must be an integer of at least 0, got -1"],
    'features={"kind": "fourier", "order": "x"}': ["order must be", "got 'x'"],
    'features={"kind": "fourier", "order": 1000}': ["more than 100000", "lower its order"],
    'features={"kind": "rbf", "width": "x"}': ["width must be", "got 'x'"],
    'features={"kind": "random_fourier", "length_scale": "x"}': ["length_scale must be", "got 'x'"],
    'features={"kind": "random_fourier", "seed": -1}': ["seed must be", "got -1"],
    'features={"kind": "polynomial", "degree": 10000000000}': ["more than 100000: lower its order"],
    f"episodes={10**30}": ["an update on 1,000,", "rows", "does not fit in", "of memory: collect less"],
}


@pytest.mark.parametrize(("setting", "says"), BAD_SETTINGS.items(), ids=BAD_SETTINGS)
def test_a_bad_setting_is_named_with_what_it_may_be(setting, says, npg_):
    assert_refused(npg_("train", "reinforce", "CartPole-v1", "--steps", 60, "--set", setting), *says)


@pytest.mark.parametrize("option", ["--set", "--env-set"])
@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "dicts"])
def test_a_setting_that_is_nested_deep_is_refused(option, value, npg_):
    result = npg_("train", "reinforce", "CartPole-v1", option, f"features={value}")
    assert_refused(result, f"{option} features must be JSON or a word, got JSON that is nested too deeply")


BAD_ARGUMENTS = {
    "train": ["ALGORITHM", "ENV", "--resume"],
    "train reinforce": ["ALGORITHM", "ENV"],
    "train reinforc CartPole-v1": ["algorithm must be one of reinforce", "got 'reinforc'"],
    "train reinforce CartPool-v1": ["environment 'CartPool-v1'", "CartPole`"],
    "train reinforce CartPole-v99": ["environment 'CartPole-v99'", "v1"],
    "train reinforce CartPole": ["environment 'CartPole'"],
    "train reinforce nowhere:Env-v0": ["module 'nowhere' cannot be imported: ModuleNotFoundError"],
    "train reinforce no-module:Env-v0": ["environment 'no-module:Env-v0' must be an id"],
    "train reinforce Blackjack-v1": ["observation space must be Box or Discrete, got Tuple"],
    "train reinforce CartPole-v1 --steps 0": ["steps must be an integer of at least 1, got 0"],
    "train reinforce CartPole-v1 --steps -5": ["steps must be an integer of at least 1, got -5"],
    "train reinforce CartPole-v1 --seed -1": ["seed must be an integer of at least 0, got -1"],
    "train reinforce CartPole-v1 --num-envs -1": ["--num-envs must be an integer of at least 0", "got -1"],
    "train reinforce CartPole-v1 --num-envs 1000000000": ["--num-envs must be", "at most 100,000, got 1000000000"],
    "train reinforce CartPole-v1 --eval-every 0": ["eval_every must be an integer of at least 1, got 0"],
    "train reinforce Pendulum-v1 --env-set limit=3": ["environment 'Pendulum-v1' cannot be made", "'limit'"],
    "train reinforce FrozenLake-v1 --env-set slippery=false": ["cannot be made", "'slippery'"],
    "train reinforce FrozenLake-v1 --env-set max_episode_steps=0": ["max_episode_steps must be", "got 0"],
    "train reinforce FrozenLake-v1 --env-set max_episode_steps=ten": ["max_episode_steps must be", "got 'ten'"],
    "train reinforce FrozenLake-v1 --env-set is_slippery": ["--env-set must be NAME=VALUE, got 'is_slippery'"],
    "train reinforce FrozenLake-v1 --env-set num_envs=2": ["--env-set must be settings of one environment"],
    "train reinforce FrozenLake-v1 --env-set vectorization_mode=async": ["--env-set must be settings of one"],
    "train --resume missing": ["missing is not a run directory"],
    "evaluate missing": ["missing is not a run directory"],
    "plot missing": ["missing is not a run directory"],
}


@pytest.mark.parametrize(("command", "says"), BAD_ARGUMENTS.items(), ids=BAD_ARGUMENTS)
def test_a_bad_argument_is_named_with_what_it_may_be(command, says, npg_):
    assert_refused(npg_(*command.split()), *says)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "COMMAND"),
        ("fly", "fly"),
        ("train reinforce CartPole-v1 --steps many", "argument --steps: invalid int value: 'many'"),
        ("train reinforce CartPole-v1 --speed 3", "--speed"),
        ("evaluate", "DIR"),
        ("plot", "DIR"),
    ],
)
def test_a_command_that_cannot_be_parsed_shows_its_usage(command, says, npg_):
    status, out, err = npg_(*command.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: npg")
    assert says in err.splitlines()[-1]


class Unsupported(Walk):
    def __init__(self, observation_space=Walk.observation_space, action_space=Walk.action_space) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space


WIDE = gymnasium.spaces.Box(-np.inf, np.arange(99, dtype=np.float32))


@pytest.mark.parametrize(
    ("spaces", "says"),
    [
        ({"observation_space": WIDE}, "give scale"),
        ({"observation_space": gymnasium.spaces.Dict(a=WIDE)}, "observation space must be Box or Discrete"),
        ({"observation_space": gymnasium.spaces.MultiBinary(3)}, "observation space must be Box or Discrete"),
        ({"action_space": gymnasium.spaces.MultiDiscrete([2, 3])}, "action space must be Box or Discrete, got Multi"),
        ({"action_space": gymnasium.spaces.Tuple([WIDE])}, "action space must be Box or Discrete"),
    ],
    ids=["unbounded", "Dict", "MultiBinary", "MultiDiscrete action", "Tuple action"],
)
def test_an_unsupported_space_is_named_on_one_line(spaces, says, npg_, register):
    register("Unsupported-v0", Unsupported, kwargs=spaces)
    assert_refused(npg_("train", "reinforce", "Unsupported-v0"), says)


def test_an_environment_with_missing_dependencies_says_what_to_install(npg_, register):
    def entry_point():
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed, run `pip install gymnasium[box2d]`")

    register("Lander-v0", entry_point)
    assert_refused(npg_("train", "reinforce", "Lander-v0"), "pip install gymnasium[box2d]")


def test_a_reward_that_is_not_finite_stops_the_run_on_one_line(npg_, register):
    register("Broken-v0", lambda: Walk(lambda step, reward: np.nan if step == 100 else reward))
    status, out, err = npg_("train", "reinforce", "Broken-v0", "--steps", 300, "--set", "episodes=2", "--out", "run")
    assert (status, out) == (1, "")
    (error,) = [line for line in err.splitlines() if not line.startswith("step ")]
    assert error.startswith("npg: error: the environment returned a reward that is not finite: nan; the checkpoint of")


@pytest.mark.parametrize("settings", [["alpha=1e3"], ["alpha=1e308", "optimizer=ascent"], ["alpha_w=1e3"]], ids=str)
def test_divergence_is_one_line_with_the_step_and_advice(settings, npg_):
    sets = [word for setting in settings for word in ("--set", setting)]
    status, out, err = npg_("train", "reinforce", "Pendulum-v1", "--steps", 20000, "--out", "run", *sets)
    assert (status, out) == (1, "")
    (error,) = [line for line in err.splitlines() if not line.startswith("step ")]
    assert re.match(
        r"npg: error: .*finite.* at step \d+.*; lower the step size.*; the checkpoint of step \d+ is", error
    )
    Run("run").load()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on FrozenLake."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    env = npg.make_env("FrozenLake-v1")
    with pytest.MonkeyPatch.context() as patch:
        for name in THREADS:
            patch.setenv(name, "1")
        npg.train(npg.make_agent("reinforce", env, episodes=2), env, steps=200, out=out)
    return out


def edit(old: bytes, new: bytes):
    return lambda data: data.replace(old, new)


def with_theta(change):
    """A checkpoint of another θ."""

    def damage(data):
        arrays = dict(np.load(io.BytesIO(data)))
        changed = io.BytesIO()
        np.savez(changed, **arrays | {"agent.theta": change(arrays["agent.theta"])})
        return changed.getvalue()

    return damage


DAMAGES = {
    "no config": ("config.json", lambda data: None, ["is not a run directory"]),
    "empty config": ("config.json", lambda data: b"", ["config.json"]),
    "half a config": ("config.json", lambda data: data[:200], ["config.json"]),
    "a config of nothing": ("config.json", lambda data: b"{}", ["config.json"]),
    "a config that is a list": ("config.json", lambda data: b"[]", ["config.json"]),
    "unknown algorithm": ("config.json", edit(b"reinforce", b"dreaming"), ["algorithm must be one of", "'dreaming'"]),
    "unknown setting": ("config.json", edit(b"gamma", b"gemma"), ["no setting 'gemma'"]),
    "unknown environment": ("config.json", edit(b"FrozenLake", b"WarmLake"), ["environment 'WarmLake-v1'"]),
    "no checkpoint": ("checkpoint.npz", lambda data: None, ["checkpoint.npz", "before its first checkpoint"]),
    "empty checkpoint": ("checkpoint.npz", lambda data: b"", ["checkpoint.npz is damaged"]),
    "half a checkpoint": ("checkpoint.npz", lambda data: data[: len(data) // 2], ["checkpoint.npz is damaged"]),
    "text for a checkpoint": ("checkpoint.npz", lambda data: b"hello", ["checkpoint.npz is damaged"]),
    "θ of NaN": (
        "checkpoint.npz",
        with_theta(lambda theta: theta * np.nan),
        ["checkpoint.npz is damaged: agent.theta"],
    ),
    "complex θ": ("checkpoint.npz", with_theta(lambda theta: theta * 1j), ["checkpoint.npz is damaged: agent.theta"]),
    "short θ": ("checkpoint.npz", with_theta(lambda theta: theta[1:]), ["checkpoint.npz cannot be used", "(63,)"]),
    "no num_envs": ("config.json", edit(b'"num_envs"', b'"n"'), ["config.json is damaged", "num_envs"]),
    "a config nested deep": ("config.json", lambda data: b"[" * 100_000, ["config.json is damaged"]),
}


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"]], ids=["resume", "evaluate"])
@pytest.mark.parametrize(("name", "damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_refused_on_one_line(name, damage, says, command, finished, npg_):
    Path("run").mkdir()
    for path in finished.iterdir():
        data = path.read_bytes() if path.name != name else damage(path.read_bytes())
        if data is not None:
            (Path("run") / path.name).write_bytes(data)
    assert_refused(npg_(*command, "run"), *says)


@pytest.mark.parametrize("steps", [b"step,", b'"steps,'])
def test_metrics_without_their_columns_are_refused(steps, finished, npg_):
    shutil.copytree(finished, "run")
    path = Path("run/metrics.csv")
    path.write_bytes(path.read_bytes().replace(b"steps,", steps))
    assert_refused(npg_("plot", "run"), "metrics.csv is damaged")
    assert_refused(npg_("train", "--resume", "run"), "metrics.csv is damaged")


def test_a_run_directory_that_exists_is_left_alone(finished, npg_):
    before = contents(finished)
    result = npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", finished)
    assert_refused(result, f"run directory {finished} already exists; choose another or resume it")
    assert contents(finished) == before


def test_a_directory_that_cannot_be_written_is_named(npg_):
    Path("file").write_text("")
    assert_refused(npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "file/run"), "file/run")


@pytest.mark.parametrize(
    "options",
    [
        *(["--seed", 1], ["--seed", 0], ["--set", "gamma=1"], ["--out", "other"], ["--num-envs", 2], ["--num-envs", 0]),
        *(["--normalize-observations"], ["--normalize-rewards"], ["--env-set", "is_slippery=false"]),
    ],
    ids=str,
)
def test_a_resumed_run_takes_nothing_but_steps(options, finished, npg_):
    assert_refused(npg_("train", "--resume", finished, *options), "--resume", options[0])
    assert_refused(npg_("train", "reinforce", "FrozenLake-v1", "--resume", finished), "--resume", "ALGORITHM")


@pytest.mark.parametrize("options", [["--episodes", 0], ["--episodes", 10**30], ["--seed", -1]], ids=str)
def test_a_bad_number_of_an_evaluation_is_named(options, finished, npg_):
    assert_refused(npg_("evaluate", finished, *options), options[0].strip("-"), f"got {options[1]}")


def test_a_plot_that_cannot_be_drawn_says_why(finished, npg_, monkeypatch):
    assert_refused(npg_("plot", finished, "--out", "picture.txt"), "txt", "png")
    assert_refused(npg_("plot", finished, "--out", "no/such/picture.png"), "no/such/picture.png")
    npg_("train", "reinforce", "MountainCar-v0", "--steps", 1, "--set", "episodes=1", "--out", "run")
    (Path("run") / "metrics.csv").unlink()
    assert_refused(npg_("plot", "run"), "run has recorded no finished episode")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_refused(npg_("plot", finished), "plotting needs matplotlib: pip install 'npg[plot]'")


def test_a_traceback_is_shown_on_demand(npg_, monkeypatch):
    monkeypatch.setenv("NPG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="algorithm must be one of"):
        npg_("train", "nothing", "CartPole-v1")


LONG = {
    "CartPole-v1": ["train", "reinforce", "CartPole-v1", "--seed", "5", "--steps", "40000"],
    "FrozenLake-v1": ["train", "reinforce", "FrozenLake-v1", "--seed", "5", "--steps", "8000"],
}


@pytest.mark.process
@pytest.mark.parametrize("env_id", LONG)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_and_resumed_is_the_uninterrupted_run(env_id, kills, npg_):
    _, whole_out, _ = npg_(*LONG[env_id], "--out", "whole")
    whole, seconds = contents(Path("whole")), Run("whole").rows()[-1]["seconds"]
    rng, killed = random.Random(kills), 0
    for k in range(kills):
        out = Path(f"killed-{k}")
        process = start(*LONG[env_id], "--out", out)
        wait_for(out / "checkpoint.npz", process)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.communicate()
        killed += Run(out).load()["count.steps"] < int(LONG[env_id][-1])
        status, resumed_out, _ = npg_("train", "--resume", out)
        assert status == 0
        assert contents(out) == whole, f"kill {k}"
        assert resumed_out.splitlines()[-1] == whole_out.splitlines()[-1]
    assert killed > 0


@pytest.mark.process
def test_ctrl_c_stops_with_one_line_that_says_how_to_go_on(npg_):
    process = start(*LONG["CartPole-v1"], "--out", "run")
    wait_for(Path("run") / "metrics.csv", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    lines = [line for line in err.splitlines() if line and not line.startswith("step ")]
    assert lines[0] == "stopping after the update in hand; another Ctrl-C stops at once"
    (line,) = lines[1:]
    steps = int(Run("run").load()["count.steps"])
    assert line.startswith("npg: interrupted")
    assert f"the checkpoint of step {steps} is kept" in line
    assert "npg train --resume run" in line
    npg_(*LONG["CartPole-v1"], "--out", "whole")
    assert npg_("train", "--resume", "run")[0] == 0
    assert contents(Path("run")) == contents(Path("whole"))


def test_sigterm_ends_a_run_with_a_line_and_a_status_too(npg_, register):
    faults = [signals_at(70, signal.SIGTERM)]
    register("Stopped-v0", lambda: Walk(*faults), max_episode_steps=12)
    status, out, err = npg_("train", "actor_critic_lambda", "Stopped-v0", "--steps", 120, "--out", "run")
    assert (status, out) == (143, "")
    saved = int(Run("run").load()["count.steps"])
    last = f"npg: terminated; the checkpoint of step {saved} is kept in run; go on with: npg train --resume run"
    assert err.splitlines()[-1] == last
    faults.clear()
    assert npg_("train", "--resume", "run")[0] == 0
    assert Run("run").rows()[-1]["steps"] == 120


def test_ctrl_c_in_the_evaluation_that_ends_a_run_names_the_run_too(npg_, monkeypatch):
    def evaluate(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", evaluate)
    status, out, err = npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "run")
    assert (status, "mean return" in out) == (130, False)
    assert "run" in err.splitlines()[-1].removeprefix("npg: interrupted")


class Noise(gymnasium.vector.VectorRewardWrapper):
    """Rewards that have nothing to do with what happens."""

    def __init__(self, env) -> None:
        super().__init__(env)
        self.rng = np.random.default_rng(0)

    def rewards(self, rewards):
        return self.rng.standard_normal(len(rewards))


def without_rewards(seed: int, steps: int) -> tuple[float, float]:
    """Mean return of the deterministic and of the sampled policy that learned from noise."""
    env = npg.make_vec("CartPole-v1", PRESETS["reinforce", "CartPole-v1"].num_envs)
    agent = npg.make_agent("reinforce", Noise(env))
    npg.train(agent, Noise(env), steps=steps, seed=seed)
    return tuple(npg.evaluate(agent, env, deterministic=deterministic).mean() for deterministic in (True, False))


def solve(npg_, seed: int, *options) -> tuple[float, float]:
    """Mean return of the deterministic and of the sampled policy."""
    out = f"seed-{seed}"
    assert npg_("train", "reinforce", "CartPole-v1", "--seed", seed, "--out", out, *options)[0] == 0
    deterministic, sampled = (npg_("evaluate", out, *option)[1] for option in ([], ["--sample"]))
    return float(deterministic.split()[2]), float(sampled.split()[2])


def test_cartpole_is_learned_from_its_rewards_and_not_from_noise(npg_):
    assert min(solve(npg_, 0, "--steps", 40_000)) > 300
    assert max(without_rewards(0, 40_000)) < 200


@pytest.mark.slow
def test_reinforce_solves_cartpole_for_ten_of_ten_seeds(npg_):
    results = {seed: solve(npg_, seed) for seed in range(10)}
    assert all(min(result) >= 475 for result in results.values()), results


@pytest.mark.slow
def test_reinforce_does_not_solve_cartpole_without_its_rewards():
    results = [without_rewards(seed, PRESETS["reinforce", "CartPole-v1"].steps) for seed in range(10)]
    # A random linear policy is a good one now and then, but not on average.
    assert np.mean(results) < 200
    assert np.median(results) < 100


CORRIDOR, OPTIMUM = "npg/ShortCorridor-v0", -(6 + 4 * 2**0.5)


def corridor_returns(npg_) -> tuple[np.ndarray, np.ndarray]:
    """Of seeds 0 to 9: the mean return that ``npg train --sample`` prints, and the exact J of the policy it learned."""
    printed, exact = [], []
    for seed in range(10):
        status, out, _ = npg_("train", "reinforce", CORRIDOR, "--sample", "--seed", seed, "--out", f"seed-{seed}")
        assert status == 0
        printed.append(float(out.splitlines()[-1].split()[2]))
        run = Run(f"seed-{seed}")
        agent = run.make_agent(run.make_env())
        exact.append(short_corridor().J(agent.policy, agent.theta))
    return np.array(printed), np.array(exact)


class ScalarNoise(gymnasium.RewardWrapper):
    """Rewards that have nothing to do with what happens."""

    def __init__(self, env, seed: int) -> None:
        super().__init__(env)
        self.rng = np.random.default_rng(seed)

    def reward(self, reward):
        return self.rng.standard_normal()


def corridor_without_rewards(seed: int) -> float:
    """Exact J of the policy that learned from noise, with the settings of the preset."""
    env = ScalarNoise(npg.make_env(CORRIDOR), seed)
    agent = npg.make_agent("reinforce", env)
    npg.train(agent, env, steps=PRESETS["reinforce", CORRIDOR].steps, seed=seed)
    return short_corridor().J(agent.policy, agent.theta)


@pytest.fixture(params=[0.5, 0.05])
def right_at_first(request, monkeypatch):
    """Training begins with this probability of going right: 0.5, where θ = 0, is near the optimum; 0.05 is not."""
    theta = np.array([0, np.log(request.param / (1 - request.param))])
    monkeypatch.setattr(npg.Policy, "init", lambda self, rng: theta)
    return request.param


@pytest.mark.slow
def test_reinforce_learns_the_best_stochastic_policy_of_the_short_corridor(npg_, right_at_first):
    printed, exact = corridor_returns(npg_)
    # No policy on a constant feature does better than the optimum. A fixed step size leaves θ moving around it, at a
    # loss of 0.4 ± 0.5 over 200 other seeds: for the mean of ten, 1.5 is more than 6 standard errors away.
    assert exact.max() <= OPTIMUM + 1e-9
    assert exact.mean() >= OPTIMUM - 1.5
    # An episode has a standard deviation of 9.4 at the optimum, the mean of 1000 one of 0.3, and the interval reaches
    # some 0.7 to each side of that mean; an end that is 3 off is 7 standard errors away.
    half_width = stats.t.ppf(0.975, 9) * printed.std(ddof=1) / np.sqrt(10)
    assert OPTIMUM - 3.5 < printed.mean() - half_width
    assert printed.mean() + half_width < OPTIMUM + 3


@pytest.mark.slow
@pytest.mark.parametrize("right_at_first", [0.05], indirect=True)
def test_reinforce_does_not_learn_the_short_corridor_without_its_rewards(right_at_first):
    exact = np.array([corridor_without_rewards(seed) for seed in range(10)])
    # It begins at −82 and wanders.
    assert exact.mean() < OPTIMUM - 30
    assert np.median(exact) < OPTIMUM - 10


NORMALIZE = ["--normalize-observations", "--normalize-rewards"]


@pytest.mark.parametrize("num_envs", [0, 2])
def test_a_normalised_run_is_resumed_and_evaluated_by_its_own_statistics(num_envs, npg_):
    command = ["train", "reinforce", "CartPole-v1", *NORMALIZE, "--num-envs", num_envs, "--set", "scale=1"]
    command += ["--set", "gamma=0.9", "--set", "alpha=0.05"]
    _, trained, _ = npg_(*command, "--steps", 3000, "--out", "run")
    assert config("run")["env"]["normalize"] == {"observations": True, "rewards": True, "gamma": 0.9}
    run = Run("run")
    env = run.make_env()
    agent = run.make_agent(env)
    assert normalizers(env)["observation"].obs_rms.count > 3000
    returns = npg.evaluate(agent, env)
    assert returns == pytest.approx(np.rint(returns), rel=1e-12)  # CartPole pays 1 at each step
    for out in (trained, npg_("evaluate", "run")[1]):
        assert out.splitlines()[-1] == f"mean return {returns.mean():.2f} (std {returns.std():.2f}, 100 episodes)"
    assert npg_("train", "--resume", "run", "--steps", 6000)[0] == 0
    npg_(*command, "--steps", 6000, "--out", "whole")
    assert Run("run").load()["env.observation.count"] > 6000
    # The records are at other steps, but an episodic method is the same whenever it is looked at.
    for name, array in Run("whole").load().items():
        if name.startswith("agent.") or name.startswith("env."):
            np.testing.assert_array_equal(Run("run").load()[name], array)


@pytest.mark.parametrize(("option", "what"), zip(NORMALIZE, ["observations", "rewards"], strict=True))
def test_each_option_normalises_one_thing(option, what, npg_):
    assert npg_("train", "reinforce", "MountainCar-v0", option, *QUICK, "--set", "scale=1", "--out", "run")[0] == 0
    normalize = config("run")["env"]["normalize"]
    assert {name: normalize[name] for name in ("observations", "rewards")} == {
        name: name == what for name in ("observations", "rewards")
    }
    assert npg_("train", "reinforce", "MountainCar-v0", *QUICK, "--out", "plain")[0] == 0
    assert "normalize" not in config("plain")["env"]


@dataclass
class Still(Agent):
    """It learns nothing and discounts nothing."""

    @property
    def collect(self):
        return npg.Steps(1)

    def update(self, traj, rng):
        return {}


@pytest.mark.parametrize(("algorithm", "gamma"), [("toy", 0.9), ("still", 0.99)])
def test_the_gamma_of_normalised_rewards_is_that_of_the_agent_if_it_has_one(
    algorithm, gamma, npg_, register, monkeypatch
):
    monkeypatch.setitem(ALGORITHMS, algorithm, {"toy": Toy, "still": Still}[algorithm])
    register("Walk-v0", Walk, max_episode_steps=12)
    assert npg_("train", algorithm, "Walk-v0", "--normalize-rewards", "--steps", 20, "--out", "run")[0] == 0
    assert config("run")["env"]["normalize"] == {"observations": False, "rewards": True, "gamma": gamma}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_normalised_observations_need_a_scale_of_their_own_and_not_that_of_the_preset(env_id, npg_):
    command = ["train", "reinforce", env_id, "--normalize-observations", *QUICK]
    assert_refused(npg_(*command), "infinite bounds", "give scale")
    assert npg_(*command, "--set", "scale=1", "--out", "run")[0] == 0
    assert config("run")["agent"]["features"]["scale"] == 1


def test_discrete_observations_are_not_normalised(npg_):
    result = npg_("train", "reinforce", "FrozenLake-v1", "--normalize-observations")
    assert_refused(result, "observation space must be Box to be normalised, got Discrete(16)")


# Environments with settings, and one's own


@pytest.mark.parametrize("num_envs", [0, 2])
def test_settings_of_the_environment_reach_it_and_its_run(num_envs, npg_):
    options = ["--env-set", "is_slippery=false", "--env-set", "max_episode_steps=7", "--num-envs", num_envs]
    status, out, _ = npg_("train", "reinforce", "FrozenLake-v1", *QUICK, *options, "--out", "run")
    assert status == 0
    assert config("run")["env"]["kwargs"].items() >= {"is_slippery": False, "max_episode_steps": 7}.items()
    env = Run("run").make_env()
    env = env.envs[0] if num_envs else env
    assert {len(successors) for actions in env.unwrapped.P.values() for successors in actions.values()} == {1}
    assert npg_("evaluate", "run")[1] == out.splitlines()[-1] + "\n"
    assert npg_("train", "--resume", "run")[1] == out


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "npg/TwoState-v0"])
@pytest.mark.parametrize("num_envs", [0, 2])
def test_a_time_limit_of_ones_own_is_that_of_training_and_evaluation(num_envs, env_id, npg_):
    command = ["train", "reinforce", env_id, *QUICK, "--env-set", "max_episode_steps=7", "--num-envs", num_envs]
    assert npg_(*command, "--out", "run")[0] == 0
    assert Run("run").rows()[-1]["mean_length"] == 7
    run = Run("run")
    env = run.make_env()
    agent = run.make_agent(env)
    assert {int(length) for _, length in played(agent, env)} == {7}


def played(agent, env) -> list:
    with Collector(env, 0) as collector:
        collector.collect(agent, npg.Episodes(2), np.random.default_rng(0))
    return collector.finished


@pytest.fixture
def module(register, monkeypatch):
    """The name of a module in the working directory, which registers ``Own-v0``; to forget it, call the other."""
    Path("own_walks.py").write_text(
        "import gymnasium\nfrom toy import Walk\ngymnasium.register('Own-v0', Walk, max_episode_steps=12)\n"
    )
    path = [*sys.path]

    def forget():
        sys.modules.pop("own_walks", None)
        gymnasium.envs.registration.registry.pop("Own-v0", None)
        monkeypatch.setattr(sys, "path", [*path])

    forget()
    yield "own_walks", forget
    forget()


@pytest.mark.parametrize("num_envs", [0, 2])
def test_an_environment_of_a_module_is_trained_on_and_the_run_imports_it_only_if_that_is_allowed(
    num_envs, npg_, module
):
    name, forget = module
    command = ["train", "reinforce", f"{name}:Own-v0", "--set", "episodes=1", "--num-envs", num_envs]
    status, trained, _ = npg_(*command, "--steps", 60, "--out", "run")
    assert (status, config("run")["env"]["id"]) == (0, f"{name}:Own-v0")
    assert sys.path[-1] == os.getcwd()  # where it takes the place of no other
    for use in (["evaluate", "run"], ["train", "--resume", "run", "--steps", 120]):
        for allowed in ([], ["--allow-import", "toys"], ["--allow-import", "own"]):
            forget()
            before = Path("run/config.json").read_bytes()
            assert_refused(npg_(*use, *allowed), "only with --allow-import own_walks")
            assert name not in sys.modules
            assert Path("run/config.json").read_bytes() == before
        forget()
        status, out, err = npg_(*use, "--allow-import", name)
        assert (status, name in sys.modules) == (0, True), err
        if use[0] == "evaluate":
            assert out.splitlines() == trained.splitlines()[1:]
    forget()
    assert npg_(*command, "--steps", 120, "--out", "whole")[0] == 0
    arrays = [Run(run).load() for run in ("run", "whole")]  # only the records are at other steps
    for array in ("agent.theta", "agent.w", "count.steps", "count.episodes"):
        np.testing.assert_array_equal(*(each[array] for each in arrays))


def test_the_working_directory_is_searched_for_a_named_module_alone(npg_, module):
    name, _ = module
    before = [*sys.path]
    assert npg_("train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "run")[0] == 0
    assert npg_("evaluate", "run")[0] == npg_("train", "--resume", "run")[0] == npg_("list")[0] == 0
    assert sys.path == before
    assert name not in sys.modules


@pytest.mark.parametrize(
    "code", ["def", "1 / 0", "raise RuntimeError('own')", "import nothing_there", "'no environment'"]
)
def test_a_module_that_cannot_be_imported_or_registers_nothing_is_named(code, npg_, module):
    Path("own_walks.py").write_text(code)
    assert_refused(npg_("train", "reinforce", "own_walks:Own-v0"), "own_walks")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda *step: (*step[:2], None, *step[3:]), "must return flags that are True or False, got None"),
        (lambda *step: (step[0], "much", *step[2:]), "a reward that is no number: 'much'"),
        (lambda *step: (step[0], None, *step[2:]), "a reward that is no number: None"),
    ],
    ids=["no flag", "no number", "no reward"],
)
@pytest.mark.filterwarnings("ignore:.*WARN")
def test_what_an_environment_must_not_return_is_named_on_one_line(fault, says, npg_, register):
    class Faulty(Walk):
        def step(self, action):
            return fault(*super().step(action))

    register("Faulty-v0", Faulty, max_episode_steps=12, disable_env_checker=True)
    status, out, err = npg_("train", "reinforce", "Faulty-v0", "--out", "run")
    assert (status, out) == (1, "")
    (error,) = [line for line in err.splitlines() if not line.startswith("step ")]
    assert error.startswith("npg: error: the environment ")
    assert says in error


# Evaluations


@pytest.mark.parametrize("option", [[], ["--sample"]], ids=["", "sampled"])
def test_evaluations_are_kept_and_the_last_one_is_what_is_printed(option, npg_):
    command = ["train", "reinforce", "FrozenLake-v1", "--set", "episodes=2", "--seed", 3, *option]
    status, out, _ = npg_(*command, "--steps", 400, "--eval-every", 150, "--out", "run")
    assert status == 0
    rows = Run("run").rows("evaluations")
    assert [row["steps"] // 150 for row in rows] == [1, 2, 2]
    assert all(row["count"] == 100 for row in rows)
    assert out.splitlines()[-1] == f"mean return {rows[-1]['mean']:.2f} (std {rows[-1]['std']:.2f}, 100 episodes)"
    assert npg_(*command, "--steps", 400, "--out", "without")[1].splitlines()[-1] == out.splitlines()[-1]
    assert contents(Path("run")) == contents(Path("without"))


# The console entry


@pytest.fixture
def console_():
    """Run a command by the console entry, in this process, on streams of this encoding: (status, stdout, stderr)."""

    def run(*argv, encoding="utf-8", err=True):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
        with pytest.MonkeyPatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream if name == "stdout" or err else None)
            patch.setattr(sys, "argv", ["npg", *map(str, argv)])
            status, given = console.main(), sys.stderr
        if not err:
            given.close()
        for stream in streams.values():
            stream.flush()
        return status, *(stream.buffer.getvalue().decode(encoding) for stream in streams.values())

    return run


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", [["list"], ["check", "--instances", 1]], ids=lambda argv: argv[0])
def test_a_terminal_without_greek_letters_shows_question_marks(command, encoding, console_):
    status, out, err = console_(*command, encoding=encoding)
    assert (status, err) == (0, "")
    whole = console_(*command)[1]
    assert out == whole.encode(encoding, "replace").decode(encoding)
    if command[0] == "list":
        assert ("?" in out, "γ" in out) == (encoding != "utf-8", encoding == "utf-8")


def test_a_closed_stderr_is_no_error(console_):
    status, out, _ = console_("train", "reinforce", "FrozenLake-v1", *QUICK, err=False)
    assert (status, len(out.splitlines())) == (0, 2)
    assert console_("evaluate", "nothing", err=False)[0] == 1


@pytest.mark.process
def test_a_command_runs_with_its_stderr_closed(npg_):
    command = ["train", "reinforce", "FrozenLake-v1", *QUICK, "--out", "run"]
    process = start(*command, stderr=None, preexec_fn=lambda: os.close(2))
    assert (process.communicate()[0].count("\n"), process.returncode) == (2, 0)
    npg_(*command[:-1], "open")
    assert contents(Path("run")) == contents(Path("open"))


def test_ctrl_c_while_modules_are_imported_is_one_line(console_):
    class Slow:
        def find_spec(self, name, *_):
            if name == "npg.lab.cli":
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "meta_path", [Slow(), *sys.meta_path])
        patch.delitem(sys.modules, "npg.lab.cli")
        assert console_("list") == (130, "", "npg: interrupted\n")


@pytest.mark.process
@pytest.mark.parametrize("before", [None, "7"])
def test_the_console_entry_says_one_thread_before_numpy_is_imported(before):
    code = f"""
import os, sys
class Look:
    def find_spec(self, name, *_):
        if name == "numpy":
            print([os.environ.get(name) for name in {THREADS}])
sys.meta_path.insert(0, Look())
sys.argv = ["npg", "--version"]
from npg.__main__ import main
main()
"""
    env = {name: value for name, value in os.environ.items() if name not in THREADS}
    env |= dict.fromkeys(THREADS, before) if before else {}
    env |= {"PYTHONPATH": str(Path(npg.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out == f"{['1'] * 4}\nnpg {npg.__version__}\n"


def same_bytes(*argv) -> None:
    """The command learns the same whatever the number of threads that the environment names."""
    runs = {}
    for threads in ("1", "2", None):
        env = {name: value for name, value in os.environ.items() if name not in THREADS}
        env |= {"OPENBLAS_NUM_THREADS": threads} if threads else {}
        out = f"threads-{threads}"
        process = start(*argv, "--out", out, env=env)
        assert "mean return" in process.communicate()[0]
        runs[threads] = contents(Path(out))
    assert runs["1"] == runs["2"] == runs[None]


@pytest.mark.process
def test_the_number_of_threads_does_not_change_what_is_learned():
    same_bytes("train", "trpo", "Pendulum-v1", "--steps", 4096)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_threads_changes_no_method(algorithm):
    env_id = "npg/TwoState-v0" if algorithm == "average_reward_actor_critic" else "CartPole-v1"
    if issubclass(ALGORITHMS[algorithm], DeterministicAgent):
        env_id = "Pendulum-v1"
    settings = [] if env_id != "CartPole-v1" else ["--set", "scale=2.0"]
    same_bytes("train", algorithm, env_id, "--steps", 20_000, *settings)


@pytest.mark.filterwarnings("always:another policy acts")
def test_a_run_of_another_policy_says_whose_returns_it_shows(npg_):
    for options, says in (((), True), (("--eval-every", 50), False)):
        _, _, err = npg_("train", "off_pac", "npg/ShortCorridor-v0", "--steps", 60, *options)
        assert ("another policy acts, and the returns of training are its own: --eval-every" in err) == says
    assert "another policy" not in npg_("train", "reinforce", "npg/ShortCorridor-v0", "--steps", 60)[2]


def test_a_preset_may_hold_settings_of_the_environment(npg_, monkeypatch):
    env_id = "npg/ShortCorridor-v0"
    monkeypatch.setitem(PRESETS, ("reinforce", env_id), Preset(steps=40, env_settings={"max_episode_steps": 7}))
    assert (
        f'preset {env_id}: 0 environments, 40 steps, {{}}, of the environment {{"max_episode_steps": 7}}'
        in npg_("list")[1]
    )
    for options, limit in (((), 7), (("--env-set", "max_episode_steps=9"), 9)):
        out = f"run-{limit}"
        assert npg_("train", "reinforce", env_id, "--out", out, *options)[0] == 0
        assert Run(out).config["env"]["kwargs"]["max_episode_steps"] == limit
