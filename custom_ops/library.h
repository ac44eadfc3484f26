// Finds the kernels for this processor, and lends them TensorFlow's threads.

#ifndef TF_DEFORM_LIBRARY_H_
#define TF_DEFORM_LIBRARY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deform {

// The kernels of the best instruction set that the processor has, or why there are none. They lie
// in libraries of their own beside this one, loaded once.
absl::StatusOr<const Kernels*> LoadKernels();

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// TensorFlow's intra-op threads.
Pool ThreadsOf(tensorflow::OpKernelContext* context);

}  // namespace tf_deform

// The instruction set of the kernels loaded, or "" if there are none.
extern "C" const char* TfDeformInstructionSet();

#endif  // TF_DEFORM_LIBRARY_H_
