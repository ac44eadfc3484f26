// The gradients of the deformable convolution: tile by tile the samples are found again.
// Called through the table in kernels.h.

#include <limits>
#include <type_traits>

#include "custom_ops/cpu/buffer.h"
#include "custom_ops/cpu/conv_products.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/cpu/taps.h"

namespace tf_deform {
namespace {

constexpr int64_t kWidest = 128;                     // channels that an owner has at most
constexpr int64_t kMostBlocks = 16;                  // of images
constexpr int64_t kPartialBytes = int64_t{1} << 20;  // of point gradients, each block
constexpr int64_t kBlocksBytes = int64_t{4} << 20;   // of either kind of gradient, all blocks

// What a tap needs of its channels, in one pass over them: its sample into columns, the dot
// products of its corners with the gradient, and the gradient added to the corners. kCount corners.
template <int kCount, typename S, typename T>
inline void BackwardRows(const S* __restrict__ values, const int64_t* offset, const T* weight,
                         const T* __restrict__ gradient, int64_t channels, T* __restrict__ columns,
                         T* __restrict__ values_gradient, T* dot) {
  typename Vector<T>::Type dots[kCount] = {};
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    using V = typename decltype(lanes)::Type;
    const V part = lanes.Load(gradient + c);
    V sum = {};
    ForRows<kCount>(0, [&](int64_t i) {
      const V value = lanes.Load(values + offset[i] + c);
      const V w = Broadcast<V>(weight[i]);
      sum = MulAdd(value, w, sum);
      dots[i] = MulAdd(value, part, dots[i]);
      T* to = values_gradient + offset[i] + c;
      lanes.Store(to, MulAdd(part, w, lanes.Load(to)));
    });
    lanes.Store(columns + c, sum);
  });
  Totals<kCount>(dots, dot);
}

// The same of a depthwise convolution, whose gradient is what is upstream times the tap's kernel.
// The sample goes to the kernel's gradient.
template <int kCount, typename S, typename T>
inline void DepthwiseBackwardRows(const S* __restrict__ values, const int64_t* offset,
                                  const T* weight, const T* __restrict__ upstream,
                                  const S* __restrict__ kernel, int64_t channels,
                                  T* __restrict__ values_gradient, T* __restrict__ kernel_gradient,
                                  T* dot) {
  typename Vector<T>::Type dots[kCount] = {};
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    using V = typename decltype(lanes)::Type;
    const V above = lanes.Load(upstream + c);
    const V part = above * lanes.Load(kernel + c);
    V sum = {};
    ForRows<kCount>(0, [&](int64_t i) {
      const V value = lanes.Load(values + offset[i] + c);
      const V w = Broadcast<V>(weight[i]);
      sum = MulAdd(value, w, sum);
      dots[i] = MulAdd(value, part, dots[i]);
      T* to = values_gradient + offset[i] + c;
      lanes.Store(to, MulAdd(part, w, lanes.Load(to)));
    });
    lanes.Store(kernel_gradient + c, MulAdd(sum, above, lanes.Load(kernel_gradient + c)));
  });
  Totals<kCount>(dots, dot);
}

template <typename S, int kRank>
class Gradient : Taps<S, kRank> {
 public:
  using T = Wide<S>;

  Gradient(const ConvSizes& sizes, const S* inputs, const S* kernel, const T* offset, const T* mask)
      : Base(sizes, inputs, kernel, offset, mask) {}

  // A: the type of the products' factors.
  template <typename A>
  void Run(const Pool& pool, const S* gradient, T* inputs_gradient, T* kernel_gradient,
           T* offset_gradient, T* mask_gradient) const;

  bool pairs() const { return kPaired<S> && plan_.group_filters % 2 == 0; }

 private:
  using Base = Taps<S, kRank>;
  using Base::kMost;
  using typename Base::Chunk;
  using typename Base::Found;

