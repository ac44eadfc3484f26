// weighted_sample on the CPU: forward, the gradient to the values, and that to points and weights.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cells.h"
#include "kernels.h"
#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kLine = 32;     // channels that one owner has at least
constexpr int64_t kWidest = 128;  // channels that one owner has at most

// Where a call samples. A sample is what a query has for one group of channels; the samples and the
// points of each follow one another in memory.
template <typename T, int kRank>
class Places {
 public:
  using Found = Cells<T, kRank>;

  Places(const SampleSizes& sizes, const T* points, const T* weights, const int64_t* image_index)
      : space(sizes.space, sizes.channels),
        width(sizes.channels / sizes.groups),
        sizes_(sizes),
        points_(points),
        weights_(weights),
        image_index_(image_index) {}

  int64_t ImageOf(int64_t row) const { return image_index_ ? image_index_[row] : row; }

  // Sets `count` cells, from `at` on, to the points from `first` on.
  void Set(int64_t first, int64_t count, int64_t at, Found* cells) const {
    for (int axis = 0; axis < kRank; ++axis) {
      const T* from = points_ + first * kRank + Coordinate(sizes_.units, axis, kRank);
      T* to = cells->position[axis] + at;
      for (int64_t i = 0; i < count; ++i) to[i] = from[i * kRank];
      if (sizes_.units == Units::kPixels) continue;
      for (int64_t i = 0; i < count; ++i) to[i] = InPixels(sizes_.units, to[i], space.limit[axis]);
    }
    if (weights_) {
      std::copy_n(weights_ + first, count, cells->factor + at);
    } else {
      std::fill_n(cells->factor + at, count, T(1));
    }
  }

  // Calls visit(cells, samples, count, sample, point) for the samples of queries [begin, end): the
  // cells are `count` points each, from `point` on, of so many samples from `sample` on.
  template <typename Visit>
  void ForCells(int64_t begin, int64_t end, Visit&& visit) const {
    Found cells;
    const int64_t last = end * sizes_.groups;
    const int64_t many = std::max<int64_t>(1, Found::kSize / std::max<int64_t>(1, sizes_.points));
    for (int64_t sample = begin * sizes_.groups; sample < last; sample += many) {
      const int64_t samples = std::min(many, last - sample);
      for (int64_t point = 0; point < sizes_.points; point += Found::kSize) {
        const int64_t count = std::min(Found::kSize, sizes_.points - point);
        Set(sample * sizes_.points + point, samples * count, 0, &cells);
        cells.Find(space, samples * count);
        visit(cells, samples, count, sample, point);
      }
    }
  }

  const Space<T, kRank> space;
  const int64_t width;  // of a group

 private:
  const SampleSizes& sizes_;
  const T *points_, *weights_;
  const int64_t* image_index_;
};

// Goes from sample to sample: where in the images their channels begin.
template <typename T, int kRank>
class Walk {
 public:
  Walk(const Places<T, kRank>& places, const SampleSizes& sizes, int64_t query)
      : places_(places), sizes_(sizes), row_(query / sizes.queries), query_(query % sizes.queries) {
    Enter();
  }

  int64_t channels() const { return image_ + group_ * places_.width; }

  void Next() {
    if (++group_ < sizes_.groups) return;
    group_ = 0;
    if (++query_ < sizes_.queries) return;
    query_ = 0;
    if (++row_ < sizes_.rows) Enter();
  }

 private:
  void Enter() { image_ = places_.ImageOf(row_) * places_.space.elements; }

  const Places<T, kRank>& places_;
  const SampleSizes& sizes_;
  int64_t row_, query_, group_ = 0, image_;
};

// Rows to be summed up with their weights: the corners of cells.
template <typename T, int kRank>
struct Rows {
  static constexpr int kMost = 1 << kRank;

  void Add(const Cells<T, kRank>& cells, const Space<T, kRank>& space, int64_t cell) {
    if (cells.interior[cell]) {
      const int64_t lower = cells.lower[cell];
      for (int i = 0; i < kMost; ++i, ++count) {
        offset[count] = lower + space.corner[i];
        weight[count] = cells.weight[i][cell];
      }
      return;
    }
    Corners<T, kRank, false> corners;
    cells.Corner(space, cell, &corners);
    spoilt = spoilt || IsSpoilt(corners, cells.factor[cell]);
    for (int i = 0; corners.reads && i < corners.count; ++i, ++count) {
      offset[count] = corners.offset[i];
      weight[count] = corners.weight[i] * cells.factor[cell];
    }
  }

