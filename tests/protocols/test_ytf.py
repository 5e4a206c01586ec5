import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.protocols import face_blocks, verification
from ida_jax.protocols import ytf as module
from ida_jax.protocols.ytf import evaluate_ytf, group_frames, read_ytf_splits
from ida_jax.rescoring.methods import make_scorers

D, FIRST = 6, 4
ANCHORS = reference.unit((30, D), 9)
METHODS = ("cosine", "ida_r", "z_norm")
LINES = [
    f"{fold}, {index}, P{a}/{v}, P{b}/{w}, {int(a == b)}"
    for fold in (1, 2, 3)
    for index, (a, v, b, w) in enumerate(
        [(fold, 0, fold, 1), (fold, 0, fold, 2), (fold, 1, fold + 3, 0), (fold + 3, 1, fold, 2),
         (fold, 2, 7, 0), (7, 1, 7, 0)], 1
    )
]  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "_FIRST", FIRST)
    monkeypatch.setattr(face_blocks, "SIZES", (8, 16))


@pytest.fixture
def scorers():
    return make_scorers(METHODS, AnchorSet.from_embeddings(ANCHORS), k=3, tau=4.0)


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "splits.txt").write_text("\n".join(LINES))
    return read_ytf_splits(tmp_path / "splits.txt")


def _frames(listed, seed=0):
    """Names in random order, 1 … 7 frames a video, and their embeddings."""
    rng = np.random.default_rng(seed)
    names = [
        f"{video}/{i}.{8 + frame}.jpg"
        for i, video in enumerate(listed.videos)
        for frame in range(1 + 3 * i % 7)
    ]
    names = [*(names[i] for i in rng.permutation(len(names))), "Nobody/0/1.1.jpg"]
    people = {name: rng.normal(size=D) for name in sorted({n.split("/")[0] for n in names})}
    faces = [people[name.split("/")[0]] + 0.8 * rng.normal(size=D) for name in names]
    return names, np.float32(faces)


def _score(method, first, second):
    cosine = first @ second
    if method == "cosine":
        return cosine
    if method == "ida_r":
        density = [
            reference.density(reference.cohort_scores(f, ANCHORS, 3), 4.0) for f in (first, second)
        ]
        return 4.0 * cosine + np.log(sum(density))
    mean, std = reference.mean_and_std(reference.cohort_scores(first, ANCHORS))
    return (cosine - mean) / std


def _unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _oracle(mode, method, names, embeddings, listed):
    """Float64, one pair of frames after the other."""
    videos = []
    for video in listed.videos:
        own = [(int(name.rsplit(".")[-2]), row) for row, name in enumerate(names)
               if name.startswith(f"{video}/")]  # fmt: skip
        videos.append(_unit(embeddings[[row for _, row in sorted(own)]]))
    scores = []
    for a, b in listed.pairs:
        if mode == "ytf_mean_feature":
            means = [_unit(np.mean(videos[v], axis=0)) for v in (a, b)]
            scores.append(_score(method, *means))
        else:
            each = [_score(method, f, g) for f in videos[a][:FIRST] for g in videos[b][:FIRST]]
            scores.append(np.mean(each))
    return np.array(scores)


def test_the_real_list(shared_data):
    listed = read_ytf_splits(shared_data / "protocols" / "ytf_splits.txt")
    assert listed.pairs.shape == (5000, 2)
    assert np.bincount(listed.fold).tolist() == [500] * 10
    assert np.bincount(listed.fold[listed.same]).tolist() == [250] * 10
    assert len(listed.videos) == 3226
    assert listed.people.max() + 1 == 1447
    first, second = listed.people[listed.pairs].T
    np.testing.assert_array_equal(first == second, listed.same)
    # The file's third line, and its last.
    shown = [[listed.videos[v] for v in listed.pairs[row]] for row in (2, -1)]
    assert shown == [
        ["James_Sensenbrenner/0", "James_Sensenbrenner/1"],
        ["Ben_Curtis/0", "Hank_Stram/4"],
    ]


