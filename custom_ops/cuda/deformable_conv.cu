// The deformable convolution on a GPU, forward, sampling and products in one kernel.
// Called through the table in cuda/kernels.h.
//
// A block samples columns of 64 output pixels, tile by tile, into shared memory, where the tensor
// cores multiply them by the kernel. Nothing else of the columns is stored. Three tiles are under
// way at once: for one its taps are read and its corners found, for the next the inputs are read,
// while the one before is multiplied.

#include "custom_ops/cuda/columns.h"
#include "custom_ops/cuda/warp_product.h"

namespace tf_deform {
namespace {

template <typename T, int kRank, int kWidth>
struct ForwardMemory {
  using A = Wide<T>;
  static constexpr int kColumnsPitch = kDepth<T> + kPadding<T>;
  static constexpr int kKernelPitch = kWidth + kPadding<T>;

  Term<A> terms[2][kTile][1 << kRank];
  union {
    struct {
      alignas(32) T columns[2][kTile][kColumnsPitch];
      alignas(32) T kernel[2][kDepth<T>][kKernelPitch];
    };
    Stage<A> stage;  // when all is multiplied
  };
};

// Which output a block makes.
struct ForwardBlock {
  template <typename T, int kRank>
  __device__ ForwardBlock(const ConvShape<T, kRank>& shape, int width) {
    const int across = (shape.group_filters + width - 1) / width;
    int64_t rest = blockIdx.x;
    filter = static_cast<int>(rest % across) * width;
    rest /= across;
    group = static_cast<int>(rest % shape.groups);
    first = rest / shape.groups * kTile;
  }

