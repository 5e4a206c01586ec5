"""What the README shows is run, and what it names is there."""

import re
from pathlib import Path

import numpy as np
import reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_five_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {
        "anchor_embeddings": 3 * reference.unit((200, 16), 0, clusters=5),
        "embeddings": 2 * reference.unit((30, 16), 1, clusters=5),
        "pairs": np.random.default_rng(0).integers(30, size=(40, 2)),
    }
    exec(code, names)
    faces = reference.unit((30, 16), 1, clusters=5)
    anchors = reference.unit((200, 16), 0, clusters=5)
    nearest = np.argsort(-faces @ anchors.T, axis=1)[:, :10]
    expected = [
        np.log(reference.dao(faces[i], faces[j], anchors[nearest[i]], anchors[nearest[j]], 1.0))
        for i, j in names["pairs"]
    ]
    np.testing.assert_allclose(names["scores"], expected, atol=1e-5)


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
