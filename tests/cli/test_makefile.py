"""`make demo` and `make test` each install what they need, in either order. Nothing is installed
here: pip is made up.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/bin/sh
case "$*" in
*"pip install"*) echo "$*" >> installed ;;
*metadata*) echo torch==9.9 ;;
*selftaught*|*pytest*|*mkdocs*) echo "$*" >> done ;;
-c*) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile beside an environment that writes down what it is asked for."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    for name, script in (("python", PYTHON), ("ruff", "#!/bin/sh\n"), ("pyrefly", "#!/bin/sh\n")):
        (bin / name).write_text(script)
        (bin / name).chmod(0o755)
    return tmp_path


def made(project: Path, *goals: str) -> tuple[list[str], int]:
    """What has been installed so far, and how many commands were carried out."""
    for goal in goals:
        subprocess.run(["make", goal], cwd=project, check=True, capture_output=True)
    installs = (project / "installed").read_text().splitlines()
    return [line.rpartition(".[")[2].rstrip("]'") for line in installs], len(
        (project / "done").read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("goals", "extras"),
    [
        (["demo", "demo"], ["demo,fast"]),
        (["test", "test"], ["demo,fast,dev"]),
        (["docs", "docs"], ["docs"]),
        (["demo", "docs"], ["demo,fast", "docs"]),
        (["demo", "test", "demo"], ["demo,fast", "demo,fast,dev"]),
        (["test", "demo", "test"], ["demo,fast,dev"]),  # which holds what the demo needs
    ],
)
def test_each_goal_installs_what_it_needs_once(
    project: Path, goals: list[str], extras: list[str]
) -> None:
    assert made(project, *goals) == (extras, len(goals))
    constraint = (project / "installed").read_text().split("--constraint ")[1].split()[0]
    assert (project / constraint).read_text() == "torch==9.9\n"  # a torch that is there is kept


@pytest.mark.parametrize("goal", ["demo", "test"])
def test_other_needs_are_installed_anew(project: Path, goal: str) -> None:
    made(project, goal)
    time = (project / ".venv" / "installed-demo").stat().st_mtime + 5
    os.utime(project / "pyproject.toml", (time, time))
    assert len(made(project, goal)[0]) == 2
