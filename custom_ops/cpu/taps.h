// Where the taps of a convolution are: those of some output pixels in a row, as cells to be sampled.
// For the convolution and its gradient.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_TAPS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_TAPS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "custom_ops/cpu/cells.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/kernels.h"
#include "custom_ops/sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kRowsAhead = 3;  // of the inputs, asked for before taps with offsets get there

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

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_TAPS_H_
