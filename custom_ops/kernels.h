// A table of C functions: what the kernels offer, the sizes that they take, and threads to run on.
// For cpu, which fills it, tensorflow, which calls it, and cuda, which takes the same sizes.
//
// There is one table an instruction set. Kernels know neither TensorFlow nor XLA: who calls them
// has checked the arguments and lends the threads.

#ifndef TF_DEFORM_CUSTOM_OPS_KERNELS_H_
#define TF_DEFORM_CUSTOM_OPS_KERNELS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "custom_ops/errors.h"
#include "custom_ops/sampling.h"

namespace tf_deform {

// Threads to run on. `run` calls work(data, begin, end) for ranges that cover [0, count), at once
// or in turns, and returns when all are done. `cost` is a guess of the cycles that one takes.
// Neither run nor work throws.
struct Pool {
  void (*run)(void* context, int64_t count, int64_t cost,
              void (*work)(void* data, int64_t begin, int64_t end), void* data);
  void* context;
};

// Calls work(begin, end) for ranges that cover [0, count). What the first to fail throws is thrown
// here, as an Error, when all that have begun are done; the others are left out. The cost is no
// integer, of which products could overflow.
template <typename Work>
void ParallelFor(const Pool& pool, int64_t count, double cost, Work&& work) {
  if (count <= 0) return;
  struct Loop {
    void Run(int64_t begin, int64_t end) noexcept {
      if (failed) return;
      const Error error = Guarded([&] { work(begin, end); });
      if (error && !failed.exchange(true)) first = error;
    }
    Work& work;
    std::atomic<bool> failed{false};
    Error first = {};
  };
  Loop loop{work};
  pool.run(
      pool.context, count, static_cast<int64_t>(std::min(cost, 1e15)),
      [](void* data, int64_t begin, int64_t end) { static_cast<Loop*>(data)->Run(begin, end); },
      &loop);
  if (loop.first) throw loop.first;
}

struct SampleSizes {
  int rank;  // 1 to 3
  Units units;
  int64_t images, space[3], channels, rows, queries, groups, points;
};

struct ConvSizes {
  int rank;  // 1 to 3
  int64_t batch, space[3], channels, output[3], filters;
  int64_t kernel[3], strides[3], dilations[3], before[3];
  int64_t groups, deformable_groups;
};

// 16-bit numbers as they lie in memory.
struct Float16Bits {
  uint16_t bits;
};
struct Bfloat16Bits {
  uint16_t bits;
};

// What a type is computed in: coordinates, weights and sums are no narrower than float32.
template <typename T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <typename T>
using Wide = typename WideOf<T>::Type;

// None throws: each returns what went wrong, and what it wrote is worthless then. All products of
// sizes fit in int64_t.
template <typename T>
struct TypedKernels {
  using W = Wide<T>;

  // values [images, *space, channels], points [rows, queries, groups, points, rank], weights
  // [rows, queries, groups, points] or null, image_index [rows] or null, out [rows, queries,
  // channels]; gradients are as what they are gradients of, weights_gradient null without weights.
  Error (*sample)(const Pool& pool, const SampleSizes& sizes, const T* values, const W* points,
                  const W* weights, const int64_t* image_index, W* out);
  Error (*sample_grad_values)(const Pool& pool, const SampleSizes& sizes, const W* points,
                              const W* weights, const int64_t* image_index, const W* gradient,
                              W* values_gradient);
  Error (*sample_grad_points)(const Pool& pool, const SampleSizes& sizes, const T* values,
                              const W* points, const W* weights, const int64_t* image_index,
                              const W* gradient, W* points_gradient, W* weights_gradient);
  // inputs [batch, *space, channels], kernel [*kernel, channels / groups, filters], offset
  // [batch, *output, deformable groups * taps * rank], mask [batch, *output, deformable groups *
  // taps] or null, out [batch, *output, filters]; mask_gradient null without a mask.
  Error (*conv)(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
                const W* offset, const W* mask, T* out);
  Error (*conv_grad)(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
                     const W* offset, const W* mask, const T* gradient, W* inputs_gradient,
                     W* kernel_gradient, W* offset_gradient, W* mask_gradient);
};

// Calls the function for the rank of the sizes, and returns what it threw.
template <typename Function, typename Sizes, typename... Arguments>
Error OfRank(Function* one, Function* two, Function* three, const Pool& pool, const Sizes& sizes,
             const Arguments&... arguments) {
  Function* const function = sizes.rank == 1 ? one : sizes.rank == 2 ? two : three;
  return Guarded([&] { function(pool, sizes, arguments...); });
}

struct Kernels {
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  TypedKernels<Float16Bits> f16;
  TypedKernels<Bfloat16Bits> bf16;

  template <typename T>
  const TypedKernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return f32;
    } else if constexpr (std::is_same_v<T, double>) {
      return f64;
    } else if constexpr (std::is_same_v<T, Float16Bits>) {
      return f16;
    } else {
      static_assert(std::is_same_v<T, Bfloat16Bits>);
      return bf16;
    }
  }
};

template <typename T>
void SetSampleKernels(TypedKernels<T>* kernels);
template <typename T>
void SetConvKernels(TypedKernels<T>* kernels);
template <typename T>
void SetConvGradKernels(TypedKernels<T>* kernels);

}  // namespace tf_deform

// The only name that a kernel library shows.
extern "C" const tf_deform::Kernels* TfDeformKernels();

#endif  // TF_DEFORM_CUSTOM_OPS_KERNELS_H_
