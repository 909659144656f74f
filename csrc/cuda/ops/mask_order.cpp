#include "common.h"

namespace secateur::cuda {
namespace {

// Bits of [rows, a, b] -> [rows, b, a].
Tensor transposed(const char* op, const Tensor& mask, const Tensor& t, const Rows& rows, int64_t a, int64_t b,
                  Queue queue) {
  Tensor out = new_mask(t, rows);
  if (rows.rows == 0 || rows.columns == 0) return out;
  check_launch(op,
               transpose_bits(mask.const_data_ptr<uint8_t>(), out.mutable_data_ptr<uint8_t>(), rows.rows, a, b, queue));
  return out;
}

}  // namespace

Tensor in_memory_order(const char* op, const Tensor& mask, const Tensor& t, const Rows& rows, Layout layout,
                       Queue queue) {
  if (layout != Layout::kChannelsLast || rows.columns == 0) return mask;
  return transposed(op, mask, t, rows, t.size(1), rows.columns / t.size(1), queue);
}

Tensor in_logical_order(const char* op, const Tensor& mask, const Tensor& t, const Rows& rows, Layout layout,
                        Queue queue) {
  if (layout != Layout::kChannelsLast || rows.columns == 0) return mask;
  return transposed(op, mask, t, rows, rows.columns / t.size(1), t.size(1), queue);
}

}  // namespace secateur::cuda
