// Compares the kernels with loops over every pixel, over random sizes and hostile coordinates.
// A program: kernel_test_avx2 [rounds]
//
// A linear sample is the sum over pixels i of hat(p - i) * value(i) with hat(x) = max(0, 1 - |x|),
// which knows no corners but where a weight is not finite: there pixels that are not read are the
// number 0, so that the sample is NaN if there are any. Gradients are compared through derivatives
// of those loops: exact ones, as the results are linear in values, weights, kernel and mask, and
// differences for coordinates.

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "custom_ops/blocks.h"
#include "custom_ops/kernels.h"

// How many allocations succeed before one fails; below 0 all do.
std::atomic<int64_t> allocations{-1};
std::atomic<int64_t> held{0}, peak{0};  // bytes

// Memory that runs out when a test wants it to, and is counted.
void* operator new(size_t size, std::align_val_t alignment) {
  const size_t align = static_cast<size_t>(alignment);
  const bool fails = allocations >= 0 && allocations-- == 0;
  void* const memory = fails ? nullptr : std::aligned_alloc(align, (size / align + 1) * align);
  if (!memory) throw std::bad_alloc();
  const int64_t now = held += malloc_usable_size(memory);
  for (int64_t most = peak; most < now && !peak.compare_exchange_weak(most, now);) continue;
  return memory;
}
void* operator new(size_t size) {
  return operator new(size, std::align_val_t(alignof(std::max_align_t)));
}
__attribute__((noinline)) void Release(void* memory) {
  if (memory) held -= malloc_usable_size(memory);
  std::free(memory);
}
void operator delete(void* memory) noexcept { Release(memory); }
void operator delete(void* memory, size_t) noexcept { Release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { Release(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { Release(memory); }

namespace {

using tf_deform::Bfloat16Bits;
using tf_deform::ConvSizes;
using tf_deform::Error;
using tf_deform::Float16Bits;
using tf_deform::Pool;
using tf_deform::SampleSizes;
using tf_deform::Units;

int failures = 0;
std::mt19937 rng(0);

int64_t Draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

// Runs in pieces on as many threads as the context says.
void RunOnThreads(void* context, int64_t count, int64_t, void (*work)(void*, int64_t, int64_t),
                  void* data) {
  const int64_t threads = *static_cast<int*>(context);
  std::vector<std::thread> running;
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t begin = count * thread / threads;
    const int64_t end = count * (thread + 1) / threads;
    if (begin < end) running.emplace_back([=] { work(data, begin, end); });
  }
  for (auto& each : running) each.join();
}

template <typename T>
std::vector<T> Normal(int64_t size) {
  std::normal_distribution<double> normal;
  std::vector<T> out(size);
  for (T& each : out) each = static_cast<T>(normal(rng));
  return out;
}

double Hat(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

int64_t Product(const int64_t* sizes, int rank) {
  int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= sizes[axis];
  return product;
}

// A coordinate: mostly fractional and about the image, at times hostile.
template <typename T>
T Coordinate(int64_t size, bool hostile) {
  const T kHostile[] = {std::numeric_limits<T>::quiet_NaN(),
                        std::numeric_limits<T>::infinity(),
                        -std::numeric_limits<T>::infinity(),
                        T(1e30),
                        T(-1e30),
                        T(9.3e18),
                        T(-1),
                        static_cast<T>(size),
                        std::nextafter(static_cast<T>(size), T(0)),
                        std::nextafter(T(-1), T(0)),
                        T(-0.0)};
  if (hostile && Draw(0, 2) == 0) return kHostile[Draw(0, std::size(kHostile) - 1)];
  return static_cast<T>(Draw(-2, size)) + std::uniform_real_distribution<T>(T(0.1), T(0.9))(rng);
}

// Weights, at times hostile.
template <typename T>
std::vector<T> Weights(int64_t size, bool hostile) {
  constexpr T kHostile[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                            -std::numeric_limits<T>::infinity()};
  std::vector<T> out = Normal<T>(size);
  for (T& each : out) {
    if (hostile && Draw(0, 9) == 0) each = kHostile[Draw(0, 2)];
  }
  return out;
}

// The linear sample of one channel times a factor, written as a sum over all pixels.
template <typename T>
double SampleLoop(const T* image, int rank, const int64_t* space, int64_t channels, int64_t channel,
                  const double* p, double factor) {
  for (int axis = 0; axis < rank; ++axis) {
    if (!(p[axis] > -1 && p[axis] < space[axis])) return 0 * factor;
  }
  double sum = 0;
  int corners = 0;
  for (int64_t pixel = 0; pixel < Product(space, rank); ++pixel) {
    double weight = 1;
    int64_t rest = pixel;
    for (int axis = rank - 1; axis >= 0; --axis) {
      weight *= Hat(p[axis] - rest % space[axis]);
      rest /= space[axis];
    }
    if (weight == 0) continue;
    sum += weight * factor * image[pixel * channels + channel];
    ++corners;
  }
  return corners < 1 << rank ? sum + 0 * factor : sum;
}

template <typename T>
struct Sampling {
  SampleSizes sizes;
  std::vector<T> values, points, weights;
  std::vector<int64_t> index;

  // Where a point is in pixels: its coordinates, and what they are in.
  std::vector<double> Position(int64_t point) const {
    std::vector<double> p(sizes.rank);
    for (int axis = 0; axis < sizes.rank; ++axis) {
      const double size = sizes.space[axis];
      const T* from = points.data() + point * sizes.rank;
      const double x = from[sizes.rank - 1 - axis];
      p[axis] = sizes.units == Units::kPixels    ? from[axis]
                : sizes.units == Units::kCenters ? (x + 1) / 2 * (size - 1)
                                                 : (x + 1) / 2 * size - 0.5;
    }
    return p;
  }

  std::vector<double> Loop() const {
    std::vector<double> out(sizes.rows * sizes.queries * sizes.channels);
    const int64_t image = Product(sizes.space, sizes.rank) * sizes.channels;
    const int64_t width = sizes.channels / sizes.groups;
    for (int64_t query = 0; query < sizes.rows * sizes.queries; ++query) {
      const int64_t row = query / sizes.queries;
      for (int64_t c = 0; c < sizes.channels; ++c) {
        for (int64_t j = 0; j < sizes.points; ++j) {
          const int64_t point = (query * sizes.groups + c / width) * sizes.points + j;
          const std::vector<double> p = Position(point);
          out[query * sizes.channels + c] +=
              SampleLoop(values.data() + (index.empty() ? row : index[row]) * image, sizes.rank,
                         sizes.space, sizes.channels, c, p.data(),
                         weights.empty() ? 1.0 : weights[point]);
        }
      }
    }
    return out;
  }
};

template <typename T>
struct Convolving {
  ConvSizes sizes;
  std::vector<T> inputs, kernel, offset, mask;

  std::vector<double> Loop() const {
    const int rank = sizes.rank;
    const int64_t pixels = Product(sizes.output, rank), taps = Product(sizes.kernel, rank);
    const int64_t image = Product(sizes.space, rank) * sizes.channels;
    const int64_t width = sizes.channels / sizes.groups, filters = sizes.filters / sizes.groups;
    std::vector<double> out(sizes.batch * pixels * sizes.filters);
    for (int64_t point = 0; point < sizes.batch * pixels; ++point) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t c = 0; c < sizes.channels; ++c) {
          const int64_t moved = c / (sizes.channels / sizes.deformable_groups);
          const int64_t at = (point * sizes.deformable_groups + moved) * taps + tap;
          double p[3];
          int64_t q = point % pixels, t = tap;
          for (int axis = rank - 1; axis >= 0; --axis) {
            const int64_t base = q % sizes.output[axis] * sizes.strides[axis] - sizes.before[axis] +
                                 t % sizes.kernel[axis] * sizes.dilations[axis];
            p[axis] = static_cast<T>(static_cast<T>(base) + offset[at * rank + axis]);
            q /= sizes.output[axis];
            t /= sizes.kernel[axis];
          }
          const double sample =
              SampleLoop(inputs.data() + point / pixels * image, rank, sizes.space, sizes.channels,
                         c, p, mask.empty() ? 1.0 : mask[at]);
          for (int64_t f = 0; f < filters; ++f) {
            const int64_t filter = c / width * filters + f;
            out[point * sizes.filters + filter] +=
                sample * kernel[(tap * width + c % width) * sizes.filters + filter];
          }
        }
      }
    }
    return out;
  }
};

void Report(bool good, const char* what, double error) {
  if (good) return;
  ++failures;
  std::printf("FAILED: %s, error %g\n", what, error);
}

template <typename T>
void Close(const char* what, const std::vector<T>& actual, const std::vector<double>& expected) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) ? std::isnan(actual[i]) : actual[i] == expected[i]) continue;
    if (std::isfinite(expected[i])) largest = std::max(largest, std::abs(expected[i]));
    const double difference = std::abs(actual[i] - expected[i]);
    error = std::isnan(difference) ? difference : std::max(error, difference);
    if (std::isnan(error)) break;
  }
  Report(error <= (sizeof(T) == 4 ? 1e-5 : 1e-12) * std::max(largest, 1.0), what, error);
}

