// Vectors of the instruction set built for: of float32 and float64, in which all is computed.
// For this room. 16-bit numbers widen as they are read, and are rounded at the end.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_VECTORS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_VECTORS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>

#include "custom_ops/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TF_DEFORM_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TF_DEFORM_VECTOR_BYTES 32
#else
#define TF_DEFORM_VECTOR_BYTES 16
#endif
#if TF_DEFORM_VECTOR_BYTES > 16
#include <immintrin.h>
#elif defined(__aarch64__)  // NEON, which every such processor has
#include <arm_neon.h>
#endif

namespace tf_deform {
namespace {

constexpr int kVectorBytes = TF_DEFORM_VECTOR_BYTES;

template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / sizeof(T);
};
template <>
struct Vector<Float16Bits> {};  // they widen as they are read
template <>
struct Vector<Bfloat16Bits> {};

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

// 16-bit numbers widen to float32.

using Halves = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

inline Vector<float>::Type Widen(Halves bits, Bfloat16Bits) {
  using Words = uint32_t __attribute__((vector_size(kVectorBytes)));
  return reinterpret_cast<Vector<float>::Type>(__builtin_convertvector(bits, Words) << 16);
}

#if TF_DEFORM_VECTOR_BYTES == 64
inline Vector<float>::Type Widen(Halves bits, Float16Bits) {
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
}
#elif TF_DEFORM_VECTOR_BYTES == 32
inline Vector<float>::Type Widen(Halves bits, Float16Bits) {
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
}
#elif defined(__aarch64__)
inline Vector<float>::Type Widen(Halves bits, Float16Bits) {
  return vcvt_f32_f16(reinterpret_cast<float16x4_t>(bits));
}
#else
inline Vector<float>::Type Widen(Halves bits, Float16Bits) {
  using Words = uint32_t __attribute__((vector_size(kVectorBytes)));
  using Lanes = Vector<float>::Type;
  const Words all = __builtin_convertvector(bits, Words);
  const Words exponent = all & 0x7c00;
  const Words shifted = (all & 0x7fff) << 13;
  // Below the normal numbers a float32 made of bits could be flushed to 0: it is computed.
  const Lanes tiny = __builtin_convertvector(all & 0x3ff, Lanes) * 0x1p-24f;
  Words wide = exponent == 0x7c00 ? shifted | 0x7f800000 : shifted + (112u << 23);
  wide = exponent == 0 ? reinterpret_cast<Words>(tiny) : wide;
  return reinterpret_cast<Lanes>(wide | (all & 0x8000) << 16);
}
#endif

template <typename S>
inline Vector<float>::Type LoadHalves(const S* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return Widen(bits, S());
}
inline Vector<float>::Type Load(const Float16Bits* from) { return LoadHalves(from); }
inline Vector<float>::Type Load(const Bfloat16Bits* from) { return LoadHalves(from); }

// Two bfloat16 that are multiplied by two others, and both products added: where processors can.
struct Pair {
  uint32_t bits;  // the first number is the lower half
};
template <>
struct Vector<Pair> {
  typedef uint32_t Type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / sizeof(Pair);
};

#ifdef __AVX512BF16__
template <typename S>
constexpr bool kPaired = std::is_same_v<S, Bfloat16Bits>;  // whether numbers are multiplied so
#else
template <typename S>
constexpr bool kPaired = false;
#endif
template <typename A>
constexpr int64_t kNumbers = std::is_same_v<A, Pair> ? 2 : 1;  // in a factor of a product

// A number and the next one of other rows, lane by lane.
inline Vector<Pair>::Type Paired(Halves first, Halves second) {
  using Words = Vector<Pair>::Type;
  return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
}

inline float Value(float value) { return value; }
inline double Value(double value) { return value; }
template <typename S>
inline float Value(S half) {
  Halves bits = {};
  bits[0] = half.bits;
  return Widen(bits, S())[0];
}

// Sums are rounded to 16 bits at their end, halves to even.
inline uint16_t NarrowBits(float value, Bfloat16Bits) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint16_t NarrowBits(float value, Float16Bits) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x47800000) return sign | 0x7c00;  // from 2^16 on
  if (bits >= 0x38800000) return sign | (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  // Below 2^-14 it is a multiple of 2^-24: a number whose last bit is 1 rounds it.
  const float shifted = std::abs(value) * 0x1p24f + 0x1p23f;
  std::memcpy(&bits, &shifted, sizeof bits);
  return sign | (bits & 0x7ff);
}

template <typename S>
constexpr bool kNarrow = !std::is_same_v<S, Wide<S>>;  // whether sums do not fit where they go

// Returns where the sums that go to `out` are made: there, or in the buffer.
template <typename S>
inline Wide<S>* SumsOf(S* out, Wide<S>* buffer) {
  if constexpr (kNarrow<S>) {
    return buffer;
  } else {
    return out;
  }
}

// Rounds sums to `out`, if they are not there yet.
template <typename S>
inline void Narrow(const Wide<S>* sums, int64_t count, S* out) {
  if constexpr (kNarrow<S>) {
    for (int64_t i = 0; i < count; ++i) out[i].bits = NarrowBits(sums[i], S());
  }
}

