// The table of the CUDA kernels, and whether this machine can run them.
// Loaded by tensorflow/load_cuda.cc, and by benchmarks/cuda.

#include <cstdio>

#include "custom_ops/cuda/device.h"

namespace tf_deform {
namespace {

// The runtime is linked in, and needs a driver of its own major version at least.
const char* Unavailable() {
  static char reason[160];
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no NVIDIA driver";
  if (driver / 1000 < CUDART_VERSION / 1000) {
    std::snprintf(reason, sizeof(reason),
                  "the NVIDIA driver is for CUDA %d.%d, and the library needs one for CUDA %d",
                  driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
    return reason;
  }
  return nullptr;
}

}  // namespace
}  // namespace tf_deform

extern "C" __attribute__((visibility("default"))) const tf_deform::CudaKernels*
TfDeformCudaKernels() {
  static const tf_deform::CudaKernels kernels = [] {
    tf_deform::CudaKernels table;
    table.unavailable = [] {
      static const char* const reason = tf_deform::Unavailable();
      return reason;
    };
    tf_deform::SetCudaSampleKernels(&table);
    tf_deform::SetCudaConvKernels(&table);
    tf_deform::SetCudaConvGradKernels(&table);
    return table;
  }();
  return &kernels;
}
