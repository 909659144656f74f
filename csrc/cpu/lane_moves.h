// Words of the 16-lane vocabulary that have no instruction of their own here: through memory. Included by a vocabulary,
// after its loads and stores; AVX-512 has its own.
#pragma once

namespace secateur::cpu {
namespace {

// The first `count` (1..15) lanes from memory, the others 0; and to memory, the others left alone.
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

// The lanes that are not 0 (NaN is not), in order, with base + lane beside them; how many there are. Both sides have
// room for 16.
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

// v[i] lane j <-> v[j] lane i.
inline void transpose(f32x16 (&v)[16]) {
  float from[16][16], to[16][16];
  for (int i = 0; i < 16; ++i) store(from[i], v[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
  for (int i = 0; i < 16; ++i) v[i] = load(to[i]);
}

}  // namespace
}  // namespace secateur::cpu