def test_lists_as_people_save_them(tmp_path, listed):
    header = "split number, pair number, first name, second name, is same"
    (tmp_path / "w.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join([header, *LINES, "", ""]).encode()
    )
    other = read_ytf_splits(tmp_path / "w.txt")
    assert other.videos == listed.videos
    for name in ("people", "pairs", "same", "fold"):
        np.testing.assert_array_equal(getattr(other, name), getattr(listed, name))
    assert listed.fold.tolist() == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1, 1, A/0, A/1", "found 4 fields"),
        ("", "found 1 fields"),
        ("x, 1, A/0, A/1, 1", "fold is 'x'"),
        ("0, 1, A/0, A/1, 1", "fold is '0'"),
        ("1, 99999999999, A/0, A/1, 1", "index is '99999999999'"),
        ("1, 1, A, A/1, 1", "video is 'A', expected PERSON/VIDEO"),
        ("1, 1, A/0, A/, 1", "video is 'A/'"),
        ("1, 1, A/0, A/1, 2", "same is '2'"),
        ("1, 1, A/0, A/1, 0", "same is 0 for A/0 and A/1"),
        ("1, 1, A/0, B/1, 1", "same is 1 for A/0 and B/1"),
    ],
)
def test_lines_of_another_form(tmp_path, line, message):
    (tmp_path / "s.txt").write_text("\n".join([*LINES[:2], line, *LINES[2:]]))
    with pytest.raises(UserError, match=f"s.txt, line 3: {message}"):
        read_ytf_splits(tmp_path / "s.txt")


def test_lists_of_one_fold(tmp_path):
    for lines in ([], LINES[:3]):
        (tmp_path / "s.txt").write_text("\n".join(lines))
        with pytest.raises(UserError, match=rf"s.txt has {len(lines)} pairs in fewer than 2"):
            read_ytf_splits(tmp_path / "s.txt")


@given(data=st.data())
def test_fuzzed_lists_are_one_line_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "fuzzed"
    content = bytearray("\n".join(LINES).encode())
    match data.draw(st.sampled_from(["cut", "flip", "random"])):
        case "cut":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        case "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                place = data.draw(st.integers(0, len(content) - 1))
                content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "random":
            content = data.draw(st.binary(max_size=64))
    path.write_bytes(bytes(content))
    message = "fuzzed"
    try:
        read_ytf_splits(path)
    except UserError as error:
        message = str(error)
    assert "fuzzed" in message
    assert "\n" not in message


def test_frames_are_grouped_in_natural_order():
    names = ["r/A/0/1.10.jpg", "B/1/2.jpg", "A/0/1.9.jpg", "C/0/1.jpg", "A/0/1.099.jpg", "A/1/x"]
    frames = group_frames(names, ["B/1", "A/0", "A/1"])
    assert [frames.of(v).tolist() for v in range(3)] == [[1], [2, 0, 4], [5]]
    with pytest.raises(UserError, match=r"2 of 4 videos have no frame .* first is 'A/2'"):
        group_frames(names, ["A/2", "A/0", "A", "A/1"])
    with pytest.raises(UserError, match=r"row 1 is named 'A/2.jpg': expected PERSON/VIDEO/FRAME"):
        group_frames(["A/0/1.jpg", "A/2.jpg"], ["A/0"])


@pytest.mark.parametrize("seed", [0, 1])
def test_both_modes_against_one_pair_at_a_time(listed, scorers, small, seed, monkeypatch):
    names, embeddings = _frames(listed, seed)
    kept = []
    kfold = verification.kfold_accuracy
    monkeypatch.setattr(
        verification, "kfold_accuracy", lambda s, *a, **k: kept.append(s) or kfold(s, *a, **k)
    )
    frames = group_frames(names, listed.videos)
    got = evaluate_ytf(embeddings, frames, listed, scorers, resamples=20)
    assert list(got) == ["ytf_mean_feature", "ytf_first100_pairs"]
    for mode, scores in zip(got, (kept[:3], kept[3:]), strict=True):
        assert got[mode].notes == ("18 pairs were scored, YTF's own list has 5,000",)
        for method, found in zip(METHODS, scores, strict=True):
            expected = _oracle(mode, method, names, embeddings, listed)
            np.testing.assert_allclose(found, expected, atol=2e-5)
            figures = got[mode].figures[method]
            accuracy = kfold(expected, listed.same, folds=listed.fold)
            assert figures["accuracy"] == pytest.approx(accuracy.mean)
            assert figures["accuracy_deviation"] == pytest.approx(accuracy.deviation)
            low, high = figures["accuracy_interval"]
            assert 0 <= low <= high <= 1
            assert ("accuracy_gain" in figures) == (method != "cosine")
            assert figures["genuine"] + figures["impostor"] == 18
            band = got[mode].curves[method]
            # The weakest FAR of 9 impostors that accepts one: the share of genuine above it.
            impostor = np.sort(expected[~listed.same])[::-1]
            for far, tar in zip(band.far, band.tar, strict=True):
                accepted = int(far * len(impostor) + 1e-9)
                threshold = impostor[accepted] if accepted < len(impostor) else -np.inf
                assert tar == np.mean(expected[listed.same] > threshold)
            assert (band.low <= band.high).all()


