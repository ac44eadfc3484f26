// The gradients of the deformable convolution on a GPU. One kernel multiplies the gradient by the
// kernel, a tile of columns at a time, and adds what comes out to the inputs' pixels and to offset
// and mask. Another samples the columns again, as the forward pass does, and multiplies them by the
// gradient. Both add to global memory, to which other blocks add as well.

#include <algorithm>

#include "columns.h"
#include "warp_product.h"

namespace tf_deform {
namespace {

constexpr int64_t kEnoughBlocks = 1024;  // for any GPU to be busy
constexpr int64_t kLeastSteps = 16;      // for which a slice of the points is worth a block

// What both kernels are given. inputs [batch, *space, channels], kernel [taps, group channels,
// filters], offset and mask of the points' taps, gradient [points, filters].
template <typename T>
struct Given {
  const T *inputs, *kernel;
  const Wide<T> *offset, *mask;
  const T* gradient;
  bool aligned_inputs, aligned_filters;  // so that 16 bytes of channels, or filters, can be moved
};

template <typename T>
struct PointsMemory {
  static constexpr int kPitch = kDepth<T> + kPadding<T>;

  union {
    struct {
      alignas(32) T gradient[2][kTile][kPitch];
      alignas(32) T kernel[2][kTile][kPitch];
    };
    Stage<Wide<T>> stage;  // when all is multiplied
  };
};

// The gradients to inputs, offset and mask, which are zeros before. A block has the points of a
// tile, and at most 64 channels of a tap.
template <typename T, bool kTensor, int kRank>
__global__ void __launch_bounds__(kThreads, 2)
    PointsGradKernel(const ConvShape<T, kRank> shape, const Given<T> given, int chunks,
                     Wide<T>* __restrict__ inputs_gradient, Wide<T>* __restrict__ offset_gradient,
                     Wide<T>* __restrict__ mask_gradient) {
  using A = Wide<T>;
  using Memory = PointsMemory<T>;
  using Share = Warps<kTile, kTile>;
  auto& memory = SharedMemory<Memory>();
  const int64_t block = blockIdx.x;
  const Chunk chunk =
      ChunkAt<kTile>(static_cast<int>(block % chunks), shape.unit, shape.group_channels);
  const int group = static_cast<int>(block / chunks % shape.groups);
  const int64_t first = block / chunks / shape.groups * kTile;
  const int width = WidthOf<kTile>(chunk, shape.unit);
  const int first_channel = group * shape.group_channels + chunk.channel;
  const T* rows = given.gradient + first * shape.filters + int64_t{group} * shape.group_filters;
  const T* columns = given.kernel +
                     (int64_t{chunk.tap} * shape.group_channels + chunk.channel) * shape.filters +
                     int64_t{group} * shape.group_filters;

  Product<T, kTensor, Share::kRows, Share::kColumns, false, true> product;
  const int steps = (shape.group_filters + kDepth<T> - 1) / kDepth<T>;
  for (int step = 0; step <= steps; ++step) {
    if (step < steps) {
      const int filter = step * kDepth<T>;
      const int left = shape.group_filters - filter;
      CopyTile<kTile, kDepth<T>>(rows + filter, shape.filters, shape.points - first, left,
                                 given.aligned_filters, memory.gradient[step % 2]);
      CopyTile<kTile, kDepth<T>>(columns + filter, shape.filters, width, left,
                                 given.aligned_filters, memory.kernel[step % 2]);
    }
    if (step > 0) {
      product.template Add<kDepth<T>>(
          memory.gradient[(step + 1) % 2][Share::Down()], Memory::kPitch,
          memory.kernel[(step + 1) % 2][Share::Across()], Memory::kPitch);
    }
    JoinCopies();
    __syncthreads();
  }

  const int moved = first_channel / shape.moved_channels;
  TF_DEFORM_UNROLL
  for (int i = 0; i < Share::kRows; ++i) {
    const int64_t point = first + Share::Down() + i * kSquare + PieceRow();
    const auto place = PlaceOf(shape, point);
    const auto tap = ReadTap(shape, given.offset, given.mask, place, moved, chunk.tap);
    Corners<A, kRank> corners;
    PlaceCorners(tap.position, shape.space, &corners);
    if (tap.image < 0) corners.count = 0;
    A dot[1 << kRank] = {};
    TF_DEFORM_UNROLL
    for (int j = 0; j < Share::kColumns; ++j) {
      const auto sums = product.Read(i, j, memory.stage.at[Share::Warp()]);
      const int column = Share::Across() + j * kSquare + PieceColumn();
      const int left = width - column;
      if (corners.count == 0 || left <= 0) continue;
      // Reads before the first addition, which no read may pass: four are waited for together.
      const int64_t base = tap.image + first_channel + column;
      TF_DEFORM_UNROLL
      for (int four = 0; four < 1 << kRank; four += 4) {
        Bits<T, kPiece> bits[4];
        TF_DEFORM_UNROLL
        for (int each = 0; each < 4; ++each) {
          const int64_t offset = corners.offset[four + each];
          bits[each] = LoadBits<kPiece>(given.inputs + base + offset, offset < 0 ? 0 : left,
                                        given.aligned_inputs);
        }
        TF_DEFORM_UNROLL
        for (int each = 0; each < 4; ++each) {
          const int corner = four + each;
          if (corners.offset[corner] < 0) continue;
          const auto values = bits[each].Values();
          Vector<A, kPiece> terms;
          TF_DEFORM_UNROLL
          for (int l = 0; l < kPiece; ++l) {
            if (l < left) dot[corner] += Widen(values.lane[l]) * sums.lane[l];
            terms.lane[l] = corners.weight[corner] * tap.mask * sums.lane[l];
          }
          AddTo(terms, left, given.aligned_inputs, inputs_gradient + base + corners.offset[corner]);
        }
      }
    }
    A slopes[kRank] = {};
    A sample = 0;
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      if (corners.count == 0 || corners.offset[corner] < 0) continue;
      TF_DEFORM_UNROLL
      for (int axis = 0; axis < kRank; ++axis) {
        slopes[axis] += corners.slope[corner][axis] * dot[corner];
      }
      if (corners.reads) sample += corners.weight[corner] * dot[corner];
    }
    // Two lanes side by side have a point.
    sample += __shfl_xor_sync(0xffffffffu, sample, 1);
    TF_DEFORM_UNROLL
    for (int axis = 0; axis < kRank; ++axis) {
      slopes[axis] += __shfl_xor_sync(0xffffffffu, slopes[axis], 1);
    }
    const bool follows = tap.image >= 0 && (corners.count > 0 || !IsFinite(tap.mask));
    if (!follows || PieceColumn() > 0) continue;
    const int64_t number = TapNumber(shape, point, moved, chunk.tap);
    TF_DEFORM_UNROLL
    for (int axis = 0; axis < kRank; ++axis) {
      const int own = axis - (kRank - shape.rank);
      if (own < 0 || !HasGradient(tap.position[axis], shape.space.limit[axis])) continue;
      atomicAdd(offset_gradient + number * shape.rank + own, slopes[axis] * tap.mask);
    }
    if (mask_gradient) atomicAdd(mask_gradient + number, sample);
  }
}

template <typename T, int kRank, int kWidth>
struct KernelMemory {
  using A = Wide<T>;
  static constexpr int kColumnsPitch = kTile + kPadding<T>;
  static constexpr int kGradientPitch = kWidth + kPadding<T>;

