// The blocks of a loop, taken by the caller and by as many threads of a pool as come to help.

#ifndef TF_DEFORM_BLOCKS_H_
#define TF_DEFORM_BLOCKS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace tf_deform {

// Small blocks of about equal cost: left to themselves a pool's threads are given a few large ones,
// of which one has more than the other.
inline int64_t BlockSize(int64_t cost) {
  constexpr int64_t kCycles = 100000;
  return cost < kCycles ? kCycles / (cost < 1 ? 1 : cost) : 1;
}

// Threads take blocks until none is left. Whoever comes late finds none, and touches no data.
class Blocks {
 public:
  using Work = void (*)(void* data, int64_t begin, int64_t end);

  Blocks(int64_t count, int64_t size, Work work, void* data)
      : count_(count), size_(size), work_(work), data_(data) {}

  void Take() {
    for (;;) {
      const int64_t begin = next_.fetch_add(size_);
      if (begin >= count_) return;
      const int64_t end = std::min(begin + size_, count_);
      work_(data_, begin, end);
      const std::lock_guard<std::mutex> lock(mutex_);
      done_ += end - begin;
      if (done_ == count_) all_done_.notify_all();
    }
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == count_; });
  }

 private:
  const int64_t count_, size_;
  const Work work_;
  void* const data_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t done_ = 0;  // items
};

// Runs a loop as Pool::run does; schedule(task) hands a task to one of so many other threads. The
// caller takes blocks itself and waits only for those that others have begun: a pool whose threads
// are all busy cannot stop it, nor one that has no memory to be told of a task.
template <typename Schedule>
void RunInBlocks(int64_t count, int64_t cost, int64_t threads, Blocks::Work work, void* data,
                 Schedule&& schedule) noexcept {
  const int64_t size = BlockSize(cost);
  const int64_t others = std::min(threads, (count - 1) / size + 1) - 1;
  std::shared_ptr<Blocks> blocks;
  try {
    if (others > 0) blocks = std::make_shared<Blocks>(count, size, work, data);
    for (int64_t i = 0; i < others; ++i) schedule([blocks] { blocks->Take(); });
  } catch (...) {  // fewer help
  }
  if (!blocks) return work(data, 0, count);
  blocks->Take();
  blocks->Wait();
}

}  // namespace tf_deform

#endif  // TF_DEFORM_BLOCKS_H_
