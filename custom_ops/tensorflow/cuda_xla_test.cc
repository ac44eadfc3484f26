// The CUDA kernels, run on the CPU, for XLA: what it runs on a GPU is called there.
// Takes the place of the CUDA kernels' library in tests/cuda_test.py.
//
// The handler has another name, and a stream that is none.

#include "custom_ops/cuda/emulation/kernels.h"
#include "xla/ffi/api/c_api.h"

// TensorFlow's, as in xla_ffi.cc.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}  // namespace xla::ffi

namespace {

XLA_FFI_Handler* gpu_handler = nullptr;
int calls = 0;

XLA_FFI_Error* RunOnCpu(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start) return gpu_handler(frame);  // which asks for its version alone
  ++calls;
  XLA_FFI_Api api = *frame->api;
  api.XLA_FFI_Stream_Get = [](XLA_FFI_Stream_Get_Args* stream) -> XLA_FFI_Error* {
    stream->stream = &calls;
    return nullptr;
  };
  XLA_FFI_CallFrame own = *frame;
  own.api = &api;
  return gpu_handler(&own);
}

}  // namespace

extern "C" {

// Has XLA run the handler on the CPU as "emulated". Returns whether it agreed.
bool Emulate(XLA_FFI_Handler* handler) {
  gpu_handler = handler;
  XLA_FFI_Handler_Register_Args arguments = {};
  arguments.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  arguments.name = {"emulated", 8};
  arguments.platform = {"Host", 4};
  arguments.bundle.execute = RunOnCpu;
  return !xla::ffi::GetXlaFfiApi()->XLA_FFI_Handler_Register(&arguments);
}

int Calls() { return calls; }

}  // extern "C"