  Term<A> terms[2][kDepth<T>][1 << kRank];
  union {
    struct {
      alignas(32) T columns[2][kDepth<T>][kColumnsPitch];
      alignas(32) T gradient[2][kDepth<T>][kGradientPitch];
    };
    Stage<A> stage;  // when all is multiplied
  };
};

// The gradient to the kernel, which is zeros before. A block has at most 64 channels of a tap, some
// filters, and a slice of the points, in which three tiles are under way as in the forward pass.
template <typename T, bool kTensor, int kRank, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    KernelGradKernel(const ConvShape<T, kRank> shape, const Given<T> given, int chunks,
                     int64_t slice_points, Wide<T>* __restrict__ kernel_gradient) {
  using A = Wide<T>;
  using Memory = KernelMemory<T, kRank, kWidth>;
  using Share = Warps<kTile, kWidth>;
  auto& memory = SharedMemory<Memory>();
  int64_t block = blockIdx.x;
  const int filter_tiles = (shape.group_filters + kWidth - 1) / kWidth;
  const int filter = static_cast<int>(block % filter_tiles) * kWidth;
  block /= filter_tiles;
  const Chunk chunk =
      ChunkAt<kTile>(static_cast<int>(block % chunks), shape.unit, shape.group_channels);
  block /= chunks;
  const int group = static_cast<int>(block % shape.groups);
  const int64_t first = block / shape.groups * slice_points;
  const int64_t left = shape.points - first;
  const int64_t steps = ((left < slice_points ? left : slice_points) + kDepth<T> - 1) / kDepth<T>;
  const int width = WidthOf<kTile>(chunk, shape.unit);
  const int first_channel = group * shape.group_channels + chunk.channel;
  const int moved = first_channel / shape.moved_channels;
  const int64_t first_filter = int64_t{group} * shape.group_filters + filter;
  const int thread = threadIdx.x;
  const int row = thread * kLanes<T> / kTile;
  const int column = thread * kLanes<T> % kTile;

  Product<T, kTensor, Share::kRows, Share::kColumns, true, false> product;
  for (int64_t step = 0; step < steps + 2; ++step) {
    const int even = static_cast<int>(step % 2);
    const bool finds = step < steps && thread < kDepth<T>;
    Tap<A, kRank> tap;
    if (finds) {
      const auto place = PlaceOf(shape, first + step * kDepth<T> + thread);
      tap = ReadTap(shape, given.offset, given.mask, place, moved, chunk.tap);
    }
    const bool reads = step > 0 && step <= steps;
    const Term<A>* terms = memory.terms[1 - even][row];
    Samples<T, kRank> samples;
    if (reads) {
      samples.Read(given.inputs + first_channel + column, terms, width - column,
                   given.aligned_inputs);
      const int64_t point = first + (step - 1) * kDepth<T>;
      CopyTile<kDepth<T>, kWidth>(given.gradient + point * shape.filters + first_filter,
                                  shape.filters, shape.points - point, shape.group_filters - filter,
                                  given.aligned_filters, memory.gradient[even]);
    }
    if (step > 1) {
      product.template Add<kDepth<T>>(
          memory.columns[1 - even][0] + Share::Down(), Memory::kColumnsPitch,
          memory.gradient[1 - even][0] + Share::Across(), Memory::kGradientPitch);
    }
    if (finds) SetTerms(tap, shape.space, memory.terms[even][thread]);
    if (reads) samples.Write(terms, &memory.columns[even][row][column]);
    JoinCopies();
    __syncthreads();
  }

  TF_DEFORM_UNROLL
  for (int i = 0; i < Share::kRows; ++i) {
    const int channel = Share::Down() + i * kSquare + PieceRow();
    const int64_t to =
        (int64_t{chunk.tap} * shape.group_channels + chunk.channel + channel) * shape.filters +
        first_filter;
    TF_DEFORM_UNROLL
    for (int j = 0; j < Share::kColumns; ++j) {
      const auto sums = product.Read(i, j, memory.stage.at[Share::Warp()]);
      const int across = Share::Across() + j * kSquare + PieceColumn();
      const int count = shape.group_filters - filter - across;
      if (channel < width && count > 0) {
        AddTo(sums, count, given.aligned_filters, kernel_gradient + to + across);
      }
    }
  }
}

struct GradArguments {
  const void *inputs, *kernel, *offset, *mask, *gradient;
  void *inputs_gradient, *kernel_gradient, *offset_gradient, *mask_gradient;
};

// Starts the gradients of one type, kernels of one rank.
template <typename T, bool kTensor, int kRank>
class Gradients {
 public:
  using A = Wide<T>;

