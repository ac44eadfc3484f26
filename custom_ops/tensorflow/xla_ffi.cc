// Runs what xla.cc emitted: checks a call and runs it on XLA's threads, or its CUDA stream.
// XLA finds it by the name in xla.h.

#include <string>
#include <utility>
#include <vector>

#include "custom_ops/blocks.h"
#include "custom_ops/tensorflow/call.h"
#include "custom_ops/tensorflow/load_cpu.h"
#include "custom_ops/tensorflow/load_cuda.h"
#include "custom_ops/tensorflow/xla.h"
#include "xla/ffi/api/ffi.h"

// TensorFlow's, which no header declares that could be included beside xla/ffi/api. All its wheels
// export it, while tensorflow-cpu's have no XLA_FFI_GetApi.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}  // namespace xla::ffi

namespace tf_deform {
namespace {

namespace ffi = xla::ffi;

// What xla.cc says of a call, and XLA does not know.
struct Attributes {
  int64_t op, weight_count, index_count, units;
  ffi::Span<const int64_t> strides, dilations, before;
};

}  // namespace
}  // namespace tf_deform

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(tf_deform::Attributes, StructMember<int64_t>("op"),
                                      StructMember<int64_t>("weight_count"),
                                      StructMember<int64_t>("index_count"),
                                      StructMember<int64_t>("units"),
                                      StructMember<Span<const int64_t>>("strides"),
                                      StructMember<Span<const int64_t>>("dilations"),
                                      StructMember<Span<const int64_t>>("before"));