def test_a_pairs_score_does_not_depend_on_the_others(listed, scorers, small):
    names, embeddings = _frames(listed)
    frames = group_frames(names, listed.videos)
    first = [frames.of(video)[:FIRST] for video in range(len(listed.videos))]
    whole = module._frame_scores(embeddings, first, listed.pairs, scorers, None)
    some = module._frame_scores(embeddings, first, listed.pairs[[11, 3]], scorers, None)
    for method in METHODS:
        np.testing.assert_array_equal(whole[method][[11, 3]], some[method])


def test_bad_frames_are_named_or_left_out(listed, scorers, small):
    names, embeddings = _frames(listed)
    frames = group_frames(names, listed.videos)
    video = int(np.argmax(np.diff(frames.starts)))
    rows = frames.of(video)
    broken = embeddings.copy()
    broken[rows[1]] = np.nan
    with pytest.raises(UserError, match=rf"row {rows[1]}, of {listed.videos[video]}, is zero"):
        evaluate_ytf(broken, frames, listed, scorers)
    got = evaluate_ytf(broken, frames, listed, scorers, skip_bad=True, resamples=5)
    assert "1 frames that are zero, NaN or infinite were left out" in got["ytf_mean_feature"].notes
    kept = [row for row in range(len(names)) if row != rows[1]]
    fewer = group_frames([names[row] for row in kept], listed.videos)
    expected = evaluate_ytf(embeddings[kept], fewer, listed, scorers, resamples=5)
    for mode in got:
        assert got[mode].figures == expected[mode].figures
    broken[rows] = 0
    with pytest.raises(UserError, match=f"video {listed.videos[video]} has 0 good frames"):
        evaluate_ytf(broken, frames, listed, scorers, skip_bad=True)


def test_without_bootstrap(small, listed, scorers):
    names, embeddings = _frames(listed)
    frames = group_frames(names, listed.videos)
    found = evaluate_ytf(embeddings, frames, listed, scorers, resamples=0)
    for each in found.values():
        assert {"accuracy", "genuine", "impostor", "eer"} <= set(each.figures["ida_r"])
        assert "accuracy_interval" not in each.figures["ida_r"]


def test_people_among_the_anchors_are_left_out(small, listed):
    names, embeddings = _frames(listed)
    frames = group_frames(names, listed.videos)
    people = [video.split("/")[0] for video in listed.videos]
    own = reference.unit((len(people), D), 3)
    for i, video in enumerate(listed.videos):  # an anchor of each video's own person
        own[i] = embeddings[frames.of(listed.videos.index(video))].mean(axis=0)
    labels = np.unique(people, return_inverse=True)[1].astype(np.int32)
    everybody = AnchorSet.from_embeddings(
        np.concatenate([ANCHORS, own]).astype(np.float32),
        labels=np.concatenate([np.arange(100, 130, dtype=np.int32), labels]),
        names=[*(f"X{i}" for i in range(30)), *people],
    )
    named = make_scorers(("cosine", "ida_r"), everybody, k=3, tau=4.0)
    nameless = AnchorSet.from_embeddings(everybody.embeddings)
    unnamed = make_scorers(("cosine", "ida_r"), nameless, k=3, tau=4.0)
    scores = {}
    for key, methods in (("named", named), ("unnamed", unnamed)):
        taken = module.labels_among_anchors(people, methods)
        assert (taken is None) is (key == "unnamed")
        first = [frames.of(v)[:FIRST] for v in range(len(people))]
        found = module._frame_scores(embeddings, first, listed.pairs, methods, taken)
        scores[key] = found["ida_r"]
    # Without its own anchors a face's neighbourhood is less dense, and its scores are higher.
    assert np.all(scores["named"] > scores["unnamed"])
