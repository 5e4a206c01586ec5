"""What a trial leaves for production: anchors, fits, calibration, deploy.json and score.py."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ida_jax.common.files import json_text, written_whole
from ida_jax.metrics.evaluation import far_key
from ida_jax.rescoring.method_table import BASELINE, METHODS, SEARCHED
from ida_jax.trials.trial import Trial

DEPLOY, SCORE, CALIBRATION = "deploy.json", "score.py", "calibration.safetensors"

_HEAD = '''"""python score.py E.npy PAIRS.npy SCORES.npy: {title}, as ida-jax rescore scores it."""
import json
import sys
from pathlib import Path

import numpy as np
{imports}
HERE = Path(__file__).parent
deploy = json.loads((HERE / "deploy.json").read_text(encoding="utf-8"))
raw, pairs = np.load(sys.argv[1]), np.load(sys.argv[2])
'''
_UNIT = """faces = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
cosine = np.einsum("pd,pd->p", faces[pairs[:, 0]], faces[pairs[:, 1]])
"""
# Methods whose formula a few lines of NumPy state; the others are called through the package.
_NUMPY = {
    BASELINE: _UNIT + "scores = cosine\n",
    SEARCHED: _UNIT
    + """anchors = load_file(HERE / "anchors.safetensors")["embeddings"]
k, tau = deploy["k"], deploy["tau"]
log_f = np.empty(len(faces))
for start in range(0, len(faces), 4096):  # log F = −log Σ exp(τ s) over the k nearest anchors
    nearest = np.sort(faces[start : start + 4096] @ anchors.T, axis=1)[:, -k:]
    log_f[start : start + 4096] = -np.log(np.exp(tau * nearest.astype(np.float64)).sum(axis=1))
a, b = log_f[pairs[:, 0]], log_f[pairs[:, 1]]
scores = tau * cosine + np.logaddexp(a, b)  # log DAO
""",
}
_PACKAGE = """files = {name: HERE / file for name, file in deploy["files"].items()}
anchors = files.pop("anchors", None)
settings = {"method": deploy["method"], "weight": deploy.get("weight")}
scorer = Rescorer(anchors and str(anchors), **settings, **files)
scores = scorer.score_pairs(raw, pairs)
"""
_TAIL = """np.save(sys.argv[3], scores.astype(np.float32))
threshold = deploy["threshold"][deploy["far"]]["threshold"]
print(f"{np.count_nonzero(scores > threshold)} of {len(scores)} pairs match at {threshold:.4f}")
"""


def write_files(
    folder: Path, trial: Trial, *, model: str, versions: Mapping[str, str], command: str
) -> list[str]:
    """Writes the files into an existing folder; their names, deploy.json last."""
    method = trial.method
    entry, artefacts = METHODS[method], trial.deployed.artefacts
    # The anchors go along where the method needs none: with them the domain can be checked.
    kept = {name: f"{name}.safetensors" for name in {"anchors", *entry.needs}}
    for name, file in sorted(kept.items()):
        artefacts[name].save(folder / file)
    scorer = trial.deployed.scorers[method]
    trial.calibration.save(folder / CALIBRATION)
    used = {name: kept[name] for name in entry.needs}
    line = ["ida-jax", "rescore", "--embeddings=E", "--pairs=P", f"--method={method}"]
    line += [f"--{name}={folder / file}" for name, file in used.items()]
    weight = {"weight": scorer.weight} if "weight" in entry.settings else {}
    line += [f"--{name}={value:g}" for name, value in weight.items()]
    anchors = artefacts["anchors"]
    deploy: dict[str, Any] = {
        "method": method,
        "title": entry.title,
        "verdict": trial.text,
        "k": scorer.k,
        "tau": scorer.tau,
        **weight,
        "far": far_key(trial.finding.far),
        "threshold": trial.thresholds,
        "calibration": CALIBRATION,
        "files": used,
        "anchors": {"size": len(anchors), "fingerprint": anchors.fingerprint},
        "model": model or anchors.fingerprint or "unknown",
        "rescore": f"{shlex.join(line)} --output=S",
        "made_by": command,
        "versions": dict(versions),
    }
    _write(folder / SCORE, score_script(method))
    _write(folder / DEPLOY, json_text(deploy))
    return [*sorted(kept.values()), CALIBRATION, SCORE, DEPLOY]


def score_script(method: str) -> str:
    """score.py of a method: at most 30 lines."""
    body = _NUMPY.get(method, _PACKAGE)
    imports = "from safetensors.numpy import load_file\n" if "load_file" in body else ""
    if body is _PACKAGE:
        imports = "from ida_jax import Rescorer\n"
    return _HEAD.format(title=METHODS[method].title, imports=imports) + body + _TAIL


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
