"""Writes what torchvision's and PyTorch's operators return, for golden_test.py to compare with.

It needs PyTorch, torchvision and, because torchvision's wheel is linked to CUDA, gcc and nm:

    pip install torch==2.13.0
    pip install torchvision==0.28.0 --no-deps
    python tests/goldens/make_torchvision_goldens.py

Beside a PyTorch without CUDA, the CUDA functions that torchvision's extension names are replaced by
stubs that return 0; nothing here calls them. Each .npz holds float64 arrays named "case/array", in
PyTorch's layout, and, but for that of the modules, as "options" the options of the cases in JSON.
"""

import collections
import ctypes
import importlib.util
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent


def load_stubs():
    """Loads libraries that define the CUDA functions which torchvision's extension looks for."""
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    command = ["nm", "-D", "--undefined-only", f"{folder}/_C.so"]
    names = [line.split()[-1] for line in subprocess.check_output(command, text=True).splitlines()]
    runtime = {name.split("@")[0]: name.split("@")[1] for name in names if "@libcudart" in name}
    others = [name for name in names if "4cuda" in name]  # in the namespaces c10::cuda, at::cuda
    version = next(iter(runtime.values()))
    with tempfile.TemporaryDirectory() as made:
        script = pathlib.Path(made, "version")
        script.write_text(f"{version} {{ *; }};")
        for library, defined, flags in (
            (version, runtime, [f"-Wl,--version-script={script}"]),
            ("libc10_cuda.so", others, []),
            ("libtorch_cuda.so", [], []),
        ):
            code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in defined)
            path = f"{made}/{library}"
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}", *flags, "-o", path]
            subprocess.run(["gcc", "-xc", "-", *flags], input=code, text=True, check=True)
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


if not torch.cuda.is_available():
    load_stubs()

import torchvision  # noqa: E402

DEFORM_CONV = {
    "plain": {},
    "strided and padded": {"stride": (2, 1), "padding": (1, 2)},
    "dilated, masked": {"dilation": (1, 2), "padding": 1, "mask": True},
    "groups": {"groups": 2, "padding": (0, 1)},
    "offset groups, masked": {"offset_groups": 4, "padding": 1, "stride": 2, "mask": True},
    "all": {
        "groups": 2,
        "offset_groups": 2,
        "stride": (1, 2),
        "padding": (2, 1),
        "dilation": 2,
        "mask": True,
    },
    "offsets of zero": {"padding": 1, "scale": 0.0},
}
ROI_ALIGN = {
    f"{'aligned' if aligned else 'unaligned'}, {ratio} samples": {
        "aligned": aligned,
        "sampling_ratio": ratio,
        "spatial_scale": 0.5,
        "output_size": (2, 3),
    }
    for aligned in (True, False)
    for ratio in (0, 2)
}
PS_ROI_ALIGN = {
    f"{ratio} samples": {"sampling_ratio": ratio, "spatial_scale": 0.5, "output_size": (2, 3)}
    for ratio in (0, 2)
}
GRID_SAMPLE = {
    f"{rank}-D, {mode}, {padding}, {'corners' if corners else 'edges'}": {
        "mode": mode,
        "padding_mode": padding,
        "align_corners": corners,
    }
    for rank, modes in ((2, ("bilinear", "nearest", "bicubic")), (3, ("bilinear", "nearest")))
    for mode in modes
    for padding in ("zeros", "border", "reflection")
    for corners in (False, True)
}


def deform_conv(rng, *, groups=1, offset_groups=1, mask=False, scale=1.6, **options):
    image, weight = rng.normal(size=(2, 4, 4, 5)), rng.normal(size=(6, 4 // groups, 3, 2))
    bias = rng.normal(size=6)
    plain = torch.nn.functional.conv2d(tensor(image), tensor(weight), groups=groups, **options)
    taps, size = 6 * offset_groups, plain.shape[2:]
    arrays = {
        "input": image,
        "offset": scale * rng.uniform(-1, 1, (2, 2 * taps, *size)),
        "weight": weight,
        "bias": bias,
    }
    if mask:
        arrays["mask"] = rng.uniform(0, 2, (2, taps, *size))
    return run(torchvision.ops.deform_conv2d, arrays, rng, **options)


def roi_align(rng, **options):
    return run(torchvision.ops.roi_align, roi_arrays(rng, 3), rng, "input", **options)


def ps_roi_align(rng, **options):
    return run(torchvision.ops.ps_roi_align, roi_arrays(rng, 2 * 3 * 2), rng, "input", **options)


def roi_arrays(rng, channels):
    """Returns features of images of 12 x 14 pixels, and boxes of all sizes, some beyond them."""
    corners = rng.uniform(-3, 14, (7, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 9, (7, 2))], axis=1)
    boxes[0] = (-2, -3, 16, 15)
    boxes[1] = (20, 22, 25, 29)
    index = np.array([0, 1, 1, 0, 1, 0, 0])[:, None]
    return {
        "input": rng.normal(size=(2, channels, 6, 7)),
        "boxes": np.concatenate([index, boxes], axis=1),
    }


def grid_sample(rng, name, **options):
    rank = int(name[0])
    grid = rng.uniform(-1.8, 1.8, (2, *(2, 3, 2)[:rank], rank))
    grid.flat[:4] = (-1, 1, 1, -1)
    arrays = {"input": rng.normal(size=(2, 2, *(4, 5, 3)[:rank])), "grid": grid}
    return run(torch.nn.functional.grid_sample, arrays, rng, **options)


class DeformConv(torch.nn.Module):
    """torchvision's module with a convolution for the offsets and one for the mask."""

    def __init__(self):
        super().__init__()
        geometry = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)}
        self.conv = torchvision.ops.DeformConv2d(4, 6, groups=2, **geometry)
        self.offset = torch.nn.Conv2d(4, 2 * 2 * 6, **geometry)
        self.mask = torch.nn.Conv2d(4, 2 * 6, **geometry)

    def forward(self, x):
        return self.conv(x, self.offset(x), torch.sigmoid(self.mask(x)))


