from __future__ import annotations

from berthmaster_webhook.deciding import Stamps


def test_later_answers_have_later_stamps_though_the_clock_goes_back() -> None:
    times = iter([500, 500, 100, 502, 900])
    stamp = Stamps(lambda: next(times))

    assert [stamp() for _ in range(5)] == [500, 501, 502, 503, 900]
