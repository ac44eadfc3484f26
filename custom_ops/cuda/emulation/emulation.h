// A GPU on the CPU: as much of CUDA as the kernels use.
// Takes the place of CUDA in device.h, for tests.
//
// A block's threads are fibers. One runs until it waits at a barrier of its block or warp,
// forwards through the threads in one round and backwards in the next, so that what is missing a
// barrier gives wrong numbers. Shared memory has no useful contents at first, asynchronous copies
// happen when they are waited for, and ThreadSanitizer takes each thread for one of its own: it
// reports races.

#ifndef TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_EMULATION_H_
#define TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_EMULATION_H_

#include <ucontext.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#define __global__
#define __device__
#define __launch_bounds__(...)
// What the threads share in order to take turns is no concern of ThreadSanitizer.
#define TF_DEFORM_UNSEEN __attribute__((no_sanitize("thread"), noinline))

namespace tf_deform {
namespace emulation {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr size_t kStack = size_t{128} << 10;

enum class State { kRuns, kAtWarp, kAtBlock, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t size, zeros;  // the zeros are the last of the bytes
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kRuns;
  std::vector<Copy> copies;
  void* seen = nullptr;        // by ThreadSanitizer
  void* fake_stack = nullptr;  // of AddressSanitizer
};

struct Machine {
  Fiber fibers[kThreads];
  ucontext_t scheduler;
  void* scheduler_seen = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  std::function<void()> kernel;
  int thread = 0;  // that runs
  unsigned block = 0;
  void* shared = nullptr;
  double exchanged[kThreads];
  char block_barrier, warp_barriers[kThreads / kWarp], end;
};

inline Machine* machine = nullptr;

#ifdef __SANITIZE_THREAD__
inline void Release(void* at) { __tsan_release(at); }
inline void Acquire(void* at) { __tsan_acquire(at); }
#else
inline void Release(void*) {}
inline void Acquire(void*) {}
#endif

TF_DEFORM_UNSEEN inline unsigned Thread() { return machine->thread; }
TF_DEFORM_UNSEEN inline unsigned BlockNumber() { return machine->block; }
TF_DEFORM_UNSEEN inline void* Shared() { return machine->shared; }
TF_DEFORM_UNSEEN inline std::vector<Copy>& Copies() {
  return machine->fibers[machine->thread].copies;
}

// Back to the scheduler, until the thread may go on.
TF_DEFORM_UNSEEN inline void Wait(State state) {
  Fiber& fiber = machine->fibers[machine->thread];
  fiber.state = state;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fiber.fake_stack, machine->scheduler_stack,
                                 machine->scheduler_stack_size);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(machine->scheduler_seen, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&fiber.context, &machine->scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

TF_DEFORM_UNSEEN inline void Resume(int thread) {
  machine->thread = thread;
  Fiber& fiber = machine->fibers[thread];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&machine->scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(fiber.seen, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&machine->scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(machine->scheduler_fake_stack, nullptr, nullptr);
#endif
}

TF_DEFORM_UNSEEN inline void RunThread() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &machine->scheduler_stack,
                                  &machine->scheduler_stack_size);
#endif
  while (true) {
    machine->kernel();
    if (!Copies().empty()) {
      std::puts("a thread ended before it waited for its copies");
      std::abort();
    }
    Release(&machine->end);
    Wait(State::kDone);
  }
}

// Lets those go on that wait in `state`, if all of [first, last) do.
inline bool LetGo(int first, int last, State state) {
  for (int thread = first; thread < last; ++thread) {
    if (machine->fibers[thread].state != state) return false;
  }
  for (int thread = first; thread < last; ++thread) machine->fibers[thread].state = State::kRuns;
  return true;
}

inline void RunBlock() {
  for (Fiber& fiber : machine->fibers) fiber.state = State::kRuns;
  for (int round = 0;; ++round) {
    bool some = false;
    for (int nth = 0; nth < kThreads; ++nth) {
      const int thread = round % 2 ? kThreads - 1 - nth : nth;
      if (machine->fibers[thread].state != State::kRuns) continue;
      Resume(thread);
      some = true;
    }
    for (int first = 0; first < kThreads; first += kWarp) {
      some |= LetGo(first, first + kWarp, State::kAtWarp);
    }
    some |= LetGo(0, kThreads, State::kAtBlock);
    if (LetGo(0, kThreads, State::kDone)) return;
    if (!some) {
      std::puts("the threads of a block wait at different barriers, or some have ended");
      std::abort();
    }
  }
}

// The blocks have shared memory of their own, made before the threads are: to ThreadSanitizer they
// run at once.
inline void RunBlocks(int64_t blocks, size_t bytes, std::function<void()> kernel) {
  constexpr std::align_val_t kAlign{128};
  std::vector<void*> shared(blocks);
  for (void*& each : shared) {
    each = std::memset(::operator new(bytes, kAlign), 0x7f, bytes);  // huge, NaN, out of bounds
  }
  const auto owner = std::make_unique<Machine>();
  machine = owner.get();
  machine->kernel = std::move(kernel);
#ifdef __SANITIZE_THREAD__
  machine->scheduler_seen = __tsan_get_current_fiber();
#endif
  for (Fiber& fiber : machine->fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, RunThread, 0);
#ifdef __SANITIZE_THREAD__
    fiber.seen = __tsan_create_fiber(0);
#endif
  }
  for (int64_t block = 0; block < blocks; ++block) {
    machine->block = static_cast<unsigned>(block);
    machine->shared = shared[block];
    RunBlock();
  }
  Acquire(&machine->end);
#ifdef __SANITIZE_THREAD__
  for (Fiber& fiber : machine->fibers) __tsan_destroy_fiber(fiber.seen);
#endif
  machine = nullptr;
  for (void* each : shared) ::operator delete(each, kAlign);
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return Thread(); }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return BlockNumber(); }
  } x;
};

}  // namespace emulation

