// The ops TfDeform>DeformableConv and its gradient: signatures and shapes.
// TensorFlow finds them by name.

#include <vector>

#include "absl/status/status.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deform {
namespace {

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
    return absl::InvalidArgumentError("expected at most one mask and 1 to 3 strides");
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
    .Input("offset: W")
    .Input("mask: mask_count * W")
    .Input("before: int32")
    .Output("outputs: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("W: {float, double}")
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
    .Input("offset: W")
    .Input("mask: mask_count * W")
    .Input("before: int32")
    .Input("gradient: T")
    .Output("inputs_gradient: W")
    .Output("kernel_gradient: W")
    .Output("offset_gradient: W")
    .Output("mask_gradient: mask_count * W")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("W: {float, double}")
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

}  // namespace
}  // namespace tf_deform
