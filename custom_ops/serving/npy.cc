#include "npy.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <regex>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace tf_deform {
namespace {

using ::tensorflow::DataType;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicSize = 6;

constexpr std::pair<const char*, DataType> kTypes[] = {
    {"<f2", tensorflow::DT_HALF},  {"<f4", tensorflow::DT_FLOAT},
    {"<f8", tensorflow::DT_DOUBLE}, {"<i4", tensorflow::DT_INT32},
    {"<i8", tensorflow::DT_INT64},  {"|i1", tensorflow::DT_INT8},
    {"|u1", tensorflow::DT_UINT8},  {"|b1", tensorflow::DT_BOOL},
};

absl::Status Bad(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

}  // namespace

absl::StatusOr<Tensor> ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));

  // The magic, version (2 bytes), length of the header (2 bytes in version 1,
  // else 4), and the header: a Python dictionary.
  char start[kMagicSize + 2] = {};
  if (!file.read(start, sizeof(start)) ||
      std::memcmp(start, kMagic, kMagicSize) != 0) {
    return Bad(path, "not an .npy file");
  }
  uint32_t length = 0;
  file.read(reinterpret_cast<char*>(&length), start[kMagicSize] == 1 ? 2 : 4);
  if (!file || length > (1 << 16)) return Bad(path, "not an .npy file");
  std::string header(length, '\0');
  std::smatch match;
  static const auto& kHeader = *new std::regex(
      R"(\{'descr': '([^']+)', 'fortran_order': (\w+), )"
      R"('shape': \(([0-9, ]*)\), \}\s*)");
  if (!file.read(header.data(), length) ||
      !std::regex_match(header, match, kHeader)) {
    return Bad(path, "has a header that is not understood");
  }
  if (match[2] != "False") return Bad(path, "must be in C order");

  TensorShape shape;
  std::istringstream sizes(match[3]);
  for (std::string size; std::getline(sizes, size, ',');) {
    if (size.find_first_not_of(' ') == std::string::npos) continue;
    int64_t value = 0;
    if (!absl::SimpleAtoi(size, &value) ||
        !shape.AddDimWithStatus(value).ok()) {
      return Bad(path, "has a shape that is not understood");
    }
  }
  for (const auto& [name, type] : kTypes) {
    if (match[1] != name) continue;
    // Before so much memory is asked for, see that the file is that long.
    const auto begin = file.tellg();
    file.seekg(0, std::ios::end);
    const int64_t bytes = file.tellg() - begin;
    file.seekg(begin);
    if (bytes / tensorflow::DataTypeSize(type) < shape.num_elements()) {
      return Bad(path, "is truncated");
    }
    Tensor tensor(type, shape);
    if (!file.read(static_cast<char*>(tensor.data()), tensor.TotalBytes())) {
      return Bad(path, "is truncated");
    }
    return tensor;
  }
  return Bad(path, absl::StrCat("has dtype ", match[1].str(),
                                ", which is not supported"));
}

absl::Status WriteNpy(const std::string& path, const Tensor& tensor) {
  for (const auto& [name, type] : kTypes) {
    if (tensor.dtype() != type) continue;
    std::string header = absl::StrCat("{'descr': '", name,
                                      "', 'fortran_order': False, 'shape': (");
    for (const int64_t size : tensor.shape().dim_sizes()) {
      absl::StrAppend(&header, size, ",");
    }
    absl::StrAppend(&header, "), }");
    // The data starts at a multiple of 64 bytes.
    while ((kMagicSize + 4 + header.size() + 1) % 64) header.push_back(' ');
    header.push_back('\n');
    const uint16_t length = header.size();

    std::ofstream file(path, std::ios::binary);
    file.write(kMagic, kMagicSize).write("\x01\x00", 2);
    file.write(reinterpret_cast<const char*>(&length), 2) << header;
    file.write(static_cast<const char*>(tensor.data()), tensor.TotalBytes());
    if (!file.flush()) {
      return absl::PermissionDeniedError(
          absl::StrCat(path, ": cannot be written"));
    }
    return absl::OkStatus();
  }
  return Bad(path, absl::StrCat("cannot hold ",
                                tensorflow::DataTypeString(tensor.dtype())));
}

}  // namespace tf_deform
