"""docs/walkthrough.ipynb runs from the first cell to the last, and shows what it says."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "walkthrough.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(tmp_path, optimised):
    pytest.importorskip("ipykernel", reason="pip install '.[docs]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install '.[docs]'")
    nbformat = pytest.importorskip("nbformat", reason="pip install '.[docs]'")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert "Use IDA-R" in shown
    far, tar = map(float, re.search(r"FAR ([\d.]+)%, TAR ([\d.]+)%", shown).groups())
    assert far < 3
    assert tar > 90
    assert (tmp_path / "trial" / "report.html").exists()
