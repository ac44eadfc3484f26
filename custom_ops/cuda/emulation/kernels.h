// All CUDA kernels, compiled for the CPU, and the table that a library of them would show.
// For one source of a test program alone: it defines what it holds.

#ifndef TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_KERNELS_H_
#define TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_KERNELS_H_

#include "custom_ops/cuda/deformable_conv.cu"
#include "custom_ops/cuda/deformable_conv_grad.cu"
#include "custom_ops/cuda/sample.cu"

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

#endif  // TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_KERNELS_H_
