// Where a malformed call is refused, and a well-formed one planned.
// See call.h.

#include "custom_ops/tensorflow/call.h"

#include <algorithm>
#include <limits>
#include <sstream>

namespace tf_deform {
namespace {

template <typename... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

std::string Text(const Shape& shape) {
  std::ostringstream text;
  text << "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) text << (axis ? "," : "") << shape[axis];
  text << "]";
  return text.str();
}

std::string Expect(const char* name, const Shape& received, const Shape& expected) {
  if (received == expected) return "";
  return Text(name, " must have shape ", Text(expected), ", received ", Text(received));
}

// Kernels multiply sizes as they like: that is safe if all those of each array, but for those that
// are 0, have a product that fits.
std::string CheckProduct(const char* name, const Shape& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size == 0 || !__builtin_mul_overflow(product, size, &product)) continue;
    return Text(name, " must have sizes whose product is below 2^63, received ", Text(shape));
  }
  return "";
}

bool IsEmpty(const Shape& shape) { return std::count(shape.begin(), shape.end(), 0) > 0; }

// The inputs are values, points, weights and image_index if there are any, and for a gradient op
// the gradient.
std::string ReadSample(const Call& call, SampleSizes* sizes, Shape* out) {
  const Shape& values = call.inputs[0];
  const Shape& points = call.inputs[1];
  if (points.size() != 5 || points[4] < 1 || points[4] > 3) {
    return Text(
        "points must have shape [rows, queries, groups, points_per_query, 1 to 3], received ",
        Text(points));
  }
  const int64_t rank = points[4];
  if (static_cast<int64_t>(values.size()) != rank + 2) {
    return Text("values must have shape [images, ", rank, " axes, channels], received ",
                Text(values));
  }
  if (call.units < Units::kPixels || call.units > Units::kCenters) {
    return "units must be pixels, edges or centers";
  }
  *sizes = {};
  sizes->rank = rank;
  sizes->units = call.units;
  sizes->images = values[0];
  for (int axis = 0; axis < rank; ++axis) sizes->space[axis] = values[axis + 1];
  sizes->channels = values[rank + 1];
  sizes->rows = points[0];
  sizes->queries = points[1];
  sizes->groups = points[2];
  sizes->points = points[3];
  if (sizes->groups < 1 || sizes->channels % sizes->groups) {
    return Text("values must have channels divisible by the groups, received ", sizes->channels,
                " channels and ", sizes->groups, " groups");
  }
  *out = {sizes->rows, sizes->queries, sizes->channels};
  std::string error;
  if (call.weight_count) {
    error = Expect("weights", call.inputs[2], {points[0], points[1], points[2], points[3]});
  }
  if (error.empty() && call.index_count) {
    error = Expect("image_index", call.inputs[2 + call.weight_count], {sizes->rows});
  } else if (error.empty() && sizes->rows != sizes->images) {
    error = Text("points must have shape [images, ...] = [", sizes->images, ", ...], received ",
                 Text(points));
  }
  if (error.empty() && call.op != Op::kSample) error = Expect("gradient", call.inputs.back(), *out);
  if (error.empty()) error = CheckProduct("values", values);
  if (error.empty()) error = CheckProduct("points", points);
  if (error.empty()) error = CheckProduct("points times the channels of values", *out);
  return error;
}

