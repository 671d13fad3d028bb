"""PCD: every encoding, type and packing of colours against what was written; every defect named."""

import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from pcssl.data.formats import pcd, read_raw, read_scene
from pcssl.errors import UserError

ENCODINGS = ["ascii", "binary", "binary_compressed"]
# By LibLZF itself: 40 floats six times each, 700 zeros, the bytes 0 to 59.
LZF = bytes.fromhex(
    "010000e00f0001803ee00d0301003fe00d0300402017e00b0300802017e00b0300a02017e00b0300c02017e00b0300e02017e00b03010040e0"
    "0d0300102017e00b0300202017e00b0300302017e00b0300402017e00b0300502017e00b0300602017e00b0300702017e00b0300802017e00b"
    "0300882017e00b0300902017e00b0300982017e00b0300a02017e00b0300a82017e00b0300b02017e00b0300b82017e00b0300c02017e00b03"
    "00c82017e00b0300d02017e00b0300d82017e00b0300e02017e00b0300e82017e00b0300f02017e00b0300f82017e00b03010041e00d030004"
    "2017e00b0300082017e00b03000c2017e00b0300102017e00b0300142017e00b0300182017e00b03001c2017e00b03e0ff00e0ff00e0a2001f"
    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f201a2122232425262728292a2b2c2d2e2f303132333435363738"
    "393a3b"
)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def compress(data):
    """LZF, greedily: the longest of the last places with the same three bytes."""
    out, literals, seen, at = bytearray(), bytearray(), {}, 0

    def flush():
        while literals:
            run, literals[:] = literals[:32], literals[32:]
            out.append(len(run) - 1)
            out.extend(run)

    while at < len(data):
        start = seen.get(data[at : at + 3], -(1 << 20))
        seen[data[at : at + 3]] = at
        length = 0
        while at - start <= 8192 and length < 264 and at + length < len(data) and data[start + length] == data[at + length]:
            length += 1
        if length < 3:
            literals.append(data[at])
            at += 1
            continue
        flush()
        back = at - start - 1
        out += bytes([length - 2 << 5 | back >> 8] if length < 9 else [7 << 5 | back >> 8, length - 9]) + bytes([back & 255])
        at += length
    flush()
    return bytes(out)


def save(path, columns, encoding, height=1, more=""):
    """columns: name -> (N,) or (N, count) array; "_" is padding."""
    columns = {name: c[:, None] if c.ndim == 1 else c for name, c in columns.items()}
    n = len(next(iter(columns.values())))
    kinds = [(c.dtype.kind.upper(), c.dtype.itemsize, c.shape[1]) for c in columns.values()]
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS " + " ".join(columns)
    for key, i in (("SIZE", 1), ("TYPE", 0), ("COUNT", 2)):
        head += f"\n{key} " + " ".join(str(kind[i]) for kind in kinds)
    head += f"\nWIDTH {n // height}\nHEIGHT {height}\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\n{more}DATA {encoding}\n"
    if encoding == "ascii":
        rows = zip(*(c.tolist() for c in columns.values()))
        body = "".join(" ".join(repr(v) for cell in row for v in cell) + "\n" for row in rows).encode()
    elif encoding == "binary":
        body = b"".join(c[i].tobytes() for i in range(n) for c in columns.values())
    else:
        plain = b"".join(c.tobytes() for c in columns.values())
        packed = compress(plain)
        body = struct.pack("<II", len(packed), len(plain)) + packed
    path.write_bytes(head.encode() + body)
    return path


def xyz(n=60, seed=0, dtype="f4"):
    coord = np.random.default_rng(seed).uniform(0, 3, (n, 3)).astype(dtype)
    return {axis: coord[:, i] for i, axis in enumerate("xyz")}