template <typename S>
S& SharedMemory() {
  return *static_cast<S*>(emulation::Shared());
}

template <typename S, typename... Parameters, typename... Arguments>
const char* Launch(void (*kernel)(Parameters...), int64_t blocks, void*,
                   const Arguments&... arguments) {
  emulation::RunBlocks(blocks, sizeof(S), [&] { kernel(arguments...); });
  return nullptr;
}

}  // namespace tf_deform

// CUDA's own names.

inline constexpr tf_deform::emulation::ThreadIndex threadIdx;
inline constexpr tf_deform::emulation::BlockIndex blockIdx;

inline void __syncthreads() {
  using namespace tf_deform::emulation;
  Release(&machine->block_barrier);
  Wait(State::kAtBlock);
  Acquire(&machine->block_barrier);
}

inline void __syncwarp() {
  using namespace tf_deform::emulation;
  char* const barrier = &machine->warp_barriers[Thread() / kWarp];
  Release(barrier);
  Wait(State::kAtWarp);
  Acquire(barrier);
}

template <typename T>
TF_DEFORM_UNSEEN T __shfl_xor_sync(unsigned, T value, int apart) {
  using namespace tf_deform::emulation;
  const unsigned thread = Thread();
  machine->exchanged[thread] = value;
  __syncwarp();
  const T other = static_cast<T>(machine->exchanged[thread ^ apart]);
  __syncwarp();
  return other;
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros) {
  if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size) {
    std::puts("an asynchronous copy is not aligned");
    std::abort();
  }
  tf_deform::emulation::Copies().push_back({to, from, size, zeros});
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(int) {
  auto& copies = tf_deform::emulation::Copies();
  for (const auto& copy : copies) {
    const size_t read = copy.size - copy.zeros;
    std::memcpy(copy.to, copy.from, read);
    std::memset(static_cast<char*>(copy.to) + read, 0, copy.zeros);
  }
  copies.clear();
}

template <typename T, typename Bits>
void AtomicAdd(T* to, T term) {
  Bits* const place = reinterpret_cast<Bits*>(to);
  Bits old = __atomic_load_n(place, __ATOMIC_RELAXED), sum_bits;
  do {
    T sum;
    std::memcpy(&sum, &old, sizeof(T));
    sum += term;
    std::memcpy(&sum_bits, &sum, sizeof(T));
  } while (!__atomic_compare_exchange_n(place, &old, sum_bits, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
}
inline void atomicAdd(float* to, float term) { AtomicAdd<float, uint32_t>(to, term); }
inline void atomicAdd(double* to, double term) { AtomicAdd<double, uint64_t>(to, term); }

using __half = _Float16;
inline float __half2float(__half value) { return value; }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {  // to the nearest, half to even
  if (value != value) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

#endif  // TF_DEFORM_CUSTOM_OPS_CUDA_EMULATION_EMULATION_H_
