"""Writes addons.npz: what TensorFlow Addons 0.23 returns. Run by `make goldens-addons`.

The file holds of each case "case/argument0", "case/argument1", ...; "case/result0", ...; and
"case/gradient0", ... to the arguments that have one, of the results' sum weighted by `weights_of`,
in float64, those of CorrelationCost in float32, and away from whole positions. As JSON it holds
"cases", each case's function and options, "signatures", those of the functions, and "traced", which
of them are `tf.function`s.
"""

import inspect
import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

FILE = pathlib.Path(__file__).with_name("addons.npz")
BATCH, HEIGHT, WIDTH, CHANNELS = 2, 6, 7, 2
IMAGES = (BATCH, HEIGHT, WIDTH, CHANNELS)
COLOURS = (HEIGHT, WIDTH, 3)  # of the images that Addons shears
RANKS = {2: (HEIGHT, WIDTH), 3: (HEIGHT, WIDTH, CHANNELS), 4: IMAGES}
FILL_MODES = ("constant", "nearest", "reflect", "wrap")

rng = np.random.default_rng(0)
cases, fields = {}, {}
# CorrelationCost adds up its gradients in several threads, without waiting for one another.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.get_logger().setLevel("ERROR")  # Addons retraces for every case


def main():
    """Runs every case and writes the file."""
    resampler()
    interpolate_bilinear()
    dense_image_warp()
    interpolate_spline()
    sparse_image_warp()
    transform()
    translate()
    rotate()
    shears()
    transforms_alone()
    correlation_cost()
    names = sorted({function for function, _ in cases.values()})
    signatures = {name: signature_of(function_of(name)) for name in names}
    traced = [name for name in names if hasattr(function_of(name), "get_concrete_function")]
    listed = {"cases": cases, "signatures": signatures, "traced": traced}
    listed = {name: json.dumps(each) for name, each in listed.items()}
    np.savez_compressed(FILE, **listed, **fields)
    print(f"{FILE.name}: {len(cases)} cases, {FILE.stat().st_size / 1024:.0f} KiB")


def record(case, function, *arguments, differentiate=False, **options):
    """Adds a case to the file."""
    case = f"{function}: {case}"
    assert case not in cases, case
    cases[case] = function, options
    tensors = [tf.constant(each) for each in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        if function == "CorrelationCost":
            results = tfa.layers.CorrelationCost(**options)(tensors)
        else:
            results = function_of(function)(*tensors, **options)
        results = results if isinstance(results, tuple) else (results,)
        total = tf.add_n(
            [tf.reduce_sum(each * tf.cast(weights_of(each.shape), each.dtype)) for each in results]
        )
    for index, argument in enumerate(arguments):
        fields[f"{case}/argument{index}"] = argument
    for index, result in enumerate(results):
        fields[f"{case}/result{index}"] = result.numpy()
    for index, gradient in enumerate(tape.gradient(total, tensors) if differentiate else ()):
        if gradient is not None:
            fields[f"{case}/gradient{index}"] = gradient.numpy()


def function_of(name):
    return getattr(tfa.image if hasattr(tfa.image, name) else tfa.layers, name)


def signature_of(function):
    """Returns pairs of an argument's name and default, which is a list: empty if there is none."""
    return [
        (name, [] if each.default is each.empty else [each.default])
        for name, each in inspect.signature(function).parameters.items()
        if each.kind is not each.VAR_KEYWORD
    ]


def weights_of(shape):
    """Returns small whole numbers, the same in every version of NumPy."""
    return (np.arange(np.prod(shape)) * 7 % 11 - 5).reshape(shape)


def images_of(shape=IMAGES, dtype="float64"):
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 256, shape).astype(dtype)
    return (rng.integers(-128, 128, shape) / 64).astype(dtype)


def fractional(shape, low, high):
    """Returns numbers between whole ones, no nearer than 0.1."""
    return rng.integers(low, high, shape) + rng.uniform(0.1, 0.9, shape)


def positions(shape, first, second):
    """Returns fractional positions from three pixels before the image to three behind it."""
    return np.stack([fractional(shape, -3, first + 2), fractional(shape, -3, second + 2)], -1)


def whole_positions(first, second):
    """Returns all whole and half positions from two pixels before the image to two behind it."""
    steps = [np.arange(-4, 2 * size + 3) / 2 for size in (first, second)]
    return np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(1, -1, 2)


def resampler():
    for name, inner in {"one point": (), "a row": (9,), "a plane": (4, 5)}.items():
        warp = positions((BATCH, *inner), WIDTH, HEIGHT) if inner else fractional((BATCH, 2), 0, 5)
        record(name, "resampler", images_of(), warp, differentiate=True)
    warp = whole_positions(WIDTH, HEIGHT)
    record("whole positions", "resampler", images_of((1, *IMAGES[1:])), warp)
    for dtype in ("float32", "float16"):
        warp = positions((BATCH, 5), WIDTH, HEIGHT).astype(dtype)
        record(dtype, "resampler", images_of(dtype=dtype), warp)