namespace tf_deform {
namespace {

Pool ThreadsOf(ffi::ThreadPool* threads) {
  const auto run = [](void* context, int64_t count, int64_t cost,
                      void (*work)(void*, int64_t, int64_t), void* data) {
    auto* const pool = static_cast<ffi::ThreadPool*>(context);
    RunInBlocks(count, cost, pool->num_threads(), work, data,
                [pool](auto&& task) { pool->Schedule(std::move(task)); });
  };
  return {run, threads};
}

ffi::Error ErrorOf(const Error& error) {
  if (!error) return ffi::Error::Success();
  return error.kind == Error::kMemory ? ffi::Error(ffi::ErrorCode::kResourceExhausted, error.text)
                                      : ffi::Error::Internal(error.text);
}

// Calls run(), which may throw, for an error that XLA knows.
template <typename Run>
ffi::Error ErrorOfRun(Run&& run) {
  ffi::Error result = ffi::Error::Success();
  const Error thrown = Guarded([&] { result = run(); });
  return thrown ? ErrorOf(thrown) : std::move(result);
}

Type TypeOf(ffi::DataType type) {
  return type == ffi::F64    ? Type::kFloat64
         : type == ffi::F16  ? Type::kFloat16
         : type == ffi::BF16 ? Type::kBfloat16
                             : Type::kFloat32;
}

struct Given {
  Plan plan;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
};

// Returns what a call is given, checked but for the values of image_index. readable: the arguments
// are in the host's memory, and a convolution's `before` is one of them; else it is an attribute.
ffi::ErrorOr<Given> Read(const Attributes& attributes, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results, bool readable) {
  Call call;
  call.op = static_cast<Op>(attributes.op);
  call.weight_count = attributes.weight_count;
  call.index_count = attributes.index_count;
  call.units = static_cast<Units>(attributes.units);
  call.strides.assign(attributes.strides.begin(), attributes.strides.end());
  call.dilations.assign(attributes.dilations.begin(), attributes.dilations.end());
  call.before.assign(attributes.before.begin(), attributes.before.end());
  Given given;
  for (int64_t i = 0; i < static_cast<int64_t>(arguments.size()); ++i) {
    const auto input = arguments.get<ffi::AnyBuffer>(i);
    if (!input) return ffi::Unexpected(input.error());
    const auto sizes = input->dimensions();
    if (readable && i == call.before_input()) {
      const auto* values = static_cast<const int32_t*>(input->untyped_data());
      call.before.assign(values, values + input->element_count());
      continue;
    }
    if (i == 0) {
      call.type = TypeOf(input->element_type());
    }
    call.inputs.emplace_back(sizes.begin(), sizes.end());
    given.inputs.push_back(input->untyped_data());
  }
  for (size_t i = 0; i < results.size(); ++i) {
    auto output = results.get<ffi::AnyBuffer>(i);
    if (!output) return ffi::Unexpected(output.error());
    given.outputs.push_back((*output)->untyped_data());
  }
  given.plan = MakePlan(call);
  if (given.plan.error.empty()) return given;
  return ffi::Unexpected(ffi::Error::InvalidArgument(given.plan.error));
}

ffi::Error RunOnHost(ffi::ThreadPool threads, ffi::RemainingArgs arguments,
                     ffi::RemainingRets results, Attributes attributes) {
  return ErrorOfRun([&] {
    const auto given = Read(attributes, arguments, results, /*readable=*/true);
    if (!given) return given.error();
    std::string error;
    const Kernels* const kernels = LoadKernels(&error);
    if (!kernels) return ffi::Error(ffi::ErrorCode::kFailedPrecondition, error);
    error = CheckIndex(given->plan, given->inputs.data());
    if (!error.empty()) return ffi::Error::InvalidArgument(error);
    return ErrorOf(given->plan.run(*kernels, ThreadsOf(&threads), given->inputs.data(),
                                   given->outputs.data()));
  });
}

// Rows whose image_index is out of range are left 0, as by TensorFlow's kernels for a GPU.
ffi::Error RunOnGpu(void* stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                    Attributes attributes) {
  return ErrorOfRun([&] {
    const auto given = Read(attributes, arguments, results, /*readable=*/false);
    if (!given) return given.error();
    std::string error;
    const Kernels* const kernels = LoadGpuKernels(&error);
    if (!kernels) return ffi::Error(ffi::ErrorCode::kFailedPrecondition, error);
    GpuQueue queue(stream);
    return ErrorOf(given->plan.run(*kernels, queue.pool(), given->inputs.data(),
                                   given->outputs.data()));
  });
}

XLA_FFI_DEFINE_HANDLER(
    kRunOnHost, RunOnHost,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs<Attributes>());

XLA_FFI_DEFINE_HANDLER(kRunOnGpu, RunOnGpu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<void*>>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attrs<Attributes>());

// Tells XLA of a handler. Returns what went wrong, or "": the macro for it would drop the error.
std::string Register(const char* platform, XLA_FFI_Handler* handler) {
  const XLA_FFI_Api* const api = ffi::GetXlaFfiApi();
  XLA_FFI_Error* const failure =
      ffi::Ffi::RegisterStaticHandler(api, kXlaTarget, platform, handler);
  if (!failure) return "";
  const std::string text = ffi::internal::GetErrorMessage(api, failure);
  ffi::internal::DestroyError(api, failure);
  return text;
}

// As the library is loaded, where there is no GPU as well.
const std::string& host_error = *new std::string(Register("Host", kRunOnHost));
const std::string& gpu_error = *new std::string(Register("CUDA", kRunOnGpu));

}  // namespace
}  // namespace tf_deform

// Returns why XLA cannot run the ops on a CPU, or "".
extern "C" __attribute__((visibility("default"))) const char* TfDeformXlaError() {
  return tf_deform::host_error.c_str();
}

// Returns why XLA cannot run the ops on a GPU, even with the CUDA kernels, or "".
extern "C" __attribute__((visibility("default"))) const char* TfDeformXlaGpuError() {
  return tf_deform::gpu_error.c_str();
}

// Returns what XLA runs on a GPU, for a test to run where there is none.
extern "C" __attribute__((visibility("default"))) XLA_FFI_Handler* TfDeformXlaGpuHandler() {
  return tf_deform::kRunOnGpu;
}
