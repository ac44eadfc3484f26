// The ops' kernels for XLA's compiler, on CPU and GPU: they emit a call, which xla_ffi.cc runs.
// TensorFlow finds them by op and device.

#include "custom_ops/tensorflow/xla.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "custom_ops/tensorflow/attributes.h"
#include "custom_ops/tensorflow/call.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

namespace tf_deform {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernelContext;

constexpr char kGpu[] = "XLA_GPU_JIT";  // the device for which XLA compiles

int64_t Rank(const xla::Shape& shape) { return shape.dimensions().size(); }

std::string Array(const char* name, const std::vector<int64_t>& values) {
  return absl::StrCat(name, " = array<i64", values.empty() ? "" : ": ", absl::StrJoin(values, ", "),
                      ">");
}

// before: of a convolution, where it is no operand.
std::string Attributes(const Call& call, const Shape& before) {
  return absl::StrCat(
      "{op = ", static_cast<int64_t>(call.op), " : i64, weight_count = ", call.weight_count,
      " : i64, index_count = ", call.index_count,
      " : i64, units = ", static_cast<int64_t>(call.units), " : i64, ",
      Array("strides", call.strides), ", ", Array("dilations", call.dilations), ", ",
      Array("before", before), "}");
}

// Where data decide a size, XLA reserves the most that there can be, but calls only what has fixed
// sizes. Returns the operand with the room that is not used filled: with `fill`.
xla::XlaOp Filled(xla::XlaOp operand, const xla::Shape& shape, float fill) {
  for (int64_t axis = 0; axis < Rank(shape); ++axis) {
    if (!shape.is_dynamic_dimension(axis)) continue;
    const xla::XlaOp size = xla::GetDimensionSize(operand, axis);
    const auto dimensions = shape.dimensions();
    const xla::XlaOp index = xla::Iota(
        operand.builder(), xla::ShapeUtil::MakeShape(xla::S32, dimensions), axis);
    operand = xla::RemoveDynamicDimension(operand, axis);
    const xla::XlaOp rest = xla::ConvertElementType(
        xla::ConstantR0<float>(operand.builder(), fill), shape.element_type());
    operand = xla::Select(xla::Lt(index, xla::Broadcast(size, dimensions)), operand,
                          xla::Broadcast(rest, dimensions));
  }
  return operand;
}

xla::XlaOp Zeros(xla::XlaBuilder* builder, const xla::Shape& shape) {
  const xla::XlaOp zero =
      xla::ConvertElementType(xla::ConstantR0<float>(builder, 0), shape.element_type());
  return xla::Broadcast(zero, shape.dimensions());
}

// Returns `made` with the sizes of `like` that data decide.
xla::XlaOp Sized(xla::XlaOp made, xla::XlaOp like, const xla::Shape& shape) {
  for (int64_t axis = 0; axis < Rank(shape); ++axis) {
    if (!shape.is_dynamic_dimension(axis)) continue;
    made = xla::SetDimensionSize(made, xla::GetDimensionSize(like, axis), axis);
  }
  return made;
}

Type TypeOf(tensorflow::DataType type) {
  return type == tensorflow::DT_DOUBLE     ? Type::kFloat64
         : type == tensorflow::DT_HALF     ? Type::kFloat16
         : type == tensorflow::DT_BFLOAT16 ? Type::kBfloat16
                                           : Type::kFloat32;
}

template <Op kOp>
class XlaKernel : public tensorflow::XlaOpKernel {
 public:
  explicit XlaKernel(OpKernelConstruction* context)
      : XlaOpKernel(context), on_gpu_(context->device_type() == kGpu) {
    OP_REQUIRES_OK(context, ReadAttributes(context, kOp, &call_));
  }

  void Compile(XlaOpKernelContext* context) override {
    OP_REQUIRES_OK(context, StatusOf(Guarded([&] { Emit(context); })));
  }

