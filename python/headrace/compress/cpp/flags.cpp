// Flags of numbers, eight a byte with the first in the lowest bit, and what they choose: signs.py, onebit.py.

#include "kernel.h"

#include <array>
#include <vector>

namespace {

constexpr int64_t TOGETHER = 64, SPAN = 512;

// For every byte, eight words of ones where its bit is set.
constexpr std::array<std::array<uint32_t, 8>, 256> MASKS = [] {
  std::array<std::array<uint32_t, 8>, 256> found{};
  for (int byte = 0; byte < 256; ++byte)
    for (int bit = 0; bit < 8; ++bit) found[byte][bit] = byte >> bit & 1 ? ~0u : 0u;
  return found;
}();

inline __attribute__((always_inline)) uint64_t eight_flags(const uint8_t* flags) {
  uint64_t found;
  std::memcpy(&found, flags, 8);
  return found;
}

// Writes the bits of `flag(i)` for i < n; how many are set.
template <class Flag>
inline __attribute__((always_inline)) int64_t marked(int64_t n, uint8_t* bits, Flag flag) {
  int64_t set = 0;
  for (int64_t start = 0; start < n; start += TOGETHER) {
    const int64_t count = std::min(n - start, TOGETHER);
    alignas(TOGETHER) uint8_t flags[TOGETHER] = {};
    uint64_t word = 0;
    if (count == TOGETHER)
      for (int64_t i = 0; i < TOGETHER; ++i) flags[i] = flag(start + i);
    else
      for (int64_t i = 0; i < count; ++i) flags[i] = flag(start + i);
    for (int64_t byte = 0; byte < 8; ++byte) word |= (eight_flags(flags + 8 * byte) * GATHER >> 56) << 8 * byte;
    std::memcpy(bits + start / 8, &word, (count + 7) / 8);
    set += __builtin_popcountll(word);
  }
  return set;
}

// The sum of part [count] in the order of onebit.py; part is overwritten, and has room for a power of two or SPAN.
inline __attribute__((always_inline)) float folded(float* part, int64_t count) {
  while (count > 1) {
    int64_t span = 2;
    while (span < count && span < SPAN) span *= 2;
    const int64_t spans = (count + span - 1) / span;
    std::fill(part + count, part + spans * span, 0.0f);
    for (int64_t place = 0; place < spans; ++place) {
      float* own = part + place * span;
      for (int64_t half = span / 2; half; half /= 2)
#pragma GCC ivdep
        for (int64_t i = 0; i < half; ++i) own[i] += own[i + half];
      part[place] = own[0];
    }
    count = spans;
  }
  return part[0];
}

}  // namespace

// x < 0; returns how many are.
KERNEL int64_t mark_negative(const float* x, int64_t n, uint8_t* __restrict bits) {
  return marked(n, bits, [=](int64_t i) __attribute__((always_inline)) { return x[i] < 0.0f; });
}

// Not |x| <= limit; returns how many are so.
KERNEL int64_t mark_beyond(const float* x, int64_t n, const float* limit, uint8_t* __restrict bits) {
  const float most = *limit;
  return marked(n, bits, [=](int64_t i) __attribute__((always_inline)) { return !(__builtin_fabsf(x[i]) <= most); });
}

// Of every bucket, a multiple of 8 numbers: how many are negative [buckets], and the sums of these and of the others
// [2, buckets]; all signs.
KERNEL int64_t part_buckets(const float* x, int64_t n, int64_t bucket, int64_t* __restrict below,
                            float* __restrict sums, uint8_t* __restrict bits) {
  const int64_t buckets = (n + bucket - 1) / bucket, room = (bucket + SPAN - 1) / SPAN * SPAN;
  std::vector<float> negative(room), other(room);
  for (int64_t place = 0; place < buckets; ++place) {
    const float* from = x + place * bucket;
    const int64_t count = std::min(n - place * bucket, bucket);
    float *less = negative.data(), *rest = other.data();
    for (int64_t i = 0; i < count; ++i) {
      less[i] = from[i] >= 0.0f ? 0.0f : from[i];  // what is no number goes to both
      rest[i] = from[i] <= 0.0f ? 0.0f : from[i];
    }
    std::fill(less + count, less + bucket, 0.0f);
    std::fill(rest + count, rest + bucket, 0.0f);
    below[place] = marked(count, bits + place * (bucket / 8),
                          [=](int64_t i) __attribute__((always_inline)) { return from[i] < 0.0f; });
    sums[place] = folded(less, bucket);
    sums[buckets + place] = folded(rest, bucket);
  }
  return 0;
}

// Words [n]: of every bucket's pair [buckets, 2] the first where its bit is set, else the second.
KERNEL int64_t choose(const uint8_t* bits, int64_t n, int64_t bucket, const uint32_t* pairs,
                      uint32_t* __restrict out) {
  for (int64_t start = 0; start < n; start += bucket, pairs += 2) {
    const int64_t stop = std::min(n, start + bucket);
    const uint32_t clear = pairs[1], change = pairs[0] ^ pairs[1];
    for (int64_t first = start; first < stop; first += 8) {
      const auto& mask = MASKS[bits[first / 8]];
      if (stop - first >= 8)
        for (int64_t i = 0; i < 8; ++i) out[first + i] = clear ^ (change & mask[i]);
      else
        for (int64_t i = 0; i < stop - first; ++i) out[first + i] = clear ^ (change & mask[i]);
    }
  }
  return 0;
}
