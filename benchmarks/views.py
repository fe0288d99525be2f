"""Source images a second and core, from a JPEG to two MoCo-v2 views: ours, torchvision, lightly,
kornia, albumentations.

    python -m benchmarks.views [--sizes 224 96 32] [--rounds 5] [--images 128]

JPEGs of 500x375, made from the demo's photographs, are read, decoded and made into the two views of
a training step, one thread each, in turn. Then the same at 32 pixels from arrays that are in memory
already. CPU seconds of this process, so that other work on the machine shows little. Prints a
table, writes results/views.json. Needs `pip install 'selftaught[bench,fast]'`.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import format_ratio, interleaved, ratios, write
from selftaught.cli.malloc import keep_freed
from selftaught.config.defaults import views_for
from selftaught.data import demo_images
from selftaught.data.decode import decode
from selftaught.data.index.build import build_index
from selftaught.data.loading.images import Images, default_canvas
from selftaught.methods import METHODS
from selftaught.views.augment import Augment
from selftaught.views.spec import Views

WIDTH, HEIGHT = 500, 375


def photographs(folder: Path, number: int) -> list[Path]:
    """Crops of photographs, each another, as JPEGs of the size that ImageNet's have most often."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, sources = np.random.default_rng(0), []
    for package, file in demo_images.PHOTOGRAPHS.values():
        result = importlib.util.find_spec(package)
        assert result is not None
        assert result.origin is not None
        sources.append(decode(Path(result.origin).parent / file))
    files = []
    for i in range(number):
        image = sources[i % len(sources)]
        width = int(min(image.width, image.height * WIDTH / HEIGHT) * rng.uniform(0.7, 1))
        height = width * HEIGHT // WIDTH
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        crop = image.crop((int(left), int(top), int(left) + width, int(top) + height))
        files.append(folder / f"{i:04}.jpg")
        crop.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def views_of(size: int) -> Views:
    return views_for(METHODS["moco-v2"], {}, size, Views())


def ours(files: list[Path], size: int, folder: Path) -> Callable[[], object]:
    index = build_index([folder], labels="none")
    images = Images(
        index.paths, index.sizes, default_canvas(index.sizes, size), in_memory=False, threads=1
    )
    augment, rng = Augment(views_of(size), size), torch.Generator().manual_seed(0)

    def batches() -> None:
        for part in torch.arange(len(files)).split(64):
            pixels, shown = images.read_originals(torch.arange(len(files)), part)
            augment(pixels, images.aspect[shown], rng)

    return batches


def each(
    transform: Callable[[Any], object], load: Callable[[Any], Any], sources: Iterable[Any]
) -> Callable[[], object]:
    """As a DataLoader's worker does it: an image at a time, then stacked into batches of 64."""
    sources = list(sources)

    def epoch() -> None:
        for low in range(0, len(sources), 64):
            product: list[Any] = [transform(load(source)) for source in sources[low : low + 64]]
            for view in zip(*product, strict=True):
                torch.stack(list(view))

    return epoch


