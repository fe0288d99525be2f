"""Label tables: a labels.csv as people and programs write it."""

import os
from collections.abc import Callable, Sequence

import pytest

from tests.abuse.harness import (
    DONE,
    EITHER,
    REFUSED,
    SMALL,
    TRAIN,
    Case,
    Outcome,
    Sandbox,
    carry_out,
    facts,
    photos,
    rows,
)

pytestmark = pytest.mark.abuse

NAMES = [f"{k:03}.png" for k in range(16)]
PLAIN = [f"{name},{'ab'[k % 2]}" for k, name in enumerate(NAMES)]


def lines(*rows: str, header: str = "image,class") -> str:
    return "\n".join([header, *rows]) + "\n"


def table(
    id: str,
    what: str,
    content: str | bytes,
    promise: str = DONE,
    classes: Sequence[str] | None = ("a", "b"),
    names: Sequence[str] = ("labels.csv",),
    words: Sequence[str] = TRAIN,
    right: str = "",
    permissions: bool = False,
    prepare: Callable[[Sandbox], object] = lambda sandbox: None,
) -> Case:
    """Sixteen images, 000.png to 015.png, beside a labels.csv. `classes`: those that the run names
    in the end; None: any.
    """

    def write(sandbox: Sandbox) -> None:
        photos(sandbox / "photos")
        sandbox.write("photos/labels.csv", content)
        prepare(sandbox)

    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        if outcome.code == 0 and classes is not None:
            assert facts(sandbox)["classes"] == list(classes)

    return Case(
        id=id,
        what=what,
        prepare=write,
        promise=promise,
        names=names,
        then=check,
        words=words,
        permissions=permissions,
        right=right or (f"classes {', '.join(classes)}" if classes and promise == DONE else ""),
    )


def replace_by(make: Callable[[os.PathLike[str]], object]) -> Callable[[Sandbox], object]:
    def change(sandbox: Sandbox) -> None:
        file = sandbox / "photos" / "labels.csv"
        file.unlink()
        make(file)

    return change


def dummies(yes: str, no: str, blank: str | None = None) -> str:
    cells = [(yes if k % 2 else no, no if k % 3 else yes) for k in range(16)]
    if blank is not None:
        cells[5] = (blank, cells[5][1])
    return lines(
        *(f"{name},{a},{b}" for name, (a, b) in zip(NAMES, cells, strict=True)),
        header="image,cat,dog",
    )


FROM = ("pretrain", "--data", "photos", "--out", "out", *SMALL, "--steps", "0", "--labels-from")