def refused(path):
    with pytest.raises(UserError) as caught:
        read_scene(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1"])
def test_coordinates_between_other_fields(tmp_path, encoding, dtype):
    columns = xyz(dtype="f8")
    columns = {name: (values * 9).astype(dtype) for name, values in columns.items()}
    columns = {"fpfh": np.random.default_rng(1).random((60, 33)).astype("f4"), "_": np.zeros((60, 4), "u1")} | columns
    scene = read_scene(save(tmp_path / "a.PCD", columns, encoding))
    np.testing.assert_array_equal(scene.coord, np.stack([columns[a] for a in "xyz"], 1).astype("f4"))
    assert scene.filled == ("color", "normal") and scene.name == "a"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("field", ["rgb", "rgba"])
@pytest.mark.parametrize("kind", ["u4", "f4", "bits as an integer in text"])
@pytest.mark.parametrize("alpha", [0, 255])
def test_packed_colors(tmp_path, encoding, field, kind, alpha):
    color = np.random.default_rng(2).integers(0, 256, (60, 3)).astype("u4")
    bits = alpha << 24 | color[:, 0] << 16 | color[:, 1] << 8 | color[:, 2]
    if kind == "u4":
        path = save(tmp_path / "a.pcd", xyz() | {field: bits}, encoding)
    elif kind == "f4":
        if encoding == "ascii":
            bits &= 0xFFFFFF  # text has no NaN with bits in it, which is why PCL writes integers there
        path = save(tmp_path / "a.pcd", xyz() | {field: bits.view("f4")}, encoding)
    else:
        path = save(tmp_path / "a.pcd", xyz() | {field: bits}, "ascii")
        path.write_text(path.read_text().replace("TYPE F F F U", "TYPE F F F F"))
    assert read_scene(path).color.tolist() == color.tolist()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_normals_labels_and_intensity(tmp_path, encoding):
    columns = xyz() | {f"normal_{a}": np.full(60, a == "y", "f4") * 3 for a in "xyz"}
    columns |= {"curvature": np.zeros(60, "f4"), "label": np.arange(60, dtype="u4"), "intensity": np.arange(60, dtype="f4")}
    scene = read_scene(save(tmp_path / "a.pcd", columns, encoding))
    assert scene.normal.tolist() == [[0, 1, 0]] * 60
    assert scene.labels["label"].tolist() == list(range(60))
    assert scene.filled == ("color",) and scene.color[0, 0] == 0 and scene.color[-1, 0] == 255


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_organised_with_holes(tmp_path, encoding):
    columns = xyz() | {"rgb": np.arange(60, dtype="u4")}
    for axis in "xyz":
        columns[axis][::7] = np.nan
    with pytest.warns(UserWarning, match="dropped 9 of 60"):
        scene = read_scene(save(tmp_path / "a.pcd", columns, encoding, height=6))
    kept = [i for i in range(60) if i % 7]
    np.testing.assert_array_equal(scene.coord[:, 0], columns["x"][kept])
    assert scene.color[:, 2].tolist() == kept


def test_lzf_of_the_reference():
    expected = (np.arange(40, dtype="<f4").repeat(6) * 0.25).tobytes() + bytes(700) + bytes(range(60))
    assert pcd._decompress_lzf(LZF, len(expected)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_lzf_round_trip(seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 4, 3000), np.zeros(9000), rng.integers(0, 256, 500), np.tile(rng.integers(0, 256, 7), 400)]
    data = np.concatenate([parts[i] for i in rng.permutation(4)]).astype("u1").tobytes()
    packed = compress(data)
    assert len(packed) < len(data)
    assert pcd._decompress_lzf(packed, len(data)) == data
    for cut in (packed[:-1], packed[: len(packed) // 2]):
        with pytest.raises((ValueError, IndexError)):
            pcd._decompress_lzf(cut, len(data))
    with pytest.raises(ValueError):
        pcd._decompress_lzf(packed, len(data) - 1)


def test_lzf_before_the_first_byte():
    with pytest.raises(ValueError, match="before the first"):
        pcd._decompress_lzf(bytes([0, 65, 1 << 5, 5]), 4)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.8, 0.98])
def test_truncated(tmp_path, encoding, part):
    path = save(tmp_path / "a.pcd", xyz(), encoding)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "cut short" in refused(path)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("FIELDS x y z", "FIELDS a b c", "no x, y and z"),
        ("FIELDS x y z", "FIELDS x y", "do not agree"),
        ("SIZE 4 4 4", "SIZE 4 4 3", "SIZE 3"),
        ("TYPE F F F", "TYPE F F Q", "TYPE Q"),
        ("COUNT 1 1 1", "COUNT 1 1 -1", "do not agree"),
        ("WIDTH 60", "WIDTH 50", "POINTS 60"),
        ("WIDTH 60", "WIDTH many", "many"),
        ("HEIGHT 1\n", "", "no HEIGHT"),
        ("DATA ", "DATA zip", "known: ascii"),
        ("DATA ", "", "no DATA"),
    ],
)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bad_headers(tmp_path, encoding, old, new, message):
    path = save(tmp_path / "a.pcd", xyz(), encoding)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    assert message in refused(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 9, b"ply\nformat ascii 1.0\n" * 200])
