// Sums, products and additions of rows of channels, in vectors of the instruction set built for.

#ifndef TF_DEFORM_ROWS_H_
#define TF_DEFORM_ROWS_H_

#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace tf_deform {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / sizeof(T);
};

template <typename T>
inline typename Vector<T>::Type Load(const T* from) {
  typename Vector<T>::Type vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename T>
inline void Store(T* to, typename Vector<T>::Type vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// Returns a * b + c, rounded once where the instruction set can.
#if defined(__AVX512F__)
inline __m512 MulAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d MulAdd(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
inline __m256 MulAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d MulAdd(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#else
template <typename V>
inline V MulAdd(V a, V b, V c) {
  return a * b + c;
}
#endif

template <typename T>
inline typename Vector<T>::Type Broadcast(T value) {
  return typename Vector<T>::Type{} + value;
}

// Returns the sum of the lanes.
template <typename V>
inline auto Total(V vector) {
  std::decay_t<decltype(vector[0])> parts[sizeof vector / sizeof vector[0]];
  std::memcpy(parts, &vector, sizeof vector);
  for (int half = std::size(parts) / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  }
  return parts[0];
}
#if defined(__AVX512F__)
inline float Total(__m512 vector) { return _mm512_reduce_add_ps(vector); }
inline double Total(__m512d vector) { return _mm512_reduce_add_pd(vector); }
#endif

// The functions that follow take `count` rows; where kCount is not 0, it says that number to the
// compiler.

// out[c] = sum over i of weight[i] * values[offset[i] + c]; with `add`, added to out.
template <int kCount, typename T>
inline void SumRows(const T* __restrict__ values, const int64_t* offset, const T* weight,
                    int64_t count, int64_t channels, bool add, T* __restrict__ out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if (kCount) count = kCount;
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    typename Vector<T>::Type sum[4] = {};
    if (add) {
      for (int j = 0; j < 4; ++j) sum[j] = Load(out + c + j * kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      const T* row = values + offset[i] + c;
      const auto w = Broadcast(weight[i]);
      for (int j = 0; j < 4; ++j) sum[j] = MulAdd(Load(row + j * kLanes), w, sum[j]);
    }
    for (int j = 0; j < 4; ++j) Store(out + c + j * kLanes, sum[j]);
  }
  for (; c + kLanes <= channels; c += kLanes) {
    typename Vector<T>::Type sum = {};
    if (add) sum = Load(out + c);
    for (int64_t i = 0; i < count; ++i) {
      sum = MulAdd(Load(values + offset[i] + c), Broadcast(weight[i]), sum);
    }
    Store(out + c, sum);
  }
  for (; c < channels; ++c) {
    T sum = add ? out[c] : T(0);
    for (int64_t i = 0; i < count; ++i) sum += values[offset[i] + c] * weight[i];
    out[c] = sum;
  }
}

// out[c] = the sample of channel c that the corners make, times a factor.
template <typename AnyCorners, typename T>
inline void SumOfCorners(const AnyCorners& corners, T factor, const T* __restrict__ values,
                         int64_t channels, T* __restrict__ out) {
  constexpr int kMost = AnyCorners::kMost;
  T weight[kMost];
  if (corners.count == kMost && corners.reads) {
    for (int i = 0; i < kMost; ++i) weight[i] = corners.weight[i] * factor;
    SumRows<kMost>(values, corners.offset, weight, kMost, channels, false, out);
  } else {
    const int count = corners.reads ? corners.count : 0;
    for (int i = 0; i < count; ++i) weight[i] = corners.weight[i] * factor;
    SumRows<0>(values, corners.offset, weight, count, channels, false, out);
  }
}

// dot[i] = sum over c of values[offset[i] + c] * row[c], for at most eight i.
template <int kCount, typename T>
inline void DotRows(const T* __restrict__ values, const int64_t* offset, int64_t count,
                    const T* __restrict__ row, int64_t channels, T* dot) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if (kCount) count = kCount;
  typename Vector<T>::Type sums[kCount ? kCount : 8] = {};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const auto part = Load(row + c);
    for (int64_t i = 0; i < count; ++i) {
      sums[i] = MulAdd(Load(values + offset[i] + c), part, sums[i]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    T sum = c > 0 ? Total(sums[i]) : T(0);
    for (int64_t rest = c; rest < channels; ++rest) sum += values[offset[i] + rest] * row[rest];
    dot[i] = sum;
  }
}

// values[offset[i] + c] += weight[i] * row[c]; the offsets differ.
template <int kCount, typename T>
inline void AddRows(const T* __restrict__ row, const int64_t* offset, const T* weight,
                    int64_t count, int64_t channels, T* __restrict__ values) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if (kCount) count = kCount;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const auto part = Load(row + c);
    for (int64_t i = 0; i < count; ++i) {
      T* to = values + offset[i] + c;
      Store(to, MulAdd(part, Broadcast(weight[i]), Load<T>(to)));
    }
  }
  for (; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) values[offset[i] + c] += weight[i] * row[c];
  }
}

// out[c] += a[c] * b[c].
template <typename T>
inline void AddProduct(const T* __restrict__ a, const T* __restrict__ b, int64_t channels,
                       T* __restrict__ out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Store(out + c, MulAdd(Load(a + c), Load(b + c), Load<T>(out + c)));
  }
  for (; c < channels; ++c) out[c] += a[c] * b[c];
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_ROWS_H_
