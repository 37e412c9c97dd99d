"""What holds for every method, whatever it computes: a new one is held to it as soon as it is in the table."""

import re
import signal
from dataclasses import fields
from itertools import count, islice

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformAction
from oracles import (
    CASES,
    SHARED,
    Case,
    Row,
    Shifted,
    batch,
    batches,
    collected,
    joined,
    make,
    rows_of,
    step_of,
    stream,
)
from toy import contents, raises_at, signals_at

import npg
from npg import features as F
from npg.algorithms import ALGORITHMS, Agent
from npg.envs.spaces import Env
from npg.envs.tabular import TabularEnv
from npg.lab.collect import Collector
from npg.lab.presets import PRESETS, Preset
from npg.lab.runs import Run
from npg.lab.training import updates
from npg.policies import GaussianLinear, Policy, SoftmaxLinear
from npg.problems import random_walk, two_state
from npg.trajectories import ONE_STEP, Episodes, Trajectories

CONTINUING = {"average_reward_actor_critic"}
"""Methods for which a termination is an error."""
TIME_LIMITS_END = {"episodic_natural_actor_critic", "off_policy_reinforce"}
"""Methods whose returns end at a time limit."""
REPLAY = {"replay_actor_critic"}
"""Methods that draw rows from a buffer: the order of rows matters, and so does each row that it keeps."""
SMOOTH = {"optimizer": "ascent", "damping": 1e-2, "ridge": 0.5}
"""Settings under which rounding stays rounding, of the methods that have them."""


def options(cls: type[Agent]) -> dict[str, tuple]:
    """The values of each setting that is a choice."""
    return {f.name: f.metadata["options"] for f in fields(cls) if "options" in f.metadata}


def of(cls: type[Agent], settings: dict) -> dict:
    """Those settings that the method has."""
    return {name: value for name, value in settings.items() if name in {f.name for f in fields(cls)}}


def takes(cls: type[Agent], kind: str) -> bool:
    """Whether the method takes such a policy."""
    try:
        make(cls, CASES[kind])
    except TypeError:
        return False
    return True


def kinds(cls: type[Agent]) -> list[str]:
    """A discrete and a continuous policy, as far as the method takes them."""
    continuous = (kind for kind in ("gaussian on shared tiles", "gaussian") if takes(cls, kind))
    return ["one-hot"] * takes(cls, "one-hot") + [*islice(continuous, 1)]


def case_of(cls: type[Agent]) -> Case:
    """The first of them."""
    return CASES[kinds(cls)[0]]


def policy_on(cls: type[Agent], states: F.OneHot) -> Policy:
    """A policy of two actions, or of one that is a number."""
    return SoftmaxLinear(states, 2) if takes(cls, "one-hot") else GaussianLinear(states, F.Constant(), 1)


WITH = {"interest": {"eta": 1.0}}
"""What else a choice needs, to be one that every row is learned from."""
METHODS = pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
ONLINE = {name: cls for name, cls in ALGORITHMS.items() if make(cls, case_of(cls)).collect == ONE_STEP}
AVERAGED = {name: cls for name, cls in ONLINE.items() if name not in REPLAY}
BATCHES = {name: cls for name, cls in ALGORITHMS.items() if name not in ONLINE}
EVERY_CHOICE = pytest.mark.parametrize(
    ("cls", "setting"),
    [
        pytest.param(cls, setting, id="-".join([name, *(f"{k}={v}" for k, v in setting.items())]))
        for name, cls in ALGORITHMS.items()
        for setting in [{}, *({k: v} | WITH.get(k, {}) for k, values in options(cls).items() for v in values[1:])]
    ],
)


def experience(cls: type[Agent], agent: Agent, case: Case, columns: int = 3) -> list[Trajectories]:
    """What four or more updates learn from: terminations, time limits, and reset steps among them."""
    if agent.collect == ONE_STEP:
        parts = [part for part in stream(case, 0, steps=9, columns=columns, resets=True) if part.valid.any()]
    elif isinstance(agent.collect, Episodes):
        parts = [batch(case, seed, columns) for seed in range(4)]
    else:
        parts = batches(case, 0, count=4, columns=columns)
    for part in parts if cls.name() in CONTINUING else ():
        part.truncated |= part.terminated
        part.terminated[:] = False
    return parts


