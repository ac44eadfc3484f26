// The table of the kernels in this library.
// Loaded by tensorflow/load_cpu.cc; Bazel links it in.

#include "custom_ops/kernels.h"

namespace {

template <typename T>
void Set(tf_deform::TypedKernels<T>* kernels) {
  SetSampleKernels(kernels);
  SetConvKernels(kernels);
  SetConvGradKernels(kernels);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const tf_deform::Kernels* TfDeformKernels() {
  static const tf_deform::Kernels kernels = [] {
    tf_deform::Kernels table;
    Set(&table.f32);
    Set(&table.f64);
    Set(&table.f16);
    Set(&table.bf16);
    return table;
  }();
  return &kernels;
}
