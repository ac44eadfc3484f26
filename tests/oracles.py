"""NumPy oracles: every operator as plain loops written from its definition, in float64.

Names and signatures follow `tf_deform.ops`, and nothing is shared with it. Speed does not matter
here: an oracle has to be right by reading it. Arrays are channels-last, points are in pixels and in
array order (y, x).
"""

import itertools
import math

import numpy as np

# Sampling one point


def linear_sample(image, point, rule="zeros", align_corners=True, weight=1.0):
    """Returns the linear sample [C] of image [*space, C] at point [rank], times a weight.

    Rules: "zeros", "border", "reflection" (about 0 and size-1, or about -0.5 and size-0.5 without
    `align_corners`), and "roi" and "psroi", which return (sample, valid). A dropped sample is 0,
    and so is a missing pixel: a NaN of a weight that is not finite.
    """
    image = _float64(image)
    total = np.zeros(image.shape[-1])
    placed = _place(point, image.shape[:-1], rule, align_corners)
    if placed is None:
        total += weight * 0.0
    else:
        for corner in itertools.product((0, 1), repeat=len(placed)):
            index = np.floor(placed) + corner
            share = weight * np.prod(1 - np.abs(placed - index))
            total += share * (_pixel(image, index) if _inside(index, image) else 0.0)
    return (total, placed is not None) if rule in ("roi", "psroi") else total


def nearest_sample(image, point, rule="zeros", align_corners=True):
    """Returns the pixel [C] of image [*space, C] nearest to point [rank], halves to even."""
    image = _float64(image)
    placed = _place(point, image.shape[:-1], rule, align_corners)
    if placed is None or not _inside(np.rint(placed), image):
        return np.zeros(image.shape[-1])
    return _pixel(image, np.rint(placed))


def cubic_sample(image, point, rule="zeros", align_corners=True):
    """Returns the cubic convolution (A = -0.75) sample [C] of image [*space, C] at point [rank].

    The border rule acts on each tap's index, not on the point.
    """
    image = _float64(image)
    total = np.zeros(image.shape[-1])
    if np.all(np.isfinite(point)):
        fraction = point - np.floor(point)
        for tap in itertools.product((-1, 0, 1, 2), repeat=len(point)):
            index = _place(np.floor(point) + tap, image.shape[:-1], rule, align_corners)
            if index is not None and _inside(index, image):
                weight = math.prod(_cubic_kernel(distance) for distance in fraction - tap)
                total += weight * _pixel(image, index)
    return total