def equal(agent: Agent, other: Agent, buffer: bool = True) -> bool:
    """Whether both have learned the same, to the last bit, and have the same rows in their buffer."""
    mine, theirs = (
        {name: value for name, value in a.state().items() if buffer or not name.startswith("replay.")}
        for a in (agent, other)
    )
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def near(agent: Agent, other: Agent, rtol: float = 1e-8) -> None:
    """The same but for rounding."""
    mine, theirs = agent.state(), other.state()
    for name in mine.keys() & {*SHARED}:
        size = np.abs(theirs[name]).max()
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=rtol * size, err_msg=name)


def learn(agent: Agent, parts: list[Trajectories]) -> None:
    """Updates with generators of their own."""
    for k, part in enumerate(parts):
        agent.update(part, np.random.default_rng(k))


# What is learned: a function of seed and experience, saved and restored at any time


def playable(cls: type[Agent], env: Env) -> Env:
    """``env``, whose two actions are the signs of a number for a method of continuous actions."""
    if takes(cls, "one-hot"):
        return env
    return TransformAction(env, lambda a: int(a[0] > 0), spaces.Box(-1.0, 1.0, (1,)))


def environment(cls: type[Agent], fault=None):
    """Two columns of a tabular problem in which episodes end in every way that the method takes."""
    if cls.name() in CONTINUING:
        return npg.make_vec("npg/TwoState-v0", 2, max_episode_steps=12)
    walks = [lambda: playable(cls, TimeLimit(TabularEnv(random_walk(5)), 12))] * 2
    return SyncVectorEnv(walks, autoreset_mode=AutoresetMode.NEXT_STEP)


def small(cls: type[Agent]) -> dict:
    """Settings that make batches small."""
    return of(cls, {"n_steps": 8, "episodes": 2})


@EVERY_CHOICE
def test_the_same_seed_gives_the_same_arrays_and_another_seed_others(cls, setting):
    def trained(seed):
        env = environment(cls)
        agent = npg.make_agent(cls.name(), env, **small(cls) | setting)
        history = npg.train(agent, env, steps=120, seed=seed, record_every=40)
        assert all(np.isfinite(list(row.values())[5:]).all() for row in history.rows)
        return agent

    first = trained(0)
    assert equal(first, trained(0))
    assert not equal(first, trained(1))


@EVERY_CHOICE
def test_a_restored_agent_continues_identically_and_shares_nothing(cls, setting):
    for kind in kinds(cls):
        case, K = CASES[kind], 3
        agent = make(cls, case, 0, columns=3, **setting)
        parts = experience(cls, agent, case)
        for k in range(len(parts)) if agent.collect == ONE_STEP else (1, K):
            agent, restored = (make(cls, case, seed, columns=3, **setting) for seed in (0, 1))
            learn(agent, parts[:k])
            learn(restored, parts[:1])
            saved = agent.state()
            copies = {name: value.copy() for name, value in saved.items()}
            restored.load_state(saved)
            learn(agent, parts[k:])
            assert all(np.array_equal(saved[name], value) for name, value in copies.items())
            assert not np.array_equal(agent.state()["theta"], saved["theta"])
            learn(restored, parts[k:])
            assert equal(agent, restored)


@METHODS
def test_a_run_that_is_stopped_within_an_episode_and_resumed_is_the_uninterrupted_one(
    cls, tmp_path, fast_disk, monkeypatch
):
    def run(name, fault=None, resume=False):
        env = environment(cls)
        agent = npg.make_agent(cls.name(), env, **small(cls))
        if fault:
            act, calls = agent.act, count(1)
            agent.act = lambda *args: (fault(next(calls), 0.0), act(*args))[1]  # type: ignore[method-assign]
        how = {"steps": 160, "record_every": 32, "checkpoint_every": 32, "seed": 3, "resume": resume}
        npg.train(agent, env, **how, out=tmp_path / name)

    run("whole")
    under_way = 0
    for k, fault, save_seconds in (
        (1, raises_at(1, RuntimeError()), 30),
        (30, raises_at(30, RuntimeError()), 30),
        (43, raises_at(43, RuntimeError()), 0),  # checkpoints by time: at every update
        (59, signals_at(59, signal.SIGINT), 30),  # checkpoints after the update in hand
        (71, signals_at(71, signal.SIGTERM), 30),
    ):
        monkeypatch.setattr("npg.lab.training.SAVE_SECONDS", save_seconds)
        with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
            run(f"stopped-{k}", fault)
        under_way += np.count_nonzero(Run(tmp_path / f"stopped-{k}").load().get("collector.t", 0))
        run(f"stopped-{k}", resume=True)
        assert contents(tmp_path / f"stopped-{k}") == contents(tmp_path / "whole"), f"stopped at step {k}"
    assert (under_way == 0) == isinstance(make(cls, case_of(cls)).collect, Episodes)


