"""Features: from a batch of observations to the inputs x of a model (derivations, chapters 3 and 7).

Every feature object is called with a batch of observations, one row each, and returns one row of features for
each: a float array (B, d), or, for ``OneHot`` and ``TileCoding``, an integer array (B, K) holding the indices of the
K active features. ``n_features`` is d.

A space is anything with the attributes of Gymnasium's ``Box`` (low, high, shape) or ``Discrete`` (n, start), or a
number of components or states. The features of a box are functions of the observation scaled by its bounds. Where it
has none an explicit ``scale`` is needed, because a guess would silently decide what the features can tell apart.
"""

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any, ClassVar

import numpy as np

from ._checks import at_least, is_integer, positive
from ._typing import Array, BoxSpace, DiscreteSpace, Inputs

MAX_FEATURES = 100_000


def rows(x: Inputs, index: Any) -> Inputs:
    """Rows ``index`` of the inputs ``x``, whether they are one array or a pair."""
    if not isinstance(x, tuple):
        return x[index]
    first = x[0][index]
    return first, first if x[1] is x[0] else x[1][index]


def dense(x: Array, n_features: int) -> Array:
    """The (B, n_features) float form of ``x``, which may hold active-feature indices, Eq. (3.13)."""
    if x.dtype.kind not in "iu":
        return x
    full = np.zeros((len(x), n_features))
    np.add.at(full, (np.arange(len(x))[:, None], x), 1)
    return full


@dataclass(frozen=True)
class OneHot:
    """Indicator of a Discrete observation, as the active index Eq. (3.13); a linear model on it is tabular, Eq. (3.8).

    Parameters
    ----------
    space : gymnasium.spaces.Discrete or int
        The observation space, or its number of states.

    Attributes
    ----------
    n_features : int
        Number of states.
    start : int
        The first of them.
    """

    space: DiscreteSpace | int = field(compare=False)
    n_features: int = field(init=False, repr=False)
    start: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        space = self.space
        if not (isinstance(space, DiscreteSpace) or is_integer(space, 1)):
            raise TypeError(f"OneHot needs a Discrete observation space or a number of states, got {space}")
        n, start = (space.n, space.start) if isinstance(space, DiscreteSpace) else (space, 0)
        object.__setattr__(self, "n_features", int(n))
        object.__setattr__(self, "start", int(start))

    def __call__(self, obs: Array) -> Array:
        """Index of the active feature: (B,) integers -> (B, 1) integers."""
        obs = np.asarray(obs)
        if obs.ndim != 1 or obs.dtype.kind not in "iu":
            raise ValueError(f"observations must be integers of shape (B,), got {obs.dtype} of shape {obs.shape}")
        x = obs[:, None].astype(np.int64) - self.start
        if x.size and not 0 <= x.min() <= x.max() < self.n_features:
            last = self.start + self.n_features - 1
            raise ValueError(f"observations must be from {self.start} to {last}, got {obs.min()} to {obs.max()}")
        return x


@dataclass(frozen=True)
class Table:
    """Given features of each Discrete observation; those with equal rows cannot be told apart.

    Parameters
    ----------
    space : gymnasium.spaces.Discrete or int
        The observation space, or its number of states S.
    table : (S, d)
        x(s) of each state.
    """

    space: DiscreteSpace | int = field(compare=False)
    table: Any

    def __post_init__(self) -> None:
        n = self._index.n_features
        try:
            table = np.asarray(self.table, dtype=float)
        except (TypeError, ValueError):  # ragged, or no numbers
            table = np.zeros(0)
        if table.ndim != 2 or len(table) != n or not table.shape[1] or not np.isfinite(table).all():
            raise ValueError(f"table must have a row of finite numbers for each of {n} states, got {self.table!r}")
        object.__setattr__(self, "table", tuple(map(tuple, table.tolist())))

    @cached_property
    def _index(self) -> OneHot:
        return OneHot(self.space)

    @cached_property
    def _rows(self) -> Array:
        return np.array(self.table)

    @property
    def n_features(self) -> int:
        """d."""
        return self._rows.shape[1]

    def __call__(self, obs: Array) -> Array:
        """(B,) integers -> (B, d)."""
        return self._rows[self._index(obs)[:, 0]]


