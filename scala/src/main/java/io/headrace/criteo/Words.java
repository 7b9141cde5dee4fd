package io.headrace.criteo;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * Bytes eight at a time, each in its own lane of a long: half of a line of Criteo is eight hex digits.
 *
 * <p>In Java, because a constant VarHandle needs a static final field.
 */
final class Words {
  private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
  private static final long ONES = 0x0101010101010101L;
  private static final long HIGH = 0x80 * ONES;

  private Words() {}

  /** The number that the eight hex digits at `at` are; -1 where one of the bytes is no hex digit. */
  static long hex(byte[] data, int at) {
    long word = (long) LONGS.get(data, at);
    long letter = word | 0x20 * ONES;
    // A lane's high bit: at least the bound. No lane carries into the next, as none is above 0x7f.
    long digits = (word + 0x50 * ONES) & ~(word + 0x46 * ONES);
    long letters = (letter + 0x1f * ONES) & ~(letter + 0x19 * ONES);
    if ((word & HIGH) != 0 || ((digits | letters) & HIGH) != HIGH) return -1;
    long nibbles = Long.reverseBytes((word & 0x0f * ONES) + 9 * (word >>> 6 & ONES));
    nibbles = (nibbles | nibbles >>> 4) & 0x00ff00ff00ff00ffL;
    nibbles = (nibbles | nibbles >>> 8) & 0x0000ffff0000ffffL;
    return (nibbles | nibbles >>> 16) & 0xffffffffL;
  }

  /** The place of the first newline in [from, to), or `to`. */
  static int newline(byte[] data, int from, int to) {
    int at = from;
    for (; at <= to - Long.BYTES; at += Long.BYTES) {
      long other = (long) LONGS.get(data, at) ^ '\n' * ONES;
      long found = (other - ONES) & ~other & HIGH; // the lowest bit is exact
      if (found != 0) return at + (Long.numberOfTrailingZeros(found) >>> 3);
    }
    while (at < to && data[at] != '\n') at++;
    return at;
  }
}
