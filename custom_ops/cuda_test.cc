// Runs the CUDA kernels on the CPU's emulation of a GPU, over random sizes and hostile coordinates,
// and compares them with the CPU's kernels, which kernel_test compares with loops.
//
// cuda_test <a library of CPU kernels> [rounds]

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "emulated_kernels.h"

namespace {

using tf_deform::Bfloat16;
using tf_deform::ConvSizes;
using tf_deform::CudaCall;
using tf_deform::CudaKernels;
using tf_deform::CudaType;
using tf_deform::Half;
using tf_deform::Pool;
using tf_deform::SampleSizes;
using tf_deform::Wide;

int failures = 0;
std::mt19937 rng(0);
const tf_deform::Kernels* cpu = nullptr;
const CudaKernels* gpu = nullptr;

int64_t Draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

int64_t Product(const int64_t* sizes, int rank) {
  int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= sizes[axis];
  return product;
}

template <typename T>
constexpr CudaType TypeOf() {
  if (std::is_same_v<T, double>) return CudaType::kFloat64;
  if (std::is_same_v<T, Half>) return CudaType::kFloat16;
  return std::is_same_v<T, Bfloat16> ? CudaType::kBfloat16 : CudaType::kFloat32;
}

// Memory of exactly the size, so that AddressSanitizer sees what is beyond; at times at an odd
// place.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t size) : shift_(Draw(0, 3) == 0), size_(size) {
    all_.reserve(std::max<int64_t>(1, size + shift_));  // never null
    all_.resize(size + shift_);
    for (T& each : all_) tf_deform::Narrow(std::numeric_limits<Wide<T>>::quiet_NaN(), &each);
  }
  explicit Memory(const std::vector<Wide<T>>& from) : Memory(static_cast<int64_t>(from.size())) {
    for (int64_t i = 0; i < size_; ++i) tf_deform::Narrow(from[i], get() + i);
  }
  T* get() { return all_.data() + shift_; }
  // Null where an argument that may be missing has no values.
  T* get_or_null() { return size_ ? get() : nullptr; }
  std::vector<Wide<T>> values() {
    std::vector<Wide<T>> out(size_);
    for (int64_t i = 0; i < size_; ++i) out[i] = tf_deform::Widen(get()[i]);
    return out;
  }

 private:
  int64_t shift_, size_;
  std::vector<T> all_;
};

// Normal values that T can hold, at times one NaN among them.
template <typename T>
std::vector<Wide<T>> Values(int64_t size, bool hostile = false) {
  std::normal_distribution<double> normal;
  std::vector<Wide<T>> out(size);
  for (auto& each : out) {
    T narrow;
    tf_deform::Narrow(static_cast<Wide<T>>(normal(rng)), &narrow);
    each = tf_deform::Widen(narrow);
  }
  if (hostile && size > 0 && Draw(0, 1)) out[Draw(0, size - 1)] = NAN;
  return out;
}

// Weights, at times hostile.
template <typename W>
std::vector<W> Weights(int64_t size, bool hostile) {
  constexpr W kHostile[] = {std::numeric_limits<W>::quiet_NaN(), std::numeric_limits<W>::infinity(),
                            -std::numeric_limits<W>::infinity()};
  std::vector<W> out = Values<W>(size);
  for (W& each : out) {
    if (hostile && Draw(0, 19) == 0) each = kHostile[Draw(0, 2)];
  }
  return out;
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
                        T(0),
                        static_cast<T>(size),
                        static_cast<T>(size - 1),
                        std::nextafter(static_cast<T>(size), T(0)),
                        std::nextafter(T(-1), T(0)),
                        T(-0.0)};
  if (hostile && Draw(0, 2) == 0) return kHostile[Draw(0, std::size(kHostile) - 1)];
  return static_cast<T>(Draw(-2, size)) + std::uniform_real_distribution<T>(T(0.1), T(0.9))(rng);
}

// Compares to `error` times the largest magnitude; what is not finite must meet its like: in another
// order, sums of infinities may be NaN.
template <typename T>
void Close(const char* what, const std::vector<T>& actual, const std::vector<T>& expected,
           double error) {
  double largest = 1, worst = 0;
  for (T each : expected) {
    if (std::isfinite(each)) largest = std::max(largest, std::abs(double(each)));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(actual[i]) && !std::isfinite(expected[i])) continue;
    const double difference = std::abs(double(actual[i]) - double(expected[i]));
    if (!(difference <= worst)) worst = difference;
    if (!std::isfinite(worst)) break;
  }
  if (worst <= error * largest) return;
  ++failures;
  std::printf("FAILED: %s, error %g of %g\n", what, worst, largest);
}