  int64_t count = 0;
  bool spoilt = false;  // whether the sum is NaN, whatever the rows are
  int64_t offset[Cells<T, kRank>::kSize * kMost];
  T weight[Cells<T, kRank>::kSize * kMost];
};

template <typename S, int kRank, typename T = Wide<S>>
void SampleValues(const Pool& pool, const SampleSizes& sizes, const S* values, const T* points,
                  const T* weights, const int64_t* image_index, T* out) {
  const Places<T, kRank> places(sizes, points, weights, image_index);
  const int64_t width = places.width;
  const double cost = 1.0 * sizes.groups * sizes.points * (20 + (width << kRank) / 4);
  if (sizes.points == 0) std::fill_n(out, sizes.rows * sizes.queries * sizes.channels, T(0));
  const auto sample = [&](auto channels, int64_t begin, int64_t end) {
    Walk<T, kRank> walk(places, sizes, begin);
    Rows<T, kRank> rows;
    places.ForCells(
        begin, end,
        [&](const auto& cells, int64_t samples, int64_t count, int64_t sample, int64_t point) {
          T* to = out + sample * width;
          for (int64_t each = 0; each < samples; ++each, to += width) {
            const S* from = values + walk.channels();
            if (sizes.points == 1) {
              Sample(cells, places.space, each, from, channels, to);
            } else {
              rows.count = 0, rows.spoilt = false;
              for (int64_t i = 0; i < count; ++i) rows.Add(cells, places.space, each * count + i);
              SumRows<0>(from, rows.offset, rows.weight, rows.count, channels, point > 0, to);
              if (rows.spoilt) std::fill_n(to, width, std::numeric_limits<T>::quiet_NaN());
            }
            if (point + count == sizes.points) walk.Next();
          }
        });
  };
  WithChannels<S>(width, [&](auto channels) {
    ParallelFor(pool, sizes.rows * sizes.queries, cost,
                [&](int64_t begin, int64_t end) { sample(channels, begin, end); });
  });
}

// The rows that read each image, in their order: those of image i are order[start[i]] and on.
struct RowsOfImages {
  RowsOfImages(const SampleSizes& sizes, const int64_t* image_index)
      : start(sizes.images + 1), order(sizes.rows) {
    const auto image = [&](int64_t row) { return image_index ? image_index[row] : row; };
    for (int64_t row = 0; row < sizes.rows; ++row) ++start[image(row) + 1];
    for (int64_t each = 0; each < sizes.images; ++each) start[each + 1] += start[each];
    std::vector<int64_t> next(start.begin(), start.end());
    for (int64_t row = 0; row < sizes.rows; ++row) order[next[image(row)]++] = row;
  }
  std::vector<int64_t> start, order;
};

// Adds the gradient upstream to the corners of a cell, also to those that it does not read: their
// weight is 0, or NaN if the factor is not finite.
template <typename T, int kRank, typename Channels>
inline void AddToCorners(const Cells<T, kRank>& cells, const Space<T, kRank>& space, int64_t cell,
                         const T* upstream, Channels channels, T* values_gradient) {
  constexpr int kMost = 1 << kRank;
  T weight[kMost];
  if (cells.interior[cell]) {
    for (int i = 0; i < kMost; ++i) weight[i] = cells.weight[i][cell];
    AddRows<kMost>(upstream, space.corner, weight, channels, values_gradient + cells.lower[cell]);
    return;
  }
  Corners<T, kRank, false> corners;
  cells.Corner(space, cell, &corners);
  for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * cells.factor[cell];
  WithConstant<kMost>(corners.count, [&](auto count) {
    AddRows<count>(upstream, corners.offset, weight, channels, values_gradient);
  });
}

// Each image's slice of channels has one owner, who adds in the order of the points: the sums do
// not depend on the number of threads.
template <typename T, int kRank>
class ValuesGradient {
 public:
  ValuesGradient(const SampleSizes& sizes, const T* points, const T* weights,
                 const int64_t* image_index, const T* gradient, T* values_gradient)
      : places_(sizes, points, weights, image_index),
        rows_(sizes, image_index),
        sizes_(sizes),
        gradient_(gradient),
        values_gradient_(values_gradient) {
    const int64_t others = std::max<int64_t>(1, sizes.images * sizes.groups);
    const int64_t halves = others % 2 && others < 8 ? 2 : 1;  // a few owners are even in number
    const int64_t owned = std::clamp<int64_t>((width() + halves - 1) / halves, 1, kWidest);
    slice_ = (owned + kLine - 1) / kLine * kLine;
    slices_ = (width() + slice_ - 1) / slice_;
    whole_ = sizes.groups == 1 && slices_ == 1;
  }