@METHODS
def test_an_update_leaves_what_it_learns_from_as_it_is_and_names_the_same_diagnostics(cls):
    for kind in kinds(cls):
        agent = make(cls, CASES[kind], columns=3)
        parts, untouched = (experience(cls, agent, CASES[kind]) for _ in range(2))
        names = set()
        for k, part in enumerate(parts):
            diagnostics = agent.update(part, np.random.default_rng(k))
            assert all(np.isfinite(float(value)) for value in diagnostics.values())
            names.add(tuple(diagnostics))
        assert len(names) == 1
        for part, same in zip(parts, untouched, strict=True):
            for name in Trajectories.__slots__:
                np.testing.assert_equal(getattr(part, name), getattr(same, name))


@METHODS
@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_every_method_has_defaults_for_every_kind_of_space_and_is_rebuilt_from_its_configuration(cls, env_id):
    env = npg.make_vec(env_id, 2)
    settings = {"scale": 2.0} if env_id == "CartPole-v1" else {}
    continuous = env_id == "MountainCarContinuous-v0"
    if not any(("gaussian" in kind) == continuous for kind in kinds(cls)):
        needed = "discrete" if continuous else "continuous"
        with pytest.raises(TypeError, match=f"{cls.name()} needs {needed} actions"):
            npg.make_agent(cls.name(), env, **settings)
        return
    agent = npg.make_agent(cls.name(), env, **settings)
    assert npg.make_agent(env=env, **agent.config) == agent
    for f in fields(cls):
        if "features" in f.metadata:
            kind = "onehot" if env_id == "FrozenLake-v1" else f.metadata["features"]
            kind = PRESETS.get((cls.name(), env_id), Preset()).settings.get(f.name, {"kind": kind})["kind"]
            assert F.describe(getattr(agent, f.name))["kind"] == kind


# Several environments


@pytest.mark.equation("8.9", defining=True)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("cls", AVERAGED.values(), ids=AVERAGED)
def test_columns_of_an_online_method_are_averaged_and_reset_steps_change_nothing(cls, resets):
    """N columns make the mean of what agents of one column would do from the same θ and w, each with its own state.

    Those agents see no reset steps, which therefore change nothing and are left out of the mean.
    """
    for trace in options(cls).get("trace", ("none",)):
        for kind in kinds(cls) if trace == "replacing" else [kind for kind in CASES if takes(cls, kind)]:
            how = of(cls, {"trace": trace, "outer_discount": True, "gamma": 0.8, "alpha": 0.003})
            agent = make(cls, CASES[kind], 0, columns=3, **how)
            singles = [make(cls, CASES[kind], **how) for _ in range(3)]
            steps = stream(CASES[kind], 0, columns=3, resets=resets)
            for traj in (step for step in steps if step.valid.any()):
                if cls.name() in CONTINUING:
                    traj.truncated |= traj.terminated
                    traj.terminated[:] = False
                before = agent.state()
                agent.update(traj, np.random.default_rng(0))
                after = agent.state()
                moved = []
                for n, single in enumerate(singles):
                    single.load_state(single.state() | {name: before[name] for name in before.keys() & {*SHARED}})
                    if traj.valid[0, n]:
                        single.update(traj[n], np.random.default_rng(0))
                        moved.append(single.state())
                for name, value in after.items():
                    if name in SHARED:
                        mean = sum(s[name] - before[name] for s in moved) / max(len(moved), 1)
                        expected = before[name] + mean
                    else:
                        expected = np.concatenate([single.state()[name] for single in singles])
                    size = 1 + np.abs(expected).max()
                    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * size, err_msg=name)