template <typename T>
double SumError() {
  return sizeof(Wide<T>) == 8 ? 1e-12 : 1e-5;
}

// Of sums whose terms are rounded to T.
template <typename T>
double RoundedError() {
  if (sizeof(T) > 2) return SumError<T>();
  return std::is_same_v<T, Half> ? 2e-3 : 1.6e-2;
}

void Check(const char* error) {
  if (!error) return;
  ++failures;
  std::printf("FAILED: %s\n", error);
}

const Pool kOneThread = {[](void*, int64_t count, int64_t, void (*work)(void*, int64_t, int64_t),
                            void* data) { work(data, 0, count); },
                         nullptr};

// Channels of which vectors can be read, and others.
int64_t DrawChannels() { return Draw(0, 1) ? 8 * Draw(1, 10) : Draw(1, 40); }

template <typename T>
void TestSample(bool hostile) {
  using W = Wide<T>;
  SampleSizes z = {};
  z.rank = Draw(1, 3);
  z.units = static_cast<tf_deform::Units>(Draw(0, 2));
  for (int axis = 0; axis < z.rank; ++axis) z.space[axis] = Draw(hostile ? 0 : 1, 5);
  z.images = Draw(1, 3);
  z.groups = Draw(1, 3);
  z.channels = z.groups * DrawChannels();
  const bool indexed = Draw(0, 1);
  z.rows = indexed ? Draw(0, 5) : z.images;
  z.queries = Draw(0, 12);
  z.points = Draw(0, 3) ? Draw(0, 3) : Draw(20, 280);
  std::vector<int64_t> index(indexed ? z.rows : 0);
  for (int64_t& each : index) each = Draw(0, z.images - 1);
  const int64_t image = Product(z.space, z.rank) * z.channels;
  const int64_t count = z.rows * z.queries * z.groups * z.points;
  const auto values = Values<T>(z.images * image, hostile);
  const auto weights = Weights<W>(Draw(0, 1) ? count : 0, hostile);
  const auto upstream = Values<W>(z.rows * z.queries * z.channels, hostile);
  std::vector<W> points(count * z.rank);
  for (size_t i = 0; i < points.size(); ++i) {
    points[i] = Coordinate<W>(z.space[i % z.rank], hostile);
  }

  const auto& kernels = cpu->of<W>();
  const W* weights_or_null = weights.empty() ? nullptr : weights.data();
  const int64_t* index_or_null = indexed ? index.data() : nullptr;
  std::vector<W> out(upstream.size()), to_values(values.size()), to_points(points.size()),
      to_weights(weights.size());
  kernels.sample(kOneThread, z, values.data(), points.data(), weights_or_null, index_or_null,
                 out.data());
  kernels.sample_grad_values(kOneThread, z, points.data(), weights_or_null, index_or_null,
                             upstream.data(), to_values.data());
  kernels.sample_grad_points(kOneThread, z, values.data(), points.data(), weights_or_null,
                             index_or_null, upstream.data(), to_points.data(),
                             weights.empty() ? nullptr : to_weights.data());

  const CudaCall call = {nullptr, TypeOf<T>(), 0, 0};
  Memory<T> gpu_values(values);
  Memory<W> gpu_points(points), gpu_weights(weights), gpu_upstream(upstream), gpu_out(out.size()),
      gpu_to_values(values.size()), gpu_to_points(points.size()), gpu_to_weights(weights.size());
  Check(gpu->sample(call, z, gpu_values.get(), gpu_points.get(), gpu_weights.get_or_null(),
                    index_or_null, gpu_out.get()));
  Check(gpu->sample_grad_values(call, z, gpu_points.get(), gpu_weights.get_or_null(), index_or_null,
                                gpu_upstream.get(), gpu_to_values.get()));
  Check(gpu->sample_grad_points(call, z, gpu_values.get(), gpu_points.get(),
                                gpu_weights.get_or_null(), index_or_null, gpu_upstream.get(),
                                gpu_to_points.get(), gpu_to_weights.get_or_null()));
  Close("sample", gpu_out.values(), out, SumError<T>());
  // Sums of up to thousands of terms, in another order.
  Close("sample, gradient to values", gpu_to_values.values(), to_values, 5 * SumError<T>());
  Close("sample, gradient to points", gpu_to_points.values(), to_points, SumError<T>());
  Close("sample, gradient to weights", gpu_to_weights.values(), to_weights, SumError<T>());
}

