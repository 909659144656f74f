// Words of the 16-lane vocabulary without an instruction of their own: they go through memory. A vocabulary includes
// this after its loads and stores. AVX-512 has its own.
#pragma once

namespace secateur::cpu {
namespace {

// load_first: the first `count` (1..15) lanes from memory, the others 0. store_first: other elements are left alone.
inline f32x16 load_first(const float* p, int count) {
  float all[16] = {};
  for (int i = 0; i < count; ++i) all[i] = p[i];
  return load(all);
}
inline void store_first(float* p, f32x16 v, int count) {
  float all[16];
  store(all, v);
  for (int i = 0; i < count; ++i) p[i] = all[i];
}

// Compresses the nonzero lanes (NaN counts), in order, with base + lane as index. Returns their number. Both outputs
// have room for 16.
template <class Index>
inline int compress_nonzeros(f32x16 v, uint32_t base, float* values, Index* index) {
  float all[16];
  store(all, v);
  int n = 0;
  for (int i = 0; i < 16; ++i) {
    values[n] = all[i];
    index[n] = static_cast<Index>(base + static_cast<uint32_t>(i));
    n += all[i] != 0.0f;
  }
  return n;
}

// Swaps v[i] lane j and v[j] lane i.
inline void transpose(f32x16 (&v)[16]) {
  float from[16][16], to[16][16];
  for (int i = 0; i < 16; ++i) store(from[i], v[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
  for (int i = 0; i < 16; ++i) v[i] = load(to[i]);
}

}  // namespace
}  // namespace secateur::cpu
