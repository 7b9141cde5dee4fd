// Places of a few numbers of many: where flags are set, Elias and Fano's code (index_coding.py), numbers among zeros.

#include "kernel.h"

namespace {

constexpr uint64_t ONES = 0x0101010101010101u, EACH = 0x8040201008040201u, CARRY = 0x7f7f7f7f7f7f7f7fu;  // signs.py
constexpr int64_t ZEROED = 4096;  // numbers: they are still in the cache when others are written among them

// Bits [64 word, 64 word + 64) of n, zeros behind.
inline __attribute__((always_inline)) uint64_t word_at(const uint8_t* bits, int64_t word, int64_t n) {
  const int64_t left = n - 64 * word;
  uint64_t found = 0;
  std::memcpy(&found, bits + 8 * word, std::min<int64_t>(8, (left + 7) / 8));
  return left >= 64 ? found : found & ((uint64_t{1} << left) - 1);
}

}  // namespace

// How many of n bits are set.
KERNEL int64_t count_bits(const uint8_t* bits, int64_t n) {
  int64_t found = 0;
  for (int64_t word = 0; word < (n + 63) / 64; ++word) found += __builtin_popcountll(word_at(bits, word, n));
  return found;
}

// Ascending places of the bits that are set among n, of which there are as many as `out` has room for.
KERNEL int64_t places_of(const uint8_t* bits, int64_t n, int64_t* __restrict out) {
  for (int64_t word = 0; word < (n + 63) / 64; ++word)
    for (uint64_t left = word_at(bits, word, n); left; left &= left - 1) *out++ = 64 * word + __builtin_ctzll(left);
  return 0;
}

// Elias and Fano's code of places [count], into zeros: a row of `length` bits, and `low` planes of ceil(k / 8) bytes.
// Returns 0, or 1 where a place does not fit in.
KERNEL int64_t encode_places(const int64_t* places, int64_t count, int64_t k, int64_t low, int64_t length,
                             uint8_t* __restrict steps, uint8_t* __restrict planes) {
  const int64_t row = (k + 7) / 8;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = (places[j] >> low) + j;
    if (at < 0 || at >= length) return 1;
    steps[at / 8] |= static_cast<uint8_t>(1 << at % 8);
  }
  for (int64_t first = 0; first < count; first += 8) {
    const int64_t some = std::min<int64_t>(8, count - first);
    for (int64_t byte = 0; byte < low; byte += 8) {
      uint64_t word = 0;  // one byte of each of eight places
      for (int64_t j = 0; j < some; ++j) word |= (static_cast<uint64_t>(places[first + j]) >> byte & 255) << 8 * j;
      for (int64_t bit = byte; bit < std::min(low, byte + 8); ++bit)
        planes[bit * row + first / 8] = static_cast<uint8_t>((word >> (bit - byte) & ONES) * GATHER >> 56);
    }
  }
  return 0;
}

// Undo `encode_places`: as many places as bits of the row are set, at most k, for which `out` has room. Returns 0, or 1
// where they do not ascend.
KERNEL int64_t decode_places(const uint8_t* steps, int64_t length, const uint8_t* planes, int64_t k, int64_t low,
                             int64_t* __restrict out) {
  const int64_t row = (k + 7) / 8;
  int64_t count = 0, last = -1;
  bool ascend = true;
  for (int64_t word = 0; word < (length + 63) / 64; ++word)
    for (uint64_t left = word_at(steps, word, length); left; left &= left - 1, ++count)
      out[count] = (64 * word + __builtin_ctzll(left) - count) << low;
  for (int64_t first = 0; first < count; first += 8) {
    const int64_t some = std::min<int64_t>(8, count - first);
    for (int64_t byte = 0; byte < low; byte += 8) {
      uint64_t word = 0;
      for (int64_t bit = byte; bit < std::min(low, byte + 8); ++bit) {
        const uint64_t spread = ((planes[bit * row + first / 8] * ONES & EACH) + CARRY) >> 7 & ONES;
        word |= spread << (bit - byte);
      }
      for (int64_t j = 0; j < some; ++j) out[first + j] |= static_cast<int64_t>(word >> 8 * j & 255) << byte;
    }
    for (int64_t j = first; j < first + some; ++j) {
      ascend &= out[j] > last;
      last = out[j];
    }
  }
  return !ascend;
}

// Zeros [n], but values [count] at ascending places. Returns 0, or 1 where these do not ascend or are beyond n.
KERNEL int64_t scatter(const int64_t* places, const uint32_t* values, int64_t count, int64_t n,
                       uint32_t* __restrict out) {
  int64_t j = 0, last = -1;
  for (int64_t start = 0; start < n; start += ZEROED) {
    const int64_t stop = std::min(n, start + ZEROED);
    std::memset(out + start, 0, 4 * (stop - start));
    for (; j < count && places[j] > last && places[j] < stop; ++j) {
      last = places[j];
      out[last] = values[j];
    }
  }
  return j < count;
}
