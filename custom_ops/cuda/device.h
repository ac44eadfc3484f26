// Launching blocks, shared memory, asynchronous copies and 16-bit numbers: what kernels use of CUDA.
// For this room.
//
// Where nvcc does not compile them, emulation/emulation.h takes its place: the same source then
// runs on the CPU, under sanitizers.

#ifndef TF_DEFORM_CUSTOM_OPS_CUDA_DEVICE_H_
#define TF_DEFORM_CUSTOM_OPS_CUDA_DEVICE_H_

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#else
#include "custom_ops/cuda/emulation/emulation.h"
#endif

#include <climits>
#include <cstdint>
#include <cstring>

#include "custom_ops/cuda/kernels.h"
#include "custom_ops/sampling.h"

namespace tf_deform {

using Half = __half;
using Bfloat16 = __nv_bfloat16;

constexpr int kWarp = 32;      // lanes
constexpr int kThreads = 256;  // of every block
constexpr int64_t kMostChannels = 1 << 30;
constexpr const char* kTooManyChannels = "the CUDA kernels take at most 2^30 channels";

TF_DEFORM_INLINE float Widen(float value) { return value; }
TF_DEFORM_INLINE double Widen(double value) { return value; }
TF_DEFORM_INLINE float Widen(Half value) { return __half2float(value); }
TF_DEFORM_INLINE float Widen(Bfloat16 value) { return __bfloat162float(value); }

TF_DEFORM_INLINE void Narrow(float value, float* to) { *to = value; }
TF_DEFORM_INLINE void Narrow(double value, double* to) { *to = value; }
TF_DEFORM_INLINE void Narrow(float value, Half* to) { *to = __float2half_rn(value); }
TF_DEFORM_INLINE void Narrow(float value, Bfloat16* to) { *to = __float2bfloat16_rn(value); }

// Values side by side in memory: 16 bytes of them are read at once, if their address allows.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Vector {
  T lane[kCount];
};

template <typename T>
constexpr int kLanes = 16 / sizeof(T);

inline bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Reads kCount values, aligned to 16 bytes or to as many as there are; zeros if they are not there.
template <int kCount, typename T>
TF_DEFORM_INLINE Vector<T, kCount> LoadOrZero(const T* from, bool there) {
  Vector<T, kCount> to;
  if (there) {
    to = *reinterpret_cast<const Vector<T, kCount>*>(from);
  } else {
    TF_DEFORM_UNROLL
    for (int i = 0; i < kCount; ++i) Narrow(Wide<T>(0), &to.lane[i]);
  }
  return to;
}

// Reads the first `count` of kCount values, the others are 0. aligned: `from` is, to 16 bytes.
template <int kCount, typename T>
TF_DEFORM_INLINE Vector<T, kCount> Load(const T* from, int count, bool aligned) {
  if (aligned && count >= kCount) return *reinterpret_cast<const Vector<T, kCount>*>(from);
  Vector<T, kCount> to;
  TF_DEFORM_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (i < count) {
      to.lane[i] = from[i];
    } else {
      Narrow(Wide<T>(0), &to.lane[i]);
    }
  }
  return to;
}

// 16 bytes on their way.
struct alignas(16) Bits16 {
  uint32_t word[4];
};

// kCount values on their way. Were they known as 16-bit numbers, each load would be waited for at
// once, to have its numbers put together.
template <typename T, int kCount>
struct Bits {
  static_assert(kCount % kLanes<T> == 0);
  TF_DEFORM_INLINE Vector<T, kCount> Values() const {
    Vector<T, kCount> values;
    memcpy(&values, part, sizeof values);
    return values;
  }
  Bits16 part[kCount / kLanes<T>];
};

// Load of bits. Where aligned, 16 bytes are there as a whole or not at all.
template <int kCount, typename T>
TF_DEFORM_INLINE Bits<T, kCount> LoadBits(const T* from, int count, bool aligned) {
  Bits<T, kCount> bits = {};
  if (aligned) {
    TF_DEFORM_UNROLL
    for (int i = 0; i < kCount / kLanes<T>; ++i) {
      if (count > i * kLanes<T>) bits.part[i] = reinterpret_cast<const Bits16*>(from)[i];
    }
  } else {
    const auto values = Load<kCount>(from, count, false);
    memcpy(bits.part, &values, sizeof values);
  }
  return bits;
}

