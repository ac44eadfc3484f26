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

// An image's axes. Strides are in elements.
template <typename T, int kRank>
struct Space {
  Space(const int64_t* sizes, int64_t channels) {
    elements = channels;
    for (int axis = kRank - 1; axis >= 0; --axis) {
      size[axis] = sizes[axis];
      limit[axis] = static_cast<T>(sizes[axis]);
      stride[axis] = elements;
      elements *= sizes[axis];
    }
  }

  int64_t size[kRank], stride[kRank];
  T limit[kRank];    // the sizes
  int64_t elements;  // of the image
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

// Sets offset, weight and slope number `at` to those of a corner, whose bits are the sides along the
// axes, the first axis highest. lower: the first corner's offset. fraction: how far the point is.
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void SetCorner(const Space<T, kRank>& space, int corner, int64_t lower,
                                const T* fraction, int at, Corners<T, kRank, kSlopes>* corners) {
  const auto side = [&](int axis) { return corner >> (kRank - 1 - axis) & 1; };
  const auto along = [&](int axis) { return side(axis) ? fraction[axis] : T(1) - fraction[axis]; };
  int64_t offset = lower;
  T weight = along(0);
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    offset += side(axis) ? space.stride[axis] : 0;
    if (axis > 0) weight *= along(axis);
    if (!kSlopes) continue;
    T slope = side(axis) ? T(1) : T(-1);
    TF_DEFORM_UNROLL
    for (int other = 0; other < kRank; ++other) {
      if (other != axis) slope *= along(other);
    }
    corners->slope[at][axis] = slope;
  }
  corners->offset[at] = offset;
  corners->weight[at] = weight;
}

// Finds the corners of a point under the zeros rule: a sample reads where -1 < p < size. At p = -1
// it is 0 while its derivative follows the corner that exists, so that zero offsets can learn.
// point: [kRank].
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void FindCorners(const T* point, const Space<T, kRank>& space,
                                  Corners<T, kRank, kSlopes>* corners) {
  constexpr int kMost = 1 << kRank;
  int64_t index[kRank];
  T fraction[kRank];
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
    fraction[axis] = p - floor;
    lower += index[axis] * space.stride[axis];
    interior = interior && index[axis] >= 0 && index[axis] + 1 < space.size[axis];
    reads = reads && p > T(-1);
  }
  if (interior) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < kMost; ++corner) {
      SetCorner(space, corner, lower, fraction, corner, corners);
    }
    corners->count = kMost;
    corners->reads = true;
    return;
  }
  for (int corner = 0; corner < kMost; ++corner) {
    bool exists = true;
    for (int axis = 0; axis < kRank; ++axis) {
      const int64_t at = index[axis] + (corner >> (kRank - 1 - axis) & 1);
      exists = exists && at >= 0 && at < space.size[axis];
    }
    if (exists) SetCorner(space, corner, lower, fraction, corners->count++, corners);
  }
  corners->reads = reads && corners->count > 0;
}

}  // namespace tf_deform

#endif  // TF_DEFORM_SAMPLING_H_
