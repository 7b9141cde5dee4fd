// Scales and codes of buckets: the operations of buckets.py, levels.py, natural.py, to the bit.

#include "kernel.h"

#include <limits>

namespace {

// `work(start, stop, factor, bytes)` for stretches of a bucket whose draws lie two bytes apart from `bytes` on.
// A piece has words of its own: its first half has their bytes from even ones on, the other those from odd ones on.
template <class Work>
inline __attribute__((always_inline)) void by_stretches(int64_t n, int64_t bucket, int64_t piece, const float* factors,
                                                        const uint8_t* words, Work work) {
  for (int64_t begin = 0; begin < n; begin += piece) {
    const int64_t end = std::min(n, begin + piece), half = (end - begin + 1) / 2;
    for (int64_t first = begin; first < end; first += bucket, ++factors) {
      const int64_t last = std::min(end, first + bucket), middle = std::clamp(begin + half, first, last);
      if (first < middle) work(first, middle, *factors, words + 2 * (first - begin));
      if (middle < last) work(middle, last, *factors, words + 2 * (middle - begin - half) + 1);
    }
    words += 8 * (half / 4 + 1);
  }
}

inline __attribute__((always_inline)) uint16_t two_bytes(const uint8_t* bytes) {
  uint16_t found;
  std::memcpy(&found, bytes, 2);
  return found;
}

// What is not finite has code 0, as torch's conversion gives it: its bucket's scale says so.
inline __attribute__((always_inline)) uint8_t cut_off(float y, int32_t most) {
  const float kept = (y > -1.0f) & (y < 256.0f) ? y : 0.0f;
  return static_cast<uint8_t>(std::min(static_cast<int32_t>(kept), most));
}

inline __attribute__((always_inline)) float within(float y, float bound) {
  y = y < -bound ? -bound : y;
  return y > bound ? bound : y;
}

}  // namespace

// max |x| of every bucket [buckets], NaN where a number is none: bits of floats without sign are in their order.
KERNEL int64_t bucket_largest(const int32_t* x, int64_t n, int64_t bucket, int32_t* __restrict found) {
  for (int64_t start = 0; start < n; start += bucket) {
    const int64_t stop = std::min(n, start + bucket);
    int32_t most = 0;
    for (int64_t i = start; i < stop; ++i) most = std::max(most, x[i] & 0x7fffffff);
    *found++ = most > INFINITE ? NO_NUMBER : most;
  }
  return 0;
}

// floor(x factor + u + s), u drawn; `clipped`: x factor is kept within [-1, 1] before.
KERNEL int64_t level_codes_drawn(const float* x, int64_t n, int64_t bucket, int64_t piece, const float* factors,
                                 const uint8_t* words, int64_t levels, int64_t clipped, uint8_t* __restrict codes) {
  const float s = static_cast<float>(levels), bound = clipped ? 1.0f : std::numeric_limits<float>::infinity();
  const int32_t most = static_cast<int32_t>(2 * levels);
  const auto coded = [=](int64_t start, int64_t stop, float factor, const uint8_t* bytes)
                         __attribute__((always_inline)) {
    const float* from = x + start;
    uint8_t* to = codes + start;
    for (int64_t i = 0; i < stop - start; ++i) {
      const float u = static_cast<float>(two_bytes(bytes + 2 * i)) * 0x1p-16f;
      to[i] = cut_off(within(from[i] * factor, bound) + u + s, most);
    }
  };
  by_stretches(n, bucket, piece, factors, words, coded);
  return 0;
}

// x factor to the nearest, ties to even, and s.
KERNEL int64_t level_codes_nearest(const float* x, int64_t n, int64_t bucket, const float* factors, int64_t levels,
                                   uint8_t* __restrict codes) {
  const float s = static_cast<float>(levels), whole = 0x1.8p23f;  // what is added to it has no fraction
  const int32_t most = static_cast<int32_t>(2 * levels);
  for (int64_t start = 0; start < n; start += bucket) {
    const int64_t stop = std::min(n, start + bucket);
    const float factor = *factors++;
    for (int64_t i = start; i < stop; ++i) codes[i] = cut_off((x[i] * factor + whole) - whole + s, most);
  }
  return 0;
}

// (code - s) step.
KERNEL int64_t level_values(const uint8_t* codes, int64_t n, int64_t bucket, const float* steps, int64_t levels,
                            float* __restrict out) {
  const uint8_t s = static_cast<uint8_t>(levels);
  for (int64_t start = 0; start < n; start += bucket) {
    const int64_t stop = std::min(n, start + bucket);
    const float step = *steps++;
    for (int64_t i = start; i < stop; ++i)
      out[i] = static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(codes[i] - s))) * step;
  }
  return 0;
}

// Sign and 7 bits of the exponent of x factor, into which what is drawn carries.
KERNEL int64_t natural_codes(const float* x, int64_t n, int64_t bucket, int64_t piece, const float* factors,
                             const uint8_t* words, uint8_t* __restrict codes) {
  const auto coded = [=](int64_t start, int64_t stop, float factor, const uint8_t* bytes)
                         __attribute__((always_inline)) {
    const float* from = x + start;
    uint8_t* to = codes + start;
    for (int64_t i = 0; i < stop - start; ++i) {
      const int32_t bits = bits_as<int32_t>(from[i] * factor);
      const int32_t sign = bits < 0 ? 1 << 23 : 0;
      to[i] = static_cast<uint8_t>(((bits >> 7) + two_bytes(bytes + 2 * i) + sign) >> 16);
    }
  };
  by_stretches(n, bucket, piece, factors, words, coded);
  return 0;
}

// The power of two that a code stands for, times step.
KERNEL int64_t natural_values(const uint8_t* codes, int64_t n, int64_t bucket, const float* steps,
                              float* __restrict out) {
  for (int64_t start = 0; start < n; start += bucket) {
    const int64_t stop = std::min(n, start + bucket);
    const float step = *steps++;
    for (int64_t i = start; i < stop; ++i) {
      const uint32_t bits = static_cast<uint32_t>(static_cast<int8_t>(codes[i])) << 23 & ~(1u << 30);
      out[i] = bits_as<float>(bits) * step;
    }
  }
  return 0;
}
