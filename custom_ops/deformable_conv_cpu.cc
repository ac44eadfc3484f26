// The deformable convolution on the CPU, fused: the samples of a tile of output pixels are written
// to a buffer and multiplied at once, so that the columns are never stored whole. The backward pass
// samples again. Tiles, slices and blocks depend on sizes alone, never on the number of threads, and
// every sum has one owner: results are the same bits for any number of threads.

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "Eigen/Core"
#include "kernels.h"
#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kTileBytes = int64_t{512} << 10;  // of a forward tile of kMostTile output pixels
constexpr int64_t kMostTile = 96;      // output pixels; Eigen's AVX-512 kernel takes 48 at a time
constexpr int64_t kBackwardTile = 96;  // output pixels
constexpr int64_t kLine = 32;          // channels that an owner has at least
constexpr int64_t kOwners = 4;         // that a backward pass has, if it has the channels
constexpr int64_t kMostBlocks = 16;    // of images
constexpr int64_t kPartialBytes = int64_t{1} << 20;  // of point gradients, each block
constexpr int64_t kBlocksBytes = int64_t{4} << 20;   // of kernel gradients, all blocks

template <typename T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
template <typename T>
using Strided = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;

// The matrix [columns, rows] of row-major memory, seen as Eigen's column-major [rows, columns].
template <typename T>
Strided<T> View(T* data, int64_t rows, int64_t columns, int64_t stride) {
  return Strided<T>(data, rows, columns, Eigen::OuterStride<>(stride));
}
template <typename T>
Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>> View(
    const T* data, int64_t rows, int64_t columns, int64_t stride) {
  return {data, rows, columns, Eigen::OuterStride<>(stride)};
}

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

template <typename T, int kRank>
class Convolution {
 public:
  Convolution(const ConvSizes& sizes, const T* inputs, const T* kernel, const T* offset,
              const T* mask)
      : sizes_(sizes),
        inputs_(inputs),
        kernel_(kernel),
        offset_(offset),
        mask_(mask),
        pixels_(Product(sizes.output, kRank)),
        taps_(Product(sizes.kernel, kRank)),
        group_channels_(sizes.channels / sizes.groups),
        group_filters_(sizes.filters / sizes.groups),
        moved_channels_(sizes.channels / sizes.deformable_groups),
        space_(sizes.space, sizes.channels),
        image_(space_.elements),
        tap_(taps_ * kRank) {
    for (int64_t tap = 0; tap < taps_; ++tap) {
      int64_t rest = tap;
      for (int axis = kRank - 1; axis >= 0; --axis) {
        tap_[tap * kRank + axis] =
            rest % sizes.kernel[axis] * sizes.dilations[axis] - sizes.before[axis];
        rest /= sizes.kernel[axis];
      }
    }
  }

