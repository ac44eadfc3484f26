// A warp's share of a matrix product, from tiles in shared memory.
// For the convolution and its gradients.
//
// The tensor cores compute it where the GPU has them for the type, else plain multiplications. The
// CPU's emulation has the plain form alone.

#ifndef TF_DEFORM_CUSTOM_OPS_CUDA_WARP_PRODUCT_H_
#define TF_DEFORM_CUSTOM_OPS_CUDA_WARP_PRODUCT_H_

#include "custom_ops/cuda/device.h"

#ifdef __CUDACC__
#include <mma.h>
#endif

#include <type_traits>

namespace tf_deform {

constexpr int kSquare = 16;  // rows and columns of the squares that a product is made of
constexpr int kPiece = 8;    // sums of a square that a lane has: side by side in a row
constexpr int kStagePitch = 20;

// Room in shared memory for one square of each warp.
template <typename A>
struct Stage {
  alignas(32) A at[kThreads / kWarp][kSquare * kStagePitch];
};

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int PieceRow() { return Lane() / 2; }
__device__ inline int PieceColumn() { return Lane() % 2 * kPiece; }

// How the warps of a block share a product of kHeight by kWidth sums: kDown by kAcross warps, each
// with kRows by kColumns squares, which begin at row Down() and column Across().
template <int kHeight, int kWidth>
struct Warps {
  static constexpr int kAcross = kWidth < 128 ? 2 : 4;
  static constexpr int kDown = kThreads / kWarp / kAcross;
  static constexpr int kRows = kHeight / kDown / kSquare;
  static constexpr int kColumns = kWidth / kAcross / kSquare;

  __device__ static inline int Warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static inline int Down() { return Warp() / kAcross * kRows * kSquare; }
  __device__ static inline int Across() { return Warp() % kAcross * kColumns * kSquare; }
};

// Sums of kRows by kColumns squares. a and b are where the warp's rows of the left and columns of the
// right factor begin. kColumnsOfA: a is stored by columns, [depth][rows] with a pitch, not
// [rows][depth]. kColumnsOfB: likewise b is [columns][depth], not [depth][columns].
template <typename T, int kRows, int kColumns, bool kColumnsOfA, bool kColumnsOfB>
class PlainProduct {
 public:
  using A = Wide<T>;

  template <int kDepth>
  __device__ inline void Add(const T* a, int a_pitch, const T* b, int b_pitch) {
    const int row = PieceRow(), column = PieceColumn();
    for (int k = 0; k < kDepth; ++k) {
      A left[kRows];
      TF_DEFORM_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int at = i * kSquare + row;
        left[i] = Widen(a[kColumnsOfA ? k * a_pitch + at : at * a_pitch + k]);
      }
      TF_DEFORM_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        TF_DEFORM_UNROLL
        for (int l = 0; l < kPiece; ++l) {
          const int at = j * kSquare + column + l;
          const A right = Widen(b[kColumnsOfB ? at * b_pitch + k : k * b_pitch + at]);
          TF_DEFORM_UNROLL
          for (int i = 0; i < kRows; ++i) sums_[i][j].lane[l] += left[i] * right;
        }
      }
    }
  }

  // The lane's sums of square (i, j). All lanes of the warp must call this at once.
  __device__ inline Vector<A, kPiece> Read(int i, int j, A*) const { return sums_[i][j]; }

 private:
  Vector<A, kPiece> sums_[kRows][kColumns] = {};
};

#ifdef __CUDACC__

namespace wmma = nvcuda::wmma;

// How the tensor cores take a type: as Element, kDepth of them at once.
template <typename T>
struct Tensor {
  using Element = T;
  static constexpr int kDepth = 16;
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct Tensor<float> {
  using Element = wmma::precision::tf32;
  static constexpr int kDepth = 8;
};
#endif

template <typename Fragment>
__device__ inline void Round(Fragment& fragment) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<typename Fragment::element_type, wmma::precision::tf32>) {
    TF_DEFORM_UNROLL
    for (int i = 0; i < Fragment::num_elements; ++i) {
      fragment.x[i] = wmma::__float_to_tf32(fragment.x[i]);
    }
  }
#endif
}

template <typename T, int kRows, int kColumns, bool kColumnsOfA, bool kColumnsOfB>
class TensorProduct {
 public:
  using A = Wide<T>;

  __device__ inline TensorProduct() {
    TF_DEFORM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      TF_DEFORM_UNROLL
      for (int j = 0; j < kColumns; ++j) wmma::fill_fragment(sums_[i][j], 0.0f);
    }
  }

  template <int kDepth>
  __device__ inline void Add(const T* a, int a_pitch, const T* b, int b_pitch) {
    TF_DEFORM_UNROLL
    for (int k = 0; k < kDepth; k += kStep) {
      wmma::fragment<wmma::matrix_a, kSquare, kSquare, kStep, Element, Order<kColumnsOfA>>
          left[kRows];
      TF_DEFORM_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int at = i * kSquare;
        wmma::load_matrix_sync(left[i], a + (kColumnsOfA ? k * a_pitch + at : at * a_pitch + k),
                               a_pitch);
        Round(left[i]);
      }
      TF_DEFORM_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        wmma::fragment<wmma::matrix_b, kSquare, kSquare, kStep, Element, Order<kColumnsOfB>> right;
        const int at = j * kSquare;
        wmma::load_matrix_sync(right, b + (kColumnsOfB ? at * b_pitch + k : k * b_pitch + at),
                               b_pitch);
        Round(right);
        TF_DEFORM_UNROLL
        for (int i = 0; i < kRows; ++i) wmma::mma_sync(sums_[i][j], left[i], right, sums_[i][j]);
      }
    }
  }

  __device__ inline Vector<A, kPiece> Read(int i, int j, A* stage) const {
    __syncwarp();  // lanes may come from different ways, or still read the square before
    wmma::store_matrix_sync(stage, sums_[i][j], kStagePitch, wmma::mem_row_major);
    __syncwarp();
    return LoadOrZero<kPiece>(stage + PieceRow() * kStagePitch + PieceColumn(), true);
  }

 private:
  using Element = typename Tensor<T>::Element;
  static constexpr int kStep = Tensor<T>::kDepth;
  template <bool kColumnMajor>
  using Order = std::conditional_t<kColumnMajor, wmma::col_major, wmma::row_major>;

  wmma::fragment<wmma::accumulator, kSquare, kSquare, kStep, float> sums_[kRows][kColumns];
};

#else

template <typename T, int kRows, int kColumns, bool kColumnsOfA, bool kColumnsOfB>
using TensorProduct = PlainProduct<T, kRows, kColumns, kColumnsOfA, kColumnsOfB>;

#endif

// Whether the tensor cores that code is generated for now have products of the type: Turing's know
// float16 alone. float32 is TF32 there.
template <typename T>
constexpr bool HasTensorCores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return std::is_same_v<T, Half>;
#else
  return !std::is_same_v<T, double>;
#endif
}

// kTensor: the tensor cores may be used.
template <typename T, bool kTensor, int kRows, int kColumns, bool kColumnsOfA, bool kColumnsOfB>
using Product =
    std::conditional_t<kTensor && HasTensorCores<T>(),
                       TensorProduct<T, kRows, kColumns, kColumnsOfA, kColumnsOfB>,
                       PlainProduct<T, kRows, kColumns, kColumnsOfA, kColumnsOfB>>;

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CUDA_WARP_PRODUCT_H_
