"""Does a strong teacher help a small student without labels? ResNet-18, taught by
EfficientNet-Lite0, beside SimCLR and supervised training at equal steps and at equal time, and
random weights.

    python -m benchmarks.distillation --data rsscn7_128/ --weights efficientnet_lite0.pth
                                      --out runs/distillation [--only distilled simclr]
                                      [--steps 300] [--seeds 0] [--size 64] [--batch 64]
                                      [--precision fp32] [--name distillation]

`python -m benchmarks.hpt prepare` makes both, the images and the weights. Trains whatever is not
done yet (a run that was cut off goes on), scores all that is done by kNN and linear probe on the
data's own test split, with 20 labels a class and with all, prints a table and writes
results/distillation.json. "long" is a training for as many steps as take the time of `distilled`.
Supervised training gets 20 labels a class, or all. "teacher" is the teacher itself, not trained;
"adapted" is what `selftaught adapt` makes of it in 80 steps, which teaches one more student.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import command_of, evaluate_rows, make_once, training_seconds, write
from selftaught.cli.main import main
from selftaught.runs import folder as run_folder

METHOD = "feature-distillation"
CONFIGURATIONS: dict[str, tuple[str, list[str]]] = {
    "simclr": ("simclr", []),
    "distilled": (METHOD, []),
    "distilled, adapted teacher": (METHOD, []),
    "distilled, pooled features alone": (METHOD, ["--method.patches", "0"]),
    "distilled, hidden layer": (METHOD, ["--method.hidden", "512"]),
    "distilled, teacher at 128": (METHOD, ["--method.teacher-size", "128"]),
    "distilled, lr / 4": (METHOD, ["--optimizer.lr", "0.06"]),
    "supervised 20": ("supervised", ["--subset", "20"]),
    "supervised all": ("supervised", []),
}
# by name: what is trained for longer, until it has taken the time of `distilled`
LONG = {f"{name}, long": name for name in ("simclr", "supervised 20", "supervised all")}
REFERENCE = "distilled"
COLUMNS = [f"{protocol} {labels}" for protocol in ("knn", "linear") for labels in ("20", "all")]


def place(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def done(folder: Path) -> bool:
    return (folder / "backbone.safetensors").exists() and bool(
        run_folder.read_run(folder).facts["finished"]
    )


def common(args: argparse.Namespace) -> list[str]:
    words = ["--data", args.data, "--size", str(args.size), "--batch", str(args.batch)]
    return [*words, "--precision", args.precision, "--workers", "0"]


def take_teacher(args: argparse.Namespace) -> Path:
    """The weights as a run, which can be scored as the others are."""
    folder: Path = args.out / "teacher"
    if not done(folder):
        words = ["pretrain", "--out", str(folder), "--init", args.weights, "--steps", "0"]
        main([*words, *common(args)])
    return folder


def adapt_teacher(args: argparse.Namespace) -> Path:
    """The run of the teacher that was adapted to the images."""
    folder: Path = args.out / "adapted"
    network = ["--backbone", "tf_efficientnet_lite0", "--steps", "80"]
    target = ["--init", args.weights, "--target", args.data, "--out", str(folder)]
    main(["adapt", *target, *network, *common(args)[2:]])  # nothing where it is done
    return run_folder.resolve_run(folder)


def train(name: str, args: argparse.Namespace, seed: int) -> None:
    """Nothing where it is done, or where what its length depends on is not done."""
    folder, steps = place(args.out, name, seed), args.steps
    plain = LONG.get(name, name)
    if done(folder):
        return
    if (folder / "run.json").exists():
        main(["pretrain", "--out", str(folder), "--resume", "--workers", "0"])
        return
    if name in LONG:
        folders = [place(args.out, one, seed) for one in (REFERENCE, plain)]
        if not all(map(done, folders)):
            print(f"{name} waits for {REFERENCE} and {plain}")
            return
        reference, own = map(training_seconds, folders)
        steps = max(round(steps * reference / own), 1)
    method, more = CONFIGURATIONS[plain]
    if method == METHOD:
        adapted = name == "distilled, adapted teacher"
        teacher = adapt_teacher(args) if adapted else args.out / "teacher"
        more = ["--method.teacher", str(teacher), *more]
    words = ["pretrain", "--out", str(folder), "--method", method, "--steps", str(steps)]
    words += ["--seed", str(seed), "--backbone", "resnet18", "--stem", "imagenet"]
    main([*words, *common(args), *more])


def collect(out: Path, data: str) -> dict[str, Any]:
    """Scores by run, and those of random weights."""
    found: dict[str, Any] = {}
    folders = {path.name: path for path in sorted(out.iterdir()) if path.is_dir()}
    if "adapted" in folders:
        folders["adapted"] = run_folder.resolve_run(folders["adapted"])
    for label, folder in folders.items():
        if not done(folder):
            continue
        rows = make_once(folder / "rows.json", evaluate_rows, folder, "--labels", "20", "all")
        for row in rows:
            if row["backbone"] == "init":
                continue
            # those of the teacher's architecture are another network
            random = row["backbone"] == "random"
            name = f"random {run_folder.read_run(folder).stage.backbone}" if random else label
            entry = found.setdefault(name, {})
            entry[f"{row['protocol']} {row['labels']}"] = [row["mean"], row["low"], row["high"]]
        run = run_folder.read_run(folder)
        if run.stage.steps:
            found[label] |= {
                "steps": run.stage.steps,
                "seconds": training_seconds(folder),
                "command": command_of(run, out, "runs/distillation", data),
            }
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'':40} {'steps':>6} {'seconds':>8} " + " ".join(f"{c:>10}" for c in COLUMNS)
    for name, entry in found.items():
        scores = " ".join(f"{100 * entry[c][0]:10.1f}" for c in COLUMNS if c in entry)
        yield f"{name:40} {entry.get('steps', 0):6} {entry.get('seconds', 0):8.0f} {scores}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*CONFIGURATIONS, *LONG]
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="of the teacher")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--name", default="distillation", help="of the file in results/")
    args = parser.parse_args()
    teacher = take_teacher(args)
    for seed in args.seeds:
        for name in args.only:
            train(name, args, seed)
    result = collect(args.out, args.data)
    print("\n".join(table(result)))
    images = run_folder.read_run(teacher).facts["data"]["train"]
    write(args.name, {"images": images, "runs": result})