@dataclass(frozen=True)
class Constant:
    """The single feature 1: what a state-independent σ is linear in."""

    space: Any = field(default=None, compare=False)
    n_features = 1

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, 1) ones."""
        return np.ones((len(obs), 1))


@dataclass(frozen=True)
class _BoxFeatures:
    """Features of a Box observation, scaled to u ∈ [−1, 1] per component.

    Parameters
    ----------
    space : gymnasium.spaces.Box or int
        The observation space, or its number of components; observations of several axes are flattened.
    scale : float or sequence of float, optional
        Half-width of the range of each component: u = s / scale. Needed where a bound is infinite; where it is
        given it replaces the bounds. Observations outside the range are not clipped, except by ``TileCoding``.
    """

    space: BoxSpace | int = field(compare=False)
    scale: Any = field(default=None, kw_only=True)
    shape: tuple[int, ...] = field(init=False, repr=False)
    bounds: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        name, space = type(self).__name__, self.space
        if isinstance(space, BoxSpace):
            shape, bounds = tuple(space.shape), (np.ravel(space.low), np.ravel(space.high))
        elif is_integer(space, 1):
            shape, bounds = (int(space),), (np.full(space, -np.inf), np.full(space, np.inf))
        else:
            raise TypeError(f"{name} needs a Box observation space or a number of components, got {space}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "bounds", tuple(map(tuple, bounds)) if self.scale is None else None)
        if self.scale is not None:
            try:
                scale = np.asarray(self.scale, dtype=float)
            except (TypeError, ValueError):
                scale = np.zeros(1)
            fits = scale.ndim <= 1 and scale.size in (1, self.n_inputs) and not isinstance(self.scale, bool)
            if not (fits and (scale > 0).all() and np.isfinite(scale).all()):
                raise ValueError(f"scale must be one positive number or {self.n_inputs} of them, got {self.scale!r}")
            object.__setattr__(self, "scale", tuple(scale.tolist()) if scale.ndim else float(scale))
        elif (unbounded := np.flatnonzero((np.abs(bounds) >= np.finfo(np.float32).max).any(axis=0))).size:
            shown = ", ".join(map(str, unbounded[:5])) + (", …" if len(unbounded) > 5 else "")
            raise ValueError(
                f"{name}: the observation space has infinite bounds (component {shown} of {self.n_inputs}); "
                "give scale, the half-width of the range of each component"
            )
        self._validate()

    def _validate(self) -> None:
        pass

    @cached_property
    def n_inputs(self) -> int:
        """Number of components of one observation."""
        return math.prod(self.shape)

    @cached_property
    def _centre_and_half_width(self) -> tuple[Array, Array]:
        if self.scale is not None:
            return np.zeros(self.n_inputs), np.broadcast_to(np.asarray(self.scale, float), self.n_inputs)
        low, high = np.array(self.bounds, dtype=float)
        return (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)

    def _flat(self, obs: Array) -> Array:
        """(B, …) -> (B, n_inputs)."""
        if obs.shape[1:] != self.shape:
            raise ValueError(f"observations must have shape (B, {', '.join(map(str, self.shape))}), got {obs.shape}")
        return obs.reshape(len(obs), self.n_inputs)

    def scaled(self, obs: Array) -> Array:
        """u = (s − centre) / half-width: (B, …) -> (B, n_inputs)."""
        centre, half_width = self._centre_and_half_width
        return (self._flat(np.asarray(obs)) - centre) / half_width


@dataclass(frozen=True)
class Affine(_BoxFeatures):
    """x = (u, 1): the scaled observation and a constant.

    Parameters
    ----------
    bias : bool
        False leaves the constant out.
    """

    bias: bool = True

    def _validate(self) -> None:
        if not isinstance(self.bias, bool):
            raise ValueError(f"bias must be true or false, got {self.bias!r}")

    @property
    def n_features(self) -> int:
        """n_inputs, + 1 with the constant."""
        return self.n_inputs + self.bias

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, d)."""
        u = self.scaled(obs)
        if not self.bias:
            return u
        x = np.ones((len(u), self.n_features))
        x[:, :-1] = u
        return x


def _check_size(name: str, n_features: int, advice: str = "lower its order") -> None:
    if n_features > MAX_FEATURES:
        raise ValueError(f"{name} would make too many features, more than {MAX_FEATURES}: {advice}")


