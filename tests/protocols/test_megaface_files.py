import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.protocols.megaface_files import (
    Lists,
    feature_blocks,
    find_lists,
    load_megaface,
    read_feature,
    read_image_list,
    read_noise_list,
    without_noise,
)
from ida_jax.tables.embeddings import EmbeddingFile

PEOPLE = {"path": ["B B/B B_1.png", "B B/B B_2.png", "A/A_3.jpg", "A/A_4.jpg"], "id": list("BBAA")}
OTHERS = {"path": [f"{i}/x@N0{i}/{i}_0.jpg" for i in range(12)]}


def _list(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _features(root, paths, *, width=5, ending="_m.bin"):
    rows = np.random.default_rng(len(paths)).normal(size=(len(paths), width)).astype("<f4")
    for path, row in zip(paths, rows, strict=True):
        file = root / f"{path}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(np.int32([width, 1, 4, 5]).astype("<i4").tobytes() + row.tobytes())
    return rows


def test_the_real_lists(shared_data):
    folder = shared_data / "protocols"
    lists = find_lists(folder)
    assert lists.facescrub_noises is lists.megaface_noises is None
    distractors = read_image_list(lists.megaface)
    assert len(distractors.paths) == 10_000
    assert distractors.labels is None
    uncropped = folder / "facescrub_uncropped_features_list.json"
    for probes in (read_image_list(lists.facescrub), read_image_list(uncropped)):
        assert len(probes.paths) == len(probes.labels) == 3530
        assert len(probes.identities) == 80
        people = [path.split("/")[0].replace(" ", "_") for path in probes.paths]
        assert people == [probes.identities[label] for label in probes.labels]


def test_lists_as_people_save_them(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        text = json.dumps(PEOPLE, indent=4).replace("\n", "\r\n") + "\r\n\r\n"
        (tmp_path / "list").write_bytes(text.encode(encoding))
        found = read_image_list(tmp_path / "list")
        assert found.paths == tuple(PEOPLE["path"])
        assert found.identities == ("A", "B")
        assert found.labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a JSON list, expected an object"),
        (3, "a JSON int, expected an object"),
        ({}, 'a list "path"'),
        ({"path": []}, 'a list "path"'),
        ({"path": ["a", 3]}, '"path" entry 1 is 3'),
        ({"path": ["a", ""]}, '"path" entry 1 is'),
        ({"path": ["a", "b", "a"]}, "entry 2 repeats 'a' of entry 0"),
        ({"path": ["a"], "id": ["x", "y"]}, '1 of "path" and 2 of "id"'),
        ({"path": ["a"], "id": "x"}, 'a list "id"'),
    ],
)
def test_lists_of_another_form(tmp_path, content, message):
    with pytest.raises(UserError, match=f"list.json.*{message}"):
        read_image_list(_list(tmp_path / "list.json", content))


def test_noise_is_matched_by_path_or_by_file_name(tmp_path):
    path = tmp_path / "noises.txt"
    lines = ["# B B/B B_1.png", "B_B_2.png ", "", "7\tA/A_4.png", "A_9.png", "C/A_3.jpg", ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    noises = read_noise_list(path)
    assert noises == ("B_B_2.png", "A/A_4.png", "A_9.png", "C/A_3.jpg")
    images = read_image_list(_list(tmp_path / "list", PEOPLE))
    cleaned = without_noise(images, noises)
    assert cleaned.images.paths == ("B B/B B_1.png", "A/A_3.jpg")
    assert cleaned.images.labels.tolist() == [1, 0]
    assert cleaned.kept.tolist() == [0, 2]
    assert cleaned.unknown == ("A_9.png", "C/A_3.jpg")
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"noises.txt, line 2: .* is not UTF-8"):
        read_noise_list(path)


@pytest.mark.parametrize("block", [1, 11, 12, 13])
def test_features_by_blocks(tmp_path, block):
    paths = OTHERS["path"]
    rows = _features(tmp_path, paths)
    order = np.random.default_rng(0).permutation(12)
    asked = [paths[i] for i in order]
    shuffled = EmbeddingFile(rows, [f"./{path}" for path in paths])
    for source in (tmp_path, shuffled):
        blocks = list(feature_blocks(source, asked, block=block))
        assert [len(each) for each in blocks[:-1]] == [block] * (len(blocks) - 1)
        np.testing.assert_array_equal(np.concatenate(blocks), rows[order])


