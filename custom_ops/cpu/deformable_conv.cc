// The deformable convolution, forward.
// Called through the table in kernels.h.

#include "custom_ops/cpu/buffer.h"
#include "custom_ops/cpu/conv_products.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/cpu/taps.h"

namespace tf_deform {
namespace {

// out[c] = sum over the taps of kernel[tap, c] * sample of tap[c]. A tap's sample is the sum over
// kCount rows: row(tap, i) is where one begins, weight(tap, i) its weight.
template <int kCount, typename T, typename S, typename Row, typename Weight>
inline void DepthwiseRows(Row&& row, Weight&& weight, int64_t taps, const S* __restrict__ kernel,
                          int64_t kernel_stride, int64_t channels, T* __restrict__ out) {
  using V = typename Vector<T>::Type;
  constexpr int64_t kLanes = Vector<T>::kLanes;
  const int64_t rest = ForBlocks<T, 4>(channels, 0, [&](auto vectors, int64_t c) {
    V total[vectors] = {};
    for (int64_t tap = 0; tap < taps; ++tap) {
      V sum[vectors] = {};
      ForRows<kCount>(0, [&](int64_t i) {
        const S* from = row(tap, i) + c;
        const V w = Broadcast<V>(weight(tap, i));
        for (int j = 0; j < vectors; ++j) sum[j] = MulAdd(Load(from + j * kLanes), w, sum[j]);
      });
      const S* factor = kernel + tap * kernel_stride + c;
      for (int j = 0; j < vectors; ++j) {
        total[j] = MulAdd(Load(factor + j * kLanes), sum[j], total[j]);
      }
    }
    for (int j = 0; j < vectors; ++j) Store(out + c + j * kLanes, total[j]);
  });
  if (rest == channels) return;
  const Part<T> part(channels - rest);
  V total = {};
  for (int64_t tap = 0; tap < taps; ++tap) {
    V sum = {};
    ForRows<kCount>(0, [&](int64_t i) {
      sum = MulAdd(part.Load(row(tap, i) + rest), Broadcast<V>(weight(tap, i)), sum);
    });
    total = MulAdd(part.Load(kernel + tap * kernel_stride + rest), sum, total);
  }
  part.Store(out + rest, total);
}

template <typename S, int kRank>
class Convolution : Taps<S, kRank> {
 public:
  using T = Wide<S>;

  Convolution(const ConvSizes& sizes, const S* inputs, const S* kernel, const T* offset,
              const T* mask)
      : Base(sizes, inputs, kernel, offset, mask) {}

  void Run(const Pool& pool, S* out) const {
    if (plan_.points == 0) return;
    if constexpr (kPaired<S>) {
      if (plan_.group_channels % 2 == 0) return RunDense<Pair>(pool, out);
    }
    plan_.depthwise() ? RunDepthwise(pool, out) : RunDense<T>(pool, out);
  }

 private:
  using Base = Taps<S, kRank>;
  using Base::kMost;
  using typename Base::Chunk;
  using typename Base::Found;

  // A: the type of the products' factors.
  template <typename A>
  void RunDense(const Pool& pool, S* out) const {
    using Number = typename Products<S, A>::Number;
    std::vector<Slice> slices;
    AddSlices(plan_, 0, sizes_.channels, sizes_.channels, &slices);
    Products<S, A> products(plan_, &slices, false);
    const Buffer<A> packed(products.packed_size());
    products.PackKernel(pool, slices, kernel_, packed.get());
    const int64_t size = plan_.ForwardTile();
    const double cost = 1.0 * size * plan_.taps * sizes_.channels * (plan_.group_filters / 16 + 1);
    ParallelFor(pool, CeilOfRatio(plan_.points, size), cost, [&](int64_t begin, int64_t end) {
      const int64_t width = slices[0].width();  // the widest
      const int64_t at_once = plan_.template TapsAtOnce<Number>(width);
      const int64_t stride = Plan<T>::template Stride<Number>(at_once * width);
      const Buffer<Number> columns(size * stride);
      const Buffer<T> wide(kNarrow<S> ? size * sizes_.filters : 0);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * size;
        const int64_t count = std::min(size, plan_.points - first);
        T* const to = SumsOf(out + first * sizes_.filters, wide.get());
        for (const Slice& slice : slices) {
          for (int64_t tap = 0; tap < plan_.taps; tap += at_once) {
            const int64_t taps = std::min(at_once, plan_.taps - tap);
            SampleTile(first, count, slice, tap, taps, columns.get(), stride);
            products.Forward(slice, tap, taps, columns.get(), stride, count, packed.get(), to);
          }
        }
        Narrow(to, count * sizes_.filters, out + first * sizes_.filters);
      }
    });
  }

