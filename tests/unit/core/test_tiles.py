import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import Reason, WalletError
from services.core.tiles import (
    Tile,
    encode_bundle,
    entry_bundle,
    grown_tiles,
)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),  # the specification's example
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(63, 999, 255), "tile/63/999.p/255"),
        (Tile(1, 1_000), "tile/1/x001/000"),
        (Tile(None, 273, 112), "tile/entries/273.p/112"),
    ],
)
def test_paths(tile, path):
    assert tile.path == path
    assert Tile.from_path(path) == tile


@given(st.one_of(st.none(), st.integers(0, 63)), st.integers(0, 2**56 - 1), st.integers(1, 256))
def test_paths_both_ways(level, number, width):
    tile = Tile(level, number, width)
    assert Tile.from_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "tile/0/0",
        "tile/00/000",
        "tile/64/000",
        "tile/0/x000/000",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/../000",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/0/٠٠٠",
        "tile/0/" + "x999/" * 3_000 + "999",
    ],
)
def test_other_paths_name_no_tile(path):
    with pytest.raises(WalletError) as caught:
        Tile.from_path(path)
    assert caught.value.reason is Reason.NOT_FOUND


def test_the_tiles_of_70_000_entries():
    tiles = list(grown_tiles(0, 70_000))
    assert len(tiles) == 273 + 1 + 1 + 1 + 1
    assert [tile for tile in tiles if tile.width != 256] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]


def test_the_tiles_of_256_entries():
    assert list(grown_tiles(0, 256)) == [Tile(0, 0), Tile(1, 0, 1)]


@given(st.integers(0, 200_000), st.integers(0, 70_000))
def test_growth_is_the_difference_of_two_trees(old_size, more):
    before, after = set(grown_tiles(0, old_size)), set(grown_tiles(0, old_size + more))
    assert set(grown_tiles(old_size, old_size + more)) == after - before


def test_the_form_of_a_bundle():
    assert encode_bundle([b"ab", b""]) == b"\x00\x02ab\x00\x00"
    assert entry_bundle(Tile(0, 5, 7)).path == "tile/entries/005.p/7"


def test_a_leaf_too_long_for_a_bundle_is_refused():
    assert len(encode_bundle([bytes(65_535)])) == 2 + 65_535
    with pytest.raises(WalletError) as caught:
        encode_bundle([bytes(65_536)])
    assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE
