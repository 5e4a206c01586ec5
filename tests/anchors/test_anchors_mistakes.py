"""Mistakes in a call of ida-jax anchors: one line, and nothing is written."""

import numpy as np
import pytest
import reference

from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError


def _faces(count=40, width=16):
    return reference.unit((count, width), 1, clusters=5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["bild"], "'bild' is unknown"),
        (["build"], "--output"),
        (["build", "--output=B.safetensors"], "expected exactly one of"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--class_weights"],
         "expected exactly one of"),
        (["build", "--output=B.safetensors", "--class_weights"], "--model=M goes with"),
        (["build", "--output=B.safetensors", "--images=D"], "--model=M goes with"),
        (["build", "--output=B.npy", "--embeddings=E.npy"], r"ends in \.safetensors"),
        (["build", "--output=none/B.safetensors", "--embeddings=E.npy"], "no folder none"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--k=0"], "k from 1"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--k=x"], "invalid int"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--k=41"], "k = 41 is more"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--tau=nan"], "tau is nan"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--size=0"], "at least 1"),
        (["build", "--output=B.safetensors", "--embeddings=none.npy"], r"none\.npy"),
        (["build", "--output=B.safetensors", "--embeddings=torn.npy"], r"torn\.npy"),
        (["build", "--output=B.safetensors", "--embeddings=nan.npy"],
         "2 of the 40 rows taken as anchors .* the first is row 7"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--labels=three.txt"],
         r"labels are \[3\] for 40 rows"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--labels=gap.txt"],
         r"gap\.txt: line 2 is empty"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--labels=huge.npy"],
         "beyond 32 bits"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--labels=floats.npy"],
         "floats.npy is float64 .*: expected integers or names"),
        (["build", "--output=B.safetensors", "--embeddings=E.npy", "--labels=torn.npy"],
         "not a whole .npy file"),
        (["build", "--output=B.safetensors", "--model=none", "--class_weights"], "no file at none"),
        (["build", "--output=B.safetensors", "--model=none", "--images=empty"], "no image in"),
        (["build", "--output=B.safetensors", "--model=none", "--images=none"], "no folder at none"),
        (["build", "--output=B.safetensors", "--model=none", "--images=mixed"],
         "images .* and folders of images"),
        (["info", "--anchors=torn.safetensors"], "not a whole safetensors file"),
        (["info", "--anchors=A.safetensors", "--limit=3"], "unknown flag '--limit'"),
        (["check", "--anchors=A.safetensors", "--against=wide.npy"], "8 wide, the anchors' 16"),
        (["check", "--anchors=A.safetensors", "--against=nan.npy"], "rows 7, 30 are zero"),
        (["check", "--anchors=A.safetensors", "--labels=three.txt"], "--labels goes with"),
        (["check", "--anchors=A.safetensors", "--threshold=2"], "expected a cosine"),
        (["check", "--anchors=A.safetensors", "--limit=-1"], "at least 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_output(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("E.npy", _faces())
    built = tmp_path / "A.safetensors"
    AnchorSet.from_embeddings(_faces()).save(built)
    nan = _faces().copy()
    nan[[7, 30]] = np.nan
    np.save("nan.npy", nan)
    np.save("wide.npy", _faces(4, 8))
    np.save("floats.npy", np.ones(40))
    np.save("huge.npy", np.arange(40) + 2**31)
    for whole, torn in (("E.npy", "torn.npy"), ("A.safetensors", "torn.safetensors")):
        (tmp_path / torn).write_bytes((tmp_path / whole).read_bytes()[:-40])
    (tmp_path / "three.txt").write_text("1\n2\n3\n")
    (tmp_path / "gap.txt").write_text("1\n\n3\n")
    (tmp_path / "empty").mkdir()
    for file in ("mixed/1.png", "mixed/a/1.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"found by its name")
    before = built.read_bytes()
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as raised:
        main(flags)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == files
    assert built.read_bytes() == before
