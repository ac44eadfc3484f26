// The CUDA kernels, run on the CPU: their table, as a library of them shows it. For one source of a
// program alone.

#ifndef TF_DEFORM_EMULATED_KERNELS_H_
#define TF_DEFORM_EMULATED_KERNELS_H_

#include "deformable_conv_cuda.cu"
#include "deformable_conv_grad_cuda.cu"
#include "sample_cuda.cu"

extern "C" const tf_deform::CudaKernels* TfDeformCudaKernels() {
  static const tf_deform::CudaKernels kernels = [] {
    tf_deform::CudaKernels table;
    table.unavailable = []() -> const char* { return nullptr; };
    tf_deform::SetCudaSampleKernels(&table);
    tf_deform::SetCudaConvKernels(&table);
    tf_deform::SetCudaConvGradKernels(&table);
    return table;
  }();
  return &kernels;
}

#endif  // TF_DEFORM_EMULATED_KERNELS_H_
