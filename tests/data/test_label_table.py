"""Tables of labels in the dialects of pandas, spreadsheets, the Hugging Face hub and people."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.delimited import (
    decode_text,
    find_separator,
    fit_rows,
    read_table,
    split_rows,
)
from selftaught.data.index.tables.image_lookup import find_images
from selftaught.data.index.tables.table_columns import (
    Column,
    choose_classes,
    choose_path,
    normalize_number,
    read_classes,
    read_flags,
    read_split,
)
from selftaught.data.index.tables.table_labels import TableLabels, label_by_tables
from selftaught.errors import UserError

# An index needs no pixels to be labelled: these files are names only.


def roots_of(*folders: Path) -> list[Root]:
    return [Root(str(folder), os.path.realpath(folder), is_file=False) for folder in folders]


def files_of(folders: Sequence[Path], names: Sequence[Sequence[str]]) -> Files:
    files = Files()
    for root, (folder, own) in enumerate(zip(folders, names, strict=True)):
        for name in own:
            files.add(f"{folder}/{name}", name, root, 1, 1)
    return files


def read_tables(
    folders: Sequence[Path], names: Sequence[Sequence[str]], labels: str | Path = "auto"
) -> tuple[list[object], TableLabels, list[str]]:
    """Of every image the name of its class, a list of names where there may be several, or None;
    the labels as they are; and the notes.
    """
    notes: list[str] = []
    tables = label_by_tables(str(labels), roots_of(*folders), files_of(folders, names), notes)
    assert tables is not None
    assert tables.labels is not None

    def name_classes(row: np.ndarray) -> object:
        if row.min() < 0:
            return None
        if row.ndim == 0:
            return tables.classes[int(row)]
        return [name for name, flag in zip(tables.classes, row, strict=True) if flag]

    return [name_classes(row) for row in tables.labels], tables, notes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def read(
    root: Path, names: Sequence[str], content: str | bytes, file: str = "labels.csv"
) -> tuple[dict[str, object], TableLabels, list[str]]:
    """What a table in `root` says of images of these names: by name, whole, and the notes."""
    path = root / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    labels, tables, notes = read_tables([root], [names])
    return dict(zip(names, labels, strict=True)), tables, notes


# One set of labels in many dialects

TRUTH = {
    "cat/Straße 1.png": "Kater",
    "cat/b, b.jpg": "Öl",
    "dog/10.png": "Öl",
    "dog/c.PNG": "Kater",
    "e.png": "see; lake",
    "f.png": None,
}


def dialect(
    separator: str = ",",
    header: Sequence[str] | None = ("image", "class"),
    encoding: str = "utf-8",
    end: str = "\n",
    row: Callable[[int, str, str], Sequence[str]] = lambda i, path, name: [path, name],
    path: Callable[[str], str] = lambda path: path,
    unknown: str = "nan",
    quoting: int = csv.QUOTE_MINIMAL,
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    if header:
        writer.writerow(header)
    for i, (name, kind) in enumerate(TRUTH.items()):
        writer.writerow(row(i, path(name), unknown if kind is None else kind))
    return text.getvalue().encode(encoding)


KINDS = ["Kater", "Öl", "see; lake"]


def numbered(i: int, path: str, name: str) -> list[str]:
    return [str(7 * i + 1), path, name]


def one_hot(yes: str, no: str, unknown: str) -> bytes:
    def row(i: int, path: str, name: str) -> list[str]:
        cells = [yes if name == kind else no for kind in KINDS]
        return [path, *([unknown] * len(KINDS) if name == "nan" else cells)]

    return dialect(header=["image", *KINDS], row=row)


DIALECTS: dict[str, bytes] = {
    "plain": dialect(),
    "semicolons": dialect(";"),
    "tabs": dialect("\t"),
    "bars": dialect("|"),
    "Excel's CSV": dialect(";", encoding="cp1252", end="\r\n", unknown=""),
    "Excel's Unicode text": dialect("\t", encoding="utf-16", end="\r\n"),
    "Excel's UTF-8": dialect(";", encoding="utf-8-sig", end="\r\n"),
    "Excel's named separator": b"sep=;\r\n" + dialect(";", end="\r\n"),
    "UTF-16 without a mark": dialect(encoding="utf-16-le"),
    "old Macintosh": dialect(end="\r"),
    "all quoted": dialect(quoting=csv.QUOTE_ALL),
    "spaces around": dialect(
        header=(" image ", " class "), row=lambda i, p, c: [f" {p}  ", f" {c} "]
    ),
    "pandas with index": dialect(header=("", "image", "class"), row=numbered),
    "pandas with a stored index": dialect(
        header=("Unnamed: 0", "file_name", "label"), row=numbered
    ),
    "R": dialect(header=("", "path", "y"), row=numbered, quoting=csv.QUOTE_ALL),
    "R's row numbers": dialect(header=("path", "y"), row=numbered),
    "class first": dialect(header=("class", "image"), row=lambda i, path, name: [name, path]),
    "other columns": dialect(
        header=("id", "width", "patient", "file", "comment", "Class Name", "date"),
        row=lambda i, p, c: [f"{i + 100}", "640", f"p{i % 2}", p, "sharp, lit", c, "2020-01-01"],
    ),
    "unknown names of columns": dialect(header=("was", "wohin"), unknown="NA"),
    "no header": dialect(header=None, unknown="?"),
    "empty lines and columns": dialect(
        header=("image", "class", "", ""),
        row=lambda i, path, name: [path, name, "", ""],
        end="\n,,,\n",
    ),
    "Windows' paths": dialect(path=lambda path: ".\\" + path.replace("/", "\\")),
    "decomposed letters": dialect(path=lambda path: "./" + unicodedata.normalize("NFD", path)),
    "paths from the folder above": dialect(path=lambda path: f"photos/{path}"),
    "absolute paths of another machine": dialect(path=lambda path: f"/home/anna/photos/{path}"),
    "Windows' absolute paths": dialect(
        path=lambda path: "C:\\data\\photos\\" + path.replace("/", "\\")
    ),
    "web addresses": dialect(path=lambda path: path.replace(" ", "%20").replace("ß", "%C3%9F")),
    "other case": dialect(path=lambda path: path.upper().replace("SS", "ß")),
    "no suffixes": dialect(path=lambda path: path.rsplit(".", 1)[0]),
    "no folders": dialect(path=lambda path: path.rsplit("/", 1)[-1]),
    "repeated rows": dialect() + dialect(header=None),
    "columns of 0 and 1": one_hot("1", "0", ""),
    "columns of floats": one_hot("1.0", "0.0", "nan"),
    "columns of decimal commas": one_hot("1,0", "0,0", "-1,0"),
    "columns of truth": one_hot("True", "False", "None"),
    "columns of TRUE": one_hot("TRUE", "FALSE", "#N/A"),
    "columns of yes": one_hot("yes", "no", "?"),
    "columns of ja": one_hot("Ja", "nein", "NULL"),
    "columns of crosses": one_hot("x", "", "NA"),
    "columns of 1 and nothing": one_hot("1", "", "NaN"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_one_set_of_labels_in_many_dialects(root: Path, name: str) -> None:
    labels_by_name, tables, _ = read(root, list(TRUTH), DIALECTS[name])
    assert labels_by_name == TRUTH
    assert set(tables.classes) == set(KINDS)


@pytest.mark.parametrize(
    "name", ["plain", "Excel's CSV", "pandas with index", "no header", "columns of truth"]
)
def test_a_table_elsewhere_says_the_same(root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "t.txt").write_bytes(DIALECTS[name])
    labels, _, _ = read_tables([root], [list(TRUTH)], tmp_path / "t.txt")
    assert labels == list(TRUTH.values())


# Reading text


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_the_encoding_shows(encoding: str) -> None:
    text = "image,class\nStraße.png,Öl\n"
    assert decode_text(text.encode(encoding))[0].removeprefix("\ufeff") == text


def test_names_that_are_no_utf8_stay_what_they_are() -> None:
    assert decode_text(b"Stra\xdfe.png", raw_names=True)[0] == os.fsdecode(b"Stra\xdfe.png")
    assert decode_text(b"\x81", raw_names=False)[1] == "latin-1"  # no letter of Windows-1252


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("image,class\na.png,x|y\nb.png,y|z\n", ","),
        ("a.png;1,0\nb.png;0,0\n", ";"),
        ("image;weight, kg;class\na.png;1,5;x\n", ";"),
        ('"a;1.png",x;y\n"b;1.png",x\n', ","),
        ("image\tclass\na, b.png\tx\n", "\t"),
        ("image|class\na.png|x\n", "|"),
        ("a/1.png 3\na/2.png   4\n", " "),
        ("file name, class name\na b.png, red fox\n", ","),
        ("image\na.png\n", ","),
    ],
)
def test_the_separator_shows(text: str, separator: str) -> None:
    assert find_separator(text) == separator


def test_rows_of_other_widths() -> None:
    assert split_rows("a,b\n,\n\nc,\n") == [(1, ["a", "b"]), (4, ["c", ""])]
    header = ["image", "class"]
    assert fit_rows([(1, header), (2, ["a", "b", "", ""])]) == (header, [(2, ["a", "b"])])
    assert fit_rows([(1, header), (2, ["7", "a", "b"])])[0] == ["", *header]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.xlsx", b"PK\x03\x04...", "save it as CSV"),
        ("t.csv", b"PK\x03\x04...", "save it as CSV"),
        ("t.csv", b"\xd0\xcf\x11\xe0...", "save it as CSV"),
        ("t.ods", b"", "save it as CSV"),
        ("t.csv", b"", "at least one row"),
        ("t.csv", b"image,class\r\n", "at least one row"),
        ("t.csv", b"\xff\xfe", "at least one row"),
        ("t.csv", b"a,b\nc,d,e\n", "line 2: 3 columns, but the header has 2"),
        ("t.jsonl", b"", "at least one row"),
        ("t.jsonl", b'{"a": 1}\n{"a"\n', "line 2"),
        ("t.jsonl", b"[1]\n", "line 1"),
    ],
)
def test_what_is_no_table(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(tmp_path / file)
    assert "\n" not in str(caught.value)


# Which image a path means


def lookup(
    cells: Sequence[str], names: Sequence[Sequence[str]], folder: str = "/d"
) -> list[list[str]]:
    folders = [Path(f"/d/{chr(97 + i)}") for i in range(len(names))]
    files = files_of(folders, names)
    matches = find_images(cells, folder, roots_of(*folders), files, range(len(files)))
    return [[files.paths[i].removeprefix("/d/") for i in match.images] for match in matches]


def test_which_image_a_path_means() -> None:
    names = [["1.png", "x/2.png", "x/3.png", "y/3.png", "007.png"], ["1.png", "B.png", "b.png"]]
    meanings = {
        "a/1.png": ["a/1.png"],  # from the table's folder
        "b/1.png": ["b/1.png"],
        "x/2.png": ["a/x/2.png"],  # from a root
        "1.png": ["a/1.png", "b/1.png"],
        "1": ["a/1.png", "b/1.png"],
        "2": ["a/x/2.png"],  # by its name
        "3.png": ["a/x/3.png", "a/y/3.png"],
        "y/3": ["a/y/3.png"],
        "z/3.png": [],  # another folder
        "/elsewhere/a/x/2.png": ["a/x/2.png"],
        "/elsewhere/x/2.png": [],
        "B.PNG": ["b/B.png"],
        "b.png": ["b/b.png"],
        "b.jpg": [],  # another suffix
        "7": ["a/007.png"],
        "7.0": ["a/007.png"],
        "7.png": [],
        "../d/a/1.png": ["a/1.png"],
        "": [],
    }
    assert {cell: lookup([cell], names)[0] for cell in meanings} == meanings


def test_a_table_in_a_root_means_that_root_first() -> None:
    names = [["1.png"], ["1.png", "2.png"]]
    assert lookup(["1.png", "2.png"], names, "/d/a") == [["a/1.png"], ["b/2.png"]]


# What a column holds


def columns_of(text: str) -> list[Column]:
    (_, header), *rows = split_rows(text)
    return [Column(i, name, [cells[i] for _, cells in rows]) for i, name in enumerate(header)]


@pytest.mark.parametrize(
    ("text", "images", "name"),
    [
        ("n,image,class\n0,0.png,a\n1,1.png,b\n2,2.png,a\n", [3, 3, 0], "image"),
        (",image_id,label\n0,5,1\n1,3,0\n2,4,1\n", [3, 3, 2], "image_id"),
        ("image_id,label\n0,1\n1,0\n2,1\n", [3, 2], "image_id"),
        ("id,label\n0,1\n1,0\n2,1\n", [3, 2], "id"),
        ("image,file\nhttp://a/1,x.png\nhttp://a/2,y.png\n", [0, 2], "file"),
        ("code,image\n11,a cat\n12,a dog\n", [2, 0], "code"),
        ("image,mask\na.png,a_mask.png\nb.png,b_mask.png\n", [2, 2], "image"),
        ("original,file\na.png,b.png\nc.png,d.png\n", [0, 1], "file"),
        ("class,image\nx,a.png\ny,b.png\n", [0, 0], "image"),
    ],
)
def test_the_column_of_paths_is_the_one_that_names_images(
    text: str, images: list[int], name: str
) -> None:
    assert choose_path(columns_of(text), images).name == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("class,camera\nx,1\ny,2\n", "class"),
        ("camera,Label\n1,x\n2,y\n", "Label"),
        ("label,is_train\n1,1\n0,1\n1,0\n", "label"),
        ("label,class_name\n0,cat\n1,dog\n0,cat\n", "class_name"),
        ("label,category\n0,cat\n1,cat\n0,dog\n", "label"),
        ("class,category\nx,1\ny,2\n", "class"),
        ("width,split,kind of thing,comment\n3,train,x,good\n3,test,y,bad\n", "kind of thing"),
        ("y,x\n0,1\n1,1\n", "y x"),
        ("cat,dog\nTrue,False\nFalse,\n", "cat dog"),
        ("patient,cat,dog\np1,1,0\np2,1,1\n", "cat dog"),
        ("cat,dog,comment\n1,0,good\n0,1,bad\n", "cat dog"),
        ("sex_,age,cat,dog,fox\nm,3,1,0,1\nf,5,0,0,1\n", "cat dog fox"),
        ("fold,cat,dog\n0,1,0\n1,1,1\n", "cat dog"),
        ("apple,date,note\n1,0,1\n0,1,0\n", "apple date note"),
        ("id,split,age\n4,0,3\n7,0,4\n", "age"),
        ("scanner,kind of thing,cat,dog\nA,x,1,0\nA,y,1,1\n", "kind of thing"),
        ("area,sort\n" + "".join(f"{i}.5,{'xy'[i % 2]}\n" for i in range(20)), "sort"),
    ],
)
def test_the_columns_of_classes(text: str, names: str) -> None:
    chosen, flags = choose_classes(columns_of(text), "t.csv")
    assert [column.name for column in chosen] == (names.split() if flags else [names])
    assert flags == (" " in names and names != "kind of thing")


@pytest.mark.parametrize(
    "text",
    [
        "cat,dog\n" + "1,0\n" * 20 + "1,2\n",
        "cat,dog\n" + "True,False\n" * 20 + "maybe,False\n",
        "cat,dog\n0.7,0.3\n0.2,0.8\n0.1,0.9\n0.2,0.8\n",
        "patient,width\np1,3\np2,4\n",
    ],
)
def test_columns_that_are_nearly_yes_and_no_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"t\.csv"):
        choose_classes(columns_of(text), "t.csv")


@pytest.mark.parametrize(
    ("text", "rows", "blank_is_no"),
    [
        ("a,b\n1,0\n,1\n0,0\n", [("a",), None, ()], False),
        ("a,b,c\nx,,2\n,x,2\n,,2\n", [("a",), ("b",), ()], True),
        ("a,b\n1,nan\n,1\n", [None, ("b",)], True),
        ("a,b\n1,-1\n-1,1\n-1,-1\n", [("a",), ("b",), ()], False),  # as in CelebA
        ("a,b\n1.0,-1.0\n0.0,1.0\n,0.0\n", [None, ("b",), None], False),  # as in CheXpert
        ("a,b\nyes,No\nY,n\n", [("a",), ("a",)], False),
        ("a,b\n1,x\n0,\n", [("a", "b"), None], False),
    ],
)
def test_columns_of_yes_and_no(text: str, rows: list[object], blank_is_no: bool) -> None:
    assert read_flags(columns_of(text)[:2]) == (rows, blank_is_no)


@pytest.mark.parametrize(
    ("cells", "rows"),
    [
        (["x", "", "nan", "NaN", "NA", "y"], [("x",), *[None] * 4, ("y",)]),
        (["x", "None", "null", "-1", "?", "y"], [("x",), *[None] * 4, ("y",)]),
        (["none", "unknown", "mild"], [("none",), ("unknown",), ("mild",)]),
        (["1.0", "2.0", "1", "nan"], [("1",), ("2",), ("1",), None]),
        (["1,0", "2,0"], [("1",), ("2",)]),
        (["1.0", "b"], [("1.0",), ("b",)]),
        (["01", "1"], [("01",), ("1",)]),
        (["-1", "0", "1"], [None, ("0",), ("1",)]),
        (["-1", "1"], [("-1",), ("1",)]),
        (["a|b", "", "nan", " a | "], [("a", "b"), (), None, ("a",)]),
        (["['a', 'b, c']", "[]", "", "NaN", "['a']"], [("a", "b, c"), (), (), None, ("a",)]),
        (["[a, b]", "[b]"], [("a", "b"), ("b",)]),
    ],
)
def test_cells_of_classes(cells: list[str], rows: list[object]) -> None:
    assert read_classes(Column(0, "class", cells))[0] == rows


@pytest.mark.parametrize(
    ("form", "n", "classes"),
    [
        ("{}.25", 24, 99),
        ("{}.5", 4, 99),
        ("{}", 24, 99),
        ("a picture of {}", 24, 99),
        ("{}", 100, 60),
    ],
)
def test_measurements_are_no_classes(root: Path, form: str, n: int, classes: int) -> None:
    rows = [f"{i}.png,{form.format(i % classes)}\n" for i in range(n)]
    with pytest.raises(UserError, match="too many"):
        read(root, [f"{i}.png" for i in range(n)], "image,value\n" + "".join(rows))


def test_few_images_a_class_in_one_of_two_tables(root: Path) -> None:
    (root / "test").mkdir()
    rows = [f"{i}.png,{i % 20}\n" for i in range(40)]
    (root / "test" / "labels.csv").write_text("image,class\n" + "".join(rows[:20]))
    names = [f"{i}.png" for i in range(40)] + [f"test/{i}.png" for i in range(20)]
    assert len(read(root, names, "image,class\n" + "".join(rows))[1].classes) == 20


def test_numbers_of_classes() -> None:
    numbers = {"1": "1", "1.0": "1", "1,0": "1", "1.5": "1.5", "-2.0": "-2"}
    numbers |= {"cat": "cat", "1e400": "1e400", "007": "007"}
    assert {text: normalize_number(text) for text in numbers} == numbers


# Rows


def test_rows_that_contradict_each_other(root: Path) -> None:
    def read_rows(rows: str) -> tuple[dict[str, object], list[str]]:
        table = "image,class\n" + "".join(f"{row}\n" for row in rows.split(" "))
        labels_by_name, _, notes = read(root, ["a.png", "b.png", "c.png"], table)
        return labels_by_name, notes

    with pytest.raises(UserError, match=r"line 5: \./a.png has another class"):
        read_rows("a.png,x b.png,y c.png,x ./a.png,y")
    labels_by_name, _ = read_rows("a.png,x b.png,y c.png,x ./a.png, a.png,x")
    assert labels_by_name == {"a.png": "x", "b.png": "y", "c.png": "x"}
    labels_by_name, notes = read_rows("A.png,x b.png,y c.png,x a.PNG,y")
    assert labels_by_name == {"a.png": None, "b.png": "y", "c.png": "x"}
    assert any("different classes" in note and "a.png" in note for note in notes)
    # the one as it is written counts
    assert read_rows("a,x a.png,y b.png,y c.png,x")[0]["a.png"] == "y"


def test_columns_of_one_class_an_image_and_of_several(root: Path) -> None:
    names = ["0.png", "1.png", "2.png"]
    one, tables, _ = read(root, names, "image,b,a\n0.png,1,0\n1.png,0,1\n2.png,,1\n")
    assert one == {"0.png": "b", "1.png": "a", "2.png": None}
    assert tables.classes == ("b", "a")  # as the header has them
    several, _, _ = read(root, names[:2], "image,b,a\n0.png,1,1\n1.png,0,1\n")
    assert several == {"0.png": ["b", "a"], "1.png": ["a"]}


def test_what_is_not_labelled_is_told(root: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    rows = "image,class,remark\n0.png,x,\n1.png,nan,\n2.png,unknown,?\n3.png,y,good\n4.png,y,\n"
    labels_by_name, _, notes = read(root, names, rows)
    assert list(labels_by_name.values()) == ["x", None, "unknown", "y", "y", None]
    text = "\n".join(notes)
    assert "1 row with no class (nan)" in text
    assert "unknown is taken as a class" in text
    assert "not used: remark" in text
    assert "1 of 6 images have no row" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,class\na.png,nan\nb.png,\n", "no image has a known class"),
        ("image,x,y\na.png,1,\nb.png,,0\n", "no image has a known class"),
        ("image,class\na.png,x\nb.png,\n", "line 3: no class for b.png"),
        ("image,class\na.png,x\nb.png\n", "line 3: 1 columns, but the header has 2"),
        ("file\na.png\nb.png\n", "two columns"),
        ("image,class\n3.png,x\n4.png,y\n", "none of 2 images"),
        ('image,class\na.png,x\n"b.png,y\nc.png,z\n', "quotation mark"),
        ('image,class\na.png,x\nb.png,"y\nc.png,z\n', "quotation mark"),
        ('image,note,class\n"a.png\nb.png",x,x\nb.png,y,y\n', "quotation mark"),
        ("image,\na.png,\nb.png,\n", "needs a column of classes"),
        ("image,split\na.png,train\nb.png,test\n", "needs a column of classes"),
        ("image,class\n\xf6a.png,x\nb.png,y\n".replace("b.png", "c.png"), "UTF-8"),
    ],
)
def test_tables_without_labels_are_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(root, ["a.png", "b.png"], text.encode("cp1252"))
    assert "\n" not in str(caught.value)


# Several tables, and tables below


@pytest.mark.parametrize("file", ["labels.csv", "metadata.csv", "metadata.jsonl"])
def test_every_root_has_its_own_table(two: list[Path], file: str) -> None:
    names = [f"{i}.png" for i in range(4)]
    for folder, classes in zip(two, ("xyxy", "yxyx"), strict=True):
        pairs = list(zip(names, classes, strict=True))
        lines = ["file_name,label", *(f"{name},{kind}" for name, kind in pairs)]
        if file.endswith("jsonl"):
            rows = [{"file_name": n, "label": kind, "objects": {"bbox": []}} for n, kind in pairs]
            lines = [json.dumps(row) for row in rows]
        (folder / file).write_text("\n".join(lines))
    labels, _, notes = read_tables(two, [names, names])
    assert labels == list("xyxyyxyx")
    assert any(f"b/{file} (4 images)" in note for note in notes)


def test_an_image_without_a_row_in_its_own_table_takes_none_of_another(two: list[Path]) -> None:
    (two[0] / "labels.csv").write_text("image,class\n0.png,x\n1.png,y\n")
    (two[1] / "labels.csv").write_text("image,class\n1.png,x\n")
    labels, _, notes = read_tables(two, [["0.png", "1.png"]] * 2)
    assert labels == ["x", "y", None, "x"]
    assert any("1 of 4 images have no row" in note for note in notes)


def test_the_nearest_table_above_an_image_decides(root: Path) -> None:
    names = [
        f"{folder}{i}.png" for folder in ("", "train/", "train/deep/", "test/x/") for i in (0, 1)
    ]
    below = "image,class\n0.png,c\n1.png,d\ntrain/deep/0.png,d\ndeep/1.png,c\n"
    above = "image,class\n0.png,a\n1.png,b\ntrain/0.png,a\ntest/x/0.png,b\n"
    (root / "train").mkdir()
    (root / "train" / "labels.csv").write_text(below)
    labels_by_name, _, notes = read(root, names, above)
    assert list(labels_by_name.values()) == ["a", "b", "c", "d", "d", "c", "b", None]
    assert any("labels.csv (3 images)" in n and "labels.csv (4 images)" in n for n in notes)
    assert any("1 row of" in note for note in notes)  # train/0.png in the table above


def test_metadata_without_classes_is_passed_over(root: Path) -> None:
    (root / "x").mkdir()
    (root / "x" / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    (root / "metadata.csv").write_text("file_name,label\n0.png,zzz\n")
    labels_by_name, _, notes = read(root, ["0.png", "x/0.png"], "image,class\n0.png,a\nx/0.png,b\n")
    assert labels_by_name == {"0.png": "a", "x/0.png": "b"}
    (note,) = [note for note in notes if "not read for labels" in note]
    assert note.count("metadata.csv") == 2


def test_a_spreadsheet_beside_the_images_is_told(root: Path) -> None:
    (root / "labels.xlsx").write_bytes(b"PK\x03\x04")
    notes: list[str] = []
    files = files_of([root], [["0.png"]])
    assert label_by_tables("auto", roots_of(root), files, notes) is None
    assert any("labels.xlsx" in note and "labels.csv" in note for note in notes)
    with pytest.raises(UserError, match="save it as CSV"):
        label_by_tables(str(root / "labels.xlsx"), roots_of(root), files, notes)


@pytest.mark.parametrize("inside", [False, True])
def test_one_table_for_several_roots(tmp_path: Path, two: list[Path], inside: bool) -> None:
    """A name that two roots have labels neither, but where the table lies in one of them."""
    table = (two[0] if inside else tmp_path) / "t.csv"

    def read_rows(*rows: str) -> tuple[list[object], list[str]]:
        table.write_text("\n".join(["image,class", *rows]))
        labels, _, notes = read_tables(two, [["0.png", "1.png"], ["0.png", "2.png"]], table)
        return labels, notes

    labels, notes = read_rows("0.png,x", "1.png,y", "2.png,x")
    assert labels == ["x" if inside else None, "y", None, "x"]
    assert any("several images" in note for note in notes) != inside
    labels, _ = read_rows("0.png,x" if inside else "a/0.png,x", "1.png,y", "b/0.png,y")
    assert labels == ["x", "y", "y", None]
    if not inside:
        with pytest.raises(UserError, match="several folders"):
            read_rows("0.png,x", "0.png,x")


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """The folders of two roots."""
    for name in "ab":
        (tmp_path / name).mkdir()
    return [tmp_path / "a", tmp_path / "b"]


# A column of the split


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("split\ntrain\ntest\nTrain\nval\n", [False, True, False, True]),
        ("subset,n\ntraining,1\n,2\nvalidation,3\n", [False, False, True]),
        ("split\ntrain\ntrain\n", None),
        ("split\n0\n1\n", None),
        ("split\ntrain\ntest\nspare\n", None),
        ("usages\ntrain\ntest\n", None),
    ],
)
def test_a_column_of_the_split(text: str, test: list[bool] | None) -> None:
    split = read_split(columns_of(text))
    assert (split[1] if split else None) == test


def test_the_split_of_a_table_is_kept_where_it_can_be(root: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    rows = [f"{name},{'xy'[i % 2]},{'test' if i > 3 else 'train'}" for i, name in enumerate(names)]
    _, tables, notes = read(root, names, "\n".join(["image,class,split", *rows]))
    assert tables.test is not None
    assert tables.test.tolist() == [False] * 4 + [True] * 2
    assert notes == []
    unlabelled = [row.replace("x,test", "nan,test").replace("y,test", ",test") for row in rows]
    _, tables, notes = read(root, names, "\n".join(["image,class,split", *unlabelled]))
    assert tables.test is None
    assert any("split is not used" in note for note in notes)