// Checks a gradient along a random direction by central differences of loop(), weighted by
// upstream.
template <typename T>
void CheckGradient(const char* what, std::vector<T>* argument, const std::vector<T>& gradient,
                   const std::vector<T>& upstream,
                   const std::function<std::vector<double>()>& loop) {
  const std::vector<T> saved = *argument;
  const std::vector<T> direction = Normal<T>(saved.size());
  const auto along = [&](double step) {
    for (size_t i = 0; i < saved.size(); ++i) (*argument)[i] = saved[i] + T(step) * direction[i];
    const std::vector<double> out = loop();
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += out[i] * upstream[i];
    return sum;
  };
  const double step = 1e-5;
  const double expected = (along(step) - along(-step)) / (2 * step);
  *argument = saved;
  double actual = 0, terms = 1;
  for (size_t i = 0; i < saved.size(); ++i) {
    actual += double(gradient[i]) * direction[i];
    terms += std::abs(double(gradient[i]) * direction[i]);
  }
  const double error = std::abs(actual - expected);
  Report(error <= 1e-7 * terms, what, error);
}

// Which of two NaNs is added first depends on the blocks, and the sum has the sign of the first.
template <typename T>
bool Same(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) && !(a[i] != a[i] && b[i] != b[i])) return false;
  }
  return true;
}

