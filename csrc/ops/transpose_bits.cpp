// Converts a packed mask between logical order and channels_last memory: in each row, bits [a, b] become [b, a].
#include <cstring>

#include "common.h"

namespace secateur::ops {
namespace {

// Reads 8 bits at any bit offset; nothing at or past `bytes` is touched.
inline uint32_t read_8(const uint8_t* row, int64_t bit, int64_t bytes) {
  const int64_t at = bit >> 3;
  uint32_t two = row[at];
  if (at + 1 < bytes) two |= uint32_t{row[at + 1]} << 8;
  return two >> (bit & 7) & 0xff;
}

// ORs `count` bits into a row at any bit offset. from[-1], the bits past `count` in the last byte and the byte after it
// must be readable and 0.
inline void or_bits(uint8_t* row, int64_t bit, const uint8_t* from, int64_t count) {
  uint8_t* to = row + (bit >> 3);
  const int shift = bit & 7;
  const int64_t bytes = (shift + count + 7) / 8;
  for (int64_t i = 0; i < bytes; ++i) to[i] |= static_cast<uint8_t>((from[i] << 8 | from[i - 1]) >> (8 - shift));
}

// Transposes an 8x8 bit matrix in a word, one row per byte (Warren, Hacker's Delight, 7-3).
inline uint64_t transpose_8x8(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
  return x ^ t ^ (t << 28);
}

// Transposes the bits [a0, a0 + 8) x [b0, b0 + 8) of `from`: byte j holds the 8 values of column b0 + j.
template <bool Aligned>
inline uint64_t block_8x8(const uint8_t* from, int64_t a0, int64_t b0, int64_t width, int64_t b, int64_t bytes) {
  uint64_t block = 0;
  if constexpr (Aligned) {  // b is a multiple of 8: each row of the block is a byte
    const uint8_t* p = from + (a0 * b + b0) / 8;
    for (int64_t i = 0; i < width; ++i, p += b / 8) block |= uint64_t{*p} << (8 * i);
  } else {
    for (int64_t i = 0; i < width; ++i) block |= uint64_t{read_8(from, (a0 + i) * b + b0, bytes)} << (8 * i);
  }
  return transpose_8x8(block);
}

// Rows [b0, b0 + 8) of the result; they are whole bytes, since b0 is a multiple of 8. They are built byte by byte on
// the stack, then moved to their bit offsets: reading and writing the result for every 8x8 block took ten times as
// long.
template <bool Aligned>
void transpose_band(const uint8_t* from, uint8_t* to, int64_t a, int64_t b, int64_t b0, int64_t bytes) {
  const int64_t height = b - b0 < 8 ? b - b0 : 8;
  const int64_t begin = b0 * a / 8, end = ((b0 + height) * a + 7) / 8;
  std::memset(to + begin, 0, end - begin);
  constexpr int64_t kPiece = 512;
  uint8_t piece[8][kPiece / 8 + 2] = {};  // a zero byte before and after each row's bits
  for (int64_t start = 0; start < a; start += kPiece) {
    const int64_t count = a - start < kPiece ? a - start : kPiece;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const uint64_t block = block_8x8<Aligned>(from, start + i, b0, 8, b, bytes);
      for (int j = 0; j < 8; ++j) piece[j][1 + i / 8] = static_cast<uint8_t>(block >> (8 * j));
    }
    if (i < count) {
      const uint64_t block = block_8x8<Aligned>(from, start + i, b0, count - i, b, bytes);
      for (int j = 0; j < 8; ++j) piece[j][1 + i / 8] = static_cast<uint8_t>(block >> (8 * j));
      i += 8;
    }
    for (int j = 0; j < 8; ++j) piece[j][1 + i / 8] = 0;
    for (int64_t j = 0; j < height; ++j) or_bits(to, (b0 + j) * a + start, &piece[j][1], count);
  }
}

}  // namespace

void transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b) {
  const int64_t bytes = (a * b + 7) / 8, bands = (b + 7) / 8;
  if (rows == 0 || bytes == 0) return;
  const auto band = b % 8 == 0 ? transpose_band<true> : transpose_band<false>;
  parallel_for(0, rows * bands, kGrain / (8 * a) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / bands;
      band(from + row * bytes, to + row * bytes, a, b, unit % bands * 8, bytes);
    }
  });
}

}  // namespace secateur::ops
