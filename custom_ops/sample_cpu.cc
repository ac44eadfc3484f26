// weighted_sample on the CPU: forward, the gradient to the values, and that to points and weights.

#include <algorithm>
#include <cstdint>
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

  T Weight(int64_t point) const { return weights_ ? weights_[point] : T(1); }

  // Sets `count` cells, from `at` on, to the points from `first` on.
  void Set(int64_t first, int64_t count, int64_t at, Found* cells) const {
    for (int axis = 0; axis < kRank; ++axis) {
      const T* from = points_ + first * kRank + axis;
      for (int64_t i = 0; i < count; ++i) cells->position[axis][at + i] = from[i * kRank];
    }
    for (int64_t i = 0; i < count; ++i) cells->factor[at + i] = Weight(first + i);
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
      const int64_t lower = cells.Lower(space, cell);
      for (int i = 0; i < kMost; ++i, ++count) {
        offset[count] = lower + space.corner[i];
        weight[count] = cells.weight[i][cell];
      }
      return;
    }
    Corners<T, kRank, false> corners;
    cells.Corner(space, cell, &corners);
    for (int i = 0; corners.reads && i < corners.count; ++i, ++count) {
      offset[count] = corners.offset[i];
      weight[count] = corners.weight[i] * cells.factor[cell];
    }
  }

  int64_t count = 0;
  int64_t offset[Cells<T, kRank>::kSize * kMost];
  T weight[Cells<T, kRank>::kSize * kMost];
};