template <typename T>
void TestSample(bool hostile) {
  Sampling<T> s;
  s.sizes = {};
  s.sizes.rank = Draw(1, 3);
  for (int axis = 0; axis < s.sizes.rank; ++axis) s.sizes.space[axis] = Draw(hostile ? 0 : 1, 5);
  s.sizes.images = Draw(1, 3);
  s.sizes.groups = Draw(1, 3);
  s.sizes.channels =
      s.sizes.groups * (Draw(0, 1) ? Draw(hostile ? 0 : 1, 8) : Draw(9, 300 / s.sizes.groups));
  const bool indexed = Draw(0, 1);
  s.sizes.rows = indexed ? Draw(0, 5) : s.sizes.images;
  s.sizes.queries = Draw(0, 1) ? Draw(0, 4) : Draw(60, 70);
  s.sizes.points = Draw(hostile ? 0 : 1, Draw(0, 3) ? 3 : 150);  // 64 are found at once
  if (indexed) {
    for (int64_t row = 0; row < s.sizes.rows; ++row) s.index.push_back(Draw(0, s.sizes.images - 1));
  }
  const int64_t image = Product(s.sizes.space, s.sizes.rank) * s.sizes.channels;
  const int64_t count = s.sizes.rows * s.sizes.queries * s.sizes.groups * s.sizes.points;
  s.values = Normal<T>(s.sizes.images * image);
  if (Draw(0, 1)) s.weights = Weights<T>(count, hostile);
  s.points.resize(count * s.sizes.rank);
  if (!hostile) s.sizes.units = static_cast<Units>(Draw(0, 2));
  for (size_t i = 0; i < s.points.size(); ++i) {
    const int axis = i % s.sizes.rank;
    const bool pixels = s.sizes.units == Units::kPixels;
    const int64_t size = s.sizes.space[pixels ? axis : s.sizes.rank - 1 - axis];
    const T pixel = Coordinate<T>(size, hostile);
    s.points[i] = pixels                           ? pixel
                  : s.sizes.units == Units::kEdges ? (2 * pixel + 1) / size - 1
                  : size > 1                       ? 2 * pixel / (size - 1) - 1
                                                   : pixel;
  }
  const std::vector<double> expected = s.Loop();
  const auto upstream = Normal<T>(expected.size());
  const T* weights = s.weights.empty() ? nullptr : s.weights.data();
  const int64_t* index = indexed ? s.index.data() : nullptr;
  const auto& kernels = TfDeformKernels()->of<T>();
  std::vector<T> first[4];
  for (int threads = 1; threads <= 3; ++threads) {
    const Pool pool{RunOnThreads, &threads};
    std::vector<T> out(expected.size()), values(s.values.size()), points(s.points.size()),
        weight(s.weights.size());
    kernels.sample(pool, s.sizes, s.values.data(), s.points.data(), weights, index, out.data());
    kernels.sample_grad_values(pool, s.sizes, s.points.data(), weights, index, upstream.data(),
                               values.data());
    kernels.sample_grad_points(pool, s.sizes, s.values.data(), s.points.data(), weights, index,
                               upstream.data(), points.data(), weights ? weight.data() : nullptr);
    if (threads == 1) {
      Close("sample", out, expected);
      if (sizeof(T) == 8 && !hostile) {
        const auto loop = [&] { return s.Loop(); };
        CheckGradient("sample, gradient to values", &s.values, values, upstream, loop);
        CheckGradient("sample, gradient to points", &s.points, points, upstream, loop);
        CheckGradient("sample, gradient to weights", &s.weights, weight, upstream, loop);
      }
      first[0] = out, first[1] = values, first[2] = points, first[3] = weight;
    }
    Report(Same(out, first[0]) && Same(values, first[1]) && Same(points, first[2]) &&
               Same(weight, first[3]),
           "sample: same bits on any number of threads", threads);
  }
}

// Draws the sizes of a convolution about where the kernels cut: tiles of 144 output pixels, 64
// taps, slices of 128 and 256 or 512 channels, panels of 8 to 32 filters, blocks of 6 or 12 rows.
void DrawSizes(bool hostile, ConvSizes* sizes) {
  ConvSizes& z = *sizes;
  z = {};
  z.rank = Draw(1, 3);
  const int large = z.rank == 1 ? Draw(0, 5) : 0;  // 1: the output, 2: the kernel, 3: the channels
  for (int axis = 0; axis < z.rank; ++axis) {
    z.space[axis] = Draw(hostile ? 0 : 1, 6);
    z.output[axis] = large == 1 ? Draw(140, 300) : Draw(hostile ? 0 : 1, 5);
    z.kernel[axis] = large == 2 ? Draw(60, 70) : Draw(1, 3);
    z.strides[axis] = Draw(1, 2);
    z.dilations[axis] = Draw(1, 2);
    z.before[axis] = Draw(0, 2);
  }
  z.batch = Draw(hostile ? 0 : 1, 3);
  z.deformable_groups = Draw(1, 3);
  const int kind = Draw(0, 2);  // dense, grouped, depthwise
  const int64_t each = large == 3 ? Draw(100, 300) : Draw(0, 2) ? Draw(1, 8) : Draw(9, 40);
  z.groups = kind == 0 ? 1 : kind == 1 ? Draw(2, 3) : z.deformable_groups * each;
  z.channels = kind == 2 ? z.groups : z.deformable_groups * z.groups * each;
  z.filters = kind == 2 ? z.groups * (Draw(0, 3) ? 1 : 2)
                        : z.groups * (Draw(0, 2) ? Draw(1, 5) : Draw(6, 70));
}

