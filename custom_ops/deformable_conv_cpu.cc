// The deformable convolution on the CPU.

#include "deformable_conv_cpu.h"

namespace tf_deform {
namespace {

// out[c] = sum over the taps of kernel[tap, c] * sample of tap[c]; with `add`, added to out. A
// tap's sample is that of kCount rows; weight: [taps, kCount], row: [taps, kCount].
template <int kCount, typename T>
inline void DepthwiseRows(const T* const* row, const T* weight, int64_t taps,
                          const T* __restrict__ kernel, int64_t kernel_stride, int64_t channels,
                          bool add, T* __restrict__ out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  constexpr int kWide = 4;
  int64_t begin = 0;
  for (; begin + kWide * kLanes <= channels; begin += kWide * kLanes) {
    typename Vector<T>::Type total[kWide] = {};
    if (add) {
      for (int j = 0; j < kWide; ++j) total[j] = Load(out + begin + j * kLanes);
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      typename Vector<T>::Type sum[kWide] = {};
      ForRows<kCount>(0, [&](int64_t i) {
        const T* from = row[tap * kCount + i] + begin;
        const auto w = Broadcast(weight[tap * kCount + i]);
        for (int j = 0; j < kWide; ++j) sum[j] = MulAdd(Load(from + j * kLanes), w, sum[j]);
      });
      const T* factor = kernel + tap * kernel_stride + begin;
      for (int j = 0; j < kWide; ++j)
        total[j] = MulAdd(Load(factor + j * kLanes), sum[j], total[j]);
    }
    for (int j = 0; j < kWide; ++j) Store(out + begin + j * kLanes, total[j]);
  }
  ForChannels<T>(channels - begin, [&](auto load, auto store, int64_t c) {
    c += begin;
    typename Vector<T>::Type total = {};
    if (add) total = load(out + c);
    for (int64_t tap = 0; tap < taps; ++tap) {
      typename Vector<T>::Type sum = {};
      ForRows<kCount>(0, [&](int64_t i) {
        sum = MulAdd(load(row[tap * kCount + i] + c), Broadcast(weight[tap * kCount + i]), sum);
      });
      total = MulAdd(load(kernel + tap * kernel_stride + c), sum, total);
    }
    store(out + c, total);
  });
}

template <typename T, int kRank>
class Convolution : Taps<T, kRank> {
 public:
  Convolution(const ConvSizes& sizes, const T* inputs, const T* kernel, const T* offset,
              const T* mask)
      : Base(sizes, inputs, kernel, offset, mask) {}

  void Run(const Pool& pool, T* out) const {
    const int64_t points = sizes_.batch * plan_.pixels;
    std::vector<Slice> slices;
    if (!plan_.depthwise()) AddSlices(plan_, 0, sizes_.channels, sizes_.channels, &slices);
    Products<T> products(plan_, &slices, false);
    const Buffer<T> packed(products.packed_size());
    if (!plan_.depthwise()) products.PackKernel(pool, slices, kernel_, packed.get());
    const std::vector<T> zeros(plan_.depthwise() ? plan_.moved_channels : 0);
    const int64_t cost = kTile * plan_.taps * sizes_.channels * (plan_.group_filters / 16 + 1);
    ParallelFor(pool, CeilOfRatio(points, kTile), cost, [&](int64_t begin, int64_t end) {
      const int64_t width = slices.empty() ? 0 : slices[0].width();  // the widest
      const int64_t at_once = slices.empty() ? 0 : plan_.TapsAtOnce(width);
      const int64_t stride = Plan<T>::Stride(at_once * width);
      const Buffer<T> columns(kTile * stride);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTile;
        const int64_t count = std::min(kTile, points - first);
        T* to = out + first * sizes_.filters;
        if (plan_.depthwise()) DepthwiseTile(first, count, zeros.data(), to);
        for (const Slice& slice : slices) {
          for (int64_t tap = 0; tap < plan_.taps; tap += at_once) {
            const int64_t taps = std::min(at_once, plan_.taps - tap);
            SampleTile(first, count, slice, tap, taps, columns.get(), stride);
            products.Forward(slice, tap, taps, columns.get(), stride, count, packed.get(), to);
          }
        }
      }
    });
  }