  void Forward(const Pool& pool, T* out) const {
    const int64_t points = sizes_.batch * pixels_;
    const int64_t columns = taps_ * sizes_.channels;
    const bool small = kMostTile * columns * static_cast<int64_t>(sizeof(T)) <= kTileBytes;
    const int64_t size = small ? kMostTile : kMostTile / 2;
    const int64_t tiles = (points + size - 1) / size;
    const int64_t cost = size * columns * (group_filters_ / 16 + 1);
    ParallelFor(pool, tiles, cost, [&](int64_t begin, int64_t end) {
      const Buffer<T> buffer(size * columns);
      const Buffer<T> product(dense() ? size * sizes_.filters : 0);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * size;
        const int64_t count = std::min(size, points - first);
        SampleTile(first, count, buffer.get());
        Multiply(buffer.get(), count, product.get(), out + first * sizes_.filters);
      }
    });
  }

  void Backward(const Pool& pool, const T* gradient, T* inputs_gradient, T* kernel_gradient,
                T* offset_gradient, T* mask_gradient) const;

 private:
  // Channels [begin, end) of one deformable group, which one owner sees to in the backward pass.
  struct Slice {
    int64_t moved, begin, end;
    int64_t width() const { return end - begin; }
  };

  bool dense() const { return sizes_.groups == 1; }
  bool depthwise() const { return group_channels_ == 1 && group_filters_ == 1; }

  // Where an output pixel of the batch is: its image and the position of its first tap, unpadded.
  int64_t Place(int64_t point, int64_t* base) const {
    int64_t rest = point % pixels_;
    for (int axis = kRank - 1; axis >= 0; --axis) {
      base[axis] = rest % sizes_.output[axis] * sizes_.strides[axis];
      rest /= sizes_.output[axis];
    }
    return point / pixels_;
  }

  // The position is made in integers; adding the offset is the only rounding.
  template <bool kSlopes>
  void Find(int64_t point, const int64_t* base, int64_t moved, int64_t tap,
            Corners<T, kRank, kSlopes>* corners) const {
    const T* shift = offset_ + ((point * sizes_.deformable_groups + moved) * taps_ + tap) * kRank;
    T position[kRank];
    for (int axis = 0; axis < kRank; ++axis) {
      position[axis] = static_cast<T>(base[axis] + tap_[tap * kRank + axis]) + shift[axis];
    }
    FindCorners(position, space_, corners);
  }

  // Where in the kernel the filters of a tap's channel begin.
  int64_t Filters(int64_t tap, int64_t channel) const {
    return (tap * group_channels_ + channel % group_channels_) * sizes_.filters +
           channel / group_channels_ * group_filters_;
  }

  T Mask(int64_t point, int64_t moved, int64_t tap) const {
    return mask_ ? mask_[(point * sizes_.deformable_groups + moved) * taps_ + tap] : T(1);
  }

  // columns: [count, taps, channels].
  void SampleTile(int64_t first, int64_t count, T* columns) const {
    Corners<T, kRank, false> corners;
    int64_t base[kRank];
    for (int64_t point = first; point < first + count; ++point) {
      const T* image = inputs_ + Place(point, base) * image_;
      for (int64_t tap = 0; tap < taps_; ++tap, columns += sizes_.channels) {
        for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
          Find(point, base, moved, tap, &corners);
          const T factor = Mask(point, moved, tap);
          const int64_t channel = moved * moved_channels_;
          SumOfCorners(corners, factor, image + channel, moved_channels_, columns + channel);
        }
      }
    }
  }

  // columns: [count, taps, channels]; out: [count, filters]. product: room for as much as out, which
  // takes it transposed: that suits how Eigen cuts a product into blocks.
  void Multiply(const T* columns, int64_t count, T* product, T* out) const {
    const int64_t filters = sizes_.filters;
    const int64_t channels = sizes_.channels;
    if (dense()) {
      const auto transposed = View(product, count, filters, count);
      View(product, count, filters, count).noalias() =
          View(columns, taps_ * channels, count, taps_ * channels).transpose() *
          View(kernel_, filters, taps_ * channels, filters).transpose();
      View(out, filters, count, filters) = transposed.transpose();
      return;
    }
    std::fill(out, out + count * filters, T(0));
    if (depthwise()) {
      for (int64_t point = 0; point < count; ++point, out += filters) {
        for (int64_t tap = 0; tap < taps_; ++tap, columns += channels) {
          AddProduct(columns, kernel_ + tap * channels, channels, out);
        }
      }
      return;
    }
    for (int64_t group = 0; group < sizes_.groups; ++group) {
      for (int64_t tap = 0; tap < taps_; ++tap) {
        View(out + group * group_filters_, group_filters_, count, filters).noalias() +=
            View(kernel_ + tap * group_channels_ * filters + group * group_filters_, group_filters_,
                 group_channels_, filters) *
            View(columns + tap * channels + group * group_channels_, group_channels_, count,
                 taps_ * channels);
      }
    }
  }

  std::vector<Slice> Slices(int64_t blocks) const;
  void PackKernel(const Pool& pool, const std::vector<Slice>& slices, T* packed) const;
  void SumKernel(const Pool& pool, const std::vector<Slice>& slices, int64_t blocks,
                 const T* partial, T* kernel_gradient) const;
  void SumPoints(const std::vector<Slice>& slices, int64_t point, const T* partial,
                 int64_t slice_stride, T* offset_gradient, T* mask_gradient) const;
  template <typename Pair>
  void ForGroups(const Slice& slice, Pair&& pair) const;
  void ColumnsGradient(const Slice& slice, const T* kernel, const T* gradient, int64_t count,
                       T* columns) const;
  void AddKernelGradient(const Slice& slice, const T* columns, const T* gradient, int64_t count,
                         T* kernel_gradient) const;
  void BackwardPoint(const Slice& slice, int64_t point, int64_t tap, const int64_t* base,
                     int64_t image, const T* columns_gradient, T* columns, T* inputs_gradient,
                     T* partial) const;

  const ConvSizes& sizes_;
  const T *inputs_, *kernel_, *offset_, *mask_;
  int64_t pixels_, taps_;  // of the output of one image; of the kernel
  int64_t group_channels_, group_filters_, moved_channels_;
  Space<T, kRank> space_;
  int64_t image_;  // elements
  std::vector<int64_t> tap_;  // [taps, rank]: positions relative to the output pixel's
};

