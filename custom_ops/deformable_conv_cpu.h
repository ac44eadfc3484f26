// What the deformable convolution and its gradient share: how sizes are cut into tiles and slices,
// the products, and where the taps are. The samples of a tile of output pixels are written to a
// buffer and multiplied at once, some taps at a time, so that the columns are never stored whole.
// Tiles, slices and blocks depend on sizes alone, never on the number of threads, and every sum has
// one owner: results are the same bits for any number of threads.

#ifndef TF_DEFORM_DEFORMABLE_CONV_CPU_H_
#define TF_DEFORM_DEFORMABLE_CONV_CPU_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "cells.h"
#include "kernels.h"
#include "product.h"
#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kTile = 144;         // output pixels, whole blocks of any instruction set
constexpr int64_t kInnerBytes = 2048;  // of the samples of a pixel that are multiplied at once
constexpr int64_t kLine = 32;          // channels: slices are whole lines
constexpr int64_t kRowsAhead = 3;  // of the inputs, asked for before taps with offsets get there

// Memory without values, aligned to cache lines.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

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

  // How many taps of so many channels are multiplied at once.
  int64_t TapsAtOnce(int64_t width) const {
    constexpr int64_t kMost = kInnerBytes / sizeof(T);
    const int64_t most = std::clamp<int64_t>(kMost / width, 1, Cells<T, 1>::kSize);
    return CeilOfRatio(taps, CeilOfRatio(taps, most));
  }

  // From one pixel's samples to the next one's: an odd number of cache lines, so that a column of
  // them does not fall into the same few sets of the cache.
  static int64_t Stride(int64_t inner) {
    constexpr int64_t kLineSize = 64 / sizeof(T);
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

// The products of a dense or grouped convolution of numbers of type S. Columns are [count, taps,
// channels of the slice], of which rows are `stride` apart; the taps are those from `tap` on.
template <typename S, typename T = Wide<S>>
class Products {
 public:
  Products(const Plan<T>& plan, std::vector<Slice>* slices, bool transposed)
      : plan_(plan), transposed_(transposed) {
    for (Slice& slice : *slices) {
      for (Piece& piece : slice.pieces) {
        piece.packed = size_;
        size_ += SizeOf(piece);
      }
    }
  }

  int64_t packed_size() const { return size_; }

  // Packs the kernel, or its transpose tap by tap.
  void PackKernel(const Pool& pool, const std::vector<Slice>& slices, const S* kernel,
                  T* packed) const {
    const int64_t filters = plan_.group_filters;
    const double cost = 2.0 * size_ / slices.size();
    ParallelFor(
        pool, slices.size() * plan_.taps, cost / plan_.taps + 1, [&](int64_t first, int64_t last) {
          for (int64_t each = first; each < last; ++each) {
            const int64_t tap = each % plan_.taps;
            for (const Piece& piece : slices[each / plan_.taps].pieces) {
              const S* from = kernel + plan_.Filters(tap, piece.begin);
              T* to = packed + piece.packed;
              if (transposed_) {
                Pack(from, 1, plan_.sizes.filters, filters, piece.width(), filters * kPanel<T>,
                     to + tap * PackedSize<T>(filters, piece.width()));
              } else {
                Pack(from, plan_.sizes.filters, 1, piece.width(), filters,
                     plan_.taps * piece.width() * kPanel<T>, to + tap * piece.width() * kPanel<T>);
              }
            }
          }
        });
  }

  // out [count, filters] (+)= columns * kernel.
  void Forward(const Slice& slice, int64_t tap, int64_t taps, const T* columns, int64_t stride,
               int64_t count, const T* packed, T* out) const {
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      const bool add = first > 0 || piece.begin % plan_.group_channels > 0;
      Multiply<false>(columns + (first - tap) * slice.width() + piece.begin - slice.begin, stride,
                      count, at_once * piece.width(),
                      packed + piece.packed + first * piece.width() * kPanel<T>,
                      plan_.taps * piece.width() * kPanel<T>, plan_.group_filters, add,
                      out + piece.group * plan_.group_filters, plan_.sizes.filters);
    });
  }

  // columns = gradient [count, filters] * transposed kernel.
  void ColumnsGradient(const Slice& slice, int64_t tap, int64_t taps, const T* packed,
                       const T* gradient, int64_t count, T* columns, int64_t stride) const {
    const int64_t filters = plan_.group_filters;
    for (const Piece& piece : slice.pieces) {
      for (int64_t each = 0; each < taps; ++each) {
        Multiply<false>(
            gradient + piece.group * filters, plan_.sizes.filters, count, filters,
            packed + piece.packed + (tap + each) * PackedSize<T>(filters, piece.width()),
            filters * kPanel<T>, piece.width(), false,
            columns + each * slice.width() + piece.begin - slice.begin, stride);
      }
    }
  }

  // Packs the gradient [count, filters] for AddKernelGradient.
  int64_t gradient_size() const {
    return plan_.sizes.groups * PackedSize<T>(kTile, plan_.group_filters);
  }
  void PackGradient(const Slice& slice, const T* gradient, int64_t count, T* packed) const {
    for (const Piece& piece : slice.pieces) {
      Pack(gradient + piece.group * plan_.group_filters, plan_.sizes.filters, 1, count,
           plan_.group_filters, count * kPanel<T>,
           packed + piece.group * PackedSize<T>(kTile, plan_.group_filters));
    }
  }

  // kernel_gradient += transposed columns * gradient.
  void AddKernelGradient(const Slice& slice, int64_t tap, int64_t taps, const T* columns,
                         int64_t stride, const T* packed_gradient, int64_t count,
                         T* kernel_gradient) const {
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      Multiply<true>(columns + (first - tap) * slice.width() + piece.begin - slice.begin, stride,
                     at_once * piece.width(), count,
                     packed_gradient + piece.group * PackedSize<T>(kTile, plan_.group_filters),
                     count * kPanel<T>, plan_.group_filters, true,
                     kernel_gradient + plan_.Filters(first, piece.begin), plan_.sizes.filters);
    });
  }

 private:
  int64_t SizeOf(const Piece& piece) const {
    return transposed_ ? plan_.taps * PackedSize<T>(plan_.group_filters, piece.width())
                       : PackedSize<T>(plan_.taps * piece.width(), plan_.group_filters);
  }

  // Calls step(piece, first tap, taps): all taps at once where the kernel's rows and the columns
  // follow one another from tap to tap.
  template <typename Step>
  void ForPieces(const Slice& slice, int64_t tap, int64_t taps, Step&& step) const {
    for (const Piece& piece : slice.pieces) {
      const bool joined = slice.width() == piece.width() && piece.width() == plan_.group_channels;
      const int64_t at_once = joined ? taps : 1;
      for (int64_t each = 0; each < taps; each += at_once) step(piece, tap + each, at_once);
    }
  }

  const Plan<T>& plan_;
  bool transposed_;
  int64_t size_ = 0;
};

