// Names in glibc and libstdc++, in the versions that older systems have too.
// Included before all else in each file of a library for wheels (MANYLINUX in CMakeLists.txt).
//
// Without it the linker takes the newest version of each name. What has no older version is defined
// in old_symbols.cc. auditwheel checks what is left, when a wheel is made.

#ifdef __aarch64__
#define TF_DEFORM_OLDEST_GLIBC "GLIBC_2.17"
#else  // x86_64
#define TF_DEFORM_OLDEST_GLIBC "GLIBC_2.2.5"
#endif

#define TF_DEFORM_OLD(name, version) __asm__(".symver " name "," name "@" version)

// Since glibc 2.34 in libc.so.6, before in libdl.so.2, which is therefore linked.
TF_DEFORM_OLD("dladdr", TF_DEFORM_OLDEST_GLIBC);
TF_DEFORM_OLD("dlerror", TF_DEFORM_OLDEST_GLIBC);
TF_DEFORM_OLD("dlopen", TF_DEFORM_OLDEST_GLIBC);
TF_DEFORM_OLD("dlsym", TF_DEFORM_OLDEST_GLIBC);
// std::condition_variable::wait
TF_DEFORM_OLD("_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE", "GLIBCXX_3.4.11");
