"""Flags: misspelt and misused words, each with the word that was meant."""

from collections.abc import Sequence

import pytest

from tests.abuse.harness import (
    DONE,
    EITHER,
    EVALUATE,
    REFUSED,
    TRAIN,
    Case,
    Sandbox,
    carry_out,
    rows,
)

pytestmark = pytest.mark.abuse

ADAPT = (
    "adapt",
    "--init",
    "run",
    "--target",
    "photos",
    "--out",
    "out",
    "--size",
    "32",
    "--batch",
    "8",
    "--precision",
    "fp32",
    "--workers",
    "0",
    "--steps",
    "1",
)
PACK = ("pack", "photos", "--out", "photos.pack")


def wrong(
    words: Sequence[str],
    *names: str,
    base: Sequence[str] = TRAIN,
    promise: str = REFUSED,
    right: str = "",
) -> Case:
    """The command `base` and these words; `names` are what the refusal must say."""
    typed = " ".join(words)
    return Case(
        id=f"{base[0]} {typed}"[:60],
        what=f"`{base[0]} ... {typed}`",
        words=(*base, *words),
        names=names,
        promise=promise,
        right=right or (f"names {', '.join(names)}" if names and promise == REFUSED else ""),
        writes=("run",),
    )


def whole(*words: str, names: Sequence[str] = (), promise: str = REFUSED) -> Case:
    """These words alone."""
    return Case(
        id=" ".join(words)[:60] or "nothing",
        what=f"`selftaught {' '.join(words)}`",
        words=words,
        names=names,
        promise=promise,
        right=f"names {', '.join(names)}" if names else "",
    )


