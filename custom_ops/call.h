// A call of one of the ops, whoever makes it: TensorFlow's kernels and XLA's check it and run it here.

#ifndef TF_DEFORM_CALL_H_
#define TF_DEFORM_CALL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "errors.h"
#include "kernels.h"

namespace tf_deform {

enum class Op : int64_t { kSample, kSampleGradValues, kSampleGradPoints, kConv, kConvGrad };
enum class Type { kFloat32, kFloat64, kFloat16, kBfloat16 };
using Shape = std::vector<int64_t>;

constexpr bool IsConv(Op op) { return op == Op::kConv || op == Op::kConvGrad; }

struct Call {
  Op op;
  Type type;  // of values, or of inputs and kernel; the rest is float32, or float64 if it is that
  std::vector<Shape> inputs;  // of the op, in its order, but for a convolution's `before`
  int64_t weight_count = 0;   // 1 if weights (of a convolution: a mask) are given
  int64_t index_count = 0;    // 1 if image_index is given
  Units units = Units::kPixels;                     // of a sample's points
  std::vector<int64_t> strides, dilations, before;  // of a convolution: for each axis

  // Which of the op's inputs `before` is, -1 if none.
  int64_t before_input() const { return IsConv(op) ? 3 + weight_count : -1; }
};

// What follows from a call. Inputs and outputs are dense arrays in the op's order.
struct Plan {
  std::string error;  // "" if the call is well formed: then the kernels read within the inputs,
                      // once CheckIndex has found nothing either
  std::vector<Shape> outputs;
  int64_t image_index = -1, rows = 0, images = 0;  // which input it is, its size, and its limit
  std::function<Error(const Kernels& kernels, const Pool& pool, const void* const* inputs,
                      void* const* outputs)>
      run;  // throws nothing
};

// May throw, as what follows may: there may be no memory for a plan.
Plan MakePlan(const Call& call);

// Returns what is wrong with the values of image_index, or "".
std::string CheckIndex(const Plan& plan, const void* const* inputs);

// Where this library lies, with a "/" at the end; the libraries of kernels lie there too.
std::string FolderOfLibrary();

// The kernels of the best instruction set that the processor has; null with an error if there are
// none. They lie in libraries of their own beside this one, loaded once.
const Kernels* LoadKernels(std::string* error);

}  // namespace tf_deform

#endif  // TF_DEFORM_CALL_H_
