#include "model.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tensorflow/cc/saved_model/constants.h"
#include "tensorflow/core/framework/partial_tensor_shape.h"
#include "tensorflow/core/public/session_options.h"

namespace tf_deform {
namespace {

using ::tensorflow::PartialTensorShape;
using ::tensorflow::SignatureDef;
using ::tensorflow::Tensor;
using ::tensorflow::TensorInfo;

// What savers add to every model: its initialisation, which no request runs.
constexpr char kInitializer[] = "__saved_model_init_op";
constexpr char kServeTag[] = "serve";

std::string TypeAndShape(const TensorInfo& info) {
  return absl::StrCat(tensorflow::DataTypeString(info.dtype()), " ",
                      PartialTensorShape(info.tensor_shape()).DebugString());
}

template <typename Map>
std::string Names(const Map& map) {
  std::set<std::string> names;
  for (const auto& [name, unused] : map) {
    if (name != kInitializer) names.insert(name);
  }
  return absl::StrJoin(names, ", ");
}

absl::Status CheckInput(const std::string& name, const TensorInfo& info,
                        const Tensor& tensor) {
  const PartialTensorShape shape(info.tensor_shape());
  if (tensor.dtype() == info.dtype() &&
      shape.IsCompatibleWith(tensor.shape())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "input '", name, "' must be ", TypeAndShape(info), ", received ",
      tensorflow::DataTypeString(tensor.dtype()), " ",
      tensor.shape().DebugString()));
}

}  // namespace

int64_t Bytes(const Tensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    bytes += tensor.TotalBytes();
    if (tensor.dtype() != tensorflow::DT_STRING) continue;
    const auto strings = tensor.flat<tensorflow::tstring>();
    for (int64_t i = 0; i < strings.size(); ++i) bytes += strings(i).size();
  }
  return bytes;
}

absl::Status Model::Load(const std::string& path) {
  if (!tensorflow::MaybeSavedModelDirectory(path)) {
    return absl::NotFoundError(
        absl::StrCat(path, " is not a SavedModel: it holds no ",
                     tensorflow::kSavedModelFilenamePb));
  }
  const absl::Status status = tensorflow::LoadSavedModel(
      tensorflow::SessionOptions(), tensorflow::RunOptions(), path, {kServeTag},
      &bundle_);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(path, " cannot be loaded: ",
                                                  status.message()));
}

absl::StatusOr<const SignatureDef*> Model::FindSignature(
    const std::string& name) const {
  const auto found = bundle_.GetSignatures().find(name);
  if (found != bundle_.GetSignatures().end()) return &found->second;
  return absl::NotFoundError(
      absl::StrCat("the model has no signature '", name, "', but ",
                   Names(bundle_.GetSignatures())));
}

absl::StatusOr<Tensors> Model::Run(const SignatureDef& signature,
                                   const Tensors& inputs) const {
  std::vector<std::pair<std::string, Tensor>> feeds;
  for (const auto& [name, tensor] : inputs) {
    const auto info = signature.inputs().find(name);
    if (info == signature.inputs().end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the signature has no input '", name, "', but ",
                       Names(signature.inputs())));
    }
    absl::Status status = CheckInput(name, info->second, tensor);
    if (!status.ok()) return status;
    feeds.emplace_back(info->second.name(), tensor);
  }
  for (const auto& [name, info] : signature.inputs()) {
    if (inputs.count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("input '", name, "', ",
                       TypeAndShape(info), ", is missing"));
    }
  }
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<Tensor> results;
  absl::Status status = bundle_.session->Run(
      feeds, fetches, /*target_tensor_names=*/{}, &results);
  if (!status.ok()) return status;
  Tensors outputs;
  for (size_t i = 0; i < names.size(); ++i) outputs[names[i]] = results[i];
  return outputs;
}

std::string Model::Describe() const {
  std::string text;
  const auto append = [&text](absl::string_view kind, const auto& infos) {
    const std::map<std::string, TensorInfo> sorted(infos.begin(), infos.end());
    for (const auto& [name, info] : sorted) {
      absl::StrAppend(&text, "  ", kind, " ", name, ": ",
                      TypeAndShape(info), "\n");
    }
  };
  const auto& signatures = bundle_.GetSignatures();
  const std::map<std::string, SignatureDef> sorted(signatures.begin(),
                                                   signatures.end());
  for (const auto& [name, signature] : sorted) {
    if (name == kInitializer) continue;
    absl::StrAppend(&text, name, "\n");
    append("input ", signature.inputs());
    append("output", signature.outputs());
  }
  return text;
}

}  // namespace tf_deform
