// Errors as values, where no exception may pass: through the tables of C functions.
// For kernels.h and tensorflow.

#ifndef TF_DEFORM_CUSTOM_OPS_ERRORS_H_
#define TF_DEFORM_CUSTOM_OPS_ERRORS_H_

#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

namespace tf_deform {

// What went wrong, if anything. It takes no memory, which may be what is missing.
struct Error {
  enum Kind { kNone, kMemory, kOther };

  explicit operator bool() const { return kind != kNone; }

  Kind kind = kNone;
  char text[160] = "";
};

inline Error MakeError(Error::Kind kind, const char* text) noexcept {
  Error error;
  error.kind = kind;
  std::snprintf(error.text, sizeof error.text, "%s", text);
  return error;
}

// Calls work() and returns what it threw.
template <typename Work>
Error Guarded(Work&& work) noexcept {
  constexpr const char* kNoMemory = "there is not enough memory for what a TfDeform op works with";
  try {
    work();
    return {};
  } catch (const Error& error) {  // of a loop, see ParallelFor
    return error;
  } catch (const std::bad_alloc&) {
    return MakeError(Error::kMemory, kNoMemory);
  } catch (const std::length_error&) {  // what containers say of sizes beyond any memory
    return MakeError(Error::kMemory, kNoMemory);
  } catch (const std::exception& error) {
    return MakeError(Error::kOther, error.what());
  } catch (...) {
    return MakeError(Error::kOther, "a TfDeform op failed for a reason that it does not say");
  }
}

}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_ERRORS_H_