def interpolate_bilinear():
    for indexing in ("ij", "xy"):
        sizes = (HEIGHT, WIDTH) if indexing == "ij" else (WIDTH, HEIGHT)
        points = positions((BATCH, 9), *sizes)
        arguments = "interpolate_bilinear", images_of(), points
        record(indexing, *arguments, indexing=indexing, differentiate=True)
        arguments = "interpolate_bilinear", images_of((1, *IMAGES[1:])), whole_positions(*sizes)
        record(f"{indexing}, whole positions", *arguments, indexing=indexing)
    for dtype in ("float32", "float16"):
        points = positions((BATCH, 5), HEIGHT, WIDTH).astype("float32")
        record(dtype, "interpolate_bilinear", images_of(dtype=dtype), points)
    images, points = weights_of(IMAGES) / 8, whole_positions(HEIGHT, WIDTH) + 0.2
    record("one set for all", "interpolate_bilinear", images, points, differentiate=True)


def dense_image_warp():
    for name, size in {"odd and even": (HEIGHT, WIDTH), "the smallest": (2, 2)}.items():
        flow = fractional((BATCH, *size, 2), -4, 4)
        images = images_of((BATCH, *size, CHANNELS))
        record(name, "dense_image_warp", images, flow, differentiate=True)
    record("no flow", "dense_image_warp", images_of(), np.zeros((BATCH, HEIGHT, WIDTH, 2)))
    for dtype in ("float32", "float16"):
        flow = fractional((BATCH, HEIGHT, WIDTH, 2), -2, 2).astype("float32")
        record(f"{dtype}, float32 flow", "dense_image_warp", images_of(dtype=dtype), flow)


def interpolate_spline():
    for order in range(1, 7):
        for dimensions, weight in ((1, 0.0), (2, 0.0), (2, 0.1), (3, 0.0)):
            points = rng.uniform(-1, 1, (BATCH, 8, dimensions))
            points[..., 0] = np.linspace(-1, 1, 8) + 0.1 * points[..., 0]  # no two close together
            record(
                f"order {order}, {dimensions}-D, regularization {weight}",
                "interpolate_spline",
                points,
                rng.normal(size=(BATCH, 8, 3)),
                rng.uniform(-1.5, 1.5, (BATCH, 5, dimensions)),
                order=order,
                regularization_weight=weight,
                differentiate=True,
            )


def control_points(batch):
    """Returns where five points of an image are and where they are to be."""
    cells = np.array([(0, 0), (0, 4), (2, 2), (3, 5), (4, 1)])
    source = cells + rng.uniform(0.1, 0.9, (batch, 5, 2))
    return source, source + rng.uniform(-0.7, 0.7, source.shape)


def sparse_image_warp():
    for rank, shape in RANKS.items():
        arguments = images_of(shape), *control_points(BATCH if rank == 4 else 1)
        record(f"rank {rank}", "sparse_image_warp", *arguments, differentiate=True)
    for order, weight, boundary in ((1, 0.0, 1), (2, 0.05, 2), (3, 0.0, 4)):
        record(
            f"order {order}, regularization {weight}, {boundary} boundary points",
            "sparse_image_warp",
            images_of(),
            *control_points(BATCH),
            interpolation_order=order,
            regularization_weight=weight,
            num_boundary_points=boundary,
            differentiate=True,
        )


def transforms_of(count, projective=0.05):
    """Returns transforms with positions far outside the images."""
    theta = np.array([1.0, 0, 0, 0, 1, 0, 0, 0]) + rng.uniform(-0.9, 0.9, (count, 8))
    theta[:, (2, 5)] = rng.uniform(-9, 9, (count, 2))
    theta[:, 6:] = rng.uniform(-projective, projective, (count, 2))
    return theta.astype("float32")


def transform():
    kinds = ("uint8", "int32", "int64", "float16", "float32", "float64")
    for fill_mode in FILL_MODES:
        for interpolation in ("nearest", "bilinear"):
            options = {"interpolation": interpolation, "fill_mode": fill_mode}
            for dtype in kinds if fill_mode == "constant" else ("uint8", "float32"):
                name = f"{fill_mode}, {interpolation}, {dtype}"
                record(name, "transform", images_of(dtype=dtype), transforms_of(BATCH), **options)
            # Whole and half rows, every one from 13 before the image to 13 behind it.
            images = images_of((1, 4, 3, 1), "float32")
            halves = np.array([1, 0, -2, 0, 0.5, -13, 0, 0], "float32")
            record(
                f"{fill_mode}, {interpolation}, whole and half positions",
                "transform",
                images,
                halves,
                output_shape=[60, 7],
                **options,
            )
    for rank, shape in RANKS.items():
        theta = transforms_of(1)[0]
        record(f"rank {rank}, one transform", "transform", images_of(shape, "float32"), theta)
    options = {"output_shape": [4, 9], "interpolation": "bilinear"}
    for dtype, fill in (("float32", -1.5), ("uint8", 7.9), ("float16", 2.3)):
        arguments = images_of(dtype=dtype), transforms_of(BATCH)
        record(f"filled, {dtype}", "transform", *arguments, fill_value=fill, **options)
    for fill_mode in FILL_MODES:  # a horizon on whole pixels: x = 2 has no position
        arguments = images_of(dtype="float32"), np.array([1, 0.3, 0, 0.2, 1, 0, -0.5, 0], "float32")
        record(f"horizon, {fill_mode}", "transform", *arguments, fill_mode=fill_mode, fill_value=3)


