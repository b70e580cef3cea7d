"""Work in threads beside the caller's, in order and only a little ahead of it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from vqhps.runtime.bundle import available_cores

Item = TypeVar("Item")
Made = TypeVar("Made")

MOST_THREADS = 4  # more would only hold more photos or frames in memory


def in_threads(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """What `make` makes of each item, in order, one a core at a time, while `items` brings the next.

    At most one item a thread, and one more, has been taken and not given back. Whoever stops early, or is stopped,
    waits until what is being made is made.
    """
    threads = max(1, min(available_cores(), MOST_THREADS))
    pool, running = ThreadPoolExecutor(threads), deque[Future[Made]]()
    try:
        for item in items:
            running.append(pool.submit(make, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The same items, made in a thread of their own, at most `ahead` before they are asked for."""
    line: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                line.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed over to whoever asks
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = line.get()
            if kind == "item":
                yield value
            elif kind == "end":
                return
            else:
                raise value
    finally:
        stopped.set()
        thread.join()
