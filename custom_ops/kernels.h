// What the CPU kernels offer: a table of C functions, one table an instruction set. They know
// neither TensorFlow nor XLA: who calls them checks the arguments and lends the threads.

#ifndef TF_DEFORM_KERNELS_H_
#define TF_DEFORM_KERNELS_H_

#include <cstdint>

namespace tf_deform {

// Threads to run on. `run` calls work(data, begin, end) for ranges that cover [0, count), at once
// or in turns, and returns when all are done. `cost` is a guess of the cycles that one takes.
struct Pool {
  void (*run)(void* context, int64_t count, int64_t cost,
              void (*work)(void* data, int64_t begin, int64_t end), void* data);
  void* context;
};

template <typename Work>
void ParallelFor(const Pool& pool, int64_t count, int64_t cost, Work&& work) {
  if (count <= 0) return;
  pool.run(
      pool.context, count, cost,
      [](void* data, int64_t begin, int64_t end) { (*static_cast<Work*>(data))(begin, end); },
      &work);
}

struct SampleSizes {
  int rank;  // 1 to 3
  int64_t images, space[3], channels, rows, queries, groups, points;
};

struct ConvSizes {
  int rank;  // 1 to 3
  int64_t batch, space[3], channels, output[3], filters;
  int64_t kernel[3], strides[3], dilations[3], before[3];
  int64_t groups, deformable_groups;
};

template <typename T>
struct TypedKernels {
  // values [images, *space, channels], points [rows, queries, groups, points, rank], weights
  // [rows, queries, groups, points] or null, image_index [rows] or null, out [rows, queries,
  // channels]; gradients are as what they are gradients of, weights_gradient null without weights.
  void (*sample)(const Pool& pool, const SampleSizes& sizes, const T* values, const T* points,
                 const T* weights, const int64_t* image_index, T* out);
  void (*sample_grad_values)(const Pool& pool, const SampleSizes& sizes, const T* points,
                             const T* weights, const int64_t* image_index, const T* gradient,
                             T* values_gradient);
  void (*sample_grad_points)(const Pool& pool, const SampleSizes& sizes, const T* values,
                             const T* points, const T* weights, const int64_t* image_index,
                             const T* gradient, T* points_gradient, T* weights_gradient);
  // inputs [batch, *space, channels], kernel [*kernel, channels / groups, filters], offset
  // [batch, *output, deformable groups * taps * rank], mask [batch, *output, deformable groups *
  // taps] or null, out [batch, *output, filters]; mask_gradient null without a mask.
  void (*conv)(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
               const T* offset, const T* mask, T* out);
  void (*conv_grad)(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
                    const T* offset, const T* mask, const T* gradient, T* inputs_gradient,
                    T* kernel_gradient, T* offset_gradient, T* mask_gradient);
};

struct Kernels {
  TypedKernels<float> f32;
  TypedKernels<double> f64;

  template <typename T>
  const TypedKernels<T>& of() const;
};

template <>
inline const TypedKernels<float>& Kernels::of<float>() const {
  return f32;
}
template <>
inline const TypedKernels<double>& Kernels::of<double>() const {
  return f64;
}

template <typename T>
void SetSampleKernels(TypedKernels<T>* kernels);
template <typename T>
void SetConvKernels(TypedKernels<T>* kernels);
template <typename T>
void SetConvGradKernels(TypedKernels<T>* kernels);

}  // namespace tf_deform

// The only name that a kernel library shows.
extern "C" const tf_deform::Kernels* TfDeformKernels();

#endif  // TF_DEFORM_KERNELS_H_
