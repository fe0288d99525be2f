"""`selftaught adapt`: lead a backbone that one has to one's images."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selftaught.cli.console import device_named, tell
from selftaught.cli.pretrain import check_conduct, conduct_of, lost_in
from selftaught.config import flags
from selftaught.distributed import process_group, rank
from selftaught.errors import Stopped, UserError
from selftaught.loggers.terminal import Progress
from selftaught.methods import METHODS
from selftaught.pipeline import execute, plan
from selftaught.pipeline.plan import Node, Plan
from selftaught.runs import folder as run_folder
from selftaught.training.threads import take_share

# --------------------------------------------------------------------------------------------------
# adapt


def adapt(words: list[str]) -> int:
    asked = flags.parse_adapt(words or ["--help"])
    out = Path(asked.out)
    check_conduct(asked)
    if asked.plan and (
        more := [
            name for name, _ in flags.grouped(words) if name not in flags.CONDUCT | {"plan", "out"}
        ]
    ):
        raise UserError(f"--{more[0]} and --plan do not go together: write it into the plan")
    asked_for = plan.read(Path(asked.plan)) if asked.plan else chain(words, asked)
    device = device_named(asked.device)
    with (
        process_group(device),
        Progress(show=rank() == 0) as progress,
        take_share(asked.threads, asked.workers, progress.say) as share,
    ):
        conduct = conduct_of(asked, device, share.workers, progress, ["adapt", *words])
        try:
            folders = execute.execute_plan(
                with_defaults(asked_for),
                out,
                conduct,
                shlex.join(["selftaught", "adapt", *words]),
                progress.of("reading images"),
            )
        except Stopped as stopped:
            tell(
                f"{stopped}: the same command goes on with it".replace("; go on with --resume", "")
            )
            return 0
        if rank() == 0:
            # which plan.json names, unless another plan has begun there since
            place = folders[asked_for.leaves[-1].name]
            facts = run_folder.read_run(place).facts
            if "choice" in facts:
                print(facts["choice"]["text"])
            print(f"the backbone is in {place / 'backbone.safetensors'}{lost_in(place)}")
    return 0


def chain(words: Sequence[str], asked: Any) -> Plan:
    """Base -> Source -> Target, as the flags ask for it. What moves, hard examples and the length
    are the target's.
    """
    if not asked.target:
        raise UserError(
            "nothing to adapt to: name the target's images by --target, or a plan by --plan"
        )
    if not asked.init and not asked.source:
        raise UserError(
            "nothing to adapt: name weights by --init, a --source, or both; or train anew by"
            " `selftaught pretrain`"
        )
    common: list[str] = []
    target = ["--data", *asked.target]
    for name, values in flags.grouped(words):
        if name in flags.CONDUCT | flags.ADAPTING | {"out"}:
            continue
        alone = name.startswith("hard") or name in (
            "trainable",
            "steps",
            "epochs",
            "keep",
            "subset",
            "labels-from",
        )
        (target if alone else common).extend([f"--{name}", *values])
    nodes = [
        Node(
            name="target",
            words=(*common, *target),
            after="source" if asked.source else None,
            init=None if asked.source else asked.init,
        )
    ]
    if asked.source:
        length = ["--steps", str(asked.source_steps)] if asked.source_steps is not None else []
        nodes.insert(
            0,
            Node(name="source", words=(*common, "--data", *asked.source, *length), init=asked.init),
        )
    return Plan(nodes=tuple(nodes))


def with_defaults(asked: Plan) -> Plan:
    """Pixels are normalised by each stage's own data, and a plan's outcome is never worse than its
    start unsaid.
    """

    def settled(node: Node) -> Node:
        words = list(node.words)
        if flags.chosen(words, "statistics") is None:
            words += ["--statistics", "data"]
        # a name that is none is refused with its stage, later
        method = METHODS.get(flags.name_of(words, None, "method"))
        classifies = method is not None and method.classifies
        if (
            flags.chosen(words, "keep") is None
            and node in asked.leaves
            and (node.after or node.init)
            and not classifies
        ):
            # by the features: it does not tell which classifier is best
            words += ["--keep", "best"]
        return dataclasses.replace(node, words=tuple(words))

    return Plan(nodes=tuple(settled(node) for node in asked.nodes))
