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

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/log/globals.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "file.h"
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
using ::tensorflow::TensorShape;

struct Options {
  std::string model;
  std::string signature = "serving_default";
  std::vector<std::string> inputs;
  std::string output;
  std::string op_library;
  bool load = false;
  LoadOptions load_options;
  std::string wrong_number;  // what is wrong with a flag; empty: nothing
};

// A flag for a number from `least` to `most`. Another is kept in `wrong`, not
// left to Flags::Parse, which would print the usage and not say why.
template <typename T>
Flag NumberFlag(const char* name, T* number, T least, T most,
                const std::string& text, std::string* wrong) {
  const std::string limits = absl::StrCat(least, " to ", most);
  const auto parse = [=](const std::string& value) {
    bool parsed;
    if constexpr (std::is_integral_v<T>) {
      parsed = absl::SimpleAtoi(value, number);
    } else {
      parsed = absl::SimpleAtof(value, number);
    }
    if (!parsed || !(*number >= least && *number <= most)) {  // NaN neither
      *wrong = absl::StrCat("--", name, " must be a number from ", limits,
                            ", received '",
                            absl::CHexEscape(value.substr(0, 40)), "'");
    }
    return true;
  };
  return Flag(name, std::function<bool(std::string)>(parse),
              absl::StrCat(*number), absl::StrCat(text, "; ", limits));
}

absl::StatusOr<Tensor> ReadInput(const std::string& path) {
  if (absl::EndsWith(path, ".npy")) return ReadNpy(path);
  File file;
  absl::Status status = file.Open(path);
  if (!status.ok()) return status;
  Tensor tensor(tensorflow::DT_STRING, {1});
  tensorflow::tstring& bytes = tensor.vec<tensorflow::tstring>()(0);
  bytes.resize_uninitialized(file.left());
  if (!file.Read(bytes.mdata(), bytes.size())) {
    return absl::DataLossError(absl::StrCat(path, ": is truncated"));
  }
  return tensor;
}

// Joins what was given for one input.
absl::StatusOr<Tensor> Join(const std::string& name,
                            const std::vector<Tensor>& parts) {
  if (parts.size() == 1) return parts[0];
  // Concat ends the program if the rows differ.
  for (const Tensor& part : parts) {
    TensorShape first = parts[0].shape(), other = part.shape();
    if (first.dims() > 0) first.RemoveDim(0);
    if (other.dims() > 0) other.RemoveDim(0);
    if (part.dims() != parts[0].dims() || other != first) {
      return absl::InvalidArgumentError(absl::StrCat(
          "input '", name, "' is given rows of different shapes: ",
          parts[0].shape().DebugString(), ", ", part.shape().DebugString()));
    }
  }
  Tensor rows;
  absl::Status status = tensorflow::tensor::Concat(parts, &rows);
  if (!status.ok()) return status;
  return rows;
}

absl::StatusOr<Tensors> ReadInputs(const std::vector<std::string>& inputs) {
  std::map<std::string, std::vector<Tensor>> parts;
  int64_t bytes = 0;
  for (const std::string& input : inputs) {
    const size_t equals = input.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--input must be NAME=FILE, received ", input));
    }
    const std::string name = input.substr(0, equals);
    const absl::StatusOr<Tensor> tensor = ReadInput(input.substr(equals + 1));
    if (!tensor.ok()) return tensor.status();
    bytes += Bytes({{name, *tensor}});
    if (bytes > kMostInputBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the inputs together have more than ", kMostInputBytes, " bytes"));
    }
    parts[name].push_back(*tensor);
  }
  Tensors tensors;
  for (const auto& [name, several] : parts) {
    absl::StatusOr<Tensor> tensor = Join(name, several);
    if (!tensor.ok()) return tensor.status();
    tensors[name] = *std::move(tensor);
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
    return RunLoad(model, **signature, *inputs, options.load_options);
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
      NumberFlag("threads", &load.threads, 1, kMostThreads,
                 "clients at a time", &options.wrong_number),
      NumberFlag("requests", &load.requests, 1, kMostRequests,
                 "requests of all clients together", &options.wrong_number),
      NumberFlag("min_batch", &load.min_batch, 0, kMostRows,
                 "each request has at least so many rows",
                 &options.wrong_number),
      NumberFlag("max_batch", &load.max_batch, 0, kMostRows,
                 "each request has at most so many rows",
                 &options.wrong_number),
      NumberFlag("malformed", &load.malformed, 0, kMostRequests,
                 "every so many requests one is malformed, 0: none",
                 &options.wrong_number),
      NumberFlag("max_growth", &load.max_growth, -1.0f, kMostGrowth,
                 "percent by which memory may grow after 2000 requests, "
                 "negative: any",
                 &options.wrong_number),
  };
  if (!Flags::Parse(&argc, argv, flags) || argc != 2 || argv[1][0] == '-') {
    const std::string usage = absl::StrCat(argv[0], " [FLAGS] MODEL");
    std::fputs(Flags::Usage(usage, flags).c_str(), stderr);
    return 2;
  }
  options.model = argv[1];
  const absl::Status status =
      options.wrong_number.empty()
          ? Serve(options)
          : absl::InvalidArgumentError(options.wrong_number);
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
