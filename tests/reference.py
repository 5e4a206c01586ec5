"""Slow float64 NumPy transcriptions of the paper, row by row."""

import numpy as np


def top_k(queries, anchors, k, query_labels=None, anchor_labels=None):
    """Similarities [N, K], descending; an anchor of the query's own label is left out."""
    out = []
    for i, query in enumerate(np.asarray(queries, np.float64)):
        similarities = []
        for j, anchor in enumerate(np.asarray(anchors, np.float64)):
            own = (
                query_labels is not None
                and anchor_labels[j] >= 0
                and query_labels[i] == anchor_labels[j]
            )
            if not own:
                similarities.append(float(query @ anchor))
        similarities = sorted(similarities, reverse=True)[:k]
        out.append(similarities + [-np.inf] * (k - len(similarities)))
    return np.array(out)


def density(similarities, tau):
    """F(f, Ψ) = 1 / Σᵢ exp(τ sᵢ), of one face."""
    return 1.0 / sum(np.exp(np.float64(tau) * np.float64(s)) for s in similarities)


def dao(f1, f2, support1, support2, tau):
    """Eq. 4 from embeddings and support sets [K, D], of one pair."""
    f1, f2 = np.asarray(f1, np.float64), np.asarray(f2, np.float64)
    s1 = [f1 @ f for f in np.asarray(support1, np.float64)]
    s2 = [f2 @ f for f in np.asarray(support2, np.float64)]
    return np.exp(tau * (f1 @ f2)) * (density(s1, tau) + density(s2, tau))


def unit(shape, seed, *, clusters=0):
    """float32 unit rows; in clusters where asked, as faces lie."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    if clusters:
        x = 0.7 * x + rng.normal(size=(clusters, shape[-1]))[rng.integers(clusters, size=shape[0])]
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
