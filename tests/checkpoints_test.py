"""Tensors and files of PyTorch, which a stand-in takes the place of: it is not needed for tests."""

import io
import pickle
import re
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd

BFLOAT16 = tf.bfloat16.as_numpy_dtype


class Tensor:
    """Gives its array where PyTorch's does: on the CPU, without a gradient, in NumPy's dtypes."""

    def __init__(self, array, *, requires_grad=False, device="cpu"):
        self.array = np.asarray(array)
        self.shape = self.array.shape
        self.dtype = Dtype(self.array.dtype.name)
        self.requires_grad, self.device = requires_grad, device

    def detach(self):
        return Tensor(self.array, device=self.device)

    def cpu(self):
        return Tensor(self.array, requires_grad=self.requires_grad)

    def float(self):
        return Tensor(
            self.array.astype("float32"), requires_grad=self.requires_grad, device=self.device
        )

    def numpy(self):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device}:0 device type tensor to numpy.")
        if self.array.dtype.name not in ("float16", "float32", "float64", "int64"):
            raise TypeError(f"Got unsupported ScalarType {self.array.dtype.name}")
        return self.array

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


class Dtype(str):
    """Shows itself as PyTorch's do."""

    def __str__(self):
        return f"torch.{super().__str__()}"


class Module:
    """A torch.nn.Module by its look."""

    def state_dict(self):
        return {}


# 1, -2.5, infinity, 2**-130 (not normal), NaN, -0
HALVES = np.array([0x3F80, 0xC020, 0x7F80, 0x0008, 0x7FC0, 0x8000], "uint16").view(BFLOAT16)
HALVES = HALVES.reshape(3, 2)
WEIGHT = np.arange(6, dtype="float32").reshape(2, 3)
BIAS = np.array([0.5, -1.5], "float32")


def loaded(weights, prefix=""):
    """Returns the kernel and the bias of a layer with the weights."""
    layer = keras.layers.Dense(2, name="fc")
    layer.build((None, 3))
    tfd.convert.load_torchvision(layer, weights, prefix)
    return layer.kernel.numpy(), layer.bias.numpy()


def assert_loaded(weights, prefix=""):
    kernel, bias = loaded(weights, prefix)
    np.testing.assert_array_equal(kernel, WEIGHT.T)
    np.testing.assert_array_equal(bias, BIAS)


# Tensors


@pytest.mark.parametrize("device", ("cpu", "cuda"))
@pytest.mark.parametrize("requires_grad", (False, True))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "float64"))
def test_tensors_are_taken_as_they_are(dtype, requires_grad, device):
    dtype = BFLOAT16 if dtype == "bfloat16" else dtype
    options = {"requires_grad": requires_grad, "device": device}
    weight = Tensor(WEIGHT.astype(dtype), **options)
    assert_loaded({"weight": weight, "bias": Tensor(BIAS.astype(dtype), **options)})
    assert weight.requires_grad == requires_grad


def test_each_number_of_bfloat16_stays_as_it_is():
    kernel, _ = loaded({"weight": Tensor(HALVES.T), "bias": BIAS})
    np.testing.assert_array_equal(kernel, HALVES.astype("float32"))


def test_a_tensor_without_an_array_is_named():
    reason = "'bias' must be an array: Got unsupported ScalarType complex64"
    with pytest.raises(ValueError, match=re.escape(reason)):
        loaded({"weight": WEIGHT, "bias": Tensor(BIAS.astype("complex64"))})


@pytest.mark.parametrize("function", (loaded, tfd.convert.read))
def test_for_a_module_its_state_dict_is_asked(function):
    with pytest.raises(TypeError, match=r"received a Module; pass module\.state_dict\(\)$"):
        function(Module())