// The arguments of a convolution, and the cells of its taps.
template <typename S, int kRank>
class Taps {
 protected:
  using T = Wide<S>;
  using Found = Cells<T, kRank>;
  static constexpr int kMost = Found::kMost;
  static constexpr int kLast = kRank - 1;

  Taps(const ConvSizes& sizes, const S* inputs, const S* kernel, const T* offset, const T* mask)
      : plan_(sizes),
        sizes_(sizes),
        inputs_(inputs),
        kernel_(kernel),
        offset_(offset),
        mask_(mask),
        space_(sizes.space, sizes.channels),
        tap_(plan_.taps * kRank) {
    for (int64_t tap = 0; tap < plan_.taps; ++tap) {
      int64_t rest = tap;
      for (int axis = kRank - 1; axis >= 0; --axis) {
        tap_[tap * kRank + axis] =
            rest % sizes.kernel[axis] * sizes.dilations[axis] - sizes.before[axis];
        rest /= sizes.kernel[axis];
      }
    }
    for (int axis = 0; axis < kRank; ++axis) {
      const double farthest = 1.0 * sizes.output[axis] * sizes.strides[axis] +
                              1.0 * sizes.kernel[axis] * sizes.dilations[axis] +
                              std::abs(1.0 * sizes.before[axis]);
      exact_ = exact_ && farthest < 1 / std::numeric_limits<T>::epsilon();
    }
  }