// Returns numbers as what they are computed in: where they are, or in the buffer.
template <typename S>
inline const Wide<S>* Widened(const S* from, int64_t count, Wide<S>* buffer) {
  if constexpr (kNarrow<S>) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = Value(from[i]);
    return buffer;
  } else {
    return from;
  }
}

// Returns a * b + c, rounded once where the instruction set can.
#if TF_DEFORM_VECTOR_BYTES == 64
inline __m512 MulAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d MulAdd(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#endif
#if TF_DEFORM_VECTOR_BYTES >= 32
inline __m256 MulAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d MulAdd(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline __m128 MulAdd(__m128 a, __m128 b, __m128 c) { return _mm_fmadd_ps(a, b, c); }
#elif defined(__aarch64__)
inline Vector<float>::Type MulAdd(Vector<float>::Type a, Vector<float>::Type b,
                                  Vector<float>::Type c) {
  return vfmaq_f32(c, a, b);
}
inline Vector<double>::Type MulAdd(Vector<double>::Type a, Vector<double>::Type b,
                                   Vector<double>::Type c) {
  return vfmaq_f64(c, a, b);
}
#else
template <typename V>
inline V MulAdd(V a, V b, V c) {
  return a * b + c;
}
#endif

#ifdef __AVX512BF16__
// Both products of each lane are added. Numbers below the normal ones count as 0.
inline __m512 MulAdd(Vector<Pair>::Type a, Vector<Pair>::Type b, __m512 c) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
inline Halves Rounded(__m512 x) { return (Halves)_mm512_cvtneps_pbh(x); }
inline void Store(Bfloat16Bits* to, __m512 x) {
  const Halves bits = Rounded(x);
  std::memcpy(to, &bits, sizeof bits);
}
#endif

// Returns a vector of type V whose lanes are all the value.
template <typename V, typename T>
inline V Broadcast(T value) {
  return value - V{};  // value + 0 would be an addition: 0 + -0 is 0
}

// The same for what lies in memory; a pair does so as two numbers.
template <typename T>
inline typename Vector<T>::Type LoadOne(const T* from) {
  return Broadcast<typename Vector<T>::Type>(*from);
}
inline Vector<Pair>::Type LoadOne(const Pair* from) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return Broadcast<Vector<Pair>::Type>(bits);
}

// Returns each lane rounded down.
#if TF_DEFORM_VECTOR_BYTES == 64
inline __m512 Floor(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF); }
inline __m512d Floor(__m512d x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF); }
#elif TF_DEFORM_VECTOR_BYTES == 32
inline __m256 Floor(__m256 x) { return _mm256_floor_ps(x); }
inline __m256d Floor(__m256d x) { return _mm256_floor_pd(x); }
#elif defined(__aarch64__)
inline Vector<float>::Type Floor(Vector<float>::Type x) { return vrndmq_f32(x); }
inline Vector<double>::Type Floor(Vector<double>::Type x) { return vrndmq_f64(x); }
#else
template <typename V>
inline V Floor(V x) {
  for (size_t lane = 0; lane < sizeof x / sizeof x[0]; ++lane) x[lane] = std::floor(x[lane]);
  return x;
}
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
#elif defined(__aarch64__)
inline float Total(Vector<float>::Type vector) { return vaddvq_f32(vector); }
inline double Total(Vector<double>::Type vector) { return vaddvq_f64(vector); }
#endif

// totals[i] = the sum of the lanes of vectors[i], for four at once.
#if TF_DEFORM_VECTOR_BYTES >= 32
inline void FourTotals(__m128 a, __m128 b, __m128 c, __m128 d, float* totals) {
  _mm_storeu_ps(totals, _mm_hadd_ps(_mm_hadd_ps(a, b), _mm_hadd_ps(c, d)));
}
inline void FourTotals(__m256 a, __m256 b, __m256 c, __m256 d, float* totals) {
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(totals, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
}
#endif
#if TF_DEFORM_VECTOR_BYTES == 64
inline __m256 Fold(__m512 x) { return _mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1); }
inline void FourTotals(__m512 a, __m512 b, __m512 c, __m512 d, float* totals) {
  FourTotals(Fold(a), Fold(b), Fold(c), Fold(d), totals);
}
#elif defined(__aarch64__)
inline void FourTotals(Vector<float>::Type a, Vector<float>::Type b, Vector<float>::Type c,
                       Vector<float>::Type d, float* totals) {
  vst1q_f32(totals, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
#endif
template <typename V, typename T>
inline void FourTotals(V a, V b, V c, V d, T* totals) {
  totals[0] = Total(a), totals[1] = Total(b), totals[2] = Total(c), totals[3] = Total(d);
}

// The same for kCount vectors.
template <int kCount, typename V, typename T>
inline void Totals(const V* vectors, T* totals) {
  if constexpr (kCount % 4 == 0) {
    for (int i = 0; i < kCount; i += 4) {
      FourTotals(vectors[i], vectors[i + 1], vectors[i + 2], vectors[i + 3], totals + i);
    }
  } else {
    for (int i = 0; i < kCount; ++i) totals[i] = Total(vectors[i]);
  }
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_VECTORS_H_
