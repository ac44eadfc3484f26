// The ops TfDeform>DeformableConv and its gradient: shapes, checks, and calls of the kernels.

#include <limits>
#include <vector>

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

// Checks ranks and unifies batches; sets the output's shape. The inputs are inputs, kernel, offset,
// mask, before and, for the gradient, the gradient.
absl::Status InferShapes(InferenceContext* c, ShapeHandle* out) {
  int mask_count;
  std::vector<int> strides;
  TF_RETURN_IF_ERROR(c->GetAttr("mask_count", &mask_count));
  TF_RETURN_IF_ERROR(c->GetAttr("strides", &strides));
  const int rank = strides.size();
  if (mask_count > 1 || rank < 1 || rank > 3) {
    return Invalid("expected at most one mask and 1 to 3 strides");
  }
  ShapeHandle inputs, kernel, offset, mask, before;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), rank + 2, &inputs));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), rank + 2, &kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), rank + 2, &offset));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3 + mask_count), 1, &before));
  DimensionHandle batch;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(inputs, 0), c->Dim(offset, 0), &batch));
  TF_RETURN_IF_ERROR(c->ReplaceDim(offset, 0, batch, &offset));
  TF_RETURN_IF_ERROR(c->ReplaceDim(offset, rank + 1, c->Dim(kernel, rank + 1), out));
  if (mask_count) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(3), rank + 2, &mask));
    ShapeHandle expected;
    TF_RETURN_IF_ERROR(c->ReplaceDim(offset, rank + 1, c->Dim(mask, rank + 1), &expected));
    TF_RETURN_IF_ERROR(c->Merge(mask, expected, &mask));
  }
  return absl::OkStatus();
}

REGISTER_OP("TfDeform>DeformableConv")
    .Input("inputs: T")
    .Input("kernel: T")
    .Input("offset: T")
    .Input("mask: mask_count * T")
    .Input("before: int32")
    .Output("outputs: T")
    .Attr("T: {float, double}")
    .Attr("mask_count: int >= 0")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle out;
      TF_RETURN_IF_ERROR(InferShapes(c, &out));
      c->set_output(0, out);
      return absl::OkStatus();
    });

REGISTER_OP("TfDeform>DeformableConvGrad")
    .Input("inputs: T")
    .Input("kernel: T")
    .Input("offset: T")
    .Input("mask: mask_count * T")
    .Input("before: int32")
    .Input("gradient: T")
    .Output("inputs_gradient: T")
    .Output("kernel_gradient: T")
    .Output("offset_gradient: T")
    .Output("mask_gradient: mask_count * T")
    .Attr("T: {float, double}")
    .Attr("mask_count: int >= 0")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle out;
      TF_RETURN_IF_ERROR(InferShapes(c, &out));
      TF_RETURN_IF_ERROR(c->Merge(c->input(c->num_inputs() - 1), out, &out));
      for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(i));
      return absl::OkStatus();
    });

// The inputs of both ops, checked so that the kernels read within them.
template <typename T>
struct Arguments {
  absl::Status Read(OpKernelContext* context, const std::vector<int64_t>& strides,
                    const std::vector<int64_t>& dilations, bool has_gradient) {
    tensorflow::OpInputList masks;
    TF_RETURN_IF_ERROR(context->input_list("mask", &masks));
    const int rank = strides.size();
    const Tensor* input;
    const Tensor* kernel_tensor;
    const Tensor* offset_tensor;
    const Tensor* before;
    TF_RETURN_IF_ERROR(context->input("inputs", &input));
    TF_RETURN_IF_ERROR(context->input("kernel", &kernel_tensor));
    TF_RETURN_IF_ERROR(context->input("offset", &offset_tensor));
    TF_RETURN_IF_ERROR(context->input("before", &before));
    for (const Tensor* each : {input, kernel_tensor, offset_tensor}) {
      if (each->dims() != rank + 2) {
        return Invalid("inputs, kernel and offset must have ", rank + 2,
                               " axes, received ", input->shape().DebugString(), ", ",
                               kernel_tensor->shape().DebugString(), " and ",
                               offset_tensor->shape().DebugString());
      }
    }
    if (before->dims() != 1 || before->dim_size(0) != rank) {
      return Invalid("before must have shape [", rank, "], received ",
                             before->shape().DebugString());
    }
    sizes = {};
    sizes.rank = rank;
    sizes.batch = input->dim_size(0);
    sizes.channels = input->dim_size(rank + 1);
    sizes.filters = kernel_tensor->dim_size(rank + 1);
    int64_t taps = 1;
    for (int axis = 0; axis < rank; ++axis) {
      sizes.space[axis] = input->dim_size(axis + 1);
      sizes.output[axis] = offset_tensor->dim_size(axis + 1);
      sizes.kernel[axis] = kernel_tensor->dim_size(axis);
      sizes.strides[axis] = strides[axis];
      sizes.dilations[axis] = dilations[axis];
      sizes.before[axis] = before->vec<int32_t>()(axis);
      taps *= sizes.kernel[axis];
      if (sizes.output[axis] > std::numeric_limits<int32_t>::max() ||
          sizes.kernel[axis] > std::numeric_limits<int32_t>::max()) {
        return Invalid("output and kernel must be below 2^31 along each axis");
      }
    }
    const int64_t group_channels = kernel_tensor->dim_size(rank);
    if (taps < 1 || group_channels < 1 || sizes.filters < 1 || sizes.channels < 1 ||
        sizes.channels % group_channels || sizes.filters % (sizes.channels / group_channels)) {
      return Invalid(
          "kernel must have shape [*kernel_size, channels / groups, filters] with groups dividing "
          "channels and filters, received ",
          kernel_tensor->shape().DebugString(), " for ", sizes.channels, " channels");
    }
    sizes.groups = sizes.channels / group_channels;
    const int64_t coordinates = offset_tensor->dim_size(rank + 1);
    if (coordinates < 1 || coordinates % (taps * rank) ||
        sizes.channels % (coordinates / (taps * rank))) {
      return Invalid("offset must have deformable groups * ", taps, " taps * ", rank,
                             " coordinates channels with groups that divide the ", sizes.channels,
                             " channels of the inputs, received ",
                             offset_tensor->shape().DebugString());
    }
    sizes.deformable_groups = coordinates / (taps * rank);
    if (offset_tensor->dim_size(0) != sizes.batch) {
      return Invalid("offset must have the batch ", sizes.batch, " of the inputs, received ",
                             offset_tensor->shape().DebugString());
    }
    if (masks.size() > 1) return Invalid("mask must be at most one tensor");
    if (masks.size()) {
      mask_shape = offset_tensor->shape();
      mask_shape.set_dim(rank + 1, coordinates / rank);
      TF_RETURN_IF_ERROR(Expect("mask", masks[0], mask_shape));
      mask = masks[0].flat<T>().data();
    }
    out_shape = offset_tensor->shape();
    out_shape.set_dim(rank + 1, sizes.filters);
    if (has_gradient) {
      const Tensor* given;
      TF_RETURN_IF_ERROR(context->input("gradient", &given));
      TF_RETURN_IF_ERROR(Expect("gradient", *given, out_shape));
      gradient = given->flat<T>().data();
    }
    inputs_shape = input->shape();
    kernel_shape = kernel_tensor->shape();
    offset_shape = offset_tensor->shape();
    inputs = input->flat<T>().data();
    kernel = kernel_tensor->flat<T>().data();
    offset = offset_tensor->flat<T>().data();
    return absl::OkStatus();
  }

