#include "npy.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "file.h"

namespace tf_deform {
namespace {

using ::tensorflow::DataType;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicSize = 6;
constexpr uint32_t kMostHeaderBytes = 10000;  // NumPy's own limit

constexpr std::pair<const char*, DataType> kTypes[] = {
    {"<f2", tensorflow::DT_HALF},  {"<f4", tensorflow::DT_FLOAT},
    {"<f8", tensorflow::DT_DOUBLE}, {"<i4", tensorflow::DT_INT32},
    {"<i8", tensorflow::DT_INT64},  {"|i1", tensorflow::DT_INT8},
    {"|u1", tensorflow::DT_UINT8},  {"|b1", tensorflow::DT_BOOL},
};

template <typename... Parts>
absl::Status Bad(const Parts&... what) {
  return absl::InvalidArgumentError(absl::StrCat(what...));
}

// A name from a file, fit to be printed.
std::string Quoted(absl::string_view name) {
  return absl::StrCat("'", absl::CHexEscape(name.substr(0, 40)), "'");
}

// The header is a Python dictionary of three keys, 'descr', 'fortran_order' and
// 'shape', in any order, and white space behind it. This reads it from left to
// right, once, and takes nothing else.
class Header {
 public:
  explicit Header(absl::string_view text) : rest_(text) {}

  absl::Status Parse() {
    if (!Take("{")) return Bad("has a header that is no dictionary");
    while (!Take("}")) {
      absl::Status status = ParseItem();
      if (!status.ok()) return status;
      if (Take(",")) continue;
      if (!Take("}")) return Bad("has a header without '}'");
      break;
    }
    if (!Take("")) return Bad("has a header with more behind '}'");
    if (type_ && c_order_ && shape_) return absl::OkStatus();
    return Bad("has a header without ", !type_     ? "'descr'"
                                        : !c_order_ ? "'fortran_order'"
                                                    : "'shape'");
  }

  DataType type() const { return *type_; }
  const TensorShape& shape() const { return *shape_; }

 private:
  // Takes the token after white space, or the end for "", if it comes next.
  bool Take(absl::string_view token) {
    rest_ = absl::StripLeadingAsciiWhitespace(rest_);
    return token.empty() ? rest_.empty() : absl::ConsumePrefix(&rest_, token);
  }

  std::optional<absl::string_view> TakeString() {
    const char* quote = Take("'") ? "'" : Take("\"") ? "\"" : nullptr;
    if (quote == nullptr) return std::nullopt;
    const size_t size = rest_.find(quote);
    if (size == absl::string_view::npos) return std::nullopt;
    const absl::string_view text = rest_.substr(0, size);
    rest_.remove_prefix(size + 1);
    return text;
  }

  absl::Status ParseItem() {
    const std::optional<absl::string_view> key = TakeString();
    if (!key || !Take(":")) return Bad("has a header without a key and ':'");
    const bool again = (*key == "descr" && type_) ||
                       (*key == "fortran_order" && c_order_) ||
                       (*key == "shape" && shape_);
    if (again) return Bad("has a header with ", Quoted(*key), " twice");
    if (*key == "descr") return ParseType();
    if (*key == "fortran_order") return ParseOrder();
    if (*key == "shape") return ParseShape();
    return Bad("has a header with the key ", Quoted(*key));
  }

  absl::Status ParseType() {
    if (Take("[")) return Bad("has a structured dtype");
    const std::optional<absl::string_view> descr = TakeString();
    if (!descr) return Bad("has a header whose 'descr' is no string");
    std::string names;
    for (const auto& [name, type] : kTypes) {
      if (*descr == name) type_ = type;
      absl::StrAppend(&names, " ", name);
    }
    if (type_) return absl::OkStatus();
    return Bad("has dtype ", Quoted(*descr), ", and not one of", names);
  }

  absl::Status ParseOrder() {
    c_order_ = true;
    if (Take("False")) return absl::OkStatus();
    return Take("True")
               ? Bad("must be in C order")
               : Bad("has a header whose 'fortran_order' is no bool");
  }

  absl::Status ParseShape() {
    if (!Take("(")) return Bad("has a header whose 'shape' is no tuple");
    shape_.emplace();
    for (bool comma = true; !Take(")"); comma = Take(",")) {
      size_t digits = 0;
      while (digits < rest_.size() && absl::ascii_isdigit(rest_[digits])) {
        ++digits;
      }
      if (digits == 0 || !comma) {
        return Bad("has a shape that is not whole numbers, at ", Quoted(rest_));
      }
      int64_t size = 0;
      if (!absl::SimpleAtoi(rest_.substr(0, digits), &size) ||
          !shape_->AddDimWithStatus(size).ok()) {
        return Bad("has a shape of too many dimensions or values");
      }
      rest_.remove_prefix(digits);
      // (3) is a number, and no tuple.
      if (shape_->dims() == 1 && Take(")")) {
        return Bad("has a header whose 'shape' is no tuple");
      }
    }
    return absl::OkStatus();
  }

  absl::string_view rest_;
  std::optional<DataType> type_;
  std::optional<bool> c_order_;
  std::optional<TensorShape> shape_;
};

// Reads the magic, the version (2 bytes) and the length of the header (2 bytes
// in version 1.0, else 4), little-endian, and then the header.
absl::StatusOr<std::string> ReadHeader(File& file) {
  unsigned char start[kMagicSize + 2];
  if (!file.Read(start, sizeof(start)) ||
      std::memcmp(start, kMagic, kMagicSize) != 0) {
    return Bad("not an .npy file");
  }
  const int major = start[kMagicSize], minor = start[kMagicSize + 1];
  if (major < 1 || major > 3 || minor != 0) {
    return Bad("has version ", major, ".", minor,
               " of the format, and not 1.0, 2.0 or 3.0");
  }
  unsigned char size[4] = {};
  if (!file.Read(size, major == 1 ? 2 : 4)) return Bad("is truncated");
  const uint32_t length = size[0] | size[1] << 8 | size[2] << 16 |
                          static_cast<uint32_t>(size[3]) << 24;
  if (length > kMostHeaderBytes) {
    return Bad("has a header of ", length, " bytes, more than ",
               kMostHeaderBytes);
  }
  std::string text(length, '\0');
  if (!file.Read(text.data(), length)) return Bad("is truncated");
  return text;
}

absl::StatusOr<Tensor> ReadTensor(File& file) {
  const absl::StatusOr<std::string> text = ReadHeader(file);
  if (!text.ok()) return text.status();
  Header header(*text);
  absl::Status status = header.Parse();
  if (!status.ok()) return status;
  // Before memory is asked for, see that the file is that long.
  if (file.left() / tensorflow::DataTypeSize(header.type()) <
      header.shape().num_elements()) {
    return Bad("is truncated");
  }
  Tensor tensor(header.type(), header.shape());
  if (!file.Read(tensor.data(), tensor.TotalBytes())) {
    return Bad("is truncated");
  }
  return tensor;
}

}  // namespace

absl::StatusOr<Tensor> ReadNpy(const std::string& path) {
  File file;
  absl::Status status = file.Open(path);
  if (!status.ok()) return status;
  absl::StatusOr<Tensor> tensor = ReadTensor(file);
  if (tensor.ok()) return tensor;
  return Bad(path, ": ", tensor.status().message());
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
  return Bad(path, ": cannot hold ",
             tensorflow::DataTypeString(tensor.dtype()));
}

}  // namespace tf_deform
