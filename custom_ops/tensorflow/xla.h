// The name by which XLA finds what runs the ops.
// For xla.cc and xla_ffi.cc.

#ifndef TF_DEFORM_CUSTOM_OPS_TENSORFLOW_XLA_H_
#define TF_DEFORM_CUSTOM_OPS_TENSORFLOW_XLA_H_

namespace tf_deform {

// The name under which the calls that xla.cc emits find what xla_ffi.cc runs.
constexpr char kXlaTarget[] = "tf_deform";

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_TENSORFLOW_XLA_H_