template <typename T>
void TestConv(bool hostile) {
  Convolving<T> s;
  ConvSizes& z = s.sizes;
  DrawSizes(hostile, &z);
  const int rank = z.rank;
  const int64_t pixels = Product(z.output, rank), taps = Product(z.kernel, rank);
  s.inputs = Normal<T>(z.batch * Product(z.space, rank) * z.channels);
  s.kernel = Normal<T>(taps * z.channels / z.groups * z.filters);
  if (Draw(0, 1)) s.mask = Weights<T>(z.batch * pixels * z.deformable_groups * taps, hostile);
  s.offset.resize(z.batch * pixels * z.deformable_groups * taps * rank);
  for (size_t i = 0; i < s.offset.size(); ++i) {
    s.offset[i] = Coordinate<T>(z.space[i % rank] / 2, hostile);
  }
  const std::vector<double> expected = s.Loop();
  const auto upstream = Normal<T>(expected.size());
  const T* mask = s.mask.empty() ? nullptr : s.mask.data();
  const auto& kernels = TfDeformKernels()->of<T>();
  std::vector<T> first[5];
  for (int threads = 1; threads <= 5; ++threads) {
    const Pool pool{RunOnThreads, &threads};
    std::vector<T> out(expected.size()), inputs(s.inputs.size()), kernel(s.kernel.size()),
        offset(s.offset.size()), masks(s.mask.size());
    kernels.conv(pool, z, s.inputs.data(), s.kernel.data(), s.offset.data(), mask, out.data());
    kernels.conv_grad(pool, z, s.inputs.data(), s.kernel.data(), s.offset.data(), mask,
                      upstream.data(), inputs.data(), kernel.data(), offset.data(),
                      mask ? masks.data() : nullptr);
    if (threads == 1) {
      Close("conv", out, expected);
      if (sizeof(T) == 8 && !hostile) {
        const auto loop = [&] { return s.Loop(); };
        CheckGradient("conv, gradient to inputs", &s.inputs, inputs, upstream, loop);
        CheckGradient("conv, gradient to kernel", &s.kernel, kernel, upstream, loop);
        CheckGradient("conv, gradient to offset", &s.offset, offset, upstream, loop);
        CheckGradient("conv, gradient to mask", &s.mask, masks, upstream, loop);
      }
      first[0] = out, first[1] = inputs, first[2] = kernel, first[3] = offset, first[4] = masks;
    }
    Report(Same(out, first[0]) && Same(inputs, first[1]) && Same(kernel, first[2]) &&
               Same(offset, first[3]) && Same(masks, first[4]),
           "conv: same bits on any number of threads", threads);
  }
}

// One sample, of 1-D images of two channels, and one output pixel of a convolution: enough for every
// allocation that there is.
template <typename T>
struct Smallest {
  using W = tf_deform::Wide<T>;

  Smallest() {
    sample.rank = conv.rank = 1;
    sample.images = sample.rows = sample.queries = sample.groups = sample.points = 1;
    sample.space[0] = 3, sample.channels = 2;
    conv.batch = 2, conv.space[0] = 3, conv.channels = 2, conv.output[0] = 1, conv.filters = 2;
    conv.kernel[0] = conv.strides[0] = conv.dilations[0] = conv.deformable_groups = 1;
    conv.groups = 1;
  }

  // Calls visit(name, call) for each of the kernels: call(pool) returns its error.
  template <typename Visit>
  void ForKernels(Visit&& visit) {
    const auto& kernels = TfDeformKernels()->of<T>();
    visit("sample", [&](const Pool& pool) {
      return kernels.sample(pool, sample, in, at, nullptr, nullptr, out[0]);
    });
    visit("sample_grad_values", [&](const Pool& pool) {
      return kernels.sample_grad_values(pool, sample, at, nullptr, nullptr, at, out[0]);
    });
    visit("sample_grad_points", [&](const Pool& pool) {
      return kernels.sample_grad_points(pool, sample, in, at, nullptr, nullptr, at, out[0],
                                        nullptr);
    });
    for (conv.groups = 1; conv.groups <= 2; ++conv.groups) {  // 2: depthwise
      visit("conv", [&](const Pool& pool) {
        return kernels.conv(pool, conv, in, in, at, nullptr, narrow);
      });
      visit("conv_grad", [&](const Pool& pool) {
        return kernels.conv_grad(pool, conv, in, in, at, nullptr, in, out[0], out[1], out[2],
                                 nullptr);
      });
    }
  }

  SampleSizes sample = {};
  ConvSizes conv = {};
  T in[12] = {}, narrow[12];
  W at[12] = {}, out[3][12];
};

// Where memory runs out, at any allocation, a kernel says so, and nothing is lost: that is what the
// sanitizer of leaks looks for.
template <typename T>
void TestMemory() {
  int threads = 1;
  const Pool in_turn{[](void*, int64_t count, int64_t, void (*work)(void*, int64_t, int64_t),
                        void* data) {
                       for (int64_t each = 0; each < count; ++each) work(data, each, each + 1);
                     },
                     &threads};
  Smallest<T>().ForKernels([&](const char* name, auto&& call) {
    const bool lone = std::strcmp(name, "sample") == 0 || !std::strcmp(name, "sample_grad_points");
    int64_t failed = 0;
    for (;; ++failed) {
      allocations = failed;
      const Error error = call(in_turn);
      allocations = -1;
      if (!error) break;
      Report(error.kind == Error::kMemory && error.text[0], name, failed);
    }
    Report(lone ? failed == 0 : failed > 0, "allocations that fail are noticed", failed);
  });
}