template <typename T>
void PlanSample(const Call& call, Plan* plan) {
  using W = Wide<T>;
  SampleSizes sizes;
  Shape out;
  plan->error = ReadSample(call, &sizes, &out);
  if (!plan->error.empty()) return;
  const int64_t weighted = call.weight_count, indexed = call.index_count;
  if (indexed) plan->image_index = 2 + weighted;
  plan->rows = sizes.rows;
  plan->images = sizes.images;
  plan->outputs = {call.op == Op::kSample             ? out
                   : call.op == Op::kSampleGradValues ? call.inputs[0]
                                                      : call.inputs[1]};
  if (call.op == Op::kSampleGradPoints && weighted) plan->outputs.push_back(call.inputs[2]);
  plan->run = [=, op = call.op](const Kernels& all, const Pool& pool, const void* const* in,
                                void* const* to) {
    const TypedKernels<T>& kernels = all.of<T>();
    const T* const values = static_cast<const T*>(in[0]);
    const W* const points = static_cast<const W*>(in[1]);
    const W* const weights = weighted ? static_cast<const W*>(in[2]) : nullptr;
    const int64_t* const index = indexed ? static_cast<const int64_t*>(in[2 + weighted]) : nullptr;
    W* const first = static_cast<W*>(to[0]);
    if (op == Op::kSample) {
      return kernels.sample(pool, sizes, values, points, weights, index, first);
    }
    const W* const gradient = static_cast<const W*>(in[2 + weighted + indexed]);
    if (op == Op::kSampleGradValues) {
      return kernels.sample_grad_values(pool, sizes, points, weights, index, gradient, first);
    }
    return kernels.sample_grad_points(pool, sizes, values, points, weights, index, gradient, first,
                                      weighted ? static_cast<W*>(to[1]) : nullptr);
  };
}

std::string CheckGeometry(const Call& call) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const size_t rank = call.strides.size();
  bool good = rank >= 1 && rank <= 3 && rank == call.dilations.size();
  for (const auto* each : {&call.strides, &call.dilations}) {
    for (const int64_t value : *each) good = good && value >= 1 && value <= kMost;
  }
  if (!good) return "strides and dilations must be 1 to 3 ints each, from 1 to 2^31";
  if (call.before.size() != rank) {
    return Text("before must have shape [", rank, "], received [", call.before.size(), "]");
  }
  for (const int64_t value : call.before) {
    if (value < -kMost || value > kMost) return "before must be between -2^31 and 2^31";
  }
  for (int input = 0; input < 3; ++input) {
    if (call.inputs[input].size() == rank + 2) continue;
    return Text("inputs, kernel and offset must have ", rank + 2, " axes, received ",
                Text(call.inputs[0]), ", ", Text(call.inputs[1]), " and ", Text(call.inputs[2]));
  }
  std::string error = CheckProduct("inputs", call.inputs[0]);
  if (error.empty()) error = CheckProduct("kernel", call.inputs[1]);
  if (error.empty()) error = CheckProduct("offset", call.inputs[2]);
  return error;
}

// The inputs are inputs, kernel, offset, a mask if there is one, and for the gradient op the
// gradient.
std::string ReadConv(const Call& call, ConvSizes* sizes, Shape* out) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  std::string error = CheckGeometry(call);
  if (!error.empty()) return error;
  const int rank = call.strides.size();
  const Shape& inputs = call.inputs[0];
  const Shape& kernel = call.inputs[1];
  const Shape& offset = call.inputs[2];
  *sizes = {};
  sizes->rank = rank;
  sizes->batch = inputs[0];
  sizes->channels = inputs[rank + 1];
  sizes->filters = kernel[rank + 1];
  const bool empty = IsEmpty(kernel);
  int64_t taps = 1;
  for (int axis = 0; axis < rank; ++axis) {
    sizes->space[axis] = inputs[axis + 1];
    sizes->output[axis] = offset[axis + 1];
    sizes->kernel[axis] = kernel[axis];
    sizes->strides[axis] = call.strides[axis];
    sizes->dilations[axis] = call.dilations[axis];
    sizes->before[axis] = call.before[axis];
    taps *= sizes->kernel[axis];
    if (offset[axis + 1] > kMost || kernel[axis] > kMost) {
      return "output and kernel must be below 2^31 along each axis";
    }
  }
  const int64_t group_channels = kernel[rank];
  if (empty || sizes->channels < 1 || sizes->channels % group_channels ||
      sizes->filters % (sizes->channels / group_channels)) {
    return Text(
        "kernel must have shape [*kernel_size, channels / groups, filters] with groups dividing "
        "channels and filters, received ",
        Text(kernel), " for ", sizes->channels, " channels");
  }
  sizes->groups = sizes->channels / group_channels;
  const int64_t coordinates = offset[rank + 1];
  if (coordinates < 1 || coordinates % taps || coordinates / taps % rank ||
      sizes->channels % (coordinates / taps / rank)) {
    return Text("offset must have deformable groups * ", taps, " taps * ", rank,
                " coordinates channels with groups that divide the ", sizes->channels,
                " channels of the inputs, received ", Text(offset));
  }
  sizes->deformable_groups = coordinates / taps / rank;
  if (offset[0] != sizes->batch) {
    return Text("offset must have the batch ", sizes->batch, " of the inputs, received ",
                Text(offset));
  }
  *out = offset;
  out->back() = coordinates / rank;
  if (call.weight_count) error = Expect("mask", call.inputs[3], *out);
  out->back() = sizes->filters;
  if (error.empty() && call.op == Op::kConvGrad) {
    error = Expect("gradient", call.inputs.back(), *out);
  }
  if (error.empty()) error = CheckProduct("offset times the filters of kernel", *out);
  return error;
}

