// The ops TfDeform>WeightedSample and its two gradients: signatures and shapes.
// TensorFlow finds them by name.
//
// W is float32, or float64 if T is that. units: what the points are in, as in kernels.h.

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deform {
namespace {

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
    return absl::InvalidArgumentError("weights and image_index must be at most one tensor each");
  }
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 5, &shapes->points));
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 3, &shapes->values));
  TF_RETURN_IF_ERROR(c->WithRankAtMost(shapes->values, 5, &shapes->values));
  const DimensionHandle rank = c->Dim(shapes->points, 4);
  if (c->ValueKnown(rank)) {
    if (c->Value(rank) < 1 || c->Value(rank) > 3) {
      return absl::InvalidArgumentError(
          absl::StrCat("points must have 1 to 3 coordinates, received ", c->Value(rank)));
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
    .Input("points: W")
    .Input("weights: weight_count * W")
    .Input("image_index: index_count * int64")
    .Output("samples: W")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("W: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .Attr("units: {'pixels', 'edges', 'centers'} = 'pixels'")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, false, &shapes));
      c->set_output(0, shapes.gradient);
      return absl::OkStatus();
    });

REGISTER_OP("TfDeform>WeightedSampleGradValues")
    .Input("values: T")
    .Input("points: W")
    .Input("weights: weight_count * W")
    .Input("image_index: index_count * int64")
    .Input("gradient: W")
    .Output("values_gradient: W")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("W: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .Attr("units: {'pixels', 'edges', 'centers'} = 'pixels'")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, true, &shapes));
      c->set_output(0, shapes.values);
      return absl::OkStatus();
    });

REGISTER_OP("TfDeform>WeightedSampleGradPoints")
    .Input("values: T")
    .Input("points: W")
    .Input("weights: weight_count * W")
    .Input("image_index: index_count * int64")
    .Input("gradient: W")
    .Output("points_gradient: W")
    .Output("weights_gradient: weight_count * W")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("W: {float, double}")
    .Attr("weight_count: int >= 0")
    .Attr("index_count: int >= 0")
    .Attr("units: {'pixels', 'edges', 'centers'} = 'pixels'")
    .SetShapeFn([](InferenceContext* c) {
      SampleShapes shapes;
      TF_RETURN_IF_ERROR(InferShapes(c, true, &shapes));
      c->set_output(0, shapes.points);
      if (c->num_outputs() > 1) c->set_output(1, shapes.weights);
      return absl::OkStatus();
    });

}  // namespace
}  // namespace tf_deform
