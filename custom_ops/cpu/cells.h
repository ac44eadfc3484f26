// Where many points lie in an image: corners and weights, found in vectors, read one by one.
// For this room.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_CELLS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_CELLS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "custom_ops/cpu/rows.h"
#include "custom_ops/sampling.h"

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
  using Flag = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  // Sets what follows from position and factor.
  void Find(const Space<T, kRank>& space, int64_t count) {
    // Whole numbers up to 2^51 are added to this exactly, and are its last bits then.
    constexpr double kInteger = 0x1.8p52;
    for (int64_t i = 0; i < count; i += kLanes) {
      Lanes along[kRank][2];
      Flags there[kRank][2];  // pixels on both sides
      const Lanes scale = Load(factor + i);
      Flags all = IsFinite(scale), bits = {};
      Doubles offset = Doubles{} + kInteger;
      for (int axis = 0; axis < kRank; ++axis) {
        const Lanes point = Load(position[axis] + i);
        const Lanes floor = Floor(point);
        along[axis][1] = point - floor;
        along[axis][0] = 1 - along[axis][1];
        const Flags near = (point > -1) & (point < space.limit[axis]);
        there[axis][0] = near & (floor >= 0);
        there[axis][1] = near & (floor <= space.last[axis]);
        all &= there[axis][0] & there[axis][1];
        offset += __builtin_convertvector(floor, Doubles) * static_cast<double>(space.stride[axis]);
        Store(fraction[axis] + i, along[axis][1]);
        for (int side = 0; side < 2; ++side) {
          along[axis][side] = there[axis][side] ? along[axis][side] : Lanes{};
        }
      }
#pragma GCC unroll 8
      for (int corner = 0; corner < kMost; ++corner) {
        Store(weight[corner] + i, CornerWeight<kRank>(corner, along) * scale);
        Flags flags = Flags{} + (1 << corner);
        for (int axis = 0; axis < kRank; ++axis) flags &= there[axis][Side<kRank>(corner, axis)];
        bits |= flags;
      }
      const Integers first =
          reinterpret_cast<Integers>(offset) - reinterpret_cast<Integers>(Doubles{} + kInteger);
      std::memcpy(lower + i, &first, sizeof first);
      std::memcpy(interior + i, &all, sizeof all);
      std::memcpy(corners + i, &bits, sizeof bits);
    }
  }

  // The corners of any point; slow.
  template <bool kSlopes>
  void Corner(const Space<T, kRank>& space, int64_t i, Corners<T, kRank, kSlopes>* found) const {
    T point[kRank];
    for (int axis = 0; axis < kRank; ++axis) point[axis] = position[axis][i];
    FindCorners(point, space, found);
  }

  // Sets row[corner][i] to where the row of a corner begins in an image: of one that the sample does
  // not read, to zeros.
  template <typename S>
  void Rows(const Space<T, kRank>& space, int64_t count, const S* image, const S* zeros,
            const S* (*row)[kSize]) const {
    constexpr int kLastBit = 8 * sizeof(Flag) - 1;
    const auto nothing = reinterpret_cast<uintptr_t>(zeros);
    for (int64_t i = 0; i < count; i += kLanes) {
      Integers first;
      Flags bits;
      std::memcpy(&first, lower + i, sizeof first);
      std::memcpy(&bits, corners + i, sizeof bits);
      first = first * sizeof(S) + (reinterpret_cast<uintptr_t>(image) - nothing);
#pragma GCC unroll 8
      for (int corner = 0; corner < kMost; ++corner) {
        const Flags reads = bits << (kLastBit - corner) >> kLastBit;
        const Integers from = first + static_cast<uint64_t>(space.corner[corner]) * sizeof(S);
        const Integers address = (__builtin_convertvector(reads, Integers) & from) + nothing;
        std::memcpy(row[corner] + i, &address, sizeof address);
      }
    }
  }

  alignas(64) T position[kRank][kSize] = {};
  alignas(64) T factor[kSize] = {};  // of the sample
  // Set by Find. The sample reads the corners whose bits are 1 in `corners`, at lower +
  // space.corner; the weights hold the factor, and are 0 times the factor where it reads nothing.
  // Where it reads all corners and the factor is finite, interior is not 0.
  alignas(64) T fraction[kRank][kSize], weight[kMost][kSize];
  alignas(64) int64_t lower[kSize];
  alignas(64) Flag corners[kSize], interior[kSize];
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

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_CELLS_H_
