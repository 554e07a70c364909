"""A thread that does slow work in order while its owner goes on, with a bound on the bytes that wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from netloupe.core.errors import StoreError

Item = TypeVar("Item")


class Pump(Generic[Item]):
    """Feeds items to ``consume`` on one background thread, first in first out.

    ``put`` blocks while more than ``limit`` bytes wait; one item larger than that passes when nothing else waits. An
    error in ``consume`` stops the thread, drops what waits, and is raised by every later ``put`` and ``drain``.
    """

    def __init__(self, consume: Callable[[Item], None], limit: int, name: str) -> None:
        self._consume, self._limit = consume, limit
        self._waiting: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        # a daemon: a program that forgets to close its writer must still be able to exit
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                item, size = self._waiting.popleft()
            try:
                self._consume(item)
            except BaseException as error:
                self._fail(error)
                return
            del item
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if isinstance(self._failure, StoreError):
            raise StoreError(str(self._failure)) from self._failure
        if self._failure is not None:
            raise self._failure

    def put(self, item: Item, size: int) -> None:
        with self._changed:
            while self._failure is None and self._bytes and self._bytes + size > self._limit:
                self._changed.wait()
            self._raise_failure()
            self._bytes += size
            self._waiting.append((item, size))
            self._changed.notify_all()

    def join(self) -> None:
        """Lets the thread work off what waits and ends it; no error is raised."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def drain(self) -> None:
        """``join``, then raises what went wrong, if anything did."""
        self.join()
        self._raise_failure()
