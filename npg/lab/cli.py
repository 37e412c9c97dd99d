"""The command line: results on stdout, progress on stderr."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import gymnasium

from .._checks import at_least
from .._typing import Array
from .._version import __version__
from ..algorithms import ALGORITHMS
from ..envs import MAX_ENVS, make_env, make_vec, normalized
from ..envs.spaces import Env
from ..features import KINDS
from . import equations
from .cases import run_cases
from .presets import PRESETS, make_agent, preset
from .runs import Run
from .task import VECTOR_SETTINGS
from .training import evaluate, train


def _summary(returns: Array) -> str:
    return f"mean return {returns.mean():.2f} (std {returns.std():.2f}, {len(returns)} episodes)"


def _settings(option: str, pairs: list[str]) -> dict[str, Any]:
    return {name: _value(option, name, value) for name, value in _split(option, pairs)}


def _split(option: str, pairs: list[str]) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} must be NAME=VALUE, got {pair!r}")
        yield name, value


def _value(option: str, name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(f"{option} {name} must be JSON or a word, got JSON that is nested too deeply") from None
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value, value)


def _values(option: str, name: str, values: str) -> list[Any]:
    """What is separated by commas: JSON, or words."""
    try:
        return list(json.loads(f"[{values}]"))
    except (ValueError, RecursionError):
        return [_value(option, name, value) for value in values.split(",")]


def _seeds(text: str) -> int | range:
    first, dash, last = text.partition("-")
    try:
        return range(int(first), int(last) + 1) if dash else int(text)
    except ValueError:
        raise ValueError(f"--seeds must be a number, or FIRST-LAST, got {text!r}") from None


def _new_directory(algorithm: str, env_id: str, seed: int) -> Path:
    base = Path("runs") / f"{algorithm}-{env_id.replace('/', '_').replace(':', '_')}-seed{seed}"
    candidate, k = base, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            if not Path("runs").is_dir():
                raise
        k += 1
        candidate = base.with_name(f"{base.name}-{k}")


def _find_modules(wanted: Any) -> None:
    """Let the modules of the working directory be imported, if one is ``wanted``."""
    if wanted:
        sys.path.append(os.getcwd())


def _train(args: argparse.Namespace) -> int:
    if args.resume:
        given = {"ALGORITHM": args.algorithm, "--seed": args.seed, "--set": args.set or None, "--out": args.out}
        given |= {"--num-envs": args.num_envs, "--normalize-observations": args.normalize_observations or None}
        given |= {"--normalize-rewards": args.normalize_rewards or None, "--env-set": args.env_set or None}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--resume goes on as the run began; {name} cannot be given with it")
        run = Run(args.resume)
        out, config = run.path, run.config
        _find_modules(args.allow_import)
        env = run.make_env(args.allow_import)
        evaluates = args.eval_every is not None or config["eval_every"] is not None
        eval_env = run.make_env(args.allow_import) if evaluates else None
        args.sample = args.sample or not config["deterministic"]
        agent = run.new_agent(env)
        seed = config["seed"]
        steps = args.steps if args.steps is not None else config["steps"]
    else:
        if not (args.algorithm and args.env):
            raise ValueError("npg train needs ALGORITHM and ENV, or --resume DIR")
        defaults = preset(args.algorithm, args.env)
        num_envs = defaults.num_envs if args.num_envs is None else args.num_envs
        at_least("--num-envs", num_envs, 0, MAX_ENVS)
        seed = args.seed or 0
        steps = defaults.steps if args.steps is None else args.steps
        at_least("seed", seed, 0)
        at_least("steps", steps, 1)
        settings = defaults.env_settings | _settings("--env-set", args.env_set)
        if settings.keys() & VECTOR_SETTINGS:
            raise ValueError("--env-set must be settings of one environment; --num-envs says how many there are")

        _find_modules(":" in args.env)

        def make() -> Env:
            made = make_vec(args.env, num_envs, **settings) if num_envs else make_env(args.env, **settings)
            return normalized(made) if args.normalize_observations else made

        env = make()
        agent = make_agent(args.algorithm, env, **_settings("--set", args.set))
        gamma = getattr(agent, "gamma", 0.99)
        env = normalized(env, False, args.normalize_rewards, gamma)
        eval_env = None if args.eval_every is None else normalized(make(), False, args.normalize_rewards, gamma)
        out = Path(args.out) if args.out else _new_directory(args.algorithm, args.env, seed)
    if agent.off_policy and args.eval_every is None:
        warnings.warn("another policy acts, and the returns of training are its own: --eval-every N", stacklevel=1)
    try:
        train(
            agent,
            env,
            steps=steps,
            seed=seed,
            out=out,
            eval_env=eval_env,
            eval_every=args.eval_every,
            deterministic=not args.sample,
            progress=True,
            resume=bool(args.resume),
        )
    except BaseException:
        if not (args.out or args.resume):
            with suppress(OSError):
                out.rmdir()  # made here, if nothing has come into it
        raise
    print(f"run {out}", flush=True)
    try:
        print(_summary(evaluate(agent, env, seed=seed, deterministic=not args.sample)))
    except BaseException as error:
        error.add_note(f"the run is complete; evaluate it with: npg evaluate {out}")
        raise
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    run = Run(args.dir)
    _find_modules(args.allow_import)
    env = run.make_env(args.allow_import)
    agent = run.make_agent(env)
    print(_summary(evaluate(agent, env, args.episodes, args.seed, deterministic=not args.sample)))
    return 0


def _list(args: argparse.Namespace) -> int:
    for algorithm, cls in ALGORITHMS.items():
        print(f"{algorithm}: {(cls.__doc__ or '').splitlines()[0]}")
        for f in fields(cls):
            if f.metadata:
                default = "" if f.default is MISSING else f"={json.dumps(f.default)}"
                print(f"  {f.name}{default}  {f.metadata['expected']}: {f.metadata['doc'].replace('``', '')}")
        for (name, env_id), p in PRESETS.items():
            if name == algorithm:
                of_env = f", of the environment {json.dumps(p.env_settings)}" if p.env_settings else ""
                print(
                    f"  preset {env_id}: {p.num_envs} environments, {p.steps} steps, {json.dumps(p.settings)}{of_env}"
                )
    print("settings of every policy: features, scale_features (of log σ, for Box actions), scale")
    print(f"features: {', '.join(KINDS)}")
    own = ", ".join(name for name in gymnasium.registry if name.startswith("npg/"))
    print(f"environments: any Gymnasium id with Box or Discrete observations and actions; our own are {own}")
    return 0


def _check(args: argparse.Namespace) -> int:
    print(f"{'quantity':<50} {'equation':<9} {'method':<8} {'instances':>9} {'worst rel. error':>17}  verdict")
    results = []
    for r in run_cases(args.instances, args.seed):
        results.append(r)
        verdict = "ok" if r.passed else "FAILED"
        print(
            f"{r.case.quantity:<50} {f'({r.case.equation})':<9} {r.method:<8} {r.instances:>9} "
            f"{r.max_rel_error:>17.1e}  {verdict}",
            flush=True,
        )
    failed = sum(not r.passed for r in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _equations(args: argparse.Namespace) -> int:
    if args.write:
        for chapter in equations.write():
            print(chapter)
        return 0
    for number, entry in equations.equation_map().items():
        tests = entry.defining + entry.tests * args.all
        print(f"{f'({number})':<8}{entry.home}  {entry.home and entry.home.name}")
        for test in tests:
            print(f"        {test}  {test.name}")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from .plotting import learning_curves

    runs = [Run(d) for d in args.dirs]
    out = Path(args.out) if args.out else runs[0].path / "learning_curve.png"
    out = out if out.suffix else out.with_suffix(".png")
    learning_curves(runs, out)
    print(out)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from .compare import compare

    _find_modules(any(":" in env for env in args.envs))
    settings = _settings("--set", args.set)
    with ExitStack() as stack:
        comparison = compare(
            args.methods.split(","),
            args.envs,
            _seeds(args.seeds),
            executor=stack.enter_context(_dask(args.dask)) if args.dask else None,
            workers=args.workers,
            out=args.out,
            steps=args.steps,
            num_envs=args.num_envs,
            env_settings=_settings("--env-set", args.env_set),
            sweep={name: _values("--sweep", name, values) for name, values in _split("--sweep", args.sweep)},
            threshold=args.threshold,
            eval_every=args.eval_every,
            deterministic=not args.sample,
            progress=True,
            **settings,
        )
    for result in comparison.failed:
        print(f"npg: failed: {result.path}:", *str(result.error).split(), file=sys.stderr)
    print(f"comparison {comparison.out}\n\n{comparison}")
    return 1 if comparison.failed else 0


@contextmanager
def _dask(address: str) -> Iterator[Any]:
    try:
        from dask.distributed import Client
    except ImportError:
        raise ImportError("--dask needs dask: pip install 'npg[dask]'") from None
    with Client(address) as client:
        yield client.get_executor()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npg", description="Policy-gradient methods, from scratch, in NumPy.")
    parser.add_argument("--version", action="version", version=f"npg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train an agent, then evaluate it")
    p.add_argument("algorithm", nargs="?", metavar="ALGORITHM", help="one of: " + ", ".join(ALGORITHMS))
    p.add_argument(
        "env", nargs="?", metavar="ENV", help="a Gymnasium id, also as MODULE:ID, of a module that registers it"
    )
    p.add_argument("--seed", type=int, help="0 by default")
    p.add_argument("--steps", type=int, help="environment steps")
    p.add_argument("--num-envs", type=int, help="parallel environments; 0 steps one scalar environment")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; VALUE is JSON or a word"
    )
    p.add_argument(
        "--env-set", action="append", default=[], metavar="NAME=VALUE", help="one of ENV, as max_episode_steps=5000"
    )
    p.add_argument(
        "--normalize-observations",
        action="store_true",
        help="to mean 0 and variance 1; features then need a scale in standard deviations, as in --set scale=1",
    )
    p.add_argument("--normalize-rewards", action="store_true", help="by the deviation of their discounted sum")
    p.add_argument("--out", metavar="DIR", help="run directory, runs/… by default")
    p.add_argument("--resume", metavar="DIR", help="go on with a run")
    p.add_argument("--allow-import", metavar="MODULE", help="with --resume: import the module of the run's environment")
    p.add_argument("--eval-every", type=int, metavar="STEPS", help="evaluate during training, and at its end")
    p.add_argument(
        "--sample",
        action="store_true",
        help="evaluate with sampled actions, not the most probable; what is deterministic has no other",
    )
    p.set_defaults(run=_train)

    p = commands.add_parser("compare", help="train methods on environments from several seeds, and compare them")
    p.add_argument("methods", metavar="METHODS", help="separated by commas, each one of: " + ", ".join(ALGORITHMS))
    p.add_argument("envs", nargs="+", metavar="ENV", help="Gymnasium ids, as of npg train")
    p.add_argument("--seeds", default="10", metavar="N", help="so many from 0, or FIRST-LAST; 10 by default")
    p.add_argument("--steps", type=int, help="environment steps of each run")
    p.add_argument("--num-envs", type=int, help="parallel environments; 0 steps one scalar environment")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, of all methods that have it"
    )
    p.add_argument("--env-set", action="append", default=[], metavar="NAME=VALUE", help="one of every ENV")
    p.add_argument(
        "--sweep", action="append", default=[], metavar="NAME=VALUE,…", help="try every value, as alpha=0.01,0.1,1"
    )
    p.add_argument("--threshold", type=float, help="the score that solves ENV, its reward_threshold by default")
    p.add_argument("--eval-every", type=int, metavar="STEPS", help="evaluate during training, and at its end")
    p.add_argument("--sample", action="store_true", help="evaluate with sampled actions instead of the most probable")
    p.add_argument("--out", metavar="DIR", help="directory, runs/compare-… by default; go on there if it exists")
    p.add_argument("--workers", type=int, help="processes, as many as there are processors by default")
    p.add_argument("--dask", metavar="ADDRESS", help="train on the workers of a Dask scheduler that see the same files")
    p.set_defaults(run=_compare)

    p = commands.add_parser("evaluate", help="play episodes with a trained agent")
    p.add_argument("dir", metavar="DIR", help="a run directory")
    p.add_argument("--episodes", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--allow-import", metavar="MODULE", help="import the module of the run's environment")
    p.add_argument("--sample", action="store_true", help="sampled actions, not the most probable")
    p.set_defaults(run=_evaluate)

    p = commands.add_parser("list", help="methods, presets and environments")
    p.set_defaults(run=_list)

    p = commands.add_parser("check", help="compare every registered gradient with numerical ones")
    p.add_argument("--instances", type=int, default=20, help="random instances of each")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_check)

    p = commands.add_parser("equations", help="the map equation, line of code, test that defines it")
    p.add_argument("--all", action="store_true", help="and all other tests that verify it")
    p.add_argument("--write", action="store_true", help="renew the tables that end the chapters")
    p.set_defaults(run=_equations)

    p = commands.add_parser("plot", help="draw learning curves of runs")
    p.add_argument("dirs", nargs="+", metavar="DIR")
    p.add_argument("--out", metavar="FILE", help="DIR/learning_curve.png by default")
    p.set_defaults(run=_plot)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. ``NPG_TRACEBACK=1`` shows where an error came from."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(args.run(args))
    except KeyboardInterrupt as error:
        print("", file=sys.stderr)
        return _report("interrupted", error, 130)
    except SystemExit as error:
        return _report("terminated", error, error.code)
    except BrokenPipeError:  # npg equations | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError, MemoryError, gymnasium.error.Error) as error:
        if os.environ.get("NPG_TRACEBACK"):
            raise
        return _report(f"error: {error or type(error).__name__}", error, 1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("npg: warning:", *str(message).split(), file=sys.stderr)


def _report(message: str, error: BaseException, status: Any) -> int:
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    print("npg:", *(message + notes).split(), file=sys.stderr)  # on one line
    return int(status)