  // What an owner works with in the backward pass: its slice of channels, and the buffers.
  template <typename A>
  struct Owner {
    const Slice& slice;
    int64_t moved;
    const A* packed;  // the kernel, transposed
    T *columns, *columns_gradient;
    A* packed_gradient;
    int64_t stride, taps;  // of both columns: their rows', and how many at once
    T *inputs_gradient, *kernel_gradient;
  };

  template <typename A>
  void BackwardTile(const Owner<A>& owner, const Products<S, A>& products, int64_t first,
                    int64_t count, const typename Products<S, A>::Number* gradient,
                    T* share) const;
  void DepthwiseBackwardTile(const Owner<T>& owner, int64_t first, int64_t count, const T* gradient,
                             T* share) const;
  template <typename Interior, typename Outer, typename Spoil>
  void BackwardChunk(const Chunk& chunk, int64_t first, int64_t taps, T* share, Interior&& interior,
                     Outer&& outer, Spoil&& spoil) const;
  void DepthwiseInterior(const Chunk& chunk, int64_t tap, const S* values, const S* kernel,
                         const T* upstream, int64_t width, T* values_gradient, T* kernel_gradient,
                         T (*dots)[Found::kSize]) const;
  void SumPoints(int64_t per_moved, int64_t point, const T* partial, int64_t slice_stride,
                 T* offset_gradient, T* mask_gradient) const;

  using Base::inputs_;
  using Base::kernel_;
  using Base::plan_;
  using Base::sizes_;
  using Base::space_;
};

// Sets the gradients of the taps from `first` on, share [points, taps * rank of offsets and then all
// taps of masks], from what two functions find, which also add to what the owner has:
// - interior(dots) sets dots[i][cell] for all cells that are interior, whose corners i all exist;
// - outer(constant, point, tap, offset, weight, reads, dot) is called for every other cell and sets
//   dot[i] for as many corners as the constant says, at offset[i] in the image; where it does not
//   read, the sample is 0;
// - spoil(point, tap) is called last where the sample is NaN whatever it reads.
template <typename S, int kRank>
template <typename Interior, typename Outer, typename Spoil>
void Gradient<S, kRank>::BackwardChunk(const Chunk& chunk, int64_t first, int64_t taps, T* share,
                                       Interior&& interior, Outer&& outer, Spoil&& spoil) const {
  const Found& cells = chunk.cells;
  const int64_t stride = plan_.taps * (kRank + 1);  // of share, from point to point
  alignas(64) T dots[kMost][Found::kSize] = {};
  alignas(64) T gradients[kRank + 1][Found::kSize];
  interior(dots);
  PointGradients(cells, chunk.points * taps, dots, gradients);
  int64_t cell = 0;
  for (int64_t point = 0; point < chunk.points; ++point) {
    T* to = share + point * stride + first * kRank;
    T* to_mask = share + point * stride + plan_.taps * kRank + first;
    for (int64_t tap = 0; tap < taps; ++tap, ++cell, to += kRank) {
      if (cells.interior[cell]) {
        for (int axis = 0; axis < kRank; ++axis) to[axis] = gradients[axis][cell];
        to_mask[tap] = gradients[kRank][cell];
        continue;
      }
      Corners<T, kRank> corners;
      cells.Corner(space_, cell, &corners);
      T weight[kMost], dot[kMost];
      for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * cells.factor[cell];
      WithConstant<kMost>(corners.count, [&](auto count) {
        outer(count, point, tap, corners.offset, weight, corners.reads, dot);
      });
      if (IsSpoilt(corners, cells.factor[cell])) spoil(point, tap);
      T gradient[kRank + 1];
      PointGradient(cells, space_, cell, corners, dot, gradient);
      std::copy_n(gradient, kRank, to);
      to_mask[tap] = gradient[kRank];
    }
  }
}