// Slices of whole lines, wide because each finds the corners again, but enough for kOwners.
template <typename T, int kRank>
auto Convolution<T, kRank>::Slices(int64_t blocks) const -> std::vector<Slice> {
  const int64_t others = blocks * sizes_.deformable_groups;
  const int64_t wanted = (kOwners + others - 1) / others;
  const int64_t lines = (moved_channels_ + kLine - 1) / kLine;
  const int64_t width = kLine * std::max<int64_t>(1, (lines + wanted - 1) / wanted);
  std::vector<Slice> slices;
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    const int64_t end = (moved + 1) * moved_channels_;
    for (int64_t begin = moved * moved_channels_; begin < end; begin += width) {
      slices.push_back({moved, begin, std::min(begin + width, end)});
    }
  }
  return slices;
}

// packed: slice after slice, each [filters of a group, taps, channels of the slice].
template <typename T, int kRank>
void Convolution<T, kRank>::PackKernel(const Pool& pool, const std::vector<Slice>& slices,
                                       T* packed) const {
  const int64_t cost = taps_ * slices[0].width() * group_filters_;
  ParallelFor(pool, slices.size(), cost, [&](int64_t first, int64_t last) {
    for (int64_t nth = first; nth < last; ++nth) {
      const Slice& slice = slices[nth];
      const int64_t inner = taps_ * slice.width();
      T* to = packed + taps_ * slice.begin * group_filters_;
      for (int64_t tap = 0; tap < taps_; ++tap) {
        for (int64_t channel = slice.begin; channel < slice.end; ++channel, ++to) {
          const T* from = kernel_ + Filters(tap, channel);
          for (int64_t filter = 0; filter < group_filters_; ++filter) {
            to[filter * inner] = from[filter];
          }
        }
      }
    }
  });
}

// The sum over blocks, in their order, of what is packed as PackKernel does.
template <typename T, int kRank>
void Convolution<T, kRank>::SumKernel(const Pool& pool, const std::vector<Slice>& slices,
                                      int64_t blocks, const T* partial, T* kernel_gradient) const {
  const int64_t size = taps_ * sizes_.channels * group_filters_;
  const int64_t cost = taps_ * slices[0].width() * group_filters_ * blocks;
  ParallelFor(pool, slices.size(), cost, [&](int64_t first, int64_t last) {
    for (int64_t nth = first; nth < last; ++nth) {
      const Slice& slice = slices[nth];
      const int64_t inner = taps_ * slice.width();
      const T* from = partial + taps_ * slice.begin * group_filters_;
      for (int64_t tap = 0; tap < taps_; ++tap) {
        for (int64_t channel = slice.begin; channel < slice.end; ++channel, ++from) {
          T* to = kernel_gradient + Filters(tap, channel);
          for (int64_t filter = 0; filter < group_filters_; ++filter) {
            T sum = from[filter * inner];
            for (int64_t block = 1; block < blocks; ++block) {
              sum += from[block * size + filter * inner];
            }
            to[filter] = sum;
          }
        }
      }
    }
  });
}

