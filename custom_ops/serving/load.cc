#include "load.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace tf_deform {
namespace {

using ::tensorflow::SignatureDef;
using ::tensorflow::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int kSettled = 2000;  // requests after which memory should not grow
constexpr int kVariants = 3;    // different requests of each number of rows
constexpr int64_t kMostBytes = int64_t{1} << 30;  // of all different requests

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
Tensor Rows(const Tensor& tensor, int64_t start, int rows) {
  if (rows == 0) return tensor.Slice(0, 0);
  std::vector<Tensor> slices;
  for (int i = 0; i < rows; ++i) {
    const int64_t row = (start + i) % tensor.dim_size(0);
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

// Counts latencies from 1 us to 1,000 s, each bucket 1 % longer than the one
// before, so that memory does not depend on how many they are.
class Histogram {
 public:
  void Add(double seconds) {
    const double bucket = std::log(seconds / kLeast) / std::log(kRatio);
    ++counts_[std::clamp<double>(bucket, 0, kBuckets - 1)];
    ++count_;
  }

  void Add(const Histogram& other) {
    for (int i = 0; i < kBuckets; ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
  }

  int64_t count() const { return count_; }

  double Milliseconds(double quantile) const {
    if (count_ == 0) return 0;
    int64_t rank = quantile * count_;
    int bucket = 0;
    while (bucket < kBuckets - 1 && rank >= counts_[bucket]) {
      rank -= counts_[bucket++];
    }
    return 1e3 * kLeast * std::pow(kRatio, bucket + 0.5);
  }

 private:
  static constexpr double kLeast = 1e-6, kRatio = 1.01;
  static constexpr int kBuckets = 2083;  // log(1e9) / log(kRatio)

  std::array<int64_t, kBuckets> counts_ = {};
  int64_t count_ = 0;
};

// What the clients have seen.
struct Results {
  void CountError(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex);
    if (errors++ == 0) first_error = status.message();
  }

  std::mutex mutex;
  std::string first_error;
  Histogram latencies;  // of the requests that succeeded
  int64_t errors = 0, different = 0, refused = 0, rows = 0;
  double settled_mib = 0;
};

absl::StatusOr<std::vector<Request>> MakeRequests(
    const Model& model, const SignatureDef& signature, const Tensors& samples,
    const LoadOptions& options) {
  const int min_batch = options.min_batch, max_batch = options.max_batch;
  if (min_batch > max_batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("--min_batch=", min_batch,
                     " must be at most --max_batch=", max_batch));
  }
  std::mt19937 random(0);
  std::vector<Request> requests;
  int64_t bytes = 0;
  for (int i = min_batch * kVariants; i < (max_batch + 1) * kVariants; ++i) {
    Request request;
    request.rows = i / kVariants;
    const int64_t start = random() % samples.begin()->second.dim_size(0);
    for (const auto& [name, tensor] : samples) {
      request.inputs[name] = Rows(tensor, start, request.rows);
    }
    // What fails here fails in each client too, and is counted there.
    auto outputs = model.Run(signature, request.inputs);
    if (outputs.ok()) request.expected = *std::move(outputs);
    bytes += Bytes(request.inputs) + Bytes(request.expected);
    if (bytes > kMostBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the requests of ", min_batch, " to --max_batch=", max_batch,
          " rows and their responses take more than 1 GiB"));
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

// Sends requests, chosen at random, until all clients have sent enough.
void Client(const Model& model, const SignatureDef& signature,
            const std::vector<Request>& requests, const LoadOptions& options,
            int seed, std::atomic<int64_t>& sent, Results& results) {
  std::mt19937 random(seed);
  Histogram latencies;
  int64_t rows = 0;
  for (int64_t i; (i = sent++) < options.requests;) {
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
    latencies.Add(latency);
    rows += request.rows;
    if (!SameBits(*outputs, request.expected)) {
      std::lock_guard<std::mutex> lock(results.mutex);
      ++results.different;
    }
  }
  std::lock_guard<std::mutex> lock(results.mutex);
  results.latencies.Add(latencies);
  results.rows += rows;
}

// Runs `client(i)` in as many threads, and returns when all have ended. If one
// cannot be started, `stop` is called.
template <typename RunClient, typename Stop>
absl::Status RunClients(int threads, const RunClient& client,
                        const Stop& stop) {
  absl::Status status;
  std::vector<std::thread> clients;
  for (int i = 0; i < threads && status.ok(); ++i) {
    try {  // std::thread has no other way to say so
      clients.emplace_back(client, i);
    } catch (const std::system_error& error) {
      stop();
      status = absl::ResourceExhaustedError(
          absl::StrCat("of ", threads, " threads only ", i,
                       " can be started: ", error.code().message()));
    }
  }
  for (std::thread& each : clients) each.join();
  return status;
}

// Prints what the clients have seen, and returns the growth of memory, in
// percent.
double Print(const Results& results, const LoadOptions& options, double seconds,
             double loaded_mib) {
  const double end_mib = ResidentMiB();
  const Histogram& latencies = results.latencies;
  std::printf("threads: %d\nrequests: %d\nseconds: %.2f\n", options.threads,
              options.requests, seconds);
  std::printf("requests per second: %.1f\nrows per second: %.1f\n",
              latencies.count() / seconds, results.rows / seconds);
  std::printf("latency p50: %.3f ms\nlatency p99: %.3f ms\n",
              latencies.Milliseconds(0.5), latencies.Milliseconds(0.99));
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
  return growth;
}

}  // namespace

absl::Status RunLoad(const Model& model, const SignatureDef& signature,
                     const Tensors& samples, const LoadOptions& options) {
  const double loaded_mib = ResidentMiB();
  const absl::StatusOr<std::vector<Request>> requests =
      MakeRequests(model, signature, samples, options);
  if (!requests.ok()) return requests.status();

  Results results;
  std::atomic<int64_t> sent{0};
  const auto start = Clock::now();
  const absl::Status status = RunClients(
      options.threads,
      [&](int seed) {
        Client(model, signature, *requests, options, seed, sent, results);
      },
      /*stop=*/[&] { sent = options.requests; });
  if (!status.ok()) return status;
  const double growth = Print(results, options, Seconds(start), loaded_mib);
  const bool passed = results.errors == 0 && results.different == 0 &&
                      (options.max_growth < 0 || growth <= options.max_growth);
  return passed ? absl::OkStatus()
                : absl::InternalError("the load did not pass");
}

}  // namespace tf_deform
