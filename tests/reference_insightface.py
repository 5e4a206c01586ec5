"""Slow float64 NumPy transcriptions of what InsightFace's arcface_torch computes."""

import numpy as np


def _accepted_rates(threshold, distances, same):
    predicted = np.less(distances, threshold)
    true_accepts = sum(p and s for p, s in zip(predicted, same, strict=True))
    false_accepts = sum(p and not s for p, s in zip(predicted, same, strict=True))
    return true_accepts / np.sum(same), false_accepts / np.sum(~same)


def identification(similarity, mates):
    """Rank-1, -5, -10 and the TPIR at 0.01 and 0.1 of probes in one gallery (ijb_1n.py).

    Args:
      similarity: float64 [M, G].
      mates: int [M], each probe's column.
    """
    similarity = np.array(similarity, np.float64)
    order = np.argsort(-similarity, axis=1)
    hits = dict.fromkeys((1, 5, 10), 0)
    positives = []
    for probe, mate in enumerate(mates):
        for k in hits:
            hits[k] += mate in order[probe, :k]
        positives.append(similarity[probe, mate])
        similarity[probe, mate] = -2.0
    negatives = np.sort(similarity[similarity > -2.0])[::-1]
    tpir = {}
    for far in (0.01, 0.1):
        threshold = negatives[int(np.ceil(len(mates) * far)) - 1]
        tpir[far] = np.sum(np.array(positives) > threshold) / len(mates)
    return {k: count / len(mates) for k, count in hits.items()}, tpir


def margin_logit(c, margins):
    """The label's logit at scale 1 and its gradient by c, by margin_list (losses.py)."""
    m1, m2, m3 = margins
    if m1 == 1 and m3 == 0:
        # arccos and cos are taken in place under no_grad: only the scale has a gradient.
        return np.cos(np.arccos(np.float64(c)) + m2), 1.0
    if m3 > 0:
        return np.float64(c) - m3, 1.0
    raise ValueError("no such margin")


def filtered_cosines(cosines, labels, threshold):
    """What is left of [B, C] cosines by interclass_filtering_threshold (losses.py)."""
    dirty = np.float64(cosines > threshold)
    for row, label in enumerate(labels):
        dirty[row, label] = 0
    return (1 - dirty) * cosines


def polynomial_rates(rate, *, total, power):
    """The rates of `PolyScheduler` without warm-up: its first one is taken twice."""
    return [rate * (1 - max(0, step - 1) / total) ** power for step in range(total)]


def learning_rates(rate, *, warmup, total):
    """The rate of each optimiser step: `PolynomialLRWarmup` of power 1, stepped after each."""
    rates = [rate]
    for epoch in range(1, total):
        if epoch <= warmup:
            rates.append(rate * epoch / warmup)
        else:
            left = 1 - (epoch - warmup) / (total - warmup)
            rates.append(rates[-1] * left / (1 - (epoch - 1 - warmup) / (total - warmup)))
    return rates


def _folds(pairs, folds):
    """scikit-learn's KFold without shuffling: the first P mod F folds have one pair more."""
    ends = np.cumsum([pairs // folds + (fold < pairs % folds) for fold in range(folds)])
    for start, end in zip([0, *ends], ends, strict=False):
        held_out = np.arange(start, end)
        yield np.setdiff1d(np.arange(pairs), held_out), held_out


def verification(one, other, same, folds=10):
    """Each fold's accuracy, VAL and FAR, of unit rows float64 [P, D] (eval/verification.py)."""
    distances = np.sum(np.square(one - other), axis=1)
    accuracies, vals, fars = [], [], []
    for training, held_out in _folds(len(same), folds):
        correct = [
            np.mean(np.less(distances[training], t) == same[training])
            for t in np.arange(0, 4, 0.01)
        ]
        best = np.arange(0, 4, 0.01)[np.argmax(correct)]
        accuracies.append(np.mean(np.less(distances[held_out], best) == same[held_out]))
        grid = np.arange(0, 4, 0.001)
        impostors = distances[training][~same[training]]
        far = [np.mean(np.less(impostors, t)) for t in grid]
        threshold = 0.0
        if max(far) >= 1e-3:
            # Between the last threshold whose FAR is at most 1e-3 and the next, linearly.
            i = max(i for i, value in enumerate(far) if value <= 1e-3)
            slope = (grid[i + 1] - grid[i]) / (far[i + 1] - far[i])
            threshold = grid[i] + slope * (1e-3 - far[i])
        val, far = _accepted_rates(threshold, distances[held_out], same[held_out])
        vals.append(val)
        fars.append(far)
    return np.array(accuracies), np.array(vals), np.array(fars)
