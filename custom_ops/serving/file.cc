#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace tf_deform {

File::~File() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status File::Open(const std::string& path) {
  // Without O_NONBLOCK opening a pipe waits for its writer.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status;
  if (descriptor_ < 0 || fstat(descriptor_, &status) != 0) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a regular file"));
  }
  if (status.st_size > kMostInputBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", status.st_size, " bytes, more than ",
                     kMostInputBytes));
  }
  left_ = status.st_size;
  return absl::OkStatus();
}

bool File::Read(void* data, int64_t bytes) {
  if (bytes > left_) return false;
  left_ -= bytes;
  char* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t count = read(descriptor_, next, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    next += count;
    bytes -= count;
  }
  return true;
}

}  // namespace tf_deform