template <typename T, int kRank>
void SampleValues(const Pool& pool, const SampleSizes& sizes, const T* values, const T* points,
                  const T* weights, const int64_t* image_index, T* out) {
  const Places<T, kRank> places(sizes, points, weights, image_index);
  const int64_t width = places.width;
  const int64_t cost = sizes.groups * sizes.points * (20 + (width << kRank) / 4);
  if (sizes.points == 0) std::fill_n(out, sizes.rows * sizes.queries * sizes.channels, T(0));
  ParallelFor(pool, sizes.rows * sizes.queries, cost, [&](int64_t begin, int64_t end) {
    Walk<T, kRank> walk(places, sizes, begin);
    Rows<T, kRank> rows;
    places.ForCells(
        begin, end,
        [&](const auto& cells, int64_t samples, int64_t count, int64_t sample, int64_t point) {
          T* to = out + sample * width;
          for (int64_t each = 0; each < samples; ++each, to += width) {
            const T* from = values + walk.channels();
            if (sizes.points == 1) {
              Sample(cells, places.space, each, from, width, to);
            } else {
              rows.count = 0;
              for (int64_t i = 0; i < count; ++i) rows.Add(cells, places.space, each * count + i);
              SumRows<0>(from, rows.offset, rows.weight, rows.count, width, point > 0, to);
            }
            if (point + count == sizes.points) walk.Next();
          }
        });
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

// Adds the gradient upstream to the corners of a cell.
template <typename T, int kRank>
inline void AddToCorners(const Cells<T, kRank>& cells, const Space<T, kRank>& space, int64_t cell,
                         const T* upstream, int64_t channels, T* values_gradient) {
  constexpr int kMost = 1 << kRank;
  T weight[kMost];
  if (cells.interior[cell]) {
    for (int i = 0; i < kMost; ++i) weight[i] = cells.weight[i][cell];
    AddRows<kMost>(upstream, space.corner, weight, channels,
                   values_gradient + cells.Lower(space, cell));
    return;
  }
  Corners<T, kRank, false> corners;
  cells.Corner(space, cell, &corners);
  if (!corners.reads) return;
  for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * cells.factor[cell];
  WithConstant<kMost>(corners.count, [&](auto count) {
    AddRows<count>(upstream, corners.offset, weight, channels, values_gradient);
  });
}

// Each image's slice of channels has one owner, who adds in the order of the points: the sums do
// not depend on the number of threads.
template <typename T, int kRank>
void SampleGradValues(const Pool& pool, const SampleSizes& sizes, const T* points, const T* weights,
                      const int64_t* image_index, const T* gradient, T* values_gradient) {
  using Found = Cells<T, kRank>;
  const Places<T, kRank> places(sizes, points, weights, image_index);
  const Space<T, kRank>& space = places.space;
  const RowsOfImages rows(sizes, image_index);
  const int64_t width = places.width;
  const int64_t others = std::max<int64_t>(1, sizes.images * sizes.groups);
  const int64_t halves = others % 2 && others < 8 ? 2 : 1;  // a few owners are even in number
  const int64_t owned = std::clamp<int64_t>((width + halves - 1) / halves, 1, kWidest);
  const int64_t slice = (owned + kLine - 1) / kLine * kLine;
  const int64_t slices = (width + slice - 1) / slice;
  const auto clear = [&](int64_t image) {
    std::fill_n(values_gradient + image * space.elements, space.elements, T(0));
  };
  const bool whole = sizes.groups == 1 && slices == 1;  // an owner has the whole image
  if (!whole) {
    ParallelFor(pool, sizes.images, space.elements / 4 + 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) clear(image);
    });
  }
  const int64_t cost = sizes.rows * sizes.queries * sizes.points * (20 + (slice << kRank) / 4) /
                           std::max<int64_t>(1, sizes.images) +
                       1000;
  ParallelFor(pool, sizes.images * sizes.groups * slices, cost, [&](int64_t begin, int64_t end) {
    Found cells;
    int64_t query[Found::kSize];  // of each cell
    for (int64_t owner = begin; owner < end; ++owner) {
      const int64_t group = owner / slices % sizes.groups;
      const int64_t image = owner / slices / sizes.groups;
      const int64_t low = group * width + owner % slices * slice;
      const int64_t kept = std::min(slice, (group + 1) * width - low);
      T* to = values_gradient + image * space.elements + low;
      if (whole) clear(image);
      int64_t count = 0;
      const auto add = [&] {
        cells.Find(space, count);
        for (int64_t cell = 0; cell < count; ++cell) {
          AddToCorners(cells, space, cell, gradient + query[cell] * sizes.channels + low, kept, to);
        }
        count = 0;
      };
      for (int64_t nth = rows.start[image]; nth < rows.start[image + 1]; ++nth) {
        const int64_t first = rows.order[nth] * sizes.queries;
        for (int64_t each = first; each < first + sizes.queries; ++each) {
          const int64_t point = (each * sizes.groups + group) * sizes.points;
          for (int64_t done = 0; done < sizes.points;) {
            const int64_t taken = std::min(sizes.points - done, Found::kSize - count);
            places.Set(point + done, taken, count, &cells);
            std::fill(query + count, query + count + taken, each);
            done += taken;
            count += taken;
            if (count == Found::kSize) add();
          }
        }
      }
      add();
    }
  });
}

template <typename T, int kRank>
void SampleGradPoints(const Pool& pool, const SampleSizes& sizes, const T* values, const T* points,
                      const T* weights, const int64_t* image_index, const T* gradient,
                      T* points_gradient, T* weights_gradient) {
  using Found = Cells<T, kRank>;
  constexpr int kMost = Found::kMost;
  const Places<T, kRank> places(sizes, points, weights, image_index);
  const Space<T, kRank>& space = places.space;
  const int64_t width = places.width;
  const int64_t cost = sizes.groups * sizes.points * (40 + (width << kRank) / 4);
  ParallelFor(pool, sizes.rows * sizes.queries, cost, [&](int64_t begin, int64_t end) {
    Walk<T, kRank> walk(places, sizes, begin);
    alignas(64) T dots[kMost][Found::kSize] = {};
    alignas(64) T gradients[kRank + 1][Found::kSize];
    places.ForCells(
        begin, end,
        [&](const Found& cells, int64_t samples, int64_t count, int64_t sample, int64_t point) {
          const int64_t first = sample * sizes.points + point;
          const auto write = [&](int64_t cell, const T* gradient) {
            T* to = points_gradient + (first + cell) * kRank;
            for (int axis = 0; axis < kRank; ++axis) to[axis] = gradient[axis];
            if (weights_gradient) weights_gradient[first + cell] = gradient[kRank];
          };
          T dot[8], one[kRank + 1];
          for (int64_t each = 0; each < samples; ++each) {
            const T* from = values + walk.channels();
            const T* upstream = gradient + (sample + each) * width;
            for (int64_t cell = each * count; cell < (each + 1) * count; ++cell) {
              if (cells.interior[cell]) {
                DotRows<kMost>(from + cells.Lower(space, cell), space.corner, upstream, width, dot);
                for (int i = 0; i < kMost; ++i) dots[i][cell] = dot[i];
                continue;
              }
              Corners<T, kRank> corners;
              cells.Corner(space, cell, &corners);
              WithConstant<kMost>(corners.count, [&](auto count) {
                DotRows<count>(from, corners.offset, upstream, width, dot);
              });
              PointGradient(corners, cells.factor[cell], dot, one);
              write(cell, one);
            }
            if (point + count == sizes.points) walk.Next();
          }
          PointGradients(cells, samples * count, dots, gradients);
          for (int64_t cell = 0; cell < samples * count; ++cell) {
            if (!cells.interior[cell]) continue;
            for (int axis = 0; axis <= kRank; ++axis) one[axis] = gradients[axis][cell];
            write(cell, one);
          }
        });
  });
}

}  // namespace

template <typename T>
void SetSampleKernels(TypedKernels<T>* kernels) {
  kernels->sample = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    constexpr decltype(kernels->sample) kOfRank[] = {SampleValues<T, 1>, SampleValues<T, 2>,
                                                     SampleValues<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
  kernels->sample_grad_values = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    constexpr decltype(kernels->sample_grad_values) kOfRank[] = {
        SampleGradValues<T, 1>, SampleGradValues<T, 2>, SampleGradValues<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
  kernels->sample_grad_points = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    constexpr decltype(kernels->sample_grad_points) kOfRank[] = {
        SampleGradPoints<T, 1>, SampleGradPoints<T, 2>, SampleGradPoints<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
}

template void SetSampleKernels<float>(TypedKernels<float>*);
template void SetSampleKernels<double>(TypedKernels<double>*);

}  // namespace tf_deform
