"""From a file on disk to a uint8 square: decoding every odd format, canvases held in memory, pixel
statistics.

Longer than 200 lines because "a file that cannot be shown" is decided here in one place: in the reading of
its bytes, in the strictness of its decoder, and in what stands in for it when it vanishes between the index
and the training.
"""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from selftaught.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Never EPS and the like, whose readers start other programs. Pillow finds MPO by itself, as a kind of JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_MAX_BYTES = 2**31  # a larger file is no training image, and would be read into memory whole
_GIVE_UP = 100  # so many files in a row gone means that the disk is gone
_CONVERTIBLE = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")  # modes whose conversion cannot fail
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what turns the stored pixels upright


class Unreadable(ValueError):
    """A file that gives no whole image. `str()` is the reason in a few words, without the path.

    `passing`: the reason lies in the disk or the machine and not in the file's bytes, so it may be gone next
    time.
    """

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class Paths(Sequence[Path]):
    """An immutable sequence of paths in one string of bytes: a million cost their letters, not a million
    objects.

    Worker processes share it without copying: reading it touches no reference count of a single path.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._text = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, position: int) -> Path: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, position: int | slice) -> Path | tuple[Path, ...]:
        if isinstance(position, slice):
            return tuple(self[i] for i in range(*position.indices(len(self))))
        i = range(len(self))[position]  # negative positions, and IndexError past the end
        start = int(self._ends[i - 1]) if i else 0
        return Path(os.fsdecode(self._text[start : int(self._ends[i])]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((self._text, len(self)))

    def __repr__(self) -> str:
        return f"Paths({len(self)} paths)"


class _Strict:
    """Truncated files raise, even where another library of this process has told Pillow to fill them with
    grey.

    A counter under a lock, because Pillow's switch is one for all threads: the first one in turns it off, the
    last out puts it back.
    """

    def __init__(self) -> None:
        self._before = False
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_strict = _Strict()
if hasattr(os, "register_at_fork"):  # a lock that another thread held at the fork would stay closed in the child
    os.register_at_fork(after_in_child=_strict.reset)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings about odd metadata off the terminal: whatever matters becomes a reason of
    `Unreadable`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


def _read_bytes(path: Path | str) -> bytes:
    try:
        with open(path, "rb", opener=_open_now) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise Unreadable(f"larger than {_MAX_BYTES >> 30} GiB")
            data = file.read()
    except OSError as error:
        raise Unreadable(why(error), passing=True) from None
    if not data:
        raise Unreadable("empty file")
    return data


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe called a.jpg must not wait for a writer


def why(error: OSError) -> str:
    """What the system says, in its own words without numbers and paths."""
    if error.errno == errno.ENOENT:
        return "no such file"
    return (error.strerror or str(error) or type(error).__name__).lower()


def _damage(format: str | None, data: bytes) -> str | None:
    """What is wrong with a file whose tail is missing or zeros, where the decoder would quietly show grey or
    noise.

    (A download that reserved its space and was then broken off leaves such a tail.) None: nothing seen.
    """
    if format in ("JPEG", "MPO") and not _jpeg_ends(data):
        return "truncated: the JPEG has no end marker"
    if format == "PNG":
        return _png_damage(data)
    if format == "WEBP" and data.endswith(bytes(64)):
        return "truncated: it ends in zeros"
    return None


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end-of-image marker follows the start of the scan.

    Within the coded pixels a 0xFF is always followed by 0x00 or a restart marker, so 0xFFD9 is nothing else
    there; the thumbnail in the EXIF block, which has an end marker of its own, is skipped with its block.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return True  # an odd header: the decoder's own verdict counts


def _png_damage(data: bytes) -> str | None:
    """Checks the sums of the chunks that pixels depend on, which Pillow skips for speed (they cost 1 ms for 1
    MB).
    """
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            said = struct.unpack_from(">I", data, end - 4)[0]
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != said:
                return f"damaged: wrong checksum of a PNG {kind.decode()} chunk"
        if kind == b"IEND":
            return None
        at = end
    return "truncated: the PNG has no end chunk"


def _load(path: Path | str, at_least: int | None = None) -> Image.Image:
    """The first frame as stored, all its pixels decoded. `at_least`: a JPEG may be decoded smaller, down to
    this side.
    """
    data = _read_bytes(path)
    try:
        with _strict:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if damage := _damage(image.format, data):
                raise Unreadable(damage)
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does something for a JPEG only
            image.load()
        return image
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"decompression bomb: {error}") from None
    except MemoryError:
        raise Unreadable("not enough memory to decode it", passing=True) from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(said if "truncated" in said.lower() else f"damaged: {said}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata beside whole pixels: shown as stored
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits and floats to "L". The full range of the kind is kept, so that brightness
    stays comparable between the images of a set; only where the kind states no range is it guessed from the
    values (1, 255, 65535, own).
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0).clip(min=0.0)
    top = float(values.max())
    if image.mode.startswith("I;16"):
        full = 65535.0
    elif image.mode == "F" and top <= 1:
        full = 1.0
    else:
        full = next((limit for limit in (255.0, 65535.0) if top <= limit), top)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(path: Path | str, at_least: int | None = None) -> Image.Image:
    image = _load(path, at_least)
    turn = _TRANSPOSE.get(_orientation(image))
    try:
        image = _rgb(image)
        return image if turn is None else image.transpose(turn)
    except MemoryError:
        raise Unreadable("not enough memory to convert it", passing=True) from None
    except Exception as error:  # any conversion may fail in its own way
        raise Unreadable(f"mode {image.mode} cannot be shown as RGB: {error}") from None


def decode(path: Path | str) -> Image.Image:
    """The image as a person sees it: RGB, upright by its EXIF orientation, the first frame of several.

    16 bits are scaled to 8 over their full range, CMYK is converted, transparency is laid on white. Raises
    `Unreadable` with the reason: not an image, empty, truncated, a decompression bomb (Pillow's limit, 179
    million pixels), ...
    """
    return _upright(path)


def measure(path: Path | str) -> tuple[int, int]:
    """(height, width) as shown, from decoding the whole file; raises `Unreadable` wherever `decode` does."""
    image = _load(path)
    if image.mode not in _CONVERTIBLE:
        try:
            _rgb(image)
        except Exception as error:  # as in `_upright`
            raise Unreadable(f"mode {image.mode} cannot be shown as RGB: {error}") from None
    width, height = image.size
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def squash(path: Path | str, canvas: int) -> np.ndarray:
    """The whole image resized to a square: uint8 [3, canvas, canvas]. Raises `Unreadable`.

    A JPEG is decoded at 1/2, 1/4 or 1/8 (in the frequency domain, which is antialiased by nature) where that
    leaves 1.5 x the canvas or more: half the time for 500x375 to 64 px, at a mean difference of 1.2
    grey levels. The rest is done by an antialiased bicubic filter.
    """
    image = _upright(path, at_least=math.ceil(1.5 * canvas))
    if image.size != (canvas, canvas):
        image = image.resize((canvas, canvas), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    n: int,
    work: Callable[[int], None],
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Calls `work(i)` once for every i in 0..n-1, from several threads. The first exception stops them all.

    `on_progress(done, n)` is called from the calling thread, at most ten times a second and once at the end.

    Threads and not processes: Pillow and zlib release the interpreter's lock while they decode and resize,
    and nothing has to be pickled, imported anew, or guarded by `if __name__ == "__main__"` in the user's
    script.
    """
    threads = min(threads or min(cores(), 32), max(n, 1))
    counter = itertools.count()  # shared: next() on it is one step of the interpreter
    failures: list[BaseException] = []
    done = [0] * threads
    stop = threading.Event()

    def run(me: int) -> None:
        try:
            while not stop.is_set() and (i := next(counter)) < n:
                work(i)
                done[me] += 1
        except BaseException as error:  # raised again in the calling thread
            failures.append(error)
            stop.set()

    if threads == 1 and on_progress is None:
        run(0)
    else:
        pool = [threading.Thread(target=run, args=(me,), daemon=True) for me in range(threads)]
        try:
            for thread in pool:
                thread.start()
            for thread in pool:
                while thread.is_alive():
                    thread.join(0.1)
                    if on_progress is not None and not stop.is_set() and sum(done) < n:
                        on_progress(sum(done), n)
        finally:  # Ctrl-C arrives in the calling thread: the others finish the file at hand, and no more
            stop.set()
            for thread in pool:
                if thread.ident is not None:
                    thread.join()
    if failures:
        raise failures[0]
    if on_progress is not None:
        on_progress(n, n)