  Gradients(void* stream, const ConvSizes& sizes, const GradArguments& in)
      : stream_(stream), sizes_(sizes), in_(in), shape_(sizes) {
    given_ = {static_cast<const T*>(in.inputs),
              static_cast<const T*>(in.kernel),
              static_cast<const A*>(in.offset),
              static_cast<const A*>(in.mask),
              static_cast<const T*>(in.gradient),
              Aligned(in.inputs) && Aligned(in.inputs_gradient) && shape_.unit % kLanes<T> == 0,
              Aligned(in.kernel) && Aligned(in.kernel_gradient) && Aligned(in.gradient) &&
                  shape_.group_filters % kLanes<T> == 0};
    chunks_ = Chunks(shape_.taps, shape_.unit, shape_.group_channels, kTile);
  }

  const char* Start() const {
    if (const char* error = ClearAll()) return error;
    if (chunks_ > INT_MAX) return "the kernel is too large for the CUDA kernels";
    const int64_t tiles = (shape_.points + kTile - 1) / kTile;
    if (const char* error = Launch<PointsMemory<T>>(
            PointsGradKernel<T, kTensor, kRank>, tiles * shape_.groups * chunks_, stream_, shape_,
            given_, static_cast<int>(chunks_), static_cast<A*>(in_.inputs_gradient),
            static_cast<A*>(in_.offset_gradient), static_cast<A*>(in_.mask_gradient))) {
      return error;
    }
    if constexpr (kTensor && kRank == 2) {
      if (shape_.group_filters > 64) return StartKernelGrad<256>();
    }
    return StartKernelGrad<64>();
  }

