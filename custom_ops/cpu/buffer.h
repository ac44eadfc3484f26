// Memory without values, aligned to cache lines.
// For the kernels of this room.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_BUFFER_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_BUFFER_H_

#include <cstdint>
#include <new>

namespace tf_deform {
namespace {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_BUFFER_H_