  void Run(const Pool& pool) const {
    if (!whole_) Clear(pool, sizes_.images * space().elements, values_gradient_);
    const double points = 1.0 * sizes_.rows * sizes_.queries * sizes_.points;
    const double cost =
        points * (20 + (slice_ << kRank) / 4) / std::max<int64_t>(1, sizes_.images) + 1000;
    WithChannels<T>(width(), [&](auto channels) {
      ParallelFor(pool, sizes_.images * sizes_.groups * slices_, cost,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t owner = begin; owner < end; ++owner) AddOwned(owner, channels);
                  });
    });
  }

 private:
  using Found = Cells<T, kRank>;

  int64_t width() const { return places_.width; }
  const Space<T, kRank>& space() const { return places_.space; }

  // channels: of a group.
  template <typename Channels>
  void AddOwned(int64_t owner, Channels channels) const {
    const int64_t group = owner / slices_ % sizes_.groups;
    const int64_t image = owner / slices_ / sizes_.groups;
    const int64_t low = group * width() + owner % slices_ * slice_;
    if constexpr (std::is_same_v<Channels, int64_t>) {
      channels = std::min(slice_, (group + 1) * width() - low);
    }
    if (whole_) {
      std::fill_n(values_gradient_ + image * space().elements, space().elements, T(0));
    }
    // Points that follow one another: those of a row's queries, if there is one group.
    const int64_t run = sizes_.points * (sizes_.groups == 1 ? sizes_.queries : 1);
    const int64_t runs = sizes_.groups == 1 ? 1 : sizes_.queries;
    T* const to = values_gradient_ + image * space().elements + low;
    Found cells;
    const T* upstream[Found::kSize];
    int64_t count = 0;
    const auto add = [&] {
      cells.Find(space(), count);
      for (int64_t cell = 0; cell < count; ++cell) {
        AddToCorners(cells, space(), cell, upstream[cell], channels, to);
      }
      count = 0;
    };
    for (int64_t nth = rows_.start[image]; nth < rows_.start[image + 1] && run > 0; ++nth) {
      const T* from = gradient_ + rows_.order[nth] * sizes_.queries * sizes_.channels + low;
      for (int64_t each = 0; each < runs; ++each) {
        const int64_t first =
            (rows_.order[nth] * sizes_.queries * sizes_.groups + each * sizes_.groups + group) *
            sizes_.points;
        int64_t left = sizes_.points;  // of the query's points
        for (int64_t done = 0; done < run;) {
          const int64_t taken = std::min(run - done, Found::kSize - count);
          places_.Set(first + done, taken, count, &cells);
          for (int64_t i = 0; i < taken; ++i) {
            upstream[count + i] = from;
            if (--left > 0) continue;
            left = sizes_.points;
            from += sizes_.channels;
          }
          done += taken;
          count += taken;
          if (count == Found::kSize) add();
        }
      }
    }
    add();
  }

  const Places<T, kRank> places_;
  const RowsOfImages rows_;
  const SampleSizes& sizes_;
  const T* gradient_;
  T* values_gradient_;
  int64_t slice_, slices_;  // channels of a group that an owner has, and how many it takes
  bool whole_;              // an owner has the whole image
};

template <typename T, int kRank>
void SampleGradValues(const Pool& pool, const SampleSizes& sizes, const T* points, const T* weights,
                      const int64_t* image_index, const T* gradient, T* values_gradient) {
  if (sizes.rows * sizes.queries * sizes.points == 0) {
    Clear(pool, sizes.images * Space<T, kRank>(sizes.space, sizes.channels).elements,
          values_gradient);
    return;
  }
  ValuesGradient<T, kRank>(sizes, points, weights, image_index, gradient, values_gradient)
      .Run(pool);
}

template <typename S, int kRank, typename T = Wide<S>>
class PointsGradient {
 public:
  PointsGradient(const SampleSizes& sizes, const S* values, const T* points, const T* weights,
                 const int64_t* image_index, const T* gradient, T* points_gradient,
                 T* weights_gradient)
      : places_(sizes, points, weights, image_index),
        sizes_(sizes),
        values_(values),
        gradient_(gradient),
        points_gradient_(points_gradient),
        weights_gradient_(weights_gradient) {}

