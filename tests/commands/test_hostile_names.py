"""Names in files that are HTML, terminal codes, mathematics, formulas or paths stay mere names."""

import itertools
import json

import cv2
import numpy as np
import pytest
from faults.cases import make_inputs
from matplotlib.text import Text

from ida_jax import embed, evaluate, export, rescore
from ida_jax.anchors import __main__ as anchors
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError, exit_code
from ida_jax.data.sources.lfw_source import prepare_lfw
from ida_jax.report.density_plots import log_density_figure
from ida_jax.report.rate_plots import distractors_figure
from ida_jax.report.run_report import DensitiesByGroup, write_protocol_report

NAMES = (
    "<script>alert(1)</script>", "\x1b[31mred\x1b]0;title\x07", r"$\frac$x$", "=cmd|' /C calc'!A0",
    "../../../etc/passwd", "@SUM(1+1)", "%s{0}{x}\\n", "a\u202eb", "'; DROP TABLE x; --", "-1",
)  # fmt: skip
_RNG = np.random.default_rng(0)
_FACES = _RNG.normal(size=(len(NAMES), 8)).astype(np.float32)


def _said(capsys):
    """What a command printed, lines that cannot drive a terminal."""
    out, err = capsys.readouterr()
    for line in (out + err).splitlines():
        assert line.isprintable(), ascii(line)
    return out + err


def test_evaluate(tmp_path, capsys):
    same = np.tile([True, False], 100)
    scores = tmp_path / r"=cmd $\frac$b$ <b>.npy"
    np.save(scores, (same + _RNG.normal(size=200)).astype(np.float32))
    np.save(tmp_path / "labels.npy", same)
    groups = [NAMES[row % len(NAMES)] for row in range(0, 200)]
    (tmp_path / "g.tsv").write_text("group\tx\n" + "".join(f"{name}\t1\n" for name in groups))
    code = exit_code(
        lambda: evaluate.main([
            f"--scores={scores}", f"--labels={tmp_path / 'labels.npy'}", "--fars=0.1",
            f"--groups={tmp_path / 'g.tsv'}", "--resamples=20", f"--json={tmp_path / 'j.json'}",
            f"--plot={tmp_path / 'p.png'}",
        ])
    )  # fmt: skip
    said = _said(capsys)
    assert code == 0, said
    assert r"\x1b[31mred" in said
    assert "=cmd $\\frac$b$ <b>" in said
    found = json.loads((tmp_path / "j.json").read_text())
    assert set(found["methods"]["scores"]["groups"]) == set(NAMES)
    assert "\x1b" not in (tmp_path / "j.json").read_text()
    assert cv2.imread(str(tmp_path / "p.png")) is not None


def test_anchors_and_rescore(tmp_path, capsys):
    np.save(tmp_path / "e.npy", _FACES)
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (tmp_path / "e.names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    files = {name: f"{tmp_path / name}" for name in ("e.npy", "names.txt", "a.safetensors")}
    anchors.main([
        "build", f"--embeddings={files['e.npy']}", f"--labels={files['names.txt']}", "--k=2",
        f"--output={files['a.safetensors']}",
    ])  # fmt: skip
    assert set(AnchorSet.load(files["a.safetensors"]).names) == set(NAMES)
    assert anchors.main([
        "check", f"--anchors={files['a.safetensors']}", f"--against={files['e.npy']}",
        f"--labels={files['names.txt']}", "--threshold=0.9", f"--json={tmp_path / 'c.json'}",
    ])  # fmt: skip
    said = _said(capsys)
    assert r"\x1b[31mred" in said
    assert "<script>alert(1)</script>" in said
    assert "\x1b" not in (tmp_path / "c.json").read_text()

    (tmp_path / "p.tsv").write_text(
        "".join(f"{first}\t{second}\n" for first, second in itertools.pairwise(NAMES))
    )
    rescore.main([
        f"--embeddings={files['e.npy']}", f"--pairs={tmp_path / 'p.tsv'}", "--method=cosine",
        f"--names={files['names.txt']}", f"--output={tmp_path / 's.csv'}",
    ])  # fmt: skip
    head, *lines = (tmp_path / "s.csv").read_text().splitlines()
    unit = _FACES / np.linalg.norm(_FACES, axis=1, keepdims=True)
    assert head == "score"
    np.testing.assert_allclose(
        [float(line) for line in lines], np.sum(unit[:-1] * unit[1:], axis=1), atol=1e-6
    )
    (tmp_path / "p.tsv").write_text("\x1b[31mone\t\x1b]0;two\n" + (tmp_path / "p.tsv").read_text())
    rescore.main([
        f"--embeddings={files['e.npy']}", f"--pairs={tmp_path / 'p.tsv'}", "--method=cosine",
        f"--names={files['names.txt']}", f"--output={tmp_path / 's.csv'}",
    ])  # fmt: skip
    assert "is taken for a header" in _said(capsys)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_is_one_line(tmp_path, capsys, name):
    np.save(tmp_path / "e.npy", _FACES)
    (tmp_path / "n.txt").write_text("".join(f"{row}x\n" for row in range(len(NAMES))))
    (tmp_path / "p.tsv").write_text(f"0x\t1x\n0x\t{name}\n")
    code = exit_code(
        lambda: rescore.main([
            f"--embeddings={tmp_path / 'e.npy'}", f"--pairs={tmp_path / 'p.tsv'}",
            f"--names={tmp_path / 'n.txt'}", "--method=cosine", f"--output={tmp_path / 's.npy'}",
        ])
    )  # fmt: skip
    said = _said(capsys)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "n.txt", "p.tsv"]