def translate():
    for rank, shape in RANKS.items():
        count = (BATCH,) if rank == 4 else ()
        shifts = fractional((*count, 2), -3, 3).astype("float32")
        for interpolation in ("nearest", "bilinear"):
            record(
                f"rank {rank}, {interpolation}",
                "translate",
                images_of(shape),
                shifts,
                interpolation=interpolation,
                differentiate=True,
            )
    for fill_mode in FILL_MODES:
        for dtype in ("uint8", "float32"):
            options = {"fill_mode": fill_mode, "interpolation": "bilinear", "fill_value": 4.0}
            arguments = images_of(dtype=dtype), np.array([[-2.5, 3.25], [1, -9]], "float32")
            record(f"{fill_mode}, {dtype}", "translate", *arguments, **options)


def rotate():
    for rank, shape in RANKS.items():
        angles = rng.uniform(-4, 4, BATCH if rank == 4 else ()).astype("float32")
        for interpolation in ("nearest", "bilinear"):
            record(
                f"rank {rank}, {interpolation}",
                "rotate",
                images_of(shape, "float32"),
                angles,
                interpolation=interpolation,
            )
    for turns in range(-2, 3):  # whole and half positions, but for rounding
        angle = np.float32(turns * np.pi / 2)
        record(f"{turns} quarter turns", "rotate", images_of((7, 7, 2), "uint8"), angle)
    for fill_mode in FILL_MODES:
        for dtype in ("uint8", "int32", "float16", "float64"):
            options = {"fill_mode": fill_mode, "interpolation": "bilinear", "fill_value": 4.0}
            arguments = images_of(dtype=dtype), np.array([0.7, -2], "float32")
            record(f"{fill_mode}, {dtype}", "rotate", *arguments, **options)


def shears():
    """And translate_xy, which fills as they do."""
    for dtype in ("uint8", "int32", "float32"):
        for name in ("shear_x", "shear_y"):
            for level in (0.37, -1.2, 0.5):
                record(f"{dtype}, {level}", name, images_of(COLOURS, dtype), level=level, replace=9)
        image = images_of(COLOURS, dtype)
        record(f"{dtype}, colour", "shear_x", image, level=0.37, replace=[1, 2, 3])
        for shift in ([2, -1], [-1.5, 0.6], [0.0, 9.0]):
            image = images_of(COLOURS, dtype)
            options = {"translate_to": shift, "replace": [3, 2, 1]}
            record(f"{dtype}, {shift}", "translate_xy", image, **options)


def transforms_alone():
    """What makes transforms and composes them."""
    angles = rng.uniform(-4, 4, 5).astype("float32")
    for name, each in {"one": angles[0], "several": angles}.items():
        options = {"image_height": HEIGHT, "image_width": WIDTH}
        record(name, "angles_to_projective_transforms", each, **options)
    sizes = np.arange(2, 7, dtype="float32"), np.arange(12, 7, -1, dtype="float32")
    record("sizes", "angles_to_projective_transforms", angles, *sizes)
    shifts = rng.uniform(-9, 9, (5, 2)).astype("float32")
    for name, each in {"one": shifts[0], "several": shifts}.items():
        record(name, "translations_to_projective_transforms", each)
    several = [transforms_of(count).tolist() for count in (3, 1, 3)]
    for count in (1, 2, 3):
        record(f"{count}", "compose_transforms", transforms=several[:count])
    record("one", "compose_transforms", transforms=[each[0] for each in several])


def correlation_cost():
    """Its stride_1 is 1, or its pad 0: its CPU kernel multiplies one with the other."""
    names = "kernel_size", "max_displacement", "stride_1", "stride_2", "pad"
    for each in (
        (1, 2, 1, 1, 0),
        (1, 4, 1, 2, 4),
        (3, 3, 1, 2, 4),
        (5, 1, 1, 1, 3),
        (3, 1, 2, 1, 0),
    ):
        for data_format in ("channels_last", "channels_first"):
            first, second = images_of(dtype="float32"), images_of(dtype="float32")
            if data_format == "channels_first":
                first, second = (np.transpose(maps, [0, 3, 1, 2]) for maps in (first, second))
            record(
                f"{each}, {data_format}",
                "CorrelationCost",
                first,
                second,
                differentiate=each[2] == 1,
                **dict(zip(names, each, strict=True)),
                data_format=data_format,
            )


if __name__ == "__main__":
    main()
