// Tensors in NumPy's .npy files, little-endian and in C order.

#ifndef TF_DEFORM_CUSTOM_OPS_SERVING_NPY_H_
#define TF_DEFORM_CUSTOM_OPS_SERVING_NPY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tensorflow/core/framework/tensor.h"

namespace tf_deform {

absl::StatusOr<tensorflow::Tensor> ReadNpy(const std::string& path);

absl::Status WriteNpy(const std::string& path,
                      const tensorflow::Tensor& tensor);

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_SERVING_NPY_H_