class Images(torch.utils.data.Dataset[Tensor]):
    """Images as squares of one size: `images[i]` is uint8 [3, canvas, canvas], the WHOLE image squashed.

    Its true shape is `aspect[i]` (width / height), so that crops can be drawn in the true geometry. With
    `hold` all canvases are decoded now, in parallel, into one uint8 tensor `canvases` [N, 3, canvas, canvas];
    None holds them when they fit in a quarter of the free memory (shared out among the processes of this
    machine that torchrun started).

    A file that vanished or broke since the index was built is shown by the next readable image and noted in
    `lost`. Raises UserError when nothing readable follows for long, as then the disk is gone and not a file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Tensor,
        canvas: int,
        hold: bool | None = None,
        *,
        threads: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not len(paths) or tuple(sizes.shape) != (len(paths), 2) or canvas < 1:
            shapes = f"{len(paths)} paths, sizes {tuple(sizes.shape)}, canvas {canvas}"
            raise ValueError(f"{shapes}: need N > 0, sizes [N, 2] and canvas > 0")
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.canvas = canvas
        self.aspect = (sizes[:, 1].double() / sizes[:, 0].double()).float()
        self.threads = threads
        self.canvases: Tensor | None = None
        self._broken = torch.zeros(len(paths), dtype=torch.bool)
        self.reasons: dict[int, str] = {}  # why image i cannot be read any more
        bytes_needed = len(paths) * 3 * canvas * canvas
        if bytes_needed <= free_memory() // 4 // _processes_here() if hold is None else hold:
            self._fill(on_progress)

    @property
    def hold(self) -> bool:
        """Whether all canvases are in memory."""
        return self.canvases is not None

    @property
    def lost(self) -> list[tuple[str, str]]:
        """(path, reason) of every image that could not be read any more, in the order of their positions."""
        return [(str(self.paths[i]), reason) for i, reason in sorted(self.reasons.items())]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        i = range(len(self))[i]
        return self._one(None, i)[0].clone()

    def mark_lost(self, i: int, reason: str) -> None:
        """Notes that image i cannot be read any more (also for what a worker process found)."""
        self.reasons.setdefault(i, reason)
        self._broken[i] = True

    def take(self, positions: Tensor, slots: Tensor | None = None, *, threads: int | None = None) -> tuple[Tensor, Tensor]:
        """The canvases of `positions[slots]` (without slots, of all): uint8 [B, 3, canvas, canvas].

        Also returns which images are really shown, [B]: the same as asked for, but for lost ones, for which
        the next readable image within `positions` stands in (so a lost training image never brings in a
        held-out one).
        """
        slots = torch.arange(len(positions)) if slots is None else slots
        shown = positions[slots]
        if self.canvases is not None and not self._broken[shown].any():
            return self.canvases.index_select(0, shown), shown
        shown = shown.clone()
        pixels = torch.empty(len(slots), 3, self.canvas, self.canvas, dtype=torch.uint8)

        def one(j: int) -> None:
            pixels[j], shown[j] = self._one(positions, int(slots[j]))

        in_parallel(len(slots), one, threads=threads or self.threads)
        return pixels, shown

    def _one(self, positions: Tensor | None, slot: int) -> tuple[Tensor, int]:
        """The first readable canvas from positions[slot] on, going round at the end, and what it shows."""
        n = len(self) if positions is None else len(positions)
        failed = 0
        for step in range(n):
            i = (slot + step) % n if positions is None else int(positions[(slot + step) % n])
            if self._broken[i]:
                continue
            if self.canvases is not None:
                return self.canvases[i], i
            try:
                return torch.from_numpy(squash(self.paths[i], self.canvas)), i
            except Unreadable as error:
                self.mark_lost(i, str(error))
                failed += 1
                if failed == _GIVE_UP:
                    break
        raise UserError(
            f"no image can be read any more ({len(self.reasons)} lost, the last: {self._last_loss()}): "
            "is the disk still there? Index the folder again once it is"
        )

    def _last_loss(self) -> str:
        i, reason = next(reversed(self.reasons.items()))
        return f"{self.paths[i]}, {reason}"

    def _fill(self, on_progress: Callable[[int, int], None] | None) -> None:
        # Plain memory: forked workers share it copy-on-write, and torch moves it to shared memory by itself
        # when it is sent to a spawned one. /dev/shm from the start would break in containers, which often
        # give it 64 MB.
        canvases = torch.empty(len(self), 3, self.canvas, self.canvas, dtype=torch.uint8)
        rows = canvases.numpy()

        def one(i: int) -> None:
            try:
                rows[i] = squash(self.paths[i], self.canvas)
            except Unreadable as error:
                rows[i] = 0  # never shown: `take` and [i] pass over what is broken
                self.mark_lost(i, str(error))

        with quiet():
            in_parallel(len(self), one, threads=self.threads, on_progress=on_progress)
        if self._broken.all():
            raise UserError(f"none of the {len(self)} images can be read any more, for example {self._last_loss()}")
        self.canvases = canvases


def _processes_here() -> int:
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)  # set by torchrun


def free_memory() -> int:
    """Bytes still to be had: the machine's available memory, or what its container leaves if that is less."""
    free = [2**62]
    try:
        with open("/proc/meminfo") as file:
            free += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
    except OSError:
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS tells the whole, not the free part
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    return min(free) if len(free) > 1 else 2**31


