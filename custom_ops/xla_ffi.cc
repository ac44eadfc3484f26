// Runs what xla.cc emitted: checks a call and runs its plan on XLA's threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "call.h"
#include "xla.h"
#include "xla/ffi/api/ffi.h"

// TensorFlow's, which no header declares that could be included beside xla/ffi/api.
extern "C" const XLA_FFI_Api* XLA_FFI_GetApi();

namespace tf_deform {
namespace {

namespace ffi = xla::ffi;

// Blocks of a loop, which threads take until none is left.
struct Blocks {
  int64_t count, size;
  void (*work)(void*, int64_t, int64_t);
  void* data;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  int64_t done = 0;  // items

  void Take() {
    for (;;) {
      const int64_t begin = next.fetch_add(size);
      if (begin >= count) return;
      const int64_t end = std::min(begin + size, count);
      work(data, begin, end);
      const std::lock_guard<std::mutex> lock(mutex);
      done += end - begin;
      if (done == count) all_done.notify_all();
    }
  }
};

// The caller takes blocks itself and waits only for those that others have begun: a pool whose
// threads are all busy cannot stop it. Whoever comes late finds no block and touches no data.
Pool ThreadsOf(ffi::ThreadPool* threads) {
  const auto run = [](void* context, int64_t count, int64_t cost,
                      void (*work)(void*, int64_t, int64_t), void* data) {
    auto* const threads = static_cast<ffi::ThreadPool*>(context);
    const auto blocks = std::make_shared<Blocks>();
    blocks->count = count;
    blocks->size = BlockSize(cost);
    blocks->work = work;
    blocks->data = data;
    const int64_t others =
        std::min(threads->num_threads(), (count + blocks->size - 1) / blocks->size) - 1;
    for (int64_t i = 0; i < others; ++i) threads->Schedule([blocks] { blocks->Take(); });
    blocks->Take();
    std::unique_lock<std::mutex> lock(blocks->mutex);
    blocks->all_done.wait(lock, [&] { return blocks->done == count; });
  };
  return {run, threads};
}

Type TypeOf(ffi::DataType type) {
  return type == ffi::F64    ? Type::kFloat64
         : type == ffi::F16  ? Type::kFloat16
         : type == ffi::BF16 ? Type::kBfloat16
                             : Type::kFloat32;
}

ffi::Error RunCall(ffi::ThreadPool threads, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   int64_t op, int64_t weight_count, int64_t index_count, int64_t units,
                   ffi::Span<const int64_t> strides, ffi::Span<const int64_t> dilations) {
  Call call;
  call.op = static_cast<Op>(op);
  call.weight_count = weight_count;
  call.index_count = index_count;
  call.units = static_cast<Units>(units);
  call.strides.assign(strides.begin(), strides.end());
  call.dilations.assign(dilations.begin(), dilations.end());
  std::vector<const void*> inputs;
  for (int64_t i = 0; i < static_cast<int64_t>(arguments.size()); ++i) {
    auto input = arguments.get<ffi::AnyBuffer>(i);
    if (!input.has_value()) return ffi::Error::Internal("an argument of tf_deform is no array");
    const auto sizes = input->dimensions();
    if (i == call.before_input()) {
      const auto* values = static_cast<const int32_t*>(input->untyped_data());
      call.before.assign(values, values + input->element_count());
      continue;
    }
    if (i == 0) {
      call.type = TypeOf(input->element_type());
    }
    call.inputs.emplace_back(sizes.begin(), sizes.end());
    inputs.push_back(input->untyped_data());
  }
  std::string error;
  const Kernels* const kernels = LoadKernels(&error);
  if (!kernels) return ffi::Error(ffi::ErrorCode::kFailedPrecondition, error);
  const Plan plan = MakePlan(call);
  error = plan.error.empty() ? CheckIndex(plan, inputs.data()) : plan.error;
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  std::vector<void*> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    auto output = results.get<ffi::AnyBuffer>(i);
    if (!output.has_value()) return ffi::Error::Internal("a result of tf_deform is no array");
    outputs.push_back((*output)->untyped_data());
  }
  plan.run(*kernels, ThreadsOf(&threads), inputs.data(), outputs.data());
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kRunCall, RunCall,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<int64_t>("op")
                           .Attr<int64_t>("weight_count")
                           .Attr<int64_t>("index_count")
                           .Attr<int64_t>("units")
                           .Attr<ffi::Span<const int64_t>>("strides")
                           .Attr<ffi::Span<const int64_t>>("dilations"));

// What went wrong when XLA was told of the target, or "". The macro for it would drop the error.
const std::string& RegistrationError() {
  static const std::string* const error = [] {
    const XLA_FFI_Api* const api = XLA_FFI_GetApi();
    XLA_FFI_Error* const failure =
        ffi::Ffi::RegisterStaticHandler(api, kXlaTarget, "Host", kRunCall);
    auto* const text = new std::string;
    if (failure) {
      *text = ffi::internal::GetErrorMessage(api, failure);
      ffi::internal::DestroyError(api, failure);
    }
    return text;
  }();
  return *error;
}

const bool kRegistered = RegistrationError().empty();  // as the library is loaded

}  // namespace
}  // namespace tf_deform

// Returns why XLA cannot run the ops, or "".
extern "C" __attribute__((visibility("default"))) const char* TfDeformXlaError() {
  return tf_deform::kRegistered ? "" : tf_deform::RegistrationError().c_str();
}