  static absl::Status Expect(const char* name, const Tensor& tensor, const TensorShape& shape) {
    if (tensor.shape() == shape) return absl::OkStatus();
    return Invalid(name, " must have shape ", shape.DebugString(), ", received ",
                           tensor.shape().DebugString());
  }

  ConvSizes sizes;
  TensorShape inputs_shape, kernel_shape, offset_shape, mask_shape, out_shape;
  const T *inputs = nullptr, *kernel = nullptr, *offset = nullptr, *mask = nullptr;
  const T* gradient = nullptr;
};

class ConvOpBase : public OpKernel {
 public:
  explicit ConvOpBase(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("strides", &strides_));
    OP_REQUIRES_OK(context, context->GetAttr("dilations", &dilations_));
    bool good = !strides_.empty() && strides_.size() <= 3 && strides_.size() == dilations_.size();
    for (const auto* each : {&strides_, &dilations_}) {
      for (const int64_t value : *each) {
        good = good && value >= 1 && value <= std::numeric_limits<int32_t>::max();
      }
    }
    OP_REQUIRES(context, good,
                Invalid("strides and dilations must be 1 to 3 ints each, from 1 to 2^31"));
  }

 protected:
  std::vector<int64_t> strides_, dilations_;
};

template <typename T>
class ConvOp : public ConvOpBase {
 public:
  using ConvOpBase::ConvOpBase;

  void Compute(OpKernelContext* context) override {
    Arguments<T> in;
    OP_REQUIRES_OK(context, in.Read(context, strides_, dilations_, false));
    const auto kernels = LoadKernels();
    OP_REQUIRES_OK(context, kernels.status());
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, in.out_shape, &out));
    (*kernels)->of<T>().conv(ThreadsOf(context), in.sizes, in.inputs, in.kernel, in.offset, in.mask,
                             out->flat<T>().data());
  }
};

template <typename T>
class ConvGradOp : public ConvOpBase {
 public:
  using ConvOpBase::ConvOpBase;

  void Compute(OpKernelContext* context) override {
    Arguments<T> in;
    OP_REQUIRES_OK(context, in.Read(context, strides_, dilations_, true));
    const auto kernels = LoadKernels();
    OP_REQUIRES_OK(context, kernels.status());
    const TensorShape* shapes[] = {&in.inputs_shape, &in.kernel_shape, &in.offset_shape,
                                   &in.mask_shape};
    T* out[4] = {};
    for (int i = 0; i < (num_outputs()); ++i) {
      Tensor* tensor;
      OP_REQUIRES_OK(context, context->allocate_output(i, *shapes[i], &tensor));
      out[i] = tensor->flat<T>().data();
    }
    (*kernels)->of<T>().conv_grad(ThreadsOf(context), in.sizes, in.inputs, in.kernel, in.offset,
                                  in.mask, in.gradient, out[0], out[1], out[2], out[3]);
  }
};

#define REGISTER(T)                                                                           \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("TfDeform>DeformableConv").Device(DEVICE_CPU).TypeConstraint<T>("T"), ConvOp<T>);  \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("TfDeform>DeformableConvGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"),          \
      ConvGradOp<T>)
REGISTER(float);
REGISTER(double);
#undef REGISTER

}  // namespace
}  // namespace tf_deform
