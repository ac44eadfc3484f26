"""Makes a release: one commit, and in dist/VERSION the files for the package index.

    make release VERSION=0.2.0

The commit sets the version, also where a page shows it, closes the changelog's unreleased section
and adds what this version saves and returns to tests/goldens/releases. All is made in a temporary
working tree of Git and taken over at the end: what fails leaves the branch, the files and dist as
they were. Nothing is uploaded.
"""

import argparse
import contextlib
import datetime
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ("custom_ops/wheels/build.py",)  # writes the archive of the sources and the wheels to dist
VERSION = pathlib.Path("tf_deform", "__init__.py")
PAGE = pathlib.Path("docs", "troubleshooting.md")  # shows what `python -m tf_deform info` prints
CHANGELOG = pathlib.Path("CHANGELOG.md")
UNRELEASED = "## [Unreleased]\n"


def main():
    """Makes the release that the arguments ask for, or says why not."""
    parser = argparse.ArgumentParser(prog="make release", usage="make release VERSION=0.2.0")
    parser.add_argument("version")
    version = parser.parse_args().version
    try:
        check(version)
        commit, folder = make(version)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"Nothing was released: {error}")
    print(f"\nVersion {version} is commit {commit}; its files are in {folder}:\n")
    print((folder / "SHA256SUMS").read_text())
    print(f"What is left to do, once you have looked at them:\n  git tag v{version} {commit}")
    print(f"  twine upload {folder}/tf_deform-*")


def check(version):
    """Checks that the version can be released from this working tree.

    Raises:
        ValueError: it cannot, and why.
    """
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise ValueError(f"the version must be three numbers such as 0.2.0, received {version!r}")
    last = re.search(r'__version__ = "(.*)"', (ROOT / VERSION).read_text()).group(1)
    if _numbers(version) <= _numbers(last):
        raise ValueError(f"the version must be above {last}, received {version}")
    if changed := _git("status", "--porcelain"):
        raise ValueError(f"these files are not committed:\n{changed}")
    if not re.search(r"^- ", _unreleased((ROOT / CHANGELOG).read_text()), re.M):
        raise ValueError(f"the unreleased section of {CHANGELOG} is empty")


def make(version):
    """Makes the release; returns its commit and the folder with its files."""
    with _working_tree() as tree:
        _write(tree, version)
        _run(tree, "tests/goldens/make_release_goldens.py")
        _run(tree, "-m", "pytest", "-p", "no:cacheprovider", "tests/release_test.py")
        _git("add", "--all", ".", tree=tree)
        _git("commit", "--quiet", "--message", f"Release {version}", tree=tree)
        _run(tree, *BUILD)
        made = sorted((tree / "dist").glob("tf_deform-*"))
        _run(tree, "-m", "twine", "check", "--strict", *made)
        _check_names(made, version)
        commit = _git("rev-parse", "HEAD", tree=tree)
        return commit, _publish(made, version, commit)


def _write(tree, version):
    """Writes the version and the date into the tree."""
    for name, pattern in (
        (VERSION, r'(?<=^__version__ = ")[^"]*'),
        (PAGE, r"(?<=^tf_deform )[\d.]+$"),
    ):
        path = tree / name
        path.write_text(re.sub(pattern, version, path.read_text(), flags=re.M))
    today = datetime.datetime.now(datetime.timezone.utc).date()
    path = tree / CHANGELOG
    heading = f"{UNRELEASED}\n## [{version}] - {today}\n"
    path.write_text(path.read_text().replace(UNRELEASED, heading, 1))


def _publish(made, version, commit):
    """Puts the files into dist, and takes the commit over into the branch."""
    folder = ROOT / "dist" / version
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        complete = pathlib.Path(partial, version)
        complete.mkdir()
        lines = []
        for path in made:
            shutil.copy(path, complete)
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        (complete / "SHA256SUMS").write_text("".join(lines))
        complete.rename(folder)
        try:
            _git("merge", "--quiet", "--ff-only", commit)  # not where the branch has moved
        except BaseException:
            shutil.rmtree(folder)
            raise
    return folder


def _check_names(made, version):
    names = [path.name for path in made]
    wrong = [name for name in names if not re.match(rf"tf_deform-{re.escape(version)}[-.]", name)]
    kinds = {path.suffix for path in made}
    if wrong or kinds != {".gz", ".whl"}:
        raise ValueError(f"expected an archive and wheels of {version}, received {names}")


@contextlib.contextmanager
def _working_tree():
    """Yields a temporary working tree at the last commit, with the downloads of the wheels."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "tree")
        _git("worktree", "add", "--quiet", "--detach", tree)
        try:
            kept = tree / "build" / "wheels"
            kept.mkdir(parents=True)
            for download in (ROOT / "build" / "wheels").glob("tensorflow-*"):
                (kept / download.name).symlink_to(download)
            yield tree
        finally:
            _git("worktree", "remove", "--force", tree)


def _unreleased(changelog):
    """Returns the text of the section between its heading and the next release's."""
    return changelog.partition(UNRELEASED)[2].partition("\n## ")[0]


def _numbers(version):
    return tuple(map(int, version.split(".")))


def _run(tree, *arguments):
    """Runs this Python in the tree, whose package it imports."""
    print("==>", *(pathlib.Path(each).name for each in arguments), flush=True)
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, check=True)


def _git(*arguments, tree=ROOT):
    command = ["git", "-C", tree, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


if __name__ == "__main__":
    main()
