#include "load.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tensorflow/core/framework/tensor_util.h"

namespace tf_deform {
namespace {

using ::tensorflow::SignatureDef;
using ::tensorflow::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int kSettled = 2000;  // requests after which memory should not grow
constexpr int kVariants = 3;    // different requests of each number of rows

struct Request {
  Tensors inputs;
  int rows;
  Tensors expected;  // the response to a single client
};

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

double ResidentMiB() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE) / 1048576.0;
}

// Returns `rows` rows of the tensor from the row `start` on, round and round.
Tensor Rows(const Tensor& tensor, int start, int rows) {
  if (rows == 0) return tensor.Slice(0, 0);
  std::vector<Tensor> slices;
  for (int i = 0; i < rows; ++i) {
    const int row = (start + i) % tensor.dim_size(0);
    slices.push_back(tensor.Slice(row, row + 1));
  }
  Tensor result;
  TF_CHECK_OK(tensorflow::tensor::Concat(slices, &result));
  return result;
}

bool SameBits(const Tensors& a, const Tensors& b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(),
      [](const auto& left, const auto& right) {
        const Tensor &x = left.second, &y = right.second;
        if (left.first != right.first || x.dtype() != y.dtype() ||
            x.shape() != y.shape()) {
          return false;
        }
        if (x.dtype() != tensorflow::DT_STRING) {
          return x.tensor_data() == y.tensor_data();
        }
        const auto p = x.flat<tensorflow::tstring>();
        const auto q = y.flat<tensorflow::tstring>();
        return std::equal(p.data(), p.data() + p.size(), q.data());
      });
}

// What the clients have seen.
struct Results {
  void CountError(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex);
    if (errors++ == 0) first_error = status.message();
  }

  std::mutex mutex;
  std::string first_error;
  // Seconds, of each request; negative if it did not succeed. They take their
  // memory beforehand, so that growth is the model's alone.
  std::vector<double> latencies;
  int64_t errors = 0, different = 0, refused = 0, rows = 0;
  double settled_mib = 0;
};

std::vector<Request> MakeRequests(const Model& model,
                                  const SignatureDef& signature,
                                  const Tensors& samples, int max_batch,
                                  std::mt19937& random) {
  std::vector<Request> requests;
  for (int i = 0; i < (max_batch + 1) * kVariants; ++i) {
    Request request;
    request.rows = i / kVariants;
    const int start = random() % samples.begin()->second.dim_size(0);
    for (const auto& [name, tensor] : samples) {
      request.inputs[name] = Rows(tensor, start, request.rows);
    }
    // What fails here fails in each client too, and is counted there.
    auto outputs = model.Run(signature, request.inputs);
    if (outputs.ok()) request.expected = *std::move(outputs);
    requests.push_back(std::move(request));
  }
  return requests;
}

// Sends requests, chosen at random, until all clients have sent enough.
void Client(const Model& model, const SignatureDef& signature,
            const std::vector<Request>& requests, const LoadOptions& options,
            int seed, std::atomic<int>& sent, Results& results) {
  std::mt19937 random(seed);
  int64_t rows = 0;
  for (int i; (i = sent++) < options.requests;) {
    if (i == kSettled) results.settled_mib = ResidentMiB();
    if (options.malformed > 0 && i % options.malformed == 0) {
      Tensors inputs = requests.back().inputs;
      inputs.begin()->second = Tensor(tensorflow::DT_COMPLEX128, {3});
      const bool answered = model.Run(signature, inputs).ok();
      std::lock_guard<std::mutex> lock(results.mutex);
      ++(answered ? results.different : results.refused);
      continue;
    }
    const Request& request = requests[random() % requests.size()];
    const auto start = Clock::now();
    const auto outputs = model.Run(signature, request.inputs);
    const double latency = Seconds(start);
    if (!outputs.ok()) {
      results.CountError(outputs.status());
      continue;
    }
    results.latencies[i] = latency;
    rows += request.rows;
    if (!SameBits(*outputs, request.expected)) {
      std::lock_guard<std::mutex> lock(results.mutex);
      ++results.different;
    }
  }
  std::lock_guard<std::mutex> lock(results.mutex);
  results.rows += rows;
}

double Milliseconds(const std::vector<double>& sorted, double quantile) {
  if (sorted.empty()) return 0;
  return 1e3 * sorted[std::min<size_t>(quantile * sorted.size(),
                                       sorted.size() - 1)];
}

}  // namespace

bool RunLoad(const Model& model, const SignatureDef& signature,
             const Tensors& samples, const LoadOptions& options) {
  const double loaded_mib = ResidentMiB();
  std::mt19937 random(0);
  const std::vector<Request> requests =
      MakeRequests(model, signature, samples, options.max_batch, random);

  Results results;
  results.latencies.assign(options.requests, -1);
  std::atomic<int> sent{0};
  std::vector<std::thread> clients;
  const auto start = Clock::now();
  for (int i = 0; i < options.threads; ++i) {
    clients.emplace_back([&, i] {
      Client(model, signature, requests, options, i, sent, results);
    });
  }
  for (std::thread& client : clients) client.join();
  const double seconds = Seconds(start);
  const double end_mib = ResidentMiB();

  std::vector<double>& latencies = results.latencies;
  std::sort(latencies.begin(), latencies.end());
  latencies.erase(latencies.begin(),
                  std::lower_bound(latencies.begin(), latencies.end(), 0));
  std::printf("threads: %d\nrequests: %d\nseconds: %.2f\n", options.threads,
              options.requests, seconds);
  std::printf("requests per second: %.1f\nrows per second: %.1f\n",
              latencies.size() / seconds, results.rows / seconds);
  std::printf("latency p50: %.3f ms\nlatency p99: %.3f ms\n",
              Milliseconds(latencies, 0.5), Milliseconds(latencies, 0.99));
  std::printf("errors: %ld\ndifferent responses: %ld\n", results.errors,
              results.different);
  if (options.malformed > 0) {
    std::printf("malformed requests refused: %ld\n", results.refused);
  }
  if (results.errors > 0) {
    const std::string& error = results.first_error;
    std::printf("first error: %s\n", error.substr(0, error.find('\n')).c_str());
  }
  std::printf("memory when loaded: %.1f MiB\n", loaded_mib);
  double growth = 0;
  if (results.settled_mib > 0) {
    growth = 100 * (end_mib / results.settled_mib - 1);
    std::printf("memory after %d requests: %.1f MiB\n", kSettled,
                results.settled_mib);
    std::printf("growth since: %.2f %%\n", growth);
  }
  std::printf("memory at the end: %.1f MiB\n", end_mib);
  return results.errors == 0 && results.different == 0 &&
         (options.max_growth < 0 || growth <= options.max_growth);
}

}  // namespace tf_deform
