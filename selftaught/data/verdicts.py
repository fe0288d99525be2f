def _check(
    places: Sequence[_Root],
    found: _Scan,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Sizes [n, 2] (zeros where unreadable) and the reasons, by decoding what the cache does not know yet.

    By threads, which need no guarded `__main__` and no start of 0.8 to 1.5 s as two processes do. In CPU time a JPEG
    of 128 px takes 154 us (one of 500x375: 910), of which at most 39 (67) hold the interpreter's lock, so that it would
    let four (thirteen) cores work; the second thread adds about a tenth.
    """
    files = found.files
    sizes = np.zeros((len(files), 2), dtype=np.int64)
    reasons: dict[int, str] = {}
    keep = np.ones(len(files), dtype=bool)  # which verdicts to remember: final ones
    folders: dict[str, list[int]] = {place.folder: [] for place in places}
    for i in range(len(files)):
        folders[places[files.roots[i]].folder].append(i)
    todo: list[int] = []
    known = {folder: _Verdicts.load(cache, folder) for folder in folders}
    for folder, members in folders.items():
        for i in members:
            verdict = known[folder].get(files.names[i], files.bytes[i], files.changed[i])
            if verdict is None:
                todo.append(i)
                keep[i] = False
            elif isinstance(verdict, str):
                reasons[i] = verdict
            else:
                sizes[i] = verdict

    def one(j: int) -> None:
        i = todo[j]
        try:
            sizes[i] = measure(files.paths[i])
        except Unreadable as error:
            reasons[i] = str(error)
            keep[i] = not error.passing
        else:
            keep[i] = True

    try:
        with quiet():
            in_parallel(len(todo), one, on_progress=on_progress)
    finally:  # what was checked before Ctrl-C is remembered, too
        for folder, members in folders.items():
            scanned = any(place.folder == folder and not place.is_file for place in places)
            verdicts = _Verdicts() if scanned else known[folder]  # a file says nothing of its neighbours
            before = len(known[folder].rows)
            for i in members:
                if keep[i]:
                    verdicts.put(files.names[i], files.bytes[i], files.changed[i], reasons.get(i) or sizes[i])
            if todo or len(verdicts.rows) != before:
                verdicts.store(cache, folder)
    return sizes, dict(sorted(reasons.items()))


class _Verdicts:
    """What is known of the files of one folder: name -> (bytes, time of change, height, width), and reasons
    by name.

    Kept in a file of arrays, `<cache>/index/<hash of the real folder>.npz`. Writers replace it at once by a
    rename, so that readers and other writers see an old one or a new one, and whatever is wrong with it (its
    sums are checked while it is read), it is no more than a reason to decode the files again.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.numbers = array("q")  # four a row
        self.reasons: dict[str, str] = {}

    def get(self, name: str, size: int, changed: int) -> tuple[int, int] | str | None:
        """(height, width), the reason why it cannot be read, or None: not known as it is now."""
        at = 4 * self.rows.get(name, -1)
        if at < 0 or self.numbers[at] != size or self.numbers[at + 1] != changed:
            return None
        return self.reasons.get(name) or (self.numbers[at + 2], self.numbers[at + 3])

    def put(self, name: str, size: int, changed: int, verdict: np.ndarray | str) -> None:
        height, width = (0, 0) if isinstance(verdict, str) else verdict.tolist()
        self.reasons.pop(name, None)
        if isinstance(verdict, str):
            self.reasons[name] = verdict
        if (row := self.rows.get(name)) is None:
            self.rows[name] = len(self.rows)
            self.numbers.extend((size, changed, height, width))
        else:
            self.numbers[4 * row : 4 * row + 4] = array("q", (size, changed, height, width))

    @staticmethod
    def _file(cache: Path, folder: str) -> Path:
        # A newer Pillow, or a change of our own rules, may judge the same bytes differently.
        key = f"{_CACHE_FORMAT}\0{PIL.__version__}\0{folder}"
        return cache / "index" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".npz")

    @classmethod
    def load(cls, cache: Path | None, folder: str) -> _Verdicts:
        verdicts = cls()
        if cache is None:
            return verdicts
        try:
            with np.load(cls._file(cache, folder), allow_pickle=False) as stored:
                names = stored["names"].tobytes().split(b"\0")[:-1]
                numbers = stored["numbers"].astype(np.int64, casting="safe")
                reasons = json.loads(stored["reasons"].tobytes())
            if numbers.shape != (len(names), 4) or not isinstance(reasons, dict):
                return verdicts
            rows = {os.fsdecode(name): row for row, name in enumerate(names)}
            zero = {name for name, row in rows.items() if numbers[row, 2] < 1 or numbers[row, 3] < 1}
            if len(rows) == len(names) and zero == set(reasons):
                verdicts.rows, verdicts.reasons = rows, reasons
                verdicts.numbers.frombytes(numbers.tobytes())
        except Exception:  # missing, torn or overwritten by anything at all: as if it were not there
            return cls()
        return verdicts

    def store(self, cache: Path | None, folder: str) -> None:
        if cache is None:
            return
        file = self._file(cache, folder)
        content = io.BytesIO()
        np.savez(
            content,
            names=np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in self.rows), dtype=np.uint8),
            numbers=np.array(self.numbers, dtype=np.int64).reshape(-1, 4),
            reasons=np.frombuffer(json.dumps(self.reasons).encode(), dtype=np.uint8),
        )
        part: str | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
            with os.fdopen(handle, "wb") as out:
                out.write(content.getbuffer())
            os.replace(part, file)
        except OSError:  # a full disk or a home that cannot be written to: the next index just takes as long
            if part is not None:
                with contextlib.suppress(OSError):
                    os.unlink(part)


def _default_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "selftaught"
    try:
        return Path.home() / ".cache" / "selftaught"
    except RuntimeError:  # a user without a home
        return None


