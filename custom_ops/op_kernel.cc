// The CPU kernels of the ops for TensorFlow: one class, which checks a call and runs its plan.

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "attributes.h"
#include "call.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace tf_deform {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// TensorFlow's intra-op threads.
Pool ThreadsOf(OpKernelContext* context) {
  const auto run = [](void* threads, int64_t count, int64_t cost,
                      void (*work)(void*, int64_t, int64_t), void* data) {
    using tensorflow::thread::ThreadPool;
    const ThreadPool::SchedulingParams blocks(ThreadPool::SchedulingStrategy::kFixedBlockSize,
                                              std::nullopt, BlockSize(cost));
    static_cast<ThreadPool*>(threads)->ParallelFor(
        count, blocks, [work, data](int64_t begin, int64_t end) { work(data, begin, end); });
  };
  return {run, context->device()->tensorflow_cpu_worker_threads()->workers};
}

template <Op kOp, Type kType>
class OpKernel : public tensorflow::OpKernel {
 public:
  explicit OpKernel(OpKernelConstruction* context) : tensorflow::OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, kOp, &call_));
    call_.type = kType;
    std::string error;
    kernels_ = LoadKernels(&error);
    OP_REQUIRES(context, kernels_, absl::FailedPreconditionError(error));
  }

  void Compute(OpKernelContext* context) override {
    Call call = call_;
    std::vector<const void*> inputs;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const Tensor& input = context->input(i);
      if (i == call.before_input()) {
        const auto values = input.flat<int32_t>();
        call.before.assign(values.data(), values.data() + values.size());
        continue;
      }
      const auto sizes = input.shape().dim_sizes();
      call.inputs.emplace_back(sizes.begin(), sizes.end());
      inputs.push_back(input.data());
    }
    const Plan plan = MakePlan(call);
    OP_REQUIRES(context, plan.error.empty(), absl::InvalidArgumentError(plan.error));
    const std::string error = CheckIndex(plan, inputs.data());
    OP_REQUIRES(context, error.empty(), absl::InvalidArgumentError(error));
    std::vector<void*> outputs;
    for (const Shape& sizes : plan.outputs) {
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(sizes, &shape));
      Tensor* output;
      OP_REQUIRES_OK(context, context->allocate_output(outputs.size(), shape, &output));
      outputs.push_back(output->data());
    }
    plan.run(*kernels_, ThreadsOf(context), inputs.data(), outputs.data());
  }

 private:
  Call call_;  // without shapes
  const Kernels* kernels_ = nullptr;
};

#define REGISTER(name, op)                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                       \
      Name("TfDeform>" name).Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),          \
      OpKernel<op, Type::kFloat32>);                                                             \
  REGISTER_KERNEL_BUILDER(                                                                       \
      Name("TfDeform>" name).Device(tensorflow::DEVICE_CPU).TypeConstraint<double>("T"),         \
      OpKernel<op, Type::kFloat64>)
REGISTER("WeightedSample", Op::kSample);
REGISTER("WeightedSampleGradValues", Op::kSampleGradValues);
REGISTER("WeightedSampleGradPoints", Op::kSampleGradPoints);
REGISTER("DeformableConv", Op::kConv);
REGISTER("DeformableConvGrad", Op::kConvGrad);
#undef REGISTER

}  // namespace
}  // namespace tf_deform
