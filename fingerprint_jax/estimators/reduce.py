"""Fewer dimensions, learned on training rows and applied to others."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def pca(x: np.ndarray, query: np.ndarray, components: int, seed: int, whiten: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Standardised, then the first principal components of x: [N,D], [M,D] -> [N,C], [M,C], C <= min(components, N, D).

    `whiten` gives each of them the variance 1 over x.
    """
    model = make_pipeline(StandardScaler(), PCA(min(components, *x.shape), random_state=seed, whiten=whiten))
    return model.fit_transform(x), model.transform(query)