template <typename T>
void PlanConv(const Call& call, Plan* plan) {
  using W = Wide<T>;
  ConvSizes sizes;
  Shape out;
  plan->error = ReadConv(call, &sizes, &out);
  if (!plan->error.empty()) return;
  const int64_t masked = call.weight_count;
  const bool forward = call.op == Op::kConv;
  plan->outputs = {out};
  if (!forward) plan->outputs.assign(call.inputs.begin(), call.inputs.end() - 1);
  plan->run = [=](const Kernels& all, const Pool& pool, const void* const* in, void* const* to) {
    const TypedKernels<T>& kernels = all.of<T>();
    const T* const inputs = static_cast<const T*>(in[0]);
    const T* const kernel = static_cast<const T*>(in[1]);
    const W* const offset = static_cast<const W*>(in[2]);
    const W* const mask = masked ? static_cast<const W*>(in[3]) : nullptr;
    if (forward) {
      return kernels.conv(pool, sizes, inputs, kernel, offset, mask, static_cast<T*>(to[0]));
    }
    const auto result = [to](int64_t output) { return static_cast<W*>(to[output]); };
    return kernels.conv_grad(pool, sizes, inputs, kernel, offset, mask,
                             static_cast<const T*>(in[3 + masked]), result(0), result(1), result(2),
                             masked ? result(3) : nullptr);
  };
}

template <typename T>
void PlanTyped(const Call& call, Plan* plan) {
  IsConv(call.op) ? PlanConv<T>(call, plan) : PlanSample<T>(call, plan);
}

}  // namespace

Plan MakePlan(const Call& call) {
  const bool conv = IsConv(call.op);
  const bool gradient = call.op != Op::kConv && call.op != Op::kSample;
  const int64_t expected = (conv ? 3 : 2) + call.weight_count + call.index_count + gradient;
  Plan plan;
  if (call.weight_count < 0 || call.weight_count > 1 || call.index_count < 0 ||
      call.index_count > 1) {
    plan.error = conv ? "mask must be at most one tensor"
                      : "weights and image_index must be at most one tensor each";
  } else if (static_cast<int64_t>(call.inputs.size()) != expected) {
    plan.error = Text("expected ", expected, " inputs, received ", call.inputs.size());
  } else if (call.type == Type::kFloat32) {
    PlanTyped<float>(call, &plan);
  } else if (call.type == Type::kFloat64) {
    PlanTyped<double>(call, &plan);
  } else if (call.type == Type::kFloat16) {
    PlanTyped<Float16Bits>(call, &plan);
  } else {
    PlanTyped<Bfloat16Bits>(call, &plan);
  }
  if (std::all_of(plan.outputs.begin(), plan.outputs.end(), IsEmpty)) {  // nothing to do
    plan.run = [](auto&&...) { return Error(); };
  }
  return plan;
}

std::string CheckIndex(const Plan& plan, const void* const* inputs) {
  if (plan.image_index < 0) return "";
  const auto* index = static_cast<const int64_t*>(inputs[plan.image_index]);
  for (int64_t row = 0; row < plan.rows; ++row) {
    if (index[row] >= 0 && index[row] < plan.images) continue;
    return Text("image_index must be at least 0 and below the batch size ", plan.images,
                ", received ", index[row]);
  }
  return "";
}

}  // namespace tf_deform