 private:
  const char* ClearAll() const {
    const int64_t taps = shape_.points * shape_.deformable_groups * shape_.taps;
    const int64_t kernel = int64_t{shape_.taps} * shape_.group_channels * shape_.filters;
    const struct {
      void* memory;
      int64_t size;
    } all[] = {{in_.inputs_gradient, sizes_.batch * shape_.space.elements},
               {in_.kernel_gradient, kernel},
               {in_.offset_gradient, taps * shape_.rank},
               {in_.mask_gradient, in_.mask_gradient ? taps : 0}};
    for (const auto& each : all) {
      if (const char* error = Clear(each.memory, each.size * sizeof(A), stream_)) return error;
    }
    return nullptr;
  }

  template <int kWidth>
  const char* StartKernelGrad() const {
    const int64_t tiles = shape_.groups * chunks_ * ((shape_.group_filters + kWidth - 1) / kWidth);
    if (tiles == 0 || shape_.points == 0) return nullptr;
    const int64_t steps = (shape_.points + kDepth<T> - 1) / kDepth<T>;
    const int64_t wanted =
        std::clamp<int64_t>(kEnoughBlocks / tiles, 1, std::max<int64_t>(1, steps / kLeastSteps));
    const int64_t slice_points = (steps + wanted - 1) / wanted * kDepth<T>;
    const int64_t slices = (shape_.points + slice_points - 1) / slice_points;
    return Launch<KernelMemory<T, kRank, kWidth>>(
        KernelGradKernel<T, kTensor, kRank, kWidth>, tiles * slices, stream_, shape_, given_,
        static_cast<int>(chunks_), slice_points, static_cast<A*>(in_.kernel_gradient));
  }

  void* stream_;
  const ConvSizes& sizes_;
  const GradArguments& in_;
  ConvShape<T, kRank> shape_;
  Given<T> given_;
  int64_t chunks_;
};

}  // namespace

void SetCudaConvGradKernels(CudaKernels* kernels) {
  kernels->conv_grad = [](const CudaCall& call, const ConvSizes& sizes, const void* inputs,
                          const void* kernel, const void* offset, const void* mask,
                          const void* gradient, void* inputs_gradient, void* kernel_gradient,
                          void* offset_gradient, void* mask_gradient) {
    if (call.deterministic) return kNotDeterministic;
    const GradArguments in = {inputs,       kernel,          offset,          mask,
                              gradient,     inputs_gradient, kernel_gradient, offset_gradient,
                              mask_gradient};
    return WithProduct(call, sizes, [&](auto type, auto tensor) {
      using T = typename decltype(type)::Type;
      constexpr bool kTensor = decltype(tensor)::value;
      return sizes.rank == 3 ? Gradients<T, kTensor, 3>(call.stream, sizes, in).Start()
                             : Gradients<T, kTensor, 2>(call.stream, sizes, in).Start();
    });
  };
}

}  // namespace tf_deform
