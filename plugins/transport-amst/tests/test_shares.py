"""What a node may send is split among its links."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_transport_amst import Shares


def test_one_link_has_all_and_two_have_half_each() -> None:
    shares = Shares(100.0)
    inf = float("inf")
    assert shares.of(1, inf, 0.0) == 100.0
    shares.of(2, inf, 0.0)
    assert (shares.of(1, inf, 0.1), shares.of(2, inf, 0.1)) == (50.0, 50.0)


def test_what_a_link_does_not_want_goes_to_the_others() -> None:
    shares = Shares(90.0)
    for key, want in ((1, 10.0), (2, float("inf")), (3, float("inf"))):
        shares.of(key, want, 0.0)
    assert shares.of(2, float("inf"), 0.0) == 40.0


def test_a_link_that_is_no_more_leaves_its_share() -> None:
    shares = Shares(90.0)
    shares.of(1, 90.0, 0.0)
    shares.of(2, 90.0, 0.0)
    assert shares.of(2, 90.0, 5.0) == 90.0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=12), st.floats(1, 1e9))
def test_the_shares_of_links_that_use_what_they_want_never_exceed_the_total(
    wants: list[float], total: float
) -> None:
    shares = Shares(total)
    for key, want in enumerate(wants):
        shares.of(key, want, 0.0)
    given_out = [shares.of(key, want, 0.0) for key, want in enumerate(wants)]
    used = [min(want, one) for want, one in zip(wants, given_out, strict=True) if one is not None]
    assert sum(used) <= total * (1 + 1e-9)
    # Nobody has less than an equal part unless it wants less.
    for want, one in zip(wants, given_out, strict=True):
        assert one is not None
        assert one >= min(want, total / len(wants)) * (1 - 1e-9)