  // The taps of some points of a row of the output as cells: point by point, tap by tap.
  struct Chunk {
    Found cells;
    int64_t first, points, image;
    int64_t at[kRank];  // where the first point is in the output's image
  };

  // Asks for what later rows of the output will need, of `width` channels from a channel of all
  // images on: processors foresee walks along memory, but not that a row of the inputs is next.
  // Inlined, else compilers leave out a call that has no effect.
  template <typename Values>
  __attribute__((always_inline)) void Prefetch(const Chunk& chunk, const Values* values,
                                               int64_t width) const {
    if constexpr (kRank > 1) {
      for (int64_t row = 0; row < std::min(sizes_.strides[kLast - 1], kRowsAhead); ++row) {
        const int64_t begin = AheadOf(chunk, kRowsAhead + row);
        if (begin < 0) return;
        const Values* from = values + begin;
        for (int64_t pixel = 0; pixel < chunk.points * sizes_.strides[kLast]; ++pixel) {
          for (int64_t c = 0; c < width; c += 64 / sizeof(Values)) {
            __builtin_prefetch(from + c, 0, 2);
          }
          from += sizes_.channels;
        }
      }
    }
  }

  // Calls visit(chunk) for the taps [tap, tap + taps) of `count` output pixels of the batch.
  template <typename Visit>
  void ForChunks(int64_t first, int64_t count, int64_t moved, int64_t tap, int64_t taps,
                 Visit&& visit) const {
    const Pattern pattern = PatternOf(moved, tap, taps);
    Chunk chunk;
    chunk.image = first / plan_.pixels;
    for (int64_t axis = kLast, rest = first % plan_.pixels; axis >= 0; --axis) {
      chunk.at[axis] = rest % sizes_.output[axis];
      rest /= sizes_.output[axis];
    }
    for (chunk.first = first; chunk.first < first + count; Advance(&chunk)) {
      SetChunk(pattern, first + count - chunk.first, &chunk);
      visit(chunk);
    }
  }

  const Plan<T> plan_;
  const ConvSizes& sizes_;
  const S *inputs_, *kernel_;
  const T *offset_, *mask_;
  Space<T, kRank> space_;
  std::vector<int64_t> tap_;  // [taps, rank]: positions relative to the output pixel's
  bool exact_ = true;         // whether all positions without offsets are exact as T

 private:
  // Sets `count` cells, from `at` on, to the offsets of the taps from `first` on, and their masks.
  void SetCells(int64_t first, int64_t count, int64_t at, Found* cells) const {
    for (int axis = 0; axis < kRank; ++axis) {
      const T* from = offset_ + first * kRank + axis;
      for (int64_t i = 0; i < count; ++i) cells->position[axis][at + i] = from[i * kRank];
    }
    if (mask_) {
      std::copy_n(mask_ + first, count, cells->factor + at);
    } else {
      std::fill_n(cells->factor + at, count, T(1));
    }
  }

  // Some taps of a deformable group, and where they are in a chunk, relative to its first pixel and
  // without offset.
  struct Pattern {
    int64_t moved, tap, taps;
    T place[kRank][Found::kSize] = {};
  };

