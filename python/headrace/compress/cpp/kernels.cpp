// What headrace/compress/kernels.py asks the library about itself.

#include "kernel.h"

// Raised with every change of a kernel's arguments or of what it gives; kernels.py has the same number.
extern "C" int64_t kernels_version() { return 2; }

// Which of its versions this machine runs: 4, 3 for the levels of x86-64; 0 where there is but one, or the lowest.
extern "C" int64_t kernels_level() {
#if KERNEL_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return 0;
}