// share: [count, taps * rank of offsets and then taps of masks].
template <typename S, int kRank>
template <typename A>
void Gradient<S, kRank>::BackwardTile(const Owner<A>& owner, const Products<S, A>& products,
                                      int64_t first, int64_t count,
                                      const typename Products<S, A>::Number* gradient,
                                      T* share) const {
  const Slice& slice = owner.slice;
  const int64_t width = slice.width();
  const int64_t stride = owner.stride;
  products.PackGradient(slice, gradient, count, owner.packed_gradient);
  for (int64_t tap = 0; tap < plan_.taps; tap += owner.taps) {
    const int64_t taps = std::min(owner.taps, plan_.taps - tap);
    products.ColumnsGradient(slice, tap, taps, owner.packed, gradient, count,
                             owner.columns_gradient, stride);
    this->ForChunks(first, count, owner.moved, tap, taps, [&](const Chunk& chunk) {
      const Found& cells = chunk.cells;
      const int64_t start = chunk.first - first;
      const int64_t image = chunk.image * space_.elements + slice.begin;
      const S* values = inputs_ + image;
      if (tap == 0) {
        this->Prefetch(chunk, inputs_ + slice.begin, width);
        this->Prefetch(chunk, owner.inputs_gradient + slice.begin, width);
      }
      T* values_gradient = owner.inputs_gradient + image;
      T* columns = owner.columns + start * stride;
      const T* columns_gradient = owner.columns_gradient + start * stride;
      BackwardChunk(
          chunk, tap, taps, share + start * plan_.taps * (kRank + 1),
          [&](T(*dots)[Found::kSize]) {
            T weight[kMost], dot[kMost];
            for (int64_t cell = 0; cell < chunk.points * taps; ++cell) {
              const int64_t column = cell / taps * stride + cell % taps * width;
              if (!cells.interior[cell]) {
                std::fill_n(columns + column, width, T(0));
                continue;
              }
              for (int i = 0; i < kMost; ++i) weight[i] = cells.weight[i][cell];
              BackwardRows<kMost>(values + cells.lower[cell], space_.corner, weight,
                                  columns_gradient + column, width, columns + column,
                                  values_gradient + cells.lower[cell], dot);
              for (int i = 0; i < kMost; ++i) dots[i][cell] = dot[i];
            }
          },
          [&](auto corners, int64_t point, int64_t each, const int64_t* offset, const T* weight,
              bool reads, T* dot) {
            const int64_t column = point * stride + each * width;
            BackwardRows<corners>(values, offset, weight, columns_gradient + column, width,
                                  columns + column, values_gradient, dot);
            if (!reads) std::fill_n(columns + column, width, T(0));
          },
          [&](int64_t point, int64_t each) {
            std::fill_n(columns + point * stride + each * width, width,
                        std::numeric_limits<T>::quiet_NaN());
          });
    });
    products.AddKernelGradient(slice, tap, taps, owner.columns, stride, owner.packed_gradient,
                               count, owner.kernel_gradient);
  }
}

template <typename S, int kRank>
void Gradient<S, kRank>::DepthwiseBackwardTile(const Owner<T>& owner, int64_t first,
                                               int64_t count, const T* gradient, T* share) const {
  const int64_t width = owner.slice.width(), taps = plan_.taps;
  const S* kernel = kernel_ + owner.slice.begin;
  T* kernel_gradient = owner.kernel_gradient + owner.slice.begin;
  this->ForChunks(first, count, owner.moved, 0, taps, [&](const Chunk& chunk) {
    const int64_t start = chunk.first - first;
    const int64_t image = chunk.image * space_.elements + owner.slice.begin;
    const S* values = inputs_ + image;
    this->Prefetch(chunk, inputs_ + owner.slice.begin, width);
    this->Prefetch(chunk, owner.inputs_gradient + owner.slice.begin, width);
    T* values_gradient = owner.inputs_gradient + image;
    const T* upstream = gradient + start * sizes_.filters + owner.slice.begin;
    BackwardChunk(
        chunk, 0, taps, share + start * taps * (kRank + 1),
        [&](T(*dots)[Found::kSize]) {
          for (int64_t tap = 0; tap < taps; ++tap) {
            DepthwiseInterior(chunk, tap, values, kernel + tap * sizes_.filters, upstream, width,
                              values_gradient, kernel_gradient + tap * sizes_.filters, dots);
          }
        },
        [&](auto corners, int64_t point, int64_t tap, const int64_t* offset, const T* weight,
            bool reads, T* dot) {
          const int64_t at = tap * sizes_.filters;
          const T* above = upstream + point * sizes_.filters;
          if (reads) {
            DepthwiseBackwardRows<corners>(values, offset, weight, above, kernel + at, width,
                                           values_gradient, kernel_gradient + at, dot);
          } else {
            std::fill_n(owner.columns, width, T(0));
            AddProduct(above, kernel + at, width, owner.columns);
            DotRows<corners>(values, offset, owner.columns, width, dot);
            AddRows<corners>(owner.columns, offset, weight, width, values_gradient);
          }
        },
        [&](int64_t, int64_t tap) {
          std::fill_n(kernel_gradient + tap * sizes_.filters, width,
                      std::numeric_limits<T>::quiet_NaN());
        });
  });
}

