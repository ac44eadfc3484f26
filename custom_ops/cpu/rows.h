// Sums, products and additions of rows of channels, in vectors.
// For this room.
//
// T is the type of what is computed; what is only read may be 16-bit numbers, of type S.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_ROWS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "custom_ops/cpu/vectors.h"
#include "custom_ops/kernels.h"

namespace tf_deform {
namespace {

// Ways to touch a few channels that follow one another: as a Type, whose other lanes are 0 when
// loaded. Nothing beyond the channels is read or written.

// All lanes of a vector.
template <typename T>
struct Whole {
  using Type = typename Vector<T>::Type;
  template <typename S>
  Type Load(const S* from) const {
    return tf_deform::Load(from);
  }
  void Store(T* to, Type x) const { tf_deform::Store(to, x); }
};

// So few channels that four lanes hold them, a number known when compiled.
template <typename T, int kChannels>
struct Few {
  typedef T Type __attribute__((vector_size(4 * sizeof(T))));
#if TF_DEFORM_VECTOR_BYTES > 16
  // Two lanes at once: lane by lane, three channels take twice as long as two.
  static_assert(std::is_same_v<T, float> && kChannels <= 3);
  Type Load(const float* from) const {
    if constexpr (kChannels == 1) {
      return _mm_load_ss(from);
    } else {
      double two;
      std::memcpy(&two, from, sizeof two);
      const __m128 low = _mm_castpd_ps(_mm_set_sd(two));
      if constexpr (kChannels == 2) return low;
      return _mm_movelh_ps(low, _mm_load_ss(from + 2));
    }
  }
  void Store(float* to, Type x) const {
    if constexpr (kChannels == 1) {
      _mm_store_ss(to, x);
    } else {
      const double two = _mm_cvtsd_f64(_mm_castps_pd(x));
      std::memcpy(to, &two, sizeof two);
      if constexpr (kChannels == 3) _mm_store_ss(to + 2, _mm_movehl_ps(x, x));
    }
  }
#else
  template <typename S>
  Type Load(const S* from) const {
    Type x = {};
#pragma GCC unroll 4
    for (int lane = 0; lane < kChannels; ++lane) x[lane] = Value(from[lane]);
    return x;
  }
  void Store(T* to, Type x) const {
#pragma GCC unroll 4
    for (int lane = 0; lane < kChannels; ++lane) to[lane] = x[lane];
  }
#endif
};

// The first `count` lanes of a vector, fewer than it has: what remains of a row.
#if TF_DEFORM_VECTOR_BYTES == 64
template <typename T>
struct Part {
  using Type = typename Vector<T>::Type;
  explicit Part(int64_t count) : mask((1u << count) - 1) {}
  __m512 Load(const float* p) const { return _mm512_maskz_loadu_ps(mask, p); }
  __m512d Load(const double* p) const { return _mm512_maskz_loadu_pd(mask, p); }
  template <typename S>
  __m512 Load(const S* p) const {
    return Widen(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(mask, p)), S());
  }
  void Store(float* p, __m512 x) const { _mm512_mask_storeu_ps(p, mask, x); }
  void Store(double* p, __m512d x) const { _mm512_mask_storeu_pd(p, mask, x); }

  std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8> mask;
};
#else
// In pieces of 4, 2 and 1: with AVX2, loads and stores under a mask are slow on some processors.
template <typename T>
struct Part {
  using Type = typename Vector<T>::Type;
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
  Type Load(const T* from) const {
    Type x = {};
    for (int64_t lane = 0; lane < Vector<T>::kLanes - 1; ++lane) {
      if (lane < count) x[lane] = from[lane];
    }
    return x;
  }
  void Store(T* to, Type x) const {
    for (int64_t lane = 0; lane < Vector<T>::kLanes - 1; ++lane) {
      if (lane < count) to[lane] = x[lane];
    }
  }
#endif
  template <typename S>
  Type Load(const S* from) const {
    Halves bits = {};
    for (int64_t lane = 0; lane < Vector<T>::kLanes - 1; ++lane) {
      if (lane < count) bits[lane] = from[lane].bits;
    }
    return Widen(bits, S());
  }
  int64_t count;
};
#endif

// A number of channels is an int64_t, or one of these few, for which a kernel is compiled once
// more.
template <int kChannels>
using Constant = std::integral_constant<int, kChannels>;

// Calls call(channels), with a Constant for the numbers of channels that float32 images have.
template <typename S, typename Call>
inline void WithChannels(int64_t channels, Call&& call) {
  if constexpr (std::is_same_v<S, float>) {
    if (channels == 1) return call(Constant<1>());
    if (channels == 2) return call(Constant<2>());
    if (channels == 3) return call(Constant<3>());
  }
  call(channels);
}

// Calls step(lanes, c) for each vector of channels, and last for what remains: lanes is a Whole,
// Few or Part, for the channels from c on.
template <typename T, int kChannels, typename Step>
inline void ForChannels(Constant<kChannels>, Step&& step) {
  step(Few<T, kChannels>(), 0);
}
template <typename T, typename Step>
inline void ForChannels(int64_t channels, Step&& step) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  int64_t c = 0;
#pragma GCC unroll 2
  for (; c + kLanes <= channels; c += kLanes) step(Whole<T>(), c);
  if (c < channels) step(Part<T>(channels - c), c);
}

