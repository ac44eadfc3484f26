// The columns of a deformable convolution on a GPU: samples of the inputs, tile by tile, written to
// shared memory. A row is an output pixel of the batch, a column a channel at a tap.

#ifndef TF_DEFORM_COLUMNS_H_
#define TF_DEFORM_COLUMNS_H_

#include <numeric>
#include <type_traits>

#include "device.h"

namespace tf_deform {

// Tiles of factors are 64 bytes deep: 16 float32, 32 float16.
template <typename T>
constexpr int kDepth = 64 / sizeof(T);
template <typename T>
constexpr int kPadding = kLanes<T>;  // of a tile's rows, so that fewer lanes meet in one bank
constexpr int kTile = 64;            // rows of the output, or channels, that a block has

// A thread fills 16 bytes of a tile at a time.
static_assert(kTile * 64 / 16 == kThreads);

// ConvSizes as kernels need them. One dimension is seen as two, of which the first has size 1.
template <typename T, int kRank>
struct ConvShape {
  explicit ConvShape(const ConvSizes& sizes)
      : space(Lifted(sizes.rank, sizes.space, 1).at, sizes.channels),
        filters(sizes.filters),
        groups(sizes.groups),
        deformable_groups(sizes.deformable_groups),
        rank(sizes.rank),
        group_channels(static_cast<int>(sizes.channels / sizes.groups)),
        group_filters(static_cast<int>(sizes.filters / sizes.groups)),
        moved_channels(static_cast<int>(sizes.channels / sizes.deformable_groups)),
        unit(std::gcd(group_channels, moved_channels)) {
    pixels = taps = 1;
    for (int axis = 0; axis < kRank; ++axis) {
      output[axis] = Lifted(rank, sizes.output, 1).at[axis];
      kernel[axis] = static_cast<int>(Lifted(rank, sizes.kernel, 1).at[axis]);
      strides[axis] = Lifted(rank, sizes.strides, 1).at[axis];
      dilations[axis] = Lifted(rank, sizes.dilations, 1).at[axis];
      before[axis] = Lifted(rank, sizes.before, 0).at[axis];
      pixels *= output[axis];
      taps *= kernel[axis];
    }
    points = sizes.batch * pixels;
  }

  struct Lifted {
    Lifted(int rank, const int64_t* sizes, int64_t missing) {
      for (int axis = 0; axis < kRank; ++axis) {
        at[axis] = axis < kRank - rank ? missing : sizes[axis - (kRank - rank)];
      }
    }
    int64_t at[kRank];
  };

  Space<Wide<T>, kRank> space;
  int64_t output[kRank], strides[kRank], dilations[kRank], before[kRank];
  int kernel[kRank];
  int64_t points, pixels;  // of the output: of the batch, and of an image
  int64_t filters, groups, deformable_groups;
  int rank;  // coordinates that an offset has
  int taps, group_channels, group_filters, moved_channels;
  int unit;  // channels in a row of one group and one deformable group
};

// An output pixel of the batch: its image's place in the inputs, and the position of its first tap.
template <int kRank>
struct Place {
  int64_t point;
  int64_t image;  // -1 beyond the last point
  int64_t base[kRank];
};

template <typename T, int kRank>
__device__ inline Place<kRank> PlaceOf(const ConvShape<T, kRank>& shape, int64_t point) {
  Place<kRank> place = {point, -1, {}};
  if (point >= shape.points) return place;
  const int64_t image = point / shape.pixels;
  place.image = image * shape.space.elements;
  int64_t rest = point - image * shape.pixels;
  TF_DEFORM_UNROLL
  for (int axis = kRank - 1; axis >= 0; --axis) {
    const int64_t next = axis > 0 ? rest / shape.output[axis] : 0;
    place.base[axis] =
        (rest - next * shape.output[axis]) * shape.strides[axis] - shape.before[axis];
    rest = next;
  }
  return place;
}

// A tap of an output pixel, read before it is needed.
template <typename A, int kRank>
struct Tap {
  int64_t image;  // as in Place
  A position[kRank];
  A mask;
};

// The number of a tap's mask, and of its offset where a coordinate counts as one.
template <typename T, int kRank>
__device__ inline int64_t TapNumber(const ConvShape<T, kRank>& shape, int64_t point, int moved,
                                    int tap) {
  return (point * shape.deformable_groups + moved) * shape.taps + tap;
}

// The position is made in integers; adding the offset is the only rounding.
template <typename T, int kRank>
__device__ inline Tap<Wide<T>, kRank> ReadTap(const ConvShape<T, kRank>& shape,
                                              const Wide<T>* offset, const Wide<T>* mask,
                                              const Place<kRank>& place, int moved, int tap) {
  using A = Wide<T>;
  Tap<A, kRank> read = {};
  read.image = place.image;
  if (place.image < 0) return read;
  const int64_t number = TapNumber(shape, place.point, moved, tap);
  int rest = tap;
  TF_DEFORM_UNROLL
  for (int axis = kRank - 1; axis >= 0; --axis) {
    const int next = axis > 0 ? rest / shape.kernel[axis] : 0;
    const int64_t within = rest - next * shape.kernel[axis];
    rest = next;
    const int own = axis - (kRank - shape.rank);
    const A shift = own < 0 ? A(0) : offset[number * shape.rank + own];
    read.position[axis] = static_cast<A>(place.base[axis] + within * shape.dilations[axis]) + shift;
  }
  read.mask = mask ? mask[number] : A(1);
  return read;
}

// The offsets are those of the inputs' first channel.
template <typename A, int kRank>
__device__ inline void SetTerms(const Tap<A, kRank>& tap, const Space<A, kRank>& space,
                                Term<A>* terms) {
  Corners<A, kRank, false> corners;
  PlaceCorners(tap.position, space, &corners);
  TF_DEFORM_UNROLL
  for (int corner = 0; corner < 1 << kRank; ++corner) {
    const bool reads = tap.image >= 0 && corners.reads && corners.offset[corner] >= 0;
    terms[corner].offset = reads ? tap.image + corners.offset[corner] : -1;
    terms[corner].weight = reads ? corners.weight[corner] * tap.mask : A(0) * tap.mask;
  }
}

// What a thread reads for its 16 bytes of a tile, on the way from the inputs to the tile.
template <typename T, int kRank>
struct Samples {
  // inputs: at the tile's first channel. columns: how many channels are left of this thread's
  // first.
  __device__ inline void Read(const T* inputs, const Term<Wide<T>>* terms, int columns,
                              bool aligned) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      const int64_t offset = terms[corner].offset;
      values[corner] = LoadBits<kLanes<T>>(inputs + offset, offset < 0 ? 0 : columns, aligned);
    }
  }

  __device__ inline void Write(const Term<Wide<T>>* terms, T* to) const {
    using A = Wide<T>;
    Vector<A, kLanes<T>> sum = {};
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      const auto value = values[corner].Values();
      TF_DEFORM_UNROLL
      for (int i = 0; i < kLanes<T>; ++i) {
        sum.lane[i] += terms[corner].weight * Widen(value.lane[i]);
      }
    }
    Vector<T, kLanes<T>> rounded;
    TF_DEFORM_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) Narrow(sum.lane[i], &rounded.lane[i]);
    Store(rounded, kLanes<T>, true, to);
  }

  Bits<T, kLanes<T>> values[1 << kRank];
};

