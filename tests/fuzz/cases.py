"""Calls of the raw ops, well formed and hostile: a seed makes one, always the same."""

import itertools
import math
import operator
from typing import NamedTuple

import ml_dtypes
import numpy as np

OPS = {
    "sample": "weighted_sample",
    "sample_grad_values": "weighted_sample_grad_values",
    "sample_grad_points": "weighted_sample_grad_points",
    "conv": "deformable_conv",
    "conv_grad": "deformable_conv_grad",
}
STORED = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
OTHER = [*STORED.values(), np.int32, np.int64, np.bool_]
UNITS = ("pixels", "edges", "centers")
VAST = [2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**52, 2**61, 2**62]
INTS = [-(2**63), -(2**31), -(2**31) + 1, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
MOST = 2**16  # elements of an input, but for bulky ones
HOSTILE = [np.nan, np.inf, -np.inf, 3e38, -3e38, 6e4, 1e-45, -1e-40, 6e-8, -0.0, 0.0, 1.0, -1.0]
POSITIONS = [np.nan, np.inf, -np.inf, 3e38, 1e9, -1e9, 2**31, -(2**31), 2**24 + 1, 1e-45, -0.0]


class Tensor(NamedTuple):
    """An array: its shape, which NumPy may be unable to hold when it is empty, and its elements."""

    shape: tuple[int, ...]
    flat: np.ndarray


class Case(NamedTuple):
    """One call. `inputs` holds a Tensor, or a list of them, for each of the op's arguments.

    If it holds `keep` as well, data decide a size: the call gets only those rows of the arguments
    named in `rows` that `keep` says. memory: MiB that may be allocated during the call, None for
    the usual limit. tame: sizes and values are such that another implementation must find the same
    up to rounding.
    """

    op: str
    inputs: dict
    attributes: dict
    rows: list
    memory: int | None
    tame: bool

    def __str__(self):
        """Says what the call is, without the elements."""
        parts = [self.op]
        for name, given in self.inputs.items():
            several = given if isinstance(given, list) else [given]
            shown = " ".join(f"{list(map(int, x.shape))}:{x.flat.dtype}" for x in several)
            parts.append(f"{name}={shown or 'none'}")
        if "before" in self.inputs:
            parts.append(f"before={self.inputs['before'].flat.tolist()}")
        parts += [f"{name}={value}" for name, value in self.attributes.items()]
        parts += [f"memory={self.memory}MiB"] if self.memory is not None else []
        return ", ".join(parts)


def make(seed, mode):
    """Returns the case of a seed in a mode; XLA is spared the largest."""
    rng = np.random.default_rng(seed)
    op = str(rng.choice(list(OPS)))
    draft = _draft(rng, op, mode)
    while mode == "jit" and not all(map(_fits_xla, itertools.chain(*draft.shapes.values()))):
        draft = _draft(rng, op, mode)
    inputs = {}
    for name, several in draft.shapes.items():
        made = [_fill(rng, draft, name, tuple(shape)) for shape in several]
        inputs[name] = made if name in draft.lists else made[0]
    if draft.kind == "small" and not draft.spoilt and rng.random() < 0.1:
        kept = rng.random(inputs[draft.rows[0]].shape[0]) < 0.7
        inputs["keep"] = Tensor(kept.shape, kept)
        draft.hostile = True
    memory = int(rng.choice([16, 64, 128, 256])) if draft.kind == "bulky" else None
    tame = draft.kind == "small" and not draft.spoilt and not draft.hostile
    return Case(op, inputs, draft.attributes, draft.rows, memory, tame)


def _draft(rng, op, mode):
    kind = str(rng.choice(["small", "vast", "bulky"], p=[0.895, 0.1, 0.005]))
    if kind == "bulky" and mode == "jit":
        kind = "small"
    draft = (_draft_conv if op.startswith("conv") else _draft_sample)(rng, op, kind)
    draft.spoilt = rng.random() < 0.4
    if draft.spoilt:
        for _ in range(rng.integers(1, 3)):
            rng.choice(_SPOILERS)(rng, draft)
    return draft


class _Draft:
    """A call before its elements are drawn: shapes and dtypes by argument, and attributes."""

    def __init__(self, rng, layout, sizes, free, kind, lists):
        if kind == "vast":
            _widen(rng, layout, sizes, free)
        self.kind = kind
        self.lists = lists
        rows = layout["points" if "points" in layout else "offset"][0][0]
        self.rows = [name for name, given in layout.items() if given and given[0][0] == rows]
        self.shapes = {
            name: [[_size(entry, sizes) for entry in shape] for shape in several]
            for name, several in layout.items()
        }
        stored = str(rng.choice(list(STORED)))
        wide = "float64" if stored == "float64" else "float32"
        narrow = ("values", "inputs", "kernel")
        self.dtypes = {name: STORED[stored if name in narrow else wide] for name in layout}
        if "kernel" in layout and "gradient" in layout:
            self.dtypes["gradient"] = STORED[stored]
        self.values = str(rng.choice(["plain", "integers", "hostile"], p=[0.6, 0.2, 0.2]))
        self.hostile = self.values == "hostile"
        self.positions = str(rng.choice(["inside", "integers", "edges", "hostile"]))
        self.index_limit = 0
        self.attributes = {}


def _size(entry, sizes):
    return math.prod(sizes.get(name, name) for name in entry)


def _small(rng):
    return int(rng.choice([0, 1, 2, 3, 4, 5, 7], p=[0.04, 0.2, 0.2, 0.2, 0.16, 0.1, 0.1]))


def _widen(rng, layout, sizes, free):
    """Sets some sizes to huge numbers, and others to 0 until every input can exist.

    Mostly sizes that are `free`: whatever they are, the call is well formed, or nearly so.
    """
    candidates, most = (free, 5) if rng.random() < 0.7 else (list(sizes), len(VAST))
    vast = [str(name) for name in rng.choice(candidates, rng.integers(1, 4))]
    for name in vast:
        sizes[name] = int(rng.choice(VAST[:most]))
    for shape in itertools.chain(*layout.values()):
        names = [name for entry in shape for name in entry if name in sizes]
        spare = [name for name in names if name in candidates and name not in vast] or names
        while names and not _fits([_size(entry, sizes) for entry in shape]):
            sizes[str(rng.choice(spare if rng.random() < 0.8 else names))] = 0


def _fits(shape):
    """Returns whether TensorFlow, which multiplies sizes in their order, can make such a tensor."""
    products = itertools.accumulate(shape, operator.mul)
    return math.prod(shape) <= MOST and max([0, *shape, *products]) < 2**63


def _fits_xla(shape):
    """Returns whether XLA survives such a tensor: it leaves out no 0 as it multiplies sizes."""
    return math.prod(max(size, 1) for size in shape) < 2**60


def _draft_sample(rng, op, kind):
    rank = int(rng.integers(1, 4))
    space = [f"size{axis}" for axis in range(rank)]
    names = ["images", *space, "unit", "groups", "rows", "queries", "points"]
    sizes = {name: _small(rng) for name in names}
    sizes["groups"] = int(rng.integers(1, 4))
    if rng.random() < 0.3:
        sizes["unit"] = int(rng.integers(1, 40))
    if kind == "bulky":
        sizes |= dict.fromkeys(["images", "groups", "rows", "queries", *space], 1)
        sizes |= {"unit": int(2 ** rng.integers(20, 25)), "points": 2}
    weighted, indexed = rng.random(2) < 0.5
    rows = "rows" if indexed else "images"
    layout = {
        "values": [[("images",), *((name,) for name in space), ("groups", "unit")]],
        "points": [[(rows,), ("queries",), ("groups",), ("points",), (rank,)]],
        "weights": [[(rows,), ("queries",), ("groups",), ("points",)]] * int(weighted),
        "image_index": [[(rows,)]] * int(indexed),
    }
    if op != "sample":
        layout["gradient"] = [[(rows,), ("queries",), ("groups", "unit")]]
    free = [name for name in names if name != "groups"]
    draft = _Draft(rng, layout, sizes, free, kind, ["weights", "image_index"])
    draft.dtypes["image_index"] = np.int64
    draft.index_limit = sizes["images"]
    draft.hostile |= not sizes["points"]  # which the portable form refuses
    draft.attributes["units"] = str(rng.choice(UNITS, p=[0.6, 0.2, 0.2]))
    return draft


def _draft_conv(rng, op, kind):
    rank = int(rng.integers(1, 4))
    axes = [(f"size{axis}", f"kernel{axis}", f"output{axis}") for axis in range(rank)]
    space, kernel, output = (list(names) for names in zip(*axes, strict=True))
    names = ["batch", *space, *output, *kernel, "unit", "parts", "groups", "filters"]
    sizes = {name: _small(rng) for name in names}
    sizes |= {name: int(rng.integers(1, 4)) for name in [*kernel, "unit", "filters"]}
    sizes |= {name: int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])) for name in ["parts", "groups"]}
    if rng.random() < 0.3:
        sizes[str(rng.choice(["unit", "filters"]))] = int(rng.integers(1, 40))
    if kind == "bulky":
        sizes |= dict.fromkeys(names, 1) | dict.fromkeys(kernel[:2], 3)
        sizes |= {name: int(rng.choice([512, 1024, 2048])) for name in ["unit", "filters"]}
    masked = rng.random() < 0.5
    pixels = [("batch",), *((name,) for name in output)]
    layout = {
        "inputs": [[("batch",), *((name,) for name in space), ("groups", "parts", "unit")]],
        "kernel": [[*((name,) for name in kernel), ("parts", "unit"), ("groups", "filters")]],
        "offset": [[*pixels, ("parts", *kernel, rank)]],
        "mask": [[*pixels, ("parts", *kernel)]] * int(masked),
        "before": [[(rank,)]],
    }
    if op != "conv":
        layout["gradient"] = [[*pixels, ("groups", "filters")]]
    draft = _Draft(rng, layout, sizes, ["batch", *space, *output], kind, ["mask"])
    draft.dtypes["before"] = np.int32
    for name in ("strides", "dilations"):
        draft.attributes[name] = rng.integers(1, 4, rank).tolist()
    if rng.random() < 0.1:
        name, axis = str(rng.choice(["strides", "dilations"])), rng.integers(rank)
        draft.attributes[name][axis] = int(rng.choice([2**31 - 1, 2**31 - 2, 2**24, 10**6]))
        draft.hostile = True
    return draft


