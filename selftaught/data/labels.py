def _label(
    source: str, places: Sequence[_Root], files: _Files, depth: np.ndarray, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels, [n] int64 or [n, C] uint8 or None, and the names of the classes."""
    if source == "none":
        return None, ()
    if source == "folders":
        names, objection = _class_folders(files, depth)
        if len(set(names)) < 2 or "" in names:
            raise UserError(f"labels cannot be taken from folders: {objection}")
        return _encoded([(name,) for name in names], None)
    tables = [Path(place.path) / "labels.csv" for place in places if not place.is_file]
    tables = [table for table in tables if table.is_file()]
    if source != "auto":
        tables = [Path(source).expanduser()]
        if not tables[0].is_file():
            choices = '"auto", "folders", "none" or a CSV file'
            raise UserError(f"labels {source!r}: no such file; labels are {choices}")
    if tables:
        return _csv_labels(tables, places, files, notes)
    names, objection = _class_folders(files, depth)
    if objection is None:
        return _encoded([(name,) for name in names], None)
    if len(set(names)) > 1:
        notes.append(f"folders not taken as classes: {objection}")
    return None, ()


def _class_folders(files: _Files, depth: np.ndarray) -> tuple[list[str], str | None]:
    """The first folder of each image below its split ("" where there is none), and what speaks against these
    as classes.
    """
    names, seconds = [], set()
    for name, skip in zip(files.names, depth, strict=True):
        folders = name.split("/")[skip:-1] if skip >= 0 else []
        names.append(folders[0] if folders else "")
        seconds.add(folders[1].lower() if len(folders) > 1 else "")
    classes = set(names) - {""}
    loose = names.count("")
    if loose:
        example = _shown(files.paths[names.index("")])
        return names, f"{_count(loose, 'image')} of {len(names):,} in no class folder, for example {example}"
    if len(classes) < 2:
        return names, f"all images are in one folder, {_shown(next(iter(classes)))}"
    if {name.lower() for name in classes} <= _PART_NAMES or seconds <= {*TRAIN_NAMES, *TEST_NAMES}:
        parts = ", ".join(_shown(name) for name in sorted(classes)[:4])
        return names, f"{parts} look like parts of a data set; name the one that is meant as the data"
    if len(classes) > max(50, len(names) // 2):  # folders by day or by patient, say
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _csv_labels(
    tables: Sequence[Path], places: Sequence[_Root], files: _Files, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    read = [_Table(table) for table in tables]
    found: list[tuple[str, ...]] = []
    missing: list[str] = []
    used = 0
    for path, name in zip(files.paths, files.names, strict=True):
        for table in read:
            if (row := table.find(path, name)) is not None:
                found.append(row)
                used += 1
                break
        else:
            missing.append(path)
    listed = ", ".join(_shown(table) for table in tables)
    if missing:
        raise UserError(
            f"{len(missing):,} of {_count(len(files), 'image')} have no row in {listed}, for example "
            f"{_shown(missing[0])}: add a row for each (its path from the folder of the CSV, and its class), "
            'or take no labels ("none")'
        )
    for table in read:
        notes += table.notes
    if (unused := sum(len(table.rows) for table in read) - used) > 0:
        notes.append(f"{_count(unused, 'row')} of {listed} without an image")
    columns = [name for table in read for name in table.columns]
    several = any(table.several for table in read)
    rows, classes = _encoded(found, list(dict.fromkeys(columns)) if several else None, several)
    if len(classes) < 2 and not several:
        notes.append(f"{listed} names one class only, which is as good as no labels")
        return None, ()
    return rows, classes


class _Table:
    """A CSV of labels: a header; in the first column a path from the CSV's folder or from a root (with or
    without its suffix); in the second the class, or several as `a|b`; or else several columns of 0 and 1, one
    a class.
    """

    def __init__(self, path: Path) -> None:
        self.folder = os.path.dirname(os.path.abspath(path))
        self.notes: list[str] = []
        self.columns: list[str] = []  # of 0 and 1
        shown = _shown(path)
        header, *body = self._lines(path, shown)
        if len(header) < 2:
            raise UserError(f"{shown}: needs a header and two columns, the image's path and its class")
        if _is_image(header[0]):
            raise UserError(f"{shown}: has no header: its first line is {','.join(header)}")
        wide = len(header) > 2 and all(cell in ("0", "1") for _, cells in body for cell in cells[1:])
        if wide:
            self.columns = [name.strip() for name in header[1:]]
        elif len(header) > 2:
            self.notes.append(f"{shown}: columns not used: {', '.join(header[2:])}")
        self.several = wide or any("|" in cells[1] for _, cells in body)
        self.rows: dict[str, tuple[str, ...]] = {}
        for line, cells in body:
            if wide:
                names = tuple(name for name, cell in zip(self.columns, cells[1:], strict=True) if cell == "1")
            else:
                names = tuple(name.strip() for name in cells[1].split("|") if name.strip())
            if not names and not self.several:
                raise UserError(f"{shown}, line {line}: no class for {cells[0]}")
            if self.rows.setdefault(_key(cells[0]), names) != names:
                raise UserError(f"{shown}, line {line}: {cells[0]} has another class further up")

    @staticmethod
    def _lines(path: Path, shown: str) -> list[Any]:
        """The header's cells, then (line number, cells) for every row; all of the header's width."""
        try:
            data = path.read_bytes()
            # Names that are no UTF-8 stay what the file system calls them; spreadsheets write UTF-16 or a
            # UTF-8 mark.
            encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            text = data.decode(encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "strict")
            first = text.split("\n", 1)[0]
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{shown} cannot be read as a CSV: {error}") from None
        if len(lines) < 2:
            raise UserError(f"{shown}: needs a header and at least one row")
        header = lines[0][1]
        for line, cells in lines[1:]:
            if len(cells) != len(header):
                raise UserError(f"{shown}, line {line}: {len(cells)} columns, but the header has {len(header)}")
        return [header, *lines[1:]]

    def find(self, path: str, name: str) -> tuple[str, ...] | None:
        """The row of the image at `path`, whose path below its root is `name`."""
        for candidate in (os.path.relpath(path, self.folder), name, path):
            for key in (_key(candidate), _key(os.path.splitext(candidate)[0])):
                if key in self.rows:
                    return self.rows[key]
        return None


def _key(path: str) -> str:
    """One spelling for a path: forward slashes, no ./, composed letters (macOS decomposes them in file
    names).
    """
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")))


def _encoded(
    names: Sequence[tuple[str, ...]], columns: Sequence[str] | None, several: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers [n], or with `several` one 0/1 column a class [n, C]; classes sorted, whole numbers by
    size.
    """
    seen = {name for row in names for name in row}
    whole = all(name.isascii() and name.isdigit() for name in seen)
    rest = sorted(seen - set(columns or ()), key=lambda name: (int(name) if whole else 0, name))
    classes = [*(columns or ()), *rest]
    number = {name: i for i, name in enumerate(classes)}
    if several:
        rows = np.zeros((len(names), len(classes)), dtype=np.uint8)
        for i, row in enumerate(names):
            rows[i, [number[name] for name in row]] = 1
    else:
        rows = np.array([number[row[0]] for row in names], dtype=np.int64)
    return rows, tuple(_shown(name) for name in classes)