// Sums the slices' shares of one output pixel's gradients, in their order. partial: of the first
// slice, [taps, rank + 1], the coordinates before the mask; the next slice's is at slice_stride.
template <typename T, int kRank>
void Convolution<T, kRank>::SumPoints(const std::vector<Slice>& slices, int64_t point,
                                      const T* partial, int64_t slice_stride, T* offset_gradient,
                                      T* mask_gradient) const {
  const int64_t per_moved = slices.size() / sizes_.deformable_groups;
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    const T* share = partial + moved * per_moved * slice_stride;
    const int64_t at = (point * sizes_.deformable_groups + moved) * taps_;
    for (int64_t tap = 0; tap < taps_; ++tap, share += kRank + 1) {
      for (int axis = 0; axis <= kRank; ++axis) {
        T sum = share[axis];
        for (int64_t nth = 1; nth < per_moved; ++nth) sum += share[nth * slice_stride + axis];
        if (axis < kRank) {
          offset_gradient[(at + tap) * kRank + axis] = sum;
        } else if (mask_gradient) {
          mask_gradient[at + tap] = sum;
        }
      }
    }
  }
}

// Calls pair(tap, group, first channel, channels) for every tap and group that meets the slice.
template <typename T, int kRank>
template <typename Pair>
void Convolution<T, kRank>::ForGroups(const Slice& slice, Pair&& pair) const {
  for (int64_t channel = slice.begin; channel < slice.end;) {
    const int64_t group = channel / group_channels_;
    const int64_t end = std::min(slice.end, (group + 1) * group_channels_);
    for (int64_t tap = 0; tap < taps_; ++tap) pair(tap, group, channel - slice.begin, end - channel);
    channel = end;
  }
}

// kernel: the slice's, packed. gradient: [count, filters]. columns: [count, taps, slice].
template <typename T, int kRank>
void Convolution<T, kRank>::ColumnsGradient(const Slice& slice, const T* kernel, const T* gradient,
                                            int64_t count, T* columns) const {
  const int64_t width = slice.width();
  const int64_t inner = taps_ * width;
  const int64_t filters = sizes_.filters;
  if (dense()) {
    View(columns, inner, count, inner).noalias() =
        View(kernel, inner, filters, inner) * View(gradient, filters, count, filters);
    return;
  }
  if (depthwise()) {
    for (int64_t point = 0; point < count; ++point, gradient += filters) {
      for (int64_t tap = 0; tap < taps_; ++tap, columns += width) {
        for (int64_t c = 0; c < width; ++c) {
          columns[c] = gradient[slice.begin + c] * kernel[tap * width + c];
        }
      }
    }
    return;
  }
  ForGroups(slice, [&](int64_t tap, int64_t group, int64_t first, int64_t channels) {
    View(columns + tap * width + first, channels, count, inner).noalias() =
        View(kernel + tap * width + first, channels, group_filters_, inner) *
        View(gradient + group * group_filters_, group_filters_, count, filters);
  });
}

// columns: [count, taps, slice]. gradient: [count, filters]. kernel_gradient: the slice's, packed.
template <typename T, int kRank>
void Convolution<T, kRank>::AddKernelGradient(const Slice& slice, const T* columns,
                                              const T* gradient, int64_t count,
                                              T* kernel_gradient) const {
  const int64_t width = slice.width();
  const int64_t inner = taps_ * width;
  const int64_t filters = sizes_.filters;
  if (dense()) {
    View(kernel_gradient, inner, filters, inner).noalias() +=
        View(columns, inner, count, inner) * View(gradient, filters, count, filters).transpose();
    return;
  }
  if (depthwise()) {
    for (int64_t point = 0; point < count; ++point, gradient += filters) {
      for (int64_t tap = 0; tap < taps_; ++tap, columns += width) {
        AddProduct(columns, gradient + slice.begin, width, kernel_gradient + tap * width);
      }
    }
    return;
  }
  ForGroups(slice, [&](int64_t tap, int64_t group, int64_t first, int64_t channels) {
    View(kernel_gradient + tap * width + first, channels, group_filters_, inner).noalias() +=
        View(columns + tap * width + first, channels, count, inner) *
        View(gradient + group * group_filters_, group_filters_, count, filters).transpose();
  });
}

