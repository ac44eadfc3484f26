// How a convolution is cut: output pixels into tiles, channels into slices, taps into a few at once.
// For the convolution and its gradient.
//
// The samples of a tile are written to a buffer and multiplied at once, some taps at a time, so that
// the columns are never stored whole. Tiles, slices and blocks depend on sizes alone, never on the
// number of threads, and every sum has one owner: results are the same bits for any number of threads.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_SLICES_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_SLICES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/cpu/cells.h"
#include "custom_ops/kernels.h"

namespace tf_deform {
namespace {

constexpr int64_t kTile = 144;         // output pixels, whole blocks of any instruction set
constexpr int64_t kBlocks = 24;        // pixels that are whole blocks of any instruction set
constexpr int64_t kManyTiles = 16;     // of which each thread finds about as many as the others
constexpr int64_t kInnerBytes = 2048;  // of the samples of a pixel that are multiplied at once
constexpr int64_t kLine = 32;          // channels: slices are whole lines

// A product over integers, of rank factors.
int64_t Product(const int64_t* sizes, int rank) {
  int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= sizes[axis];
  return product;
}

int64_t CeilOfRatio(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels [begin, end) of one group, all in one slice.
struct Piece {
  int64_t group, begin, end;
  int64_t packed;  // where its part of the packed kernel begins
  int64_t width() const { return end - begin; }
};

// Channels [begin, end) that are sampled at once.
struct Slice {
  int64_t begin, end;
  std::vector<Piece> pieces;
  int64_t width() const { return end - begin; }
};

// The sizes of a convolution, and how its channels and taps are cut, whatever its rank.
template <typename T>
struct Plan {
  explicit Plan(const ConvSizes& sizes)
      : sizes(sizes),
        pixels(Product(sizes.output, sizes.rank)),
        points(sizes.batch * pixels),
        taps(Product(sizes.kernel, sizes.rank)),
        group_channels(sizes.channels / sizes.groups),
        group_filters(sizes.filters / sizes.groups),
        moved_channels(sizes.channels / sizes.deformable_groups) {}

  // Whether each channel has a filter of its own, and all taps of a point are found at once.
  bool depthwise() const {
    return group_channels == 1 && group_filters == 1 && taps <= Cells<T, 1>::kSize;
  }

  // Where in the kernel, or its gradient, the filters of a tap's channel begin.
  int64_t Filters(int64_t tap, int64_t channel) const {
    return (tap * group_channels + channel % group_channels) * sizes.filters +
           channel / group_channels * group_filters;
  }

  // The output pixels of a tile, forward: the fewer there are, the smaller it is.
  int64_t ForwardTile() const {
    return kBlocks * std::clamp<int64_t>(points / (kBlocks * kManyTiles), 1, 3);
  }

  // How many taps of so many channels, of type C, are multiplied at once.
  template <typename C = T>
  int64_t TapsAtOnce(int64_t width) const {
    constexpr int64_t kMost = kInnerBytes / sizeof(C);
    const int64_t most = std::clamp<int64_t>(kMost / width, 1, Cells<T, 1>::kSize);
    return CeilOfRatio(taps, CeilOfRatio(taps, most));
  }

  // From one pixel's samples to the next one's: an odd number of cache lines, so that a column of
  // them does not fall into the same few sets of the cache.
  template <typename C = T>
  static int64_t Stride(int64_t inner) {
    constexpr int64_t kLineSize = 64 / sizeof(C);
    return (CeilOfRatio(inner, kLineSize) | 1) * kLineSize;
  }

  Slice SliceOf(int64_t begin, int64_t end) const {
    Slice slice{begin, end, {}};
    for (int64_t channel = begin; channel < end;) {
      const int64_t group = channel / group_channels;
      const int64_t last = std::min(end, (group + 1) * group_channels);
      slice.pieces.push_back({group, channel, last, 0});
      channel = last;
    }
    return slice;
  }

  const ConvSizes& sizes;
  int64_t pixels, points, taps;  // of the output of one image, and of all; of the kernel
  int64_t group_channels, group_filters, moved_channels;
};

// Cuts [begin, end) into slices of whole lines, nearly as wide as each other and not wider than
// wanted, nor than kInnerBytes.
template <typename T>
void AddSlices(const Plan<T>& plan, int64_t begin, int64_t end, int64_t wanted,
               std::vector<Slice>* slices) {
  const int64_t most = std::min<int64_t>(wanted, kInnerBytes / sizeof(T)) / kLine;
  const int64_t lines = CeilOfRatio(end - begin, kLine);
  const int64_t width = kLine * CeilOfRatio(lines, CeilOfRatio(lines, std::max<int64_t>(1, most)));
  for (; begin < end; begin += width) {
    slices->push_back(plan.SliceOf(begin, std::min(begin + width, end)));
  }
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_SLICES_H_