// Which taps and channels of a group a tile of columns has; the tiles follow each other.
struct Chunk {
  int tap = 0;
  int channel = 0;  // of the group, where the tile begins
  int done = 0;     // channels of the unit that came before
};

// How many channels the tile has that begins at the chunk.
template <int kWidth>
__device__ inline int WidthOf(const Chunk& chunk, int unit) {
  return unit - chunk.done < kWidth ? unit - chunk.done : kWidth;
}

template <int kWidth>
__device__ inline void Advance(Chunk* chunk, int unit, int group_channels) {
  const int width = WidthOf<kWidth>(*chunk, unit);
  chunk->channel += width;
  chunk->done = chunk->done + width == unit ? 0 : chunk->done + width;
  if (chunk->channel < group_channels) return;
  chunk->channel = 0;
  ++chunk->tap;
}

// The chunk with a number, of tiles that have at most kWidth channels.
template <int kWidth>
__device__ inline Chunk ChunkAt(int number, int unit, int group_channels) {
  const int of_unit = (unit + kWidth - 1) / kWidth;
  const int of_tap = group_channels / unit * of_unit;
  Chunk chunk;
  chunk.tap = number / of_tap;
  chunk.done = number % of_unit * kWidth;
  chunk.channel = number % of_tap / of_unit * unit + chunk.done;
  return chunk;
}

// How many tiles, of at most `width` channels, the columns of a group have.
inline int64_t Chunks(int taps, int unit, int group_channels, int width) {
  if (unit == 0) return 0;
  return int64_t{taps} * (group_channels / unit) * ((unit + width - 1) / width);
}

// Calls start(type, whether the tensor cores may multiply it), if the kernels can take the sizes.
template <typename Run>
const char* WithProduct(const CudaCall& call, const ConvSizes& sizes, Run&& start) {
  double taps = 1;
  for (int axis = 0; axis < sizes.rank; ++axis) taps *= static_cast<double>(sizes.kernel[axis]);
  if (sizes.channels > kMostChannels || sizes.filters > kMostChannels || taps > kMostChannels) {
    return "the CUDA kernels take at most 2^30 channels, filters and taps";
  }
  switch (call.type) {
    case CudaType::kFloat32:
      return call.tensor_float ? start(TypeTag<float>(), std::true_type())
                               : start(TypeTag<float>(), std::false_type());
    case CudaType::kFloat64:
      return start(TypeTag<double>(), std::false_type());
    case CudaType::kFloat16:
      return start(TypeTag<Half>(), std::true_type());
    case CudaType::kBfloat16:
      return start(TypeTag<Bfloat16>(), std::true_type());
  }
  return "the CUDA kernels have no such type";
}

}  // namespace tf_deform

#endif  // TF_DEFORM_COLUMNS_H_
