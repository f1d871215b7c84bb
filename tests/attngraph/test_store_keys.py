"""Runs by their key, and locks on keys."""

from __future__ import annotations

import multiprocessing
import shutil

import pytest

from attngraph.errors import StoreError
from attngraph.store import KeyIndex, remove_idle_locks, working_on
from attngraph.testing import write_random_run


def test_an_index_follows_its_store(tmp_path):
    index = KeyIndex(tmp_path / "store")
    index.refresh()
    assert len(index) == 0
    first, second = (write_random_run(tmp_path / "store", seed=seed) for seed in (1, 2))
    assert first.manifest.key not in index  # not looked at yet
    index.refresh()
    assert len(index) == len({first.manifest.key, second.manifest.key})
    assert index.folder(first.manifest.key) == first.path
    assert index.find(second.manifest.key).id == second.id
    shutil.rmtree(first.path)
    index.refresh()
    assert first.manifest.key not in index and second.manifest.key in index
    assert index.find(first.manifest.key) is None


def test_damaged_runs_are_passed_over(tmp_path):
    damaged, whole = (write_random_run(tmp_path, seed=3) for _ in range(2))
    assert damaged.manifest.key == whole.manifest.key
    index = KeyIndex(tmp_path)
    index.refresh()
    assert index.find(whole.manifest.key).id == damaged.id
    (damaged.path / "edges.parquet").write_bytes(b"short")
    assert index.find(whole.manifest.key).id == whole.id
    (whole.path / "run.json").write_text("{")
    fresh = KeyIndex(tmp_path)
    fresh.refresh()
    assert fresh.find(whole.manifest.key) is None


def _hold(store, key, taken, done):
    with working_on(store, key) as held:
        assert held
        taken.set()
        done.wait()


def test_a_key_has_one_worker_at_a_time_across_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, "k", taken, done))
    other.start()
    taken.wait()
    with working_on(tmp_path, "k") as held, working_on(tmp_path, "other") as free:
        assert (held, free) == (False, True)
    remove_idle_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".key-k.lock"]
    done.set()
    other.join()
    with working_on(tmp_path, "k") as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_locks_of_the_dead_are_removed(tmp_path):
    (tmp_path / ".key-gone.lock").touch()
    remove_idle_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Locking a task"), working_on(tmp_path / "file", "k"):
        pass
