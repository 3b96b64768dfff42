import pytest

from reallm.errors import ConfigError
from reallm.parallel.layout import Coordinate, Layout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tp2pp1dp2", "tp2pp1dp2"),
        ("dp4", "tp1pp1dp4"),
        ("fsdp4", "tp1pp1fsdp4"),
        ("TP=2,PP=2", "tp2pp2dp1"),
        ("dp2@4-5", "tp1pp1dp2@4-5"),
        ("tp2@1,3", "tp2pp1dp1@1,3"),
        ("fsdp1", "tp1pp1dp1"),
    ],
)
def test_text_and_back(text, shown):
    layout = Layout.parse(text)
    assert str(layout) == shown
    assert Layout.parse(shown) == layout


@pytest.mark.parametrize("text", ["tp2dp2", "fsdp4", "tp2pp3fsdp2@4-15", "dp2@4-5", "pp2@1,3", "dp1"])
def test_the_short_text_is_what_people_write(text):
    assert Layout.parse(text).short == text
    assert Layout.parse("tp1pp1fsdp8").short == "fsdp8"


def test_without_fsdp_all_else_is_the_same() -> None:
    assert Layout.parse("fsdp2tp2@4-7").without_fsdp == Layout.parse("dp2tp2@4-7").without_fsdp
    assert Layout.parse("fsdp2tp2@4-7").without_fsdp == Layout.parse("dp2tp2@4-7")


@pytest.mark.parametrize("text", ["", "tp", "2", "tp2tp2", "dp2fsdp2", "ep2", "tp2 and dp2", "dp2@x"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(ConfigError, match="tp2pp1dp2|like 4-7"):
        Layout.parse(text)


@pytest.mark.parametrize("text", ["dp2@1", "dp2@1,1", "tp0"])
def test_ranks_that_do_not_fit_are_refused(text):
    with pytest.raises(ConfigError, match="layout"):
        Layout.parse(text)


def test_coordinates_and_ranks_are_inverse():
    layout = Layout(dp=2, pp=3, tp=4, ranks=tuple(range(10, 34)))
    for rank in layout.ranks:
        coordinate = layout.coordinate(rank)
        assert layout.rank_at(**coordinate._asdict()) == rank
        assert layout.tp_ranks(coordinate)[coordinate.tp] == rank
        assert layout.dp_ranks(coordinate)[coordinate.dp] == rank
        assert layout.pp_ranks(coordinate)[coordinate.pp] == rank
    assert layout.coordinate(11) == Coordinate(dp=0, pp=0, tp=1)
    assert layout.coordinate(14) == Coordinate(dp=1, pp=0, tp=0)
    assert layout.coordinate(18) == Coordinate(dp=0, pp=1, tp=0)
    assert layout.coordinate(0) is None
    assert layout.replica_ranks(Coordinate(dp=1, pp=2, tp=3)) == [14, 15, 16, 17, 22, 23, 24, 25, 30, 31, 32, 33]