def test_embed_and_export(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_inputs(tmp_path)
    images = tmp_path / "hostile"
    for name in NAMES:
        folder = images / name.replace("/", "_")
        folder.mkdir(parents=True)
        pixels = _RNG.integers(0, 256, (32, 32, 3), np.uint8)
        cv2.imwrite(str(folder / "x.png"), pixels)
    embed.main(["--model=model.safetensors", "--images=hostile", "--output=E.npy", "--skip_bad"])
    (tmp_path / "hostile" / "\x1b[31m.jpg").write_bytes(b"no image")
    embed.main(["--model=model.safetensors", "--images=hostile", "--output=E.npy", "--skip_bad"])
    export.main(["--model=model.safetensors", "--output=m.onnx"])
    assert r"\x1b[31m.jpg" in _said(capsys)
    names = (tmp_path / "E.names.txt").read_text().splitlines()
    assert len(names) == len(NAMES)  # one more image, and one in a hidden folder
    assert sum(name.startswith("=") for name in names) == 1


def test_figures_show_dollars_and_codes_as_they_are():
    domains = np.repeat(np.arange(len(NAMES)), 4)
    densities = _RNG.normal(size=4 * len(NAMES))
    figures = [
        log_density_figure(densities, domains, NAMES),
        distractors_figure(
            {name: {"rank1@distractors": {"10": 0.5, "100": 0.4}} for name in NAMES[:4]}
        ),
    ]
    for figure in figures:
        figure.canvas.draw()
        for text in figure.findobj(Text):
            assert "\x1b" not in text.get_text()
    assert any(r"\$\frac\$x\$" in text.get_text() for text in figures[0].findobj(Text))


def test_pages(tmp_path):
    domains = np.repeat(np.arange(len(NAMES)), 4)
    groups = DensitiesByGroup(_RNG.normal(size=domains.size), domains, NAMES)
    write_protocol_report(
        tmp_path / "r.html", title=NAMES[0], results={}, evaluated={}, groups=groups,
        settings={name: [name] for name in NAMES} | {"nested": {NAMES[0]: NAMES[0]}},
    )  # fmt: skip
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "=cmd|&#x27; /C calc" in page


def test_the_tar_of_a_prepared_set_leads_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    crop = cv2.imencode(".png", np.zeros((112, 112, 3), np.uint8))[1].tobytes()
    names = ["A_0001", "A_0002", ".._0001"]
    for name in names:
        (tmp_path / "in" / f"{name}.png").write_bytes(crop)
    (tmp_path / "list.txt").write_text("".join(f"in/{name}.png\n" for name in names))
    (tmp_path / "pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\t..\t1\n")
    with pytest.raises(UserError, match="expected images named"):
        prepare_lfw(tmp_path / "list.txt", pairs=tmp_path / "pairs.txt", data_dir=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tar"))
