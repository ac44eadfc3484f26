// Files that a request is read from.

#ifndef TF_DEFORM_CUSTOM_OPS_SERVING_FILE_H_
#define TF_DEFORM_CUSTOM_OPS_SERVING_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace tf_deform {

// What a request over gRPC can hold, and so what the inputs take at most.
constexpr int64_t kMostInputBytes = (int64_t{1} << 31) - 1;

class File {
 public:
  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  // Opens a regular file of at most kMostInputBytes. Others are refused: a pipe
  // may keep its reader waiting for ever, and a device may never end.
  absl::Status Open(const std::string& path);

  // Returns the number of bytes not yet read.
  int64_t left() const { return left_; }

  // Reads the next bytes, and returns whether there were so many.
  bool Read(void* data, int64_t bytes);

 private:
  int descriptor_ = -1;
  int64_t left_ = 0;
};

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_SERVING_FILE_H_