def test_torch_is_not_imported_for_tensors(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import raises
    assert_loaded({"weight": Tensor(WEIGHT, requires_grad=True), "bias": Tensor(BIAS)})


# Checkpoints

STATE = {"fc.weight": Tensor(WEIGHT.copy()), "fc.bias": Tensor(BIAS)}
OTHER = {"state": {0: {"step": Tensor(np.float32(3))}}, "param_groups": [{"lr": 0.1}]}
CHECKPOINTS = {
    "a state_dict": STATE,
    "mmcv": {"meta": {"epoch": 3}, "state_dict": STATE, "optimizer": OTHER},
    "torchvision": {"model": STATE, "optimizer": OTHER, "epoch": 3},
    "PyTorch's tutorial": {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": OTHER},
    "a loss beside": {"state_dict": STATE, "loss": Tensor(np.float32(0.3))},
    "what is no tensor": {**STATE, "epoch": 3, "optimizer": OTHER, "state_dict": "of fc"},
}
SEVERAL = {"model": STATE, "state_dict": STATE, "epoch": 3}
MORE_THAN_ONE = (
    "there is more than one state_dict in it, under 'state_dict', 'model': pass the one that is "
    "meant, as torch.load(path, weights_only=True)['state_dict']"
)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_are_taken_for_the_state_dict_in_them(name):
    assert_loaded(CHECKPOINTS[name], "fc.")


def test_of_several_state_dicts_none_is_taken():
    message = f"^weights must be one state_dict: {re.escape(MORE_THAN_ONE)}$"
    with pytest.raises(ValueError, match=message):
        loaded(SEVERAL, "fc.")


# Files

ADVICE = (
    "it holds more than tensors, and loading that would run code ({}); if you trust it, load it "
    "with PyTorch and save its tensors by torch.save(model.state_dict(), path)"
)
# What torch.load returns or raises, and what is told of the latter.
REFUSED = {
    "a module": (
        pickle.UnpicklingError(
            "Weights only load failed. This file can still be loaded, to do so you have two "
            "options, \033[1mdo those steps only if you trust the source of the checkpoint\033[0m."
            "\n\t(1) ... Re-running `torch.load` with `weights_only` set to `False` will likely "
            "succeed\n\tWeightsUnpickler error: Unsupported global: GLOBAL torch.nn.Linear was not "
            "an allowed global by default."
        ),
        ADVICE.format("torch.nn.Linear"),
    ),
    "a command": (
        pickle.UnpicklingError(
            "Weights only load failed.\n\nTrying to load unsupported GLOBAL posix.system whose "
            "module posix is blocked.\n\nCheck the documentation of torch.load"
        ),
        ADVICE.format("posix.system"),
    ),
    "a pickle": (
        pickle.UnpicklingError(
            "Weights only load failed. ... WeightsUnpickler error: \n\nUnsupported operand 149\n\n"
            "Check the documentation of torch.load to learn more"
        ),
        "torch.load(weights_only=True) refuses it: Unsupported operand 149",
    ),
    "text": (KeyError(101), "it is no file that torch.save has written"),
    "nothing": (EOFError(), "it is no file that torch.save has written"),
    "cut short": (RuntimeError("unexpected EOF,\nexpected 9"), "unexpected EOF, expected 9"),
    "a list": ([1, 2], "it must hold a state_dict, not a list"),
    "a tensor": (Tensor(BIAS), "it must hold a state_dict, not a Tensor"),
    "an empty state_dict": ({}, "there are no arrays in it"),
    "under other names": (
        {"net": STATE, "ema": STATE},
        "there are no tensors in it, but 'net', 'ema': if one of these holds them, pass that "
        "mapping, as torch.load(path, weights_only=True)[...]",
    ),
    "more than one state_dict": (SEVERAL, MORE_THAN_ONE),
    "a dtype that NumPy lacks": (
        {"x": Tensor(BIAS.astype("complex64"))},
        "entry 'x': Got unsupported ScalarType complex64",
    ),
}


@pytest.fixture
def torch(monkeypatch):
    """A module whose `load` returns, or raises, what its `content` is."""

    def load(file, *, map_location, weights_only, mmap):
        assert map_location == "cpu"
        assert weights_only is True
        assert mmap is False
        assert file.tell() == 0
        if isinstance(module.content, Exception):
            raise module.content
        return module.content

    module = types.SimpleNamespace(__version__="2.13.0+cpu", load=load, content=STATE)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}.pkl", content)
    return file.getvalue()


@pytest.mark.parametrize("content", (b"older than PyTorch 1.6", zipped(data=b"tensors")))
@pytest.mark.parametrize("suffix", (".pt", ".pth", ".PTH"))
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_files_are_read_as_the_checkpoints_in_them(name, suffix, content, torch, tmp_path):
    torch.content = CHECKPOINTS[name]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert_loaded(path, "fc.")
    arrays = tfd.convert.read(path)
    assert list(arrays) == list(STATE)
    assert all(type(array) is np.ndarray for array in arrays.values())
    arrays["fc.weight"] += 1  # it is the caller's own
    np.testing.assert_array_equal(STATE["fc.weight"].array, WEIGHT)


def test_entries_of_half_precision_are_read_exactly(torch, tmp_path):
    torch.content = {"b": Tensor(HALVES, requires_grad=True), "h": Tensor(np.float16(0.1))}
    (tmp_path / "w.pt").write_bytes(b"tensors")
    arrays = tfd.convert.read(tmp_path / "w.pt")
    assert arrays["b"].dtype == "float32"
    np.testing.assert_array_equal(arrays["b"], HALVES.astype("float32"))
    assert arrays["h"].dtype == "float16"
    assert arrays["h"] == np.float16(0.1)


def assert_refused(path, reason):
    start = f"weights must be a sound {path.suffix} file, received {str(path)!r}: "
    with pytest.raises(ValueError, match=f"^{re.escape(start + reason)}$"):
        tfd.convert.read(path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_named_with_the_reason_in_one_line(name, torch, tmp_path):
    torch.content, reason = REFUSED[name]
    (tmp_path / "w.pth").write_bytes(b"anything")
    assert_refused(tmp_path / "w.pth", reason)


def test_a_damaged_member_is_found_by_its_checksum(torch, tmp_path):
    content = zipped(data=b"tensors")
    (tmp_path / "w.pt").write_bytes(content.replace(b"tensors", b"tensers"))
    assert_refused(tmp_path / "w.pt", "the checksum of its member 'archive/data.pkl' is another")
    (tmp_path / "w.pt").write_bytes(content[:-1])
    assert_refused(tmp_path / "w.pt", "File is not a zip file")


def test_torchscript_is_refused(torch, tmp_path):
    (tmp_path / "w.pt").write_bytes(zipped(data=b"code", constants=b""))
    assert_refused(
        tmp_path / "w.pt",
        "it is a TorchScript archive, which is code: save its tensors by "
        "torch.save(torch.jit.load(path).state_dict(), other)",
    )


def test_a_file_that_is_missing_is_an_error_of_the_system(torch, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        tfd.convert.read(tmp_path / "missing.pth")


@pytest.mark.parametrize("version", ("1.13.1", "2.5.1+cu124"))
def test_a_torch_that_could_be_made_to_run_code_is_refused(version, torch, tmp_path):
    torch.__version__ = version
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(ImportError, match=rf"PyTorch 2\.6 or newer, .* received {version[:4]}"):
        tfd.convert.read(tmp_path / "w.pth")


def test_without_torch_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(ImportError, match=r"^\.pt and \.pth files .*: pip install") as told:
        tfd.convert.read(tmp_path / "w.pth")
    assert len(str(told.value).splitlines()) == 1