// The kernels' buffers are at most 8 MiB a thread, for kernels that are not much larger themselves:
// of large images, of many, and of many channels.
template <typename S>
void TestBuffers() {
  using W = tf_deform::Wide<S>;
  constexpr int64_t kMost = 8 << 20;
  const int64_t shapes[][5] = {  // batch, size, channels, filters, size of the kernel
      {16, 64, 4, 4, 5}, {1, 160, 4, 4, 5}, {1, 14, 256, 256, 3}, {8, 9, 128, 128, 3}};
  for (const auto& [batch, size, channels, filters, window] : shapes) {
    ConvSizes z = {};
    z.rank = 2, z.batch = batch, z.channels = channels, z.filters = filters;
    z.groups = z.deformable_groups = 1;
    for (int axis = 0; axis < 2; ++axis) {
      z.space[axis] = z.output[axis] = size, z.kernel[axis] = window;
      z.strides[axis] = z.dilations[axis] = 1, z.before[axis] = window / 2;
    }
    const int64_t points = batch * size * size, taps = window * window;
    const std::vector<S> inputs(points * channels), kernel(taps * channels * filters);
    const std::vector<W> offset(points * taps * 2), mask(points * taps);
    std::vector<S> out(points * filters);
    std::vector<W> inputs_gradient(inputs.size()), kernel_gradient(kernel.size());
    std::vector<W> offset_gradient(offset.size()), mask_gradient(mask.size());
    const auto& kernels = TfDeformKernels()->of<S>();
    for (int threads = 1; threads <= 3; threads += 2) {
      const Pool pool{RunOnThreads, &threads};
      for (const bool forward : {true, false}) {
        const int64_t before = held;
        peak = before;
        forward ? kernels.conv(pool, z, inputs.data(), kernel.data(), offset.data(), mask.data(),
                               out.data())
                : kernels.conv_grad(pool, z, inputs.data(), kernel.data(), offset.data(),
                                    mask.data(), out.data(), inputs_gradient.data(),
                                    kernel_gradient.data(), offset_gradient.data(),
                                    mask_gradient.data());
        Report(peak - before <= threads * kMost,
               forward ? "MiB of buffers" : "MiB of buffers, gradients",
               (peak - before) / 1048576.0);
      }
    }
  }
}

// What a block throws is thrown where the loop was started, when no block runs any more.
void TestErrorsOfBlocks() {
  int threads = 3;
  std::atomic<int> running{0}, ran{0};
  const Error error = tf_deform::Guarded([&] {
    tf_deform::ParallelFor({RunOnThreads, &threads}, 3, 1, [&](int64_t begin, int64_t) {
      ++running, ++ran;
      if (begin == 1) {
        --running;
        throw std::runtime_error("the second block");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      --running;
    });
  });
  Report(error.kind == Error::kOther && !std::strcmp(error.text, "the second block"),
         "errors of blocks are reported", error.kind);
  Report(running == 0 && ran >= 1, "no block runs any more", running);
}

// When a loop returns all its blocks have run, each once, also if a pool takes fewer tasks than it
// should.
void TestBlocks() {
  for (int taken = 0; taken < 4; ++taken) {
    std::vector<std::atomic<int>> runs(100);
    std::vector<std::thread> helpers;
    int scheduled = 0;
    tf_deform::RunInBlocks(
        runs.size(), int64_t{1} << 40, 4,
        [](void* data, int64_t begin, int64_t end) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          for (int64_t each = begin; each < end; ++each) {
            ++static_cast<std::atomic<int>*>(data)[each];
          }
        },
        runs.data(), [&](auto&& task) {
          if (scheduled++ == taken) throw std::bad_alloc();
          helpers.emplace_back(task);
        });
    for (const auto& each : runs) Report(each == 1, "each block is run once", each);
    for (auto& each : helpers) each.join();
  }
}

// Nothing takes its time over nothing: without an output pixel, or points, gradients are zeros,
// however large the other sizes are.
template <typename T>
void TestEmpty() {
  using W = tf_deform::Wide<T>;
  int threads = 2;
  const Pool pool{RunOnThreads, &threads};
  Smallest<T> s;
  const auto& kernels = TfDeformKernels()->of<T>();
  const auto zeros = [&](const W* from, int64_t count, const char* what) {
    Report(std::all_of(from, from + count, [](W each) { return each == 0; }), what, from[0]);
  };
  for (int64_t batch = 0; batch < 2; ++batch) {
    ConvSizes z = s.conv;
    z.batch = batch;
    z.output[0] = batch ? 0 : int64_t{1} << 60;
    std::fill_n(s.out[0], 36, W(1));
    Report(!kernels.conv(pool, z, s.in, s.in, s.at, nullptr, s.narrow), "empty conv", 0);
    Report(!kernels.conv_grad(pool, z, s.in, s.in, s.at, nullptr, s.in, s.out[0], s.out[1],
                              s.out[2], nullptr),
           "empty conv_grad", 0);
    zeros(s.out[0], batch * 6, "empty conv, gradient to inputs");
    zeros(s.out[1], 4, "empty conv, gradient to kernel");
  }
  SampleSizes y = s.sample;
  y.rows = 0, y.queries = int64_t{1} << 60;
  const int64_t index = 0;
  std::fill_n(s.out[0], 12, W(1));
  Report(!kernels.sample_grad_values(pool, y, s.at, nullptr, &index, s.at, s.out[0]),
         "empty sample_grad_values", 0);
  zeros(s.out[0], 6, "empty sample, gradient to values");
  y.images = int64_t{1} << 60, y.space[0] = 0;
  Report(!kernels.sample_grad_values(pool, y, s.at, nullptr, &index, s.at, s.out[0]),
         "no values, and no points", 0);
}

