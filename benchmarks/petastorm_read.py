"""Reads a directory of Parquet files with petastorm, in petastorm's own environment.

Run by `benchmarks.ingest`; prints the number of rows and the seconds they took. It imports nothing of
prismrec: petastorm needs an Arrow that is older than ours.
"""

import json
import sys
import time

import numpy as np
from petastorm import make_batch_reader


def main(url: str, columns: list[str], num_ids: int) -> None:
    """Read all rows once, each batch stacked into one id and one number array."""
    start, rows = time.perf_counter(), 0
    with make_batch_reader(
        url, schema_fields=columns, num_epochs=1, workers_count=2, shuffle_row_groups=False
    ) as reader:
        for batch in reader:
            arrays = [np.asarray(getattr(batch, name)) for name in columns]
            ids, numbers = np.stack(arrays[:num_ids]), np.stack(arrays[num_ids:-1])
            rows += min(ids.shape[1], numbers.shape[1])
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]))