 private:
  using Base = Taps<T, kRank>;
  using Base::kMost;
  using typename Base::Chunk;
  using typename Base::Found;

  // columns: [count, taps, channels of the slice], of which rows are `stride` apart.
  void SampleTile(int64_t first, int64_t count, const Slice& slice, int64_t tap, int64_t taps,
                  T* columns, int64_t stride) const {
    for (int64_t moved = slice.begin / plan_.moved_channels;
         moved * plan_.moved_channels < slice.end; ++moved) {
      const int64_t begin = std::max(slice.begin, moved * plan_.moved_channels);
      const int64_t width = std::min(slice.end, (moved + 1) * plan_.moved_channels) - begin;
      this->ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
        for (int64_t point = 0; point < chunk.points; ++point) {
          const T* image = inputs_ + chunk.image[point] * space_.elements + begin;
          T* to = columns + (chunk.first - first + point) * stride + begin - slice.begin;
          for (int64_t each = 0; each < taps; ++each, to += slice.width()) {
            Sample(chunk.cells, space_, point * taps + each, image, width, to);
          }
        }
      });
    }
  }

  // Where the rows of a cell's corners begin, and their weights, for all kMost: corners that are
  // not there read zeros.
  void RowsOf(const Found& cells, int64_t cell, const T* image, const T* zeros, const T** row,
              T* weight) const {
    if (cells.interior[cell]) {
      const T* lower = image + cells.Lower(space_, cell);
      for (int i = 0; i < kMost; ++i) {
        row[i] = lower + space_.corner[i];
        weight[i] = cells.weight[i][cell];
      }
      return;
    }
    Corners<T, kRank, false> corners;
    cells.Corner(space_, cell, &corners);
    const int count = corners.reads ? corners.count : 0;
    for (int i = 0; i < kMost; ++i) {
      row[i] = i < count ? image + corners.offset[i] : zeros;
      weight[i] = i < count ? corners.weight[i] * cells.factor[cell] : T(0);
    }
  }

  // out: [count, filters]. zeros: the channels of a deformable group.
  void DepthwiseTile(int64_t first, int64_t count, const T* zeros, T* out) const {
    const int64_t width = plan_.moved_channels;
    const T* row[Found::kSize * kMost];
    T weight[Found::kSize * kMost];
    for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
      const int64_t begin = moved * width;
      for (int64_t tap = 0; tap < plan_.taps; tap += Found::kSize) {
        const int64_t taps = std::min(Found::kSize, plan_.taps - tap);
        this->ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
          for (int64_t point = 0; point < chunk.points; ++point) {
            const T* image = inputs_ + chunk.image[point] * space_.elements + begin;
            for (int64_t each = 0; each < taps; ++each) {
              RowsOf(chunk.cells, point * taps + each, image, zeros, row + each * kMost,
                     weight + each * kMost);
            }
            T* to = out + (chunk.first - first + point) * sizes_.filters + begin;
            DepthwiseRows<kMost>(row, weight, taps, kernel_ + tap * sizes_.filters + begin,
                                 sizes_.filters, width, tap > 0, to);
          }
        });
      }
    }
  }

  using Base::inputs_;
  using Base::kernel_;
  using Base::plan_;
  using Base::sizes_;
  using Base::space_;
};

template <typename T, int kRank>
void Forward(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
             const T* offset, const T* mask, T* out) {
  Convolution<T, kRank>(sizes, inputs, kernel, offset, mask).Run(pool, out);
}

}  // namespace

template <typename T>
void SetConvKernels(TypedKernels<T>* kernels) {
  kernels->conv = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    constexpr decltype(kernels->conv) kOfRank[] = {Forward<T, 1>, Forward<T, 2>, Forward<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
}

template void SetConvKernels<float>(TypedKernels<float>*);
template void SetConvKernels<double>(TypedKernels<double>*);

}  // namespace tf_deform
