"""What the README shows is run, and what it names is there."""

import re
from pathlib import Path

import numpy as np
import reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_five_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    faces = reference.unit((30, 16), 1, clusters=5)
    anchors = reference.unit((200, 16), 0, clusters=5)
    names = {
        "anchors": 3 * anchors,
        "embeddings": 2 * faces,
        "pairs": np.random.default_rng(0).integers(30, size=(40, 2)),
        "probes": faces[:4],
        "gallery": faces[4:],
    }
    exec(code, names)
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


def test_every_file_that_the_documents_link_exists():
    for document in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert links, document
        missing = [link for link in links if not (ROOT / link).exists()]
        assert not missing, f"{document} links {missing}"


def test_the_tree_in_the_architecture_names_every_file():
    tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = {p.name for p in (ROOT / "ida_jax").rglob("*.py") if p.stat().st_size}
    missing = {name for name in files if name not in tree}
    assert not missing
