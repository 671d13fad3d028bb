"""Points as text: every way to name columns and to divide them; every bad line named by its number."""

import warnings

import numpy as np
import pytest

from pcssl.data.formats import read_scene
from pcssl.errors import UserError


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def numbers(n=40, seed=0):
    """(n, 3) coordinates, (n, 3) colours 0..255, (n, 3) unit normals."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n, 3))
    return rng.uniform(-3, 3, (n, 3)), rng.integers(0, 256, (n, 3)), normal / np.linalg.norm(normal, axis=1, keepdims=True)


def save(path, *columns, head="", between=" ", encoding="utf-8"):
    """columns: (N,) or (N, C) arrays, side by side; `head` is written as it is."""
    columns = [c[:, None] if c.ndim == 1 else c for c in map(np.asarray, columns)]
    rows = (between.join(repr(v) for c in columns for v in c[i].tolist()) for i in range(len(columns[0])))
    path.write_bytes((head + "".join(row + "\n" for row in rows)).encode(encoding))
    return path


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        read_scene(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


HEADS = {
    "x y z red green blue nx ny nz label": " ",
    "X,Y,Z,R,G,B,NX,NY,NZ,Label": ",",
    '"x";"y";"z";"r";"g";"b";"nx";"ny";"nz";"label"': ";",
    "x\ty\tz\tr\tg\tb\tnormal_x\tnormal_y\tnormal_z\tscalar_Label": "\t",
    "//X Y Z R G B Nx Ny Nz Scalar_Label": " ",
    "# exported on Monday\n# x y z r g b nx ny nz label": "  ",
    "X [m], Y [m], Z [m], R, G, B, Nx, Ny, Nz, label": ", ",
    "40\n//X,Y,Z,R,G,B,Nx,Ny,Nz,label": ",",
}


@pytest.mark.parametrize("suffix", [".xyz", ".TXT", ".csv", ".asc"])
@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_headers(tmp_path, suffix, head, ending):
    coord, color, normal = numbers()
    path = save(tmp_path / f"a{suffix}", coord, color, normal, np.arange(40), head=head + "\n", between=HEADS[head])
    path.write_bytes(path.read_bytes().replace(b"\n", ending.encode()))
    scene = read_scene(path)
    np.testing.assert_array_equal(scene.coord, coord.astype("f4"))
    assert scene.color.tolist() == color.tolist() and scene.labels["label"].tolist() == list(range(40))
    np.testing.assert_allclose(scene.normal, normal, atol=1e-6)
    assert scene.filled == () and scene.name == "a"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    coord, color, _ = numbers()
    head = "// Größe: 1 m\nx y z r g b\n"
    scene = read_scene(save(tmp_path / "a.txt", coord, color, head=head, encoding=encoding))
    assert len(scene) == 40 and scene.color.tolist() == color.tolist()


def test_columns_in_any_order_among_others(tmp_path):
    coord, color, _ = numbers()
    words = "time b g r z y x name\n" + "".join(
        f"{i} {c[2]} {c[1]} {c[0]} {p[2]} {p[1]} {p[0]} chair{i}\n" for i, (p, c) in enumerate(zip(coord.tolist(), color))
    )
    (tmp_path / "a.txt").write_text(words)
    scene = read_scene(tmp_path / "a.txt")
    np.testing.assert_array_equal(scene.coord, coord.astype("f4"))
    assert scene.color.tolist() == color.tolist()


def test_labels_that_are_words_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z,label\n" + "".join(f"{i},{i % 3},1,chair\n" for i in range(9)))
    with pytest.warns(UserWarning, match="left out label"):
        assert read_scene(tmp_path / "a.csv").labels == {}


def guessed(path, what):
    with pytest.warns(UserWarning, match=f"taken as x y z {what};.*--columns"):
        return read_scene(path)


@pytest.mark.parametrize("between", [" ", ",", "\t", ";", " , "])
def test_without_header(tmp_path, between):
    coord, color, normal = numbers()
    scene = read_scene(save(tmp_path / "a.xyz", coord, between=between))
    np.testing.assert_array_equal(scene.coord, coord.astype("f4"))
    assert scene.filled == ("color", "normal")
    for stored in (color, color / 255):
        scene = guessed(save(tmp_path / "b.xyz", coord, stored, between=between), "r g b")
        assert scene.color.tolist() == color.tolist()
    scene = guessed(save(tmp_path / "c.xyz", coord, normal, between=between), "nx ny nz")
    np.testing.assert_allclose(scene.normal, normal, atol=1e-6)
    for name, parts in (("r g b nx ny nz", (color, normal)), ("nx ny nz r g b", (normal, color))):
        scene = guessed(save(tmp_path / "d.xyz", coord, *parts, between=between), name)
        assert scene.filled == () and scene.color.tolist() == color.tolist()
    assert guessed(save(tmp_path / "e.xyz", coord, np.arange(40), between=between), "intensity").filled == ("color", "normal")


def test_pts(tmp_path):
    coord, color, _ = numbers()
    scene = guessed(save(tmp_path / "a.pts", coord, np.arange(40) - 2048, color, head="40\n"), "intensity r g b")
    np.testing.assert_array_equal(scene.coord, coord.astype("f4"))
    assert scene.color.tolist() == color.tolist()
    path = save(tmp_path / "b.pts", coord, head="41\n")
    assert "promises 41 points, 40 follow" in refused(path)


def test_columns_named_by_hand(tmp_path):
    coord, color, normal = numbers()
    path = save(tmp_path / "a.txt", np.arange(40), coord, color, normal, np.arange(40))
    names = ["-", "x", "y", "z", "r", "g", "b", "nx", "ny", "nz", "segment20"]
    scene = read_scene(path, columns=names)
    np.testing.assert_array_equal(scene.coord, coord.astype("f4"))
    assert scene.color.tolist() == color.tolist() and scene.labels["segment20"].tolist() == list(range(40))
    assert "--columns" in refused(path)  # 11 columns say nothing
    assert "has 11 columns, --columns names 3" in refused(path, columns=("x", "y", "z"))
    assert "unknown depth" in refused(path, columns=[*names[:-1], "depth"])
    assert "no x, y and z" in refused(path, columns=["-", "x", "y", *["-"] * 8])
    head = save(tmp_path / "b.txt", coord, head="east,north,height\n".replace(",", " "))
    assert "it has east, north, height" in refused(head)
    np.testing.assert_array_equal(read_scene(head, columns=("x", "y", "z")).coord, coord.astype("f4"))


def test_comments_and_empty_lines(tmp_path):
    (tmp_path / "a.xyz").write_text("# a\n\n// b\n% c\n0 0 0\n\n1 0 0 # d\n# e\n0 1 0\n   \n0 0 1\n")
    assert read_scene(tmp_path / "a.xyz").coord.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_nan_rows_are_dropped(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z\n0,0,0\nnan,1,1\n1,NaN,2\n0,1,inf\n0,0,1\n")
    with pytest.warns(UserWarning, match="dropped 3 of 5"):
        assert len(read_scene(tmp_path / "a.csv")) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("# c\nx,y,z\n0,0,0\n1,1\n", "line 4 has 2 columns, the first point has 3"),
        ("0 0 0\n\n# c\n1 2 3 4\n", "line 4 has 4 columns, the first point has 3"),
        ("x y z\n0 0 0\n0 0 wall\n", "line 3: 'wall' in column 3 is not a number"),
        ("x,y,z\n0,0,0\n0,,0\n", "line 3: '' in column 2 is not a number"),
        ("x,y,z,time\n0,0,0,12:00\n0,0,?,12:00\n", "line 3: '?' in column 3"),
        ("x,y,z,label\n0,0,0,1\n0,0,1,chair\n", "line 3: 'chair' in column 4"),
        ("1,5;2,5;3\n", "line 1 has decimal commas"),
        ("1,5;2,5;3,5\n", "line 1 has decimal commas"),
        ("x y z r\n0 0 0\n", "names 4 columns, line 2 has 3"),
        ("depth value\n0 0\n", "it has depth, value"),
        ("0 0\n1 1\n", "2 columns without names"),
        ("0 0 0 1 2 3 4\n", "7 columns without names"),
        ("x y z\n0 0 0 # cut\n1 1", "line 3 has 2 columns"),
        ("hello\n", "no points after its header"),
        ("x y z\n", "no points after its header"),
        ("", "has no points"),
        ("# only\n", "has no points"),
        ("x y z r g b\n0 0 0 -1 0 0\n", "colours from -1"),
    ],
)
def test_bad_text(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    assert message in refused(tmp_path / "a.txt")


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 9)
    assert "is not text" in refused(tmp_path / "a.txt")
