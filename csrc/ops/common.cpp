#include "common.h"

#include <cstring>
#include <limits>

namespace secateur::ops {

const char* name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

std::string show(Sizes shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

Rows rows_of(Sizes shape, const char* op) {
  if (shape.size() == 0) return {1, 1};
  int64_t columns = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    check(shape[i] >= 0, op, ": shape must not be negative, got ", show(shape));
    if (i > 0)
      check(!__builtin_mul_overflow(columns, shape[i], &columns), op, ": shape is too large, got ", show(shape));
  }
  int64_t all;
  check(!__builtin_mul_overflow(shape[0], columns, &all), op, ": shape is too large, got ", show(shape));
  return {shape[0], columns};
}

Tensor checked_mask(const char* op, const Tensor& mask, const Rows& view, const Tensor& like) {
  check(mask.scalar_type() == ScalarType::Byte, op, ": mask must be uint8, got ", name(mask.scalar_type()));
  check(mask.is_cpu() == like.is_cpu() && mask.get_device_index() == like.get_device_index(), op,
        ": mask must be on the device of the tensor that it masks");
  check(mask.dim() == 2 && mask.size(0) == view.rows && mask.size(1) == view.bytes(), op, ": mask must be [", view.rows,
        ", ", view.bytes(), "] for a tensor of shape ", show(like.sizes()), ", got ", show(mask.sizes()));
  return mask.is_contiguous() ? mask : torch::stable::contiguous(mask);
}

Tensor new_mask(const Tensor& like, const Rows& view) {
  return torch::stable::new_empty(like, {view.rows, view.bytes()}, ScalarType::Byte);
}

void check_floating(const char* op, const char* argument, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        op, ": ", argument, " must be float32, float64, float16 or bfloat16, got ", name(dtype));
}

Layout layout_of(const Tensor& t) {
  if (t.is_contiguous()) return Layout::kContiguous;
  const int64_t dims = t.dim();
  if (dims < 3) return Layout::kStrided;
  // [N, C, spatial...] lying as [N, spatial..., C]; sizes of 1 may have any stride.
  int64_t expected = 1;
  auto fits = [&](int64_t d) {
    const bool ok = t.size(d) == 1 || t.stride(d) == expected;
    expected *= t.size(d);
    return ok;
  };
  if (!fits(1)) return Layout::kStrided;
  for (int64_t d = dims - 1; d >= 2; --d)
    if (!fits(d)) return Layout::kStrided;
  return fits(0) ? Layout::kChannelsLast : Layout::kStrided;
}

namespace {

// 8 bits at any bit offset; `limit` is the first byte that may not be touched.
inline uint32_t read_8(const uint8_t* row, int64_t bit, int64_t bytes) {
  const int64_t at = bit >> 3;
  uint32_t two = row[at];
  if (at + 1 < bytes) two |= uint32_t{row[at + 1]} << 8;
  return two >> (bit & 7) & 0xff;
}

inline void or_8(uint8_t* row, int64_t bit, int64_t bytes, uint32_t value) {
  const int64_t at = bit >> 3;
  value <<= bit & 7;
  row[at] |= static_cast<uint8_t>(value);
  if (at + 1 < bytes) row[at + 1] |= static_cast<uint8_t>(value >> 8);
}

// Transpose of an 8x8 bit matrix held in a word, one row a byte (Warren, Hacker's Delight, 7-3).
inline uint64_t transpose_8x8(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
  return x ^ t ^ (t << 28);
}

// Rows [b0, b0 + 8) of the result, which are whole bytes of it: b0 is a multiple of 8.
void transpose_band(const uint8_t* from, uint8_t* to, int64_t a, int64_t b, int64_t b0, int64_t bytes) {
  const int64_t height = b - b0 < 8 ? b - b0 : 8;
  const int64_t begin = b0 * a / 8, end = ((b0 + height) * a + 7) / 8;
  std::memset(to + begin, 0, end - begin);
  for (int64_t a0 = 0; a0 < a; a0 += 8) {
    const int64_t width = a - a0 < 8 ? a - a0 : 8;
    uint64_t block = 0;
    for (int64_t i = 0; i < width; ++i) block |= uint64_t{read_8(from, (a0 + i) * b + b0, bytes)} << (8 * i);
    block = transpose_8x8(block);
    for (int64_t j = 0; j < height; ++j) {
      const uint32_t value = block >> (8 * j) & ((1u << width) - 1);
      or_8(to, (b0 + j) * a + a0, bytes, value);
    }
  }
}

Tensor reordered(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout, bool to_memory) {
  if (layout != Layout::kChannelsLast) return mask;
  Tensor out = new_mask(t, view);
  const int64_t channels = t.size(1), inner = channels ? view.columns / channels : 0;
  if (to_memory)
    transpose_bits(mask.const_data_ptr<uint8_t>(), out.mutable_data_ptr<uint8_t>(), view.rows, channels, inner);
  else transpose_bits(mask.const_data_ptr<uint8_t>(), out.mutable_data_ptr<uint8_t>(), view.rows, inner, channels);
  return out;
}

}  // namespace

void transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b) {
  const int64_t bytes = (a * b + 7) / 8, bands = (b + 7) / 8;
  if (rows == 0 || bytes == 0) return;
  torch::stable::parallel_for(0, rows * bands, kGrain / (8 * a) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / bands;
      transpose_band(from + row * bytes, to + row * bytes, a, b, unit % bands * 8, bytes);
    }
  });
}

Tensor mask_in_memory_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout) {
  return reordered(mask, t, view, layout, true);
}
Tensor mask_in_logical_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout) {
  return reordered(mask, t, view, layout, false);
}

}  // namespace secateur::ops