def rgb(file: Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def torchvision_v1(size: int) -> Callable[[Any], object]:
    """MoCo-v2's own list of operations."""
    from torchvision import transforms as t

    jitter = t.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = t.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
    steps = [
        t.RandomResizedCrop(size, scale=(0.2, 1.0)),
        t.RandomApply([jitter], p=0.8),
        t.RandomGrayscale(p=0.2),
        t.RandomApply([blur], p=0.5),
        t.RandomHorizontalFlip(),
        t.ToTensor(),
        t.Normalize([0.5] * 3, [0.2] * 3),
    ]
    once = t.Compose(steps)
    return lambda image: [once(image), once(image)]


def torchvision_v2(size: int) -> Callable[[Any], object]:
    """The same by v2 on uint8 tensors, as its documentation advises."""
    from torchvision.transforms import v2 as t

    jitter = t.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = t.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
    steps = [
        t.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
        t.RandomApply([jitter], p=0.8),
        t.RandomGrayscale(p=0.2),
        t.RandomApply([blur], p=0.5),
        t.RandomHorizontalFlip(),
        t.ToDtype(torch.float32, scale=True),
        t.Normalize([0.5] * 3, [0.2] * 3),
    ]
    once, load = t.Compose(steps), t.ToImage()

    def twice(image: Any) -> object:
        image = load(image)
        return [once(image), once(image)]

    return twice


def lightly(size: int) -> Callable[[Any], object]:
    from lightly.transforms import MoCoV2Transform

    product: Callable[[Any], object] = MoCoV2Transform(input_size=size)
    return product


def albumentations(size: int) -> Callable[[Any], object]:
    import albumentations as a
    from albumentations.pytorch import ToTensorV2

    steps = [
        a.RandomResizedCrop(size=(size, size), scale=(0.2, 1.0)),
        a.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
        a.ToGray(p=0.2),
        a.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        a.HorizontalFlip(p=0.5),
        a.Normalize([0.5] * 3, [0.2] * 3),
        ToTensorV2(),
    ]
    once = a.Compose(steps)

    def twice(image: Any) -> object:
        pixels = np.asarray(image)
        return [once(image=pixels)["image"], once(image=pixels)["image"]]

    return twice


def kornia(files: list[Path], size: int) -> Callable[[], object]:
    """Whole batches, from squares of twice the size: it cannot batch images of several shapes."""
    import kornia.augmentation as k
    from torchvision.transforms.functional import pil_to_tensor

    once = k.AugmentationSequential(
        k.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
        k.RandomGaussianBlur((2 * (size // 20) + 3,) * 2, (0.1, 2.0), p=0.5),
        k.RandomHorizontalFlip(p=0.5),
        k.Normalize([0.5] * 3, [0.2] * 3),
    )
    side = min(2 * size, HEIGHT)

    def epoch() -> None:
        for low in range(0, len(files), 64):
            squares = [
                pil_to_tensor(rgb(f).resize((side, side), Image.Resampling.BICUBIC))
                for f in files[low : low + 64]
            ]
            batch = torch.stack(squares).float() / 255
            once(batch)
            once(batch)

    return epoch


def held(files: list[Path], size: int = 32) -> dict[str, Callable[[], object]]:
    """From memory: arrays of `size` pixels, sixteen times as many as there are files."""
    arrays = [np.asarray(rgb(f).resize((size, size))) for f in files] * 16
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    augment, rng = Augment(views_of(size), size), torch.Generator().manual_seed(0)

    def batches() -> None:
        for part in pixels.split(64):
            augment(part, torch.ones(len(part)), rng)

    few = [Image.fromarray(array) for array in arrays[: len(files)]]
    return {"selftaught": batches, "lightly": each(lightly(size), lambda image: image, few)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[224, 96, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as the command line does, and here for all of them
    packages = ("torchvision", "lightly", "kornia", "albumentations", "pillow")
    result: dict[str, Any] = {}
    print(
        "source images a second and core (median), and how many times lightly's: median [least,"
        f" most] of {args.rounds}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = photographs(folder, args.images)

        def report(where: str, times: dict[str, list[float]], number: Callable[[str], int]) -> None:
            result[where] = {}
            for name, seconds in times.items():
                ratio = ratios(
                    {n: [s / number(n) for s in times[n]] for n in times}, "lightly", name
                )
                speed = number(name) / sorted(seconds)[len(seconds) // 2]
                result[where][name] = {"images_per_s": speed, "times_lightly": ratio}
                print(f"{where:22} {name:16} {speed:8.0f} {format_ratio(ratio):>22}", flush=True)

        for size in args.sizes:
            cases = {
                "selftaught": ours(files, size, folder),
                "lightly": each(lightly(size), rgb, files),
                "torchvision v1": each(torchvision_v1(size), rgb, files),
                "torchvision v2": each(torchvision_v2(size), rgb, files),
                "kornia": kornia(files, size),
                "albumentations": each(albumentations(size), rgb, files),
            }
            times = interleaved(cases, args.rounds, clock=time.process_time)
            report(f"{size} px from JPEG", times, lambda _: len(files))
        times = interleaved(held(files), args.rounds, clock=time.process_time)
        report(
            "32 px from memory",
            times,
            lambda name: len(files) * (16 if name == "selftaught" else 1),
        )
    write("views", {"packages": {p: version(p) for p in packages}, "results": result})