// What a tap needs of its channels, in one pass over them: its sample into columns, the dot products
// of its corners with the gradient, and the gradient added to the corners. kCount corners.
template <typename T, int kCount>
inline void BackwardRows(const T* __restrict__ values, const int64_t* offset, const T* weight,
                         const T* __restrict__ gradient, int64_t channels,
                         T* __restrict__ columns, T* __restrict__ values_gradient, T* dot) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  typename Vector<T>::Type dots[kCount] = {};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const auto part = Load(gradient + c);
    typename Vector<T>::Type sum = {};
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const auto value = Load(values + offset[i] + c);
      const auto w = Broadcast(weight[i]);
      sum = MulAdd(value, w, sum);
      dots[i] = MulAdd(value, part, dots[i]);
      T* to = values_gradient + offset[i] + c;
      Store(to, MulAdd(part, w, Load<T>(to)));
    }
    Store(columns + c, sum);
  }
  for (int i = 0; i < kCount; ++i) dot[i] = c > 0 ? Total(dots[i]) : T(0);
  for (; c < channels; ++c) {
    T sum = T(0);
    for (int i = 0; i < kCount; ++i) {
      const T value = values[offset[i] + c];
      sum += value * weight[i];
      dot[i] += value * gradient[c];
      values_gradient[offset[i] + c] += gradient[c] * weight[i];
    }
    columns[c] = sum;
  }
}

template <typename T, int kRank>
void Convolution<T, kRank>::BackwardPoint(const Slice& slice, int64_t point, int64_t tap,
                                          const int64_t* base, int64_t image,
                                          const T* columns_gradient, T* columns, T* inputs_gradient,
                                          T* partial) const {
  constexpr int kMost = Corners<T, kRank>::kMost;
  const int64_t width = slice.width();
  const T* values = inputs_ + image * image_ + slice.begin;
  T* values_gradient = inputs_gradient + image * image_ + slice.begin;
  Corners<T, kRank> corners;
  Find(point, base, slice.moved, tap, &corners);
  const T factor = Mask(point, slice.moved, tap);
  T weight[kMost];
  T dot[8];
  for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * factor;
  if (corners.reads && corners.count == kMost) {
    BackwardRows<T, kMost>(values, corners.offset, weight, columns_gradient, width, columns,
                           values_gradient, dot);
  } else {
    const int read = corners.reads ? corners.count : 0;
    SumRows<0>(values, corners.offset, weight, read, width, false, columns);
    AddRows<0>(columns_gradient, corners.offset, weight, read, width, values_gradient);
    DotRows<0>(values, corners.offset, corners.count, columns_gradient, width, dot);
  }
  T sample = T(0);
  T slope[kRank] = {};
  for (int i = 0; i < corners.count; ++i) {
    sample += corners.weight[i] * dot[i];
    for (int axis = 0; axis < kRank; ++axis) slope[axis] += corners.slope[i][axis] * dot[i];
  }
  for (int axis = 0; axis < kRank; ++axis) {
    partial[axis] = corners.count ? slope[axis] * factor : T(0);
  }
  partial[kRank] = corners.reads ? sample : T(0);
}

