// A table of C functions: what the CUDA kernels offer. Pointers are to the device's memory.
// For this room, which fills it, for tensorflow, and for benchmarks that know no TensorFlow.

#ifndef TF_DEFORM_CUSTOM_OPS_CUDA_KERNELS_H_
#define TF_DEFORM_CUSTOM_OPS_CUDA_KERNELS_H_

#include "custom_ops/kernels.h"

namespace tf_deform {

// T below is the type; W is float, or double where T is: coordinates and sums are no narrower.
enum class CudaType : int { kFloat32, kFloat64, kFloat16, kBfloat16 };

struct CudaCall {
  void* stream;       // a cudaStream_t of the current device
  CudaType type;      // of values, inputs, kernel and outputs
  int tensor_float;   // whether float32 products may be made of TF32 factors
  int deterministic;  // whether what adds in no fixed order is refused
};

// Each function starts its kernels on the stream and returns null, or why it did not. Shapes are as
// in kernels.h, and so are the arguments that may be null.
struct CudaKernels {
  // Why the machine's driver cannot run the kernels, or null.
  const char* (*unavailable)();

  // values T, points W, weights W, out W. A row whose image_index is out of range is 0, and so are
  // its gradients: nobody can look at it before the kernel does.
  const char* (*sample)(const CudaCall& call, const SampleSizes& sizes, const void* values,
                        const void* points, const void* weights, const int64_t* image_index,
                        void* out);
  // gradient W, values_gradient W. Adds in no fixed order.
  const char* (*sample_grad_values)(const CudaCall& call, const SampleSizes& sizes,
                                    const void* points, const void* weights,
                                    const int64_t* image_index, const void* gradient,
                                    void* values_gradient);
  // gradient W, points_gradient W, weights_gradient W.
  const char* (*sample_grad_points)(const CudaCall& call, const SampleSizes& sizes,
                                    const void* values, const void* points, const void* weights,
                                    const int64_t* image_index, const void* gradient,
                                    void* points_gradient, void* weights_gradient);
  // inputs T, kernel T, offset W, mask W, out T.
  const char* (*conv)(const CudaCall& call, const ConvSizes& sizes, const void* inputs,
                      const void* kernel, const void* offset, const void* mask, void* out);
  // gradient T; those returned are all W. Adds in no fixed order.
  const char* (*conv_grad)(const CudaCall& call, const ConvSizes& sizes, const void* inputs,
                           const void* kernel, const void* offset, const void* mask,
                           const void* gradient, void* inputs_gradient, void* kernel_gradient,
                           void* offset_gradient, void* mask_gradient);
};

void SetCudaSampleKernels(CudaKernels* kernels);
void SetCudaConvKernels(CudaKernels* kernels);
void SetCudaConvGradKernels(CudaKernels* kernels);

constexpr const char* kNotDeterministic =
    "the gradients of the CUDA kernels add in no fixed order, which deterministic ops forbid: use "
    "the portable implementation";

}  // namespace tf_deform

// The only name that the library shows.
extern "C" const tf_deform::CudaKernels* TfDeformCudaKernels();

#endif  // TF_DEFORM_CUSTOM_OPS_CUDA_KERNELS_H_