// Calls step(constant, c) for blocks of channels of as many vectors as the constant says, from
// channel c on: kMost vectors while they fit, then half as many, and so on. Returns where the rest
// begins.
template <typename T, int kMost, typename Step>
inline int64_t ForBlocks(int64_t channels, int64_t c, Step&& step) {
  constexpr int64_t kBlock = kMost * Vector<T>::kLanes;
  for (; c + kBlock <= channels; c += kBlock) step(Constant<kMost>(), c);
  if constexpr (kMost > 1) c = ForBlocks<T, kMost / 2>(channels, c, step);
  return c;
}

// The type of what ForChannels steps through.
template <typename T, typename Channels>
struct Stepping {
  using Type = typename Vector<T>::Type;
};
template <typename T, int kChannels>
struct Stepping<T, Constant<kChannels>> {
  using Type = typename Few<T, kChannels>::Type;
};

// Calls call(constant) with the constant that `count` is: kMost, or half of it, and so on. A point
// has as many corners, or none: then nothing is called.
template <int kMost, typename Call>
inline void WithConstant(int count, Call&& call) {
  if (count == kMost) {
    call(Constant<kMost>());
  } else if constexpr (kMost > 1) {
    WithConstant<kMost / 2>(count, call);
  }
}

// Sets all of `to` to 0.
template <typename T>
void Clear(const Pool& pool, int64_t size, T* to) {
  ParallelFor(pool, size, 0.25,
              [&](int64_t begin, int64_t end) { std::fill(to + begin, to + end, T(0)); });
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
template <int kCount, typename T, typename S, typename Channels>
inline void SumRows(const S* __restrict__ values, const int64_t* offset, const T* weight,
                    int64_t count, Channels channels, bool add, T* __restrict__ out) {
  using V = typename Vector<T>::Type;
  constexpr int64_t kLanes = Vector<T>::kLanes;
  int64_t begin = 0;
  if constexpr (std::is_same_v<Channels, int64_t>) {
    for (; begin + 4 * kLanes <= channels; begin += 4 * kLanes) {
      V sum[4] = {};
      if (add) {
        for (int j = 0; j < 4; ++j) sum[j] = Load(out + begin + j * kLanes);
      }
      ForRows<kCount>(count, [&](int64_t i) {
        const S* row = values + offset[i] + begin;
        const V w = Broadcast<V>(weight[i]);
        for (int j = 0; j < 4; ++j) sum[j] = MulAdd(Load(row + j * kLanes), w, sum[j]);
      });
      for (int j = 0; j < 4; ++j) Store(out + begin + j * kLanes, sum[j]);
    }
    values += begin, out += begin, channels -= begin;
  }
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    using V = typename decltype(lanes)::Type;
    V sum = {};
    if (add) sum = lanes.Load(out + c);
    ForRows<kCount>(count, [&](int64_t i) {
      sum = MulAdd(lanes.Load(values + offset[i] + c), Broadcast<V>(weight[i]), sum);
    });
    lanes.Store(out + c, sum);
  });
}

// dot[i] = sum over c of values[offset[i] + c] * row[c].
template <int kCount, typename T, typename S, typename Channels>
inline void DotRows(const S* __restrict__ values, const int64_t* offset, const T* __restrict__ row,
                    Channels channels, T* dot) {
  typename Stepping<T, Channels>::Type sums[kCount] = {};
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    const auto part = lanes.Load(row + c);
    ForRows<kCount>(
        0, [&](int64_t i) { sums[i] = MulAdd(lanes.Load(values + offset[i] + c), part, sums[i]); });
  });
  Totals<kCount>(sums, dot);
}

// values[offset[i] + c] += weight[i] * row[c]; the offsets differ.
template <int kCount, typename T, typename Channels>
inline void AddRows(const T* __restrict__ row, const int64_t* offset, const T* weight,
                    Channels channels, T* __restrict__ values) {
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    using V = typename decltype(lanes)::Type;
    const V part = lanes.Load(row + c);
    ForRows<kCount>(0, [&](int64_t i) {
      T* to = values + offset[i] + c;
      lanes.Store(to, MulAdd(part, Broadcast<V>(weight[i]), lanes.Load(to)));
    });
  });
}

// out[c] += a[c] * b[c].
template <typename T, typename S>
inline void AddProduct(const T* __restrict__ a, const S* __restrict__ b, int64_t channels,
                       T* __restrict__ out) {
  ForChannels<T>(channels, [&](auto lanes, int64_t c) {
    lanes.Store(out + c, MulAdd(lanes.Load(a + c), lanes.Load(b + c), lanes.Load(out + c)));
  });
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_ROWS_H_
