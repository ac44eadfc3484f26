// Finds and loads the kernels for this processor.
// See load_cpu.h.

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "custom_ops/tensorflow/load_cpu.h"

// Where the kernels are linked in, as Bazel does, there is nothing to load.
extern "C" __attribute__((weak, visibility("hidden"))) const tf_deform::Kernels* TfDeformKernels();

namespace tf_deform {
namespace {

struct Loaded {
  const Kernels* kernels = nullptr;
  std::string instruction_set;
  std::string error;
};

// The instruction set to use: the best that the processor has, or TF_DEFORM_INSTRUCTION_SET.
std::string InstructionSet() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  const char* wish = std::getenv("TF_DEFORM_INSTRUCTION_SET");
  const std::string wished = wish ? wish : "";
  if (wished == "baseline") return wished;
#ifdef TF_DEFORM_HAS_AVX512_BF16
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && wished != "avx2" && wished != "avx512") return "avx512bf16";
#endif
  if (avx512 && wished != "avx2") return "avx512";
  return avx2 ? "avx2" : "baseline";
#else
  return "baseline";
#endif
}

Loaded Load() {
  Loaded loaded;
  if (TfDeformKernels != nullptr) {
    loaded.kernels = TfDeformKernels();
    loaded.instruction_set = "linked in";
    return loaded;
  }
  const std::string set = InstructionSet();
  const std::string name = FolderOfLibrary() + "tf_deform_kernels_" + set + ".so";
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* table = library ? dlsym(library, "TfDeformKernels") : nullptr;
  if (!table) {
    const char* reason = dlerror();
    loaded.error = reason ? reason : name + " holds no kernels";
    return loaded;
  }
  loaded.kernels = reinterpret_cast<const Kernels* (*)()>(table)();
  loaded.instruction_set = set;
  return loaded;
}

const Loaded& LoadOnce() {
  static const Loaded* const loaded = new Loaded(Load());
  return *loaded;
}

}  // namespace

std::string FolderOfLibrary() {
  Dl_info own;
  if (!dladdr(reinterpret_cast<void*>(&LoadKernels), &own)) return "";
  const std::string path(own.dli_fname);
  return path.substr(0, path.find_last_of('/') + 1);
}

const Kernels* LoadKernels(std::string* error) {
  *error = LoadOnce().error;
  return LoadOnce().kernels;
}

}  // namespace tf_deform

// The instruction set of the kernels loaded, or "" if there are none.
extern "C" __attribute__((visibility("default"))) const char* TfDeformInstructionSet() {
  const char* set = "";
  tf_deform::Guarded([&] { set = tf_deform::LoadOnce().instruction_set.c_str(); });
  return set;
}
