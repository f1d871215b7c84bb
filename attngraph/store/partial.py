"""Folders of runs that are being written, and how a dead writer's folder is told from a living one's.

A writer holds an operating-system lock on ``.partial-<ULID>.lock`` for as long as it lives, and writes in
``.partial-<ULID>/``. The system releases the lock when the process ends, however it ends, so a partial whose
lock can be taken has no owner; process ids, which are reused, are not needed. The lock lies beside the folder
and not in it: it is held before the folder exists and until after it is renamed, so no other writer ever sees
the folder unlocked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from ulid import ULID

from attngraph.errors import StoreError

PREFIX = ".partial-"
LOCK_SUFFIX = ".lock"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partial:
    """A claimed run id: the folder to write in, the lock that keeps it, and the store folders made for it."""

    store: Path
    ulid: ULID
    lock: BaseFileLock
    made: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return self.store / f"{PREFIX}{self.ulid}"

    def release(self) -> None:
        """Remove the lock file and give up the claim."""
        drop(self.lock)

    def discard(self) -> None:
        """Remove all that the claim has made: the folder, the lock, and the store if it was made for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()
        _remove_folders(self.made)


@contextlib.contextmanager
def reported(action: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says which action failed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{action} failed: {reason}. Check that the folder is writable and its disk not full."
        ) from error


def claim(store: Path) -> Partial:
    """Claim a new run id in `store`, which is made if it doesn't exist; remove the partials that nobody owns.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    with reported(f"Opening the store {store} for writing"):
        made = _make_folders(store)
        try:
            remove_abandoned(store)
            partial = Partial(store, *_lock_new(store), made)
        except BaseException:
            _remove_folders(made)
            raise
        try:
            partial.folder.mkdir()
        except BaseException:
            partial.discard()
            raise
    return partial


def remove_abandoned(store: Path) -> tuple[str, ...]:
    """Remove the partial runs in `store` whose writer is gone, and return their ids; spare living ones."""
    ids = sorted({path.name.removeprefix(PREFIX).removesuffix(LOCK_SUFFIX) for path in store.glob(f"{PREFIX}*")})
    return tuple(run for run in ids if _remove_if_abandoned(store, run))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; folders can't be opened on Windows, where renames are already."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(store: Path, run: str) -> bool:
    lock = _lock(store, run)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    folder = store / f"{PREFIX}{run}"
    if folder.exists():
        _logger.info("Removing the unfinished run %s, whose writer is gone.", folder)
        shutil.rmtree(folder)
    drop(lock)
    return True


def _lock_new(store: Path) -> tuple[ULID, BaseFileLock]:
    while True:
        ulid = ULID()
        lock = _lock(store, str(ulid))
        # A writer that cleans up may hold the new lock file for a moment, before it is locked here: take
        # another id.
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
            return ulid, lock


def _lock(store: Path, run: str) -> BaseFileLock:
    return FileLock(store / f"{PREFIX}{run}{LOCK_SUFFIX}", thread_local=False)


def drop(lock: BaseFileLock) -> None:
    """Release a lock that is held, and remove its file."""
    # Unlinked while held, so that nobody can take the lock of a name that is about to vanish. Windows can't
    # do that.
    if os.name == "nt":
        lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _make_folders(folder: Path) -> tuple[Path, ...]:
    """Make `folder` and its missing parents; returns those that were made, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(missing)


def _remove_folders(folders: tuple[Path, ...]) -> None:
    with contextlib.suppress(OSError):  # a folder that others use by now isn't empty, and stays
        for folder in folders:
            folder.rmdir()
