"""Gymnasium's classic control, N copies at a time: the equations, constants and precision of its scalar environments.

Each task takes the settings of the scalar environment and the options of its ``reset``. The same states and actions
have the same successors, rewards, observations and flags. The order of operations is Gymnasium's: a pole that is
balanced, or two links that swing high, make a difference in the last bit grow to any size within an episode.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds, verify_number_and_cast

from .._checks import is_number
from .._typing import Array, Rng


def _box(*high: float, low: tuple[float, ...] | None = None) -> spaces.Box:
    bound = np.array(high, dtype=np.float32)
    return spaces.Box(-bound if low is None else np.array(low, dtype=np.float32), bound, dtype=np.float32)


def _number(name: str, value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _bound(x: Array, low: float, high: float) -> Array:
    """``np.clip`` in place, without its overhead."""
    return np.minimum(np.maximum(x, low, out=x), high, out=x)


def _uniform(rng: Rng, size: tuple[int, int], options: dict[str, Any], low: float, high: float) -> Array:
    return rng.uniform(*(maybe_parse_reset_bounds(options, low, high) if options else (low, high)), size)


_PUSHES = np.array([-10.0, 10.0])
_SECONDS = np.array([[0.02], [2 * 0.02]])
_FALLS = np.array([[2.4], [12 * 2 * np.pi / 360]])
_FORCES = np.array([-0.001, 0, 0.001])


class CartPole:
    """A pole on a cart that is pushed to the left, 0, or to the right, 1; states (x, ẋ, θ, θ̇).

    Parameters
    ----------
    sutton_barto_reward : bool
        −1 at the fall and 0 before, in place of 1 at each step.
    kinematics_integrator : {"euler", "semi-implicit euler"}
        The attribute of that name in Gymnasium's environment.
    """

    observation_space = _box(4.8, np.inf, 2 * np.radians(12), np.inf)
    action_space = spaces.Discrete(2)

    def __init__(self, sutton_barto_reward: bool = False, kinematics_integrator: str = "euler") -> None:
        if kinematics_integrator not in ("euler", "semi-implicit euler"):
            allowed = "'euler' or 'semi-implicit euler'"
            raise ValueError(f"kinematics_integrator must be {allowed}, got {kinematics_integrator!r}")
        self.sutton_barto_reward, self.semi_implicit = sutton_barto_reward, kinematics_integrator != "euler"
        self._work: tuple[Array, ...] = (np.empty(0),)

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """Uniform in ±0.05, or between ``low`` and ``high``."""
        return _uniform(rng, (4, n), options, -0.05, 0.05)

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """0.02 seconds."""
        moved, velocity, theta = s[::2], s[1::2], s[2]
        if self._work[0].shape != a.shape:
            change, moves = np.empty((2, 2, len(a)))
            self._work = *np.empty((4, len(a))), *change, change, moves, np.ones(len(a))
        cos, sin, push, inertia, of_cart, of_pole, change, moves, ones = self._work
        np.cos(theta, out=cos)
        np.sin(theta, out=sin)
        np.square(s[3], out=push)
        push *= 0.05
        push *= sin
        push += _PUSHES[a]
        push /= 1.1
        np.square(cos, out=inertia)
        inertia *= 0.1
        inertia /= 1.1
        np.subtract(4 / 3, inertia, out=inertia)
        sin *= 9.8
        sin -= np.multiply(cos, push, out=of_cart)
        np.divide(sin, inertia, out=of_pole)  # the acceleration, but for a factor of 2 by half the length
        np.multiply(of_pole, 2 * 0.05, out=of_cart)
        of_cart *= cos
        of_cart /= 1.1
        np.subtract(push, of_cart, out=of_cart)
        change *= _SECONDS
        if self.semi_implicit:
            velocity += change
            moved += np.multiply(velocity, 0.02, out=moves)
        else:
            moved += np.multiply(velocity, 0.02, out=moves)
            velocity += change
        fallen = np.abs(moved, out=moves) > _FALLS
        terminated: Array = fallen[0] | fallen[1]
        return (-terminated.astype(float) if self.sutton_barto_reward else ones.copy()), terminated

    def observe(self, s: Array) -> Array:
        """The state."""
        return s.astype(np.float32).T


class MountainCar:
    """A car in a valley that pushes back, 0, not, 1, or forward, 2; states (x, ẋ).

    Parameters
    ----------
    goal_velocity : float
        Least velocity that counts at the goal.
    """

    observation_space = _box(0.6, 0.07, low=(-1.2, -0.07))
    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self, goal_velocity: float = 0) -> None:
        self.goal_velocity = _number("goal_velocity", goal_velocity)

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """At rest, the place uniform in [−0.6, −0.4], or between ``low`` and ``high``."""
        return np.concatenate([_uniform(rng, (1, n), options, -0.6, -0.4), np.zeros((1, n))])

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """One step, which costs 1."""
        x, v = s
        slope = 3 * x
        np.cos(slope, out=slope)
        slope *= -0.0025
        slope += _FORCES[a]
        v += slope
        return np.full(len(a), -1.0), self._moved(x, v, 0.5)

    def _moved(self, x: Array, v: Array, goal: float) -> Array:
        """Move the places x by velocities v, both within their bounds, in place: whether that is at the goal."""
        _bound(v, -0.07, 0.07)
        x += v
        _bound(x, -1.2, 0.6)
        wall = x == -1.2
        if np.count_nonzero(wall):
            np.maximum(v, 0, out=v, where=wall)
        terminated: Array = x >= goal
        if np.count_nonzero(terminated):
            terminated &= v >= self.goal_velocity
        return terminated

    def observe(self, s: Array) -> Array:
        """The state."""
        return s.astype(np.float32).T


class MountainCarContinuous(MountainCar):
    """The mountain car with a force in [−1, 1], to which it is clipped, while the whole action is paid for.

    As in Gymnasium, the state is in float32 from the first step on.
    """

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """One step, with 100 for the goal."""
        a = a[:, 0]
        force = np.minimum(np.maximum(a, -1), 1)
        x, v, terminated = self._pushed(s.astype(np.float32), force)
        first = t == 0
        if np.count_nonzero(first):
            x[first], v[first], terminated[first] = self._pushed(s[:, first], force[first])
        s[0], s[1] = x, v
        rewards = np.square(a, dtype=float)
        rewards *= -0.1
        if np.count_nonzero(terminated):
            rewards[terminated] += 100
        return rewards, terminated

    def _pushed(self, s: Array, force: Array) -> tuple[Array, Array, Array]:
        """Places, velocities and flags after states of any precision."""
        slope = (3 * s[0]).astype(float)
        np.cos(slope, out=slope)
        slope *= 0.0025
        push = force * 0.0015
        push -= slope.astype(force.dtype)
        v = s[1] + push
        x = s[0].astype(v.dtype, copy=False)
        return x, v, self._moved(x, v, 0.45)


class Acrobot:
    """Two links of which only the second joint is driven, by the torque −1, 0 or 1; states (θ₁, θ₂, θ̇₁, θ̇₂)."""

    observation_space = _box(1, 1, 1, 1, 4 * np.pi, 9 * np.pi)
    action_space = spaces.Discrete(3)

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """Uniform in ±0.1, or between ``low`` and ``high``, rounded to float32."""
        return _uniform(rng, (4, n), options, -0.1, 0.1).astype(np.float32).astype(float)

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """0.2 seconds, by the method of Runge and Kutta."""
        torque = a - 1.0
        k1 = _acrobot(s, torque)
        k2 = _acrobot(s + 0.1 * k1, torque)
        k3 = _acrobot(s + 0.1 * k2, torque)
        k4 = _acrobot(s + 0.2 * k3, torque)
        k1 += 2 * k2
        k1 += 2 * k3
        k1 += k4
        k1 *= 0.2 / 6
        s += k1
        angles = s[:2]
        angles -= 2 * np.pi * np.rint(angles / (2 * np.pi))
        _bound(s[2], -4 * np.pi, 4 * np.pi)
        _bound(s[3], -9 * np.pi, 9 * np.pi)
        terminated = np.cos(s[0]) + np.cos(s[0] + s[1]) < -1
        return terminated - 1.0, terminated

    def observe(self, s: Array) -> Array:
        """Cosine and sine of θ₁ and of θ₂, and θ̇₁ and θ̇₂."""
        obs = np.empty((6, s.shape[1]), dtype=np.float32)
        obs[0:4:2], obs[1:4:2], obs[4:] = np.cos(s[:2]), np.sin(s[:2]), s[2:]
        return obs.T


def _acrobot(s: Array, torque: Array) -> Array:
    """The time derivative of states (4, N): the equations of the book of Sutton and Barto."""
    theta1, theta2, omega1, omega2 = s
    derivative = np.empty_like(s)
    derivative[:2] = s[2:]
    of_1, of_2 = derivative[2], derivative[3]
    cos, sin = np.cos(theta2), np.sin(theta2)
    d1 = cos + 1.25
    d1 += 0.25
    d1 += 1
    d1 += 1
    d2 = np.multiply(cos, 0.5, out=cos)
    d2 += 0.25
    d2 += 1
    phi2 = theta1 + theta2
    phi2 -= np.pi / 2
    np.cos(phi2, out=phi2)
    phi2 *= 0.5 * 9.8
    phi1 = np.square(omega2)
    phi1 *= -0.5
    phi1 *= sin
    coriolis = omega2 * omega1
    coriolis *= sin
    phi1 -= coriolis
    weight = theta1 - np.pi / 2
    np.cos(weight, out=weight)
    weight *= 1.5 * 9.8
    phi1 += weight
    phi1 += phi2
    np.divide(d2, d1, out=of_2)
    of_2 *= phi1
    of_2 += torque
    centrifugal = np.square(omega1)
    centrifugal *= 0.5
    centrifugal *= sin
    of_2 -= centrifugal
    of_2 -= phi2
    inertia = np.square(d2)
    inertia /= d1
    np.subtract(1.25, inertia, out=inertia)
    of_2 /= inertia
    np.multiply(d2, of_2, out=of_1)
    of_1 += phi1
    of_1 /= np.negative(d1, out=d1)
    return derivative


class Pendulum:
    """A pendulum to swing up and hold by a torque, clipped to ±2; states (θ, θ̇), where θ = 0 is up.

    Parameters
    ----------
    g : float
        Gravity.
    """

    observation_space = _box(1, 1, 8)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, g: float = 10.0) -> None:
        self.g = _number("g", g)

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """Uniform in ±(``x_init``, ``y_init``), which are π and 1 by default."""
        names = {"x_init": np.pi, "y_init": 1.0}
        high = np.array([[verify_number_and_cast(options.get(name, value))] for name, value in names.items()])
        return rng.uniform(-high, high, (2, n))

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """0.05 seconds, after the cost θ² + 0.1 θ̇² + 0.001 a² of where it is."""
        theta, omega = s
        u = np.minimum(np.maximum(a[:, 0], -2), 2)
        costs = theta / (2 * np.pi)  # turns, of which the angle between ±π is what is beyond whole ones
        costs -= np.rint(costs)
        np.square(costs, out=costs)
        costs *= (2 * np.pi) ** 2
        swing = np.square(omega)
        swing *= 0.1
        costs += swing
        costs += (0.001 * np.square(u)).astype(float)
        push = np.sin(theta)
        push *= 3 * self.g / 2
        push += (3.0 * u).astype(float)
        push *= 0.05
        omega += push
        _bound(omega, -8, 8)
        theta += 0.05 * omega
        return np.negative(costs, out=costs), np.zeros(len(a), dtype=bool)

    def observe(self, s: Array) -> Array:
        """Cosine and sine of θ, and θ̇."""
        obs = np.empty((3, s.shape[1]), dtype=np.float32)
        obs[0], obs[1], obs[2] = np.cos(s[0]), np.sin(s[0]), s[1]
        return obs.T