FLAGS = [
    whole("pretrian", "--data", "photos", "--out", "out", names=("pretrain",)),
    whole("train", "--data", "photos", "--out", "out", names=("pretrain",)),
    whole("eval", "run", names=("evaluate",)),
    whole("--versoin", names=("--version",)),
    whole("pretrain", "--data", "photos", names=("--out",)),
    whole("pretrain", "--out", "out", names=("--data",)),
    whole("pretrain", "--data", "--out", "out", names=("--data",)),
    whole("pretrain", "photos", "--out", "out", names=("--data",)),
    whole("pretrain", "--data", "photos", "--out", "", names=("--out",)),
    whole("export", "run", "--to", "backbone.onnx", names=(".safetensors",)),
    whole("export", "run", names=("--to",)),
    whole("export", "nowhere", "--to", "x.pth", names=("nowhere",)),
    whole("report", "nowhere", "--out", "out.html", names=("nowhere",)),
    whole("report", "--out", "out.html"),
    whole("show", "nowhere", names=("nowhere",)),
    whole("show", "photos", names=("photos",)),
    whole("pretrain", "--out", "out", "--resume", names=("--data",)),
    whole("adapt", "--init", "run", "--out", "out", names=("--target",)),
    whole("adapt", "--target", "photos", "--out", "out", names=("--init",)),
    whole("study", "separabilty", "--plan", "x.yaml", "--out", "out", names=("separability",)),
    whole(
        "study", "separability", "--plan", "nowhere.yaml", "--out", "out", names=("nowhere.yaml",)
    ),
    wrong(["--epoch", "3"], "--epochs"),
    wrong(["--bacth", "8"], "--batch"),
    wrong(["--lr", "0.1"], "--optimizer.lr"),
    wrong(["--method", "simcrl"], "simclr"),
    wrong(["--method", "mocov2"], "moco-v2"),
    wrong(["--method", "SimCLR"], "simclr"),
    wrong(["--optimizer", "adm"], "adamw"),
    wrong(["--hard", "cutmx"], "cutmix"),
    wrong(["--backbone", "test_resnt"], "test_resnet"),
    wrong(["--stem", "vgg"], "imagenet"),
    wrong(["--precision", "fp16"], "bf16"),
    wrong(["--device", "gpu"], "cuda"),
    wrong(["--on-collapse", "ignore"], "warn"),
    wrong(["--keep", "bset"], "best"),
    wrong(["--combine", "max"], "mean"),
    wrong(["--views", "slow"], "fast"),
    wrong(["--trainable", "last"], "last-K"),
    wrong(["--trainable", "last-99"], "last"),
    wrong(["--trainable", "lora"], "lora", promise=EITHER),
    wrong(["--method.temprature", "0.1"], "--method.temperature"),
    wrong(["--method.queue", "64"], "moco"),
    wrong(["--views.blurr", "0"], "--views.blur"),
    wrong(["--optimizer.lrr", "0.1"], "--optimizer.lr"),
    wrong(["--optimizer.betas", "0.1", "0.2"], "adamw"),
    wrong(["--optimizer", "adamw", "--optimizer.betas", "2", "3"], "--optimizer.betas"),
    wrong(["--hard.adversarial.eps", "2"], "--hard"),
    wrong(["--hard", "adversarial", "--hard.adversarial.epss", "2"], "--hard.adversarial.eps"),
    wrong(["--hard", "cutmix", "cutmix"], "cutmix", promise=EITHER),
    wrong(["--subset", "banana"], "--subset"),
    wrong(["--subset", "0%"], "--subset"),
    wrong(["--subset", "200%"], "--subset"),
    wrong(["--size", "big"], "--size"),
    wrong(["--size", "0"], "--size"),
    wrong(["--size", "-32"], "--size"),
    wrong(["--size", "32.5"], "--size"),
    wrong(["--size", ""], "--size"),
    wrong(["--batch", "0"], "--batch"),
    wrong(["--batch", "100000000000000000000"], "--batch"),
    wrong(["--accumulate", "0"], "--accumulate"),
    wrong(["--accumulate", "-1"], "--accumulate"),
    wrong(["--steps", "-1"], "--steps"),
    wrong(["--steps", "1e3"], "--steps"),
    wrong(["--epochs", "2"], "--epochs"),
    wrong(["--holdout", "1.5"], "--holdout"),
    wrong(["--holdout", "-0.2"], "--holdout"),
    wrong(["--holdout", "nan"], "--holdout"),
    wrong(["--clip", "-1"], "--clip"),
    wrong(["--clip", "inf"], "--clip"),
    wrong(["--seed", "abc"], "--seed"),
    wrong(["--seed", "-1"], "--seed", promise=EITHER),
    wrong(["--seed", "99999999999999999999"], "--seed"),
    wrong(["--workers", "-1"], "--workers"),
    wrong(["--save-every", "-5"], "--save-every"),
    wrong(["--save-every", "nan"], "--save-every"),
    wrong(["--optimizer.lr", "nan"], "lr"),
    wrong(["--optimizer.lr", "-1"], "lr"),
    wrong(["--method.temperature", "0"], "temperature"),
    wrong(["--views.blur", "7"], "blur"),
    wrong(["--views.large", "5"], "--views.large"),
    wrong(["--views.small", "6"], "small"),
    wrong(["--schedule.warmup", "2"], "warmup"),
    wrong(["--init", "nowhere.pth"], "nowhere.pth"),
    wrong(["--init", "test_resnt.r160_in1k"], "test_resnet.r160_in1k"),
    wrong(["--compile", "yes"], "yes"),
    wrong(["--resume", "yes"], "yes"),
    wrong(["--fsdp"], promise=DONE),
    wrong(["--out", "photos/a/000.png"], "--out"),
    wrong(["--labels-form", "none"], "--labels-from"),
    wrong(["-h", "--size", "big"], promise=EITHER),
    wrong(["--protocol", "kn"], "knn", base=EVALUATE),
    wrong(["--protocols", "knn"], "--protocol", base=EVALUATE),
    wrong(["--labels", "five"], "--labels", base=EVALUATE),
    wrong(["--labels", "0"], "labels", base=EVALUATE),
    wrong(
        ["--labels", "1000"],
        base=EVALUATE,
        promise=DONE,
        right="all labels are taken, and it is said",
    ),
    wrong(["--against", "rnadom"], "random", base=EVALUATE),
    wrong(["--draws", "0"], "draws", base=EVALUATE),
    wrong(["--size", "1"], "--size", base=EVALUATE),
    wrong(["--knn.k", "0"], "--knn.neighbours", base=EVALUATE),
    wrong(["--linear.folds", "1"], "folds", base=EVALUATE),
    wrong(["--workers", "-1"], "workers", base=EVALUATE),
    wrong(["--data", "nowhere"], "nowhere", base=EVALUATE),
    wrong(["--format", "gif"], "jpeg", base=PACK),
    wrong(["--quality", "500"], "quality", base=PACK),
    wrong(["--size", "0"], "size", base=PACK),
    wrong(["--shard", "0"], "--shard", base=PACK),
    wrong(["--verify", "photos.pack"], "--verify", base=PACK),
    wrong(["--plan", "x.yaml"], "--plan", base=ADAPT),
    wrong(["--sorce", "photos"], "--source", base=ADAPT),
    wrong(["--data", "photos"], "--target", base=ADAPT),
    wrong(["--source-steps", "-4", "--source", "photos"], "steps", base=ADAPT),
    wrong(["--resume"], "--resume", base=ADAPT, promise=EITHER),
]


@pytest.mark.parametrize("case", rows(FLAGS))
def test_a_wrong_word_is_refused_with_the_right_one(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)
    if case.promise == REFUSED:
        assert not (trained / "out").exists()
