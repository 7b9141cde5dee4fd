// Rounding to 256 values and back: dynamic_tree.py, whose tables these are, for float32.

#include "kernel.h"

namespace {

constexpr int64_t BLOCK = 2048;
constexpr int32_t LARGEST = 0x7f7fffff;

// Bits of floats as integers in their order, and back: those of negative numbers are turned around.
inline __attribute__((always_inline)) int32_t ascending(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

}  // namespace

// A block's scale is its largest number, kept finite, or NaN; its codes are the nearest to x / scale, x if that is 0.
KERNEL int64_t tree_quantize(const int32_t* x, int64_t n, int64_t with_sign, const int32_t* __restrict entries,
                             uint8_t* __restrict codes, int32_t* __restrict scales) {
  for (int64_t start = 0; start < n; start += BLOCK) {
    const int64_t count = std::min(n - start, BLOCK);
    const int32_t* from = x + start;
    int32_t most = with_sign ? 0 : INT32_MIN, largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, from[i] & 0x7fffffff);
    if (with_sign) most = largest;
    else
      for (int64_t i = 0; i < count; ++i) most = std::max(most, ascending(from[i]));
    most = std::min(ascending(most), LARGEST);
    if (largest > INFINITE) most = NO_NUMBER;
    *scales++ = most;
    const float scale = bits_as<float>(most), divisor = scale > 0.0f ? scale : 1.0f;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t bits = bits_as<int32_t>(bits_as<float>(from[i]) / divisor);
      const int32_t beyond = (bits ^ bits >> 31) & 0xffff;
      codes[start + i] = static_cast<uint8_t>((entries[bits >> 16 & 0xffff] + beyond) >> 16);
    }
  }
  return 0;
}

// values[code] scale.
KERNEL int64_t tree_values(const uint8_t* codes, int64_t n, const float* scales, const float* __restrict values,
                           float* __restrict out) {
  for (int64_t start = 0; start < n; start += BLOCK) {
    const int64_t stop = std::min(n, start + BLOCK);
    const float scale = *scales++;
    for (int64_t i = start; i < stop; ++i) out[i] = values[codes[i]] * scale;
  }
  return 0;
}
