// weighted_sample on a GPU: forward, the gradient to the values, and that to points and weights.
//
// A cell is what one group of channels of one query holds: its samples and its row of the output.
// The outputs of the cells follow each other in memory, so that threads side by side take vectors of
// channels side by side. Corners are found once for all channels, and handed on in shared memory.

#include <type_traits>

#include "device.h"
#include "kernels_cuda.h"

namespace tf_deform {
namespace {

// SampleSizes as kernels need them.
template <typename A, int kRank>
struct SampleShape {
  SampleShape(const SampleSizes& sizes, int lanes)
      : space(Spaces(sizes).at, sizes.channels),
        images(sizes.images),
        cells(sizes.rows * sizes.queries * sizes.groups),
        row_cells(sizes.queries * sizes.groups),
        points(sizes.points),
        groups(sizes.groups),
        width(static_cast<int>(sizes.channels / sizes.groups)),
        vectors((width + lanes - 1) / lanes),
        rank(sizes.rank),
        units(sizes.units) {}

  // Which of a point's coordinates is along an axis, -1 if there is none.
  __device__ int Own(int axis) const {
    const int own = axis - (kRank - rank);
    return own < 0 ? -1 : Coordinate(units, own, rank);
  }

  // One dimension is seen as two, of which the first has size 1: fewer kernels.
  struct Spaces {
    explicit Spaces(const SampleSizes& sizes) {
      for (int axis = 0; axis < kRank; ++axis) {
        const int own = axis - (kRank - sizes.rank);
        at[axis] = own < 0 ? 1 : sizes.space[own];
      }
    }
    int64_t at[kRank];
  };

  Space<A, kRank> space;
  int64_t images, cells, row_cells, points, groups;
  int width, vectors;  // of a cell: channels, and vectors of them
  int rank;            // coordinates that a point has
  Units units;         // which they are in
};

template <typename A, int kRank>
__device__ inline void ReadPoint(const SampleShape<A, kRank>& shape, const A* points, int64_t point,
                                 A* position) {
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    const int own = shape.Own(axis);
    position[axis] = own < 0 ? A(0)
                             : InPixels(shape.units, points[point * shape.rank + own],
                                        shape.space.limit[axis]);
  }
}

// Where the values of a cell begin, or -1 if its image does not exist.
template <typename A, int kRank>
__device__ inline int64_t ValuesOf(const SampleShape<A, kRank>& shape, const int64_t* image_index,
                                   int64_t cell) {
  const int64_t row = cell / shape.row_cells;
  const int64_t image = image_index ? image_index[row] : row;
  if (image < 0 || image >= shape.images) return -1;
  return image * shape.space.elements + cell % shape.groups * shape.width;
}

// The offsets are those of the cell's first channel.
template <typename A, int kRank>
struct SampleMemory {
  Term<A> terms[kThreads][1 << kRank];
};

// The threads of a block have a vector of channels each, of cells in a row.
struct Item {
  __device__ Item(int64_t cells, int vectors)
      : first(static_cast<int64_t>(blockIdx.x) * kThreads / vectors) {
    const int skipped = static_cast<int>(static_cast<int64_t>(blockIdx.x) * kThreads % vectors);
    const int64_t most = (skipped + kThreads - 1) / vectors + 1;
    count = static_cast<int>(most < cells - first ? most : cells - first);
    cell = (skipped + static_cast<int>(threadIdx.x)) / vectors;
    vector = (skipped + static_cast<int>(threadIdx.x)) % vectors;
  }

