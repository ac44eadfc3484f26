// Linear interpolation in one to three dimensions: corners, weights and derivatives. This is the
// only interpolation in C++; it needs no library, and CUDA can include it.

#ifndef TF_DEFORM_SAMPLING_H_
#define TF_DEFORM_SAMPLING_H_

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define TF_DEFORM_INLINE __host__ __device__ __forceinline__
#define TF_DEFORM_UNROLL _Pragma("unroll")
#else
#define TF_DEFORM_INLINE inline __attribute__((always_inline))
#define TF_DEFORM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace tf_deform {

// On which side a corner is along an axis, 0 or 1: its number's bits, the first axis highest.
template <int kRank>
TF_DEFORM_INLINE constexpr int Side(int corner, int axis) {
  return corner >> (kRank - 1 - axis) & 1;
}

// The weight of a corner. along: of both sides of each axis, 1 - fraction and fraction. T may be a
// vector.
template <int kRank, typename T>
TF_DEFORM_INLINE T CornerWeight(int corner, const T (*along)[2]) {
  T weight = along[0][Side<kRank>(corner, 0)];
  TF_DEFORM_UNROLL
  for (int axis = 1; axis < kRank; ++axis) weight *= along[axis][Side<kRank>(corner, axis)];
  return weight;
}

// The derivative of a corner's weight to the coordinate along an axis.
template <int kRank, typename T>
TF_DEFORM_INLINE T CornerSlope(int corner, int axis, const T (*along)[2]) {
  T slope = Side<kRank>(corner, axis) ? T{} + 1 : T{} - 1;
  TF_DEFORM_UNROLL
  for (int other = 0; other < kRank; ++other) {
    if (other != axis) slope *= along[other][Side<kRank>(corner, other)];
  }
  return slope;
}

// An image's axes. Strides are in elements.
template <typename T, int kRank>
struct Space {
  Space(const int64_t* sizes, int64_t channels) {
    elements = channels;
    for (int axis = kRank - 1; axis >= 0; --axis) {
      size[axis] = sizes[axis];
      limit[axis] = static_cast<T>(sizes[axis]);
      last[axis] = static_cast<T>(sizes[axis] - 2);
      if (static_cast<int64_t>(last[axis]) > sizes[axis] - 2) {
        last[axis] = std::nextafter(last[axis], T(0));
      }
      stride[axis] = elements;
      elements *= sizes[axis];
    }
    for (int each = 0; each < 1 << kRank; ++each) {
      corner[each] = 0;
      for (int axis = 0; axis < kRank; ++axis)
        corner[each] += Side<kRank>(each, axis) * stride[axis];
    }
  }

  int64_t size[kRank], stride[kRank];
  T limit[kRank];              // the sizes
  T last[kRank];               // a pixel up to here has another one after it
  int64_t corner[1 << kRank];  // from the first corner to each
  int64_t elements;            // of the image
};

// The pixels around a point. Those outside the image are left out, never multiplied by 0, so that
// a NaN that is not read cannot leak. Slopes are set with kSlopes alone.
template <typename T, int kRank, bool kSlopes = true>
struct Corners {
  static constexpr int kMost = 1 << kRank;

  int count;              // 0 where the point is outside or not finite
  bool reads;             // whether the sample reads them; if not, only its derivatives do
  int64_t offset[kMost];  // from the image's first element
  T weight[kMost];        // the sample is the sum of weight * value
  T slope[kMost][kRank];  // derivatives of the weight to the coordinates
};

// Sets number `at` to a corner. lower: the first corner's offset. along: as in CornerWeight.
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void SetCorner(const Space<T, kRank>& space, int corner, int64_t lower,
                                const T (*along)[2], int at, Corners<T, kRank, kSlopes>* corners) {
  corners->offset[at] = lower + space.corner[corner];
  corners->weight[at] = CornerWeight<kRank>(corner, along);
  if (!kSlopes) return;
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    corners->slope[at][axis] = CornerSlope<kRank>(corner, axis, along);
  }
}

// Finds the corners of a point under the zeros rule: a sample reads where -1 < p < size. At p = -1
// it is 0 while its derivative follows the corner that exists, so that zero offsets can learn.
// point: [kRank].
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void FindCorners(const T* point, const Space<T, kRank>& space,
                                  Corners<T, kRank, kSlopes>* corners) {
  constexpr int kMost = 1 << kRank;
  int64_t index[kRank];
  T along[kRank][2];
  int64_t lower = 0;
  bool interior = true;
  bool reads = true;
  corners->count = 0;
  corners->reads = false;
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    const T p = point[axis];
    // NaN fails the first, infinity one of them: what is cast to an integer is in range.
    if (!(p >= T(-1)) || !(p < space.limit[axis])) return;
    const T floor = std::floor(p);
    index[axis] = static_cast<int64_t>(floor);
    along[axis][1] = p - floor;
    along[axis][0] = T(1) - along[axis][1];
    lower += index[axis] * space.stride[axis];
    interior = interior && index[axis] >= 0 && index[axis] + 1 < space.size[axis];
    reads = reads && p > T(-1);
  }
  if (interior) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < kMost; ++corner) {
      SetCorner(space, corner, lower, along, corner, corners);
    }
    corners->count = kMost;
    corners->reads = true;
    return;
  }
  for (int corner = 0; corner < kMost; ++corner) {
    bool exists = true;
    for (int axis = 0; axis < kRank; ++axis) {
      const int64_t at = index[axis] + Side<kRank>(corner, axis);
      exists = exists && at >= 0 && at < space.size[axis];
    }
    if (exists) SetCorner(space, corner, lower, along, corners->count++, corners);
  }
  corners->reads = reads && corners->count > 0;
}

}  // namespace tf_deform

#endif  // TF_DEFORM_SAMPLING_H_
