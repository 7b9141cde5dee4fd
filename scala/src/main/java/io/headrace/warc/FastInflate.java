package io.headrace.warc;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * Inflates a whole deflate stream (RFC 1951) from one array into another.
 *
 * <p>What makes it faster than zlib behind JNI is what makes libdeflate fast: all input and output are at hand, so that
 * bits are taken 56 at a time, codes are looked up in one table of 11 bits whose entries hold base value and extra bits,
 * and copies go in words. It does not say what is wrong with a stream: whatever it does not like (bad codes, too little
 * input, too little room) it gives up, and the caller asks zlib.
 *
 * <p>In Java, because a constant VarHandle needs a static final field.
 */
final class FastInflate {
  /** Bytes that may be read behind the input, and written behind what is needed of the output. */
  static final int SLACK = 16;

  private static final VarHandle WORDS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

  private static final int LITERAL_BITS = 11;
  private static final int DISTANCE_BITS = 9;
  private static final int LENGTH_BITS = 7;
  private static final int LITERAL_MASK = (1 << LITERAL_BITS) - 1;
  private static final int DISTANCE_MASK = (1 << DISTANCE_BITS) - 1;
  private static final int LONGEST_MATCH = 258;

  private static final int[] LENGTH_BASE = {
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258
  };
  private static final int[] LENGTH_EXTRA = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0
  };
  private static final int[] DISTANCE_BASE = {
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145,
    8193, 12289, 16385, 24577
  };
  private static final int[] DISTANCE_EXTRA = {
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13
  };
  private static final int[] LITERAL_SYMBOLS = new int[288];
  private static final int[] DISTANCE_SYMBOLS = new int[32];
  private static final int[] LENGTH_SYMBOLS = new int[19];

  static {
    for (int symbol = 0; symbol < 256; symbol++) LITERAL_SYMBOLS[symbol] = CodeTable.LITERAL | symbol << 16;
    LITERAL_SYMBOLS[256] = CodeTable.SPECIAL;
    for (int i = 0; i < 29; i++) LITERAL_SYMBOLS[257 + i] = LENGTH_BASE[i] << 16 | LENGTH_EXTRA[i];
    for (int symbol = 286; symbol < 288; symbol++) LITERAL_SYMBOLS[symbol] = CodeTable.SPECIAL | 1 << 16;
    for (int i = 0; i < 30; i++) DISTANCE_SYMBOLS[i] = DISTANCE_BASE[i] << 16 | DISTANCE_EXTRA[i];
    for (int symbol = 30; symbol < 32; symbol++) DISTANCE_SYMBOLS[symbol] = CodeTable.SPECIAL;
    for (int symbol = 0; symbol < 19; symbol++) LENGTH_SYMBOLS[symbol] = symbol << 16;
  }

  private static final int[] ORDER = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

  private final CodeTable literalCodes = new CodeTable(LITERAL_BITS, LITERAL_SYMBOLS, false);
  // A block without matches has no distance, and one with one distance a code of one bit.
  private final CodeTable distanceCodes = new CodeTable(DISTANCE_BITS, DISTANCE_SYMBOLS, true);
  private final CodeTable lengthCodes = new CodeTable(LENGTH_BITS, LENGTH_SYMBOLS, false);
  private final byte[] lengths = new byte[288 + 32 + 138];
  private boolean fixed;

  private byte[] in;
  private int inAt;
  private int inEnd;
  private long bits;
  private int held;
  private byte[] out;
  private int outAt;
  private int outStart;
  private int outEnd;

  /** Offset behind the last byte of the stream, after {@link #inflate} was true. */
  int consumed() {
    return inAt;
  }

  /** Offset behind the last byte that was inflated, after {@link #inflate} was true. */
  int produced() {
    return outAt;
  }

  /**
   * Inflate the stream that begins at {@code in[start]}.
   *
   * @param in at least SLACK bytes longer than {@code end}
   * @param out filled from {@code to} on; bytes up to {@code until} may be written
   * @return whether the stream ended well; if not, nothing can be said but that zlib is to be asked
   */
  boolean inflate(byte[] in, int start, int end, byte[] out, int to, int until) {
    if (in.length - SLACK < end) return false;
    this.in = in;
    this.inAt = start;
    this.inEnd = end;
    this.bits = 0;
    this.held = 0;
    this.out = out;
    this.outAt = to;
    this.outStart = to;
    this.outEnd = until;
    boolean last;
    do {
      if (!refill()) return false;
      last = (bits & 1) != 0;
      int kind = (int) (bits >>> 1) & 3;
      take(3);
      boolean good =
          switch (kind) {
            case 0 -> stored();
            case 1 -> fixedCodes() && block();
            case 2 -> dynamicCodes() && block();
            default -> false;
          };
      if (!good) return false;
    } while (!last);
    inAt -= held >>> 3;
    return inAt <= end;
  }

  private boolean refill() {
    if (inAt > inEnd + SLACK - 8) return false;
    bits |= (long) WORDS.get(in, inAt) << held;
    inAt += (63 - held) >>> 3;
    held |= 56;
    return true;
  }

  private void take(int count) {
    bits >>>= count;
    held -= count;
  }

  private boolean stored() {
    take(held & 7);
    inAt -= held >>> 3;
    bits = 0;
    held = 0;
    if (inAt + 4 > inEnd) return false;
    int length = (in[inAt] & 0xff) | (in[inAt + 1] & 0xff) << 8;
    int check = (in[inAt + 2] & 0xff) | (in[inAt + 3] & 0xff) << 8;
    inAt += 4;
    if ((length ^ check) != 0xffff || length > inEnd - inAt || length > outEnd - outAt) return false;
    System.arraycopy(in, inAt, out, outAt, length);
    inAt += length;
    outAt += length;
    return true;
  }

  private boolean fixedCodes() {
    if (fixed) return true;
    Arrays.fill(lengths, 0, 144, (byte) 8);
    Arrays.fill(lengths, 144, 256, (byte) 9);
    Arrays.fill(lengths, 256, 280, (byte) 7);
    Arrays.fill(lengths, 280, 288, (byte) 8);
    Arrays.fill(lengths, 288, 320, (byte) 5);
    fixed = literalCodes.build(lengths, 0, 288) && distanceCodes.build(lengths, 288, 32);
    return fixed;
  }

  private boolean dynamicCodes() {
    fixed = false;
    int literalCount = ((int) bits & 31) + 257;
    int distanceCount = ((int) (bits >>> 5) & 31) + 1;
    int precodeCount = ((int) (bits >>> 10) & 15) + 4;
    take(14);
    if (literalCount > 286 || distanceCount > 30) return false;
    Arrays.fill(lengths, 0, 19, (byte) 0);
    for (int i = 0; i < precodeCount; i++) {
      if (held < 3 && !refill()) return false;
      lengths[ORDER[i]] = (byte) (bits & 7);
      take(3);
    }
    if (!lengthCodes.build(lengths, 0, 19)) return false;
    int total = literalCount + distanceCount;
    int at = 0;
    while (at < total) {
      if (!refill()) return false;
      int entry = lengthCodes.entries[(int) bits & ((1 << LENGTH_BITS) - 1)];
      take(entry & 63);
      int symbol = entry >>> 16;
      if (symbol < 16) lengths[at++] = (byte) symbol;
      else {
        int extra = symbol == 16 ? 2 : symbol == 17 ? 3 : 7;
        int repeat = (symbol == 18 ? 11 : 3) + ((int) bits & ((1 << extra) - 1));
        take(extra);
        if (symbol == 16 && at == 0 || repeat > total - at) return false;
        Arrays.fill(lengths, at, at + repeat, symbol == 16 ? lengths[at - 1] : 0);
        at += repeat;
      }
    }
    return lengths[256] != 0
        && literalCodes.build(lengths, 0, literalCount)
        && distanceCodes.build(lengths, literalCount, distanceCount);
  }

  /** Decode symbols up to the end of the block. */
  private boolean block() {
    final byte[] in = this.in;
    final byte[] out = this.out;
    final int[] literals = literalCodes.entries;
    final int[] distances = distanceCodes.entries;
    final int inLimit = inEnd + SLACK - 8;
    final int outLimit = outEnd - LONGEST_MATCH - 2 * SLACK;
    int inAt = this.inAt;
    int outAt = this.outAt;
    long bits = this.bits;
    int held = this.held;
    while (true) {
      if (inAt > inLimit || outAt > outLimit) return false;
      bits |= (long) WORDS.get(in, inAt) << held;
      inAt += (63 - held) >>> 3;
      held |= 56;
      int entry = literals[(int) bits & LITERAL_MASK];
      if (entry < 0) {
        bits >>>= entry;
        held -= entry & 63;
        out[outAt++] = (byte) (entry >>> 16);
        entry = literals[(int) bits & LITERAL_MASK];
        if (entry < 0) {
          bits >>>= entry;
          held -= entry & 63;
          out[outAt++] = (byte) (entry >>> 16);
          entry = literals[(int) bits & LITERAL_MASK];
          if (entry < 0) {
            bits >>>= entry;
            held -= entry & 63;
            out[outAt++] = (byte) (entry >>> 16);
            continue;
          }
        }
      }
      if ((entry & CodeTable.SPECIAL) != 0) {
        if ((entry & CodeTable.SUBTABLE) != 0) {
          bits >>>= LITERAL_BITS;
          held -= LITERAL_BITS;
          entry = literals[(entry >>> 16) + ((int) bits & ((1 << (entry >>> 6 & 15)) - 1))];
          if (entry < 0) {
            bits >>>= entry;
            held -= entry & 63;
            out[outAt++] = (byte) (entry >>> 16);
            continue;
          }
        }
        if ((entry & CodeTable.SPECIAL) != 0) {
          if (entry >>> 16 != 0) return false;
          this.bits = bits >>> entry;
          this.held = held - (entry & 63);
          this.inAt = inAt;
          this.outAt = outAt;
          return true;
        }
      }
      final int all = entry & 63;
      int length = (entry >>> 16) + ((int) (bits >>> (entry >>> 6 & 15)) & ((1 << (all - (entry >>> 6 & 15))) - 1));
      bits >>>= all;
      held -= all;
      if (held < 28) {
        if (inAt > inLimit) return false;
        bits |= (long) WORDS.get(in, inAt) << held;
        inAt += (63 - held) >>> 3;
        held |= 56;
      }
      entry = distances[(int) bits & DISTANCE_MASK];
      if ((entry & CodeTable.SPECIAL) != 0) {
        if ((entry & CodeTable.SUBTABLE) == 0) return false;
        bits >>>= DISTANCE_BITS;
        held -= DISTANCE_BITS;
        entry = distances[(entry >>> 16) + ((int) bits & ((1 << (entry >>> 6 & 15)) - 1))];
        if ((entry & CodeTable.SPECIAL) != 0) return false;
      }
      final int most = entry & 63;
      final int distance =
          (entry >>> 16) + ((int) (bits >>> (entry >>> 6 & 15)) & ((1 << (most - (entry >>> 6 & 15))) - 1));
      bits >>>= most;
      held -= most;
      int from = outAt - distance;
      if (from < outStart) return false;
      final int end = outAt + length;
      if (distance >= 8) {
        // Most matches are short: three words without asking, as the end of a loop of one to three is foretold badly.
        WORDS.set(out, outAt, (long) WORDS.get(out, from));
        WORDS.set(out, outAt + 8, (long) WORDS.get(out, from + 8));
        WORDS.set(out, outAt + 16, (long) WORDS.get(out, from + 16));
        for (outAt += 24, from += 24; outAt < end; outAt += 8, from += 8) {
          WORDS.set(out, outAt, (long) WORDS.get(out, from));
        }
      } else if (distance == 1) {
        final long word = (out[from] & 0xffL) * 0x0101010101010101L;
        do {
          WORDS.set(out, outAt, word);
          outAt += 8;
        } while (outAt < end);
      } else {
        do out[outAt++] = out[from++]; while (outAt < end);
      }
      outAt = end;
    }
  }
}