  void Run(const Pool& pool) const {
    const double cost = 1.0 * sizes_.groups * sizes_.points * (40 + (places_.width << kRank) / 4);
    WithChannels<S>(places_.width, [&](auto channels) {
      ParallelFor(pool, sizes_.rows * sizes_.queries, cost,
                  [&](int64_t begin, int64_t end) { OfQueries(begin, end, channels); });
    });
  }

 private:
  using Found = Cells<T, kRank>;
  static constexpr int kMost = Found::kMost;

  template <typename Channels>
  void OfQueries(int64_t begin, int64_t end, Channels channels) const {
    const Space<T, kRank>& space = places_.space;
    Walk<T, kRank> walk(places_, sizes_, begin);
    alignas(64) T dots[kMost][Found::kSize] = {};
    alignas(64) T gradients[kRank + 1][Found::kSize];
    places_.ForCells(
        begin, end,
        [&](const Found& cells, int64_t samples, int64_t count, int64_t sample, int64_t point) {
          const int64_t first = sample * sizes_.points + point;
          T dot[kMost], outer[kRank + 1];
          for (int64_t each = 0; each < samples; ++each) {
            const S* from = values_ + walk.channels();
            const T* upstream = gradient_ + (sample + each) * places_.width;
            for (int64_t cell = each * count; cell < (each + 1) * count; ++cell) {
              if (cells.interior[cell]) {
                DotRows<kMost>(from + cells.lower[cell], space.corner, upstream, channels, dot);
                for (int i = 0; i < kMost; ++i) dots[i][cell] = dot[i];
                continue;
              }
              Corners<T, kRank> corners;
              cells.Corner(space, cell, &corners);
              WithConstant<kMost>(corners.count, [&](auto count) {
                DotRows<count>(from, corners.offset, upstream, channels, dot);
              });
              PointGradient(cells, space, cell, corners, dot, outer);
              Write(first + cell, outer, 1);
            }
            if (point + count == sizes_.points) walk.Next();
          }
          PointGradients(cells, samples * count, dots, gradients);
          for (int64_t cell = 0; cell < samples * count; ++cell) {
            if (cells.interior[cell]) Write(first + cell, gradients[0] + cell, Found::kSize);
          }
        });
  }

  // Writes what is [rank + 1], `stride` apart: in pixels, and last to the weight.
  void Write(int64_t point, const T* gradient, int64_t stride) const {
    T* to = points_gradient_ + point * kRank;
    for (int axis = 0; axis < kRank; ++axis) {
      to[Coordinate(sizes_.units, axis, kRank)] =
          gradient[axis * stride] * PixelsOf(sizes_.units, places_.space.limit[axis]);
    }
    if (weights_gradient_) weights_gradient_[point] = gradient[kRank * stride];
  }

  const Places<T, kRank> places_;
  const SampleSizes& sizes_;
  const S* values_;
  const T* gradient_;
  T *points_gradient_, *weights_gradient_;
};

template <typename S, int kRank, typename T = Wide<S>>
void SampleGradPoints(const Pool& pool, const SampleSizes& sizes, const S* values, const T* points,
                      const T* weights, const int64_t* image_index, const T* gradient,
                      T* points_gradient, T* weights_gradient) {
  PointsGradient<S, kRank>(sizes, values, points, weights, image_index, gradient, points_gradient,
                           weights_gradient)
      .Run(pool);
}

}  // namespace

template <typename T>
void SetSampleKernels(TypedKernels<T>* kernels) {
  kernels->sample = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    return OfRank(SampleValues<T, 1>, SampleValues<T, 2>, SampleValues<T, 3>, pool, sizes, rest...);
  };
  kernels->sample_grad_values = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    using W = Wide<T>;
    return OfRank(SampleGradValues<W, 1>, SampleGradValues<W, 2>, SampleGradValues<W, 3>, pool,
                  sizes, rest...);
  };
  kernels->sample_grad_points = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    return OfRank(SampleGradPoints<T, 1>, SampleGradPoints<T, 2>, SampleGradPoints<T, 3>, pool,
                  sizes, rest...);
  };
}

template void SetSampleKernels<float>(TypedKernels<float>*);
template void SetSampleKernels<double>(TypedKernels<double>*);
template void SetSampleKernels<Float16Bits>(TypedKernels<Float16Bits>*);
template void SetSampleKernels<Bfloat16Bits>(TypedKernels<Bfloat16Bits>*);

}  // namespace tf_deform
