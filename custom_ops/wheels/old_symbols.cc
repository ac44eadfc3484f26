// What older systems have in no version, hidden in each library for wheels.
// See old_symbols.h.

#include <new>

#define TF_DEFORM_HIDDEN __attribute__((visibility("hidden")))

// Since glibc 2.32: whether the process has one thread, which need not count references atomically.
extern "C" {
extern TF_DEFORM_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;
}

// Since libstdc++ 3.4.29.
namespace std {
TF_DEFORM_HIDDEN void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
