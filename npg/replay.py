"""Experience that is kept and learned from again (derivations, chapter 12).

Rows are packed, all that belongs to one side by side, so that to draw a minibatch is one ``take``. Which columns they
have, and of which shapes and dtypes, is what the first rows say.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ._checks import at_least
from ._state import Stateful, check_alike
from ._typing import Array, Rng


def pack(columns: dict[str, Array], length: int | None = None) -> Array:
    """Arrays (B, …) as one of B packed rows, whose columns are views by name; or rows of zeros, ``length`` of them."""
    sizes = {len(column) for column in columns.values()}
    if len(sizes) > 1:
        raise ValueError(f"the columns must have as many rows each, got {[(n, len(c)) for n, c in columns.items()]}")
    dtype = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in sorted(columns.items())], align=True)
    rows = np.zeros(max(sizes, default=0) if length is None else length, dtype)
    for name, column in columns.items() if length is None else ():
        rows[name] = column
    return rows


class _Rows(Stateful):
    """Packed rows with a count, whose state has as many rows as there are."""

    rows: Array
    count: int

    def __init__(self) -> None:
        self.rows, self.count = pack({}), 0

    def __len__(self) -> int:
        return len(self.rows)

    def _restore(self, columns: dict[str, Array]) -> None:
        self.rows = pack(columns)

    def state(self) -> dict[str, Array]:
        """Copies of the columns of the rows that there are, and the count."""
        names = self.rows.dtype.names or ()
        return {name: self.rows[name][: len(self)].copy() for name in names} | {"count": np.array(self.count)}

    def load_state(self, state: dict[str, Array]) -> None:
        """Take back what ``state`` returned, however many rows.

        Raises
        ------
        ValueError
            If it is no such state; nothing is changed then.
        """
        check_alike("state", {"count": np.array(0)}, {"count": state.get("count", np.array(None))})
        with self.room_for(state):
            check_alike("state", self.state(), state)
            self._restore({name: column for name, column in state.items() if name != "count"})

    @contextmanager
    def room_for(self, state: dict[str, Array], prefix: str = "") -> Iterator[None]:
        """Within the ``with``, the rows are of the number and kind of those in ``state``; if it fails, as before."""
        own = self.rows, self.count
        given = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        try:
            self.count = int(given.pop("count", 0))
            at_least("count", self.count, 0)
            self._restore({name: np.zeros_like(column) for name, column in given.items()})
            yield
        except BaseException:
            self.rows, self.count = own
            raise


class Replay(_Rows):
    """The last transitions, in a ring: the newest row takes the place of the oldest.

    Parameters
    ----------
    capacity : int
        The most rows that are kept; memory for all of them is taken with the first.

    Attributes
    ----------
    count : int
        Rows inserted so far; row k is in place k mod the capacity.
    """

    def __init__(self, capacity: int) -> None:
        at_least("capacity", capacity, 1)
        super().__init__()
        self.capacity = capacity

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def _restore(self, columns: dict[str, Array]) -> None:
        for name, column in columns.items():
            if len(column) != len(self):
                raise ValueError(f"{name} must have {len(self)} rows, of {self.count} inserted, got {len(column)}")
        self.rows = pack(columns, self.capacity) if columns else pack({})
        for name, column in columns.items():
            self.rows[name][: len(column)] = column

    def insert(self, **columns: Array) -> None:
        """Append rows, (B, …) of each column, the same columns every time.

        Raises
        ------
        ValueError
            If the columns, or the shapes of their rows, are others than those of the first call.
        """
        if not self.count:
            self.rows = pack(columns, self.capacity)
        new = pack(columns)
        if new.dtype != self.rows.dtype:
            raise ValueError(f"the columns must be those of the first rows, {self.rows.dtype}, got {new.dtype}")
        index = np.arange(self.count, self.count + len(new))[-self.capacity :]
        self.rows[index % self.capacity] = new[-self.capacity :]
        self.count += len(new)

    def sample(self, n: int, rng: Rng) -> Array:
        """n rows, each drawn from all that are kept, as packed rows: ``["name"]`` is a column (n, …)."""
        if not self.count:
            raise ValueError("nothing can be drawn from an empty buffer: insert rows first")
        return self.rows.take(rng.integers(len(self), size=n))


class Batches(_Rows):
    """The rows of the last K batches.

    Parameters
    ----------
    kept : int
        K.

    Attributes
    ----------
    count : int
        Batches inserted so far.
    """

    def __init__(self, kept: int) -> None:
        at_least("kept", kept, 1)
        super().__init__()
        self.kept = kept

    def insert(self, **columns: Array) -> None:
        """Append a batch of rows, (B, …) of each column, and drop the batch before the last K."""
        first = next(iter(columns.values()))
        new = pack(columns | {"batch": np.full(len(first), self.count)})
        self.count += 1
        old = self.rows[self.rows["batch"] > self.count - 1 - self.kept] if len(self.rows) else new[:0]
        self.rows = np.concatenate((old, new))