// DepthwiseBackwardRows for one tap of all points of a chunk where all of its corners exist. The
// kernel and its gradient stay in registers while the points go by.
template <typename S, int kRank>
void Gradient<S, kRank>::DepthwiseInterior(
    const Chunk& chunk, int64_t tap, const S* __restrict__ values, const S* __restrict__ kernel,
    const T* __restrict__ upstream, int64_t width, T* __restrict__ values_gradient,
    T* __restrict__ kernel_gradient, T (*dots)[Found::kSize]) const {
  using V = typename Vector<T>::Type;
  constexpr int64_t kLanes = Vector<T>::kLanes;
  const Found& cells = chunk.cells;
  // Sixteen registers do not hold enough of them to pay for their sums.
  const int64_t blocks = kVectorBytes == 64 ? width : 0;
  const int64_t rest = ForBlocks<T, 4>(blocks, 0, [&](auto vectors, int64_t c) {
    V factor[vectors], total[vectors];
    for (int j = 0; j < vectors; ++j) {
      factor[j] = Load(kernel + c + j * kLanes);
      total[j] = Load(kernel_gradient + c + j * kLanes);
    }
    const T* above = upstream + c;
    for (int64_t cell = tap; cell < chunk.points * plan_.taps;
         cell += plan_.taps, above += sizes_.filters) {
      if (!cells.interior[cell]) continue;
      V part[vectors], sum[vectors] = {}, dot[kMost] = {};
      for (int j = 0; j < vectors; ++j) part[j] = Load(above + j * kLanes) * factor[j];
      ForRows<kMost>(0, [&](int64_t i) {
        const int64_t from = cells.lower[cell] + space_.corner[i] + c;
        const V w = Broadcast<V>(cells.weight[i][cell]);
        for (int j = 0; j < vectors; ++j) {
          const V value = Load(values + from + j * kLanes);
          T* to = values_gradient + from + j * kLanes;
          sum[j] = MulAdd(value, w, sum[j]);
          dot[i] = MulAdd(value, part[j], dot[i]);
          Store(to, MulAdd(part[j], w, Load(to)));
        }
      });
      for (int j = 0; j < vectors; ++j) {
        total[j] = MulAdd(sum[j], Load(above + j * kLanes), total[j]);
      }
      T totals[kMost];
      Totals<kMost>(dot, totals);
      for (int i = 0; i < kMost; ++i) dots[i][cell] += totals[i];
    }
    for (int j = 0; j < vectors; ++j) Store(kernel_gradient + c + j * kLanes, total[j]);
  });
  if (rest == width) return;
  const T* above = upstream + rest;
  for (int64_t cell = tap; cell < chunk.points * plan_.taps;
       cell += plan_.taps, above += sizes_.filters) {
    if (!cells.interior[cell]) continue;
    T weight[kMost], dot[kMost];
    for (int i = 0; i < kMost; ++i) weight[i] = cells.weight[i][cell];
    DepthwiseBackwardRows<kMost>(
        values + cells.lower[cell] + rest, space_.corner, weight, above, kernel + rest,
        width - rest, values_gradient + cells.lower[cell] + rest, kernel_gradient + rest, dot);
    for (int i = 0; i < kMost; ++i) dots[i][cell] += dot[i];
  }
}

