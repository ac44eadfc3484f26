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

// Returns a * b, rounded before anything is added to it.
#ifdef __CUDA_ARCH__
TF_DEFORM_INLINE float RoundedProduct(float a, float b) { return __fmul_rn(a, b); }
TF_DEFORM_INLINE double RoundedProduct(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename T>
TF_DEFORM_INLINE T RoundedProduct(T a, T b) {
  return a * b;  // compiled without contraction
}
#endif

// What coordinates are: pixels in array order, (y, x), or normalised ones in the order (x, y), of
// which -1 and 1 are the outer edges of the edge pixels, or their centres.
enum class Units : int64_t { kPixels, kEdges, kCenters };

// Which of a point's coordinates is along an axis.
TF_DEFORM_INLINE int Coordinate(Units units, int axis, int rank) {
  return units == Units::kPixels ? axis : rank - 1 - axis;
}

// How many pixels a coordinate of 1 is, along an axis of so many pixels.
template <typename T>
TF_DEFORM_INLINE T PixelsOf(Units units, T size) {
  if (units == Units::kPixels) return T(1);
  return (units == Units::kEdges ? size : size - T(1)) / T(2);
}

// Returns a coordinate in pixels.
template <typename T>
TF_DEFORM_INLINE T InPixels(Units units, T coordinate, T size) {
  if (units == Units::kPixels) return coordinate;
  if (units == Units::kCenters) return RoundedProduct(coordinate + T(1), PixelsOf(units, size));
  return (RoundedProduct(coordinate + T(1), size) - T(1)) / T(2);
}

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
  if constexpr (kSlopes) {
    TF_DEFORM_UNROLL
    for (int axis = 0; axis < kRank; ++axis) {
      corners->slope[at][axis] = CornerSlope<kRank>(corner, axis, along);
    }
  }
}

// The pixel at or below a point, which may be outside, and how far the point is from it.
template <typename T, int kRank>
struct Position {
  int64_t index[kRank];
  T along[kRank][2];     // as in CornerWeight
  int64_t lower = 0;     // the pixel's offset
  bool interior = true;  // whether all corners exist
  bool reads = true;     // whether a sample here reads those that do
};

// Sets where a point is; returns false if it is so far outside that it has no corners. point:
// [kRank].
template <typename T, int kRank>
TF_DEFORM_INLINE bool Locate(const T* point, const Space<T, kRank>& space,
                             Position<T, kRank>* position) {
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    const T p = point[axis];
    // NaN fails the first, infinity one of them: what is cast to an integer is in range.
    if (!(p >= T(-1)) || !(p < space.limit[axis])) return false;
    const T floor = std::floor(p);
    const int64_t index = static_cast<int64_t>(floor);
    position->index[axis] = index;
    position->along[axis][1] = p - floor;
    position->along[axis][0] = T(1) - position->along[axis][1];
    position->lower += index * space.stride[axis];
    position->interior = position->interior && index >= 0 && index + 1 < space.size[axis];
    position->reads = position->reads && p > T(-1);
  }
  return true;
}

// Whether a number, or each lane of a vector, is neither infinite nor NaN.
template <typename T>
TF_DEFORM_INLINE auto IsFinite(T x) {
  return x - x == T{};
}

// Whether a coordinate has a gradient, wherever the others of its point are. Where pixels are
// missing around the point it is 0 times the sample's weight: NaN, if that is not finite.
template <typename T>
TF_DEFORM_INLINE bool HasGradient(T coordinate, T size) {
  return coordinate >= T(-1) && coordinate <= size;
}

template <typename T, int kRank>
TF_DEFORM_INLINE bool CornerExists(const Space<T, kRank>& space, const Position<T, kRank>& position,
                                   int corner) {
  bool exists = true;
  for (int axis = 0; axis < kRank; ++axis) {
    const int64_t at = position.index[axis] + Side<kRank>(corner, axis);
    exists = exists && at >= 0 && at < space.size[axis];
  }
  return exists;
}

// Finds the corners of a point under the zeros rule: a sample reads where -1 < p < size. At p = -1
// it is 0 while its derivative follows the corner that exists, so that zero offsets can learn.
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void FindCorners(const T* point, const Space<T, kRank>& space,
                                  Corners<T, kRank, kSlopes>* corners) {
  constexpr int kMost = 1 << kRank;
  Position<T, kRank> at;
  corners->count = 0;
  corners->reads = false;
  if (!Locate(point, space, &at)) return;
  if (at.interior) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < kMost; ++corner) {
      SetCorner(space, corner, at.lower, at.along, corner, corners);
    }
    corners->count = kMost;
    corners->reads = true;
    return;
  }
  for (int corner = 0; corner < kMost; ++corner) {
    if (!CornerExists(space, at, corner)) continue;
    SetCorner(space, corner, at.lower, at.along, corners->count++, corners);
  }
  corners->reads = at.reads && corners->count > 0;
}

// As FindCorners, but each corner has its own place, also one that does not exist: its offset is
// -1, weight and slope 0. On a GPU, arrays that are indexed so can be kept in registers.
template <typename T, int kRank, bool kSlopes>
TF_DEFORM_INLINE void PlaceCorners(const T* point, const Space<T, kRank>& space,
                                   Corners<T, kRank, kSlopes>* corners) {
  Position<T, kRank> at;
  const bool near = Locate(point, space, &at);
  corners->count = 0;
  TF_DEFORM_UNROLL
  for (int corner = 0; corner < 1 << kRank; ++corner) {
    corners->offset[corner] = -1;
    corners->weight[corner] = T(0);
    TF_DEFORM_UNROLL
    for (int axis = 0; axis < kRank; ++axis) corners->slope[corner][axis] = T(0);
    if (!near || !CornerExists(space, at, corner)) continue;
    SetCorner(space, corner, at.lower, at.along, corner, corners);
    ++corners->count;
  }
  corners->reads = near && at.reads && corners->count > 0;
}

}  // namespace tf_deform

#endif  // TF_DEFORM_SAMPLING_H_
