// The kernels for this processor, and where libraries of kernels lie.
// For this room.

#ifndef TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CPU_H_
#define TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CPU_H_

#include <string>

#include "custom_ops/kernels.h"

namespace tf_deform {

// Where this library lies, with a "/" at the end; the libraries of kernels lie there too.
std::string FolderOfLibrary();

// The kernels of the best instruction set that the processor has; null with an error if there are
// none. They lie in libraries of their own beside this one, loaded once.
const Kernels* LoadKernels(std::string* error);

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_TENSORFLOW_LOAD_CPU_H_
