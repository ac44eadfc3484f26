// Sums, products and additions of rows of channels, in vectors of the instruction set built for.

#ifndef TF_DEFORM_ROWS_H_
#define TF_DEFORM_ROWS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>

#if defined(__AVX512F__)
#define TF_DEFORM_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define TF_DEFORM_VECTOR_BYTES 32
#else
#define TF_DEFORM_VECTOR_BYTES 16
#endif
#if TF_DEFORM_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

namespace tf_deform {
namespace {

constexpr int kVectorBytes = TF_DEFORM_VECTOR_BYTES;

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
#if TF_DEFORM_VECTOR_BYTES == 64
inline __m512 MulAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d MulAdd(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#elif TF_DEFORM_VECTOR_BYTES == 32
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
  return value - typename Vector<T>::Type{};  // value + 0 would be an addition: 0 + -0 is 0
}

// Returns each lane rounded down.
#if TF_DEFORM_VECTOR_BYTES == 64
inline __m512 Floor(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF); }
inline __m512d Floor(__m512d x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF); }
#elif TF_DEFORM_VECTOR_BYTES == 32
inline __m256 Floor(__m256 x) { return _mm256_floor_ps(x); }
inline __m256d Floor(__m256d x) { return _mm256_floor_pd(x); }
#else
template <typename V>
inline V Floor(V x) {
  for (size_t lane = 0; lane < sizeof x / sizeof x[0]; ++lane) x[lane] = std::floor(x[lane]);
  return x;
}
#endif

// The first `count` lanes of a vector, fewer than it has: what remains of a row. Nothing beyond
// them is read or written; the lanes that are not read are 0.
#if TF_DEFORM_VECTOR_BYTES == 64
template <typename T>
struct Part {
  explicit Part(int64_t count) : mask((1u << count) - 1) {}
  static __m512 LoadSome(__mmask16 mask, const float* p) { return _mm512_maskz_loadu_ps(mask, p); }
  static __m512d LoadSome(__mmask8 mask, const double* p) { return _mm512_maskz_loadu_pd(mask, p); }
  static void StoreSome(__mmask16 mask, float* p, __m512 x) { _mm512_mask_storeu_ps(p, mask, x); }
  static void StoreSome(__mmask8 mask, double* p, __m512d x) { _mm512_mask_storeu_pd(p, mask, x); }
  typename Vector<T>::Type Load(const T* from) const { return LoadSome(mask, from); }
  void Store(T* to, typename Vector<T>::Type x) const { StoreSome(mask, to, x); }

  std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8> mask;
};
#else
// In pieces of 4, 2 and 1: with AVX2, loads and stores under a mask are slow on some processors.
template <typename T>
struct Part {
  explicit Part(int64_t count) : count(count) {}
#if TF_DEFORM_VECTOR_BYTES == 32
  static __m128 LoadHalf(const float* p, int64_t n) {
    if (n == 0) return _mm_setzero_ps();
    if (n == 1) return _mm_load_ss(p);
    double two;
    std::memcpy(&two, p, sizeof two);
    const __m128 low = _mm_castpd_ps(_mm_set_sd(two));
    return n == 3 ? _mm_movelh_ps(low, _mm_load_ss(p + 2)) : low;
  }
  static void StoreHalf(float* p, __m128 x, int64_t n) {
    if (n & 2) {
      const double two = _mm_cvtsd_f64(_mm_castps_pd(x));
      std::memcpy(p, &two, sizeof two);
      x = _mm_movehl_ps(x, x);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, x);
  }
  __m256 Load(const float* p) const {
    if (count < 4) return _mm256_zextps128_ps256(LoadHalf(p, count));
    const __m256 low = _mm256_zextps128_ps256(_mm_loadu_ps(p));
    return count == 4 ? low : _mm256_insertf128_ps(low, LoadHalf(p + 4, count - 4), 1);
  }
  void Store(float* p, __m256 x) const {
    if (count < 4) return StoreHalf(p, _mm256_castps256_ps128(x), count);
    _mm_storeu_ps(p, _mm256_castps256_ps128(x));
    StoreHalf(p + 4, _mm256_extractf128_ps(x, 1), count - 4);
  }
  __m256d Load(const double* p) const {
    const __m256d low = _mm256_zextpd128_pd256(count & 2 ? _mm_loadu_pd(p) : _mm_load_sd(p));
    return count == 3 ? _mm256_insertf128_pd(low, _mm_load_sd(p + 2), 1) : low;
  }
  void Store(double* p, __m256d x) const {
    if (count == 1) return _mm_store_sd(p, _mm256_castpd256_pd128(x));
    _mm_storeu_pd(p, _mm256_castpd256_pd128(x));
    if (count == 3) _mm_store_sd(p + 2, _mm256_extractf128_pd(x, 1));
  }
#else
  typename Vector<T>::Type Load(const T* from) const {
    typename Vector<T>::Type x = {};
    for (int64_t lane = 0; lane < Vector<T>::kLanes - 1; ++lane) {
      if (lane < count) x[lane] = from[lane];
    }
    return x;
  }
  void Store(T* to, typename Vector<T>::Type x) const {
    for (int64_t lane = 0; lane < Vector<T>::kLanes - 1; ++lane) {
      if (lane < count) to[lane] = x[lane];
    }
  }
#endif
  int64_t count;
};
#endif

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
#if TF_DEFORM_VECTOR_BYTES == 64
inline float Total(__m512 vector) { return _mm512_reduce_add_ps(vector); }
inline double Total(__m512d vector) { return _mm512_reduce_add_pd(vector); }
#endif

