// The CUDA kernels in a table like that of the CPU's, so that whoever runs a call need not care.
// For this room.

#ifndef TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CUDA_H_
#define TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CUDA_H_

#include <string>

#include "custom_ops/cuda/kernels.h"
#include "custom_ops/kernels.h"

namespace tf_deform {

// What stands where the CPU's kernels have their threads: a stream, and what TensorFlow was told of
// products and sums.
struct GpuQueue {
  explicit GpuQueue(void* stream);

  CudaCall call;

  Pool pool() { return {nullptr, this}; }
};

// A table of kernels that take the pool of a GpuQueue, and memory of the device; null with an error if
// this machine cannot run them. They lie in a library beside this one, loaded once.
const Kernels* LoadGpuKernels(std::string* error);

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CUDA_H_
