// mask_apply_many_: the masks of many weights in one parallel loop.
#include "cpu/dispatch.h"
#include "mask_list.h"

namespace secateur::ops {
namespace {

constexpr const char* kOp = "mask_apply_many_";

// A dense weight and its mask, as kernels see them.
struct Dense {
  void* weight;
  const uint8_t* mask;
  int64_t columns;
  int64_t bytes;  // of mask a row
  int64_t element_size;
  int64_t channels;  // of channels_last memory, for which the mask is still in logical order; 0: they agree
};

// Some rows of a weight, or a slice of a long row: no two pieces share a byte of a mask.
struct Piece {
  int64_t before;  // elements in the pieces before this one
  const Dense* dense;
  int64_t row, rows;
  int64_t begin, end;
};

template <class T>
void run(cpu::MaskApplyFn<T> kernel, const Piece& piece, const uint8_t* mask) {
  T* w = static_cast<T*>(piece.dense->weight) + piece.row * piece.dense->columns + piece.begin;
  kernel(w, w, mask, piece.rows, piece.end - piece.begin, piece.dense->bytes);
}

void run(const cpu::Kernels& kernels, const Piece& piece) {
  const Dense& d = *piece.dense;
  const uint8_t* mask = d.mask + piece.row * d.bytes + piece.begin / 8;
  std::vector<uint8_t> in_memory_order;
  if (d.channels) {
    in_memory_order.resize(piece.rows * d.bytes);
    transpose_bits(mask, in_memory_order.data(), piece.rows, d.channels, d.columns / d.channels);
    mask = in_memory_order.data();
  }
  switch (d.element_size) {
    case 2: return run(kernels.mask_apply_16, piece, mask);
    case 4: return run(kernels.mask_apply_32, piece, mask);
    default: return run(kernels.mask_apply_64, piece, mask);
  }
}

// Adds the pieces of a weight; returns the elements in all pieces so far.
int64_t cut(const Dense& dense, int64_t rows, int64_t before, std::vector<Piece>& pieces) {
  const int64_t columns = dense.columns, some = columns <= kSlice ? kGrain / columns + 1 : 1;
  for (int64_t row = 0; row < rows; row += some)
    for (int64_t begin = 0; begin < columns; begin += kSlice) {
      const Piece piece{before, &dense, row, std::min(some, rows - row), begin, std::min(begin + kSlice, columns)};
      before += piece.rows * (piece.end - piece.begin);
      pieces.push_back(piece);
    }
  return before;
}

void apply(const std::vector<MaskedWeight>& pairs) {
  std::vector<Tensor> held;  // contiguous copies of strided weights, and masks in another order
  std::vector<Dense> all;
  all.reserve(pairs.size());  // pieces point into it
  std::vector<Piece> pieces;
  int64_t total = 0;
  std::vector<std::pair<Tensor, Tensor>> back;
  for (const MaskedWeight& pair : pairs) {
    Tensor weight = pair.weight, mask = pair.mask;
    Rows rows = pair.rows;
    int64_t channels = pair.layout == Layout::kChannelsLast ? weight.size(1) : 0;
    if (pair.layout == Layout::kStrided) {
      weight = torch::stable::contiguous(weight);
      back.emplace_back(pair.weight, weight);
    } else if (channels && rows.columns > kSlice) {  // its rows are cut: transposed as a whole
      held.push_back(mask = mask_in_memory_order(mask, weight, rows, pair.layout));
      channels = 0;
    }
    if (channels == 0 && rows.columns % 8 == 0) rows = {1, rows.rows * rows.columns};  // no tail a row
    all.push_back({weight.mutable_data_ptr(), mask.const_data_ptr<uint8_t>(), rows.columns, rows.bytes(),
                   static_cast<int64_t>(weight.element_size()), channels});
    total = cut(all.back(), rows.rows, total, pieces);
  }
  // Threads share out the elements of all weights together: a piece belongs to whoever has its first element.
  const cpu::Kernels& kernels = cpu::kernels();
  parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    auto piece = std::lower_bound(pieces.begin(), pieces.end(), begin,
                                  [](const Piece& one, int64_t element) { return one.before < element; });
    for (; piece != pieces.end() && piece->before < end; ++piece) run(kernels, *piece);
  });
  for (auto& [weight, masked] : back) torch::stable::copy_(weight, masked);
}

void mask_apply_many_(std::vector<Tensor> weights, std::vector<Tensor> masks) {
  for (const auto& round : in_rounds(checked_pairs(kOp, weights, masks))) apply(round);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) { m.impl("mask_apply_many_", TORCH_BOX(&mask_apply_many_)); }

}  // namespace secateur::ops
