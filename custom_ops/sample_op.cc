// The ops TfDeform>WeightedSample and its two gradients: shapes, checks, and calls of the kernels.

#include "kernels.h"
#include "library.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deform {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

struct SampleShapes {
  ShapeHandle values, points, weights, gradient;
};

// Unifies what the inputs say of each other. The inputs are values, points, weights, image_index
// and, for the gradients, the gradient.
absl::Status InferShapes(InferenceContext* c, bool has_gradient, SampleShapes* shapes) {
  int weight_count, index_count;
  TF_RETURN_IF_ERROR(c->GetAttr("weight_count", &weight_count));
  TF_RETURN_IF_ERROR(c->GetAttr("index_count", &index_count));
  if (weight_count > 1 || index_count > 1) {
    return Invalid("weights and image_index must be at most one tensor each");
  }
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 5, &shapes->points));
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 3, &shapes->values));
  TF_RETURN_IF_ERROR(c->WithRankAtMost(shapes->values, 5, &shapes->values));
  const DimensionHandle rank = c->Dim(shapes->points, 4);
  if (c->ValueKnown(rank)) {
    if (c->Value(rank) < 1 || c->Value(rank) > 3) {
      return Invalid("points must have 1 to 3 coordinates, received ", c->Value(rank));
    }
    TF_RETURN_IF_ERROR(c->WithRank(shapes->values, c->Value(rank) + 2, &shapes->values));
  }
  ShapeHandle expected;
  TF_RETURN_IF_ERROR(c->Subshape(shapes->points, 0, 4, &expected));
  if (weight_count) TF_RETURN_IF_ERROR(c->Merge(c->input(2), expected, &shapes->weights));
  const DimensionHandle rows = c->Dim(shapes->points, 0);
  DimensionHandle unused;
  if (index_count) {
    ShapeHandle index;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(2 + weight_count), 1, &index));
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(index, 0), rows, &unused));
  } else if (c->RankKnown(shapes->values)) {
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(shapes->values, 0), rows, &unused));
  }
  shapes->gradient =
      c->MakeShape({rows, c->Dim(shapes->points, 1),
                    c->RankKnown(shapes->values) ? c->Dim(shapes->values, -1) : c->UnknownDim()});
  if (has_gradient) {
    const ShapeHandle given = c->input(2 + weight_count + index_count);
    TF_RETURN_IF_ERROR(c->Merge(given, shapes->gradient, &shapes->gradient));
  }
  return absl::OkStatus();
}

REGISTER_OP("TfDeform>WeightedSample")
    .Input("values: T")
    .Input("points: T")
    .Input("weights: weight_count * T")
    .Input("image_index: index_count * int64")
    .Output("samples: T")
    .Attr("T: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, false, &shapes));
      c->set_output(0, shapes.gradient);
      return absl::OkStatus();
    });

REGISTER_OP("TfDeform>WeightedSampleGradValues")
    .Input("values: T")
    .Input("points: T")
    .Input("weights: weight_count * T")
    .Input("image_index: index_count * int64")
    .Input("gradient: T")
    .Output("values_gradient: T")
    .Attr("T: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, true, &shapes));
      c->set_output(0, shapes.values);
      return absl::OkStatus();
    });

REGISTER_OP("TfDeform>WeightedSampleGradPoints")
    .Input("values: T")
    .Input("points: T")
    .Input("weights: weight_count * T")
    .Input("image_index: index_count * int64")
    .Input("gradient: T")
    .Output("points_gradient: T")
    .Output("weights_gradient: weight_count * T")
    .Attr("T: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, true, &shapes));
      c->set_output(0, shapes.points);
      if (c->num_outputs() > 1) c->set_output(1, shapes.weights);
      return absl::OkStatus();
    });

