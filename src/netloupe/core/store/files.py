"""Files that survive a crash: atomic writes, synced folders, the one-writer lock, and one sentence per failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from netloupe.core.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "the committed shards are kept, so free some space and record again with resume=True",
    errno.EDQUOT: "the committed shards are kept, so free some space and record again with resume=True",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or record fewer sites at once",
}


@contextmanager
def saying(doing: str) -> Iterator[None]:
    """Turns the system's errors into one sentence: ``cannot <doing>: <reason>; <advice>``."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = _ADVICE.get(error.errno or 0, "check the disk and record again with resume=True")
        raise StoreError(f"cannot {doing}: {reason}; {advice}") from error


def sync_folder(folder: Path) -> None:
    """Makes renames and removals inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """``os.write`` until everything is written; the system may take less than it is given."""
    while data:
        data = data[os.write(descriptor, data) :]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside ``path``, syncs, renames, syncs the folder: readers see the old file or the whole new one."""
    beside = path.with_name(path.name + ".tmp")
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(descriptor, memoryview(text))
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    finally:
        os.close(descriptor)
    beside.rename(path)
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; StoreError where the text is not one."""
    with saying(f"read {path}"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}); restore it from a copy or record again") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} holds a {type(content).__name__} where an object is expected; record again")
    return content


class FolderLock:
    """Keeps a second writer out of a folder for as long as this object, or its process, lives.

    The kernel drops the lock with the process, so a killed writer leaves at most a harmless empty file.
    """

    _held: ClassVar[weakref.WeakSet[FolderLock]] = weakref.WeakSet()

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._descriptor: int | None = self._acquire()
        FolderLock._held.add(self)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise StoreError(
                    f"another writer is recording into {self.path.parent}; wait for it to end or use another folder"
                ) from error
            # the previous holder may have removed the file between our open and our lock
            with suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)

    def release(self) -> None:
        """Removes the lock file and lets the next writer in; safe to call twice."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                with suppress(OSError):
                    self.path.unlink()
            finally:
                os.close(descriptor)

    @staticmethod
    def _forget_after_fork() -> None:
        # a forked child (a data loader's worker) shares the lock and would keep it alive after its parent died
        for lock in FolderLock._held:
            if lock._descriptor is not None:
                os.close(lock._descriptor)
                lock._descriptor = None


os.register_at_fork(after_in_child=FolderLock._forget_after_fork)
