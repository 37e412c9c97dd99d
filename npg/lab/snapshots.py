"""How the state of an environment is saved within its episodes, and how the environment gets back to it.

A vector environment that can gives its state (``npg.envs.state``). A scalar one, and each one in a ``SyncVectorEnv``,
has its episodes seeded and its actions recorded: it gets back by playing its episode again.
"""

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from .._typing import Array
from ..envs.spaces import Env, normalizers
from ..envs.state import get_state, has_state, set_state

LONGEST = 1_000_000
"""Steps after which an episode is truncated, so that those in flight fit in memory and can be played again."""

_FLAGS = (bool, np.bool_)


def _copy(action: Any) -> Any:  # an environment may write into what it gets
    return action.copy() if isinstance(action, np.ndarray) else action


class Recorder:
    """Takes the place of ``reset`` and ``step`` of a scalar environment, whoever calls them, until it is released.

    The k-th episode is seeded from (seed, column, k), and its actions are kept, so that it can be played again.

    Parameters
    ----------
    env : gymnasium.Env
    seed, column : int

    Attributes
    ----------
    episode : int
        k, from 1: the number of resets so far.
    actions : list
        Of the episode so far, as the environment got them.
    digest : int
        A checksum of its observations and rewards.
    last : int, list, int
        Number, actions and digest of the last episode before this one that had a step; 0 where there is none.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int, column: int) -> None:
        self.env, self.seed, self.column = env, seed, column
        self.episode, self.digest = 0, 0
        self.actions: list[Any] = []
        self.last: tuple[int, list[Any], int] = (0, [], 0)
        self._before: dict[str, Any] = {name: vars(env)[name] for name in ("reset", "step") if name in vars(env)}
        self._reset, self._step = env.reset, env.step
        vars(env).update(reset=self.reset, step=self.step)

    def release(self) -> None:
        """Give the environment its own methods back."""
        for name in ("reset", "step"):
            del vars(self.env)[name]
        vars(self.env).update(self._before)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The next episode; a seed given by hand is passed on."""
        self.last = self.latest()
        self.episode, self.actions = self.episode + 1, []
        if seed is None:
            sequence = np.random.SeedSequence(self.seed, spawn_key=(0, self.column, self.episode))
            seed = int(sequence.generate_state(1)[0])
        self._first, info = self._reset(seed=seed, options=options)
        self.actions = []  # without those of a reset that steps
        self.digest = self._told(self._first, 0)
        return self._first, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step of the environment; ``ValueError`` for flags that are none, which a vector would make some of."""
        self.actions.append(_copy(action))
        obs, reward, terminated, truncated, info = self._step(action)
        for flag in (terminated, truncated):
            if not (isinstance(flag, _FLAGS) or (np.ndim(flag) == 0 and flag in (0, 1))):
                shown = f"{terminated!r}, {truncated!r}"
                raise ValueError(f"the environment must return flags that are True or False, got {shown}")
        self.digest = self._told(obs, zlib.crc32(np.asarray(reward).tobytes(), self.digest))
        if len(self.actions) >= LONGEST and not (terminated or truncated):
            warnings.warn(f"an episode was truncated after {LONGEST:,} steps: give it a time limit", stacklevel=2)
            truncated = True
        return obs, reward, terminated, truncated, info

    def _told(self, obs: Any, digest: int) -> int:
        if isinstance(obs, dict | tuple):
            obs = flatten(self.env.observation_space, obs)
        return zlib.crc32(np.asarray(obs).tobytes(), digest)

    def latest(self) -> tuple[int, list[Any], int]:
        """Number, actions and digest of the last episode that had a step, this one included."""
        return (self.episode, self.actions, self.digest) if self.actions else self.last

    def replay(self, episode: int, actions: Iterable[Any]) -> Any:
        """Play an episode of that number again: its last observation."""
        self.episode = episode - 1
        obs = self.reset()[0]
        for action in actions:
            obs = self.step(_copy(action))[0]
        return obs

    def answer(self) -> None:
        """Let the next ``step``, of an episode just reset, play nothing and return the first observation."""

        def step(action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            vars(self.env)["step"] = self.step
            return self._first, 0.0, False, False, {}

        vars(self.env)["step"] = step


class Snapshots:
    """Saves and restores the state of one environment, until it is released.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    seed : int
        Of all episodes that are recorded.

    Attributes
    ----------
    recorders : list of Recorder
        Of each scalar environment; empty where ``env`` cannot be recorded, and its resets are to be seeded.
    possible : bool
        Whether there is a way back into episodes: ``env`` is recorded or gives its state, in wrappers of Gymnasium.
    """

    def __init__(self, env: Env, seed: int) -> None:
        self.env, self.vector = env, isinstance(env, VectorEnv)
        base: Any = env.unwrapped
        scalars: Any = base.envs if isinstance(base, SyncVectorEnv) else [] if self.vector else [env]
        self.recorders = [Recorder(scalar, seed, column) for column, scalar in enumerate(scalars)]
        # Frozen statistics do not normalise as they did then: such an episode is known again by what is below them.
        inner = [list(normalizers(env).values())[-1].env] if not self.vector and normalizers(env) else []
        self._witnesses = [Recorder(scalar, seed, 0) for scalar in inner] or self.recorders
        known = not self.vector or (type(base) is SyncVectorEnv if self.recorders else has_state(base))
        self.possible = known and _is_transparent(env)

    def release(self) -> None:
        """Give the environment back as it was."""
        for recorder in dict.fromkeys(self._witnesses + self.recorders):
            recorder.release()

    def save(self, within: bool) -> dict[str, Array]:
        """Copies of arrays by name, within episodes or between them."""
        if not self.recorders:
            return {f"env.{name}": a for name, a in get_state(self.env.unwrapped).items()} if within else {}
        space: Any = self.recorders[0].env.action_space
        # Of the first column the last episode too, by which it is known again even where one has just begun.
        (number, last, _), (_, _, digest) = (
            each[0].last if within else each[0].latest() for each in (self.recorders, self._witnesses)
        )
        arrays = {"episode": [recorder.episode for recorder in self.recorders], "last.episode": number}
        arrays |= {"last.digest": digest, "last.actions": _actions(space, last)}
        if within:
            actions = [action for recorder in self.recorders for action in recorder.actions]
            arrays |= {"actions": _actions(space, actions)}
            arrays |= {"lengths": [len(recorder.actions) for recorder in self.recorders]}
            arrays |= {"digests": [witness.digest for witness in self._witnesses]}
        return {name: np.array(array) for name, array in arrays.items()}

    def restore(self, arrays: dict[str, Array], known: Callable[[Any], bool]) -> None:
        """Get back to where ``save`` was called.

        Parameters
        ----------
        arrays : dict
            Of ``save``, of the same names, shapes and dtypes; within episodes also ``sent``, the last actions, and
            ``resetting``, where these ended an episode that is to be reset in the next step.
        known : callable
            Whether the observation that is returned at last is what it was.

        Raises
        ------
        ValueError
            If they do not agree, or if the environment does not come back.
        """
        if self.recorders:
            self._check(arrays)
            self._replay(arrays, known)
        elif arrays:
            set_state(self.env.unwrapped, {name[4:]: a for name, a in arrays.items() if name.startswith("env.")})

    def _check(self, arrays: dict[str, Array]) -> None:
        space, within = self.recorders[0].env.action_space, "lengths" in arrays
        last, episode = arrays["last.episode"], arrays["episode"]
        agree = [
            (episode >= within).all(),
            (last > 0) == bool(len(arrays["last.actions"])),
            int(last) <= int(episode[0]) - within,
        ]
        if within:
            lengths, number = arrays["lengths"], len(arrays["actions"])
            agree += [(lengths >= 0).all(), lengths.max() <= number == lengths.sum()]
        for name in ("actions", "last.actions"):
            if isinstance(space, spaces.Discrete) and name in arrays:
                agree.append((arrays[name] >= space.start).all() and (arrays[name] < space.start + space.n).all())
        if not all(agree):
            raise ValueError(f"the numbers, lengths and actions of episodes must agree, got {arrays}")

    def _replay(self, arrays: dict[str, Array], known: Callable[[Any], bool]) -> None:
        """Play the last episode of the first column again, then those in flight, and compare what comes of them."""
        first, witness = self.recorders[0], self._witnesses[0]
        last, number, digest = self._played(arrays["last.actions"]), int(arrays["last.episode"]), arrays["last.digest"]
        within = "lengths" in arrays
        try:
            with warnings.catch_warnings(action="ignore"):
                if last:
                    first.replay(number, last)
                same = (not last or witness.digest == digest) and (not within or self._same(arrays, known))
        except Exception as error:  # whatever an environment has for actions that never were
            raise ValueError(f"the episodes of the state cannot be played again: {error!r:.200}") from error
        if not same:
            raise ValueError(
                "the environment does not come back to where it was when its episodes are seeded and played again: "
                "it remembers more than the episode, or has randomness that reset(seed) does not set"
            )
        for recorder, episode in zip(self.recorders, arrays["episode"].tolist(), strict=True):
            recorder.episode = episode
        if not within:
            first.actions = witness.actions = []
        first.last = witness.last = number, last, int(digest)

    def _same(self, arrays: dict[str, Array], known: Callable[[Any], bool]) -> bool:
        """Play the episodes in flight again: whether what comes of them is the same."""
        if self.vector:
            self.env.reset()
        split = np.split(arrays["actions"], np.cumsum(arrays["lengths"])[:-1])
        for recorder, episode, array in zip(self.recorders, arrays["episode"].tolist(), split, strict=True):
            actions = self._played(array)
            obs = recorder.replay(episode, actions[:-1] if self.vector else actions)
            if self.vector and not actions:
                recorder.answer()
        if self.vector:  # the last action of each comes through the vector, which so gets to where it was
            obs, _, terminated, truncated, _ = self.env.step(arrays["sent"].copy())
            if not np.array_equal(terminated | truncated, arrays["resetting"]):
                return False
        return [witness.digest for witness in self._witnesses] == arrays["digests"].tolist() and known(obs)

    def _played(self, actions: Array) -> list[Any]:
        """Actions as the environment gets them: a scalar one, if they are Discrete, as Python's integers."""
        return [*actions] if self.vector or actions.ndim > 1 or actions.dtype.kind == "f" else actions.tolist()

    @contextmanager
    def watched(self, use: Callable[[], None]) -> Iterator[None]:
        """Within the ``with``, ``use`` is called before each reset and step of the environment or of any in it."""
        layers: list[Any] = [self.env] + [recorder.env for recorder in self.recorders + self._witnesses]
        with ExitStack() as stack:
            for env in dict.fromkeys(layers + [env.unwrapped for env in layers]):
                stack.enter_context(_watched(env, use))
            yield


def _actions(space: Any, actions: list[Any]) -> Array:
    return np.array(actions, space.dtype).reshape(-1, *space.shape)


def _is_transparent(env: Any) -> bool:
    """Whether a vector environment has no wrappers but those of Gymnasium, which do not act on what they remember."""
    while isinstance(env, VectorWrapper):
        if not type(env).__module__.startswith("gymnasium.wrappers.vector."):
            return False
        env = env.env
    return True


@contextmanager
def _watched(env: Any, use: Callable[[], None]) -> Iterator[None]:
    """Within the ``with``, ``use`` is called before each reset and step of an environment."""

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            use()
            return method(*args, **kwargs)

        return call

    own = dict(vars(env))
    vars(env).update(reset=watched(env.reset), step=watched(env.step))
    try:
        yield
    finally:
        for name in ("reset", "step"):
            del vars(env)[name]
            vars(env).update({name: own[name]} if name in own else {})
