// mask_apply_many: lists longer than a launch takes, all shapes in one list, memory that lies channels_last.
#include <memory>

#include "cases.h"

namespace checks {
namespace {

// A weight [rows, columns] that lies [row][inner][channels], its mask in logical order, and what must come out.
template <class T>
struct Weight {
  Weight(Shape given, int64_t channels, int64_t offset, Random& random)
      : shape(given), w(shape.rows * shape.columns, offset), mask(view_of(shape.rows, shape.columns).groups, offset) {
    for (int64_t i = 0; i < w.size(); ++i) w[i] = static_cast<T>(random.bits());
    for (int64_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(random.bits());  // unused bits too
    const int64_t inner = channels ? shape.columns / channels : 0;
    for (int64_t r = 0; r < shape.rows; ++r)
      for (int64_t i = 0; i < shape.columns; ++i) {
        const int64_t logical = channels ? i % channels * inner + i / channels : i;
        const uint8_t* row = mask.data() + r * view_of(shape.rows, shape.columns).bytes;
        want.push_back(bit(row, logical) ? w[r * shape.columns + i] : T{});
      }
    table = {w.data(), mask.data(), shape.rows, shape.columns, channels};
  }
  void check(int64_t which) {
    for (int64_t i = 0; i < w.size(); ++i)
      that(same_bits(w[i], want[i]), "mask_apply_many: element %ld of weight %ld, [%ld, %ld], %ld channels", i, which,
           shape.rows, shape.columns, table.channels);
  }
  Shape shape;
  Buffer<T> w;
  Buffer<uint8_t> mask;
  std::vector<T> want;
  MaskedRows table;
};

template <class T>
using List = std::vector<std::unique_ptr<Weight<T>>>;

template <class T>
void add(List<T>& list, Shape shape, int64_t channels, int64_t offset, Random& random) {
  list.push_back(std::make_unique<Weight<T>>(shape, channels, offset, random));
}

template <class T>
void run(List<T>& list, int64_t launches) {
  std::vector<MaskedRows> table;
  for (const auto& weight : list) table.push_back(weight->table);
  grid().launches = 0;
  that(!mask_apply_many(sizeof(T), table.data(), static_cast<int64_t>(table.size()), kQueue), "launch");
  that(grid().launches == launches, "%ld launches for %zu weights, want %ld", grid().launches, list.size(), launches);
  for (size_t i = 0; i < list.size(); ++i) list[i]->check(static_cast<int64_t>(i));
}

template <class T>
void of_type() {
  int64_t turn = 0;
  for (Order order : kOrders)
    for (int64_t blocks : {1, 3, 1000}) {
      grid().order = order;
      grid().most_blocks = blocks;
      Random random(blocks + 31 * static_cast<int64_t>(order));
      List<T> list;
      const int64_t offset = kOffsets[turn++ % 3];
      for (const Shape& shape : kShapes) add(list, shape, 0, offset, random);
      for (Shape shape : {Shape{1, 200008}, Shape{3, 8192}, Shape{2, 8200}, Shape{40, 8191}})  // around a chunk
        add(list, shape, 0, offset, random);
      for (int64_t channels : {2, 3, 5, 8, 9, 16, 24, 64})
        for (int64_t inner : {2, 3, 9, 16, 49}) add(list, {3, channels * inner}, channels, offset, random);
      add(list, {70, 256 * 9}, 256, offset, random);
      run(list, 1);
    }
  // 84 a launch; empty weights take no place.
  for (int64_t count : {0, 1, 83, 84, 85, 168, 169, 400}) {
    Random random(count);
    List<T> list;
    for (int64_t i = 0; i < count; ++i) {
      add(list, {i % 5 + 1, i * 7 % 90 + 1}, 0, 0, random);
      if (i % 3 == 0) add(list, {0, 5}, 0, 0, random);
    }
    add(list, {3, 0}, 0, 0, random);
    run(list, (count + 83) / 84);
  }
}

}  // namespace

void mask_apply_many_group() {
  of_type<uint16_t>();
  of_type<uint32_t>();
  of_type<uint64_t>();
}

}  // namespace checks