// Sums the slices' shares of one output pixel's gradients, in their order; each deformable group
// has per_moved. partial: of the first slice, [taps * rank of offsets and then taps of masks]; the
// next slice's is at slice_stride.
template <typename S, int kRank>
void Gradient<S, kRank>::SumPoints(int64_t per_moved, int64_t point, const T* partial,
                                   int64_t slice_stride, T* offset_gradient,
                                   T* mask_gradient) const {
  const auto add_up = [&](const T* share, int64_t count, T* to) {
    ForChannels<T>(count, [&](auto lanes, int64_t i) {
      auto sum = lanes.Load(share + i);
      for (int64_t nth = 1; nth < per_moved; ++nth) {
        sum += lanes.Load(share + nth * slice_stride + i);
      }
      lanes.Store(to + i, sum);
    });
  };
  const int64_t taps = plan_.taps;
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    const T* share = partial + moved * per_moved * slice_stride;
    const int64_t at = (point * sizes_.deformable_groups + moved) * taps;
    add_up(share, taps * kRank, offset_gradient + at * kRank);
    if (mask_gradient) add_up(share + taps * kRank, taps, mask_gradient + at);
  }
}

// An owner has the images of a block and a slice of channels; all it adds to is its own, but for
// the gradients of the points, of which it leaves its share for a band of points at a time.
template <typename S, int kRank>
template <typename A>
void Gradient<S, kRank>::Run(const Pool& pool, const S* gradient, T* inputs_gradient,
                             T* kernel_gradient, T* offset_gradient, T* mask_gradient) const {
  const int64_t kernel_size = plan_.taps * plan_.group_channels * sizes_.filters;
  Clear(pool, kernel_size, kernel_gradient);
  Clear(pool, sizes_.batch * space_.elements, inputs_gradient);
  if (plan_.points == 0) return;
  const int64_t most =
      std::clamp<int64_t>(kBlocksBytes / (kernel_size * sizeof(T)), 1, kMostBlocks);
  const int64_t images = CeilOfRatio(sizes_.batch, most);  // a block has
  const int64_t blocks = CeilOfRatio(sizes_.batch, images);
  const int64_t block_points = images * plan_.pixels;
  const int64_t others = blocks * sizes_.deformable_groups;
  const int64_t halves = others % 2 && others < 8 ? 2 : 1;  // a few owners are even in number
  const int64_t wanted = std::min(kWidest, CeilOfRatio(plan_.moved_channels, halves));
  std::vector<Slice> slices;
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    AddSlices(plan_, moved * plan_.moved_channels, (moved + 1) * plan_.moved_channels, wanted,
              &slices);
  }
  const int64_t per_moved = slices.size() / sizes_.deformable_groups;
  const int64_t owners = blocks * slices.size();
  const int64_t width = slices[0].width();  // the widest
  const int64_t per_point = plan_.taps * (kRank + 1);
  const int64_t partial_bytes = std::min(kPartialBytes, kBlocksBytes / blocks);
  const int64_t band_limit = partial_bytes / (slices.size() * per_point * sizeof(T));
  const int64_t band =
      kTile * std::min(std::max<int64_t>(1, band_limit / kTile), CeilOfRatio(block_points, kTile));

  const Products<S, A> products(plan_, &slices, true);
  const Buffer<A> packed(plan_.depthwise() ? 0 : products.packed_size());
  const Buffer<T> kernel_partial((blocks - 1) * kernel_size);  // of all blocks but the first
  const Buffer<T> partial(owners * band * per_point);
  if (!plan_.depthwise()) products.PackKernel(pool, slices, kernel_, packed.get());
  Clear(pool, (blocks - 1) * kernel_size, kernel_partial.get());
  const auto end_of = [&](int64_t block, int64_t first) {
    return std::min({first + band, (block + 1) * block_points, plan_.points});
  };

  for (int64_t start = 0; start < block_points; start += band) {
    const double cost = 1.0 * band * plan_.taps * width * (plan_.group_filters / 8 + 4);
    ParallelFor(pool, owners, cost, [&](int64_t begin, int64_t end) {
      const int64_t taps = plan_.TapsAtOnce(width);
      const int64_t stride = Plan<T>::Stride(taps * width);
      const Buffer<T> columns(kTile * stride);
      const Buffer<T> columns_gradient(kTile * stride);
      const Buffer<A> packed_gradient(products.gradient_size());
      const Buffer<T> wide(kNarrow<S> && kNumbers<A> == 1 ? kTile * sizes_.filters : 0);
      for (int64_t each = begin; each < end; ++each) {
        const int64_t block = each / slices.size();
        const int64_t nth = each % slices.size();
        const Owner<A> owner{
            slices[nth],
            nth / per_moved,
            packed.get(),
            columns.get(),
            columns_gradient.get(),
            packed_gradient.get(),
            stride,
            taps,
            inputs_gradient,
            block ? kernel_partial.get() + (block - 1) * kernel_size : kernel_gradient};
        const int64_t first = block * block_points + start;
        T* share = partial.get() + each * band * per_point;
        for (int64_t tile = first; tile < end_of(block, first); tile += kTile) {
          const int64_t count = std::min(kTile, end_of(block, first) - tile);
          const S* above = gradient + tile * sizes_.filters;
          if constexpr (kNumbers<A> == 2) {
            BackwardTile(owner, products, tile, count, above, share);
          } else {
            const T* upstream = Widened(above, count * sizes_.filters, wide.get());
            if (plan_.depthwise()) {
              DepthwiseBackwardTile(owner, tile, count, upstream, share);
            } else {
              BackwardTile(owner, products, tile, count, upstream, share);
            }
          }
          share += count * per_point;
        }
      }
    });
    ParallelFor(
        pool, blocks * band, 2.0 * slices.size() * per_point, [&](int64_t begin, int64_t end) {
          for (int64_t each = begin; each < end; ++each) {
            const int64_t block = each / band;
            const int64_t first = block * block_points + start;
            if (first + each % band >= end_of(block, first)) continue;
            SumPoints(per_moved, first + each % band,
                      partial.get() + (block * slices.size() * band + each % band) * per_point,
                      band * per_point, offset_gradient, mask_gradient);
          }
        });
  }
  ParallelFor(pool, kernel_size, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = 1; block < blocks; ++block) {
      const T* from = kernel_partial.get() + (block - 1) * kernel_size;
      for (int64_t at = begin; at < end; ++at) kernel_gradient[at] += from[at];
    }
  });
}

