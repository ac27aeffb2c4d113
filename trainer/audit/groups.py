"""Groups of alike unlabeled images: they show what kinds there are, also those that no sensitive example shows."""

import numpy as np

MOST = 8  # groups, a row or more of pictures each
FEWEST = 10  # images in a group, on average
DIMENSIONS = 32  # of the features, after PCA


def group(features: np.ndarray, *, seed: int) -> np.ndarray:
    """Divide images into groups by k-means on their principal components.

    Args: features: [n, d].
    Returns: [n] the number of each image's group, from 0; one group where images are few.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    n, d = features.shape
    k = min(MOST, n // FEWEST)
    if k < 2:
        return np.zeros(n, dtype=int)
    scaled = StandardScaler().fit_transform(features)
    reduced = PCA(min(DIMENSIONS, n - 1, d), random_state=seed).fit_transform(scaled)
    return KMeans(k, n_init=4, random_state=seed).fit_predict(reduced)
