// Small whole numbers end to end in bytes: packing.py, for numbers of 1 to 7 bits and of three values, piece by piece.

#include "kernel.h"

#include <numeric>

namespace {

constexpr int64_t TRITS = 5;

// Stretches of a piece of n numbers; the last ones may have fewer numbers than their length, or none.
struct Stretches {
  int64_t n, length;

  Stretches(int64_t n, int64_t planes) : n(n), length((n + planes - 1) / planes) {}
  int64_t filled(int64_t plane) const { return std::clamp<int64_t>(n - plane * length, 0, length); }
};

inline int64_t planes_of(int64_t bits) { return 8 / std::gcd<int64_t, int64_t>(8, bits); }

}  // namespace

KERNEL int64_t pack_bits(const uint8_t* values, int64_t n, int64_t bits, int64_t piece, uint8_t* __restrict out) {
  const int64_t planes = planes_of(bits), rows = planes * bits / 8;
  for (int64_t begin = 0; begin < n; begin += piece) {
    const Stretches stretches(std::min(piece, n - begin), planes);
    std::memset(out, 0, rows * stretches.length);
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int64_t row = plane * bits / 8, low = plane * bits % 8, count = stretches.filled(plane);
      const uint8_t* from = values + begin + plane * stretches.length;
      uint8_t* to = out + row * stretches.length;
      for (int64_t j = 0; j < count; ++j) to[j] |= static_cast<uint8_t>(from[j] << low);
      if (low + bits <= 8) continue;
      to += stretches.length;
      for (int64_t j = 0; j < count; ++j) to[j] |= static_cast<uint8_t>(from[j] >> (8 - low));
    }
    out += rows * stretches.length;
  }
  return 0;
}

KERNEL int64_t unpack_bits(const uint8_t* data, int64_t bits, int64_t n, int64_t piece, uint8_t* __restrict out) {
  const int64_t planes = planes_of(bits), rows = planes * bits / 8;
  const uint8_t mask = static_cast<uint8_t>((1 << bits) - 1);
  for (int64_t begin = 0; begin < n; begin += piece) {
    const Stretches stretches(std::min(piece, n - begin), planes);
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int64_t row = plane * bits / 8, low = plane * bits % 8, count = stretches.filled(plane);
      const uint8_t* from = data + row * stretches.length;
      uint8_t* to = out + begin + plane * stretches.length;
      if (low + bits <= 8) {
        for (int64_t j = 0; j < count; ++j) to[j] = from[j] >> low & mask;
      } else {
        const uint8_t* next = from + stretches.length;
        for (int64_t j = 0; j < count; ++j) to[j] = static_cast<uint8_t>(from[j] >> low | next[j] << (8 - low)) & mask;
      }
    }
    data += rows * stretches.length;
  }
  return 0;
}

KERNEL int64_t pack_trits(const uint8_t* values, int64_t n, int64_t piece, uint8_t* __restrict out) {
  for (int64_t begin = 0; begin < n; begin += piece) {
    const Stretches stretches(std::min(piece, n - begin), TRITS);
    std::memset(out, 0, stretches.length);
    uint8_t power = 1;
    for (int64_t plane = 0; plane < TRITS; ++plane, power *= 3) {
      const uint8_t* from = values + begin + plane * stretches.length;
      const int64_t count = stretches.filled(plane);
      for (int64_t j = 0; j < count; ++j) out[j] += static_cast<uint8_t>(from[j] * power);
    }
    out += stretches.length;
  }
  return 0;
}

// Bytes of at most 242.
KERNEL int64_t unpack_trits(const uint8_t* data, int64_t n, int64_t piece, uint8_t* __restrict out) {
  for (int64_t begin = 0; begin < n; begin += piece) {
    const Stretches stretches(std::min(piece, n - begin), TRITS);
    uint32_t below = 1;
    for (int64_t plane = 0; plane < TRITS; ++plane, below *= 3) {
      uint8_t* to = out + begin + plane * stretches.length;
      const int64_t count = stretches.filled(plane);
      // floor(byte / 3^p) by a product: 2^16 / 3^p is rounded up by 1 at most, which adds under 255 / 2^16 < 1 / 81.
      const uint32_t part = 65536 / below + 1;
      for (int64_t j = 0; j < count; ++j) {
        const uint32_t left = data[j] * part >> 16, third = left * 171 >> 9;
        to[j] = static_cast<uint8_t>(left - 3 * third);
      }
    }
    data += stretches.length;
  }
  return 0;
}
