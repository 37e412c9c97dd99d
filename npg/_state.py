"""Everything that learns can hand over and take back its whole state as named arrays."""

from typing import ClassVar

import numpy as np

from ._typing import Array


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
            If ``state`` has other names or shapes than this object; nothing is changed then.
        """
        own = {name: array.shape for name, array in self.state().items()}
        given = {name: np.shape(array) for name, array in state.items()}
        if own != given:
            raise ValueError(f"state must hold arrays of shapes {own}, got {given}")
        for name in self.learned:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                prefix = f"{name}."
                value.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            else:
                setattr(self, name, np.array(state[name]))