def _cubic_kernel(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a  # 1 < x <= 2


def _place(point, space, rule, align_corners):
    """Returns where the border rule reads for `point`, or None where it drops the sample."""
    coordinates = [
        _place_coordinate(p, n, rule, align_corners) for p, n in zip(point, space, strict=True)
    ]
    return None if None in coordinates else np.array(coordinates)


def _place_coordinate(p, size, rule, align_corners):
    valid = {
        "zeros": -1 < p < size,
        "border": True,
        "reflection": True,
        "roi": -1 <= p <= size,
        "psroi": -0.5 <= p <= size - 0.5,
    }[rule]
    if not (math.isfinite(p) and valid):
        return None
    if rule == "zeros":
        return p
    if rule == "reflection":
        p = _reflect(p, 0, size - 1) if align_corners else _reflect(p, -0.5, size - 0.5)
    return min(max(p, 0), size - 1)


def _reflect(p, low, high):
    """Returns p folded into [low, high] as between two mirrors."""
    span = high - low
    if span <= 0:
        return low
    distance = math.fmod(abs(p - low), 2 * span)
    return low + min(distance, 2 * span - distance)


def _inside(index, image):
    return all(0 <= i < n for i, n in zip(index, image.shape[:-1], strict=True))


def _pixel(image, index):
    return image[tuple(int(i) for i in index)]


# Sampling many points


def weighted_sample(values, points, weights=None, image_index=None):
    """Returns [rows, queries, C], the weighted sums of linear samples ("zeros" rule) over P.

    values [images, *space, C]; points [rows, queries, groups, P, rank]; weights
    [rows, queries, groups, P], None for 1; image_index [rows], None for row r reading image r.
    """
    values, points = _float64(values), _float64(points)
    rows, queries, groups, count, _ = points.shape
    weights = np.ones(points.shape[:-1]) if weights is None else _float64(weights)
    image_index = np.arange(rows) if image_index is None else image_index
    result = np.zeros((rows, queries, values.shape[-1]))
    for row, query, group, p in np.ndindex(rows, queries, groups, count):
        channels = _share(group, groups, values.shape[-1])
        image = values[image_index[row]][..., channels]
        weight = weights[row, query, group, p]
        result[row, query, channels] += linear_sample(
            image, points[row, query, group, p], weight=weight
        )
    return result


def sample(values, points, *, interpolation="bilinear", padding_mode="zeros"):
    """Returns [B, ..., C], the samples of values [B, *space, C] at points [B, ..., rank].

    Reflection is about 0 and size-1.
    """
    return _sample(values, points, interpolation, padding_mode, align_corners=True)


def grid_sample(
    inputs, grid, *, interpolation="bilinear", padding_mode="zeros", align_corners=False
):
    """Returns [B, ..., C], the samples of inputs [B, *space, C] at grid [B, ..., rank].

    The grid is normalised, (x, y[, z]).
    """
    sizes = np.array(np.shape(inputs)[1:-1])
    points = _float64(grid)[..., ::-1]
    if align_corners:
        points = (points + 1) / 2 * (sizes - 1)
    else:
        points = ((points + 1) * sizes - 1) / 2
    return _sample(inputs, points, interpolation, padding_mode, align_corners)


def _sample(values, points, interpolation, padding_mode, align_corners):
    at_point = {"bilinear": linear_sample, "nearest": nearest_sample, "bicubic": cubic_sample}
    values, points = _float64(values), _float64(points)
    result = np.zeros((*points.shape[:-1], values.shape[-1]))
    for where in np.ndindex(*points.shape[:-1]):
        image = values[where[0]]
        result[where] = at_point[interpolation](image, points[where], padding_mode, align_corners)
    return result


def warp(inputs, flow, *, interpolation="bilinear", padding_mode="border"):
    """Returns [B, *space, C]: inputs [B, *space, C] at each pixel plus flow [B, *space, rank]."""
    points = _float64(flow).copy()
    for where in np.ndindex(*points.shape[:-1]):
        points[where] += where[1:]
    return sample(inputs, points, interpolation=interpolation, padding_mode=padding_mode)


def integrate_velocity(velocity, *, steps=7):
    """Returns the displacement [B, *space, rank] after unit time, by scaling and squaring."""
    displacement = _float64(velocity) / 2**steps
    for _ in range(steps):  # twice the time: go on from where the first half leads
        displacement = displacement + warp(displacement, displacement)
    return displacement


def compose_flows(first, second):
    """Returns [B, *space, rank]: second(p) + first(p + second(p)) at every pixel p."""
    result = _float64(second).copy()
    for b, *pixel in np.ndindex(*result.shape[:-1]):
        way = result[(b, *pixel)]
        result[(b, *pixel)] = way + linear_sample(first[b], pixel + way, "border")
    return result


def invert_flow(flow, *, steps=20):
    """Returns (inverse [B, *space, rank], residual [B, *space]): u = -flow(p + u), from u = 0."""
    flow = _float64(flow)
    inverse, residual = np.zeros(flow.shape), np.zeros(flow.shape[:-1])
    for b, *pixel in np.ndindex(*residual.shape):
        way = np.zeros(flow.shape[-1])
        for _ in range(steps):
            way = -linear_sample(flow[b], pixel + way, "border")
        missed = way + linear_sample(flow[b], pixel + way, "border")
        inverse[(b, *pixel)], residual[(b, *pixel)] = way, math.hypot(*missed)
    return inverse, residual


def resize_flow(flow, size):
    """Returns [B, *size, rank]: a pixel spans new/old of an old one, and so do the vectors."""
    flow = _float64(flow)
    ratio = np.array(size) / flow.shape[1:-1]
    result = np.zeros((len(flow), *size, flow.shape[-1]))
    for b, *pixel in np.ndindex(*result.shape[:-1]):
        point = (np.array(pixel) + 0.5) / ratio - 0.5
        result[(b, *pixel)] = ratio * linear_sample(flow[b], point, "border")
    return result


def jacobian_determinant(flow):
    """Returns [B, *space], the determinant of p + flow(p) by differences of the pixels beside p."""
    flow = _float64(flow)
    space, result = flow.shape[1:-1], np.zeros(flow.shape[:-1])
    for b, *pixel in np.ndindex(*result.shape):
        matrix = np.eye(len(space))
        for axis, size in enumerate(space):
            above, below = list(pixel), list(pixel)
            above[axis] = min(pixel[axis] + 1, size - 1)
            below[axis] = max(pixel[axis] - 1, 0)
            if size > 1:
                slope = flow[(b, *above)] - flow[(b, *below)]
                matrix[:, axis] += slope / (above[axis] - below[axis])
        result[(b, *pixel)] = np.linalg.det(matrix)
    return result


def warp_points(points, flow):
    """Returns [B, ..., rank]: points [B, ..., rank] plus the flow [B, *space, rank] at them."""
    return _float64(points) + sample(flow, points, padding_mode="border")


# Deformable convolution


def deformable_conv(
    inputs, kernel, offset, mask=None, *, strides=1, padding="valid", dilation_rate=1
):
    """Returns [B, *out, filters].

    inputs [B, *space, C]; kernel [*kernel_size, C / groups, filters]; offset
    [B, *out, G * K * rank], (group, tap, (y, x)); mask [B, *out, G * K]. padding: "valid", "same",
    "causal", an int, or a (before, after) pair per axis.
    """
    inputs, kernel, offset = _float64(inputs), _float64(kernel), _float64(offset)
    *kernel_size, group_channels, filters = kernel.shape
    channels, rank = inputs.shape[-1], len(kernel_size)
    taps = list(np.ndindex(*kernel_size))
    groups = channels // group_channels
    deformable_groups = offset.shape[-1] // (len(taps) * rank)

    space, strides = np.array(inputs.shape[1:-1]), _per_axis(strides, rank)
    dilation = _per_axis(dilation_rate, rank)
    reach = (np.array(kernel_size) - 1) * dilation
    before, after = _pads(padding, space, strides, reach)
    out = np.maximum((before + space + after - reach - 1) // strides + 1, 0)
    offset = offset.reshape(len(inputs), *out, deformable_groups, len(taps), rank)
    mask = np.ones(offset.shape[:-1]) if mask is None else _float64(mask).reshape(offset.shape[:-1])

    result = np.zeros((len(inputs), *out, filters))
    for where in np.ndindex(len(inputs), *out):
        image, position = inputs[where[0]], np.array(where[1:])
        for t, tap in enumerate(taps):
            start = position * strides - before + tap * dilation
            sampled = np.zeros(channels)
            for g in range(deformable_groups):
                shared = _share(g, deformable_groups, channels)
                point = start + offset[where][g, t]
                sampled[shared] = linear_sample(image[..., shared], point, weight=mask[where][g, t])
            for g in range(groups):
                made = _share(g, groups, filters)
                result[where][made] += sampled[_share(g, groups, channels)] @ kernel[tap][:, made]
    return result


def _pads(padding, space, strides, reach):
    """Returns the pixels added before and after each axis; reach: (kernel_size - 1) * dilation."""
    none = np.zeros_like(reach)
    if padding == "valid":
        return none, none
    if padding == "causal":
        return reach, none
    if padding == "same":  # ceil(size / stride) outputs, the odd pixel after
        out = -(-space // strides)
        total = np.maximum((out - 1) * strides + reach + 1 - space, 0)
        return total // 2, total - total // 2
    if np.ndim(padding) == 0:
        return none + padding, none + padding
    return np.transpose(padding)


# DCNv3 and DCNv4


def dcnv3(
    inputs,
    offset,
    mask,
    kernel_size,
    *,
    strides=1,
    padding="valid",
    dilation_rate=1,
    offset_scale=1.0,
    remove_center=False,
):
    """Returns [B, *out, C].

    offset [B, *out, G * K * 2], (group, tap, (x, y)); mask [B, *out, G * K], (group, tap). Taps run
    down the kernel's first column, then down its second, and so on.
    """
    inputs, offset, mask = _float64(inputs), _float64(offset), _float64(mask)
    height, width = _per_axis(kernel_size, 2)
    strides, dilation = _per_axis(strides, 2), _per_axis(dilation_rate, 2)
    taps = [np.array([row, column]) for column in range(width) for row in range(height)]
    if remove_center:
        del taps[len(taps) // 2]
    groups = mask.shape[-1] // len(taps)
    reach = (np.array([height, width]) - 1) * dilation
    before, _ = _pads(padding, np.array(inputs.shape[1:3]), strides, reach)
    offset = offset.reshape(*offset.shape[:3], groups, len(taps), 2)
    mask = mask.reshape(*mask.shape[:3], groups, len(taps))
    result = np.zeros((*mask.shape[:3], inputs.shape[-1]))
    for b, row, column, g, t in np.ndindex(*mask.shape):
        x, y = offset[b, row, column, g, t]
        middle = [row, column] * strides - before + reach // 2
        point = middle + (taps[t] * dilation - reach // 2 + [y, x]) * offset_scale
        channels = _share(g, groups, inputs.shape[-1])
        result[b, row, column, channels] += linear_sample(
            inputs[b][..., channels], point, weight=mask[b, row, column, g, t]
        )
    return result


def dcnv4(inputs, offset_mask, kernel_size, *, groups, **options):
    """Returns [B, *out, C]; offset_mask [B, *out, G * K * 3 or more], (group, offset then mask)."""
    taps = int(np.prod(_per_axis(kernel_size, 2))) - options.get("remove_center", False)
    offset, mask = [], []
    for g in range(groups):
        start = 3 * taps * g
        offset.append(_float64(offset_mask)[..., start : start + 2 * taps])
        mask.append(_float64(offset_mask)[..., start + 2 * taps : start + 3 * taps])
    offset, mask = np.concatenate(offset, axis=-1), np.concatenate(mask, axis=-1)
    return dcnv3(inputs, offset, mask, kernel_size, **options)


# Deformable attention


def multi_scale_deformable_attention(
    values, locations, weights, *, num_points=None, method="default"
):
    """Returns [B, Q, H * D]; values [B, h, w, H * D] a level, locations [B, Q, H, L, P, (x, y)].

    Locations are normalised, 0 and 1 being the images' edges; weights [B, Q, H, L, P]. With the
    points of each level in `num_points`, locations are [B, Q, H, sum of points, (x, y)].
    """
    locations, weights = _float64(locations), _float64(weights)
    batch, queries, heads, *points = locations.shape[:-1]
    if num_points is None:
        num_points = [points[1]] * points[0]
    locations = locations.reshape(batch, queries, heads, sum(num_points), 2)
    weights = weights.reshape(locations.shape[:-1])
    level_of = [level for level, count in enumerate(num_points) for _ in range(count)]
    result = np.zeros((batch, queries, values[0].shape[-1]))
    for b, q, head, p in np.ndindex(batch, queries, heads, sum(num_points)):
        channels = _share(head, heads, result.shape[-1])
        image = values[level_of[p]][b][..., channels]
        size, place = np.array(image.shape[:2]), locations[b, q, head, p, ::-1]
        weight = weights[b, q, head, p]
        if method == "default":
            result[b, q, channels] += linear_sample(image, place * size - 0.5, weight=weight)
        elif np.all(np.isfinite(place)) and image.size:
            y, x = np.clip(np.floor(place * size + 0.5), 0, size - 1).astype(int)
            result[b, q, channels] += weight * image[y, x]
    return result


# RoI pooling: features [B, height, width, C], boxes [rois, (x_min, y_min, x_max, y_max)]


def roi_align(
    features,
    boxes,
    box_indices,
    output_size,
    *,
    spatial_scale=1.0,
    sampling_ratio=2,
    aligned=True,
    reduction="mean",
):
    """Returns [rois, out_h, out_w, C], the mean or max of the samples in each bin of each box."""
    features, boxes, output_size = _float64(features), _float64(boxes), _per_axis(output_size, 2)
    result = np.zeros((len(boxes), *output_size, features.shape[-1]))
    for r, ph, pw in np.ndindex(*result.shape[:-1]):
        start, size = _scaled_box(boxes[r], spatial_scale, aligned)
        image = features[box_indices[r]]
        samples = _bin_samples(image, start, size, (ph, pw), output_size, sampling_ratio)
        result[r, ph, pw] = _reduced(samples, reduction)
    return result


def roi_align_rotated(
    features,
    boxes,
    box_indices,
    output_size,
    *,
    spatial_scale=1.0,
    sampling_ratio=2,
    aligned=True,
    angle_unit="radians",
    clockwise=False,
    reduction="mean",
):
    """Returns the same of boxes [rois, (x_center, y_center, width, height, angle)]."""
    features, boxes, output_size = _float64(features), _float64(boxes), _per_axis(output_size, 2)
    result = np.zeros((len(boxes), *output_size, features.shape[-1]))
    for r, ph, pw in np.ndindex(*result.shape[:-1]):
        x_center, y_center, width, height = boxes[r, :4] * spatial_scale
        angle = math.radians(boxes[r, 4]) if angle_unit == "degrees" else boxes[r, 4]
        sin, cos = np.sin(-angle if clockwise else angle), np.cos(angle)
        size = np.array([height, width])
        if aligned:
            x_center, y_center = x_center - 0.5, y_center - 0.5
        else:
            size = np.maximum(size, 1)

        def turned(point, x_center=x_center, y_center=y_center, sin=sin, cos=cos):
            dy, dx = point
            return np.array([y_center - dx * sin + dy * cos, x_center + dx * cos + dy * sin])

        image = features[box_indices[r]]
        cell = ph, pw
        samples = _bin_samples(image, -size / 2, size, cell, output_size, sampling_ratio, turned)
        result[r, ph, pw] = _reduced(samples, reduction)
    return result


def ps_roi_align(features, boxes, box_indices, output_size, *, spatial_scale=1.0, sampling_ratio=2):
    """Returns [rois, out_h, out_w, C / (out_h * out_w)]; each bin reads channels of its own."""
    features, boxes, output_size = _float64(features), _float64(boxes), _per_axis(output_size, 2)
    out_h, out_w = output_size
    out_channels = features.shape[-1] // max(out_h * out_w, 1)
    result = np.zeros((len(boxes), out_h, out_w, out_channels))
    for r, ph, pw in np.ndindex(*result.shape[:-1]):
        start, size = _scaled_box(boxes[r], spatial_scale, aligned=True)
        channels = [(c * out_h + ph) * out_w + pw for c in range(out_channels)]
        image = features[box_indices[r]][..., channels]
        result[r, ph, pw] = _bin_mean(image, start, size, (ph, pw), output_size, sampling_ratio)
    return result


def deformable_roi_pool(
    features,
    boxes,
    box_indices,
    offset,
    output_size,
    *,
    mask=None,
    spatial_scale=1.0,
    sampling_ratio=2,
    gamma=0.1,
):
    """Returns [rois, out_h, out_w, C]; bins move by gamma * box size * offset.

    offset [rois, out_h, out_w, (y, x)], None for 0; mask [rois, out_h, out_w].
    """
    features, boxes, output_size = _float64(features), _float64(boxes), _per_axis(output_size, 2)
    result = np.zeros((len(boxes), *output_size, features.shape[-1]))
    offset = np.zeros((*result.shape[:-1], 2)) if offset is None else _float64(offset)
    mask = np.ones(result.shape[:-1]) if mask is None else _float64(mask)
    for r, ph, pw in np.ndindex(*result.shape[:-1]):
        start, size = _scaled_box(boxes[r], spatial_scale, aligned=True)
        start = start + gamma * size * offset[r, ph, pw]
        image = features[box_indices[r]]
        mean = _bin_mean(image, start, size, (ph, pw), output_size, sampling_ratio)
        result[r, ph, pw] = mask[r, ph, pw] * mean
    return result


def deformable_ps_roi_pool(
    features,
    boxes,
    box_indices,
    offset,
    output_size,
    *,
    output_channels,
    group_size,
    part_size,
    sample_per_part=4,
    trans_std=0.1,
    spatial_scale=1.0,
):
    """Returns [rois, out_h, out_w, output_channels].

    features [B, height, width, output_channels * group_size**2]; offset
    [rois, part_size, part_size, 2 * classes], (class, (y, x)), None for 0.
    """
    features, boxes, output_size = _float64(features), _float64(boxes), _per_axis(output_size, 2)
    if offset is None:
        offset = np.zeros((len(boxes), part_size, part_size, 2))
    classes = np.shape(offset)[-1] // 2
    offset = _float64(offset).reshape(len(boxes), part_size, part_size, classes, 2)
    result = np.zeros((len(boxes), *output_size, output_channels))
    for r, ph, pw, c in np.ndindex(*result.shape):
        x_min, y_min, x_max, y_max = _round_half_away(boxes[r])
        start = np.array([y_min, x_min]) * spatial_scale - 0.5
        end = np.array([y_max + 1, x_max + 1]) * spatial_scale - 0.5
        size = np.maximum(end - start, 0.1)
        bin_size = size / output_size
        cell = np.array([ph, pw])
        part_h, part_w = cell * part_size // output_size
        group_h, group_w = np.clip(cell * group_size // output_size, 0, group_size - 1)

        shift = offset[r, part_h, part_w, c // (output_channels // classes)] * trans_std * size
        channel = (c * group_size + group_h) * group_size + group_w
        image = features[box_indices[r]][..., channel, np.newaxis]
        samples = []
        for step in np.ndindex(sample_per_part, sample_per_part):
            point = start + shift + cell * bin_size + step * (bin_size / sample_per_part)
            value, valid = linear_sample(image, point, "psroi")
            if valid:
                samples.append(value)
        result[r, ph, pw, c] = np.mean(samples) if samples else 0
    return result


def _scaled_box(box, spatial_scale, aligned):
    """Returns the box's first corner (y, x) and its size (height, width), in feature pixels."""
    x_min, y_min, x_max, y_max = box * spatial_scale
    start, size = np.array([y_min, x_min]), np.array([y_max - y_min, x_max - x_min])
    return (start - 0.5, size) if aligned else (start, np.maximum(size, 1))


def _bin_mean(image, start, size, cell, output_size, sampling_ratio):
    """Returns the mean [C] of the samples centred in the subcells of bin `cell`, 0 if none."""
    samples = _bin_samples(image, start, size, cell, output_size, sampling_ratio)
    return _reduced(samples, "mean")


def _bin_samples(image, start, size, cell, output_size, sampling_ratio, turned=np.array):
    """Returns the samples [n, C] centred in the subcells of bin `cell`."""
    bin_size = size / output_size
    counts = [sampling_ratio] * 2
    if sampling_ratio == 0:
        counts = [max(math.ceil(b), 0) if math.isfinite(b) else 0 for b in bin_size]
    samples = []
    for step in np.ndindex(*counts):
        point = start + cell * bin_size + (np.array(step) + 0.5) * bin_size / counts
        samples.append(linear_sample(image, turned(point), "roi")[0])
    return np.reshape(samples, [-1, image.shape[-1]])


def _reduced(samples, reduction):
    """Returns the mean or max [C] of samples [n, C], 0 if there are none."""
    if not len(samples):
        return np.zeros(samples.shape[-1])
    return np.mean(samples, axis=0) if reduction == "mean" else np.max(samples, axis=0)


def _round_half_away(x):
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


# Grids: normalised (x, y[, z]), [B, *output_size, rank]


def affine_grid(theta, output_size, *, align_corners=False):
    """Returns theta @ (x, y[, z], 1) at every output pixel; theta [B, rank, rank + 1]."""
    theta = _float64(theta)
    result = np.zeros((len(theta), *output_size, len(output_size)))
    for b, *index in np.ndindex(*result.shape[:-1]):
        x = _normalised(index, output_size, align_corners)
        result[(b, *index)] = theta[b] @ [*x, 1]
    return result


def projective_grid(theta, output_size, *, align_corners=False):
    """Returns theta @ (x, y, 1) over its last entry at every output pixel; theta [B, 3, 3]."""
    theta = _float64(theta)
    result = np.zeros((len(theta), *output_size, len(output_size)))
    for b, *index in np.ndindex(*result.shape[:-1]):
        x = _normalised(index, output_size, align_corners)
        *numerators, denominator = theta[b] @ [*x, 1]
        with np.errstate(divide="ignore", invalid="ignore"):  # the horizon: infinite or NaN
            result[(b, *index)] = np.divide(numerators, denominator)
    return result


def thin_plate_spline_grid(
    displacements, output_size, *, control_points=(4, 4), align_corners=False
):
    """Returns the thin plate spline through control point i -> control point i + displacement i.

    displacements [B, n, (x, y)]; control_points [n, 2] as (x, y), or (rows, cols): a regular grid
    on [-1, 1], row by row.
    """
    displacements = _float64(displacements)
    controls = control_points
    if np.ndim(control_points) == 1:
        rows, cols = control_points
        controls = [(x, y) for y in np.linspace(-1, 1, rows) for x in np.linspace(-1, 1, cols)]
    n = len(controls)
    system = np.zeros((n + 3, n + 3))  # [[K, P], [P^T, 0]]
    for i, control in enumerate(controls):
        system[i] = _spline_basis(control, controls)
        system[n:, i] = (1, *control)
    result = np.zeros((len(displacements), *output_size, 2))
    for b in range(len(displacements)):
        targets = np.zeros((n + 3, 2))
        targets[:n] = controls + displacements[b]
        coefficients = np.linalg.solve(system, targets)
        for index in np.ndindex(*output_size):
            x = _normalised(index, output_size, align_corners)
            result[(b, *index)] = _spline_basis(x, controls) @ coefficients
    return result


def _spline_basis(point, controls):
    """Returns r^2 log r to each control point, then 1, x, y."""
    kernel = []
    for control in controls:
        r = math.dist(point, control)
        kernel.append(r**2 * math.log(r) if r > 0 else 0.0)
    return np.array([*kernel, 1, *point])


def _normalised(index, output_size, align_corners):
    """Returns the normalised (x, y[, z]) of an output pixel; an axis of one pixel is at 0."""
    coordinates = []
    for i, n in zip(index, output_size, strict=True):
        if not align_corners:
            coordinates.append((2 * i + 1) / n - 1)
        else:
            coordinates.append(2 * i / (n - 1) - 1 if n > 1 else 0.0)
    return coordinates[::-1]


# Losses of registration


def normalized_cross_correlation(one, other, *, window=9, epsilon=1e-5):
    """Returns [B]: 1 minus the mean over windows and channels of the squared correlation.

    one, other [B, *space, C]. A window lies about each pixel, and has the pixels that exist.
    """
    one, other = _float64(one), _float64(other)
    reach = (_per_axis(window, one.ndim - 2) - 1) // 2
    squares = np.zeros(one.shape)
    for b, *pixel, c in np.ndindex(*one.shape):
        near = tuple(slice(max(p - r, 0), p + r + 1) for p, r in zip(pixel, reach, strict=True))
        x, y = one[(b, *near, c)], other[(b, *near, c)]
        x, y = x - np.mean(x), y - np.mean(y)
        powers = (np.mean(x**2) + epsilon) * (np.mean(y**2) + epsilon)
        squares[(b, *pixel, c)] = np.mean(x * y) ** 2 / powers
    return 1 - squares.mean(axis=tuple(range(1, one.ndim)))


def flow_smoothness(flow, *, penalty="l2"):
    """Returns [B]: the mean over axes of the mean |difference| or its square between neighbours."""
    flow = _float64(flow)
    power = {"l1": 1, "l2": 2}[penalty]
    means = np.zeros((len(flow), flow.ndim - 2))
    for b, axis in np.ndindex(*means.shape):
        terms = []
        for pixel in np.ndindex(*flow.shape[1:-1]):
            beyond = list(pixel)
            beyond[axis] += 1
            if beyond[axis] < flow.shape[axis + 1]:
                terms.extend(np.abs(flow[(b, *beyond)] - flow[(b, *pixel)]) ** power)
        means[b, axis] = np.mean(terms) if terms else 0.0
    return means.mean(axis=1)


# Correlation


def correlation(
    first,
    second,
    *,
    max_displacement,
    kernel_size=1,
    stride=1,
    displacement_stride=1,
    padding=0,
):
    """Returns [batch, rows, columns, displacements], the means of products over patches."""
    first, second = (
        np.pad(_float64(each), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        for each in (first, second)
    )
    radius, steps = kernel_size // 2, max_displacement // displacement_stride
    edge = max_displacement + radius
    moves = [displacement_stride * step for step in range(-steps, steps + 1)]
    middles = [range(edge, size - edge, stride) for size in first.shape[1:3]]
    result = np.zeros((len(first), *map(len, middles), len(moves) ** 2))
    for b in range(len(first)):
        for (i, y), (j, x) in itertools.product(*map(enumerate, middles)):
            patch = _patch(first[b], y, x, radius)
            for channel, (dy, dx) in enumerate(itertools.product(moves, repeat=2)):
                other = _patch(second[b], y + dy, x + dx, radius)
                result[b, i, j, channel] = np.mean(patch * other)
    return result


def correlation_lookup(first, second, flow, *, radius, num_levels=1):
    """Returns [batch, rows, columns, levels * displacements], products with samples about a flow.

    A level is the one before it, averaged over two by two pixels; a last odd one is left out.
    """
    first, second, flow = _float64(first), _float64(second), _float64(flow)
    around = list(itertools.product(range(-radius, radius + 1), repeat=2))
    result = np.zeros((*first.shape[:3], num_levels, len(around)))
    for level in range(num_levels):
        for b, y, x in np.ndindex(*first.shape[:3]):
            middle = (np.array([y, x]) + flow[b, y, x]) / 2**level
            for channel, displacement in enumerate(around):
                seen = linear_sample(second[b], middle + displacement)
                product = np.sum(first[b, y, x] * seen) / math.sqrt(first.shape[-1])
                result[b, y, x, level, channel] = product
        second = _halved(second)
    return result.reshape(*first.shape[:3], -1)


def correlation_pyramid(first, second, *, num_levels=1):
    """Returns a list of [batch, rows, columns, rows / 2^level, columns / 2^level], all products."""
    first, second = _float64(first), _float64(second)
    pyramid = []
    for _ in range(num_levels):
        volume = np.zeros((*first.shape[:3], *second.shape[1:3]))
        for b, y, x, i, j in np.ndindex(*volume.shape):
            product = np.sum(first[b, y, x] * second[b, i, j]) / math.sqrt(first.shape[-1])
            volume[b, y, x, i, j] = product
        pyramid.append(volume)
        second = _halved(second)
    return pyramid


def _halved(maps):
    batch, height, width, channels = maps.shape
    result = np.zeros((batch, height // 2, width // 2, channels))
    for i, j in np.ndindex(*result.shape[1:3]):
        cell = maps[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        result[:, i, j] = np.mean(cell, axis=(1, 2))
    return result


def _patch(image, y, x, radius):
    return image[y - radius : y + radius + 1, x - radius : x + radius + 1]


# Gradients and shared helpers


def numeric_gradient(function, x, step=1e-6):
    """Returns d function / d x by central differences, shaped as x; `function` returns a scalar."""
    x = _float64(x)
    gradient = np.zeros(x.shape)
    for where in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[where] += step
        below[where] -= step
        gradient[where] = (function(above) - function(below)) / (2 * step)
    return gradient


def _float64(x):
    return np.asarray(x, np.float64)


def _per_axis(value, rank):
    return np.array([value] * rank if np.ndim(value) == 0 else value)


def _share(group, groups, channels):
    """Returns the slice of channels that belongs to one group."""
    size = channels // groups
    return slice(group * size, (group + 1) * size)
