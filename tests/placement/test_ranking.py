from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.placement.ranking import Ranking

COUNT = 4
totals_of_few = st.lists(st.sampled_from([-1.0, 0.0, 40.0, 40.0 + 1e-12, 99.5]), min_size=1)
SEEDS = st.integers(0, 2**32 - 1)


def make_ranking(totals: list[float], ties: list[float], decision_id: str = "d") -> Ranking:
    hashes = np.random.default_rng(5).integers(0, 2**63, len(totals)).astype(np.uint64)
    return Ranking(np.array(totals), np.array(ties), hashes, decision_id, COUNT)


@settings(deadline=None)
@given(totals_of_few, SEEDS, st.sampled_from([1, 3000]))
def test_best_and_top_are_those_of_a_sort(few: list[float], seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    totals = few if rows == 1 else random.choice(few, rows).tolist()
    ties = random.choice([0.0, 50.0], len(totals)).tolist()

    ranking = make_ranking(totals, ties)

    best, top = ranking.best(), ranking.top(COUNT)
    fitting = sorted((it for it in totals if it >= 0), reverse=True)
    assert sorted((totals[row] for row in top), reverse=True) == fitting[:COUNT]
    assert len(set(top.tolist())) == len(top)
    if not fitting:
        assert best is None
    else:
        equals = [row for row, it in enumerate(totals) if it >= fitting[0] - 1e-9]
        assert best in equals
        assert ties[best] == max(ties[row] for row in equals)


def test_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(7)
    totals, ties = random.choice([10.0, 20.0], 1000), np.zeros(1000)
    hashes = random.integers(0, 2**63, 1000).astype(np.uint64)
    order = random.permutation(1000)

    forward = Ranking(totals, ties, hashes, "d", COUNT)
    shuffled = Ranking(totals[order], ties, hashes[order], "d", COUNT)

    best = shuffled.best()
    assert best is not None
    assert forward.best() == order[best]
    assert set(forward.top(COUNT).tolist()) == set(order[shuffled.top(COUNT)].tolist())


def test_another_decision_chooses_another_of_equals() -> None:
    chosen = {make_ranking([50.0] * 1000, [0.0] * 1000, str(it)).best() for it in range(50)}

    assert len(chosen) > 30
