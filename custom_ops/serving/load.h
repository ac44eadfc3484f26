// Many clients of one model at a time.

#ifndef TF_DEFORM_CUSTOM_OPS_SERVING_LOAD_H_
#define TF_DEFORM_CUSTOM_OPS_SERVING_LOAD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "model.h"

namespace tf_deform {

// The most that LoadOptions may hold. Memory does not depend on the requests.
constexpr int32_t kMostThreads = 1024;
constexpr int32_t kMostRequests = 1000000000;
constexpr int32_t kMostRows = 1024;
constexpr float kMostGrowth = 1000.0f;

struct LoadOptions {
  int32_t threads = 8;
  int32_t requests = 2000;   // of all threads together
  int32_t min_batch = 0;     // rows that each request has at least
  int32_t max_batch = 32;    // and at most
  int32_t malformed = 0;     // every so many requests one is malformed; 0: none
  float max_growth = -1.0f;  // percent of memory; negative: any
};

// Sends requests made of rows of `samples` and prints what comes of it. Returns
// OK if every response was bitwise that which a single client had got before,
// every malformed request was refused, and memory grew no more than allowed
// after the first 2,000 requests. Failing requests are counted and do not stop
// it. Errors too: more rows at least than at most, requests that take more than
// 1 GiB with their responses, and threads that cannot be started.
absl::Status RunLoad(const Model& model,
                     const tensorflow::SignatureDef& signature,
                     const Tensors& samples, const LoadOptions& options);

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_SERVING_LOAD_H_
