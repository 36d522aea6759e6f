"""Quantities are read exactly, and only so long a text as hardware can mean."""

from __future__ import annotations

from fractions import Fraction

import pytest

from berthmaster.api.quantities import QuantityError, parse_quantity


def test_the_longest_text_is_read_and_a_longer_one_is_refused() -> None:
    assert parse_quantity("1".rjust(64, "0")) == 1

    with pytest.raises(QuantityError, match="is not a quantity") as caught:
        parse_quantity("1".rjust(65, "0"))
    assert "1" not in str(caught.value).partition("...")[0]


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_exponent_beyond_any_hardware_is_refused(sign: str) -> None:
    assert parse_quantity(f"2e{sign}40") == 2 * Fraction(10) ** int(f"{sign}40")

    with pytest.raises(QuantityError, match="exponent beyond 40"):
        parse_quantity(f"2e{sign}41")
