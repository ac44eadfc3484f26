"""Tensors and checkpoints of PyTorch, which is imported to read its files and for nothing else."""

import importlib
import pickle
import re
import zipfile
from collections.abc import Mapping

import numpy as np

# Under these names training scripts keep the state_dict of a model beside that of an optimizer.
_NESTED = ("state_dict", "model", "model_state_dict")
_OLDEST = (2, 6)  # before it torch.load(weights_only=True) could be made to run code
_SHOWN = 5  # names that a message shows


def is_tensor(value):
    """Returns whether a value looks like a tensor of PyTorch."""
    return all(callable(getattr(value, name, None)) for name in ("detach", "cpu", "numpy"))


def array_of(value):
    """Returns a tensor of PyTorch as an array, and anything else as np.asarray does.

    The tensor may require a gradient and be on any device. bfloat16, which NumPy does not have,
    becomes float32, which holds each of its numbers.
    """
    if not is_tensor(value):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        value = value.float()
    return value.numpy()


def state_dict_of(checkpoint):
    """Returns the one mapping that a checkpoint holds as "state_dict" or the like, else itself."""
    nested = [name for name in _NESTED if isinstance(checkpoint.get(name), Mapping)]
    if len(nested) > 1:
        raise ValueError(
            f"there is more than one state_dict in it, under {_quoted(nested)}: pass the one "
            f"that is meant, as torch.load(path, weights_only=True)[{nested[0]!r}]"
        )
    return checkpoint[nested[0]] if nested else checkpoint


def imported_torch():
    """Returns the module torch, which reads files without running code from them."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        reason = " ".join(str(error).split())
        raise ImportError(
            f".pt and .pth files need PyTorch: pip install torch, or save them elsewhere as "
            f".safetensors ({reason})"
        ) from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _OLDEST:
        raise ImportError(
            f".pt and .pth files need PyTorch {'.'.join(map(str, _OLDEST))} or newer, which can "
            f"read them without running code, received {torch.__version__}"
        )
    return torch


def tensors_of(file, torch):
    """Returns the tensors of an open .pt or .pth file: {name: tensor}, on the CPU.

    Raises whatever damaged bytes make torch.load raise, and ValueError for what it must not load.
    """
    _check_zip(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise ValueError(_why_refused(str(error))) from error
    except (KeyError, EOFError) as error:  # whose texts say nothing
        raise ValueError("it is no file that torch.save has written") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it must hold a state_dict, not a {type(loaded).__name__}")
    state_dict = state_dict_of(loaded)
    tensors = {name: value for name, value in state_dict.items() if is_tensor(value)}
    if state_dict and not tensors:
        raise ValueError(
            f"there are no tensors in it, but {_quoted(state_dict)}: if one of these holds them, "
            "pass that mapping, as torch.load(path, weights_only=True)[...]"
        )
    return tensors


def _check_zip(file):
    """Raises unless the members of a zip file have the checksums that it says: torch looks at none.

    Files that PyTorch wrote before its version 1.6 are no zip files and have none.
    """
    if file.read(4) == b"PK\3\4":
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    "it is a TorchScript archive, which is code: save its tensors by "
                    "torch.save(torch.jit.load(path).state_dict(), other)"
                )
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of its member {damaged!r} is another")
    file.seek(0)


def _why_refused(message):
    """Returns in one line what torch.load says in many, but for its advice to run the code."""
    found = re.search(r"GLOBAL (\S+)", message)
    if found:
        return (
            f"it holds more than tensors, and loading that would run code ({found[1]}); if you "
            "trust it, load it with PyTorch and save its tensors by torch.save(model.state_dict(), "
            "path)"
        )
    reason = message.rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")
    return f"torch.load(weights_only=True) refuses it: {reason[0].strip()}"


def _quoted(names):
    names = list(names)
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