// Small, as each multiplication takes as long as a thousand. Groups and deformable groups need not
// fit each other: the channels are a multiple of both, and often of a vector.
ConvSizes DrawConv(bool hostile) {
  const bool many_filters = Draw(0, 4) == 0;
  ConvSizes z = {};
  z.rank = Draw(1, 3);
  for (int axis = 0; axis < z.rank; ++axis) {
    z.space[axis] = Draw(hostile ? 0 : 1, 6);
    z.output[axis] = Draw(hostile ? 0 : 1, z.rank == 1 ? 90 : z.rank == 2 ? 9 : 4);
    z.kernel[axis] = many_filters ? 1 : Draw(1, z.rank == 1 ? 4 : 2);
    z.strides[axis] = Draw(1, 2);
    z.dilations[axis] = Draw(1, 2);
    z.before[axis] = Draw(0, 2);
  }
  z.batch = Draw(hostile ? 0 : 1, 2);
  z.deformable_groups = Draw(1, 3);
  z.groups = many_filters || Draw(0, 1) ? 1 : Draw(2, 3);
  z.channels = z.deformable_groups * z.groups * (Draw(0, 1) ? 8 * Draw(1, 3) : Draw(1, 20));
  if (Draw(0, 5) == 0) z.channels += z.deformable_groups * z.groups * 64;
  z.filters = z.groups * (many_filters ? Draw(65, 280) : Draw(0, 1) ? 8 * Draw(1, 4) : Draw(1, 20));
  return z;
}

// Sizes with 16 bytes of channels, the last of which end the inputs.
template <typename T>
ConvSizes SmallestVectors() {
  ConvSizes z = {};
  z.rank = 2;
  for (int axis = 0; axis < 2; ++axis) {
    z.space[axis] = 2, z.output[axis] = 4;
    z.kernel[axis] = z.strides[axis] = z.dilations[axis] = 1;
  }
  z.batch = z.deformable_groups = z.groups = 1;
  z.channels = z.filters = tf_deform::kLanes<T>;
  return z;
}

template <typename T>
void TestConv(const ConvSizes& z, bool hostile) {
  using W = Wide<T>;
  const int64_t points = z.batch * Product(z.output, z.rank), taps = Product(z.kernel, z.rank);
  const auto inputs = Values<T>(z.batch * Product(z.space, z.rank) * z.channels, hostile);
  const auto kernel = Values<T>(taps * z.channels / z.groups * z.filters);
  const auto mask = Weights<W>(Draw(0, 1) ? points * z.deformable_groups * taps : 0, hostile);
  const auto upstream = Values<T>(points * z.filters, hostile);
  std::vector<W> offset(points * z.deformable_groups * taps * z.rank);
  for (size_t i = 0; i < offset.size(); ++i) {
    offset[i] = Coordinate<W>(z.space[i % z.rank] / 2, hostile);
  }

  const auto& kernels = cpu->of<W>();
  const W* mask_or_null = mask.empty() ? nullptr : mask.data();
  std::vector<W> out(upstream.size()), to_inputs(inputs.size()), to_kernel(kernel.size()),
      to_offset(offset.size()), to_mask(mask.size());
  kernels.conv(kOneThread, z, inputs.data(), kernel.data(), offset.data(), mask_or_null,
               out.data());
  kernels.conv_grad(kOneThread, z, inputs.data(), kernel.data(), offset.data(), mask_or_null,
                    upstream.data(), to_inputs.data(), to_kernel.data(), to_offset.data(),
                    mask.empty() ? nullptr : to_mask.data());

  const CudaCall call = {nullptr, TypeOf<T>(), static_cast<int>(Draw(0, 1)), 0};
  Memory<T> gpu_inputs(inputs), gpu_kernel(kernel), gpu_upstream(upstream), gpu_out(out.size());
  Memory<W> gpu_offset(offset), gpu_mask(mask), gpu_to_inputs(inputs.size()),
      gpu_to_kernel(kernel.size()), gpu_to_offset(offset.size()), gpu_to_mask(mask.size());
  Check(gpu->conv(call, z, gpu_inputs.get(), gpu_kernel.get(), gpu_offset.get(),
                  gpu_mask.get_or_null(), gpu_out.get()));
  Check(gpu->conv_grad(call, z, gpu_inputs.get(), gpu_kernel.get(), gpu_offset.get(),
                       gpu_mask.get_or_null(), gpu_upstream.get(), gpu_to_inputs.get(),
                       gpu_to_kernel.get(), gpu_to_offset.get(), gpu_to_mask.get_or_null()));
  Close("conv", gpu_out.values(), out, RoundedError<T>());
  Close("conv, gradient to inputs", gpu_to_inputs.values(), to_inputs, SumError<T>());
  Close("conv, gradient to kernel", gpu_to_kernel.values(), to_kernel, RoundedError<T>());
  Close("conv, gradient to offset", gpu_to_offset.values(), to_offset, SumError<T>());
  Close("conv, gradient to mask", gpu_to_mask.values(), to_mask, SumError<T>());
}