  int64_t PlaceOf(int64_t cell, int64_t tap, int64_t taps, int axis) const {
    const int64_t moves = axis == kLast ? cell / taps * sizes_.strides[axis] : 0;
    return tap_[(tap + cell % taps) * kRank + axis] + moves;
  }

  // Where in the inputs the pixels are that Prefetch asks for, so many rows below those of the last
  // taps, after an image's last row the next image's first one; -1 if they are not all there.
  int64_t AheadOf(const Chunk& chunk, int64_t rows) const {
    int64_t offset = chunk.image * space_.elements;
    for (int axis = 0; axis < kRank; ++axis) {
      int64_t place = chunk.at[axis] * sizes_.strides[axis];
      if (axis < kLast) place += tap_[(plan_.taps - 1) * kRank + axis];
      if (axis == kLast - 1) place += rows;
      if (place < 0 || place > space_.size[axis] + rows) return -1;
      offset += place * space_.stride[axis];
    }
    const int64_t pixels = chunk.points * sizes_.strides[kLast];
    const bool exist = chunk.at[kLast] * sizes_.strides[kLast] + pixels <= space_.size[kLast] &&
                       offset + pixels * sizes_.channels <= sizes_.batch * space_.elements;
    return exist ? offset : -1;
  }

  Pattern PatternOf(int64_t moved, int64_t tap, int64_t taps) const {
    Pattern pattern;
    pattern.moved = moved, pattern.tap = tap, pattern.taps = taps;
    for (int axis = 0; axis < kRank; ++axis) {
      int64_t moves = 0;
      for (int64_t cell = 0; cell + taps <= Found::kSize; cell += taps) {
        for (int64_t each = 0; each < taps; ++each) {
          const int64_t place = tap_[(tap + each) * kRank + axis] + moves;
          pattern.place[axis][cell + each] = static_cast<T>(place);
        }
        if (axis == kLast) moves += sizes_.strides[axis];
      }
    }
    return pattern;
  }

  void Advance(Chunk* chunk) const {
    chunk->first += chunk->points;
    chunk->at[kLast] += chunk->points;
    for (int axis = kLast; axis > 0 && chunk->at[axis] == sizes_.output[axis]; --axis) {
      chunk->at[axis] = 0;
      ++chunk->at[axis - 1];
    }
    if (chunk->at[0] < sizes_.output[0]) return;
    chunk->at[0] = 0;
    ++chunk->image;
  }

  // Sets a chunk's points: as many of its row of the output as fit, at most `most`.
  void SetChunk(const Pattern& pattern, int64_t most, Chunk* chunk) const {
    const int64_t taps = pattern.taps, groups = sizes_.deformable_groups;
    const int64_t* at = chunk->at;
    chunk->points = std::min({Found::kSize / taps, most, sizes_.output[kLast] - at[kLast]});
    const int64_t cells = chunk->points * taps;
    const bool joined = groups == 1 && taps == plan_.taps;  // offsets, from point to point
    const int64_t run = joined ? cells : taps;
    int64_t from = (chunk->first * groups + pattern.moved) * plan_.taps + pattern.tap;
    for (int64_t cell = 0; cell < cells; cell += run, from += groups * plan_.taps) {
      SetCells(from, run, cell, &chunk->cells);
    }
    for (int axis = 0; axis < kRank; ++axis) {
      T* position = chunk->cells.position[axis];
      const int64_t start = at[axis] * sizes_.strides[axis];
      const T base = static_cast<T>(start);
      for (int64_t cell = 0; exact_ && cell < cells; cell += Found::kLanes) {
        const auto place = base + Load(pattern.place[axis] + cell);
        Store(position + cell, Load(position + cell) + place);  // the only rounding
      }
      for (int64_t cell = 0; !exact_ && cell < cells; ++cell) {
        position[cell] += static_cast<T>(start + PlaceOf(cell, pattern.tap, taps, axis));
      }
    }
    chunk->cells.Find(space_, cells);
  }
};

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_DEFORMABLE_CONV_CPU_H_
