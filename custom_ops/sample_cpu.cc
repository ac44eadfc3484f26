// weighted_sample on the CPU: forward, the gradient to the values, and that to points and weights.

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kLine = 16;  // channels that one owner has at least: a cache line of float32

template <typename T, int kRank>
void Sample(const Pool& pool, const SampleSizes& sizes, const T* values, const T* points,
            const T* weights, const int64_t* image_index, T* out) {
  const Space<T, kRank> image(sizes.space, sizes.channels);
  const int64_t width = sizes.channels / sizes.groups;
  const int64_t cost = sizes.groups * sizes.points * (50 + width * Corners<T, kRank>::kMost / 4);
  ParallelFor(pool, sizes.rows * sizes.queries, cost, [&](int64_t begin, int64_t end) {
    constexpr int64_t kMost = 64;  // corners that are summed up at once
    int64_t offset[kMost];
    T weight[kMost];
    Corners<T, kRank, false> corners;
    for (int64_t query = begin; query < end; ++query) {
      const int64_t row = query / sizes.queries;
      const T* from = values + (image_index ? image_index[row] : row) * image.elements;
      for (int64_t group = 0; group < sizes.groups; ++group) {
        const int64_t first = (query * sizes.groups + group) * sizes.points;
        T* to = out + query * sizes.channels + group * width;
        if (sizes.points == 1) {
          FindCorners(points + first * kRank, image, &corners);
          const T factor = weights ? weights[first] : T(1);
          SumOfCorners(corners, factor, from + group * width, width, to);
          continue;
        }
        int64_t count = 0;
        bool add = false;
        for (int64_t point = first; point < first + sizes.points; ++point) {
          FindCorners(points + point * kRank, image, &corners);
          if (!corners.reads) continue;
          if (count + corners.count > kMost) {
            SumRows<0>(from + group * width, offset, weight, count, width, add, to);
            add = true;
            count = 0;
          }
          const T factor = weights ? weights[point] : T(1);
          for (int i = 0; i < corners.count; ++i, ++count) {
            offset[count] = corners.offset[i];
            weight[count] = corners.weight[i] * factor;
          }
        }
        SumRows<0>(from + group * width, offset, weight, count, width, add, to);
      }
    }
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

// Each image's slice of channels has one owner, who adds in the order of the points: the sums do
// not depend on the number of threads.
template <typename T, int kRank>
void SampleGradValues(const Pool& pool, const SampleSizes& sizes, const T* points, const T* weights,
                      const int64_t* image_index, const T* gradient, T* values_gradient) {
  const Space<T, kRank> image(sizes.space, sizes.channels);
  const RowsOfImages rows(sizes, image_index);
  const int64_t width = sizes.channels / sizes.groups;
  // Finding corners again for each slice costs about a line: no more slices than give eight owners.
  const int64_t wanted = std::max<int64_t>(1, 8 / std::max<int64_t>(1, sizes.images * sizes.groups));
  const int64_t lines = (width + kLine - 1) / kLine;
  const int64_t slice = kLine * std::max<int64_t>(1, (lines + wanted - 1) / wanted);
  const int64_t slices = (width + slice - 1) / slice;
  const int64_t owners = sizes.images * sizes.groups * slices;
  const int64_t cost =
      sizes.rows * sizes.queries * sizes.points * 100 / std::max<int64_t>(1, sizes.images) + 1000;
  ParallelFor(pool, owners, cost, [&](int64_t begin, int64_t end) {
    Corners<T, kRank, false> corners;
    T weight[Corners<T, kRank>::kMost];
    for (int64_t owner = begin; owner < end; ++owner) {
      const int64_t group = owner / slices % sizes.groups;
      const int64_t each = owner / slices / sizes.groups;
      const int64_t low = group * width + owner % slices * slice;
      const int64_t kept = std::min(slice, (group + 1) * width - low);
      T* to = values_gradient + each * image.elements + low;
      for (int64_t pixel = 0; pixel < image.elements; pixel += sizes.channels) {
        std::fill(to + pixel, to + pixel + kept, T(0));
      }
      for (int64_t nth = rows.start[each]; nth < rows.start[each + 1]; ++nth) {
        const int64_t from = rows.order[nth] * sizes.queries;
        for (int64_t query = from; query < from + sizes.queries; ++query) {
          const T* upstream = gradient + query * sizes.channels + low;
          const int64_t first = (query * sizes.groups + group) * sizes.points;
          for (int64_t point = first; point < first + sizes.points; ++point) {
            FindCorners(points + point * kRank, image, &corners);
            if (!corners.reads) continue;
            const T factor = weights ? weights[point] : T(1);
            for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * factor;
            if (corners.count == Corners<T, kRank>::kMost) {
              AddRows<Corners<T, kRank>::kMost>(upstream, corners.offset, weight, 0, kept, to);
            } else {
              AddRows<0>(upstream, corners.offset, weight, corners.count, kept, to);
            }
          }
        }
      }
    }
  });
}

template <typename T, int kRank>
void SampleGradPoints(const Pool& pool, const SampleSizes& sizes, const T* values, const T* points,
                      const T* weights, const int64_t* image_index, const T* gradient,
                      T* points_gradient, T* weights_gradient) {
  const Space<T, kRank> image(sizes.space, sizes.channels);
  const int64_t width = sizes.channels / sizes.groups;
  const int64_t cost = sizes.groups * sizes.points * (80 + width * Corners<T, kRank>::kMost / 4);
  ParallelFor(pool, sizes.rows * sizes.queries, cost, [&](int64_t begin, int64_t end) {
    Corners<T, kRank> corners;
    T dot[8];
    for (int64_t query = begin; query < end; ++query) {
      const int64_t row = query / sizes.queries;
      const T* from = values + (image_index ? image_index[row] : row) * image.elements;
      for (int64_t group = 0; group < sizes.groups; ++group) {
        const T* upstream = gradient + query * sizes.channels + group * width;
        const int64_t first = (query * sizes.groups + group) * sizes.points;
        for (int64_t point = first; point < first + sizes.points; ++point) {
          FindCorners(points + point * kRank, image, &corners);
          if (corners.count == Corners<T, kRank>::kMost) {
            DotRows<Corners<T, kRank>::kMost>(from + group * width, corners.offset, 0, upstream,
                                              width, dot);
          } else {
            DotRows<0>(from + group * width, corners.offset, corners.count, upstream, width, dot);
          }
          const T factor = weights ? weights[point] : T(1);
          T sample = T(0);
          T slope[kRank] = {};
          for (int i = 0; i < corners.count; ++i) {
            sample += corners.weight[i] * dot[i];
            for (int axis = 0; axis < kRank; ++axis) slope[axis] += corners.slope[i][axis] * dot[i];
          }
          for (int axis = 0; axis < kRank; ++axis) {
            points_gradient[point * kRank + axis] = corners.count ? slope[axis] * factor : T(0);
          }
          if (weights_gradient) weights_gradient[point] = corners.reads ? sample : T(0);
        }
      }
    }
  });
}

}  // namespace

template <typename T>
void SetSampleKernels(TypedKernels<T>* kernels) {
  kernels->sample = [](const Pool& pool, const SampleSizes& sizes, auto... rest) {
    constexpr decltype(kernels->sample) kOfRank[] = {Sample<T, 1>, Sample<T, 2>, Sample<T, 3>};
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
