// The table of the kernels in this library.

#include "kernels.h"

extern "C" __attribute__((visibility("default"))) const tf_deform::Kernels* TfDeformKernels() {
  static const tf_deform::Kernels kernels = [] {
    tf_deform::Kernels table;
    tf_deform::SetSampleKernels(&table.f32);
    tf_deform::SetSampleKernels(&table.f64);
    tf_deform::SetConvKernels(&table.f32);
    tf_deform::SetConvKernels(&table.f64);
    tf_deform::SetConvGradKernels(&table.f32);
    tf_deform::SetConvGradKernels(&table.f64);
    return table;
  }();
  return &kernels;
}