template <typename S, int kRank, typename T = Wide<S>>
void Backward(const Pool& pool, const ConvSizes& sizes, const S* inputs, const S* kernel,
              const T* offset, const T* mask, const S* gradient, T* inputs_gradient,
              T* kernel_gradient, T* offset_gradient, T* mask_gradient) {
  const Gradient<S, kRank> of(sizes, inputs, kernel, offset, mask);
  if constexpr (kPaired<S>) {
    if (of.pairs()) {
      return of.template Run<Pair>(pool, gradient, inputs_gradient, kernel_gradient,
                                   offset_gradient, mask_gradient);
    }
  }
  of.template Run<T>(pool, gradient, inputs_gradient, kernel_gradient, offset_gradient,
                     mask_gradient);
}

}  // namespace

template <typename T>
void SetConvGradKernels(TypedKernels<T>* kernels) {
  kernels->conv_grad = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    return OfRank(Backward<T, 1>, Backward<T, 2>, Backward<T, 3>, pool, sizes, rest...);
  };
}

template void SetConvGradKernels<float>(TypedKernels<float>*);
template void SetConvGradKernels<double>(TypedKernels<double>*);
template void SetConvGradKernels<Float16Bits>(TypedKernels<Float16Bits>*);
template void SetConvGradKernels<Bfloat16Bits>(TypedKernels<Bfloat16Bits>*);

}  // namespace tf_deform
