import pytest

from model.tables import ARCHITECTURES, Block, round_channels


def test_round_channels_is_the_papers_rule() -> None:
    assert [round_channels(c) for c in (32 * 1.1, 32 * 1.2, 24 * 1.4, 16 * 1.1, 3)] == [32, 40, 32, 16, 8]
    # 11 would round to 8, under 90 % of it; the V2 code leaves it there.
    assert round_channels(11) == 16
    assert round_channels(11, never_below=0) == 8


def test_b4_rows_have_the_published_widths_and_depths() -> None:
    rows = ARCHITECTURES["efficientnet_b4"].blocks
    assert [row.channels for row in rows] == [24, 32, 56, 112, 160, 272, 448]
    assert [row.layers for row in rows] == [2, 4, 4, 6, 6, 8, 2]


def test_lite_keeps_the_outer_rows_and_has_no_se() -> None:
    rows = ARCHITECTURES["efficientnet_lite0"].blocks
    assert {row.se for row in rows} == {0.0}
    assert (rows[0].layers, rows[-1].layers) == (1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("MBConv", 6, 3, 3, 24, 2), "stride=3"),
        (("MBConv", 6, 4, 1, 24, 2), "kernel=4"),
        (("Fused-MBConv", 6, 3, 1, 24, 2, 0.25), "se=0.25"),
        (("MBConv", 6, 3, 1, 24, 0), "at least 1"),
        (("Conv", 6, 3, 1, 24, 1), "operator='Conv'"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Block(*row)
