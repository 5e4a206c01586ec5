import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.landmarks import read_landmarks

_POINTS = np.random.default_rng(0).uniform(0, 250, (7, 5, 2)).round(3)
_NAMES = tuple(f"Bo_{i}/Bo_{i}_000{i}.jpg" for i in range(7))
_SCORES = np.linspace(0, 1, 7).round(4)


def _text(separator, *, scores=False, names=_NAMES):
    lines = []
    for name, points, score in zip(names, _POINTS, _SCORES, strict=True):
        numbers = [*points.ravel(), *([score] if scores else [])]
        lines.append(separator.join([name, *map(str, numbers)]))
    return lines


@pytest.mark.parametrize("separator", ["\t", " ", "  ", " \t"])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_both_forms(tmp_path, separator, scores, ending):
    text = ending.join(_text(separator, scores=scores)) + 3 * ending
    path = tmp_path / "points.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_landmarks(path)
    assert found.names == _NAMES
    assert found.points.dtype == np.float64
    np.testing.assert_array_equal(found.points, _POINTS)
    if scores:
        np.testing.assert_array_equal(found.scores, _SCORES)
    else:
        assert found.scores is None


def test_one_line_and_no_line_end(tmp_path):
    path = tmp_path / "points.txt"
    path.write_text(_text(" ")[0])
    assert read_landmarks(path).points.shape == (1, 5, 2)


def test_names_may_hold_spaces_and_quotes(tmp_path):
    path = tmp_path / "points.txt"
    names = ("a b.jpg", 'c "d" e.jpg', "'f.jpg", "g,h.jpg", "é.jpg", "#i.jpg", "j\\.jpg")
    path.write_text("\n".join(_text("\t", names=names)), encoding="utf-8")
    assert read_landmarks(path).names == names


@pytest.mark.parametrize("separator", ["\t", " ", "  "])
def test_mistakes_are_named_by_line(tmp_path, separator):
    path = tmp_path / "points.txt"

    def refused(change, message):
        lines = _text(separator)
        change(lines)
        path.write_bytes("\n".join(lines).encode("utf-8", errors="surrogateescape"))
        with pytest.raises(UserError, match=f"points.txt{message}") as caught:
            read_landmarks(path)
        assert "\n" not in str(caught.value)

    def cut(lines):
        lines[4] = lines[4].rsplit(separator, 1)[0]

    def word(lines):
        lines[4] = lines[4].rsplit(separator, 1)[0] + separator + "x"

    def nan(lines):
        lines[4] = lines[4].rsplit(separator, 1)[0] + separator + "nan"

    refused(cut, ", line 5: 10 fields were found, the first line has 11")
    refused(word, ", line 5: 'Bo_4.*expected an image, x1 y1")
    refused(nan, ", line 5: a number is not finite")
    refused(lambda lines: lines.insert(4, ""), ", line 5: a blank line")
    refused(lambda lines: lines.append(lines[1]), ", line 8: 'Bo_1/Bo_1_0001.jpg' is on line 2 too")
    refused(lambda lines: lines.insert(0, "7"), ", line 1: 1 fields were found")
    refused(lambda lines: lines.clear(), " is empty")
    refused(lambda lines: lines.append("\udcff" + lines[1]), ", line 8: '.* is not UTF-8")
    with pytest.raises(UserError, match="no landmarks at"):
        read_landmarks(tmp_path / "absent.txt")


def test_a_repeated_name_with_a_line_break_is_told_on_one_line(tmp_path):
    path = tmp_path / "points.txt"
    path.write_bytes("\n".join(2 * _text("\t", names=("a\rb.jpg", *_NAMES[1:]))).encode())
    with pytest.raises(UserError, match=r"line 8: 'a\\rb.jpg' is on line 1") as caught:
        read_landmarks(path)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=60)
@given(st.data())
def test_damage_is_a_user_error_or_read(tmp_path_factory, data):
    whole = "\n".join(_text(data.draw(st.sampled_from(["\t", " "])), scores=True)).encode()
    kind = data.draw(st.sampled_from(["cut", "flip", "random"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole)))]
    elif kind == "flip":
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    else:
        damaged = data.draw(st.binary(max_size=200))
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_bytes(damaged)
    message = ""
    try:
        found = read_landmarks(path)
    except UserError as error:
        message = str(error)
    if message:
        assert "damaged.txt" in message
        assert "\n" not in message
    else:
        assert np.isfinite(found.points).all()
        assert len(set(found.names)) == len(found.points) >= 1


