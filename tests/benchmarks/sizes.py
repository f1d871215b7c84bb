"""Bytes per row of every table of the runs in a store, and each run's measured against its predicted bytes.

python tests/benchmarks/sizes.py STORE
"""

from __future__ import annotations

import sys

import attngraph as ag
from attngraph.store.schema import TABLES

for run in ag.open_store(sys.argv[1]):
    manifest = run.manifest
    config = manifest.config
    print(f"{manifest.model.id}, {manifest.prompt.tokens} tokens, {config.block_size} × {config.budget}")
    for name in TABLES:
        file = manifest.files[f"{name}.parquet"]
        each = f"{file.bytes / file.rows:8.2f}" if file.rows else "       –"
        print(f"  {name:14} {file.rows:>12,} rows {file.bytes:>12,} bytes {each} per row")