def test_other_files(tmp_path, content):
    (tmp_path / "a.pcd").write_bytes(content)
    assert "not a PCD file" in refused(tmp_path / "a.pcd")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_usable(tmp_path, encoding):
    assert "no points" in refused(save(tmp_path / "a.pcd", xyz(0), encoding))
    hole = {axis: np.full(4, np.nan, "f4") for axis in "xyz"}
    assert "all 4 points" in refused(save(tmp_path / "b.pcd", hole, encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("points", [10**9, 10**12])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, encoding, points):
    path = save(tmp_path / "a.pcd", xyz(), encoding)
    head, mark, body = path.read_bytes().partition(b"DATA")
    head = head.replace(b"WIDTH 60", b"WIDTH %d" % points).replace(b"POINTS 60", b"POINTS %d" % points)
    if encoding == "binary_compressed":
        start = body.index(b"\n") + 5
        body = body[:start] + struct.pack("<I", min(points * 12, 2**32 - 1)) + body[start + 4 :]
    path.write_bytes(head + mark + body)
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_text_rows_that_do_not_fit(tmp_path):
    path = save(tmp_path / "a.pcd", xyz(), "ascii")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    assert "59 rows" in refused(path)
    path.write_text("\n".join([*lines[:-1], "1 2"]))
    assert "columns changed from 3 to 2" in refused(path)
    path.write_text("\n".join([*lines[:-1], "1 2 x"]))
    assert "'x'" in refused(path)


def test_real_scans(real_scans):
    # Counts and sums as read by pypcd4 and its LibLZF.
    kinect = real_scans / "scans" / "office_kinect.pcd"
    with pytest.warns(UserWarning) as said:
        scene = read_scene(kinect)
    assert len(scene) == 254_456 and scene.filled == ("normal",)
    assert any("dropped 52744 of 307200" in str(w.message) for w in said)
    assert any("--up=-y" in str(w.message) for w in said)
    np.testing.assert_allclose(scene.color.double().mean(0), [164.788, 152.444, 151.294], atol=1e-3)
    with pytest.warns(UserWarning, match="dropped"):
        turned = read_scene(kinect, up="-y", normals=False)
    assert torch.equal(turned.coord, scene.coord[:, [0, 2, 1]] * torch.tensor([1, 1, -1]))
    lidar = read_scene(real_scans / "scans" / "room_lidar.pcd")
    assert len(lidar) == 112_586 and lidar.filled == ("color", "normal")
    raw = read_raw(real_scans / "scans" / "room_lidar.pcd")
    np.testing.assert_allclose(raw.coord[0], [0.1071819, 0.05294582, 1.685766], atol=1e-6)
