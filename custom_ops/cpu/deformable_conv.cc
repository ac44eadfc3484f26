// The deformable convolution, forward.
// Called through the table in kernels.h.

#include "custom_ops/cpu/buffer.h"
#include "custom_ops/cpu/conv_products.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/cpu/taps.h"

namespace tf_deform {
namespace {

// Stores the first channels of a sum, fewer than a vector has.
template <typename T>
inline void StorePart(const Part<T>& part, int64_t, typename Vector<T>::Type sum, T* to) {
  part.Store(to, sum);
}
template <typename T, typename S>
inline void StorePart(const Part<T>&, int64_t count, typename Vector<T>::Type sum, S* to) {
  alignas(64) T wide[Vector<T>::kLanes];
  Store(wide, sum);
  Narrow(wide, count, to);
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
    const std::vector<S> zeros(slices[0].width());  // the widest
    const double cost = 1.0 * size * plan_.taps * sizes_.channels * (plan_.group_filters / 16 + 1);
    ParallelFor(pool, CeilOfRatio(plan_.points, size), cost, [&](int64_t begin, int64_t end) {
      const int64_t width = zeros.size();
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
            SampleTile(first, count, slice, tap, taps, zeros.data(), columns.get(), stride);
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
                  const S* zeros, Number* columns, int64_t stride) const {
    for (int64_t moved = slice.begin / plan_.moved_channels;
         moved * plan_.moved_channels < slice.end; ++moved) {
      const int64_t begin = std::max(slice.begin, moved * plan_.moved_channels);
      const int64_t width = std::min(slice.end, (moved + 1) * plan_.moved_channels) - begin;
      this->ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
        const S* image = inputs_ + chunk.image * space_.elements + begin;
        if (tap == 0) this->Prefetch(chunk, inputs_ + begin, width);
        SampleChunk(chunk, taps, image, zeros, width,
                    columns + (chunk.first - first) * stride + begin - slice.begin, stride,
                    slice.width());
      });
    }
  }

  // columns: [points, taps, width], of which points and taps are so far apart.
  template <typename Number>
  void SampleChunk(const Chunk& chunk, int64_t taps, const S* image, const S* zeros, int64_t width,
                   Number* __restrict__ columns, int64_t point_stride, int64_t tap_stride) const {
    using V = typename Vector<T>::Type;
    constexpr int64_t kLanes = Vector<T>::kLanes;
    const Found& cells = chunk.cells;
    alignas(64) const S* row[kMost][Found::kSize];
    cells.Rows(space_, chunk.points * taps, image, zeros, row);
    int64_t cell = 0;
    for (int64_t point = 0; point < chunk.points; ++point) {
      Number* to = columns + point * point_stride;
      for (int64_t tap = 0; tap < taps; ++tap, ++cell, to += tap_stride) {
        V weight[kMost];
        const S* from[kMost];
        ForRows<kMost>(0, [&](int64_t i) {
          weight[i] = Broadcast<V>(cells.weight[i][cell]);
          from[i] = row[i][cell];
        });
        const int64_t done = ForBlocks<T, 4>(width, 0, [&](auto vectors, int64_t c) {
          V sum[vectors] = {};
          ForRows<kMost>(0, [&](int64_t i) {
            for (int j = 0; j < vectors; ++j) {
              sum[j] = MulAdd(Load(from[i] + c + j * kLanes), weight[i], sum[j]);
            }
          });
          for (int j = 0; j < vectors; ++j) Store(to + c + j * kLanes, sum[j]);
        });
        if (done == width) continue;
        const Part<T> part(width - done);
        V sum = {};
        ForRows<kMost>(
            0, [&](int64_t i) { sum = MulAdd(part.Load(from[i] + done), weight[i], sum); });
        StorePart(part, width - done, sum, to + done);
      }
    }
  }

  // The channels of a deformable group, from `channel` on. zeros, wide: so many.
  void DepthwiseChunk(const Chunk& chunk, int64_t channel, const S* zeros, T* wide, S* out) const {
    const int64_t taps = plan_.taps, width = plan_.moved_channels;
    this->Prefetch(chunk, inputs_ + channel, width);
    const Found& cells = chunk.cells;
    const S* image = inputs_ + chunk.image * space_.elements + channel;
    alignas(64) const S* row[kMost][Found::kSize];
    cells.Rows(space_, chunk.points * taps, image, zeros, row);
    S* to = out + chunk.first * sizes_.filters + channel;
    for (int64_t cell = 0; cell < chunk.points * taps; cell += taps, to += sizes_.filters) {
      DepthwisePoint(cells, cell, row, kernel_ + channel, SumsOf(to, wide));
      Narrow(SumsOf(to, wide), width, to);
    }
  }

  // out[c] = the sum over a point's taps, from cell `first` on, of kernel times sample, of the
  // channels of a deformable group. row: where corners begin.
  void DepthwisePoint(const Found& cells, int64_t first, const S* const (*row)[Found::kSize],
                      const S* kernel, T* __restrict__ out) const {
    using V = typename Vector<T>::Type;
    constexpr int64_t kLanes = Vector<T>::kLanes;
    const int64_t end = first + plan_.taps, width = plan_.moved_channels, stride = sizes_.filters;
    const int64_t done = ForBlocks<T, 4>(width, 0, [&](auto vectors, int64_t c) {
      V total[vectors] = {};
      const S* factor = kernel + c;
      for (int64_t cell = first; cell < end; ++cell, factor += stride) {
        V sum[vectors] = {};
        ForRows<kMost>(0, [&](int64_t i) {
          const S* from = row[i][cell] + c;
          const V w = Broadcast<V>(cells.weight[i][cell]);
          for (int j = 0; j < vectors; ++j) sum[j] = MulAdd(Load(from + j * kLanes), w, sum[j]);
        });
        for (int j = 0; j < vectors; ++j) {
          total[j] = MulAdd(Load(factor + j * kLanes), sum[j], total[j]);
        }
      }
      for (int j = 0; j < vectors; ++j) Store(out + c + j * kLanes, total[j]);
    });
    if (done == width) return;
    const Part<T> part(width - done);
    V total = {};
    const S* factor = kernel + done;
    for (int64_t cell = first; cell < end; ++cell, factor += stride) {
      V sum = {};
      ForRows<kMost>(0, [&](int64_t i) {
        sum = MulAdd(part.Load(row[i][cell] + done), Broadcast<V>(cells.weight[i][cell]), sum);
      });
      total = MulAdd(part.Load(factor), sum, total);
    }
    part.Store(out + done, total);
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