@dataclass(frozen=True)
class Polynomial(_BoxFeatures):
    """All monomials of total degree ≤ ``degree`` in u ∈ [−1, 1], the constant first.

    Parameters
    ----------
    degree : int
        At least 0.
    """

    degree: int = 2

    def _validate(self) -> None:
        at_least("degree", self.degree, 0)
        _check_size("Polynomial", self.degree)  # of the numbers below, the least, and quick to tell
        # Its table of factors has as many entries.
        _check_size("Polynomial", math.comb(self.n_inputs + self.degree, self.degree) * max(self.degree, 1))

    @cached_property
    def _factors(self) -> Array:
        """Row c names the inputs whose product is monomial c; index n_inputs stands for the factor 1."""
        one = self.n_inputs
        return np.array(
            [
                monomial + (one,) * (self.degree - degree)
                for degree in range(self.degree + 1)
                for monomial in combinations_with_replacement(range(self.n_inputs), degree)
            ],
            dtype=int,
        )

    @property
    def n_features(self) -> int:
        """binomial(n_inputs + degree, degree)."""
        return len(self._factors)

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, d)."""
        u = self.scaled(obs)
        u1 = np.concatenate([u, np.ones((len(u), 1))], axis=1)
        x = np.ones((len(u), self.n_features))
        for factor in self._factors.T:
            x *= u1[:, factor]
        return x


@dataclass(frozen=True)
class Fourier(_BoxFeatures):
    """Cosine basis cos(π c·u), c ∈ {0, …, order}^n_inputs, with u scaled to [0, 1], Eq. (3.14).

    Konidaris, Osentoski & Thomas (2011). The constant comes first.

    Parameters
    ----------
    order : int
        At least 0; there are (order + 1)^n_inputs features.
    """

    order: int = 3

    def _validate(self) -> None:
        at_least("order", self.order, 0)
        _check_size("Fourier", self.n_features)

    @cached_property
    def coefficients(self) -> Array:
        """c, one row per feature: (d, n_inputs)."""
        return np.array(list(product(range(self.order + 1), repeat=self.n_inputs)), dtype=float)

    @property
    def n_features(self) -> int:
        """(order + 1)^n_inputs."""
        return int((self.order + 1) ** self.n_inputs)

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, d)."""
        u = (self.scaled(obs) + 1) / 2
        return np.cos(np.pi * (u @ self.coefficients.T))  # (3.14)


