// Loads a SavedModel and runs it with TensorFlow's C++ runtime, the code path
// of TensorFlow Serving, without Python:
//
//   serve MODEL                                     lists the signatures
//   serve --input=images=images.npy MODEL           prints the outputs
//   serve --input=images=images.npy --load MODEL    puts the model under load
//
// An input that is not an .npy file is the string that a file holds, such as an
// encoded image; given again it is one more row.

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/log/globals.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "load.h"
#include "model.h"
#include "npy.h"
#include "tensorflow/core/framework/tensor_util.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/util/command_line_flags.h"

namespace tf_deform {
namespace {

using ::tensorflow::Env;
using ::tensorflow::Flag;
using ::tensorflow::Flags;
using ::tensorflow::Tensor;

struct Options {
  std::string model;
  std::string signature = "serving_default";
  std::vector<std::string> inputs;
  std::string output;
  std::string op_library;
  bool load = false;
  LoadOptions load_options;
};

absl::StatusOr<Tensor> ReadInput(const std::string& path) {
  if (absl::EndsWith(path, ".npy")) return ReadNpy(path);
  std::string bytes;
  absl::Status status = ReadFileToString(Env::Default(), path, &bytes);
  if (!status.ok()) return status;
  Tensor tensor(tensorflow::DT_STRING, {1});
  tensor.vec<tensorflow::tstring>()(0) = bytes;
  return tensor;
}

absl::StatusOr<Tensors> ReadInputs(const std::vector<std::string>& inputs) {
  Tensors tensors;
  for (const std::string& input : inputs) {
    const size_t equals = input.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--input must be NAME=FILE, received ", input));
    }
    const std::string name = input.substr(0, equals);
    absl::StatusOr<Tensor> tensor = ReadInput(input.substr(equals + 1));
    if (!tensor.ok()) return tensor.status();
    if (tensors.count(name) == 0) {
      tensors[name] = *tensor;
      continue;
    }
    Tensor rows;
    absl::Status status =
        tensorflow::tensor::Concat({tensors[name], *tensor}, &rows);
    if (!status.ok()) return status;
    tensors[name] = rows;
  }
  return tensors;
}

// Whether the load mode can make requests of rows of the inputs.
absl::Status CheckSamples(const Tensors& samples) {
  if (samples.empty()) {
    return absl::InvalidArgumentError("load needs --input=NAME=FILE");
  }
  for (const auto& [name, tensor] : samples) {
    if (tensor.dims() == 0 || tensor.dim_size(0) == 0 ||
        tensor.dim_size(0) != samples.begin()->second.dim_size(0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("load needs inputs of equally many rows, 1 or more; '",
                       name, "' is ", tensor.shape().DebugString()));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteOutputs(const Tensors& outputs, const std::string& folder) {
  for (const auto& [name, tensor] : outputs) {
    if (folder.empty()) {
      std::printf("%s: %s %s\n%s\n", name.c_str(),
                  tensorflow::DataTypeString(tensor.dtype()).c_str(),
                  tensor.shape().DebugString().c_str(),
                  tensor.SummarizeValue(/*max_entries=*/1000).c_str());
      continue;
    }
    absl::Status status = Env::Default()->RecursivelyCreateDir(folder);
    if (status.ok()) {
      status = WriteNpy(absl::StrCat(folder, "/", name, ".npy"), tensor);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Serve(const Options& options) {
  if (!options.op_library.empty()) {
    void* handle = nullptr;
    absl::Status status = Env::Default()->LoadDynamicLibrary(
        options.op_library.c_str(), &handle);
    if (!status.ok()) return status;
  }
  Model model;
  absl::Status status = model.Load(options.model);
  if (!status.ok()) return status;
  if (options.inputs.empty() && !options.load) {
    std::fputs(model.Describe().c_str(), stdout);
    return absl::OkStatus();
  }
  const auto signature = model.FindSignature(options.signature);
  if (!signature.ok()) return signature.status();
  const absl::StatusOr<Tensors> inputs = ReadInputs(options.inputs);
  if (!inputs.ok()) return inputs.status();
  if (options.load) {
    status = CheckSamples(*inputs);
    if (!status.ok()) return status;
    return RunLoad(model, **signature, *inputs, options.load_options)
               ? absl::OkStatus()
               : absl::InternalError("the load did not pass");
  }
  const absl::StatusOr<Tensors> outputs = model.Run(**signature, *inputs);
  if (!outputs.ok()) return outputs.status();
  return WriteOutputs(*outputs, options.output);
}

int Main(int argc, char** argv) {
  Options options;
  LoadOptions& load = options.load_options;
  const std::vector<Flag> flags = {
      Flag("signature", &options.signature, "signature to run"),
      Flag(
          "input",
          [&options](std::string value) {
            options.inputs.push_back(value);
            return true;
          },
          "", "NAME=FILE, an .npy file, or any other as a string; repeated"),
      Flag("output", &options.output,
           "folder for the outputs, NAME.npy; without it they are printed"),
      Flag("op_library", &options.op_library,
           "library of custom ops to load before the model"),
      Flag("load", &options.load, "put the model under load"),
      Flag("threads", &load.threads, "clients at a time"),
      Flag("requests", &load.requests, "requests of all clients together"),
      Flag("max_batch", &load.max_batch, "each request has 0 to so many rows"),
      Flag("malformed", &load.malformed,
           "every so many requests one is malformed; 0: none"),
      Flag("max_growth", &load.max_growth,
           "percent by which memory may grow after 2000 requests"),
  };
  if (!Flags::Parse(&argc, argv, flags) || argc != 2 || argv[1][0] == '-' ||
      load.threads < 1 || load.requests < 1 || load.max_batch < 0) {
    const std::string usage = absl::StrCat(argv[0], " [FLAGS] MODEL");
    std::fputs(Flags::Usage(usage, flags).c_str(), stderr);
    return 2;
  }
  options.model = argv[1];
  const absl::Status status = Serve(options);
  if (status.ok()) return 0;
  // Further lines name nodes of the graph.
  const std::string message(status.message());
  std::fprintf(stderr, "serve: %s\n",
               message.substr(0, message.find('\n')).c_str());
  return 1;
}

// TensorFlow logs while its libraries are loaded, before any level can be set.
// What .preinit_array names runs before that: stderr leads nowhere until main.
int standard_error = -1;

void Hush(int, char**, char**) {
  standard_error = dup(STDERR_FILENO);
  const int nowhere = open("/dev/null", O_WRONLY);
  dup2(nowhere, STDERR_FILENO);
  close(nowhere);
}

__attribute__((section(".preinit_array"), used)) void (*const kHush)(
    int, char**, char**) = Hush;

}  // namespace
}  // namespace tf_deform

int main(int argc, char** argv) {
  dup2(tf_deform::standard_error, STDERR_FILENO);
  close(tf_deform::standard_error);
  // Errors come back as statuses: the log would say them once more.
  absl::SetMinLogLevel(absl::LogSeverityAtLeast::kInfinity);
  return tf_deform::Main(argc, argv);
}
