// The ops' kernels for XLA's compiler, on the CPU: they emit a call, which xla_ffi.cc runs.

#include "xla.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attributes.h"
#include "call.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

namespace tf_deform {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernelContext;

std::string Array(const char* name, const std::vector<int64_t>& values) {
  return absl::StrCat(name, " = array<i64", values.empty() ? "" : ": ", absl::StrJoin(values, ", "),
                      ">");
}

std::string Attributes(const Call& call) {
  return absl::StrCat("{op = ", static_cast<int64_t>(call.op),
                      " : i64, weight_count = ", call.weight_count,
                      " : i64, index_count = ", call.index_count, " : i64, ",
                      Array("strides", call.strides), ", ", Array("dilations", call.dilations), "}");
}

template <Op kOp>
class XlaKernel : public tensorflow::XlaOpKernel {
 public:
  explicit XlaKernel(OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, kOp, &call_));
  }

  void Compile(XlaOpKernelContext* context) override {
    Call call = call_;
    call.type = context->input_type(0) == tensorflow::DT_DOUBLE ? Type::kFloat64 : Type::kFloat32;
    std::vector<xla::XlaOp> operands;
    std::vector<xla::Shape> shapes;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto sizes = context->InputShape(i).dim_sizes();
      const Shape shape(sizes.begin(), sizes.end());
      operands.push_back(context->Input(i));
      shapes.push_back(Dense(context->input_xla_type(i), shape));
      if (i != call.before_input()) {
        call.inputs.push_back(shape);
      } else if (shape.size() == 1) {
        call.before.resize(shape[0]);  // the values come when the program runs
      }
    }
    const Plan plan = MakePlan(call);
    OP_REQUIRES(context, plan.error.empty(), absl::InvalidArgumentError(plan.error));
    std::vector<xla::Shape> results;
    for (const Shape& sizes : plan.outputs) results.push_back(Dense(shapes[0].element_type(), sizes));
    const xla::XlaOp made = xla::CustomCallWithLayout(
        context->builder(), kXlaTarget, operands, xla::ShapeUtil::MakeTupleShape(results), shapes,
        Attributes(call), /*has_side_effect=*/false, /*output_operand_aliasing=*/{},
        /*literal=*/nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
        xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (size_t i = 0; i < results.size(); ++i) {
      context->SetOutput(i, xla::GetTupleElement(made, i));
    }
  }

 private:
  // A row-major array, as the kernels take it.
  static xla::Shape Dense(xla::PrimitiveType type, const Shape& sizes) {
    return xla::ShapeUtil::MakeShapeWithDescendingLayout(type, sizes);
  }

  Call call_;  // without shapes
};

// Not REGISTER_XLA_OP, which does nothing once anything ran before the library was loaded.
#define REGISTER(name, op)                                                            \
  REGISTER_KERNEL_BUILDER(Name("TfDeform>" name).Device("XLA_CPU_JIT"), XlaKernel<op>)
REGISTER("WeightedSample", Op::kSample);
REGISTER("WeightedSampleGradValues", Op::kSampleGradValues);
REGISTER("WeightedSampleGradPoints", Op::kSampleGradPoints);
REGISTER("DeformableConv", Op::kConv);
REGISTER("DeformableConvGrad", Op::kConvGrad);
#undef REGISTER

}  // namespace
}  // namespace tf_deform
