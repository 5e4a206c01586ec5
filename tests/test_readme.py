"""What the README and the pages under docs/ show is run, and what they name is there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import reference
from drawn import drawn_variables

import ida_jax
import ida_jax.main
from ida_jax.__main__ import COMMANDS, main
from ida_jax.runs.config_flags import config_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# Every block of Python is run by a test: here, or in test_vector_indexes.py and test_engines.py.
_OTHERS = [page for page in PAGES if page.name not in ("vector_indexes.md", "engines.md")]
(FIVE_LINES,), (SCORER,) = _blocks("README.md", "python"), _blocks("docs/export.md", "python")
(IDENTIFICATION,) = _blocks("docs/identification.md", "python")


def test_no_other_python_is_shown():
    assert sum(len(_blocks(page, "python")) for page in _OTHERS) == 3


def test_the_five_lines():
    faces = reference.unit((30, 16), 1, clusters=5)
    anchors = reference.unit((200, 16), 0, clusters=5)
    names = {
        "anchors": 3 * anchors,
        "embeddings": 2 * faces,
        "pairs": np.random.default_rng(0).integers(30, size=(40, 2)),
        "probes": faces[:4],
        "gallery": faces[4:],
    }
    exec(FIVE_LINES, names)
    nearest = np.argsort(-faces @ anchors.T, axis=1)[:, :10]

    def log_dao(i, j):
        return np.log(
            reference.dao(faces[i], faces[j], anchors[nearest[i]], anchors[nearest[j]], 1)
        )

    expected = [log_dao(i, j) for i, j in names["pairs"]]
    np.testing.assert_allclose(names["scores"], expected, atol=1e-5)
    np.testing.assert_allclose(names["one"], [log_dao(0, 1)], atol=1e-5)
    density = [reference.density(anchors[n] @ f, 1) for n, f in zip(nearest, faces, strict=True)]
    np.testing.assert_allclose(names["crowded"], density, rtol=1e-5)
    ranking = np.argsort([[-log_dao(i, j) for j in range(4, 30)] for i in range(4)], axis=1)
    np.testing.assert_array_equal(names["best"].rows, ranking[:, :10])


def test_the_gallery(tmp_path, monkeypatch):
    from ida_jax import AnchorSet

    faces = reference.unit((30, 16), 1, clusters=5)
    anchors = AnchorSet.from_embeddings(reference.unit((200, 16), 0, clusters=5))
    anchors.save(tmp_path / "anchors.safetensors")
    monkeypatch.chdir(tmp_path)
    people = [f"person {row}" for row in range(20)]
    names = {"enrolled": faces[:20], "probes": faces[20:], "names": people}
    exec(IDENTIFICATION, names)
    expected = names["scorer"].identify(faces[20:], faces[:20], top=10)
    stored = names["stored"].embeddings[:].astype(np.float32)
    # Of rounded embeddings the order may differ where two scores nearly tie.
    np.testing.assert_allclose(stored, faces[:20], atol=5e-4)
    np.testing.assert_allclose(names["best"].scores, expected.scores, atol=1e-3)
    named = names["stored"].names_of(names["best"].rows)
    assert named.shape == (10, 10)
    assert named[0, 0] == people[expected.rows[0, 0]]


def _commands():
    """(page, words) of every line of a shell block that calls ida-jax."""
    found = []
    for page in PAGES:
        for block in _blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for start in (i for i, word in enumerate(words) if word == "ida-jax"):
                    stop = next((i for i, w in enumerate(words) if i > start and w == "&&"), None)
                    found.append((page.name, words[start + 1 : stop]))
    return found


@pytest.mark.parametrize(("page", "words"), _commands(), ids=lambda value: str(value)[:60])
def test_the_commands_that_are_shown_have_these_flags(page, words, capsys):
    command, *rest = words
    assert command in COMMANDS
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if command in ("train", "plan"):
        config = next(word for word in rest if word.startswith("--config="))
        assert config_file([config]).is_file()
        flags = [f for f in flags if f not in ("--config", "--workdir") and "--config." not in f]
    if command == "train":
        assert set(flags) <= set(re.findall(r"--\w+", ida_jax.main.__doc__))
        return
    subcommand = [word for word in rest[:1] if not word.startswith("--")]
    protocol = [word for word in rest if word.startswith("--protocol=")]
    with pytest.raises(SystemExit):
        main([command, *subcommand, *protocol, "--help"])
    known = re.findall(r"--\w+", capsys.readouterr().out)
    assert set(flags) <= set(known), page


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_the_scorer_of_an_exported_file(tau, tmp_path, monkeypatch):
    from ida_jax import Rescorer
    from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
    from ida_jax.artefacts.ssr_module import SSRModule
    from ida_jax.interop.onnx_export import onnx_bytes

    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert len(SCORER.splitlines()) <= 20
    options, rng = {"embedding_dim": 9}, np.random.default_rng(0)
    network = build_network("iresnet_nano", dict(options))
    variables = drawn_variables(network, (1, 32, 32, 3))
    model = FaceModel("iresnet_nano", options, Preprocessing(32), variables)
    params = {
        name: {"kernel": np.float32(rng.normal(size=s)), "bias": np.float32(rng.normal(size=s[1]))}
        for name, s in (("hidden_fc", (9, 7)), ("output_fc", (7, 1)))
    }
    ssr = SSRModule(params, "log", -2.5, 0.3, 1e-3, 10, tau, model.fingerprint)
    (tmp_path / "face_ida_l.onnx").write_bytes(onnx_bytes(model, ssr=ssr))
    monkeypatch.chdir(tmp_path)
    readme = {}
    exec(SCORER, readme)
    assert readme["tau"] == tau
    scorer = Rescorer(None, method="ida_l", ssr=ssr)
    for batch in (1, 7, 64):
        first, second = rng.integers(0, 256, (2, batch, 32, 32, 3), np.uint8)
        faces = [*readme["embed"](first), *readme["embed"](second)]
        theirs = model.embed(first), model.embed(second)
        found = readme["score"](*faces, tau=tau)
        assert (found.shape, found.dtype) == ((batch,), np.float32)
        np.testing.assert_allclose(found, scorer.score(*theirs), atol=1e-5)
        # 1:N, seven probes at most: every row against Rescorer's pairs of all rows.
        probes = [output[:7] for output in faces[:2]]
        everyone = readme["score_all"](*probes, *faces[2:], tau=tau)
        rows = len(probes[0])
        pairs = np.indices((rows, batch)).reshape(2, -1).T + np.array([0, batch])
        expected = scorer.score_pairs(np.concatenate(theirs), pairs).reshape(rows, batch)
        np.testing.assert_allclose(everyone, expected, atol=1e-5)
        best = scorer.identify(theirs[0][:7], theirs[1], top=1)
        np.testing.assert_allclose(everyone.max(axis=1), best.scores[:, 0], atol=1e-5)


def test_every_file_that_the_documents_link_exists():
    for document in (*PAGES, ROOT / "ARCHITECTURE.md"):
        text = document.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        missing = [link for link in links if not (document.parent / link).exists()]
        assert not missing, f"{document.name} links {missing}"
    assert "](docs/trial.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_api_page_has_every_public_name():
    paths = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M)
    places = {name: f"ida_jax.{module}.{name}" for name, module in ida_jax._HOME.items()}
    assert sorted(paths) == sorted(places.values())