@dataclass(frozen=True)
class RBF(_BoxFeatures):
    """Gaussian bumps exp(−‖u − c‖²/(2 width²)) on a grid of centres in [0, 1]^n_inputs, and a constant, Eq. (3.15).

    Parameters
    ----------
    n_centres : int
        Centres per component, at least 2; there are n_centres^n_inputs + 1 features, the constant last.
    width : float, optional
        ς, in units of the scaled range; the distance of neighbouring centres by default.
    """

    n_centres: int = 5
    width: float | None = None

    def _validate(self) -> None:
        at_least("n_centres", self.n_centres, 2)
        _check_size("RBF", self.n_features)
        if self.width is not None:
            positive("width", self.width)

    @cached_property
    def centres(self) -> Array:
        """c, one row per bump: (d − 1, n_inputs)."""
        return np.array(list(product(np.linspace(0, 1, self.n_centres), repeat=self.n_inputs)))

    @property
    def n_features(self) -> int:
        """n_centres^n_inputs + 1."""
        return int(self.n_centres**self.n_inputs) + 1

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, d)."""
        u = (self.scaled(obs) + 1) / 2
        width = self.width or 1 / (self.n_centres - 1)
        distance2 = ((u[:, None, :] - self.centres) ** 2).sum(axis=-1)
        x = np.ones((len(u), self.n_features))
        x[:, :-1] = np.exp(-distance2 / (2 * width**2))  # (3.15)
        return x


@dataclass(frozen=True)
class RandomFourier(_BoxFeatures):
    """sqrt(2/D) cos(ω·u + b) with random ω and b: inner products approximate a Gaussian kernel, Eq. (3.16).

    Rahimi & Recht (2007). u is scaled to [−1, 1].

    Parameters
    ----------
    n_features : int
        D ≥ 1.
    length_scale : float
        ℓ of the kernel exp(−‖u − u'‖²/(2ℓ²)).
    seed : int
        Draws ω and b; part of the configuration, so that a run can be rebuilt.
    """

    n_features: int = 100
    length_scale: float = 1.0
    seed: int = 0

    def _validate(self) -> None:
        at_least("n_features", self.n_features, 1)
        _check_size("RandomFourier", self.n_features)
        positive("length_scale", self.length_scale)
        at_least("seed", self.seed, 0)

    @cached_property
    def _omega_and_b(self) -> tuple[Array, Array]:
        rng = np.random.default_rng(self.seed)
        omega = rng.standard_normal((self.n_features, self.n_inputs)) / self.length_scale
        return omega, rng.uniform(0, 2 * np.pi, self.n_features)

    def __call__(self, obs: Array) -> Array:
        """(B, …) -> (B, D)."""
        omega, b = self._omega_and_b
        return np.sqrt(2 / self.n_features) * np.cos(self.scaled(obs) @ omega.T + b)  # (3.16)


_MULTIPLIER = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio, and odd: multiplication loses nothing


@dataclass(frozen=True)
class TileCoding(_BoxFeatures):
    """Tile coding: the indices of one active tile in each of K grids displaced against each other, Eq. (7.22).

    Component i = 1, …, q of the observation is scaled and clipped to u_i ∈ [0, n_i]. The tile of tiling j = 0, …, K − 1
    is c_ji = floor(u_i + o_ji), with the asymmetric offsets o_ji = (j (2i − 1) mod K) / K. Sutton & Barto (2018),
    section 9.5.4. The indices of tiling j lie in a block of its own, so that none occurs twice in a row: a step
    w ← w + α δ x(s) changes v̂(s) by α K δ, and a step size is to be divided by K.

    Parameters
    ----------
    n_tilings : int
        K ≥ 1. With a power of two the tilings are spread evenly in every direction.
    n_tiles : int or sequence of int
        n_i ≥ 1, tiles across the range of each component; the displaced grid has one more.
    table_size : int, optional
        Hash the tiles of each tiling into a table of its own of table_size // K weights. Tiles of one tiling that meet
        there share a weight; those of different tilings never do. Needed where Π (n_i + 1) is large.

    Raises
    ------
    ValueError
        For a parameter out of range, or more than ``MAX_FEATURES`` features.
    """

    n_tilings: int = 8
    n_tiles: Any = 8
    table_size: int | None = None
    _memo: ClassVar[Any] = (None, None)  # in the instance: the last observations and their tiles

    def _validate(self) -> None:
        at_least("n_tilings", self.n_tilings, 1)
        try:
            n_tiles = np.asarray(self.n_tiles)
        except ValueError:  # ragged
            n_tiles = np.zeros(1)
        fits = n_tiles.dtype.kind in "iu" and n_tiles.ndim <= 1 and n_tiles.size in (1, self.n_inputs)
        if not (fits and (n_tiles > 0).all()):
            raise ValueError(
                f"n_tiles must be one integer of at least 1 or {self.n_inputs} of them, got {self.n_tiles!r}"
            )
        object.__setattr__(self, "n_tiles", tuple(n_tiles.tolist()) if n_tiles.ndim else int(n_tiles))
        if self.table_size is None:
            advice = "lower n_tiles or n_tilings, or give table_size to hash the tiles"
        else:
            at_least("table_size", self.table_size, self.n_tilings)
            advice = "lower table_size"
        _check_size("TileCoding", self.n_features, advice)

    @cached_property
    def _n(self) -> tuple[int, ...]:
        """(n_1, …, n_q)."""
        return tuple(np.broadcast_to(self.n_tiles, self.n_inputs).tolist())

    @cached_property
    def _block(self) -> int:
        """Features of one tiling."""
        return math.prod(n + 1 for n in self._n) if self.table_size is None else int(self.table_size // self.n_tilings)

    @property
    def n_features(self) -> int:
        """K Π (n_i + 1), or K (table_size // K)."""
        return int(self.n_tilings) * self._block

    @cached_property
    def _grid(self) -> tuple[Array, Array, Array, list[Array], Array, Array]:
        """low, per_unit, most (q,), tiles, multipliers and first (K,) of ``__call__``.

        Lengths are in K-th parts of a tile, which makes the displacements K o_ji integers. ``tiles`` has a table
        for each component: row p holds what a component at p adds to the number of its tile, for each tiling.
        """
        K, q = int(self.n_tilings), self.n_inputs
        half_width = self._centre_and_half_width[1]
        low = np.array(self.bounds[0], dtype=float) if self.scale is None else -half_width
        most = np.array([K * n for n in self._n], dtype=float)
        # Five roundings lose less than this adds: a state on a boundary is in the tile above, as in exact arithmetic.
        per_unit = most / (2 * half_width) * (1 + 4 * np.finfo(float).eps)
        displacement = np.arange(K)[:, None] * (2 * np.arange(q) + 1) % K  # (7.22), K o_ji
        if self.table_size is None:
            strides = [math.prod(n + 1 for n in self._n[i + 1 :]) for i in range(q)]
        else:
            strides = [pow(_MULTIPLIER, i + 1, 2**64) for i in range(q)]
        factors = np.array(strides, np.uint64).view(np.int64)
        tiles = [(np.arange(K * self._n[i] + 1)[:, None] + displacement[:, i]) // K * factors[i] for i in range(q)]
        multipliers = np.array([pow(_MULTIPLIER, j + 1, 2**64) for j in range(K)], dtype=np.uint64)
        return low, per_unit, most, tiles, multipliers, np.arange(K) * self._block

    def __call__(self, obs: Array) -> Array:
        """Indices of the active tiles, one of each tiling, Eq. (7.22): (B, …) -> (B, K) integers, read-only.

        The last result is kept, because online methods ask for a state twice: as successor, then as state.

        Raises
        ------
        ValueError
            For observations of another shape, or NaN.
        """
        obs = np.asarray(obs)
        key = (obs.dtype, obs.shape, obs.tobytes())
        asked, x = self._memo
        if key == asked:
            return x
        low, per_unit, most, tiles, multipliers, first = self._grid
        u = (self._flat(obs) - low) * per_unit
        if not np.vdot(u, u) < 1e30:  # too large for an integer, or NaN
            u = u.clip(0, most)
            if np.isnan(u).any():
                raise ValueError("observations must be numbers, got NaN")
        x = first if self.table_size is None else np.zeros_like(first)
        for table, position in zip(tiles, u.astype(np.int64).T, strict=True):
            x = x + table.take(position, axis=0, mode="clip")
        if self.table_size is not None:
            # The products wrap at 2⁶⁴; their upper halves depend on every bit of the tile's number.
            h = x.view(np.uint64)
            x = first + (((h ^ (h >> 32)) * multipliers >> 32) % self._block).view(np.int64)
        x.flags.writeable = False
        vars(self)["_memo"] = key, x
        return x

    def __getstate__(self) -> dict[str, Any]:
        """Without the memo."""
        return {name: value for name, value in vars(self).items() if name != "_memo"}


Features = OneHot | Table | Constant | Affine | Polynomial | Fourier | RBF | RandomFourier | TileCoding


@dataclass(frozen=True)
class Pair:
    """Two features of one observation, x = (x_mu, x_sigma); computed once where both are equal."""

    mean: Features
    scale: Features

    def __post_init__(self) -> None:
        if self.scale == self.mean:
            object.__setattr__(self, "scale", self.mean)

    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """(B, …) -> a pair of (B, d)."""
        x_mu = self.mean(obs)
        return x_mu, x_mu if self.scale is self.mean else self.scale(obs)


KINDS: dict[str, type[Any]] = {
    "onehot": OneHot,
    "table": Table,
    "constant": Constant,
    "affine": Affine,
    "polynomial": Polynomial,
    "fourier": Fourier,
    "rbf": RBF,
    "random_fourier": RandomFourier,
    "tile": TileCoding,
}


def default_kind(space: Any, box: str = "affine") -> str:
    """One-hot for a Discrete space, ``box`` for any other."""
    return "onehot" if isinstance(space, DiscreteSpace) else box


def _parameters(kind: Any) -> list[str]:
    """What features of a kind take beside the space."""
    return [f.name for f in fields(kind) if f.init and f.name != "space"]


def make(spec: Any, space: Any, scale: Any = None) -> Features:
    """Features of ``space`` from their JSON-able description.

    Parameters
    ----------
    spec : str, dict or features
        A kind (``"fourier"``), a dict of the kind and its parameters (``{"kind": "fourier", "order": 5}``), or
        features that are already made.
    space : gymnasium.Space or int
        The observation space, or its number of components or states.
    scale : float or sequence of float, optional
        For features of a Box whose description has no ``scale``.

    Raises
    ------
    ValueError
        For an unknown kind or parameter.
    """
    if isinstance(spec, OneHot | Table | Constant | _BoxFeatures):
        return spec  # type: ignore[return-value]
    settings = {"kind": spec} if not isinstance(spec, dict) else dict(spec)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"features must be one of {', '.join(KINDS)}, or a dict with such a kind, got {spec!r}")
    cls = KINDS[kind]
    known = _parameters(cls)
    for name in settings:
        if name not in known:
            raise ValueError(f"{kind} features take {', '.join(known) or 'no parameters'}, got {name!r}")
    if cls is Table and "table" not in settings:
        raise ValueError(f"table features need their table, a row of numbers for each state, got {spec!r}")
    if "scale" in known:
        settings.setdefault("scale", scale)
    return cls(space, **settings)


def describe(features: Features) -> dict[str, Any]:
    """The JSON-able description from which ``make`` builds equal features again."""
    kind = next((name for name, cls in KINDS.items() if cls is type(features)), None)
    if kind is None:
        raise TypeError(f"a run directory can keep features of npg.features only, got {type(features).__name__}")
    return {"kind": kind} | {name: np.asarray(getattr(features, name)).tolist() for name in _parameters(features)}