// The kernels of 16-bit numbers against those of float32: what they read is exact in float32, so
// that sums are the same bits, but where a convolution's factors are bfloat16.

#ifdef MULTIPLIES_BFLOAT16
template <typename S>
constexpr bool kMultiplies = std::is_same_v<S, Bfloat16Bits>;
#else
template <typename S>
constexpr bool kMultiplies = false;
#endif

double Decode(Float16Bits half) {
  const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  const double size =
      exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return exponent == 31 ? HUGE_VAL : half.bits >> 15 ? -size : size;
}

double Decode(Bfloat16Bits half) {
  const int exponent = half.bits >> 7 & 255, fraction = half.bits & 127;
  const double size = std::ldexp(exponent ? 128 + fraction : fraction, std::max(exponent, 1) - 134);
  return exponent == 255 ? HUGE_VAL : half.bits >> 15 ? -size : size;
}

// Numbers of any size up to 4, the subnormal ones among them.
template <typename S>
std::vector<S> Halves(int64_t size) {
  constexpr bool kWide = std::is_same_v<S, Bfloat16Bits>;
  std::vector<S> out(size);
  for (S& each : out) {
    const int64_t exponent = Draw(0, 3) ? Draw(kWide ? 120 : 10, kWide ? 128 : 16) : Draw(0, 3);
    each.bits = Draw(0, 1) << 15 | exponent << (kWide ? 7 : 10) | Draw(0, kWide ? 127 : 1023);
  }
  return out;
}

template <typename S>
std::vector<float> Widened(const std::vector<S>& from) {
  std::vector<float> out;
  for (const S each : from) out.push_back(Decode(each));
  return out;
}

// Whether a number is the nearest one of its type, and of two that are as near the even one.
template <typename S>
bool IsRounded(S half, double exact) {
  const double error = std::abs(Decode(half) - exact);
  for (const int step : {-1, 1}) {
    const S other{static_cast<uint16_t>(half.bits + step)};
    const double distance = std::abs(Decode(other) - exact);
    if (distance < error || (distance == error && half.bits & 1)) return false;
  }
  return true;
}

template <typename S>
void TestHalves() {
  int threads = 2;
  const Pool pool{RunOnThreads, &threads};
  const auto& narrow = TfDeformKernels()->of<S>();
  const auto& wide = TfDeformKernels()->of<float>();

  SampleSizes y = {};
  y.rank = Draw(1, 3);
  for (int axis = 0; axis < y.rank; ++axis) y.space[axis] = Draw(1, 5);
  y.images = y.rows = Draw(1, 3), y.groups = Draw(1, 3), y.queries = Draw(1, 9);
  y.points = Draw(1, 4), y.channels = y.groups * Draw(1, 40);
  const auto values = Halves<S>(y.images * Product(y.space, y.rank) * y.channels);
  const auto all = Widened(values);
  std::vector<float> points(y.rows * y.queries * y.groups * y.points * y.rank);
  for (float& each : points) each = Coordinate<float>(3, true);
  const auto upstream = Normal<float>(y.rows * y.queries * y.channels);
  std::vector<float> out[2], to_values[2], to_points[2];
  for (int i = 0; i < 2; ++i) {
    out[i].resize(upstream.size()), to_values[i].resize(all.size());
    to_points[i].resize(points.size());
  }
  narrow.sample(pool, y, values.data(), points.data(), nullptr, nullptr, out[0].data());
  wide.sample(pool, y, all.data(), points.data(), nullptr, nullptr, out[1].data());
  narrow.sample_grad_values(pool, y, points.data(), nullptr, nullptr, upstream.data(),
                            to_values[0].data());
  wide.sample_grad_values(pool, y, points.data(), nullptr, nullptr, upstream.data(),
                          to_values[1].data());
  narrow.sample_grad_points(pool, y, values.data(), points.data(), nullptr, nullptr,
                            upstream.data(), to_points[0].data(), nullptr);
  wide.sample_grad_points(pool, y, all.data(), points.data(), nullptr, nullptr, upstream.data(),
                          to_points[1].data(), nullptr);
  Report(
      Same(out[0], out[1]) && Same(to_values[0], to_values[1]) && Same(to_points[0], to_points[1]),
      "halves: sample as in float32", 0);

  ConvSizes z;
  DrawSizes(false, &z);
  const int64_t pixels = z.batch * Product(z.output, z.rank), taps = Product(z.kernel, z.rank);
  const auto inputs = Halves<S>(z.batch * Product(z.space, z.rank) * z.channels);
  const auto kernel = Halves<S>(taps * z.channels / z.groups * z.filters);
  const auto gradient = Halves<S>(pixels * z.filters);
  const auto wide_inputs = Widened(inputs), wide_kernel = Widened(kernel);
  const auto wide_gradient = Widened(gradient);
  std::vector<float> offset(pixels * z.deformable_groups * taps * z.rank);
  for (float& each : offset) each = Coordinate<float>(2, true);
  std::vector<S> rounded(pixels * z.filters);
  std::vector<float> exact(pixels * z.filters), to[2][3];
  for (int i = 0; i < 2; ++i) {
    to[i][0].resize(inputs.size()), to[i][1].resize(kernel.size()), to[i][2].resize(offset.size());
  }
  narrow.conv(pool, z, inputs.data(), kernel.data(), offset.data(), nullptr, rounded.data());
  wide.conv(pool, z, wide_inputs.data(), wide_kernel.data(), offset.data(), nullptr, exact.data());
  narrow.conv_grad(pool, z, inputs.data(), kernel.data(), offset.data(), nullptr, gradient.data(),
                   to[0][0].data(), to[0][1].data(), to[0][2].data(), nullptr);
  wide.conv_grad(pool, z, wide_inputs.data(), wide_kernel.data(), offset.data(), nullptr,
                 wide_gradient.data(), to[1][0].data(), to[1][1].data(), to[1][2].data(), nullptr);
  const bool even_channels = z.channels / z.groups % 2 == 0;
  const bool even_filters = z.filters / z.groups % 2 == 0;
  for (size_t i = 0; i < exact.size() && !(kMultiplies<S> && even_channels); ++i) {
    if (IsRounded(rounded[i], exact[i])) continue;
    Report(false, "halves: conv rounded once", exact[i]);
    break;
  }
  Report((kMultiplies<S> && even_filters) ||
             (Same(to[0][0], to[1][0]) && Same(to[0][1], to[1][1]) && Same(to[0][2], to[1][2])),
         "halves: gradients of conv as in float32", 0);
}

