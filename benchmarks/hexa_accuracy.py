"""Does HEXA help? Plain methods and their HEXA versions, at equal steps and at equal time, beside
random weights.

    python -m benchmarks.hexa_accuracy --data imagenette128/ --out runs/hexa
        [--only moco-v2 hexa-moco] [--steps 300] [--seeds 0] [--backbone resnet18] [--size 64]
        [--stem imagenet] [--subset 200] [--long STEPS] [--device cuda] [--name hexa_accuracy]

Runs whatever is not done yet (a run that was cut off goes on), evaluates all that is done by kNN
and linear probe on the data's own test split, prints a table and writes results/NAME.json. "long"
is the plain method for as many steps as take the time of its HEXA version. "short" is the plain
method for two thirds of the steps: what it lacks is what plain training still gained at the end.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import command_of, evaluate_rows, make_once, training_seconds, write
from selftaught.cli.main import main
from selftaught.runs import folder as run_folder

BOTH = ["--hard", "adversarial", "cutmix"]
CONFIGURATIONS: dict[str, tuple[str, list[str]]] = {
    "moco-v2": ("moco-v2", []),
    "hexa-moco": ("moco-v2", BOTH),
    "deepcluster-v2": ("deepcluster-v2", []),
    "hexa-dcluster": ("deepcluster-v2", BOTH),
    # what the parts and the settings do
    "moco-v2 + adversarial": ("moco-v2", ["--hard", "adversarial"]),
    "moco-v2 + cutmix": ("moco-v2", ["--hard", "cutmix"]),
    "moco-v2 + mixup": ("moco-v2", ["--hard", "mixup"]),
    "moco-v2 + adversarial, eps 4": (
        "moco-v2",
        ["--hard", "adversarial", "--hard.adversarial.eps", "4"],
    ),
    "hexa-moco, auxiliary norm": (
        "moco-v2",
        [*BOTH, "--hard.adversarial.norm", "auxiliary", "--hard.cutmix.norm", "auxiliary"],
    ),
    "moco-v2, lr x2": ("moco-v2", ["--optimizer.lr", "0.24"]),
    "hexa-moco, lr x2": ("moco-v2", [*BOTH, "--optimizer.lr", "0.24"]),
    "hexa-moco, sum": ("moco-v2", [*BOTH, "--combine", "sum"]),
    "hexa-moco, half weights": (
        "moco-v2",
        [*BOTH, "--hard.adversarial.weight", "0.5", "--hard.cutmix.weight", "0.5"],
    ),
    "hexa-moco, after a third": (
        "moco-v2",
        [*BOTH, "--hard.adversarial.start", "0.33", "--hard.cutmix.start", "0.33"],
    ),
    "simclr": ("simclr", []),
    "simclr + cutmix": ("simclr", ["--hard", "cutmix"]),
    "deepcluster-v2 + cutmix": ("deepcluster-v2", ["--hard", "cutmix"]),
    "deepcluster-v2 + adversarial": ("deepcluster-v2", ["--hard", "adversarial"]),
}
LONG = {
    "moco-v2, long": ("moco-v2", "hexa-moco"),
    "deepcluster-v2, long": ("deepcluster-v2", "hexa-dcluster"),
}
SHORT = {"moco-v2, short": "moco-v2", "deepcluster-v2, short": "deepcluster-v2"}
COMMON = ["--batch", "128", "--precision", "auto", "--workers", "0"]


def train(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Train one configuration, unless it is done; return the run's folder."""
    folder: Path = args.out / folder_name(name, seed)
    if (folder / "backbone.safetensors").exists():
        return folder
    if (folder / "run.json").exists():
        main(["pretrain", "--out", str(folder), "--resume", "--workers", "0"])
        return folder
    steps = args.steps
    if name in LONG:
        plain, hexa = (args.out / folder_name(n, seed) for n in LONG[name])
        steps = args.long or round(steps * training_seconds(hexa) / training_seconds(plain))
        method, more = LONG[name][0], []
    elif name in SHORT:
        method, more = SHORT[name], []
        steps = round(steps * 2 / 3)
    else:
        method, more = CONFIGURATIONS[name]
    settings = {
        "data": args.data,
        "out": folder,
        "method": method,
        "steps": steps,
        "seed": seed,
        "backbone": args.backbone,
        "size": args.size,
        "subset": args.subset,
        "device": args.device,
        **({"stem": args.stem} if args.stem else {}),
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    main(["pretrain", *flags, *COMMON, *more])
    return folder


def folder_name(name: str, seed: int) -> str:
    return f"{name.replace(', ', '-').replace(' + ', '+').replace(' ', '-')}-{seed}"


def score(folder: Path, device: str) -> list[dict[str, Any]]:
    """kNN and the linear probe, with 20 labels a class and with all."""
    return evaluate_rows(folder, "--labels", "20", "all", "--device", device)


def collect(out: Path, data: str, device: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in sorted(out.iterdir()):
        if not (folder / "backbone.safetensors").exists():
            continue
        facts = run_folder.read_run(folder)
        rows = make_once(folder / "rows.json", score, folder, device)
        for row in rows:
            name = "random" if row["backbone"] == "random" else folder.name
            entry = found.setdefault(name, {})
            entry[f"{row['protocol']} {row['labels']}"] = [row["mean"], row["low"], row["high"]]
            if name != "random":
                steps = facts.stage.steps
                entry |= {
                    "steps": steps,
                    "seconds": training_seconds(folder),
                    "outcome": facts.facts["outcome"],
                }
                entry["command"] = command_of(facts, out, "runs/hexa", data)
    return found


def table(found: dict[str, Any]) -> str:
    columns = ("knn 20", "knn all", "linear 20", "linear all")
    lines = [f"{'':36} {'steps':>6} {'seconds':>8} " + " ".join(f"{c:>10}" for c in columns)]
    for name, entry in found.items():
        scores = " ".join(f"{100 * entry[c][0]:10.1f}" for c in columns)
        lines.append(f"{name:36} {entry.get('steps', 0):6} {entry.get('seconds', 0):8.0f} {scores}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*CONFIGURATIONS, *LONG, *SHORT])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", default="64")
    parser.add_argument("--stem", choices=("imagenet", "cifar"), help="of the ResNet")
    parser.add_argument("--subset", default="all", help="of the training images")
    parser.add_argument("--long", type=int, help="steps of the long runs (HEXA's time)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="hexa_accuracy", help="of the file in results/")
    args = parser.parse_args()
    for seed in args.seeds:
        for name in args.only:
            train(name, seed, args)
    result = collect(args.out, args.data, args.device)
    print(table(result))
    shown = ["steps", "backbone", "size", "subset", "name"]
    shown += [key for key in ("stem", "long") if getattr(args, key)]
    command = "python -m benchmarks.hexa_accuracy --data images/ --out runs/hexa"
    command += f" --seeds {' '.join(map(str, args.seeds))}"
    command += "".join(f" --{key} {getattr(args, key)}" for key in shown)
    images = run_folder.read_run(next(args.out.glob("*/"))).facts["data"]["train"]
    write(args.name, {"command": command, "images": images, "runs": result})
