"""k-means by faiss, which has an environment of its own.

usage: python benchmarks/faiss_worker.py FOLDER K

FOLDER holds `points.npy`, float32 (N, d), and gets `labels.npy` and `result.json`.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np


def main(folder: str, size: str) -> None:
    points = np.load(f"{folder}/points.npy")
    faiss.omp_set_num_threads(1)
    start = time.process_time()
    model = faiss.Kmeans(points.shape[1], int(size), niter=20, seed=1, max_points_per_centroid=len(points))
    model.train(points)
    seconds = time.process_time() - start
    np.save(f"{folder}/labels.npy", model.index.search(points, 1)[1].ravel())
    Path(f"{folder}/result.json").write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