  int64_t first;  // cell of the block
  int count;      // cells of the block
  int cell;       // this thread's, from the first
  int vector;     // this thread's, of the cell
};

// Calls visit(terms) for every point of the thread's cell, a block's worth of points at a time.
// kGradient: also with the corners that a sample does not read, whose weight is 0 or NaN.
template <bool kGradient, typename A, int kRank, typename Visit>
__device__ inline void ForPoints(const SampleShape<A, kRank>& shape, const Item& item,
                                 const A* points, const A* weights, const int64_t* image_index,
                                 Visit&& visit) {
  auto& memory = SharedMemory<SampleMemory<A, kRank>>();
  const int64_t room = kThreads / item.count;  // points of each cell that are found at once
  const int entry = threadIdx.x;
  for (int64_t start = 0; start < shape.points; start += room) {
    const int found = static_cast<int>(room < shape.points - start ? room : shape.points - start);
    if (entry < item.count * found) {
      const int64_t cell = item.first + entry / found;
      const int64_t point = cell * shape.points + start + entry % found;
      const int64_t values = ValuesOf(shape, image_index, cell);
      A position[kRank];
      Corners<A, kRank, false> corners;
      ReadPoint(shape, points, point, position);
      PlaceCorners(position, shape.space, &corners);
      const A factor = weights ? weights[point] : A(1);
      TF_DEFORM_UNROLL
      for (int corner = 0; corner < 1 << kRank; ++corner) {
        const bool reads = (corners.reads || kGradient) && corners.offset[corner] >= 0;
        const bool there = reads && values >= 0;
        const A weight = (reads ? corners.weight[corner] : A(0)) * factor;
        memory.terms[entry][corner].offset = there ? values + corners.offset[corner] : -1;
        memory.terms[entry][corner].weight = values >= 0 ? weight : A(0);
      }
    }
    __syncthreads();
    if (item.cell < item.count) {
      for (int each = 0; each < found; ++each) visit(memory.terms[item.cell * found + each]);
    }
    __syncthreads();
  }
}

// kStep channels are a vector. values, points, weights, image_index, out: as in kernels.h.
template <typename T, int kRank, int kStep>
__global__ void __launch_bounds__(kThreads)
    SampleKernel(const SampleShape<Wide<T>, kRank> shape, const T* __restrict__ values,
                 const Wide<T>* __restrict__ points, const Wide<T>* __restrict__ weights,
                 const int64_t* __restrict__ image_index, Wide<T>* __restrict__ out) {
  using A = Wide<T>;
  const Item item(shape.cells, shape.vectors);
  const int channel = item.vector * kStep;
  Vector<A, kStep> sum = {};
  ForPoints<false>(shape, item, points, weights, image_index, [&](const Term<A>* terms) {
    Vector<T, kStep> value[1 << kRank];
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      const int64_t offset = terms[corner].offset;
      value[corner] = LoadOrZero<kStep>(values + offset + channel, offset >= 0);
    }
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      TF_DEFORM_UNROLL
      for (int i = 0; i < kStep; ++i) {
        sum.lane[i] += terms[corner].weight * Widen(value[corner].lane[i]);
      }
    }
  });
  if (item.cell >= item.count) return;
  Store(sum, kStep, true, out + (item.first + item.cell) * shape.width + channel);
}

// gradient: [rows, queries, channels]. values_gradient: zeros, to which the sums are added.
template <typename A, int kRank, int kStep>
__global__ void __launch_bounds__(kThreads)
    SampleGradValuesKernel(const SampleShape<A, kRank> shape, const A* __restrict__ points,
                           const A* __restrict__ weights,
                           const int64_t* __restrict__ image_index, const A* __restrict__ gradient,
                           A* __restrict__ values_gradient) {
  const Item item(shape.cells, shape.vectors);
  const int channel = item.vector * kStep;
  const auto upstream = LoadOrZero<kStep>(
      gradient + (item.first + item.cell) * shape.width + channel, item.cell < item.count);
  ForPoints<true>(shape, item, points, weights, image_index, [&](const Term<A>* terms) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      if (terms[corner].offset < 0) continue;
      Vector<A, kStep> product;
      TF_DEFORM_UNROLL
      for (int i = 0; i < kStep; ++i) {
        product.lane[i] = terms[corner].weight * upstream.lane[i];
      }
      AddTo(product, kStep, true, values_gradient + terms[corner].offset + channel);
    }
  });
}

// The sum over `lanes` neighbours of a warp, a power of 2.
template <typename A>
__device__ inline A SumOfLanes(A value, int lanes) {
  for (int apart = lanes / 2; apart > 0; apart /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, apart);
  }
  return value;
}

