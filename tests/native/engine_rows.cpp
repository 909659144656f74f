#include <algorithm>

#include "engine_testing.h"

namespace secateur::test {
namespace {

constexpr float nan_f = std::numeric_limits<float>::quiet_NaN();
constexpr float inf_f = std::numeric_limits<float>::infinity();

void test_pool(const Kernels& kernels, Random& random) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    const int64_t count = static_cast<int64_t>(random() % 7), taps = 1 + static_cast<int64_t>(random() % 10);
    const int64_t step = 16 * (1 + static_cast<int64_t>(random() % 3)), before = 4 * 16, after = 5 * 16;
    std::vector<float> x = inputs<float>(random, before + after + (count ? count - 1 : 0) * step + 16, repeat % 3 == 0);
    std::vector<int32_t> tap_list;
    for (int64_t t = 0; t < taps; ++t) tap_list.push_back((static_cast<int32_t>(random() % 10) - 4) * 16);
    const bool masked = random() % 2, scaled = random() % 2;
    const Buffer<float> in(x), y(count * 16), scale(normals(random, scaled ? count * 16 : 0));
    const Buffer<int32_t> offsets(tap_list);
    const Buffer<uint16_t> valid(masked ? count : 0);
    for (int64_t i = 0; masked && i < count; ++i) valid[i] = static_cast<uint16_t>(random());
    for (const bool is_max : {false, true}) {
      cpu::PoolRow row{};
      row.x = in.data() + before;
      row.taps = offsets.data();
      row.tap_count = taps;
      row.step = step;
      row.y = y.data();
      row.count = count;
      row.is_max = is_max;
      row.factor = 0.25f;
      row.scale = scaled ? scale.data() : nullptr;
      row.valid = masked ? valid.data() : nullptr;
      kernels.engine.pool_row(row);
      for (int64_t i = 0; i < count * 16; ++i) {
        double sum = 0, size = 0, most = -inf_f;
        bool has_nan = false;
        for (const int32_t tap : tap_list) {
          const double v = x[before + tap + i / 16 * step + i % 16];
          has_nan |= std::isnan(v);
          sum += v;
          size += std::fabs(v);
          most = std::max(most, v);
        }
        const double by = scaled ? scale[i] : 0.25;
        double expected = is_max ? (has_nan ? double{nan_f} : most) : sum * by;
        if (masked && !(valid[i / 16] >> (i % 16) & 1)) expected = 0;
        const bool same = std::isnan(expected) ? std::isnan(y[i]) : y[i] == expected;
        check(
            same || (!is_max && std::fabs(y[i] - expected) <= 1.2e-7 * double(taps + 1) * size * std::fabs(by) + 1e-44),
            "pool_row, max ", is_max, ", element ", i, ": ", y[i], ", expected ", expected);
      }
    }
  }
}

void test_map(const Kernels& kernels, Random& random) {
  for (const cpu::Act act : all_acts)
    for (const cpu::Binary join : {cpu::Binary::kNone, cpu::Binary::kAdd, cpu::Binary::kMultiply})
      for (const bool masked : {false, true})
        for (const int64_t count : {0, 1, 5}) {
          const int64_t channel = static_cast<int64_t>(random() % 3);
          const std::vector<float> a = normals(random, count * 16), b = normals(random, count * 16);
          const Buffer<float> in(a), other(join == cpu::Binary::kNone ? std::vector<float>() : b), theta(3);
          const Buffer<uint16_t> valid(masked ? count : 0);
          for (int64_t i = 0; masked && i < count; ++i) valid[i] = static_cast<uint16_t>(random());
          cpu::MapRow row{};
          row.a = in.data();
          row.b = join == cpu::Binary::kNone ? nullptr : other.data();
          row.y = in.data();  // in place
          row.count = count;
          row.scale = 1.25f;
          row.shift = -0.5f;
          row.join = join;
          row.activation = random_activation(random, act, theta, 3);
          row.channel = channel;
          row.valid = masked ? valid.data() : nullptr;
          kernels.engine.map_row(row);
          for (int64_t i = 0; i < count * 16; ++i) {
            const double v = 1.25 * a[i] - 0.5, size = std::fabs(1.25 * a[i]) + 0.5, o = b[i];
            const double joined = join == cpu::Binary::kNone ? v : join == cpu::Binary::kAdd ? v + o : v * o;
            const double error = 2.4e-7 * (join == cpu::Binary::kMultiply ? size * std::fabs(o) : size + std::fabs(o));
            if (masked && !(valid[i / 16] >> (i % 16) & 1))
              check(same_bits(in[i], 0.0f), "map_row: a lane without a pixel holds ", in[i]);
            else check_activated(in[i], row.activation, channel, joined, error, "map_row");
          }
        }
}

