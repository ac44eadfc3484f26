// Linear interpolation in one to three dimensions: corners, weights and derivatives. This is the
// only interpolation in C++; it needs no library, and CUDA can include it.

#ifndef TF_DEFORM_SAMPLING_H_
#define TF_DEFORM_SAMPLING_H_

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define TF_DEFORM_HOST_DEVICE __host__ __device__
#else
#define TF_DEFORM_HOST_DEVICE
#endif

namespace tf_deform {

// The pixels around a point. Those outside the image are left out, never multiplied by 0, so that
// a NaN that is not read cannot leak.
template <typename T, int kRank>
struct Corners {
  static constexpr int kMost = 1 << kRank;

  int count = 0;           // 0 where the point is outside or not finite
  bool reads = false;      // whether the sample reads them; if not, only its derivatives do
  int64_t offset[kMost];   // from the image's first element
  T weight[kMost];         // the sample is the sum of weight * value
  T slope[kMost][kRank];   // derivatives of the weight to the coordinates
};

// Finds the corners of a point under the zeros rule: a sample reads where -1 < p < size. At p = -1
// it is 0 while its derivative follows the corner that exists, so that zero offsets can learn.
// point, size, stride: [kRank]; strides are in elements.
template <typename T, int kRank>
TF_DEFORM_HOST_DEVICE inline void FindCorners(const T* point, const int64_t* size,
                                              const int64_t* stride, Corners<T, kRank>* corners) {
  corners->count = 0;
  corners->reads = true;
  int64_t offset[kRank][2];
  T weight[kRank][2];
  bool exists[kRank][2];
  for (int axis = 0; axis < kRank; ++axis) {
    const T p = point[axis];
    // NaN fails the first, infinity one of them: what is cast to an integer is in range.
    if (!(p >= T(-1)) || !(p < static_cast<T>(size[axis]))) {
      corners->reads = false;
      return;
    }
    if (p == T(-1)) corners->reads = false;
    const T lower = std::floor(p);
    const int64_t index = static_cast<int64_t>(lower);
    weight[axis][1] = p - lower;
    weight[axis][0] = T(1) - weight[axis][1];
    for (int side = 0; side < 2; ++side) {
      offset[axis][side] = (index + side) * stride[axis];
      exists[axis][side] = index + side >= 0 && index + side < size[axis];
    }
  }
  int count = 0;
  for (int corner = 0; corner < Corners<T, kRank>::kMost; ++corner) {
    bool all = true;
    int64_t at = 0;
    T product = T(1);
    for (int axis = 0; axis < kRank; ++axis) {
      const int side = corner >> (kRank - 1 - axis) & 1;
      all = all && exists[axis][side];
      at += offset[axis][side];
      product *= weight[axis][side];
    }
    corners->offset[count] = at;
    corners->weight[count] = product;
    for (int along = 0; along < kRank; ++along) {
      T slope = corner >> (kRank - 1 - along) & 1 ? T(1) : T(-1);
      for (int axis = 0; axis < kRank; ++axis) {
        if (axis != along) slope *= weight[axis][corner >> (kRank - 1 - axis) & 1];
      }
      corners->slope[count][along] = slope;
    }
    count += all;
  }
  corners->count = count;
  corners->reads = corners->reads && count > 0;
}

}  // namespace tf_deform

#endif  // TF_DEFORM_SAMPLING_H_