def default_canvas(sizes: Tensor, size: int) -> int:
    """The side to keep images at for views of `size` pixels: twice that, so that a crop of a quarter of the
    area is still sharp, but no more than the images have (median short side, rounded up to even), and never
    less than `size`.
    """
    short = int(sizes.min(dim=1).values.median())
    return max(size, min(2 * size, short + short % 2))


def statistics(
    images: Images, positions: Tensor, limit: int = 2000
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, in [0, 1], over all pixels of at most `limit` images.

    The sample is fixed (evenly spaced, so it runs through all classes) and the sums are exact integers: every
    process and every machine gets the same numbers. A channel that never changes gets 1/255, as one divides
    by it.
    """
    if not len(positions):
        raise ValueError("statistics of no images")
    chosen = positions[torch.linspace(0, len(positions) - 1, min(limit, len(positions))).round().long()]
    total = torch.zeros(3, dtype=torch.int64)
    squares = torch.zeros(3, dtype=torch.int64)
    for part in chosen.split(64):
        pixels, _ = images.take(part)
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)])
        total += counts @ torch.arange(256)
        squares += counts @ torch.arange(256) ** 2
    pixels_seen = len(chosen) * images.canvas**2
    mean = total.double() / pixels_seen / 255
    variance = squares.double() / pixels_seen / 255**2 - mean**2
    std = variance.clamp(min=0).sqrt().clamp(min=1 / 255)
    r, g, b = mean.tolist()
    sr, sg, sb = std.tolist()
    return (r, g, b), (sr, sg, sb)