// The inputs of any of the three ops, checked so that the kernels read within them.
template <typename T>
struct Arguments {
  absl::Status Read(OpKernelContext* context, bool has_gradient) {
    tensorflow::OpInputList weight_list, index_list;
    TF_RETURN_IF_ERROR(context->input_list("weights", &weight_list));
    TF_RETURN_IF_ERROR(context->input_list("image_index", &index_list));
    if (weight_list.size() > 1 || index_list.size() > 1) {
      return Invalid("weights and image_index must be at most one tensor each");
    }
    const Tensor& value = context->input(0);
    const Tensor& point = context->input(1);
    values_shape = value.shape();
    points_shape = point.shape();
    if (point.dims() != 5 || point.dim_size(4) < 1 || point.dim_size(4) > 3) {
      return Invalid(
          "points must have shape [rows, queries, groups, points_per_query, 1 to 3], received ",
          points_shape.DebugString());
    }
    sizes = {};
    sizes.rank = point.dim_size(4);
    if (value.dims() != sizes.rank + 2) {
      return Invalid("values must have shape [images, ", sizes.rank,
                             " axes, channels], received ", values_shape.DebugString());
    }
    sizes.images = value.dim_size(0);
    for (int axis = 0; axis < sizes.rank; ++axis) sizes.space[axis] = value.dim_size(axis + 1);
    sizes.channels = value.dim_size(sizes.rank + 1);
    sizes.rows = point.dim_size(0);
    sizes.queries = point.dim_size(1);
    sizes.groups = point.dim_size(2);
    sizes.points = point.dim_size(3);
    if (sizes.groups < 1 || sizes.channels % sizes.groups) {
      return Invalid("values must have channels divisible by the groups, received ",
                             sizes.channels, " channels and ", sizes.groups, " groups");
    }
    values = value.flat<T>().data();
    points = point.flat<T>().data();
    out_shape = TensorShape({sizes.rows, sizes.queries, sizes.channels});
    if (weight_list.size()) {
      weights_shape = points_shape;
      weights_shape.RemoveLastDims(1);
      TF_RETURN_IF_ERROR(Expect("weights", weight_list[0], weights_shape));
      weights = weight_list[0].flat<T>().data();
    }
    if (index_list.size()) {
      TF_RETURN_IF_ERROR(Expect("image_index", index_list[0], TensorShape({sizes.rows})));
      image_index = index_list[0].flat<int64_t>().data();
      for (int64_t row = 0; row < sizes.rows; ++row) {
        if (image_index[row] < 0 || image_index[row] >= sizes.images) {
          return Invalid("image_index must be at least 0 and below the batch size ",
                                 sizes.images, ", received ", image_index[row]);
        }
      }
    } else if (sizes.rows != sizes.images) {
      return Invalid("points must have shape [images, ...] = [", sizes.images,
                             ", ...], received ", points_shape.DebugString());
    }
    if (has_gradient) {
      const Tensor& given = context->input(context->num_inputs() - 1);
      TF_RETURN_IF_ERROR(Expect("gradient", given, out_shape));
      gradient = given.flat<T>().data();
    }
    return absl::OkStatus();
  }

  static absl::Status Expect(const char* name, const Tensor& tensor, const TensorShape& shape) {
    if (tensor.shape() == shape) return absl::OkStatus();
    return Invalid(name, " must have shape ", shape.DebugString(), ", received ",
                           tensor.shape().DebugString());
  }

  SampleSizes sizes;
  TensorShape values_shape, points_shape, weights_shape, out_shape;
  const T *values = nullptr, *points = nullptr, *weights = nullptr, *gradient = nullptr;
  const int64_t* image_index = nullptr;
};

template <typename T>
class SampleOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Arguments<T> in;
    OP_REQUIRES_OK(context, in.Read(context, false));
    const auto kernels = LoadKernels();
    OP_REQUIRES_OK(context, kernels.status());
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, in.out_shape, &out));
    (*kernels)->of<T>().sample(ThreadsOf(context), in.sizes, in.values, in.points, in.weights,
                               in.image_index, out->flat<T>().data());
  }
};

template <typename T>
class SampleGradValuesOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Arguments<T> in;
    OP_REQUIRES_OK(context, in.Read(context, true));
    const auto kernels = LoadKernels();
    OP_REQUIRES_OK(context, kernels.status());
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, in.values_shape, &out));
    (*kernels)->of<T>().sample_grad_values(ThreadsOf(context), in.sizes, in.points, in.weights,
                                           in.image_index, in.gradient, out->flat<T>().data());
  }
};

template <typename T>
class SampleGradPointsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Arguments<T> in;
    OP_REQUIRES_OK(context, in.Read(context, true));
    const auto kernels = LoadKernels();
    OP_REQUIRES_OK(context, kernels.status());
    Tensor* points;
    OP_REQUIRES_OK(context, context->allocate_output(0, in.points_shape, &points));
    Tensor* weights = nullptr;
    if (num_outputs() > 1) {  // weights may be there and empty
      OP_REQUIRES_OK(context, context->allocate_output(1, in.weights_shape, &weights));
    }
    (*kernels)->of<T>().sample_grad_points(ThreadsOf(context), in.sizes, in.values, in.points,
                                           in.weights, in.image_index, in.gradient,
                                           points->flat<T>().data(),
                                           weights != nullptr ? weights->flat<T>().data() : nullptr);
  }
};

#define REGISTER(T)                                                                             \
  REGISTER_KERNEL_BUILDER(                                                                      \
      Name("TfDeform>WeightedSample").Device(DEVICE_CPU).TypeConstraint<T>("T"), SampleOp<T>);  \
  REGISTER_KERNEL_BUILDER(                                                                      \
      Name("TfDeform>WeightedSampleGradValues").Device(DEVICE_CPU).TypeConstraint<T>("T"),      \
      SampleGradValuesOp<T>);                                                                   \
  REGISTER_KERNEL_BUILDER(                                                                      \
      Name("TfDeform>WeightedSampleGradPoints").Device(DEVICE_CPU).TypeConstraint<T>("T"),      \
      SampleGradPointsOp<T>)
REGISTER(float);
REGISTER(double);
#undef REGISTER

}  // namespace
}  // namespace tf_deform