  int filter;     // first, of the group
  int group;
  int64_t first;  // point
};

// inputs [batch, *space, channels], kernel [taps, group channels, filters], out [points, filters].
template <typename T, bool kTensor, int kRank, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    ConvKernel(const ConvShape<T, kRank> shape, bool aligned_inputs, bool aligned_filters,
               const T* __restrict__ inputs, const T* __restrict__ kernel,
               const Wide<T>* __restrict__ offset, const Wide<T>* __restrict__ mask,
               T* __restrict__ out) {
  using A = Wide<T>;
  using Memory = ForwardMemory<T, kRank, kWidth>;
  using Share = Warps<kTile, kWidth>;
  auto& memory = SharedMemory<Memory>();
  const ForwardBlock block(shape, kWidth);
  const int thread = threadIdx.x;
  const int down = Share::Down(), across = Share::Across();
  const int row = thread * kLanes<T> / kDepth<T>;
  const int column = thread * kLanes<T> % kDepth<T>;
  const int first_channel = block.group * shape.group_channels;
  const int taps = shape.unit > 0 ? shape.taps : 0;
  const int64_t first_filter = int64_t{block.group} * shape.group_filters + block.filter;
  const auto place = PlaceOf(shape, block.first + thread % kTile);

  Product<T, kTensor, Share::kRows, Share::kColumns, false, false> product;
  Chunk planned, read;             // whose taps, and whose inputs are read
  int plans = 0, plan_of_read = 0;  // of which there are two in memory, one a tap and unit
  bool multiplies = false;
  for (int step = 0; planned.tap < taps || read.tap < taps || multiplies; ++step) {
    const bool finds = planned.tap < taps && planned.done == 0 && thread < kTile;
    Tap<A, kRank> tap;
    if (finds) {
      const int moved = (first_channel + planned.channel) / shape.moved_channels;
      tap = ReadTap(shape, offset, mask, place, moved, planned.tap);
    }
    const bool reads = step > 0 && read.tap < taps;
    Samples<T, kRank> samples;
    const Term<A>* terms = nullptr;
    if (reads) {
      if (read.done == 0) ++plan_of_read;
      terms = memory.terms[plan_of_read % 2][row];
      const int width = WidthOf<kDepth<T>>(read, shape.unit);
      samples.Read(inputs + first_channel + read.channel + column, terms, width - column,
                   aligned_inputs);
      const int64_t kernel_row = int64_t{read.tap} * shape.group_channels + read.channel;
      CopyTile<kDepth<T>, kWidth>(kernel + kernel_row * shape.filters + first_filter,
                                  shape.filters, width, shape.group_filters - block.filter,
                                  aligned_filters, memory.kernel[step % 2]);
    }
    if (multiplies) {
      product.template Add<kDepth<T>>(
          memory.columns[(step + 1) % 2][down], Memory::kColumnsPitch,
          memory.kernel[(step + 1) % 2][0] + across, Memory::kKernelPitch);
    }
    if (planned.tap < taps) {
      if (planned.done == 0) ++plans;
      if (finds) SetTerms(tap, shape.space, memory.terms[plans % 2][thread]);
      Advance<kDepth<T>>(&planned, shape.unit, shape.group_channels);
    }
    if (reads) {
      samples.Write(terms, &memory.columns[step % 2][row][column]);
      Advance<kDepth<T>>(&read, shape.unit, shape.group_channels);
    }
    JoinCopies();
    __syncthreads();
    multiplies = reads;
  }

  TF_DEFORM_UNROLL
  for (int i = 0; i < Share::kRows; ++i) {
    const int64_t point = block.first + down + i * kSquare + PieceRow();
    TF_DEFORM_UNROLL
    for (int j = 0; j < Share::kColumns; ++j) {
      const auto sums = product.Read(i, j, memory.stage.at[thread / kWarp]);
      const int filter = across + j * kSquare + PieceColumn();
      const int left = shape.group_filters - block.filter - filter;
      if (point >= shape.points || left <= 0) continue;
      Vector<T, kPiece> rounded;
      TF_DEFORM_UNROLL
      for (int l = 0; l < kPiece; ++l) Narrow(sums.lane[l], &rounded.lane[l]);
      Store(rounded, left, aligned_filters, out + point * shape.filters + first_filter + filter);
    }
  }
}

struct ForwardArguments {
  const void *inputs, *kernel, *offset, *mask;
  void* out;
};

template <typename T, bool kTensor, int kRank, int kWidth>
const char* StartKernel(void* stream, const ConvSizes& sizes, const ForwardArguments& in) {
  using A = Wide<T>;
  const ConvShape<T, kRank> shape(sizes);
  const bool aligned_inputs = Aligned(in.inputs) && shape.unit % kLanes<T> == 0;
  const bool aligned_filters =
      Aligned(in.kernel) && Aligned(in.out) && shape.group_filters % kLanes<T> == 0;
  const int64_t blocks = (shape.points + kTile - 1) / kTile * shape.groups *
                         ((shape.group_filters + kWidth - 1) / kWidth);
  return Launch<ForwardMemory<T, kRank, kWidth>>(
      ConvKernel<T, kTensor, kRank, kWidth>, blocks, stream, shape, aligned_inputs,
      aligned_filters, static_cast<const T*>(in.inputs), static_cast<const T*>(in.kernel),
      static_cast<const A*>(in.offset), static_cast<const A*>(in.mask), static_cast<T*>(in.out));
}

// Many filters are made at once, if they are many, so that the inputs are sampled once.
template <typename T, bool kTensor>
const char* StartTyped(void* stream, const ConvSizes& sizes, const ForwardArguments& in) {
  if (sizes.rank == 3) return StartKernel<T, kTensor, 3, 64>(stream, sizes, in);
  if constexpr (kTensor) {
    if (sizes.filters / sizes.groups > 64) {
      return StartKernel<T, kTensor, 2, 256>(stream, sizes, in);
    }
  }
  return StartKernel<T, kTensor, 2, 64>(stream, sizes, in);
}

}  // namespace

void SetCudaConvKernels(CudaKernels* kernels) {
  kernels->conv = [](const CudaCall& call, const ConvSizes& sizes, const void* inputs,
                     const void* kernel, const void* offset, const void* mask, void* out) {
    return WithProduct(call, sizes, [&](auto type, auto tensor) {
      return StartTyped<typename decltype(type)::Type, decltype(tensor)::value>(
          call.stream, sizes, {inputs, kernel, offset, mask, out});
    });
  };
}

}  // namespace tf_deform
