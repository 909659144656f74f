// Transposes a matrix of floats, 4x4 at a time: moves a batch of input vectors into the lanes, and back.
#pragma once

#include <cstdint>
#include <cstring>

namespace secateur::ops {

// Four floats in one register on every CPU that torch supports.
typedef float float4 __attribute__((vector_size(16)));

// Selects lanes of two registers by number. GCC before 12 supports only its own builtin, clang only the other one.
template <int I, int J, int K, int L>
inline float4 lanes_of(float4 a, float4 b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I, J, K, L);
#else
  typedef int32_t int4 __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, int4{I, J, K, L});
#endif
}

inline void transpose_4x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  float4 row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * from_stride, sizeof(float4));
  const float4 a = lanes_of<0, 4, 1, 5>(row[0], row[1]), b = lanes_of<2, 6, 3, 7>(row[0], row[1]);
  const float4 c = lanes_of<0, 4, 1, 5>(row[2], row[3]), d = lanes_of<2, 6, 3, 7>(row[2], row[3]);
  const float4 out[4] = {lanes_of<0, 1, 4, 5>(a, c), lanes_of<2, 3, 6, 7>(a, c), lanes_of<0, 1, 4, 5>(b, d),
                         lanes_of<2, 3, 6, 7>(b, d)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &out[i], sizeof(float4));
}

// to[c][r] = from[r][c] for r < rows, c < columns; strides in floats.
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                      int64_t to_stride) {
  // 16 columns at a time: reads whole lines of the source while the lines of the target stay in cache.
  for (int64_t c0 = 0; c0 < columns; c0 += 16) {
    const int64_t c1 = c0 + 16 < columns ? c0 + 16 : columns;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      int64_t c = c0;
      for (; c + 4 <= c1; c += 4)
        transpose_4x4(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
      for (; c < c1; ++c)
        for (int64_t i = r; i < r + 4; ++i) to[c * to_stride + i] = from[i * from_stride + c];
    }
    for (; r < rows; ++r)
      for (int64_t c = c0; c < c1; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

}  // namespace secateur::ops