// totals[i] = the sum of the lanes of vectors[i].
template <int kCount, typename T>
inline void Totals(const typename Vector<T>::Type* vectors, T* totals) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) totals[i] = Total(vectors[i]);
}
#if TF_DEFORM_VECTOR_BYTES == 32
template <>
inline void Totals<4, float>(const __m256* vectors, float* totals) {
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(vectors[0], vectors[1]),
                                       _mm256_hadd_ps(vectors[2], vectors[3]));
  _mm_storeu_ps(totals, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
}
#endif

// Calls step(load, store, c) for each vector of channels, and last for what remains. load(from) and
// store(to, vector) touch the channels of that step alone.
template <typename T, typename Step>
inline void ForChannels(int64_t channels, Step&& step) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  const auto load = [](const T* from) { return Load(from); };
  const auto store = [](T* to, typename Vector<T>::Type x) { Store(to, x); };
  int64_t c = 0;
#pragma GCC unroll 2
  for (; c + kLanes <= channels; c += kLanes) step(load, store, c);
  if (c < channels) {
    const Part<T> part(channels - c);
    step([&](const T* from) { return part.Load(from); },
         [&](T* to, typename Vector<T>::Type x) { part.Store(to, x); }, c);
  }
}

// Calls call(constant) with the constant that `count` is: kMost, or half of it, and so on. A point
// has as many corners, or none: then nothing is called.
template <int kMost, typename Call>
inline void WithConstant(int count, Call&& call) {
  if (count == kMost) {
    call(std::integral_constant<int, kMost>());
  } else if constexpr (kMost > 1) {
    WithConstant<kMost / 2>(count, call);
  }
}

// The functions that follow take kCount rows, or `count` rows where kCount is 0.

// Calls step(i) for each row.
template <int kCount, typename Step>
inline void ForRows(int64_t count, Step&& step) {
  if constexpr (kCount > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) step(i);
  } else {
    for (int64_t i = 0; i < count; ++i) step(i);
  }
}

// out[c] = sum over i of weight[i] * values[offset[i] + c]; with `add`, added to out.
template <int kCount, typename T>
inline void SumRows(const T* __restrict__ values, const int64_t* offset, const T* weight,
                    int64_t count, int64_t channels, bool add, T* __restrict__ out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  int64_t begin = 0;
  for (; begin + 4 * kLanes <= channels; begin += 4 * kLanes) {
    typename Vector<T>::Type sum[4] = {};
    if (add) {
      for (int j = 0; j < 4; ++j) sum[j] = Load(out + begin + j * kLanes);
    }
    ForRows<kCount>(count, [&](int64_t i) {
      const T* row = values + offset[i] + begin;
      const auto w = Broadcast(weight[i]);
      for (int j = 0; j < 4; ++j) sum[j] = MulAdd(Load(row + j * kLanes), w, sum[j]);
    });
    for (int j = 0; j < 4; ++j) Store(out + begin + j * kLanes, sum[j]);
  }
  values += begin, out += begin;
  ForChannels<T>(channels - begin, [&](auto load, auto store, int64_t c) {
    typename Vector<T>::Type sum = {};
    if (add) sum = load(out + c);
    ForRows<kCount>(count, [&](int64_t i) {
      sum = MulAdd(load(values + offset[i] + c), Broadcast(weight[i]), sum);
    });
    store(out + c, sum);
  });
}

// dot[i] = sum over c of values[offset[i] + c] * row[c].
template <int kCount, typename T>
inline void DotRows(const T* __restrict__ values, const int64_t* offset, const T* __restrict__ row,
                    int64_t channels, T* dot) {
  typename Vector<T>::Type sums[kCount] = {};
  ForChannels<T>(channels, [&](auto load, auto, int64_t c) {
    const auto part = load(row + c);
    ForRows<kCount>(
        0, [&](int64_t i) { sums[i] = MulAdd(load(values + offset[i] + c), part, sums[i]); });
  });
  Totals<kCount>(sums, dot);
}

// values[offset[i] + c] += weight[i] * row[c]; the offsets differ.
template <int kCount, typename T>
inline void AddRows(const T* __restrict__ row, const int64_t* offset, const T* weight,
                    int64_t channels, T* __restrict__ values) {
  ForChannels<T>(channels, [&](auto load, auto store, int64_t c) {
    const auto part = load(row + c);
    ForRows<kCount>(0, [&](int64_t i) {
      T* to = values + offset[i] + c;
      store(to, MulAdd(part, Broadcast(weight[i]), load(to)));
    });
  });
}

// out[c] += a[c] * b[c].
template <typename T>
inline void AddProduct(const T* __restrict__ a, const T* __restrict__ b, int64_t channels,
                       T* __restrict__ out) {
  ForChannels<T>(channels, [&](auto load, auto store, int64_t c) {
    store(out + c, MulAdd(load(a + c), load(b + c), load(out + c)));
  });
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_ROWS_H_
