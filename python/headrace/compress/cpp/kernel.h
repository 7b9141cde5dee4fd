// What the kernels of codecs have in common. headrace/compress/kernels.py calls them and says how they are found.
//
// A kernel gives the bits of the torch operations that it stands for: no fused multiplications and additions, sums in
// the order that is written there. Pointers are to whole arrays whose lengths the caller has checked; what comes from
// other ranks is checked here before it is a place in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

// One version for each level of x86-64, of which the loader takes the highest that the machine has; elsewhere one.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define KERNEL_LEVELS 1
#define KERNEL extern "C" __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL_LEVELS 0
#define KERNEL extern "C"
#endif

constexpr int32_t INFINITE = 0x7f800000;  // bits of float32
constexpr int32_t NO_NUMBER = 0x7fc00000;
constexpr uint64_t GATHER = 0x0102040810204080u;  // eight flags, a byte each, into the highest byte: signs.py says why

template <class To, class From>
static inline __attribute__((always_inline)) To bits_as(const From& value) {
  static_assert(sizeof(To) == sizeof(From));
  To found;
  std::memcpy(&found, &value, sizeof found);
  return found;
}
