"""faiss's side of benchmarks/similarity.py: reads requests from stdin, one JSON object a line, answers on stdout.

{"folder", "metric", "k"}   searches gallery.npy for query.npy in an exact index, l2 or inner_product; writes positions.npy,
                            answers {"seconds": s} of making the index and searching it

Needs faiss-cpu and numpy, not JAX.
"""

# pyright: reportMissingImports=false

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np


def main() -> None:
    """Answers until stdin ends."""
    print(json.dumps({"faiss": faiss.__version__, "threads": faiss.omp_get_max_threads()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        query, gallery = np.load(folder / "query.npy"), np.load(folder / "gallery.npy")
        start = time.perf_counter()
        index = faiss.IndexFlatL2(query.shape[1]) if request["metric"] == "l2" else faiss.IndexFlatIP(query.shape[1])
        index.add(gallery)
        _, positions = index.search(query, request["k"])
        seconds = time.perf_counter() - start
        np.save(folder / "positions.npy", positions)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
