// The kernels of the ops for TensorFlow, on CPU and GPU: one class, which checks a call and runs its
// plan.

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "attributes.h"
#include "blocks.h"
#include "call.h"
#include "gpu.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "xla/stream_executor/stream.h"

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
    auto* const pool = static_cast<tensorflow::thread::ThreadPool*>(threads);
    RunInBlocks(count, cost, pool->NumThreads(), work, data,
                [pool](auto&& task) { pool->Schedule(std::move(task)); });
  };
  return {run, context->device()->tensorflow_cpu_worker_threads()->workers};
}

template <Op kOp, Type kType, bool kGpu>
class OpKernel : public tensorflow::OpKernel {
 public:
  explicit OpKernel(OpKernelConstruction* context) : tensorflow::OpKernel(context) {
    OP_REQUIRES_OK(context, StatusOf(Guarded([&] { Prepare(context); })));
  }

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, StatusOf(Guarded([&] { Run(context); })));
  }

 private:
  void Prepare(OpKernelConstruction* context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, kOp, &call_));
    call_.type = kType;
    std::string error;
    kernels_ = kGpu ? LoadGpuKernels(&error) : LoadKernels(&error);
    OP_REQUIRES(context, kernels_, absl::FailedPreconditionError(error));
  }

  void Run(OpKernelContext* context) {
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
    if (!kGpu) {  // where it cannot be read, the kernels leave out what does not exist
      const std::string error = CheckIndex(plan, inputs.data());
      OP_REQUIRES(context, error.empty(), absl::InvalidArgumentError(error));
    }
    std::vector<void*> outputs;
    for (const Shape& sizes : plan.outputs) {
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(sizes, &shape));
      Tensor* output;
      OP_REQUIRES_OK(context, context->allocate_output(outputs.size(), shape, &output));
      outputs.push_back(output->data());
    }
    if constexpr (kGpu) {
      GpuQueue queue(context->op_device_context()->stream()->platform_specific_handle().stream);
      OP_REQUIRES_OK(context, StatusOf(plan.run(*kernels_, queue.pool(), inputs.data(),
                                                outputs.data())));
    } else {
      OP_REQUIRES_OK(context, StatusOf(plan.run(*kernels_, ThreadsOf(context), inputs.data(),
                                                outputs.data())));
    }
  }

  Call call_;  // without shapes
  const Kernels* kernels_ = nullptr;
};

constexpr tensorflow::DataType kTensorFlowTypes[] = {tensorflow::DT_FLOAT, tensorflow::DT_DOUBLE,
                                                     tensorflow::DT_HALF, tensorflow::DT_BFLOAT16};

template <Op kOp, Type kType, bool kGpu>
void RegisterTyped(const char* name) {
  tensorflow::register_kernel::Name kernel(name);
  kernel.Device(kGpu ? tensorflow::DEVICE_GPU : tensorflow::DEVICE_CPU);
  kernel.TypeConstraint("T", kTensorFlowTypes[static_cast<int>(kType)]);
  kernel.TypeConstraint("W", kType == Type::kFloat64 ? tensorflow::DT_DOUBLE
                                                     : tensorflow::DT_FLOAT);
  if (IsConv(kOp)) kernel.HostMemory("before");
  const tensorflow::kernel_factory::OpKernelRegistrar registrar(
      kernel.Build(), name, [](OpKernelConstruction* context) -> tensorflow::OpKernel* {
        return new OpKernel<kOp, kType, kGpu>(context);
      });
}

template <Op kOp, bool kGpu>
void RegisterAll(const char* name) {
  RegisterTyped<kOp, Type::kFloat32, kGpu>(name);
  RegisterTyped<kOp, Type::kFloat64, kGpu>(name);
  RegisterTyped<kOp, Type::kFloat16, kGpu>(name);
  RegisterTyped<kOp, Type::kBfloat16, kGpu>(name);
}

// Kernels for a GPU only where they can run: without them TensorFlow places an op on the CPU.
template <Op kOp>
bool Register(const char* name) {
  RegisterAll<kOp, false>(name);
  std::string error;
  if (!LoadGpuKernels(&error)) return false;
  RegisterAll<kOp, true>(name);
  return true;
}

const bool kOnGpu[] = {Register<Op::kSample>("TfDeform>WeightedSample"),
                       Register<Op::kSampleGradValues>("TfDeform>WeightedSampleGradValues"),
                       Register<Op::kSampleGradPoints>("TfDeform>WeightedSampleGradPoints"),
                       Register<Op::kConv>("TfDeform>DeformableConv"),
                       Register<Op::kConvGrad>("TfDeform>DeformableConvGrad")};

}  // namespace
}  // namespace tf_deform