 private:
  void Emit(XlaOpKernelContext* context) {
    Call call = call_;
    call.type = TypeOf(context->input_type(0));
    const bool is_double = context->input_type(kPositions) == tensorflow::DT_DOUBLE;
    OP_REQUIRES(context, is_double == (call.type == Type::kFloat64),
                absl::InvalidArgumentError(kMixed));
    std::vector<xla::XlaOp> operands;
    std::vector<xla::Shape> given, shapes;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto found = context->InputXlaShape(i);
      OP_REQUIRES_OK(context, found.status());
      OP_REQUIRES(context, CanVary(i, *found), absl::UnimplementedError(kFixed));
      given.push_back(*found);
      if (on_gpu_ && i == call.before_input()) {  // it would lie where the host cannot read it
        const absl::Status known = context->ConstantInputAsIntVector(i, &call.before);
        OP_REQUIRES(context, known.ok(),
                    absl::UnimplementedError(absl::StrCat(kUnknown, known.message())));
        continue;
      }
      operands.push_back(Filled(context->Input(i), *found, i == kPositions ? NAN : 0));
      const Shape sizes(found->dimensions().begin(), found->dimensions().end());
      shapes.push_back(Dense(found->element_type(), sizes));
      if (i != call.before_input()) {
        call.inputs.push_back(sizes);
      } else if (sizes.size() == 1) {
        call.before.resize(sizes[0]);  // the values come when the program runs
      }
    }
    const Plan plan = MakePlan(call);
    OP_REQUIRES(context, plan.error.empty(), absl::InvalidArgumentError(plan.error));
    std::vector<xla::Shape> results;
    for (const Shape& sizes : plan.outputs) {
      // Positions are of the type that all but a convolution's own result has.
      const int like = kOp == Op::kConv ? 0 : kPositions;
      results.push_back(Dense(shapes[like].element_type(), sizes));
    }
    const xla::XlaOp made = xla::CustomCallWithLayout(
        context->builder(), kXlaTarget, operands, xla::ShapeUtil::MakeTupleShape(results), shapes,
        Attributes(call, on_gpu_ ? call.before : Shape()), /*has_side_effect=*/false,
        /*output_operand_aliasing=*/{}, /*literal=*/nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
        xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    // Where there are no images, no index is right for rows that are not there either: no call then.
    const bool no_rows = plan.image_index >= 0 && plan.images == 0 &&
                         given[plan.image_index].is_dynamic_dimension(0);
    for (size_t i = 0; i < results.size(); ++i) {
      const int like = kFirstLike + i;
      const xla::XlaOp out =
          no_rows ? Zeros(context->builder(), results[i]) : xla::GetTupleElement(made, i);
      context->SetOutput(i, Sized(out, context->Input(like), given[like]));
    }
  }

  static constexpr int kPositions = IsConv(kOp) ? 2 : 1;  // NaN ones are not sampled
  // Which input the first output is as long as, along the axes that may vary; others follow.
  static constexpr int kFirstLike = kOp == Op::kSample || kOp == Op::kSampleGradPoints ? 1 : 0;
  static constexpr char kFixed[] =
      "under XLA, data may decide only how many images, rows and queries TfDeform ops have";
  static constexpr char kMixed[] = "points and offset must be float64 if values are, else float32";
  static constexpr char kUnknown[] =
      "under XLA on a GPU, a convolution's padding must be known when it is compiled: ";

  static bool CanVary(int input, const xla::Shape& shape) {
    for (int64_t axis = 0; axis < Rank(shape); ++axis) {
      const bool free = axis == 0 ? !(IsConv(kOp) && input == 1)
                                  : axis == 1 && !IsConv(kOp) && input > 0;
      if (shape.is_dynamic_dimension(axis) && !free) return false;
    }
    return true;
  }

  // A row-major array, as the kernels take it.
  static xla::Shape Dense(xla::PrimitiveType type, const Shape& sizes) {
    return xla::ShapeUtil::MakeShapeWithDescendingLayout(type, sizes);
  }

  Call call_;  // without shapes
  const bool on_gpu_;
};

// Not REGISTER_XLA_OP, which does nothing once anything ran before the library was loaded. For GPUs
// even where there is none: what is compiled may run elsewhere.
#define REGISTER(name, op)                                                              \
  REGISTER_KERNEL_BUILDER(Name("TfDeform>" name).Device("XLA_CPU_JIT"), XlaKernel<op>); \
  REGISTER_KERNEL_BUILDER(Name("TfDeform>" name).Device(kGpu), XlaKernel<op>)
REGISTER("WeightedSample", Op::kSample);
REGISTER("WeightedSampleGradValues", Op::kSampleGradValues);
REGISTER("WeightedSampleGradPoints", Op::kSampleGradPoints);
REGISTER("DeformableConv", Op::kConv);
REGISTER("DeformableConvGrad", Op::kConvGrad);
#undef REGISTER

}  // namespace
}  // namespace tf_deform
