from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from berthmaster.placement.sieve import Sieve

NAMES = ("cpu", "memory", "gpu")
AMOUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5), max_size=3)
FREE = st.dictionaries(st.sampled_from(NAMES), st.integers(-3, 5), max_size=3)


@given(st.lists(AMOUNTS, max_size=80), st.sets(st.integers(0, 79)), FREE)
def test_those_pass_for_whom_nothing_is_lacking(
    requests: list[dict[str, int]], removed: set[int], free: dict[str, int]
) -> None:
    sieve: Sieve[int] = Sieve()
    for key, needs in enumerate(requests):
        sieve.put(key, needs)
    for key in removed:
        sieve.remove(key)

    passing = sieve.passing(free)

    assert sorted(passing) == [
        key
        for key, needs in enumerate(requests)
        if key not in removed and all(free.get(it, 0) >= needs[it] for it in needs)
    ]


def test_what_is_not_asked_may_be_overdrawn() -> None:
    sieve: Sieve[str] = Sieve()
    sieve.put("a", {"cpu": 1})
    sieve.put("b", {"memory": 1})

    assert sieve.passing({"cpu": 4, "memory": -9}) == ["a"]


def test_request_put_anew_counts_as_it_is_now() -> None:
    sieve: Sieve[str] = Sieve()
    sieve.put("a", {"cpu": 9, "gpu": 1})
    sieve.put("a", {"cpu": 1})

    assert sieve.passing({"cpu": 1}) == ["a"]
    assert len(sieve) == 1


def test_names_without_end_cost_no_memory_and_let_pass() -> None:
    sieve: Sieve[int] = Sieve()
    for key in range(1000):
        sieve.put(key, {f"invented.example/{key}": 1})

    assert sieve._asked.shape[1] <= 64
    assert 999 in sieve.passing({})