template <int kCount, typename T>
TF_DEFORM_INLINE void Store(const Vector<T, kCount>& from, int count, bool aligned, T* to) {
  if (aligned && count >= kCount) {
    *reinterpret_cast<Vector<T, kCount>*>(to) = from;
    return;
  }
  TF_DEFORM_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (i < count) to[i] = from.lane[i];
  }
}

// Adds to the first `count` of kCount values in global memory, to which other threads add as well.
template <int kCount, typename A>
__device__ inline void AddTo(const Vector<A, kCount>& terms, int count,
                             [[maybe_unused]] bool aligned, A* to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(A) == 4 && kCount % 4 == 0) {
    if (aligned && count >= kCount) {
      TF_DEFORM_UNROLL
      for (int i = 0; i < kCount; i += 4) {
        const float* lane = terms.lane + i;
        atomicAdd(reinterpret_cast<float4*>(to + i),
                  make_float4(lane[0], lane[1], lane[2], lane[3]));
      }
      return;
    }
  }
#endif
  TF_DEFORM_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (i < count) atomicAdd(to + i, terms.lane[i]);
  }
}

// What a sample reads: a value, or the number 0 where there is none. Then the offset is -1, and the
// weight 0 or, if that of the sample is not finite, NaN.
template <typename A>
struct Term {
  int64_t offset;
  A weight;
};

// Copies rows of a matrix into a tile in shared memory, in pieces of 16 bytes without waiting for
// them; what is beyond the valid rows and columns is 0. aligned: a piece is valid as a whole or not
// at all. JoinCopies and a barrier must follow.
template <int kRows, int kColumns, int kPitch, typename T>
__device__ inline void CopyTile(const T* from, int64_t stride, int64_t rows, int64_t columns,
                                bool aligned, T (*to)[kPitch]) {
  constexpr int kPieces = kColumns / kLanes<T>;  // of a row
  for (int piece = threadIdx.x; piece < kRows * kPieces; piece += kThreads) {
    const int row = piece / kPieces;
    const int column = piece % kPieces * kLanes<T>;
    const int64_t left = row < rows ? columns - column : 0;
    const T* source = from + row * stride + column;
    if (aligned) {
      const bool there = left > 0;
      __pipeline_memcpy_async(&to[row][column], there ? source : from, 16, there ? 0 : 16);
    } else {
      const int count = left > 0 ? static_cast<int>(left < kLanes<T> ? left : kLanes<T>) : 0;
      Store(Load<kLanes<T>>(source, count, false), kLanes<T>, true, &to[row][column]);
    }
  }
  __pipeline_commit();
}

__device__ inline void JoinCopies() { __pipeline_wait_prior(0); }

struct NoMemory {};

// Calls start with a value whose member Type is the type.
template <typename T>
struct TypeTag {
  using Type = T;
};
template <typename Run>
const char* WithType(CudaType type, Run&& start) {
  switch (type) {
    case CudaType::kFloat32:
      return start(TypeTag<float>());
    case CudaType::kFloat64:
      return start(TypeTag<double>());
    case CudaType::kFloat16:
      return start(TypeTag<Half>());
    case CudaType::kBfloat16:
      return start(TypeTag<Bfloat16>());
  }
  return "the CUDA kernels have no such type";
}

#ifdef __CUDACC__

// The block's dynamic shared memory.
template <typename S>
__device__ inline S& SharedMemory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return *reinterpret_cast<S*>(memory);
}

// Starts a kernel on the stream, whose blocks share an S. Returns what went wrong, or null.
template <typename S, typename... Parameters, typename... Arguments>
const char* Launch(void (*kernel)(Parameters...), int64_t blocks, void* stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > INT_MAX) return "the tensors are too large for one launch of a CUDA kernel";
  cudaError_t error = cudaSuccess;
  if (sizeof(S) > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(S));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned int>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = sizeof(S);
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, so not to be found by whoever asks next
  return cudaGetErrorString(error);
}

#endif

// Fills memory on the device with zeros.
inline const char* Clear(void* memory, int64_t bytes, void* stream) {
  if (bytes == 0) return nullptr;
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // as in Launch
  return cudaGetErrorString(error);
}

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CUDA_DEVICE_H_
