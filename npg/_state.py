"""Everything that learns can hand over and take back its whole state as named arrays."""

import json
from typing import ClassVar

import numpy as np

from ._typing import Array, Rng


def check_alike(name: str, own: dict[str, Array], given: dict[str, Array]) -> None:
    """Raise ``ValueError`` unless ``given`` has the names, shapes and dtypes of ``own``, and is finite."""
    expected, got = (
        {key: f"{np.asarray(a).dtype} {np.shape(a)}" for key, a in sorted(arrays.items())} for arrays in (own, given)
    )
    if expected != got:
        raise ValueError(f"{name} must hold arrays {expected}, got {got}")
    for key, a in given.items():
        if not np.isfinite(a).all():
            raise ValueError(f"{name} must hold finite numbers, got {a} as {key}")


def packed(rng: Rng) -> Array:
    """The state of a generator as an array, its JSON in bytes."""
    return np.frombuffer(json.dumps(rng.bit_generator.state).ljust(400).encode(), dtype=np.uint8)


def unpack(rng: Rng, state: Array) -> None:
    """Take back what ``packed`` returned.

    Raises
    ------
    ValueError
        If it is no state of such a generator.
    """
    try:
        given = json.loads(state.tobytes())
        rng.bit_generator.state = given
        valid = rng.bit_generator.state == given and given["state"]["inc"] % 2
    except Exception:  # of json, and whatever NumPy raises for a dict that is not what it expects
        valid = False
    if not valid:
        kind = type(rng.bit_generator).__name__
        raise ValueError(f"rng must be the state of a {kind} generator, got {state.tobytes()!r:.60}")


class Stateful:
    """Mixin: ``learned`` names the attributes, arrays or ``Stateful`` objects, that make up the state."""

    learned: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Array]:
        """Copies of all arrays of the state, by dotted name."""
        arrays: dict[str, Array] = {}
        for name in self.learned:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                arrays |= {f"{name}.{key}": array for key, array in value.state().items()}
            else:
                arrays[name] = np.array(value)
        return arrays

    def load_state(self, state: dict[str, Array]) -> None:
        """Take back what ``state`` returned.

        Raises
        ------
        ValueError
            If ``state`` has other names, shapes or dtypes than this object, is not finite, or has a number that is a
            negative integer: those are counts; nothing is changed then.
        """
        check_alike("state", self.state(), state)
        for name, array in state.items():
            if array.dtype.kind == "i" and array.ndim == 0 and array < 0:
                raise ValueError(f"state must hold counts of at least 0, got {array} as {name}")
        for name in self.learned:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                prefix = f"{name}."
                value.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            else:
                setattr(self, name, np.array(state[name]))