def test_images_without_features_are_told_at_once(tmp_path):
    paths = OTHERS["path"]
    rows = _features(tmp_path, paths[:9])
    with pytest.raises(UserError, match=r"3 of 12 images have no feature .*9/x@N09/9_0.jpg_m.bin"):
        feature_blocks(tmp_path, paths)
    with pytest.raises(UserError, match=r"3 of 12 images have no feature .*'9/x@N09/9_0.jpg'"):
        feature_blocks(EmbeddingFile(rows, paths[:9]), paths)
    with pytest.raises(UserError, match="no names"):
        feature_blocks(EmbeddingFile(rows, None), paths)
    with pytest.raises(UserError, match="no folder"):
        feature_blocks(tmp_path / "absent", paths)
    with pytest.raises(UserError, match=r"0 feature files \(none\)"):
        feature_blocks(tmp_path, paths[9:])
    _features(tmp_path, paths[:9], ending="_other.bin")
    with pytest.raises(UserError, match=r"2 feature files \(_m.bin, _other.bin\)"):
        feature_blocks(tmp_path, paths[:9])
    assert len(next(feature_blocks(tmp_path, paths[:9], ending="_m.bin"))) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with \[\]"),
        (np.int32([2, 1, 4, 6, 0, 0]).tobytes(), r"begins with \[2, 1, 4, 6\]"),
        (np.int32([-2, 1, 4, 5, 0, 0]).tobytes(), r"begins with \[-2"),
        (np.int32([2, 1, 4, 5, 0]).tobytes(), "20 bytes, its header promises 24: truncated"),
        (np.int32([2, 1, 4, 5, 0, 0, 0]).tobytes(), "28 bytes, its header promises 24"),
        (np.int32([2, 1, 4, 5]).tobytes() + np.float32([1, np.nan]).tobytes(), "byte 20 .*NaN"),
    ],
)
def test_damaged_feature_files(tmp_path, content, message):
    (tmp_path / "f.bin").write_bytes(content)
    with pytest.raises(UserError, match=f"f.bin.*{message}"):
        read_feature(tmp_path / "f.bin")


def test_features_of_another_width(tmp_path):
    _features(tmp_path, OTHERS["path"][:6])
    _features(tmp_path, OTHERS["path"][6:], width=4)
    blocks = feature_blocks(tmp_path, OTHERS["path"], block=4)
    next(blocks)
    with pytest.raises(UserError, match=r"6_0.jpg_m.bin is 4 wide, .*0_0.jpg_m.bin 5"):
        next(blocks)


def test_load(tmp_path):
    people = _list(tmp_path / "facescrub_features_list.json", PEOPLE)
    others = _list(tmp_path / "megaface_features_list.json_12_1", OTHERS)
    _list(tmp_path / "megaface_features_list.json_9_1", {"path": OTHERS["path"][:9]})
    (tmp_path / "megaface_noises.txt").write_text(f"{OTHERS['path'][3]}\nabsent/1/2.jpg\n")
    (tmp_path / "facescrub_noises.txt").write_text("A_4.jpg\n")
    lists = find_lists(tmp_path)
    assert lists[:2] == (people, others)
    scrub, mega = tmp_path / "scrub", tmp_path / "mega"
    probes, rows = _features(scrub, PEOPLE["path"]), _features(mega, OTHERS["path"])
    # A noisy image needs no feature.
    os.remove(mega / f"{OTHERS['path'][3]}_m.bin")
    found = load_megaface(lists, facescrub=scrub, megaface=mega, sizes=(3, 4, 12))
    np.testing.assert_array_equal(found.probes, probes[:3])
    assert found.labels.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(np.concatenate(list(found.distractors)), np.delete(rows, 3, 0))
    assert {size: len(of) for size, of in found.sets.items()} == {3: 3, 4: 3, 12: 11}
    assert found.notes == (
        "1 of 4 FaceScrub images were deleted by the noise list",
        "1 of 12 distractors were deleted by the noise list; 1 of its names are not among them",
    )
    whole = load_megaface(Lists(people, others), facescrub=scrub, megaface=EmbeddingFile(
        rows, OTHERS["path"]))  # fmt: skip
    assert list(whole.sets) == [10]
    assert whole.notes == ()


def test_load_mistakes(tmp_path):
    people, others = _list(tmp_path / "p", PEOPLE), _list(tmp_path / "d", OTHERS)
    rows = EmbeddingFile(np.ones((12, 3), np.float32), OTHERS["path"])
    with pytest.raises(UserError, match='d has no "id"'):
        load_megaface(Lists(others, others), facescrub=rows, megaface=rows)
    with pytest.raises(UserError, match=r"13 distractors were asked for, .*d lists 12"):
        load_megaface(Lists(people, others), facescrub=rows, megaface=rows, sizes=(13,))
    noises = tmp_path / "n"
    noises.write_text("\n".join(PEOPLE["path"]))
    with pytest.raises(UserError, match=r"n deletes every image of .*p"):
        load_megaface(Lists(people, others, noises), facescrub=rows, megaface=rows)
    with pytest.raises(UserError, match=r"lacks facescrub_features_list.json"):
        find_lists(tmp_path)


@given(data=st.data())
def test_fuzzed_files_are_one_line_or_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    whole = {
        read_image_list: json.dumps(PEOPLE).encode(),
        read_noise_list: b"# noises\nA_4.jpg\n3\tB/B_1.png\n",
        read_feature: np.int32([3, 1, 4, 5]).tobytes() + np.float32([1, 2, 3]).tobytes(),
    }
    reader = data.draw(st.sampled_from(list(whole)))
    content = bytearray(whole[reader])
    match data.draw(st.sampled_from(["cut", "flip", "random"])):
        case "cut":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        case "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(
                    st.integers(0, 7)
                )
        case "random":
            content = data.draw(st.binary(max_size=64))
    path = folder / "fuzzed"
    path.write_bytes(bytes(content))
    message = "fuzzed"
    try:
        reader(path)
    except UserError as error:
        message = str(error)
    assert "fuzzed" in message
    assert "\n" not in message
