package io.headrace.warc;

import java.util.Arrays;

/**
 * A code of a deflate block as a table that is looked up by the next bits of the stream.
 *
 * <p>An entry: low 6 bits all bits to take, then 4 bits those of the code; from bit 16 on the value. Codes longer than
 * the table's width lead to a subtable: its entry has the bits of the subtable in place of those of the code, and its
 * beginning as the value.
 */
final class CodeTable {
  static final int LITERAL = 1 << 31;
  static final int SPECIAL = 1 << 15;
  static final int SUBTABLE = 1 << 14;

  private static final int LONGEST = 15;

  final int[] entries;

  private final int width;
  private final int[] symbols;
  private final boolean mayBeEmpty;
  private final int[] counts = new int[LONGEST + 1];
  private final int[] starts = new int[LONGEST + 1];
  private final short[] sorted;

  /**
   * @param symbols the entry of each symbol, without the bits of its code
   * @param mayBeEmpty whether no code at all, or one of one bit, is good, too
   */
  CodeTable(int width, int[] symbols, boolean mayBeEmpty) {
    this.width = width;
    this.symbols = symbols;
    this.mayBeEmpty = mayBeEmpty;
    sorted = new short[symbols.length];
    // Room for all subtables: there are no more than symbols, none longer than that.
    entries = new int[(1 << width) + symbols.length * Math.max(1, 1 << (LONGEST - width))];
  }

  /**
   * Build the table of {@code count} symbols whose lengths begin at {@code from}; false if these are no code.
   *
   * <p>Codes are gone through in their order, shortest first; whenever they get longer by a bit, the table so far is
   * what it is for that bit being 0 and for its being 1, and is copied: each entry is written once, the rest in runs.
   */
  boolean build(byte[] lengths, int from, int count) {
    int left = count(lengths, from, count);
    sort(lengths, from, count);
    if (left != 0) return left > 0 && mayBeEmpty && incomplete();
    int length = 1;
    while (counts[length] == 0) length++;
    int size = 1 << length;
    int code = 0;
    int symbol = 0;
    for (left = counts[length]; length <= width; left = counts[length]) {
      for (; left > 0; left--) {
        entries[code] = symbols[sorted[symbol++]] + length * 65;
        if (code == size - 1) return repeat(size);
        code = following(code, size);
      }
      do {
        if (++length <= width) {
          System.arraycopy(entries, 0, entries, size, size);
          size <<= 1;
        }
      } while (counts[length] == 0);
    }
    return subtables(length, code, symbol);
  }

  /** Count the lengths; gives how much of all codes of the longest length is not taken, negative if too much is. */
  private int count(byte[] lengths, int from, int count) {
    Arrays.fill(counts, 0);
    for (int i = from; i < from + count; i++) counts[lengths[i]]++;
    int left = 1 << LONGEST;
    for (int length = 1; length <= LONGEST; length++) left -= counts[length] << (LONGEST - length);
    return left;
  }

  /** Put the symbols that have a code in the order of their codes. */
  private void sort(byte[] lengths, int from, int count) {
    starts[1] = 0;
    for (int length = 2; length <= LONGEST; length++) starts[length] = starts[length - 1] + counts[length - 1];
    for (int symbol = 0; symbol < count; symbol++) {
      int length = lengths[from + symbol];
      if (length != 0) sorted[starts[length]++] = (short) symbol;
    }
  }

  /** No code, or one of one bit; what no code leads to is an end of block, which is refused among distances. */
  private boolean incomplete() {
    int used = starts[LONGEST];
    if (used > 1 || used == 1 && counts[1] == 0) return false;
    Arrays.fill(entries, 0, 1 << width, SPECIAL);
    if (used == 1) for (int at = 0; at < 1 << width; at += 2) entries[at] = symbols[sorted[0]] + 65;
    return true;
  }

  /** Fill the table with copies of its first {@code size} entries. */
  private boolean repeat(int size) {
    for (; size < 1 << width; size <<= 1) System.arraycopy(entries, 0, entries, size, size);
    return true;
  }

  /** The codes that are longer than the table's width, from the first of them on. */
  private boolean subtables(int length, int code, int symbol) {
    int mask = (1 << width) - 1;
    int prefix = -1;
    int start = 0;
    int end = 1 << width;
    int left = counts[length];
    while (true) {
      if ((code & mask) != prefix) {
        prefix = code & mask;
        start = end;
        int deeper = length - width;
        for (int used = left; used < 1 << deeper; used = (used << 1) + counts[width + deeper]) deeper++;
        end = start + (1 << deeper);
        entries[prefix] = start << 16 | SPECIAL | SUBTABLE | deeper << 6 | width;
      }
      int entry = symbols[sorted[symbol++]] + (length - width) * 65;
      for (int at = start + (code >>> width); at < end; at += 1 << (length - width)) entries[at] = entry;
      if (code == (1 << length) - 1) return true;
      code = following(code, 1 << length);
      if (--left == 0) {
        while (counts[++length] == 0) {}
        left = counts[length];
      }
    }
  }

  /** The code after {@code code}, both with their first bit lowest; {@code size} is 1 << their length. */
  private static int following(int code, int size) {
    int bit = Integer.highestOneBit(code ^ (size - 1));
    return code & (bit - 1) | bit;
  }
}
