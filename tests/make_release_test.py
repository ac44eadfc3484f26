"""What `make release` does, in a small repository whose slow steps are stubs."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

SCRIPT = "custom_ops/wheels/release.py"
STUB = "import os, pathlib; assert os.environ.get('FAILS') != {step!r}\n"
VERSION = "from tf_deform import __version__ as version\n"
NAME = "pathlib.Path('dist', 'tf_deform-' + version"
FILES = {
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A layer.\n",
    "tf_deform/__init__.py": '__version__ = "0.1.0"\n',
    "docs/troubleshooting.md": "```console\n$ python -m tf_deform info\ntf_deform 0.1.0\n```\n",
    ".gitignore": "build/\ndist/\n__pycache__/\n",
    # Run as `python -m` in the repository, these come before what is installed.
    "pytest.py": STUB.format(step="pytest"),
    "twine.py": STUB.format(step="twine"),
    "tests/goldens/make_release_goldens.py": STUB.format(step="goldens")
    + VERSION
    + "path = pathlib.Path('tests/goldens/releases', version); path.mkdir(parents=True)\n"
    + "(path / 'a.npz').write_text(version)\n",
    "custom_ops/wheels/build.py": STUB.format(step="build")
    + VERSION
    + "pathlib.Path('dist').mkdir()\n"
    + f"{NAME} + '.tar.gz').write_text('archive')\n"
    + f"{NAME} + '-py3-none-any.whl').write_text('wheel')\n",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Returns the folder of a repository that has the script and is at version 0.1.0."""
    for variable in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{variable}_NAME", "A")
        monkeypatch.setenv(f"GIT_{variable}_EMAIL", "a@example.org")
    folder = tmp_path / "repository"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(pathlib.Path(__file__).parents[1] / SCRIPT, folder / SCRIPT)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def git(folder, *arguments):
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "A change")


def release(folder, version="0.2.0"):
    command = [sys.executable, folder / SCRIPT, version]
    return subprocess.run(command, capture_output=True, text=True)


def state_of(folder):
    """Returns what a release that fails must leave as it is."""
    files = sorted(path for path in folder.rglob("*.*") if ".git" not in path.parts)
    texts = [path.read_bytes() for path in files if path.is_file()]
    branches = git(folder, "for-each-ref"), git(folder, "worktree", "list")
    return files, texts, branches, git(folder, "rev-parse", "HEAD")


def test_a_release_is_one_commit_and_the_files(repository):
    before = git(repository, "rev-parse", "HEAD")
    run = release(repository)
    assert run.returncode == 0, run.stderr
    assert git(repository, "rev-parse", "HEAD^") == before
    assert git(repository, "log", "-1", "--format=%s") == "Release 0.2.0\n"
    assert git(repository, "status", "--porcelain") == git(repository, "tag") == ""
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert git(repository, "show", "--name-only", "--format=").split() == [
        "CHANGELOG.md",
        "docs/troubleshooting.md",
        "tests/goldens/releases/0.2.0/a.npz",
        "tf_deform/__init__.py",
    ]
    assert (repository / "tf_deform/__init__.py").read_text() == '__version__ = "0.2.0"\n'
    assert "\ntf_deform 0.2.0\n" in (repository / "docs/troubleshooting.md").read_text()
    changelog = (repository / "CHANGELOG.md").read_text()
    sections = r"## \[Unreleased\]\n\n## \[0\.2\.0\] - \d{4}-\d\d-\d\d\n\n### Added\n\n- A layer"
    assert re.search(sections, changelog)
    assert (repository / "tests/goldens/releases/0.2.0/a.npz").read_text() == "0.2.0"
    expected = "".join(
        f"{hashlib.sha256(text.encode()).hexdigest()}  tf_deform-0.2.0{ending}\n"
        for ending, text in (("-py3-none-any.whl", "wheel"), (".tar.gz", "archive"))
    )
    assert (repository / "dist/0.2.0/SHA256SUMS").read_text() == expected
    assert expected in run.stdout
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=repository / "dist/0.2.0", check=True)
    assert "the unreleased section of CHANGELOG.md is empty" in release(repository, "0.3.0").stderr


@pytest.mark.parametrize("step", ["goldens", "pytest", "build", "twine"])
def test_a_step_that_fails_leaves_everything_as_it_was(repository, step, monkeypatch):
    monkeypatch.setenv("FAILS", step)
    before = state_of(repository)
    run = release(repository)
    assert run.returncode == 1
    assert "Nothing was released" in run.stderr
    assert state_of(repository) == before


def test_what_the_branch_cannot_take_over_is_not_published(repository):
    move = ["git", "-C", str(repository), "commit", "--allow-empty", "--message", "Moved"]
    build = repository / "custom_ops/wheels/build.py"
    build.write_text(f"import subprocess; subprocess.run({move}, check=True)\n{build.read_text()}")
    commit(repository)
    run = release(repository)
    assert "Nothing was released" in run.stderr
    assert git(repository, "log", "-1", "--format=%s") == "Moved\n"
    assert list((repository / "dist").iterdir()) == []


def test_refusals(repository):
    for version in ("0.1.0", "0.0.9"):
        assert f"must be above 0.1.0, received {version}" in release(repository, version).stderr
    for version in ("0.2", "v0.2.0", "0.2.0rc1", "0.02.0", ""):
        assert "three numbers" in release(repository, version).stderr
    (repository / "left").write_text("over")
    assert "not committed:\n?? left" in release(repository).stderr
    (repository / "left").unlink()
    changelog = repository / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.1.0]\n\n- All.\n")
    commit(repository)
    assert "unreleased section of CHANGELOG.md is empty" in release(repository).stderr