// Rows of images that do not exist are 0, and give no gradients, whatever their weights are.
void TestForeignImages() {
  SampleSizes z = {};
  z.rank = 1, z.images = 1, z.space[0] = 3, z.channels = 2, z.rows = 3;
  z.queries = z.groups = z.points = 1;
  const int64_t index[] = {-1, 0, 1};
  float values[] = {1, 2, 3, 4, 5, 6}, points[] = {1, 1, 1}, out[6],
        upstream[] = {1, 1, 1, 1, 1, 1};
  const float weights[] = {NAN, 1, INFINITY};
  float to_values[6], to_points[3], to_weights[3];
  const CudaCall call = {nullptr, CudaType::kFloat32, 0, 0};
  Check(gpu->sample(call, z, values, points, weights, index, out));
  Check(gpu->sample_grad_values(call, z, points, weights, index, upstream, to_values));
  Check(gpu->sample_grad_points(call, z, values, points, weights, index, upstream, to_points,
                                to_weights));
  const auto list = [](const float* from, int size) {
    return std::vector<float>(from, from + size);
  };
  Close("foreign images", list(out, 6), {0, 0, 3, 4, 0, 0}, 0);
  Close("foreign images, gradient to values", list(to_values, 6), {0, 0, 1, 1, 0, 0}, 0);
  Close("foreign images, gradient to points", list(to_points, 3), {0, 4, 0}, 0);
  Close("foreign images, gradient to weights", list(to_weights, 3), {0, 7, 0}, 0);
}

void TestDeterminismIsRefused() {
  const CudaCall call = {nullptr, CudaType::kFloat32, 0, 1};
  const char* const errors[] = {
      gpu->sample_grad_values(call, {}, nullptr, nullptr, nullptr, nullptr, nullptr),
      gpu->conv_grad(call, {}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                     nullptr, nullptr)};
  for (const char* error : errors) {
    if (!error) Check("gradients in no fixed order are not refused");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what failed is said even if a sanitizer aborts
  void* const library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  void* const table = library ? dlsym(library, "TfDeformKernels") : nullptr;
  if (!table) {
    std::printf("usage: cuda_test <a library of CPU kernels> [rounds]: %s\n", dlerror());
    return 2;
  }
  cpu = reinterpret_cast<const tf_deform::Kernels* (*)()>(table)();
  gpu = TfDeformCudaKernels();
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20;
  TestForeignImages();
  TestDeterminismIsRefused();
  for (int round = 0; round < rounds; ++round) {
    const bool hostile = round % 2;
    TestSample<float>(hostile), TestSample<double>(hostile);
    TestSample<Half>(hostile), TestSample<Bfloat16>(hostile);
    TestConv<float>(DrawConv(hostile), hostile), TestConv<double>(DrawConv(hostile), hostile);
    TestConv<Half>(DrawConv(hostile), hostile), TestConv<Bfloat16>(DrawConv(hostile), hostile);
    TestConv<float>(SmallestVectors<float>(), hostile);
    TestConv<double>(SmallestVectors<double>(), hostile);
    TestConv<Half>(SmallestVectors<Half>(), hostile);
  }
  std::printf("%d rounds, %d failures\n", rounds, failures);
  return failures > 0;
}