# Ways to spoil a call


def _any_shape(rng, draft):
    given = [(name, at) for name, all_ in draft.shapes.items() for at in range(len(all_))]
    name, at = given[rng.integers(len(given))]
    return name, draft.shapes[name][at]


def _spoil_size(rng, draft):
    _, shape = _any_shape(rng, draft)
    if shape:
        axis = rng.integers(len(shape))
        shape[axis] = int(rng.choice([0, 1, shape[axis] + 1, max(0, shape[axis] - 1), *VAST[:7]]))
        _restrain(rng, shape)


def _spoil_rank(rng, draft):
    _, shape = _any_shape(rng, draft)
    axis = rng.integers(len(shape) + 1)
    if rng.random() < 0.5 and axis < len(shape):
        del shape[axis]
        _restrain(rng, shape)
    else:
        shape.insert(axis, int(rng.integers(3)))


def _restrain(rng, shape):
    """Sets sizes to 0 until the tensor can exist."""
    while not _fits(shape):
        shape[rng.integers(len(shape))] = 0


def _spoil_dtype(rng, draft):
    """Gives one argument another dtype, or all such as do not go together."""
    if rng.random() < 0.5:
        draft.dtypes[str(rng.choice(list(draft.dtypes)))] = OTHER[rng.integers(len(OTHER))]
        return
    stored, wide = rng.permutation(list(STORED))[:2]
    one = draft.dtypes[next(iter(draft.dtypes))]
    for name, dtype in draft.dtypes.items():
        if name not in ("before", "image_index"):
            draft.dtypes[name] = STORED[stored if dtype == one else wide]


