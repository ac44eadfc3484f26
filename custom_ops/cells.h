// Where many points lie in an image: their corners and weights are found in vectors, and read one
// point at a time.

#ifndef TF_DEFORM_CELLS_H_
#define TF_DEFORM_CELLS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

// Up to kSize points: set position and factor, and call Find.
template <typename T, int kRank>
struct Cells {
  static constexpr int64_t kSize = 64;
  static constexpr int kMost = 1 << kRank;
  using Lanes = typename Vector<T>::Type;
  using Flags = decltype(Lanes{} < Lanes{});
  static constexpr int64_t kLanes = Vector<T>::kLanes;
  typedef double Doubles __attribute__((vector_size(8 * kLanes)));
  typedef uint64_t Integers __attribute__((vector_size(8 * kLanes)));

  // Sets what follows from position and factor.
  void Find(const Space<T, kRank>& space, int64_t count) {
    // Whole numbers up to 2^51 are added to this exactly, and are its last bits then.
    constexpr double kInteger = 0x1.8p52;
    for (int64_t i = 0; i < count; i += kLanes) {
      Lanes along[kRank][2];
      const Lanes scale = Load(factor + i);
      Flags all = IsFinite(scale);
      Doubles offset = Doubles{} + kInteger;
      for (int axis = 0; axis < kRank; ++axis) {
        const Lanes point = Load(position[axis] + i);
        const Lanes floor = Floor(point);
        along[axis][1] = point - floor;
        along[axis][0] = 1 - along[axis][1];
        all &= (floor >= 0) & (floor <= space.last[axis]);
        offset += __builtin_convertvector(floor, Doubles) * static_cast<double>(space.stride[axis]);
        Store(fraction[axis] + i, along[axis][1]);
      }
#pragma GCC unroll 8
      for (int corner = 0; corner < kMost; ++corner) {
        Store(weight[corner] + i, CornerWeight<kRank>(corner, along) * scale);
      }
      const Integers first =
          reinterpret_cast<Integers>(offset) - reinterpret_cast<Integers>(Doubles{} + kInteger);
      std::memcpy(lower + i, &first, sizeof first);
      std::memcpy(interior + i, &all, sizeof all);
    }
  }

  // The corners of any point; slow.
  template <bool kSlopes>
  void Corner(const Space<T, kRank>& space, int64_t i, Corners<T, kRank, kSlopes>* corners) const {
    T point[kRank];
    for (int axis = 0; axis < kRank; ++axis) point[axis] = position[axis][i];
    FindCorners(point, space, corners);
  }

  alignas(64) T position[kRank][kSize] = {};
  alignas(64) T factor[kSize] = {};  // of the sample
  // Set by Find. Where all corners exist and the factor is finite, interior is not 0 and lower is
  // the first one's offset; the weights hold the factor.
  alignas(64) T fraction[kRank][kSize], weight[kMost][kSize];
  alignas(64) int64_t lower[kSize];
  alignas(64) std::conditional_t<sizeof(T) == 4, int32_t, int64_t> interior[kSize];
};

// Whether a sample is NaN whatever it reads: the pixels that it does not read are the number 0, and
// 0 times a factor that is not finite is NaN.
template <typename T, int kRank, bool kSlopes>
inline bool IsSpoilt(const Corners<T, kRank, kSlopes>& corners, T factor) {
  return !(corners.reads && corners.count == corners.kMost) && !IsFinite(factor);
}

// out[c] = the sample of channel c at a cell, times its factor.
template <typename T, int kRank, typename S, typename Channels>
inline void Sample(const Cells<T, kRank>& cells, const Space<T, kRank>& space, int64_t i,
                   const S* __restrict__ values, Channels channels, T* __restrict__ out) {
  constexpr int kMost = 1 << kRank;
  T weight[kMost];
  if (cells.interior[i]) {
    for (int corner = 0; corner < kMost; ++corner) weight[corner] = cells.weight[corner][i];
    SumRows<kMost>(values + cells.lower[i], space.corner, weight, 0, channels, false, out);
    return;
  }
  Corners<T, kRank, false> corners;
  cells.Corner(space, i, &corners);
  const int count = corners.reads && !IsSpoilt(corners, cells.factor[i]) ? corners.count : 0;
  for (int each = 0; each < count; ++each) weight[each] = corners.weight[each] * cells.factor[i];
  if (count == 0) std::fill(out, out + channels, T(0) * cells.factor[i]);
  WithConstant<kMost>(count, [&](auto constant) {
    SumRows<constant>(values, corners.offset, weight, 0, channels, false, out);
  });
}

// The gradients of samples at cells, from their corners' dot products with what is upstream: to the
// coordinates, and at number kRank to the factor. For interior points alone.
template <typename T, int kRank>
inline void PointGradients(const Cells<T, kRank>& cells, int64_t count,
                           const T (*dot)[Cells<T, kRank>::kSize],
                           T (*gradient)[Cells<T, kRank>::kSize]) {
  for (int64_t i = 0; i < count; i += Vector<T>::kLanes) {
    typename Vector<T>::Type along[kRank][2], sum[kRank + 1] = {};
    for (int axis = 0; axis < kRank; ++axis) {
      along[axis][1] = Load(cells.fraction[axis] + i);
      along[axis][0] = 1 - along[axis][1];
    }
#pragma GCC unroll 8
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      const auto part = Load(dot[corner] + i);
      for (int axis = 0; axis < kRank; ++axis) {
        sum[axis] += CornerSlope<kRank>(corner, axis, along) * part;
      }
      sum[kRank] += CornerWeight<kRank>(corner, along) * part;
    }
    const auto factor = Load(cells.factor + i);
    for (int axis = 0; axis < kRank; ++axis) Store(gradient[axis] + i, sum[axis] * factor);
    Store(gradient[kRank] + i, sum[kRank]);
  }
}

// The same for the corners of one cell, whatever it is. gradient: [kRank + 1].
template <typename T, int kRank>
inline void PointGradient(const Cells<T, kRank>& cells, const Space<T, kRank>& space, int64_t cell,
                          const Corners<T, kRank>& corners, const T* dot, T* gradient) {
  const T factor = cells.factor[cell];
  T sample = 0;
  for (int i = 0; i < corners.count; ++i) sample += corners.weight[i] * dot[i];
  gradient[kRank] = corners.reads ? sample : T(0);
  for (int axis = 0; axis < kRank; ++axis) {
    T sum = corners.count < corners.kMost ? T(0) * factor : T(0);  // of the pixels that are missing
    for (int i = 0; i < corners.count; ++i) sum += corners.slope[i][axis] * (dot[i] * factor);
    gradient[axis] = HasGradient(cells.position[axis][cell], space.limit[axis]) ? sum : T(0);
  }
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CELLS_H_