// Each point has 2^lane_bits threads side by side, which share its channels.
template <typename T, int kRank, int kStep>
__global__ void __launch_bounds__(kThreads)
    SampleGradPointsKernel(const SampleShape<Wide<T>, kRank> shape, int lane_bits,
                           const T* __restrict__ values, const Wide<T>* __restrict__ points,
                           const Wide<T>* __restrict__ weights,
                           const int64_t* __restrict__ image_index,
                           const Wide<T>* __restrict__ gradient,
                           Wide<T>* __restrict__ points_gradient,
                           Wide<T>* __restrict__ weights_gradient) {
  using A = Wide<T>;
  const int lanes = 1 << lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t point =
      (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> lane_bits;
  const bool exists = point < shape.cells * shape.points;
  const int64_t cell = exists ? point / shape.points : 0;
  const int64_t first = exists ? ValuesOf(shape, image_index, cell) : -1;
  A dot[1 << kRank] = {};
  Corners<A, kRank> corners;
  A position[kRank] = {};
  if (first >= 0) {
    ReadPoint(shape, points, point, position);
    PlaceCorners(position, shape.space, &corners);
    for (int vector = lane; vector < shape.vectors; vector += lanes) {
      const int channel = vector * kStep;
      const auto upstream = LoadOrZero<kStep>(gradient + cell * shape.width + channel, true);
      TF_DEFORM_UNROLL
      for (int corner = 0; corner < 1 << kRank; ++corner) {
        if (corners.offset[corner] < 0) continue;
        const auto value =
            LoadOrZero<kStep>(values + first + corners.offset[corner] + channel, true);
        TF_DEFORM_UNROLL
        for (int i = 0; i < kStep; ++i) dot[corner] += Widen(value.lane[i]) * upstream.lane[i];
      }
    }
  }
  A sums[kRank + 1] = {};  // of the slopes along each axis, and of the sample
  if (first >= 0) {
    TF_DEFORM_UNROLL
    for (int corner = 0; corner < 1 << kRank; ++corner) {
      if (corners.offset[corner] < 0) continue;
      TF_DEFORM_UNROLL
      for (int axis = 0; axis < kRank; ++axis) {
        sums[axis] += corners.slope[corner][axis] * dot[corner];
      }
      if (corners.reads) sums[kRank] += corners.weight[corner] * dot[corner];
    }
  }
  TF_DEFORM_UNROLL
  for (int axis = 0; axis <= kRank; ++axis) sums[axis] = SumOfLanes(sums[axis], lanes);
  if (!exists || lane > 0) return;
  const A factor = weights ? weights[point] : A(1);
  TF_DEFORM_UNROLL
  for (int axis = 0; axis < kRank; ++axis) {
    const int own = shape.Own(axis);
    if (own < 0) continue;
    const A limit = shape.space.limit[axis];
    const bool follows = first >= 0 && HasGradient(position[axis], limit);
    points_gradient[point * shape.rank + own] =
        follows ? sums[axis] * factor * PixelsOf(shape.units, limit) : A(0);
  }
  if (weights_gradient) weights_gradient[point] = sums[kRank];
}

// Calls start(rank, step), with a vector of 16 bytes as step or, where channels or an address do not
// allow that, one value. One dimension is seen as two.
template <typename T, typename Run>
const char* WithRankAndStep(const SampleSizes& sizes, bool aligned, Run&& start) {
  using std::integral_constant;
  constexpr integral_constant<int, 2> kTwo;
  constexpr integral_constant<int, 3> kThree;
  constexpr integral_constant<int, kLanes<T>> kVector;
  constexpr integral_constant<int, 1> kOne;
  if (sizes.channels > kMostChannels) return kTooManyChannels;
  if (aligned && sizes.channels / sizes.groups % kLanes<T> == 0) {
    return sizes.rank == 3 ? start(kThree, kVector) : start(kTwo, kVector);
  }
  return sizes.rank == 3 ? start(kThree, kOne) : start(kTwo, kOne);
}

int64_t BlocksOf(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

template <typename T>
const char* StartSample(void* stream, const SampleSizes& sizes, const void* values,
                        const void* points, const void* weights, const int64_t* image_index,
                        void* out) {
  using A = Wide<T>;
  const bool aligned = Aligned(values) && Aligned(out);
  return WithRankAndStep<T>(sizes, aligned, [&](auto rank, auto step) {
    constexpr int kRank = decltype(rank)::value, kStep = decltype(step)::value;
    const SampleShape<A, kRank> shape(sizes, kStep);
    return Launch<SampleMemory<A, kRank>>(
        SampleKernel<T, kRank, kStep>, BlocksOf(shape.cells * shape.vectors), stream, shape,
        static_cast<const T*>(values), static_cast<const A*>(points),
        static_cast<const A*>(weights), image_index, static_cast<A*>(out));
  });
}

template <typename A>
const char* StartGradValues(void* stream, const SampleSizes& sizes, const void* points,
                            const void* weights, const int64_t* image_index, const void* gradient,
                            void* values_gradient) {
  const bool aligned = Aligned(gradient) && Aligned(values_gradient);
  return WithRankAndStep<A>(sizes, aligned, [&](auto rank, auto step) {
    constexpr int kRank = decltype(rank)::value, kStep = decltype(step)::value;
    const SampleShape<A, kRank> shape(sizes, kStep);
    const int64_t bytes = sizes.images * shape.space.elements * sizeof(A);
    if (const char* error = Clear(values_gradient, bytes, stream)) return error;
    return Launch<SampleMemory<A, kRank>>(
        SampleGradValuesKernel<A, kRank, kStep>, BlocksOf(shape.cells * shape.vectors), stream,
        shape, static_cast<const A*>(points), static_cast<const A*>(weights), image_index,
        static_cast<const A*>(gradient), static_cast<A*>(values_gradient));
  });
}

template <typename T>
const char* StartGradPoints(void* stream, const SampleSizes& sizes, const void* values,
                            const void* points, const void* weights, const int64_t* image_index,
                            const void* gradient, void* points_gradient, void* weights_gradient) {
  using A = Wide<T>;
  const bool aligned = Aligned(values) && Aligned(gradient);
  return WithRankAndStep<T>(sizes, aligned, [&](auto rank, auto step) {
    constexpr int kRank = decltype(rank)::value, kStep = decltype(step)::value;
    const SampleShape<A, kRank> shape(sizes, kStep);
    int lane_bits = 0;
    while (lane_bits < 5 && 1 << lane_bits < shape.vectors) ++lane_bits;
    return Launch<NoMemory>(
        SampleGradPointsKernel<T, kRank, kStep>,
        BlocksOf(shape.cells * shape.points << lane_bits), stream, shape, lane_bits,
        static_cast<const T*>(values), static_cast<const A*>(points),
        static_cast<const A*>(weights), image_index, static_cast<const A*>(gradient),
        static_cast<A*>(points_gradient), static_cast<A*>(weights_gradient));
  });
}

}  // namespace

void SetCudaSampleKernels(CudaKernels* kernels) {
  kernels->sample = [](const CudaCall& call, const SampleSizes& sizes, auto... rest) {
    return WithType(call.type, [&](auto type) {
      return StartSample<typename decltype(type)::Type>(call.stream, sizes, rest...);
    });
  };
  // It has no narrow arguments: the gradient is wide, as the samples were.
  kernels->sample_grad_values = [](const CudaCall& call, const SampleSizes& sizes, auto... rest) {
    if (call.deterministic) return kNotDeterministic;
    return call.type == CudaType::kFloat64 ? StartGradValues<double>(call.stream, sizes, rest...)
                                           : StartGradValues<float>(call.stream, sizes, rest...);
  };
  kernels->sample_grad_points = [](const CudaCall& call, const SampleSizes& sizes, auto... rest) {
    return WithType(call.type, [&](auto type) {
      return StartGradPoints<typename decltype(type)::Type>(call.stream, sizes, rest...);
    });
  };
}

}  // namespace tf_deform