// Whether each number differs from what it should be by at most so much of the sum of its terms'
// magnitudes, and so much of itself. What is below the normal numbers of float32 may count as 0.
template <typename T>
void Near(const char* what, const std::vector<T>& actual, const std::vector<double>& expected,
          const std::vector<double>& terms, double of_terms, double of_itself = 0,
          double absolute = 1e-30) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (error <= of_terms * terms[i] + of_itself * std::abs(expected[i]) + absolute) continue;
    return Report(false, what, error / terms[i]);
  }
}

// The results of a convolution: out, and gradients to inputs, kernel, offset and mask.
template <typename W, typename S, typename Call>
std::vector<std::vector<W>> Results(const ConvSizes& z, const std::vector<S>& inputs,
                                    const std::vector<S>& kernel, const std::vector<W>& offset,
                                    const std::vector<W>& mask, const std::vector<S>& upstream,
                                    int threads, Call&& out) {
  const Pool pool{RunOnThreads, &threads};
  const auto& kernels = TfDeformKernels()->of<S>();
  std::vector<std::vector<W>> to(5);
  const size_t sizes[] = {upstream.size(), inputs.size(), kernel.size(), offset.size(),
                          mask.size()};
  for (int i = 0; i < 5; ++i) to[i].resize(sizes[i]);
  std::vector<S> given(upstream.size());
  kernels.conv(pool, z, inputs.data(), kernel.data(), offset.data(), mask.data(), given.data());
  for (size_t i = 0; i < given.size(); ++i) to[0][i] = out(given[i]);
  kernels.conv_grad(pool, z, inputs.data(), kernel.data(), offset.data(), mask.data(),
                    upstream.data(), to[1].data(), to[2].data(), to[3].data(), to[4].data());
  return to;
}

// The convolution of 16-bit numbers against float64, at positions that are exact in float32. Where
// bfloat16 is multiplied, samples are rounded once; sums are float32 everywhere.
template <typename S>
void TestHalvesOfConv() {
  ConvSizes z;
  DrawSizes(false, &z);
  const int64_t pixels = z.batch * Product(z.output, z.rank), taps = Product(z.kernel, z.rank);
  const auto inputs = Halves<S>(z.batch * Product(z.space, z.rank) * z.channels);
  const auto kernel = Halves<S>(taps * z.channels / z.groups * z.filters);
  const auto upstream = Halves<S>(pixels * z.filters);
  std::vector<float> offset(pixels * z.deformable_groups * taps * z.rank);
  for (float& each : offset) each = Draw(-160, 160) / 64.0f;
  const auto mask = Normal<float>(pixels * z.deformable_groups * taps);

  const auto decode = [](S each) { return static_cast<float>(Decode(each)); };
  const auto found = Results<float>(z, inputs, kernel, offset, mask, upstream, 1, decode);
  const auto wide = [](const auto& from, bool magnitudes) {
    std::vector<double> out;
    for (const auto each : from) {
      double value;
      if constexpr (std::is_same_v<decltype(each), const float>) {
        value = each;
      } else {
        value = Decode(each);
      }
      out.push_back(magnitudes ? std::abs(value) : value);
    }
    return out;
  };
  std::vector<std::vector<double>> exact[2];  // and of the magnitudes
  for (const bool size : {false, true}) {
    exact[size] = Results<double>(z, wide(inputs, size), wide(kernel, size), wide(offset, false),
                                  wide(mask, size), wide(upstream, size), 1,
                                  [](double each) { return each; });
  }
  double largest = 0;
  for (const double each : exact[0][3]) largest = std::max(largest, std::abs(each));
  exact[1][3].assign(offset.size(), largest);  // slopes have both signs
  constexpr bool kWide = std::is_same_v<S, Bfloat16Bits>;
  const double half = kWide ? 0x1p-8 : 0x1p-11;
  const double sample = 1e-5 + (kMultiplies<S> ? half : 0);
  Near("halves: conv", found[0], exact[0][0], exact[1][0], sample, half, kWide ? 1e-30 : 0x1p-25);
  Near("halves: conv, gradient to inputs", found[1], exact[0][1], exact[1][1], 1e-5);
  Near("halves: conv, gradient to kernel", found[2], exact[0][2], exact[1][2], sample);
  Near("halves: conv, gradient to offset", found[3], exact[0][3], exact[1][3], 1e-5);
  Near("halves: conv, gradient to mask", found[4], exact[0][4], exact[1][4], 1e-5);
  for (int threads = 2; threads <= 5; ++threads) {
    const auto again = Results<float>(z, inputs, kernel, offset, mask, upstream, threads, decode);
    for (int i = 0; i < 5; ++i) {
      Report(Same(found[i], again[i]), "halves: conv, same bits on any number of threads", threads);
    }
  }
}

