"""Runs by their task's key: which tasks of a store are done, and who works on one now.

A key (`attngraph.capture.description.task_key`) identifies model, prompt, settings and schema, so a complete run with a
key is all there is to know about whether that task is done. Run folders never change once they have their name, so an
index reads every manifest once, however often it is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from attngraph.errors import StoreError
from attngraph.store.manifest import MANIFEST_FILE
from attngraph.store.partial import drop, reported
from attngraph.store.run import Run, open_run
from attngraph.store.store import RUN_PREFIX

LOCK_PREFIX, LOCK_SUFFIX = ".key-", ".lock"


class _Key(msgspec.Struct):
    """The one field of a manifest that the index reads."""

    key: str


class KeyIndex:
    """The runs of a store by their key; a store that doesn't exist yet holds none.

    Parameters
    ----------
    store
        Folder of the store.
    """

    def __init__(self, store: Path | str) -> None:
        self.store = Path(store)
        self._runs: dict[str, list[Path]] = {}
        self._read: set[str] = set()

    def refresh(self) -> None:
        """Read the manifests of the runs that have come, and forget those that have gone.

        A run whose manifest can't be read counts as none: what it holds is made again, and `attngraph verify` names it.
        """
        names = {path.name for path in self.store.glob(f"{RUN_PREFIX}*")}
        if self._read - names:
            self._runs, self._read = {}, set()
        for name in sorted(names - self._read):
            self._read.add(name)
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                document = (self.store / name / MANIFEST_FILE).read_bytes()
                self._runs.setdefault(msgspec.json.decode(document, type=_Key).key, []).append(self.store / name)

    def __contains__(self, key: object) -> bool:
        return key in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def folder(self, key: str) -> Path:
        """The folder of the oldest run with this key; KeyError if there is none."""
        return self._runs[key][0]

    def find(self, key: str) -> Run | None:
        """The oldest run with this key whose files are all there and have their sizes; None without one."""
        for folder in self._runs.get(key, ()):
            with contextlib.suppress(StoreError):
                return open_run(folder)
        return None


@contextlib.contextmanager
def working_on(store: Path | str, key: str) -> Iterator[bool]:
    """Hold the right to make the run of this key; yields False where another process holds it.

    The right is an operating-system lock, so it ends with the process that holds it, however that ends. A file system
    without locks between machines can let two of them make the same run, which costs time and nothing else.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    lock = FileLock(Path(store) / f"{LOCK_PREFIX}{key}{LOCK_SUFFIX}", thread_local=False)
    with reported(f"Locking a task in the store {store}"):
        Path(store).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            held = False
        else:
            held = True
    try:
        yield held
    finally:
        if held:
            drop(lock)


def remove_idle_locks(store: Path | str) -> None:
    """Remove the lock files that killed processes have left in a store; those in use stay."""
    for path in Path(store).glob(f"{LOCK_PREFIX}*{LOCK_SUFFIX}"):
        with working_on(store, path.name.removeprefix(LOCK_PREFIX).removesuffix(LOCK_SUFFIX)):
            pass
