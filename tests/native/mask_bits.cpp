#include "testing.h"

namespace secateur::test {

void test_mask_bits(const Kernels& kernels) {
  Random random(2);
  for (int64_t n : sizes()) {
    std::vector<uint8_t> keep(n);
    for (uint8_t& k : keep) k = static_cast<uint8_t>(random() % 3 * 127);  // 0, 127, 254: anything but 0 is true
    const Buffer<uint8_t> from(keep), mask(bytes_of(n)), back(n);
    kernels.mask_pack(from.data(), mask.data(), n);
    kernels.mask_unpack(mask.data(), back.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      check(bit(mask.data(), i) == (keep[i] != 0), "mask_pack: ", n, " bits, bit ", i);
      check(back[i] == (keep[i] != 0), "mask_unpack: ", n, " bits, element ", i, " is ", int{back[i]});
    }
    for (int64_t i = n; i < 8 * bytes_of(n); ++i) check(!bit(mask.data(), i), "mask_pack: unused bit ", i, " is set");
  }
}

}  // namespace secateur::test
