"""A store: images as rows of Parquet files, here or at a URL, each addressed by a path of its own,
`<file>.parquet/<row>`.

A row's bytes come with those of its row group. Row groups are fetched by a few threads, ahead of
time where somebody says what comes next, and the latest are kept. Over 200 lines with the threads
that do so.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from selftaught.data.io import integrity
from selftaught.data.io.integrity import Unreadable
from selftaught.data.io.row_path import RowAddress
from selftaught.data.parquet import row_groups
from selftaught.data.parquet.file import Shard

_THREADS = 8  # that fetch: what they do is waiting


class _Shelf:
    """The shards that are open in this process and the row groups that it keeps, the latest
    `order.CACHE` bytes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[str, Future[Shard]] = {}
        self._groups: OrderedDict[tuple[str, int, str], Future[Any]] = OrderedDict()
        self._kept: dict[RowAddress, bytes] = {}
        self._held = 0  # bytes of `_kept`
        self._bytes = 0  # of `_groups`
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def shard(self, location: str) -> Shard:
        with self._lock:
            known = self._shards.get(location)
            future = known or self._shards.setdefault(location, Future())
        if known is None:
            try:
                future.set_result(Shard(location))
            except BaseException as error:
                self._shards.pop(location, None)  # asked again, it is tried again
                future.set_exception(error)
        return future.result()

    def forget(self, location: str) -> None:
        """What is known of a file, or of those in a folder: it may have changed."""
        with self._lock:
            for shard in [s for s in self._shards if f"{s}/".startswith(f"{location}/")]:
                del self._shards[shard]
                for key in [k for k in self._groups if k[0] == shard]:
                    self._drop(key)

    def _drop(self, key: tuple[str, int, str]) -> None:
        future = self._groups.pop(key)
        self._bytes -= future.result().nbytes if future.done() else 0

    def bytes_of(self, place: RowAddress, column: str | None) -> bytes | None:
        if column is None and place in self._kept:
            return self._kept[place]
        shard = self.shard(place.shard)
        if (
            (column := column or shard.image) is None
            or column not in shard.schema.names
            or place.row >= len(shard)
        ):
            return None
        group, at = shard.group(place.row)
        found: bytes | None = self._ask(shard, group, column).result()[at].as_py()
        return found

    def announce(self, places: Iterable[RowAddress]) -> None:
        """Begin to fetch the groups of these rows, in this order."""

        def ask(place: RowAddress) -> None:
            shard = self.shard(place.shard)
            if shard.image is not None and place.row < len(shard):
                self._ask(shard, shard.group(place.row)[0], shard.image)

        for place in places:
            if place in self._kept:
                continue
            known = self._shards.get(place.shard)
            if known is not None and known.done():
                ask(place)
            else:  # its footer is far away, too
                self._later(lambda place=place: ask(place))  # type: ignore[misc]

    def keep(self, places: Sequence[RowAddress]) -> None:
        for at in range(0, len(places), 64):
            self.announce(places[at + 64 : at + 128])
            for place in places[at : at + 64]:
                try:
                    found = self.bytes_of(place, None)
                except (OSError, Unreadable):  # whoever reads it will find out
                    continue
                if (
                    found and self._held + len(found) <= row_groups.CACHE
                ):  # photographs as they are may be too many
                    self._held += len(found)
                    self._kept[place] = found

    def _ask(self, shard: Shard, group: int, column: str) -> Future[Any]:
        key = (shard.location, group, column)
        with self._lock:
            if (known := self._groups.get(key)) is not None:
                self._groups.move_to_end(key)
                return known
            future = self._groups[key] = Future()
        self._later(lambda: self._fetch(shard, key, future))
        return future

    def _fetch(self, shard: Shard, key: tuple[str, int, str], future: Future[Any]) -> None:
        try:
            array = shard.encoded(*key[1:])
        except BaseException as error:
            with self._lock:
                self._groups.pop(key, None)  # asked again, it is tried again
            future.set_exception(error)
            return
        with self._lock:
            future.set_result(array)
            # else it was forgotten meanwhile
            self._bytes += array.nbytes if self._groups.get(key) is future else 0
            for old in list(self._groups):
                if self._bytes <= row_groups.CACHE:
                    break
                if old != key and self._groups[old].done():
                    self._drop(old)

    def _later(self, work: Callable[[], object]) -> None:
        with self._lock:
            if (
                len(self._threads) < _THREADS
            ):  # daemons: a program that ends does not wait for what was only announced
                self._threads.append(
                    threading.Thread(target=self._work, args=[self._todo], daemon=True)
                )
                self._threads[-1].start()
        self._todo.put(work)

    @staticmethod
    def _work(todo: queue.SimpleQueue[Callable[[], object]]) -> None:
        while True:
            work = todo.get()
            try:
                work()
            except Exception:  # an announcement: whoever reads the row meets the error
                continue


_shelf = _Shelf()
if hasattr(os, "register_at_fork"):  # a forked worker has neither the threads nor the connections
    os.register_at_fork(after_in_child=_shelf.reset)


def shard(location: str) -> Shard:
    """The Parquet file at a location, opened once a process."""
    return _shelf.shard(location)


def forget(location: str) -> None:
    """Has a Parquet file, or those in a folder, opened anew, as they may have changed."""
    _shelf.forget(location)


def read_row(place: RowAddress, column: str | None = None) -> bytes:
    """The bytes of a row's image, or of another `column` of images; as `read_bytes`, which reads
    files, too.
    """
    try:
        found = _shelf.bytes_of(place, column)
    except OSError as error:
        raise Unreadable(integrity.describe_error(error), transient=True) from None
    if not found:
        raise Unreadable("the row holds no bytes")
    return found


def announce(paths: Iterable[Path | str]) -> None:
    """Says which images will be read soon, in this order; of files nothing is done."""
    _shelf.announce(place for path in paths if (place := RowAddress.parse(path)) is not None)


def keep(paths: Iterable[Path | str]) -> None:
    """Keeps the bytes of these images as long as the process lives, for what is looked at again and
    again.
    """
    _shelf.keep([place for path in paths if (place := RowAddress.parse(path)) is not None])