class Pack(torch.nn.Module):
    """The names, shapes and steps of mmcv's ModulatedDeformConv2dPack and DeformConv2dPack."""

    def __init__(self, modulated):
        super().__init__()
        self.modulated, self.geometry = modulated, {"padding": 2, "dilation": (2, 1)}
        self.weight = torch.nn.Parameter(torch.empty(6, 2, 3, 3))
        if modulated:
            self.bias = torch.nn.Parameter(torch.empty(6))
        channels = 2 * (3 if modulated else 2) * 9  # two deformable groups
        self.conv_offset = torch.nn.Conv2d(4, channels, 3, **self.geometry)

    def forward(self, x):
        bias = mask = None
        offset = self.conv_offset(x)
        if self.modulated:
            first, second, mask = torch.chunk(offset, 3, dim=1)
            offset = torch.cat((first, second), dim=1)
            bias, mask = self.bias, torch.sigmoid(mask)
        convolve = torchvision.ops.deform_conv2d
        return convolve(x, offset, self.weight, bias, mask=mask, **self.geometry)


def write_modules():
    """Writes the weights of modules under the names of their state_dict, "input" and "output"."""
    detection = torchvision.models.detection
    box = {
        "box_head": detection.faster_rcnn.TwoMLPHead(4 * 2 * 3, 5),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(5, 3),
    }
    mask = {
        "mask_head": detection.mask_rcnn.MaskRCNNHeads(4, [5], 1),
        "mask_predictor": detection.mask_rcnn.MaskRCNNPredictor(5, 6, 3),
    }
    modules = {
        "deform_conv": DeformConv(),
        "DCN": Pack(False),
        "DCNv2": Pack(True),
        "box": torch.nn.Sequential(collections.OrderedDict(box)),
        "mask": torch.nn.Sequential(collections.OrderedDict(mask)),
    }
    rng, arrays = np.random.default_rng(0), {}
    for name, module in modules.items():
        module.double()
        for each in module.parameters():
            each.data = tensor(np.round(rng.normal(0, 25, each.shape)) / 64)  # few bits: small
        image = rng.normal(size=(2, 4, *((2, 3) if name == "box" else (5, 6))))
        output = module(tensor(image))
        if isinstance(output, tuple):
            output = torch.cat(output, dim=1)  # scores, then boxes
        stored = {**module.state_dict(), "input": tensor(image), "output": output}
        arrays.update({f"{name}/{key}": each.detach().numpy() for key, each in stored.items()})
    save("torchvision_modules", arrays)


def run(operator, arrays, rng, *differentiated, **options):
    """Returns the arrays, the output, an upstream gradient, and the gradients to the arrays."""
    tensors = {name: tensor(array) for name, array in arrays.items()}
    for name in differentiated or tensors:
        tensors[name].requires_grad_()
    output = operator(**tensors, **options)
    upstream = rng.normal(size=output.shape)
    output.backward(tensor(upstream))
    gradients = {
        f"{name} gradient": each.grad.numpy()
        for name, each in tensors.items()
        if each.grad is not None
    }
    return {**arrays, "output": output.detach().numpy(), "upstream": upstream, **gradients}


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def write(name, cases, make):
    arrays = {"options": np.array(json.dumps(cases))}
    for seed, (case, options) in enumerate(cases.items()):
        rng = np.random.default_rng(seed)
        made = make(rng, case, **options) if make is grid_sample else make(rng, **options)
        arrays.update({f"{case}/{each}": array for each, array in made.items()})
    save(name, arrays)


def save(name, arrays):
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    write("torchvision_deform_conv2d", DEFORM_CONV, deform_conv)
    write("torchvision_roi_align", ROI_ALIGN, roi_align)
    write("torchvision_ps_roi_align", PS_ROI_ALIGN, ps_roi_align)
    write("torch_grid_sample", GRID_SAMPLE, grid_sample)
    write_modules()