  void RunDepthwise(const Pool& pool, S* out) const {
    const std::vector<S> zeros(plan_.moved_channels);
    const double cost = 0.5 * kTile * plan_.taps * sizes_.channels;
    ParallelFor(pool, CeilOfRatio(plan_.points, kTile), cost, [&](int64_t begin, int64_t end) {
      const Buffer<T> wide(kNarrow<S> ? plan_.moved_channels : 0);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTile;
        for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
          const int64_t channel = moved * plan_.moved_channels;
          this->ForChunks(first, std::min(kTile, plan_.points - first), moved, 0, plan_.taps,
                          [&](const Chunk& chunk) {
                            DepthwiseChunk(chunk, channel, zeros.data(), wide.get(), out);
                          });
        }
      }
    });
  }

  // columns: [count, taps, channels of the slice], of which rows are `stride` apart.
  template <typename Number>
  void SampleTile(int64_t first, int64_t count, const Slice& slice, int64_t tap, int64_t taps,
                  Number* columns, int64_t stride) const {
    for (int64_t moved = slice.begin / plan_.moved_channels;
         moved * plan_.moved_channels < slice.end; ++moved) {
      const int64_t begin = std::max(slice.begin, moved * plan_.moved_channels);
      const int64_t width = std::min(slice.end, (moved + 1) * plan_.moved_channels) - begin;
      this->ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
        const S* image = inputs_ + chunk.image * space_.elements + begin;
        if (tap == 0) this->Prefetch(chunk, inputs_ + begin, width);
        SampleChunk(chunk, taps, image, width,
                    columns + (chunk.first - first) * stride + begin - slice.begin, stride,
                    slice.width());
      });
    }
  }

  // columns: [points, taps, width], of which points and taps are so far apart.
  template <typename Number>
  void SampleChunk(const Chunk& chunk, int64_t taps, const S* __restrict__ image, int64_t width,
                   Number* __restrict__ columns, int64_t point_stride, int64_t tap_stride) const {
    using V = typename Vector<T>::Type;
    constexpr int64_t kLanes = Vector<T>::kLanes;
    const Found& cells = chunk.cells;
    int64_t corner[kMost];  // nothing that is called could change it: it stays in registers
    std::copy_n(space_.corner, kMost, corner);
    int64_t cell = 0;
    for (int64_t point = 0; point < chunk.points; ++point) {
      Number* to = columns + point * point_stride;
      for (int64_t tap = 0; tap < taps; ++tap, ++cell, to += tap_stride) {
        if (!cells.interior[cell]) {
          SampleRow(cells, cell, image, width, to);
          continue;
        }
        const S* from = image + cells.lower[cell];
        V weight[kMost];
        ForRows<kMost>(0, [&](int64_t i) { weight[i] = Broadcast<V>(cells.weight[i][cell]); });
        const int64_t done = ForBlocks<T, 4>(width, 0, [&](auto vectors, int64_t c) {
          V sum[vectors] = {};
          ForRows<kMost>(0, [&](int64_t i) {
            const S* row = from + corner[i] + c;
            for (int j = 0; j < vectors; ++j) {
              sum[j] = MulAdd(Load(row + j * kLanes), weight[i], sum[j]);
            }
          });
          for (int j = 0; j < vectors; ++j) Store(to + c + j * kLanes, sum[j]);
        });
        if (done < width) SampleRow(cells, cell, image + done, width - done, to + done);
      }
    }
  }

  void SampleRow(const Found& cells, int64_t cell, const S* image, int64_t width, T* to) const {
    Sample(cells, space_, cell, image, width, to);
  }
  template <typename Number>
  void SampleRow(const Found& cells, int64_t cell, const S* image, int64_t width,
                 Number* to) const {
    alignas(64) T row[kInnerBytes / sizeof(T)];  // the widest slice
    Sample(cells, space_, cell, image, width, row);
    Narrow(row, width, to);
  }

  // The channels of a deformable group, from `channel` on. zeros, wide: so many.
  void DepthwiseChunk(const Chunk& chunk, int64_t channel, const S* zeros, T* wide, S* out) const {
    const Found& cells = chunk.cells;
    const int64_t taps = plan_.taps, width = plan_.moved_channels;
    const S* image = inputs_ + chunk.image * space_.elements + channel;
    this->Prefetch(chunk, inputs_ + channel, width);
    S* to = out + chunk.first * sizes_.filters + channel;
    for (int64_t cell = 0; cell < chunk.points * taps; cell += taps, to += sizes_.filters) {
      const auto sum = [&](auto&& row, auto&& weight) {
        DepthwiseRows<kMost>(row, weight, taps, kernel_ + channel, sizes_.filters, width,
                             SumsOf(to, wide));
      };
      if (std::all_of(cells.interior + cell, cells.interior + cell + taps,
                      [](auto inside) { return inside; })) {
        sum([&](int64_t tap,
                int64_t i) { return image + cells.lower[cell + tap] + space_.corner[i]; },
            [&](int64_t tap, int64_t i) { return cells.weight[i][cell + tap]; });
      } else {
        const S* row[Found::kSize * kMost];
        T weight[Found::kSize * kMost];
        for (int64_t tap = 0; tap < taps; ++tap) {
          RowsOf(cells, cell + tap, image, zeros, row + tap * kMost, weight + tap * kMost);
        }
        sum([&](int64_t tap, int64_t i) { return row[tap * kMost + i]; },
            [&](int64_t tap, int64_t i) { return weight[tap * kMost + i]; });
      }
      Narrow(SumsOf(to, wide), width, to);
    }
  }

  // Where the rows of a cell's corners begin, and their weights, for all kMost: corners that are
  // not there read zeros, which make a NaN of a factor that is not finite.
  void RowsOf(const Found& cells, int64_t cell, const S* image, const S* zeros, const S** row,
              T* weight) const {
    Corners<T, kRank, false> corners;
    cells.Corner(space_, cell, &corners);
    const int count = corners.reads ? corners.count : 0;
    for (int i = 0; i < kMost; ++i) {
      row[i] = i < count ? image + corners.offset[i] : zeros;
      weight[i] = (i < count ? corners.weight[i] : T(0)) * cells.factor[cell];
    }
  }

  using Base::inputs_;
  using Base::kernel_;
  using Base::plan_;
  using Base::sizes_;
  using Base::space_;
};

template <typename S, int kRank, typename T = Wide<S>>
void Forward(const Pool& pool, const ConvSizes& sizes, const S* inputs, const S* kernel,
             const T* offset, const T* mask, S* out) {
  Convolution<S, kRank>(sizes, inputs, kernel, offset, mask).Run(pool, out);
}

}  // namespace

template <typename T>
void SetConvKernels(TypedKernels<T>* kernels) {
  kernels->conv = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    return OfRank(Forward<T, 1>, Forward<T, 2>, Forward<T, 3>, pool, sizes, rest...);
  };
}

template void SetConvKernels<float>(TypedKernels<float>*);
template void SetConvKernels<double>(TypedKernels<double>*);
template void SetConvKernels<Float16Bits>(TypedKernels<Float16Bits>*);
template void SetConvKernels<Bfloat16Bits>(TypedKernels<Bfloat16Bits>*);

}  // namespace tf_deform