def test_lfws_own_file(shared_data):
    path = shared_data / "protocols" / "lfw_landmark_5pt_original_lfw.txt"
    found = read_landmarks(path)
    assert len(found.names) == 13_233
    assert found.names[0] == "Aaron_Eckhart/Aaron_Eckhart_0001.jpg"
    np.testing.assert_array_equal(found.points[0, :2], [[107, 107], [147, 111]])
    assert found.scores is None


# Where a head has the five points, in millimetres: x to the right, y down, z to the camera.
_HEAD = np.array([[-33, -33, -25], [33, -33, -25], [0, 0, 12], [-27, 35, -15], [27, 35, -15]])
_WRITTEN = {
    "x1 … x5 y1 … y5": lambda points: points.swapaxes(1, 2),
    "y1 … y5 x1 … x5": lambda points: points[..., ::-1].swapaxes(1, 2),
    "y1 x1 … y5 x5": lambda points: points[..., ::-1],
    "left and right exchanged": lambda points: points[:, [1, 0, 2, 4, 3]],
    "the eyes exchanged": lambda points: points[:, [1, 0, 2, 3, 4]],
    "the corners of the mouth exchanged": lambda points: points[:, [0, 1, 2, 4, 3]],
    "the nose last": lambda points: points[:, [0, 1, 3, 4, 2]],
    "the nose first": lambda points: points[:, [2, 0, 1, 3, 4]],
}


def _faces(count, *, yaw, pitch, roll, seed=0):
    """Points of heads turned by up to so many degrees, with a detector's errors, [N, 5, 2]."""
    rng = np.random.default_rng(seed)
    a, b, c = np.deg2rad(rng.uniform(-1, 1, (3, count)) * [[yaw], [pitch], [roll]])
    one, nil = np.ones(count), np.zeros(count)

    def rotation(*rows):
        return np.array(rows).transpose(2, 0, 1)

    turned = rotation([np.cos(a), nil, np.sin(a)], [nil, one, nil], [-np.sin(a), nil, np.cos(a)])
    nodded = rotation([one, nil, nil], [nil, np.cos(b), -np.sin(b)], [nil, np.sin(b), np.cos(b)])
    tilted = rotation([np.cos(c), -np.sin(c), nil], [np.sin(c), np.cos(c), nil], [nil, nil, one])
    points = (_HEAD @ (tilted @ nodded @ turned).transpose(0, 2, 1))[..., :2]
    size, place = rng.uniform(0.5, 4, (count, 1, 1)), rng.uniform(100, 400, (count, 1, 2))
    return points * size + rng.normal(0, 1, points.shape) + place


def _listed(path, points):
    rows = points.reshape(len(points), 10)
    lines = [" ".join([f"{i}.jpg", *map(str, row)]) for i, row in enumerate(rows.round(2))]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("order", _WRITTEN)
@pytest.mark.parametrize("count", [1, 40])
def test_points_in_another_order_are_refused(tmp_path, order, count):
    faces = _faces(count, yaw=30, pitch=15, roll=20)
    assert read_landmarks(_listed(tmp_path / "l.txt", faces)).points.shape == (count, 5, 2)
    path = _listed(tmp_path / "l.txt", _WRITTEN[order](faces))
    with pytest.raises(UserError, match=f"line 1: .*\\({order}\\).* {count} lines") as caught:
        read_landmarks(path)
    assert "\n" not in str(caught.value)


def test_profiles_and_rotated_faces_pass(tmp_path):
    faces = _faces(2000, yaw=95, pitch=45, roll=180)
    assert len(read_landmarks(_listed(tmp_path / "l.txt", faces)).points) == 2000
    for face in faces[:50]:
        read_landmarks(_listed(tmp_path / "l.txt", face[None]))


def test_a_detectors_single_mistakes_pass(tmp_path):
    faces = _faces(40, yaw=30, pitch=15, roll=20)
    faces[7] = faces[7][[1, 0, 2, 4, 3]]
    assert len(read_landmarks(_listed(tmp_path / "l.txt", faces)).points) == 40


@pytest.mark.parametrize("order", _WRITTEN)
def test_lfws_own_file_in_another_order(shared_data, tmp_path, order):
    found = read_landmarks(shared_data / "protocols" / "lfw_landmark_5pt_original_lfw.txt")
    path = _listed(tmp_path / "l.txt", _WRITTEN[order](found.points[::10]))
    with pytest.raises(UserError, match=f"\\({order}\\)"):
        read_landmarks(path)
