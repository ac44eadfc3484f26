"""Uses every public name as a user's code would. mypy checks it strictly, and nobody runs it.

A line with `type: ignore` is a mistake that mypy must find: it complains if there is nothing to
ignore. There is a wrong type for every function whose arguments are not all tensors, because mypy
takes what a decorator returns for typed, whatever it was given.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf

import tf_deform as tfd

IMAGES = np.zeros([2, 9, 7, 3], np.float32)
BOXES, INDEX = tf.zeros([4, 4]), [0, 1, 1, 0]


def sampling() -> None:
    grid = tfd.ops.affine_grid(tf.eye(2, 3)[None], (4, tf.constant(5)), align_corners=True)
    grid = tfd.ops.projective_grid(tf.eye(3)[None], [4, 5])
    grid = tfd.ops.thin_plate_spline_grid(tf.zeros([1, 9, 2]), (4, 5), control_points=3)
    edges = [[x, y] for y in (-1, 1) for x in (-1, 0, 1)]
    tfd.ops.thin_plate_spline_grid(tf.zeros([1, 6, 2]), (4, 5), control_points=np.array(edges))
    tfd.ops.thin_plate_spline_grid(IMAGES, (4, 5), control_points="4")  # type: ignore[arg-type]
    tfd.ops.grid_sample(IMAGES, grid, interpolation="bicubic", padding_mode="border")
    tfd.ops.sample(keras.Input((9, 7, 3)), grid, interpolation="nearest")
    tfd.ops.weighted_sample(IMAGES, grid, weights=None, image_index=INDEX)
    tfd.ops.warp(IMAGES, tfd.ops.integrate_velocity(IMAGES, steps=3), padding_mode="reflection")
    tfd.ops.correlation(IMAGES, IMAGES, max_displacement=4, displacement_stride=2, padding=4)
    tfd.ops.correlation_lookup(IMAGES, keras.Input((9, 7, 3)), grid, radius=4, num_levels=2)
    tfd.ops.pyramid_lookup(tfd.ops.correlation_pyramid(IMAGES, IMAGES), grid, radius=4)
    tfd.ops.correlation_lookup(IMAGES, IMAGES, grid)  # type: ignore[call-arg]
    tfd.ops.correlation_pyramid(IMAGES, IMAGES, num_levels="4")  # type: ignore[arg-type]
    tfd.ops.pyramid_lookup(4, grid, radius=4)  # type: ignore[arg-type]
    tfd.ops.correlation(IMAGES, IMAGES)  # type: ignore[call-arg]
    tfd.ops.correlation(IMAGES, IMAGES, max_displacement=0.5)  # type: ignore[arg-type]
    tfd.ops.sample(IMAGES, grid, interpolation="cubic")  # type: ignore[arg-type]
    tfd.ops.grid_sample(IMAGES, grid, padding_mode="same")  # type: ignore[arg-type]
    tfd.ops.warp(IMAGES, grid, "nearest")  # type: ignore[call-arg]
    tfd.ops.affine_grid(IMAGES, 4)  # type: ignore[arg-type]
    tfd.ops.projective_grid(IMAGES, 4)  # type: ignore[arg-type]
    tfd.ops.thin_plate_spline_grid(IMAGES, (4, 5), align_corners="no")  # type: ignore[arg-type]
    tfd.ops.integrate_velocity(IMAGES, steps=0.5)  # type: ignore[arg-type]
    tfd.ops.weighted_sample(IMAGES, grid, groups=2)  # type: ignore[call-arg]
    tfd.ops.warp(IMAGES, grid, interpolation="cubic")  # type: ignore[arg-type]


def flows() -> None:
    inverse, residual = tfd.ops.invert_flow(IMAGES, steps=5)
    flow = tfd.ops.compose_flows(inverse, keras.Input((9, 7, 2)))
    tfd.ops.warp_points(residual, tfd.ops.resize_flow(flow, (4, tf.constant(5))))
    tfd.ops.jacobian_determinant(flow)
    tfd.ops.invert_flow(IMAGES, steps=0.5)  # type: ignore[arg-type]
    tfd.ops.compose_flows(flow)  # type: ignore[call-arg]
    tfd.ops.resize_flow(flow, 4)  # type: ignore[arg-type]
    tfd.ops.jacobian_determinant(flow, "forward")  # type: ignore[call-arg]
    tfd.ops.warp_points(points=flow)  # type: ignore[call-arg]


def convolutions() -> None:
    kernel, offset = tf.zeros([3, 3, 3, 8]), tf.zeros([2, 9, 7, 18])
    tfd.ops.deformable_conv(IMAGES, kernel, offset, strides=(1, 1), padding=[(1, 1), (1, 1)])
    tfd.ops.dcnv3(IMAGES, offset, offset, 3, padding="same", remove_center=True)
    tfd.ops.dcnv4(IMAGES, offset, (3, 3), groups=1, padding=1, offset_scale=0.5)
    tfd.ops.multi_scale_deformable_attention([IMAGES, IMAGES], offset, offset)
    tfd.ops.multi_scale_deformable_attention(
        [IMAGES, IMAGES], offset, offset, num_points=[3, 6], method="discrete"
    )
    tfd.ops.deformable_conv(IMAGES, kernel, offset, padding="full")  # type: ignore[arg-type]
    tfd.ops.dcnv3(IMAGES, offset, offset, 3.0)  # type: ignore[arg-type]
    tfd.ops.dcnv4(IMAGES, offset, 3)  # type: ignore[call-arg]
    tfd.ops.dcnv4(IMAGES, offset, 3, groups="1")  # type: ignore[arg-type]
    tfd.ops.multi_scale_deformable_attention(1, offset, offset)  # type: ignore[arg-type]


def regions() -> None:
    tfd.ops.roi_align(IMAGES, BOXES, INDEX, 7, spatial_scale=1 / 16, aligned=False)
    tfd.ops.roi_align(IMAGES, BOXES, INDEX, 7, reduction="sum")  # type: ignore[arg-type]
    tfd.ops.roi_align_rotated(IMAGES, BOXES, INDEX, 7, angle_unit="degrees", reduction="max")
    tfd.ops.multi_scale_roi_align([IMAGES], BOXES, INDEX, (7, 5), scales=[0.25], canonical_level=3)
    tfd.ops.ps_roi_align(IMAGES, BOXES, INDEX, 1, spatial_scale=tf.constant(0.5))
    tfd.ops.deformable_roi_pool(IMAGES, BOXES, INDEX, None, 3, mask=tf.ones([4, 3, 3]), gamma=0.2)
    sizes = {"output_channels": 3, "group_size": 1, "part_size": 3}
    tfd.ops.deformable_ps_roi_pool(IMAGES, BOXES, INDEX, None, 3, **sizes, trans_std=0.2)
    tfd.ops.roi_align(IMAGES, BOXES, INDEX, 7.5)  # type: ignore[arg-type]
    tfd.ops.roi_align(IMAGES, BOXES, INDEX, 7, sampling_ratio="2")  # type: ignore[arg-type]
    tfd.ops.multi_scale_roi_align([IMAGES], BOXES, INDEX, 7)  # type: ignore[call-arg]
    tfd.ops.multi_scale_roi_align([IMAGES], BOXES, INDEX, 7, scales=1)  # type: ignore[arg-type]
    tfd.ops.ps_roi_align(IMAGES, BOXES, INDEX, None)  # type: ignore[arg-type]
    tfd.ops.deformable_roi_pool(IMAGES, BOXES, INDEX, None, 0.5)  # type: ignore[arg-type]
    tfd.ops.deformable_ps_roi_pool(IMAGES, BOXES, INDEX, None, 0.5, **sizes)  # type: ignore[arg-type]


def convolution_layers() -> None:
    tfd.layers.DeformableConv1D(4, 3, padding="causal", name="a", dtype="mixed_float16")
    layer = tfd.layers.DeformableConv2D(4, (3, 2), 2, [(0, 1), (1, 2)], activation=tf.nn.relu)
    layer.enable_lora(2, lora_alpha=4)
    offset, modulation = layer.predict_offset(IMAGES, guide=IMAGES)
    layer.sampling_positions(IMAGES, offset, modulation)
    tfd.layers.DeformableConv3D(4, 3, max_offset=2, offset_lr_multiplier=0.1, lora_rank=2)
    tfd.layers.DCNv3(3, groups=2, depthwise_kernel_size=(5, 3), activation="silu").build(
        (1, 9, 7, 4)
    )
    tfd.layers.DCNv4(pointwise=False, kernel_initializer=keras.initializers.Zeros())
    tfd.layers.DeformableConv1D("4", 3)  # type: ignore[arg-type]
    tfd.layers.DeformableConv2D(4, 3, padding="full")  # type: ignore[arg-type]
    tfd.layers.DeformableConv3D(4, 3, data_format="first")  # type: ignore[arg-type]
    tfd.layers.DCNv3(groups=0.5)  # type: ignore[arg-type]
    tfd.layers.DCNv4(output_bias=None)  # type: ignore[arg-type]


def other_layers() -> None:
    tfd.layers.RoIAlign(7, spatial_scale=1 / 16).sampling_boxes(IMAGES, BOXES[None])
    tfd.layers.RoIAlignRotated(7, clockwise=True).sampling_boxes(IMAGES, BOXES[None])
    tfd.layers.RoIAlignRotated(7, angle_unit="turns")  # type: ignore[arg-type]
    tfd.layers.MultiScaleRoIAlign((7, 5), scales=[0.25, 0.125], bounding_box_format="rel_xyxy")
    tfd.layers.PSRoIAlign(3, 5)
    tfd.layers.DeformableRoIPooling(7, offset_units=[32])
    tfd.layers.DeformablePSRoIPooling(7, 5, group_size=3, part_size=7)
    attention = tfd.layers.MultiScaleDeformableAttention(8, 4, num_points=2)
    tfd.layers.MultiScaleDeformableAttention(8, 4, num_points=(3, 6, 3), method="discrete")
    attention.sampling_weights(IMAGES)
    tfd.layers.SpatialTransformer(output_size=32, transformation="similarity")
    tfd.layers.SpatialTransformer(
        None, "thin_plate_spline", control_points=[(0, 1), (1, 0), (1, 1)]
    )
    tfd.layers.GridSample(padding_mode="border")(IMAGES, BOXES)
    tfd.layers.DenseImageWarp(interpolation="nearest")
    tfd.layers.VelocityIntegration(5, name="flow")(IMAGES)
    tfd.layers.RoIAlign(7, bounding_box_format="yx")  # type: ignore[arg-type]
    tfd.layers.MultiScaleRoIAlign(7)  # type: ignore[call-arg]
    tfd.layers.PSRoIAlign(3)  # type: ignore[call-arg]
    tfd.layers.DeformableRoIPooling(7, offset_units=32)  # type: ignore[arg-type]
    tfd.layers.DeformablePSRoIPooling(7, 5, group_size=3)  # type: ignore[call-arg]
    tfd.layers.MultiScaleDeformableAttention(8)  # type: ignore[call-arg]
    tfd.layers.SpatialTransformer(None, "rotation")  # type: ignore[arg-type]
    tfd.layers.GridSample("nearest")  # type: ignore[call-arg]
    tfd.layers.DenseImageWarp(interpolation="cubic")  # type: ignore[arg-type]
    tfd.layers.VelocityIntegration(0.5)  # type: ignore[arg-type]


def addons() -> None:
    points = tf.zeros([2, 5, 2])
    tfd.addons.resampler(IMAGES, points, "resampler")
    tfd.addons.interpolate_bilinear(IMAGES, points, indexing="xy")
    tfd.addons.dense_image_warp(IMAGES, tf.zeros([2, 9, 7, 2]))
    warped, flow = tfd.addons.sparse_image_warp(IMAGES, points, points, num_boundary_points=2)
    tfd.addons.interpolate_spline(points, points, points, 2, regularization_weight=0.1)
    tfd.addons.transform(warped, tf.zeros([8]), "bilinear", "wrap", output_shape=(4, 5))
    tfd.addons.translate(flow, [1.0, 2.0], fill_mode="reflect", fill_value=1)
    tfd.addons.CorrelationCost(1, 4, 1, 2, pad=4, data_format="channels_last")([IMAGES, IMAGES])
    tfd.addons.CorrelationCost(1, 4, 1, 2, 4, "NHWC")  # type: ignore[arg-type]
    tfd.addons.rotate(IMAGES, [0.1, 0.2], "bilinear", fill_value=0.5)
    tfd.addons.shear_x(IMAGES[0], 0.5, replace=9)
    tfd.addons.shear_y(IMAGES[0], tf.constant(0.5), [1, 2, 3])
    tfd.addons.translate_xy(IMAGES[0], [1, 2], replace=9)
    turns = tfd.addons.angles_to_projective_transforms([0.1, 0.2], 9, tf.constant(7.0))
    moves = tfd.addons.translations_to_projective_transforms([1.0, 2.0], "moves")
    tfd.addons.compose_transforms([turns, moves], name="both")
    tfd.addons.rotate(IMAGES, 0.1, "bicubic")  # type: ignore[arg-type]
    tfd.addons.shear_x(IMAGES, 0.5)  # type: ignore[call-arg]
    tfd.addons.shear_y(IMAGES, 0.5)  # type: ignore[call-arg]
    tfd.addons.translate_xy(IMAGES, points)  # type: ignore[call-arg]
    tfd.addons.angles_to_projective_transforms(0.1, 9)  # type: ignore[call-arg]
    tfd.addons.translations_to_projective_transforms(points, 1)  # type: ignore[arg-type]
    tfd.addons.compose_transforms(1)  # type: ignore[arg-type]
    tfd.addons.resampler(IMAGES, points, 1)  # type: ignore[arg-type]
    tfd.addons.interpolate_bilinear(IMAGES, points, "yx")  # type: ignore[arg-type]
    tfd.addons.dense_image_warp(IMAGES, points, 1)  # type: ignore[arg-type]
    tfd.addons.sparse_image_warp(IMAGES, points, points, 0.5)  # type: ignore[arg-type]
    tfd.addons.interpolate_spline(points, points, points, "2")  # type: ignore[arg-type]
    tfd.addons.transform(IMAGES, points, fill_mode="zeros")  # type: ignore[arg-type]
    tfd.addons.translate(IMAGES, points, "bicubic")  # type: ignore[arg-type]


def weights(layer: keras.Layer, path: pathlib.Path) -> None:
    arrays: dict[str, np.ndarray] = tfd.convert.read(path)
    tfd.convert.load_torchvision(layer, arrays, "a.", offset_prefix="b.", pooled_size=(7, 7))
    tfd.convert.load_mmcv(layer, {"weight": BOXES, "bias": INDEX}, "a.")
    tfd.convert.load_dcn(layer, "dcn.pth", prefix="a.")
    tfd.convert.read(3)  # type: ignore[arg-type]
    tfd.convert.load_torchvision(layer, arrays, pooled_size=7)  # type: ignore[arg-type]
    tfd.convert.load_mmcv(layer, [BOXES])  # type: ignore[arg-type]
    tfd.convert.load_dcn(layer, arrays, None)  # type: ignore[arg-type]


def boxes() -> None:
    tfd.boxes.pad([BOXES, []], size=5)
    tfd.boxes.pad(BOXES, "5")  # type: ignore[arg-type]


def losses(model: keras.Model) -> None:
    alike = tfd.losses.NormalizedCrossCorrelation((9, 9, 5), epsilon=1e-4, reduction="sum")
    smooth = tfd.losses.FlowSmoothness("l1", name="smooth", dtype="float64")
    model.compile(loss=[alike, smooth], loss_weights=[1, 0.1])
    tfd.losses.NormalizedCrossCorrelation("9")  # type: ignore[arg-type]
    tfd.losses.NormalizedCrossCorrelation(reduction="average")  # type: ignore[arg-type]
    tfd.losses.FlowSmoothness("l3")  # type: ignore[arg-type]


def tools(model: keras.Model, folder: pathlib.Path) -> None:
    monitor = tfd.callbacks.OffsetMonitor({"images": IMAGES}, log_dir=folder, pictures=2)
    shares: list[float] = [each.dead_offsets for each in monitor.statistics.values()]
    signature = keras.InputSpec(shape=(None, 9, 7, 3))
    tfd.export_onnx(model, folder / "model.onnx", input_signature=[signature])
    tfd.export_onnx(model, "model.onnx", check=True, sample={"images": IMAGES})
    tfd.export_litert(model, folder / "model.tflite", quantize="float16", sample=[IMAGES])
    tfd.export_litert(model, folder / "model.tflite", quantize="int8", representative=[IMAGES])
    tfd.export_saved_model(model, str(folder), image_size=(9, 7), warmup=[IMAGES])
    with tfd.use_implementation("portable"):
        tfd.set_implementation("auto")
    devices: tuple[str, ...] = tfd.compiled_status().devices
    print(shares, devices, tfd.__version__)
    tfd.callbacks.OffsetMonitor(IMAGES, "logs")  # type: ignore[call-arg]
    tfd.export_saved_model(model, "1", implementation="auto")  # type: ignore[arg-type]
    tfd.export_onnx(model, None)  # type: ignore[arg-type]
    tfd.set_implementation("cuda")  # type: ignore[arg-type]
    tfd.use_implementation()  # type: ignore[call-arg]


def backbones(model: keras.Model) -> None:
    paths: list[tuple[str, str]] = tfd.accelerate(model, sample=[IMAGES])
    tfd.accelerate(model, undo=True).extend(paths)
    tfd.accelerate(model, undo="yes")  # type: ignore[arg-type]
    model = tfd.deformable(model, ["conv5", model.layers[3]], train_offsets=False, modulated=True)
    tfd.deformable(model, lambda layer: layer.name.startswith("conv"), verbose=False)
    tfd.deformable(model, verbose="no")  # type: ignore[arg-type]


def pictures() -> None:
    image = IMAGES[0]
    ax = tfd.visualization.plot_taps(image, tf.zeros([1, 9, 7, 1, 9, 2]), pixel=[(2, 2), (5, 3)])
    tfd.visualization.plot_bins(image, BOXES, (IMAGES, BOXES), roi=1, colour="k", numbered=False)
    tfd.visualization.plot_grid(image, tf.zeros([1, 4, 5, 2]), align_corners=True, lines=4)
    tfd.visualization.plot_attention(image, tf.zeros([1, 1, 8, 2, 4, 2]), query=0).set_title("")
    tfd.visualization.plot_flow(image, tf.zeros([1, 9, 7, 2]), ax=ax)
    tfd.visualization.plot_taps(image, BOXES, pixel="3")  # type: ignore[arg-type]
    tfd.visualization.plot_grid(image, BOXES, align_corners="no")  # type: ignore[arg-type]
    tfd.visualization.plot_attention(image, BOXES, query="first")  # type: ignore[arg-type]
    tfd.visualization.plot_bins(image, BOXES, roi="first")  # type: ignore[arg-type]
