#ifndef TF_DEFORM_XLA_H_
#define TF_DEFORM_XLA_H_

namespace tf_deform {

// The name under which the calls that xla.cc emits find what xla_ffi.cc runs.
constexpr char kXlaTarget[] = "tf_deform";

}  // namespace tf_deform

#endif  // TF_DEFORM_XLA_H_
