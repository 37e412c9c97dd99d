"""What is kept to be learned from again: rings against lists, draws against counts, and states of any length."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, seeds

from npg.replay import Batches, Replay


def rows(rng, n):
    """Columns of every kind that transitions have."""
    return {
        "obs": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.integers(-5, 5, n),
        "rewards": rng.normal(size=n),
        "terminated": rng.random(n) < 0.5,
        "image": rng.integers(0, 255, (n, 2, 2), dtype=np.uint8),
    }


def same(packed, columns):
    for name, column in columns.items():
        assert packed[name].dtype == column.dtype
        np.testing.assert_array_equal(packed[name], column)


sizes = st.lists(st.integers(0, 7), min_size=1, max_size=8)


@given(seeds, sizes, st.integers(1, 9))
@examples(100)
def test_a_ring_keeps_the_last_rows_and_its_state_restores_them(seed, sizes, capacity):
    rng, replay, kept = np.random.default_rng(seed), Replay(capacity), deque(maxlen=capacity)
    for n in sizes:
        new = rows(rng, n)
        replay.insert(**new)
        kept.extend({name: column[k] for name, column in new.items()} for k in range(n))
        assert len(replay) == len(kept)
    if not kept:
        return
    first = replay.count - len(kept)  # the oldest that is left
    order = (first + np.arange(len(kept))) % capacity
    same(replay.rows[order], {name: np.array([row[name] for row in kept]) for name in new})
    restored = Replay(capacity)
    restored.insert(**rows(rng, 1))
    saved = replay.state()
    restored.load_state(saved)
    more = rows(rng, 3)
    for one in (replay, restored):
        one.insert(**more)
    assert restored.count == replay.count
    assert np.array_equal(restored.rows, replay.rows)
    assert len(saved["rewards"]) == len(kept)


@given(seeds, sizes, st.integers(1, 4))
@examples(50)
def test_the_last_batches_are_kept_in_order_and_restored(seed, sizes, K):
    rng, kept, batches = np.random.default_rng(seed), deque(maxlen=K), Batches(K)
    for n in sizes:
        kept.append(rows(rng, n))
        batches.insert(**kept[-1])
        same(batches.rows, {name: np.concatenate([batch[name] for batch in kept]) for name in kept[0]})
    restored = Batches(K)
    restored.load_state(batches.state())
    more = rows(rng, 2)
    for one in (batches, restored):
        one.insert(**more)
    same(restored.rows, {name: batches.rows[name] for name in more})


def test_every_row_is_drawn_as_often_as_another():
    rng, n = np.random.default_rng(0), 200_000
    replay = Replay(8)
    replay.insert(rewards=np.arange(5.0))
    counts = np.bincount(replay.sample(n, rng)["rewards"].astype(int), minlength=8)
    assert (np.abs(counts[:5] - n / 5) < 6 * np.sqrt(n * 0.2 * 0.8)).all()
    assert counts[5:].sum() == 0
    replay.insert(rewards=np.arange(5.0, 12.0))
    assert set(replay.sample(1000, rng)["rewards"]) == set(np.arange(4.0, 12.0))


def test_draws_are_copies():
    replay = Replay(4)
    replay.insert(rewards=np.ones(4))
    replay.sample(4, np.random.default_rng(0))["rewards"][:] = 7
    replay.state()["rewards"][:] = 7
    assert (replay.rows["rewards"] == 1).all()


def test_what_is_wrong_is_refused_and_changes_nothing():
    for wrong in (0, 1.5, None):
        with pytest.raises(ValueError, match="capacity must be an integer of at least 1"):
            Replay(wrong)
        with pytest.raises(ValueError, match="kept must be an integer of at least 1"):
            Batches(wrong)
    replay = Replay(3)
    with pytest.raises(ValueError, match="empty buffer"):
        replay.sample(1, np.random.default_rng(0))
    replay.insert(obs=np.zeros((2, 2)), rewards=np.zeros(2))
    before = replay.state()
    with pytest.raises(ValueError, match="as many rows each"):
        replay.insert(obs=np.zeros((2, 2)), rewards=np.zeros(1))
    with pytest.raises(ValueError, match="those of the first rows"):
        replay.insert(obs=np.zeros((2, 3)), rewards=np.zeros(2))
    states = [
        {},
        before | {"count": np.array(-1)},
        before | {"count": np.array(1)},
        before | {"count": np.array(2.0)},
        before | {"rewards": np.zeros(1)},
        before | {"rewards": np.array([0.0, np.nan])},
    ]
    for state in states:
        with pytest.raises(ValueError, match=r"must h|rows|count must be"):
            replay.load_state(state)
        for name, value in replay.state().items():
            assert np.array_equal(value, before[name])
