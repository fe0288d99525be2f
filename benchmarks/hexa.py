"""What hard examples cost: a step with them beside a plain step of the same method, and the memory
that they take.

    python -m benchmarks.hexa [--networks resnet50:96:16 resnet18:64:32] [--methods moco-v2
    deepcluster-v2] [--rounds 7]

Interleaved; prints the ratio's median [least, most], and the peak memory of a fresh process that
makes three steps (on a GPU: of torch's allocator). Writes results/hexa.json. What hard examples
bring is benchmarks.hexa_accuracy.
"""

import argparse
import multiprocessing
from typing import Any

import torch

from benchmarks.common import format_ratio, interleaved, peak_memory, ratios, spread, write
from benchmarks.step import DEVICE, Trained, parsed
from selftaught.hard import Adversarial, CutMix, MixUp
from selftaught.hard.base import HardExample

PLAIN = "plain"
CASES: dict[str, tuple[HardExample, ...]] = {
    PLAIN: (),
    "adversarial, 1 step": (Adversarial(),),
    "cutmix": (CutMix(),),
    "adversarial + cutmix": (Adversarial(), CutMix()),
    "mixup": (MixUp(),),
    "adversarial, 3 steps": (Adversarial(steps=3),),
    "adversarial, 1 step from a random start": (Adversarial(random_start=1.0),),
}


def memory(method: str, network: str, case: str, threads: int) -> int:
    """Bytes at the peak of three steps."""
    torch.set_num_threads(threads)
    trained = Trained(method, *parsed(network), True, CASES[case])
    for _ in range(3):
        trained.once()
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_memory()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=["resnet50:96:16", "resnet18:64:32"])
    parser.add_argument("--methods", nargs="*", default=["moco-v2", "deepcluster-v2"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    for network in args.networks:
        for method in args.methods:
            print(
                f"{method} on {network}: a step's seconds / those of a plain step; peak memory of"
                " the process"
            )
            trained = {
                case: Trained(method, *parsed(network), True, hard) for case, hard in CASES.items()
            }
            times = interleaved({case: one.once for case, one in trained.items()}, args.rounds)
            del trained
            for case in CASES:
                with spawn.Pool(1) as pool:
                    peak = pool.apply(memory, (method, network, case, torch.get_num_threads()))
                ratio = ratios(times, case, PLAIN)
                row = {"ratio": ratio, "seconds": spread(times[case]), "peak_bytes": peak}
                result.setdefault(network, {}).setdefault(method, {})[case] = row
                print(f"  {case:40} {format_ratio(ratio)} {peak / 2**20:8.0f} MiB", flush=True)
    write("hexa", {"device": DEVICE.type, "results": result})
