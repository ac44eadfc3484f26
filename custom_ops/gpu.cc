#include "gpu.h"

#include <dlfcn.h>

#include "call.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tensorflow/core/util/determinism.h"

namespace tf_deform {
namespace {

const CudaKernels* cuda = nullptr;

template <typename T>
constexpr CudaType TypeOf() {
  return std::is_same_v<T, double>        ? CudaType::kFloat64
         : std::is_same_v<T, Float16Bits>  ? CudaType::kFloat16
         : std::is_same_v<T, Bfloat16Bits> ? CudaType::kBfloat16
                                           : CudaType::kFloat32;
}

// Starts one of the CUDA kernels, with the arguments of the CPU's.
template <typename T, typename Kernel, typename... Arguments>
Error Start(Kernel CudaKernels::* kernel, const Pool& pool, const Arguments&... arguments) {
  auto* const queue = static_cast<GpuQueue*>(pool.context);
  queue->call.type = TypeOf<T>();
  const char* const reason = (cuda->*kernel)(queue->call, arguments...);
  return reason ? MakeError(Error::kOther, reason) : Error();
}

template <typename T>
TypedKernels<T> Typed() {
  TypedKernels<T> kernels;
  kernels.sample = [](const Pool& pool, const auto& sizes, auto... rest) {
    return Start<T>(&CudaKernels::sample, pool, sizes, rest...);
  };
  kernels.sample_grad_values = [](const Pool& pool, const auto& sizes, auto... rest) {
    return Start<T>(&CudaKernels::sample_grad_values, pool, sizes, rest...);
  };
  kernels.sample_grad_points = [](const Pool& pool, const auto& sizes, auto... rest) {
    return Start<T>(&CudaKernels::sample_grad_points, pool, sizes, rest...);
  };
  kernels.conv = [](const Pool& pool, const auto& sizes, auto... rest) {
    return Start<T>(&CudaKernels::conv, pool, sizes, rest...);
  };
  kernels.conv_grad = [](const Pool& pool, const auto& sizes, auto... rest) {
    return Start<T>(&CudaKernels::conv_grad, pool, sizes, rest...);
  };
  return kernels;
}

std::string Load() {
  const std::string name = FolderOfLibrary() + "tf_deform_kernels_cuda.so";
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* const table = library ? dlsym(library, "TfDeformCudaKernels") : nullptr;
  if (!table) return "the library has no CUDA kernels: run python -m tf_deform build --cuda";
  cuda = reinterpret_cast<const CudaKernels* (*)()>(table)();
  const char* const reason = cuda->unavailable();
  return reason ? reason : "";
}

const std::string& LoadOnce() {
  static const std::string* const error = new std::string(Load());
  return *error;
}

}  // namespace

GpuQueue::GpuQueue(void* stream) : call{} {
  call.stream = stream;
  call.tensor_float = tensorflow::tensor_float_32_execution_enabled();
  call.deterministic = tensorflow::OpDeterminismRequired();
}

const Kernels* LoadGpuKernels(std::string* error) {
  static const Kernels kernels = {Typed<float>(), Typed<double>(), Typed<Float16Bits>(),
                                  Typed<Bfloat16Bits>()};
  *error = LoadOnce();
  return error->empty() ? &kernels : nullptr;
}

}  // namespace tf_deform

// Returns why the ops have no kernels for a GPU, or "".
extern "C" __attribute__((visibility("default"))) const char* TfDeformCudaError() {
  const char* reason = "there is no memory to load the CUDA kernels";
  tf_deform::Guarded([&] { reason = tf_deform::LoadOnce().c_str(); });
  return reason;
}
