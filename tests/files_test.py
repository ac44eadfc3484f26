"""Writers: whole or not at all, nobody else's files touched, nothing left behind."""

import os
import pathlib
import resource
import signal

import keras
import pytest
import tensorflow as tf

import tf_deform as tfd
from tf_deform import export, files, litert_export, onnx_export

# Paths that no folder may be written to, made in an empty folder; what they are.
TAKEN = {
    "a file": lambda path: path.touch(),
    "a folder with something in it": lambda path: (path.mkdir(), (path / "mine").touch()),
    "a link to an empty folder": lambda path: (
        path.with_name("empty").mkdir(),
        path.symlink_to(path.with_name("empty")),
    ),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
}


@pytest.fixture(scope="module")
def model():
    images = keras.Input((9, 7, 3))
    return keras.Model(images, tfd.layers.DeformableConv2D(4, 3)(images))


def state_of(folder):
    """Returns what lies below a folder: kinds and contents by name."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else "folder")
        for path in folder.rglob("*")
    }


def test_a_folder_appears_whole_and_the_folders_above_it_are_made(tmp_path):
    with files.new_folder(tmp_path / "models" / "1") as partial:
        os.mkdir(partial)
        pathlib.Path(partial, "weights").touch()
        assert not (tmp_path / "models" / "1").exists()
    assert set(state_of(tmp_path)) == {"models", "models/1", "models/1/weights"}


def test_an_empty_folder_is_taken_over(tmp_path):
    (tmp_path / "1").mkdir()
    with files.new_folder(f"{tmp_path}/1/") as partial:
        os.mkdir(partial)
        pathlib.Path(partial, "weights").touch()
    assert set(state_of(tmp_path)) == {"1", "1/weights"}


@pytest.mark.parametrize("taken", TAKEN)
def test_what_is_at_the_path_stays_and_nothing_is_written(taken, model, tmp_path):
    TAKEN[taken](tmp_path / "1")
    before = state_of(tmp_path)
    with pytest.raises(FileExistsError, match="path must be a folder not there yet or empty"):
        tfd.export_saved_model(model, tmp_path / "1")
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("write", [tfd.export_saved_model, tfd.export_onnx, tfd.export_litert])
@pytest.mark.parametrize("path", ["", "/"])
def test_an_empty_path_is_refused(write, path, model):
    with pytest.raises(ValueError, match=f"path must name a file or folder, received '{path}'"):
        write(model, path)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_partial_of_the_users_is_not_touched(kind, model, tmp_path):
    partial, target = tmp_path / "1.partial", tmp_path / "mine"
    target.mkdir()
    (target / "work").write_text("years")
    if kind == "link":
        partial.symlink_to(target)
    elif kind == "file":
        partial.write_text("mine")
    else:
        partial.mkdir()
    before = state_of(tmp_path)
    tfd.export_saved_model(model, tmp_path / "1")
    after = state_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "1" / "saved_model.pb").exists()


def test_who_ends_second_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(FileExistsError), files.new_folder(tmp_path / "1") as late:
        os.mkdir(late)
        with files.new_folder(tmp_path / "1") as early:
            os.mkdir(early)
            pathlib.Path(early, "first").touch()
        pathlib.Path(late, "second").touch()
    assert set(state_of(tmp_path)) == {"1", "1/first"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("writer", [files.new_folder, files.replaced_file])
def test_after_an_error_nothing_is_left(writer, error, tmp_path):
    (tmp_path / "mine").write_text("mine")
    before = state_of(tmp_path)
    path = tmp_path / ("deep/er/1" if writer is files.new_folder else "mine")
    with pytest.raises(error), writer(path) as partial:
        if writer is files.new_folder:
            os.mkdir(partial)
            partial = os.path.join(partial, "weights")
        pathlib.Path(partial).write_text("half")
        raise error
    assert state_of(tmp_path) == before


def test_a_file_is_replaced_and_a_link_to_it_stays(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with files.replaced_file(tmp_path / "link") as partial:
        pathlib.Path(partial).write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    assert state_of(tmp_path) == {"file": b"new", "link": "file"}


def test_a_file_takes_the_place_of_files_alone(model, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", "/dev/null"):
        with pytest.raises(FileExistsError, match="path must name a file, received"):
            tfd.export_onnx(model, path)
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        tfd.export_onnx(model, tmp_path / "none" / "model.onnx")
    assert state_of(tmp_path) == {"folder": "folder"}


def test_what_is_written_is_readable_by_those_whom_the_umask_lets(model, tmp_path):
    umask = os.umask(0o022)
    try:
        tfd.export_saved_model(model, tmp_path / "1")
        tfd.export_onnx(model, tmp_path / "model.onnx")
    finally:
        os.umask(umask)
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "model.onnx").stat().st_mode & 0o777 == 0o644


# Interrupts and a full disk


@pytest.fixture
def no_room():
    """Lets no file grow beyond 1,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=[tfd.export_saved_model, tfd.export_onnx, tfd.export_litert])
def target(request, tmp_path):
    """Returns a writer and a path that it may write to; where it replaces files there is one."""
    path = tmp_path / "model"
    if request.param is not tfd.export_saved_model:
        path.write_text("the one before")
    return request.param, path


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_leaves_what_was_there(target, model):
    write, path = target
    before = state_of(path.parent)
    with pytest.raises((OSError, tf.errors.OpError)):
        write(model, path)
    assert state_of(path.parent) == before


def test_an_interrupt_leaves_what_was_there(target, model, monkeypatch):
    write, path = target
    before = state_of(path.parent)

    checked = {
        tfd.export_saved_model: (export, "custom_ops"),
        tfd.export_onnx: (onnx_export, "_check_operators"),
        tfd.export_litert: (litert_export, "_runner"),
    }
    monkeypatch.setattr(*checked[write], lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        write(model, path)
    assert state_of(path.parent) == before
