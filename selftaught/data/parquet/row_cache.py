"""A cache of row groups: images as rows of Parquet files.

A row is read with its row group. Threads fetch groups, ahead of time where the order is known.
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

_THREADS = 8  # they mostly wait for disks and servers


class _RowCache:
    """The open Parquet files of this process and its latest row groups, up to `row_groups.CACHE`
    bytes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[str, Future[Shard]] = {}
        self._groups: OrderedDict[tuple[str, int, str], Future[Any]] = OrderedDict()
        self._pinned_rows: dict[RowAddress, bytes] = {}
        self._pinned_bytes = 0  # of `_pinned_rows`
        self._cached_bytes = 0  # of `_groups`
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def open_shard(self, location: str) -> Shard:
        with self._lock:
            cached = self._shards.get(location)
            future = cached or self._shards.setdefault(location, Future())
        if cached is None:
            try:
                future.set_result(Shard(location))
            except BaseException as error:
                self._shards.pop(location, None)  # the next request tries again
                future.set_exception(error)
        return future.result()

    def invalidate(self, location: str) -> None:
        """Drop a file, or those in a folder, as they may have changed."""
        with self._lock:
            for shard in [s for s in self._shards if f"{s}/".startswith(f"{location}/")]:
                del self._shards[shard]
                for key in [k for k in self._groups if k[0] == shard]:
                    self._drop(key)

    def _drop(self, key: tuple[str, int, str]) -> None:
        future = self._groups.pop(key)
        self._cached_bytes -= future.result().nbytes if future.done() else 0

    def read(self, address: RowAddress, column: str | None) -> bytes | None:
        if column is None and address in self._pinned_rows:
            return self._pinned_rows[address]
        shard = self.open_shard(address.shard)
        if (
            (column := column or shard.image) is None
            or column not in shard.schema.names
            or address.row >= len(shard)
        ):
            return None
        group, at = shard.locate_row(address.row)
        data: bytes | None = self._request(shard, group, column).result()[at].as_py()
        return data

    def prefetch(self, addresses: Iterable[RowAddress]) -> None:
        """Start to fetch the groups of these rows, in this order."""

        def request_group(address: RowAddress) -> None:
            shard = self.open_shard(address.shard)
            if shard.image is not None and address.row < len(shard):
                self._request(shard, shard.locate_row(address.row)[0], shard.image)

        for address in addresses:
            if address in self._pinned_rows:
                continue
            cached = self._shards.get(address.shard)
            if cached is not None and cached.done():
                request_group(address)
            else:  # the footer may be remote, too
                self._submit(lambda address=address: request_group(address))

    def pin(self, addresses: Sequence[RowAddress]) -> None:
        for at in range(0, len(addresses), 64):
            self.prefetch(addresses[at + 64 : at + 128])
            for address in addresses[at : at + 64]:
                try:
                    data = self.read(address, None)
                except (OSError, Unreadable):  # its reader gets the error
                    continue
                if data and self._pinned_bytes + len(data) <= row_groups.CACHE:
                    self._pinned_bytes += len(data)
                    self._pinned_rows[address] = data

    def _request(self, shard: Shard, group: int, column: str) -> Future[Any]:
        key = (shard.location, group, column)
        with self._lock:
            if (cached := self._groups.get(key)) is not None:
                self._groups.move_to_end(key)
                return cached
            future = self._groups[key] = Future()
        self._submit(lambda: self._fetch(shard, key, future))
        return future

    def _fetch(self, shard: Shard, key: tuple[str, int, str], future: Future[Any]) -> None:
        try:
            array = shard.read_encoded(*key[1:])
        except BaseException as error:
            with self._lock:
                self._groups.pop(key, None)  # the next request tries again
            future.set_exception(error)
            return
        with self._lock:
            future.set_result(array)
            # else it was dropped meanwhile
            self._cached_bytes += array.nbytes if self._groups.get(key) is future else 0
            for old in list(self._groups):
                if self._cached_bytes <= row_groups.CACHE:
                    break
                if old != key and self._groups[old].done():
                    self._drop(old)

    def _submit(self, work: Callable[[], object]) -> None:
        with self._lock:
            # daemons: a program's end does not wait for prefetches
            if len(self._threads) < _THREADS:
                self._threads.append(
                    threading.Thread(target=self._run, args=[self._queue], daemon=True)
                )
                self._threads[-1].start()
        self._queue.put(work)

    @staticmethod
    def _run(todo: queue.SimpleQueue[Callable[[], object]]) -> None:
        while True:
            work = todo.get()
            try:
                work()
            except Exception:  # of a prefetch: the reader of the row gets the error
                continue


_cache = _RowCache()
if hasattr(os, "register_at_fork"):  # a forked worker lacks the threads and the connections
    os.register_at_fork(after_in_child=_cache.reset)


def open_shard(location: str) -> Shard:
    """Return the Parquet file at a location, opened once a process."""
    return _cache.open_shard(location)


def invalidate(location: str) -> None:
    """Drop a Parquet file, or those in a folder, from the cache, as they may have changed."""
    _cache.invalidate(location)


def read_row(address: RowAddress, column: str | None = None) -> bytes:
    """Return the bytes of a row's image, or of another `column` of images.

    Raises as `source.read_bytes`, which reads files, too.
    """
    try:
        data = _cache.read(address, column)
    except OSError as error:
        raise Unreadable(integrity.describe_error(error), transient=True) from None
    if not data:
        raise Unreadable("the row holds no bytes")
    return data


def prefetch(paths: Iterable[Path | str]) -> None:
    """Start to fetch the row groups of these images, in this order; paths of files are ignored."""
    _cache.prefetch(address for path in paths if (address := RowAddress.parse(path)) is not None)


def pin(paths: Iterable[Path | str]) -> None:
    """Keep the bytes of these images in memory as long as the process lives."""
    _cache.pin([address for path in paths if (address := RowAddress.parse(path)) is not None])