// An owner has the images of a block and a slice of channels; all it adds to is its own, but for
// the gradients of the points, of which it leaves its share for a band of points at a time.
template <typename T, int kRank>
void Convolution<T, kRank>::Backward(const Pool& pool, const T* gradient, T* inputs_gradient,
                                     T* kernel_gradient, T* offset_gradient,
                                     T* mask_gradient) const {
  const int64_t kernel_size = taps_ * sizes_.channels * group_filters_;
  const int64_t most = std::clamp<int64_t>(kBlocksBytes / (kernel_size * sizeof(T)), 1, kMostBlocks);
  const int64_t images = std::max<int64_t>(1, (sizes_.batch + most - 1) / most);  // a block has
  const int64_t blocks = std::max<int64_t>(1, (sizes_.batch + images - 1) / images);
  const std::vector<Slice> slices = Slices(blocks);
  const int64_t owners = blocks * slices.size();
  const int64_t width = slices[0].width();  // the widest
  const int64_t per_point = taps_ * (kRank + 1);
  const int64_t band_limit = kPartialBytes / (slices.size() * per_point * sizeof(T));
  const int64_t block_points = images * pixels_;
  const int64_t band = std::min(
      std::max<int64_t>(1, band_limit / kBackwardTile) * kBackwardTile,
      (block_points + kBackwardTile - 1) / kBackwardTile * kBackwardTile);

  const Buffer<T> packed(kernel_size);
  const Buffer<T> kernel_partial(blocks * kernel_size);
  const Buffer<T> partial(owners * band * per_point);
  PackKernel(pool, slices, packed.get());
  std::fill(kernel_partial.get(), kernel_partial.get() + blocks * kernel_size, T(0));
  ParallelFor(pool, sizes_.batch, image_ / 4, [&](int64_t begin, int64_t end) {
    std::fill(inputs_gradient + begin * image_, inputs_gradient + end * image_, T(0));
  });
  const auto end_of = [&](int64_t block, int64_t first) {
    return std::min({first + band, (block + 1) * block_points, sizes_.batch * pixels_});
  };

  for (int64_t start = 0; start < block_points; start += band) {
    const int64_t cost = band * taps_ * width * (group_filters_ / 8 + 4);
    ParallelFor(pool, owners, cost, [&](int64_t begin, int64_t end) {
      const int64_t inner = taps_ * width;
      const Buffer<T> columns(kBackwardTile * inner);
      const Buffer<T> columns_gradient(kBackwardTile * inner);
      for (int64_t owner = begin; owner < end; ++owner) {
        const int64_t block = owner / slices.size();
        const Slice& slice = slices[owner % slices.size()];
        const int64_t of_slice = taps_ * slice.begin * group_filters_;
        const int64_t first = block * block_points + start;
        T* share = partial.get() + owner * band * per_point;
        for (int64_t tile = first; tile < end_of(block, first); tile += kBackwardTile) {
          const int64_t count = std::min(kBackwardTile, end_of(block, first) - tile);
          const T* upstream = gradient + tile * sizes_.filters;
          ColumnsGradient(slice, packed.get() + of_slice, upstream, count, columns_gradient.get());
          int64_t row = 0;
          for (int64_t point = tile; point < tile + count; ++point) {
            int64_t base[kRank];
            const int64_t image = Place(point, base);
            for (int64_t tap = 0; tap < taps_; ++tap, ++row, share += kRank + 1) {
              BackwardPoint(slice, point, tap, base, image,
                            columns_gradient.get() + row * slice.width(),
                            columns.get() + row * slice.width(), inputs_gradient, share);
            }
          }
          AddKernelGradient(slice, columns.get(), upstream, count,
                            kernel_partial.get() + block * kernel_size + of_slice);
        }
      }
    });
    ParallelFor(pool, blocks * band, 2 * slices.size() * per_point, [&](int64_t begin, int64_t end) {
      for (int64_t each = begin; each < end; ++each) {
        const int64_t block = each / band;
        const int64_t first = block * block_points + start;
        if (first + each % band >= end_of(block, first)) continue;
        SumPoints(slices, first + each % band,
                  partial.get() + (block * slices.size() * band + each % band) * per_point,
                  band * per_point, offset_gradient, mask_gradient);
      }
    });
  }
  SumKernel(pool, slices, blocks, kernel_partial.get(), kernel_gradient);
}

template <typename T, int kRank>
void Forward(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
             const T* offset, const T* mask, T* out) {
  Convolution<T, kRank>(sizes, inputs, kernel, offset, mask).Forward(pool, out);
}

template <typename T, int kRank>
void Backward(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
              const T* offset, const T* mask, const T* gradient, T* inputs_gradient,
              T* kernel_gradient, T* offset_gradient, T* mask_gradient) {
  Convolution<T, kRank>(sizes, inputs, kernel, offset, mask)
      .Backward(pool, gradient, inputs_gradient, kernel_gradient, offset_gradient, mask_gradient);
}

}  // namespace

template <typename T>
void SetConvKernels(TypedKernels<T>* kernels) {
  kernels->conv = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    constexpr decltype(kernels->conv) kOfRank[] = {Forward<T, 1>, Forward<T, 2>, Forward<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
  kernels->conv_grad = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    constexpr decltype(kernels->conv_grad) kOfRank[] = {Backward<T, 1>, Backward<T, 2>,
                                                        Backward<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
}

template void SetConvKernels<float>(TypedKernels<float>*);
template void SetConvKernels<double>(TypedKernels<double>*);

}  // namespace tf_deform
