"""Golden values of the statistics behind verdicts, from scipy, scikit-learn and statsmodels.

Mann-Whitney p-values (exact and normal), AUROC, Cohen's d, Holm's correction, residuals of a
regression fitted out of fold, R², and a stratified Mann-Whitney test, the last from its
definition. Run: python tests/golden/verdicts.py
"""

import json
import math
import pathlib

import numpy as np
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests


def groups(values, labels):
    return values[labels], values[~labels]


def cohens_d(a, b):
    pooled = (len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)
    return float((a.mean() - b.mean()) / math.sqrt(pooled / (len(a) + len(b) - 2)))


def stratified(values, labels, bins):
    """U summed over bins with both labels; means, tie-corrected variances, correction of a half."""
    difference, variance = 0.0, 0.0
    for bin in sorted(set(bins.tolist())):
        a, b = groups(values[bins == bin], labels[bins == bin])
        if len(a) == 0 or len(b) == 0:
            continue
        u = stats.mannwhitneyu(a, b, method="asymptotic").statistic
        n = len(a) + len(b)
        counts = np.unique(np.concatenate([a, b]), return_counts=True)[1]
        ties = float((counts**3 - counts).sum())
        difference += u - len(a) * len(b) / 2
        variance += len(a) * len(b) / 12 * (n + 1 - ties / (n * (n - 1)))
    z = max(abs(difference) - 0.5, 0.0) / math.sqrt(variance)
    return float(min(2 * stats.norm.sf(z), 1.0))


def case(rng, n, positives, effect, tied):
    labels = np.zeros(n, dtype=bool)
    labels[rng.permutation(n)[:positives]] = True
    tokens = rng.integers(20, 200, n)
    values = 0.004 * tokens + rng.standard_normal(n) + effect * labels
    if tied:
        values = np.round(values, 0)
    a, b = groups(values, labels)
    method = "exact" if not tied and min(len(a), len(b)) <= 8 else "asymptotic"
    folds = rng.permutation(n) % 4
    columns = np.stack([tokens, np.log(tokens), rng.standard_normal(n)], axis=1)
    residuals = np.empty(n)
    for fold in range(4):
        fit = LinearRegression().fit(columns[folds != fold], values[folds != fold])
        residuals[folds == fold] = values[folds == fold] - fit.predict(columns[folds == fold])
    bins = tokens // 30
    return {
        "values": values.tolist(),
        "labels": labels.tolist(),
        "folds": folds.tolist(),
        "columns": columns.T.tolist(),
        "bins": bins.tolist(),
        "method": method,
        "auroc": float(roc_auc_score(labels, values)),
        "p": float(stats.mannwhitneyu(a, b, alternative="two-sided", method=method).pvalue),
        "cohens_d": cohens_d(a, b),
        "r_squared": float(stats.pearsonr(values, tokens).statistic ** 2),
        "residuals": residuals.tolist(),
        "stratified_p": stratified(values, labels, bins),
    }


def main():
    rng = np.random.default_rng(11)
    shapes = [
        (40, 20, 0.8, False),
        (60, 15, 0.0, True),
        (12, 4, 1.0, False),
        (30, 8, -1.5, False),
        (200, 90, 0.5, True),
        (16, 8, 0.0, False),
    ]
    cases = [case(rng, *shape) for shape in shapes]
    p = [c["p"] for c in cases] + [c["stratified_p"] for c in cases] + [1e-9, 1e-9, 0.04]
    holm = {"p": p, "corrected": multipletests(p, method="holm")[1].tolist()}
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"cases": cases, "holm": holm}) + "\n")


if __name__ == "__main__":
    main()
