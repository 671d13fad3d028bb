"""LAS and LAZ against what laspy wrote."""

import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from pcssl.data.formats import read_scene
from pcssl.errors import UserError

laspy = pytest.importorskip("laspy", reason="LAS needs laspy[lazrs]")
pytest.importorskip("lazrs", reason="LAZ needs laspy[lazrs]")


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def save(path, n=500, point_format=2, offset=(0.0, 0.0, 0.0), **dimensions):
    """Points of 5 m around `offset`, to the millimetre: (n, 3) float64."""
    coord = np.random.default_rng(0).uniform(0, 5, (n, 3)).round(3) + offset
    header = laspy.LasHeader(point_format=point_format, version="1.4" if point_format > 5 else "1.2")
    header.scales, header.offsets = [0.001] * 3, list(offset)
    for name in set(dimensions) - set(header.point_format.dimension_names):
        header.add_extra_dim(laspy.ExtraBytesParams(name=name, type=dimensions[name].dtype))
    las = laspy.LasData(header)
    las.x, las.y, las.z = coord.T
    for name, values in dimensions.items():
        las[name] = values
    las.write(str(path))
    return coord


def refused(path):
    with pytest.raises(UserError) as caught:
        read_scene(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".las", ".LAZ"])
@pytest.mark.parametrize("point_format", [2, 3, 7])
@pytest.mark.parametrize("factor", [1, 257], ids=["bytes in 16 bits", "16 bits"])
def test_coordinates_colors_and_classes(tmp_path, suffix, point_format, factor):
    rng = np.random.default_rng(1)
    color = rng.integers(0, 256, (500, 3))
    channels = {name: (color[:, i] * factor).astype("u2") for i, name in enumerate(("red", "green", "blue"))}
    kind = rng.integers(1, 7, 500).astype("u1")
    coord = save(tmp_path / f"a{suffix}", point_format=point_format, classification=kind, **channels)
    scene = read_scene(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(scene.coord, coord, atol=1e-6)
    assert scene.color.tolist() == color.tolist() and scene.filled == ("normal",)
    assert scene.labels["classification"].tolist() == kind.tolist()


def test_fields_that_nobody_filled_are_not_there(tmp_path):
    save(tmp_path / "a.las")
    scene = read_scene(tmp_path / "a.las")
    assert scene.filled == ("color", "normal") and (scene.color == 127).all() and scene.labels == {}
    save(tmp_path / "b.las", point_format=0, intensity=np.arange(500, dtype="u2") * 100)
    scene = read_scene(tmp_path / "b.las")
    assert scene.filled == ("color", "normal") and scene.color[[0, -1], 0].tolist() == [0, 255]


def test_extra_dimensions(tmp_path):
    extra = {f"Normal{axis}": np.full(500, axis == "Y", "f4") for axis in "XYZ"} | {"instance": np.arange(500, dtype="i4")}
    save(tmp_path / "a.laz", point_format=7, **extra)
    scene = read_scene(tmp_path / "a.laz")
    assert scene.normal.tolist() == [[0, 1, 0]] * 500 and scene.instance.tolist() == list(range(500))


def test_projected_coordinates_keep_their_millimetres(tmp_path):
    coord = save(tmp_path / "a.laz", offset=(450_321.0, 5_400_987.0, 130.0))
    with pytest.warns(UserWarning, match="450000 5401000 0 is subtracted"):
        scene = read_scene(tmp_path / "a.laz")
    np.testing.assert_allclose(scene.coord.double() + torch.tensor(scene.origin), coord, atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize("part", [0, 0.02, 0.3, 0.7, 0.99])
def test_truncated(tmp_path, suffix, part):
    path = tmp_path / f"a{suffix}"
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "cut short or damaged" in refused(path)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_other_files_and_empty_ones(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"hello\n", bytes(range(256)) * 9):
        path.write_bytes(content)
        assert "not a LAS or LAZ file" in refused(path)
    save(path, n=0)
    assert "no points" in refused(path)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize("what", ["points", "records", "chunks"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, suffix, what):
    path = tmp_path / f"a{suffix}"
    save(path)
    content = bytearray(path.read_bytes())
    place = {"points": 107, "records": 100}.get(what)
    if what == "chunks":  # of which only LAZ has a table; the place of it stands before the points
        start = struct.unpack_from("<I", content, 96)[0]
        place = struct.unpack_from("<q", content, start)[0] + 4 if suffix == ".laz" else 107
    content[place : place + 4] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert "cut short or damaged" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6  # a chunk of a million points
    finally:
        tracemalloc.stop()