def _spoil_count(rng, draft):
    name = str(rng.choice(draft.lists))
    model = (draft.shapes[name] or [[1]])[0]
    draft.shapes[name] = [list(model) for _ in range(rng.choice([0, 1, 2, 3]))]


def _spoil_attribute(rng, draft):
    name = str(rng.choice([*draft.attributes, "hostile"]))
    if name == "units":
        draft.attributes[name] = str(rng.choice(["", "pixel", "PIXELS", "1"]))
    elif name == "hostile" and "units" in draft.attributes:
        draft.index_limit = -1
    elif name == "hostile":
        draft.hostile = True
    elif rng.random() < 0.5 and draft.attributes[name]:
        draft.attributes[name][0] = int(rng.choice(INTS))
    else:
        draft.attributes[name] = [1] * int(rng.integers(6))


_SPOILERS = [_spoil_size, _spoil_rank, _spoil_dtype, _spoil_count, _spoil_attribute]


# Elements


def _fill(rng, draft, name, shape):
    """Returns a tensor of the shape with elements that suit the argument."""
    dtype = draft.dtypes[name]
    count = math.prod(shape)
    drawn = min(count, 4096)  # larger ones repeat themselves
    if name == "image_index":
        values = _indices(rng, draft.index_limit, drawn)
    elif name == "before":
        strange = rng.random() < 0.15
        values = rng.choice(INTS[1:8], drawn) if strange else rng.integers(-1, 3, drawn)
        draft.hostile |= strange
    elif name in ("points", "offset"):
        size = shape[-1] + 2 if shape else 1
        values = _places(rng, draft.positions, drawn, size)
    elif draft.values == "hostile":
        values = np.where(
            rng.random(drawn) < 0.2, rng.choice(HOSTILE, drawn), rng.standard_normal(drawn)
        )
    elif draft.values == "integers":
        values = rng.integers(-3, 4, drawn)
    else:
        values = rng.standard_normal(drawn)
    with np.errstate(all="ignore"):
        return Tensor(shape, np.resize(values.astype(dtype), count))


def _indices(rng, limit, count):
    """Returns indices below the limit, and sometimes one that is not; -1 asks for that."""
    values = rng.integers(0, min(max(limit, 1), 2**62), count)
    if count and (limit < 0 or rng.random() < 0.05):
        values[rng.integers(count)] = rng.choice([-1, limit, 2**31, 2**32, 2**63 - 1, -(2**63)])
    return values


def _places(rng, kind, count, size):
    """Returns coordinates in an axis of about the size, or offsets."""
    if kind == "integers":
        return rng.integers(-2, size + 2, count)
    places = rng.uniform(-1.5, size + 0.5, count)
    if kind == "inside":
        return places
    edges = [-1.0, -0.5, 0.0, size - 1.0, size - 0.5, float(size)]
    if kind == "edges":
        near = np.concatenate([edges, *(np.nextafter(np.float32(edges), way) for way in (-9, 99))])
        return rng.choice(near, count)
    return np.where(rng.random(count) < 0.3, rng.choice([*POSITIONS, *edges], count), places)