TABLES = [
    table("plain", "a plain table", lines(*PLAIN)),
    table("empty", "an empty file", b"", REFUSED),
    table("header-only", "a header and nothing else", "image,class\n", REFUSED),
    table("no-header", "no header", lines(*PLAIN[1:], header=PLAIN[0])),
    table("one-column", "one column", lines(*NAMES, header="image"), REFUSED),
    table(
        "too-few-cells",
        "a line with a cell too few",
        lines(*PLAIN[:5], "005.png", *PLAIN[6:]),
        REFUSED,
        names=("labels.csv", "line 7"),
    ),
    table(
        "too-many-cells",
        "a line with a cell too many",
        lines(*PLAIN[:5], "005.png,a,b", *PLAIN[6:]),
        REFUSED,
        names=("labels.csv", "line 7"),
    ),
    table(
        "two-answers",
        "an image with two classes in two lines",
        lines(*PLAIN, "000.png,b"),
        REFUSED,
        names=("labels.csv", "000.png"),
    ),
    table("same-answer-twice", "an image twice with the same class", lines(*PLAIN, "000.png,a")),
    table("other-images", "a table of other images", lines("x.png,a", "y.png,b"), REFUSED),
    table(
        "half-of-them",
        "half of the images",
        lines(*PLAIN[:8]),
        right="the others have no label, and it is said",
    ),
    table(
        "rows-without-image",
        "200,000 lines without an image",
        lines(*PLAIN, *(f"x{k}.png,a" for k in range(200_000))),
    ),
    table("blank-class", "an image with a blank class", lines("000.png,", *PLAIN[1:]), EITHER),
    table("blank-lines", "blank lines between the lines", lines(*PLAIN).replace("\n", "\n\n")),
    table(
        "spaces", "spaces around every cell", lines(*(line.replace(",", " ,  ") for line in PLAIN))
    ),
    table("semicolons", "semicolons between the cells", lines(*PLAIN).replace(",", ";")),
    table("tabs", "tabs between the cells", lines(*PLAIN).replace(",", "\t")),
    table("windows-lines", "lines that end as on Windows", lines(*PLAIN).replace("\n", "\r\n")),
    table(
        "old-mac-lines",
        "lines that end as on the first Macs",
        lines(*PLAIN).replace("\n", "\r"),
        EITHER,
    ),
    table(
        "quotes",
        "quotes around every cell",
        lines(*('"' + line.replace(",", '","') + '"' for line in PLAIN)),
    ),
    table(
        "comma-in-class",
        "a comma in a class, in quotes",
        lines(*(line.replace(",a", ',"a, b"') for line in PLAIN)),
        classes=("a, b", "b"),
    ),
    table(
        "unclosed-quote", "a quote that is never closed", lines('000.png,"a', *PLAIN[1:]), REFUSED
    ),
    table("utf-8-mark", "UTF-8 with a mark, as of spreadsheets", lines(*PLAIN).encode("utf-8-sig")),
    table("utf-16", "UTF-16", lines(*PLAIN).encode("utf-16")),
    table(
        "windows-1252",
        "Windows-1252 with umlauts",
        lines(*PLAIN).replace(",a", ",Öl").encode("cp1252"),
        EITHER,
        classes=("b", "Öl"),
        names=("labels.csv",),
    ),
    table(
        "binary", "a PNG called labels.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, REFUSED
    ),
    table(
        "zero-bytes",
        "zeros in the middle of a table",
        lines(*PLAIN).encode().replace(b",a", b",\0\0", 1),
        EITHER,
        classes=None,
    ),
    table(
        "true-false",
        "True and False, as pandas' get_dummies writes them",
        dummies("True", "False"),
        EITHER,
        classes=("cat", "dog"),
    ),
    table("one-zero", "columns of 1 and 0", dummies("1", "0"), classes=("cat", "dog")),
    table(
        "one-zero-float",
        "columns of 1.0 and 0.0",
        dummies("1.0", "0.0"),
        EITHER,
        classes=("cat", "dog"),
    ),
    table(
        "blank-cell",
        "columns of 1 and 0 with one blank cell",
        dummies("1", "0", blank=""),
        EITHER,
        classes=("cat", "dog"),
    ),
    table(
        "index-column",
        "the column of numbers that pandas' to_csv adds",
        lines(*(f"{k},{line}" for k, line in enumerate(PLAIN)), header=",image,class"),
        EITHER,
    ),
    table(
        "minus-one",
        "-1 for what is not known",
        lines(*(f"{name},{(-1, 0, 1)[k % 3]}" for k, name in enumerate(NAMES))),
        EITHER,
        classes=("0", "1"),
    ),
    table(
        "one-class",
        "one class for all",
        lines(*(f"{name},a" for name in NAMES)),
        classes=(),
        right="no classes",
    ),
    table(
        "a-class-each",
        "a class of its own for each image",
        lines(*(f"{name},{name}" for name in NAMES)),
        REFUSED,
    ),
    table(
        "several",
        "several classes an image, a|b",
        lines(*(line.replace(",a", ",a|c") for line in PLAIN)),
        classes=("a", "b", "c"),
    ),
    table(
        "windows-paths", "paths with backslashes and .\\", lines(*(f".\\{line}" for line in PLAIN))
    ),
    table(
        "absolute-paths",
        "paths of another machine",
        lines(*(f"/mnt/other/{line}" for line in PLAIN)),
        EITHER,
    ),
    table(
        "without-suffix",
        "names without their suffix",
        lines(*(line.replace(".png", "") for line in PLAIN)),
    ),
    table(
        "climbs",
        "paths that climb out, ../../etc/passwd",
        lines(*PLAIN, "../../../../etc/passwd,a"),
    ),
    table(
        "formula",
        "a class that a spreadsheet would carry out",
        lines(*(line.replace(",a", ",=1+1") for line in PLAIN)),
        classes=("=1+1", "b"),
    ),
    table(
        "markup",
        "a class that is mark-up, [/red]",
        lines(*(line.replace(",a", ",[/red]") for line in PLAIN)),
        classes=("[/red]", "b"),
    ),
    table(
        "emoji",
        "a class of emoji",
        lines(*(line.replace(",a", ",🦩") for line in PLAIN)),
        classes=("b", "🦩"),
    ),
    table(
        "escape",
        "a class that would colour the terminal",
        lines(*(line.replace(",a", ",\x1b[31ma") for line in PLAIN)),
        EITHER,
        classes=None,
    ),
    table(
        "long-class",
        "a class of 10,000 letters",
        lines(*(line.replace(",a", "," + "a" * 10_000) for line in PLAIN)),
        EITHER,
        classes=None,
    ),
    table(
        "huge-cell",
        "a cell of 200,000 letters",
        lines("000.png," + "a" * 200_000, *PLAIN[1:]),
        EITHER,
        classes=None,
    ),
    table(
        "many-columns",
        "2,000 columns of 0 and 1",
        lines(
            *(
                f"{name}," + ",".join("01"[(k + j) % 2] for j in range(2000))
                for k, name in enumerate(NAMES)
            ),
            header="image," + ",".join(f"c{j}" for j in range(2000)),
        ),
        EITHER,
        classes=None,
    ),
    table(
        "is-folder", "labels.csv is a folder", b"", EITHER, classes=(), prepare=replace_by(os.mkdir)
    ),
    table(
        "is-fifo",
        "labels.csv is a named pipe",
        b"",
        EITHER,
        classes=(),
        prepare=replace_by(os.mkfifo),
    ),
    table(
        "is-broken-link",
        "labels.csv is a link to a file that is gone",
        b"",
        EITHER,
        classes=(),
        prepare=replace_by(lambda file: os.symlink("gone", file)),
    ),
    table(
        "unreadable",
        "labels.csv without the permission to read it",
        lines(*PLAIN),
        REFUSED,
        permissions=True,
        prepare=lambda s: (s / "photos" / "labels.csv").chmod(0),
    ),
    table(
        "from-missing",
        "--labels-from a file that is not there",
        lines(*PLAIN),
        REFUSED,
        names=("nowhere.csv",),
        words=(*FROM, "nowhere.csv"),
    ),
    table(
        "from-image",
        "--labels-from an image",
        lines(*PLAIN),
        REFUSED,
        names=("000.png",),
        words=(*FROM, "photos/000.png"),
    ),
    table(
        "from-folder",
        "--labels-from a folder",
        lines(*PLAIN),
        REFUSED,
        names=("photos",),
        words=(*FROM, "photos"),
    ),
    table(
        "from-misspelt",
        "--labels-from folder, where folders is meant",
        lines(*PLAIN),
        REFUSED,
        names=("folders",),
        words=(*FROM, "folder"),
    ),
    table(
        "from-no-folders",
        "--labels-from folders, where there are none",
        lines(*PLAIN),
        REFUSED,
        names=("folders",),
        words=(*FROM, "folders"),
    ),
    table("from-none", "--labels-from none", "broken", classes=(), words=(*FROM, "none")),
]


@pytest.mark.parametrize("case", rows(TABLES))
def test_a_table_is_understood_or_refused(case: Case, sandbox: Sandbox) -> None:
    carry_out(case, sandbox)
