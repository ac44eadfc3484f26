// A SavedModel, loaded and run as TensorFlow Serving does.

#ifndef TF_DEFORM_CUSTOM_OPS_SERVING_MODEL_H_
#define TF_DEFORM_CUSTOM_OPS_SERVING_MODEL_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/protobuf/meta_graph.pb.h"

namespace tf_deform {

// By the names that the signature gives them.
using Tensors = std::map<std::string, tensorflow::Tensor>;

// Returns the memory that the tensors take, their strings included.
int64_t Bytes(const Tensors& tensors);

class Model {
 public:
  // Loads the SavedModel in the directory `path`.
  absl::Status Load(const std::string& path);

  absl::StatusOr<const tensorflow::SignatureDef*> FindSignature(
      const std::string& name) const;

  // Returns the outputs, all of them, for inputs that fit the signature. Can be
  // called from many threads.
  absl::StatusOr<Tensors> Run(const tensorflow::SignatureDef& signature,
                              const Tensors& inputs) const;

  // Returns a text that lists the signatures, their inputs and outputs.
  std::string Describe() const;

 private:
  tensorflow::SavedModelBundle bundle_;
};

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_SERVING_MODEL_H_