// Sums that cancel: each channel is there twice, with opposite signs in the kernel. What is left is
// what float32 rounded away, of which rounding to 16 bits does not hide how sums were cut.
template <typename S>
void TestCancelling() {
  constexpr int64_t kSize = 24, kPoints = kSize * kSize, kTaps = 9, kHalf = 64, kFilters = 17;
  ConvSizes z = {};
  z.rank = 2, z.channels = 2 * kHalf, z.filters = kFilters;
  z.batch = z.groups = z.deformable_groups = 1;
  for (int axis = 0; axis < 2; ++axis) {
    z.space[axis] = z.output[axis] = kSize, z.kernel[axis] = 3;
    z.strides[axis] = z.dilations[axis] = z.before[axis] = 1;
  }
  const auto large = [] {  // 8 to 128: what is left is a normal number of 16 bits
    constexpr bool kWide = std::is_same_v<S, Bfloat16Bits>;
    const int64_t exponent = Draw(3, 6) + (kWide ? 127 : 15);
    return S{static_cast<uint16_t>(exponent << (kWide ? 7 : 10) | Draw(0, kWide ? 127 : 1023))};
  };
  std::vector<S> inputs(kPoints * 2 * kHalf), kernel(kTaps * 2 * kHalf * kFilters);
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = i / kHalf % 2 ? inputs[i - kHalf] : large();
  }
  for (size_t i = 0; i < kernel.size(); ++i) {
    kernel[i] = large();
    if (i / kFilters / kHalf % 2) kernel[i].bits = kernel[i - kHalf * kFilters].bits | 1 << 15;
  }
  const auto offset = Normal<float>(kPoints * kTaps * 2), mask = Normal<float>(kPoints * kTaps);
  std::vector<S> out(kPoints * kFilters), first;
  for (int threads = 1; threads <= 5; ++threads) {
    const Pool pool{RunOnThreads, &threads};
    TfDeformKernels()->of<S>().conv(pool, z, inputs.data(), kernel.data(), offset.data(),
                                    mask.data(), out.data());
    if (threads == 1) first = out;
    Report(!std::memcmp(out.data(), first.data(), out.size() * sizeof(S)),
           "halves: same bits of sums that cancel", threads);
  }
  const int64_t zeros = std::count_if(out.begin(), out.end(), [](S each) { return !each.bits; });
  Report(2 * zeros < kPoints * kFilters, "halves: sums cancel, but for what is rounded", zeros);
}

// Sums that lie in the middle of two numbers are rounded to the even one: 1 and a half of what
// follows it, and the next number and as much.
template <typename S>
void TestTies() {
  constexpr bool kWide = std::is_same_v<S, Bfloat16Bits>;
  const uint16_t one = kWide ? 127 << 7 : 15 << 10, step = kWide ? 7 : 10;
  const uint16_t half = one - ((step + 1) << step);
  int threads = 1;
  const Pool pool{RunOnThreads, &threads};
  ConvSizes z = {};
  z.rank = 1, z.batch = 2, z.space[0] = z.output[0] = z.kernel[0] = 1, z.channels = 2,
  z.filters = 1;
  z.strides[0] = z.dilations[0] = z.groups = z.deformable_groups = 1;
  const S inputs[] = {{one}, {half}, {static_cast<uint16_t>(one + 1)}, {half}};
  const S kernel[] = {{one}, {one}};
  const float offset[2] = {};
  S out[2];
  TfDeformKernels()->of<S>().conv(pool, z, inputs, kernel, offset, nullptr, out);
  Report(out[0].bits == one && out[1].bits == one + 2, "halves: ties to even", out[0].bits - one);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  TestTies<Float16Bits>();
  TestTies<Bfloat16Bits>();
  TestCancelling<Float16Bits>(), TestCancelling<Bfloat16Bits>();
  TestErrorsOfBlocks();
  TestBlocks();
  TestMemory<float>(), TestMemory<Float16Bits>(), TestMemory<Bfloat16Bits>();
  TestEmpty<double>(), TestEmpty<Bfloat16Bits>();
  TestBuffers<float>(), TestBuffers<double>(), TestBuffers<Bfloat16Bits>();
  for (int round = 0; round < rounds; ++round) {
    const bool hostile = round % 2;
    TestSample<float>(hostile);
    TestSample<double>(hostile);
    TestConv<float>(hostile);
    TestConv<double>(hostile);
    TestHalves<Float16Bits>();
    TestHalves<Bfloat16Bits>();
    TestHalvesOfConv<Float16Bits>();
    TestHalvesOfConv<Bfloat16Bits>();
  }
  std::printf("%d rounds, %d failures\n", rounds, failures);
  return failures > 0;
}