// Activations alone, over everything that a float can be.
void test_activations(const Kernels& kernels, Random& random) {
  std::vector<float> values = {0.0f,  -0.0f,  nan_f,  inf_f,   -inf_f, 1e-40f, -1e-40f,
                               1e37f, -1e37f, 0.625f, -0.625f, 6,      -3};
  for (float v = -120; v < 120; v += 0.0625f) values.push_back(v);
  for (float v = 1e-30f; v < 1e36f; v *= 3) values.insert(values.end(), {v, -v});
  for (float v : normals(random, 4000)) values.push_back(4 * v);
  while (values.size() % 16) values.push_back(1);
  const Buffer<float> in(values), out(values.size()), theta(1);
  for (const cpu::Act act : all_acts) {
    cpu::MapRow row{};
    row.a = in.data();
    row.y = out.data();
    row.count = static_cast<int64_t>(values.size()) / 16;
    row.scale = 1;
    row.activation = random_activation(random, act, theta, 1);
    kernels.engine.map_row(row);
    for (size_t i = 0; i < values.size(); ++i) {
      // At infinity these are inf * 0 or inf / inf, NaN in torch too (gelu is 0 here, its limit).
      if (values[i] == -inf_f && (act == cpu::Act::kHardswish || act == cpu::Act::kSilu)) {
        check(std::isnan(out[i]), "activation ", static_cast<int>(act), " of -inf: ", out[i]);
        continue;
      }
      if (values[i] == -inf_f && act == cpu::Act::kGelu) {
        check(std::fabs(out[i]) < 1e-36, "gelu of -inf: ", out[i]);
        continue;
      }
      check_activated(out[i], row.activation, 0, values[i], 0, "map_row alone");
    }
  }
}

void test_moves(const Kernels& kernels, Random& random) {
  for (int repeat = 0; repeat < 100; ++repeat) {
    // The interior of a plane goes to its halo, lanes permuted.
    const int64_t vectors = 9, copies = static_cast<int64_t>(random() % 5);
    std::vector<float> plane = inputs<float>(random, vectors * 16, true);
    std::vector<cpu::LanePerm> perms(3);
    for (cpu::LanePerm& perm : perms)
      for (int32_t& lane : perm.lane) lane = static_cast<int32_t>(random() % 17) - 1;
    std::vector<cpu::HaloCopy> list;
    for (int64_t i = 0; i < copies; ++i)
      list.push_back(
          {static_cast<int32_t>(i) - 4, static_cast<int32_t>(random() % 5), static_cast<int32_t>(random() % 3)});
    const float fill = repeat % 2 ? -inf_f : 0.0f;
    const Buffer<float> memory(plane);
    const Buffer<cpu::HaloCopy> copy_list(list);
    const Buffer<cpu::LanePerm> perm_list(perms);
    kernels.engine.halo(memory.data() + 4 * 16, copy_list.data(), copies, perm_list.data(), fill);
    for (const cpu::HaloCopy& copy : list)
      for (int lane = 0; lane < 16; ++lane) {
        const int32_t from = perms[copy.perm].lane[lane];
        plane[(4 + copy.to) * 16 + lane] = from < 0 ? fill : plane[(4 + copy.from) * 16 + from];
      }
    for (size_t i = 0; i < plane.size(); ++i)
      check(same_bits(memory[i], plane[i]), "halo, element ", i, ": ", memory[i], ", expected ", plane[i]);
  }
  for (const int64_t n : sizes()) {
    const std::vector<float> from = inputs<float>(random, n + 3, true);
    std::vector<int32_t> index(n);
    for (int32_t& i : index) i = static_cast<int32_t>(random() % (from.size() + 1)) - 1;
    const Buffer<float> source(from), to(n);
    const Buffer<int32_t> indices(index);
    kernels.engine.gather(to.data(), source.data(), indices.data(), n, 0.5f);
    for (int64_t i = 0; i < n; ++i)
      check(same_bits(to[i], index[i] < 0 ? 0.5f : from[index[i]]), "gather of ", n, ", element ", i);
  }
  for (const int64_t rows : {0, 1, 3})
    for (int64_t columns = 0; columns < 10; ++columns) {
      const int64_t stride = (columns + 1) * 16;
      const std::vector<float> x = normals(random, rows ? (rows - 1) * stride + columns * 16 : 0);
      const Buffer<float> in(x), sums(16);
      kernels.engine.lane_sums(in.data(), rows, columns, stride, sums.data());
      for (int lane = 0; lane < 16; ++lane) {
        double sum = 0, size = 0;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; ++c) {
            sum += x[r * stride + c * 16 + lane];
            size += std::fabs(x[r * stride + c * 16 + lane]);
          }
        check(std::fabs(sums[lane] - sum) <= 6e-8 * double(rows * columns) * size, "lane_sums of ", rows, "x", columns,
              ", lane ", lane, ": ", sums[lane], ", expected ", sum);
      }
    }
}

}  // namespace

void test_engine_rows(const Kernels& kernels) {
  Random random(13);
  test_pool(kernels, random);
  test_map(kernels, random);
  test_activations(kernels, random);
  test_moves(kernels, random);
}

}  // namespace secateur::test