@METHODS
def test_the_loop_hands_over_no_reset_steps_alone_and_counts_none(cls):
    """One column, whose resets are steps of their own: an update of nothing is one whose diagnostics are 0."""
    sets = [lambda: playable(cls, TimeLimit(TabularEnv(two_state()), 3))]
    env = SyncVectorEnv(sets, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = npg.make_agent(cls.name(), env, **small(cls))
    agent.init(np.random.default_rng(0))
    update, seen = agent.update, []
    agent.update = lambda traj, rng: seen.append(np.count_nonzero(traj.valid)) or update(traj, rng)
    loop = updates(agent, Collector(env, 0), np.random.default_rng(1), np.random.default_rng(2))
    before, skipped = 0, 0
    for steps, diagnostics in islice(loop, 12):
        skipped += steps == before
        assert steps > before or set(diagnostics.values()) == {0.0}
        before = steps
    assert min(seen) > 0
    assert sum(seen) == steps
    assert (skipped > 0) == (cls in ONLINE.values())


@pytest.mark.parametrize("cls", ONLINE.values(), ids=ONLINE)
def test_reset_steps_do_no_harm_where_zero_is_no_state(cls):
    states = spaces.Discrete(6, start=3)
    features = F.OneHot(states)
    agent = make(cls, Case(policy_on(cls, features), features, states), columns=2)
    mdp = random_walk(5)
    walks = [
        lambda n=n: playable(cls, Shifted(TimeLimit(TabularEnv(mdp), n))) for n in (1, 2)
    ]  # too short to terminate
    resets = 0
    for traj in collected(agent, SyncVectorEnv(walks, autoreset_mode=AutoresetMode.NEXT_STEP), 20):
        resets += (~traj.valid).sum()
        agent.update(traj, np.random.default_rng(0))
    assert resets > 0


@pytest.mark.parametrize("cls", BATCHES.values(), ids=BATCHES)
def test_columns_their_order_and_reset_steps_do_not_matter_to_a_batch(cls):
    """A batch, its columns in another order, and its episodes one after another in one column."""
    case, how = CASES["dense"], of(cls, SMOOTH)
    agents = [make(cls, case, **how) for _ in range(3)]
    part = experience(cls, agents[0], case)[0]
    in_one_column = []
    for n in (2, 1, 0):
        rows = [row for row in rows_of(part, n) if row]
        rows[-1] = rows[-1]._replace(truncated=rows[-1].truncated or not rows[-1].terminated)  # as the end of a batch
        in_one_column += [step_of(case.policy, [row], row) for row in rows]
    for agent, same in zip(agents, [part, part[[2, 0, 1]], joined(in_one_column)], strict=True):
        learn(agent, [same])
        near(agent, agents[0])


# The end of an episode


@pytest.mark.equation("8.10")
@METHODS
def test_a_time_limit_bootstraps_and_a_termination_does_not(cls):
    """θ and w depend on the state that follows, through its value, unless the episode has terminated there."""
    states = F.OneHot(4)
    case = Case(policy_on(cls, states), states, spaces.Discrete(4))
    first, second = (0, 1) if takes(cls, "one-hot") else ([0.0], [1.0])

    def learned(successor, terminated, truncated):
        agent = make(cls, case, **of(cls, {"optimizer": "ascent", "lam": 0.5, "lam_theta": 0.5, "lam_w": 0.5}))
        rows = [
            [Row(0, first, 1.0, 1, False, False, 0)] * 2,
            [Row(1, second, -1.0, successor, terminated, truncated, 1)] * 2,
        ]
        rows += [[Row(0, a, r, 1, False, False, 0) for a, r in ((second, 1.0), (first, 0.0))]]
        rows += [[Row(1, first, 1.0, 2, False, True, 1)] * 2]
        steps = [step_of(case.policy, pair, pair[0]) for pair in rows]
        if agent.collect == ONE_STEP:
            agent.init(np.random.default_rng(0), 2)
            state = agent.state()
            critics = state.keys() & {"critic.w", "critic.v", "v"}
            agent.load_state(state | {k: np.arange(state[k].size, dtype=float) for k in critics})
            learn(agent, steps)
        else:
            learn(agent, [joined(steps)] * 2)  # the second with a critic that has learned
        return agent

    if cls.name() in CONTINUING:
        with pytest.raises(ValueError, match="an episode terminated"):
            learned(2, True, False)
    else:
        ended = learned(2, True, False)
        assert equal(ended, learned(3, True, False), buffer=False)
        assert equal(ended, learned(3, True, True), buffer=False)
    limited = learned(2, False, True)
    assert equal(limited, learned(3, False, True), buffer=False) == (cls.name() in TIME_LIMITS_END)
    if cls.name() in TIME_LIMITS_END:
        assert equal(limited, ended)


# Settings


@METHODS
def test_a_setting_is_refused_beyond_what_its_error_says_and_nowhere_before(cls):
    case, checked = case_of(cls), 0
    for f in fields(cls):
        if "allowed" not in f.metadata:
            continue
        if "features" in f.metadata:
            for value in (f.metadata["features"], None, 5):
                with pytest.raises(ValueError, match=rf"^{f.name} must be features, .*, got "):
                    cls(case.policy, **{f.name: value})
            continue
        expected, allowed = f.metadata["expected"], f.metadata["allowed"]
        bounds = [float(number) for number in re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", expected)]
        bad = [float("nan"), float("inf"), -float("inf"), "1", [1.0], {}]
        if "options" in f.metadata:
            assert expected == f"one of {', '.join(map(str, f.metadata['options']))}"
            assert all(map(allowed, f.metadata["options"]))
            bad += ["another", 0, 1, -1, *{None, False, True} - {*f.metadata["options"]}]
        else:
            integral = expected.startswith("an integer of at least")
            assert integral or expected.startswith(("a number of at least", "a number in ["))
            assert allowed(None) == expected.endswith(", or None")
            assert all(map(allowed, [int(bounds[0])] if integral else bounds))
            step = 1 if integral else 1e-9
            bad += [True, bounds[0] - step] + [bound + 1e-9 for bound in bounds[1:]] + [bounds[0] + 0.5] * integral
            bad += [] if allowed(None) else [None]
        for value in bad:
            with pytest.raises(ValueError, match=rf"^{f.name} must be {re.escape(expected)}, got "):
                make(cls, case, **{f.name: value})
            checked += 1
    assert checked


def no_bonus(cls: type[Agent]) -> dict[str, float]:
    """β = 0, where that is allowed: no bonus for the entropy."""
    return {f.name: 0.0 for f in fields(cls) if f.name == "beta" and f.metadata["allowed"](0.0)}


@METHODS
def test_columns_and_what_is_no_policy_are_refused(cls):
    agent = make(cls, case_of(cls))
    for columns in (0, -1, 1.5, "2", None):
        with pytest.raises(ValueError, match="columns must be an integer of at least 1, got "):
            agent.init(np.random.default_rng(0), columns)
    with pytest.raises(TypeError, match=r"policy must be an npg\.Policy, got None"):
        cls(None, *[F.OneHot(5) for f in fields(cls) if "features" in f.metadata])
    if agent.collect == ONE_STEP:
        for wrong in (joined(stream(case_of(cls), 0, 4)), stream(case_of(cls), 0, 1, columns=2)[0]):
            wrong.terminated[:] = False
            before = agent.state()
            with pytest.raises(ValueError, match="one step of"):
                agent.update(wrong, np.random.default_rng(0))
            assert all(np.array_equal(agent.state()[name], value) for name, value in before.items())


@METHODS
def test_with_nothing_to_learn_from_theta_stays(cls):
    """Rewards and values of zero, with no bonus for the entropy."""
    for kind in kinds(cls):
        agent = make(cls, CASES[kind], columns=3, **no_bonus(cls))
        state = agent.state()
        agent.load_state({k: np.zeros_like(v) if k in SHARED and k != "theta" else v for k, v in state.items()})
        for part in experience(cls, agent, CASES[kind]):
            part.rewards[:] = 0
            agent.update(part, np.random.default_rng(0))
            assert np.array_equal(agent.theta, state["theta"])
