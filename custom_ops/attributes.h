#ifndef TF_DEFORM_ATTRIBUTES_H_
#define TF_DEFORM_ATTRIBUTES_H_

#include <string>

#include "absl/status/status.h"
#include "call.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deform {

// What TensorFlow is told of an error.
inline absl::Status StatusOf(const Error& error) {
  return error.kind == Error::kNone     ? absl::OkStatus()
         : error.kind == Error::kMemory ? absl::ResourceExhaustedError(error.text)
                                        : absl::InternalError(error.text);
}

// Sets all of the call that the node says, which is all but the shapes, the type and `before`.
inline absl::Status ReadAttributes(tensorflow::OpKernelConstruction* node, Op op, Call* call) {
  call->op = op;
  if (!IsConv(op)) {
    std::string units;
    TF_RETURN_IF_ERROR(node->GetAttr("units", &units));
    call->units = units == "pixels"  ? Units::kPixels
                  : units == "edges" ? Units::kEdges
                                     : Units::kCenters;
    TF_RETURN_IF_ERROR(node->GetAttr("weight_count", &call->weight_count));
    return node->GetAttr("index_count", &call->index_count);
  }
  TF_RETURN_IF_ERROR(node->GetAttr("mask_count", &call->weight_count));
  TF_RETURN_IF_ERROR(node->GetAttr("strides", &call->strides));
  return node->GetAttr("dilations", &call->dilations);
}

}  // namespace tf_deform

#endif  // TF_DEFORM_ATTRIBUTES_H_
