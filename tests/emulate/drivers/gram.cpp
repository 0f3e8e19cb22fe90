// Runs the Gram launches of csrc/gram/cuda.cu (linked with this file) on cases read from a file, once per schedule:
//   gram CASES RESULTS SCHEDULE...
// A process of its own, so that a kernel that crashes or hangs takes nothing with it, and the sanitizers see nothing
// but kernels. Formats: see gram_cases.py.
#include "buffers.h"
#include "gram/gram.h"

namespace {

using namespace fastrank::gram;
using namespace drivers;

struct Header {
  int64_t plan, far, dtype, fast, rows, columns, inner, stride_outer, stride_inner, stride_column, start;
  int64_t data_bytes, shift_bytes, c_bytes, ldc, total_bytes, nonfinite, symmetric, group;
};

Product describe(const Header& h, unsigned char* data, Guarded& shift, double* c, Guarded& total, Guarded& nonfinite) {
  const Matrix a = {data + h.start, static_cast<DType>(h.dtype), h.rows, h.columns, h.inner,
                    h.stride_outer, h.stride_inner, h.stride_column};
  return {a, shift.size() ? shift.doubles() : nullptr, c, h.ldc, total.size() ? total.doubles() : nullptr,
          reinterpret_cast<int*>(nonfinite.data()), h.fast != 0, h.symmetric != 0};
}

// The product among others: two of other shapes and kernels, with and without splits, an empty one, and itself once
// more with a C of its own. All must have the bits that they have alone.
std::string run_group(const Product& product, double* c) {
  std::vector<float> x(700 * 3, 0.5f);
  for (size_t i = 0; i < x.size(); ++i) x[i] += static_cast<float>(i % 7);
  Guarded other_x(x.data(), 4 * x.size(), "X");
  const size_t size = 8 * (product.a.columns - 1) * product.ldc + 8 * product.a.columns;
  const std::vector<double> zeros(9, 0.0);
  std::vector<std::unique_ptr<Guarded>> results;
  const auto buffer = [&](const void* content, size_t bytes, const char* name) {
    results.push_back(std::make_unique<Guarded>(content, bytes, name));
    return results.back()->doubles();
  };
  const auto all = [&](bool keep) {
    const Matrix narrow = {other_x.data(), DType::f32, 700, 3, 700, 0, 3, 1};
    const Matrix flat = {other_x.data(), DType::f32, 5, 2, 5, 0, 2, 1};
    Product itself = product;
    itself.total = nullptr;
    itself.c = buffer(c, size, "C");
    std::vector<Product> products = {
        {narrow, nullptr, buffer(zeros.data(), 72, "C"), 3, buffer(zeros.data(), 24, "total"), nullptr, true, false},
        itself,
        {flat, nullptr, buffer(zeros.data(), 32, "C"), 2, nullptr, nullptr, false, true},
    };
    if (keep) products.push_back(product);
    products.push_back({{nullptr, DType::f64, 0, 4, 1, 0, 1, 1}, nullptr, nullptr, 4, nullptr, nullptr, false, false});
    return products;
  };
  const auto alone = all(false);
  std::vector<std::unique_ptr<Guarded>> workspaces;  // kept: with one, all buffers would be forgotten
  for (const Product& p : alone) {
    const int64_t size = 8 * workspace_cuda(p.a.rows, p.a.columns);
    workspaces.push_back(std::make_unique<Guarded>(nullptr, size, "the workspace"));
    accumulate_cuda(p, workspaces.back()->doubles(), nullptr);
  }
  const auto together = all(true);
  const int64_t count = static_cast<int64_t>(together.size());
  Guarded workspace(nullptr, 8 * group_workspace(together.data(), count), "the workspace");
  std::vector<char> table(group_bytes(count));
  group_fill(together.data(), count, workspace.doubles(), table.data());
  Guarded device_table(table.data(), table.size(), "the table");
  group_launch(table.data(), device_table.data(), nullptr);
  if (const std::string damage = workspace.damage(); !damage.empty()) return damage;
  for (size_t i = 0; i < results.size() / 2; ++i) {
    const Guarded &mine = *results[i], &theirs = *results[i + results.size() / 2];
    if (const std::string damage = mine.damage() + theirs.damage(); !damage.empty()) return damage;
    if (std::memcmp(mine.data(), theirs.data(), mine.size())) return "a group gives other bits than its products alone";
  }
  return "";
}

std::string run(const Header& h, unsigned char* data, Guarded& shift, double* c, Guarded& total) {
  try {
    if (h.plan) {  // nothing is launched: how the rows are cut, in the first numbers of C
      c[0] = static_cast<double>(workspace_cuda(h.rows, h.columns));
      c[1] = static_cast<double>(depth_cuda(h.rows, h.columns, false).before);
      c[2] = static_cast<double>(depth_cuda(h.rows, h.columns, true).before);
      c[3] = static_cast<double>(depth_cuda(h.rows, h.columns, false).adds);
    } else {
      int flag = 0;
      Guarded nonfinite(&flag, sizeof flag, "the flag");
      const Product product = describe(h, data, shift, c, total, nonfinite);
      if (h.group) return run_group(product, c);
      Guarded workspace(nullptr, 8 * workspace_cuda(h.rows, h.columns), "the workspace");
      accumulate_cuda(product, workspace.doubles(), nullptr);
      for (const Guarded* g : {&workspace, &nonfinite})
        if (const std::string damage = g->damage(); !damage.empty()) return damage;
      std::memcpy(&flag, nonfinite.data(), sizeof flag);
      if (flag != h.nonfinite) return "the flag for NaN and Inf is " + std::to_string(flag);
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// `data` is X and `c` is C without gaps; the kernels see them with the header's strides.
std::string run_far(const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total) {
  const size_t size = data.size() / (h.rows * h.columns);
  const auto offset = [&](int64_t k, int64_t i) {
    return size * (k / h.inner * h.stride_outer + k % h.inner * h.stride_inner + i * h.stride_column);
  };
  try {
    Sparse far_data(offset(h.rows - 1, h.columns - 1) + size, "X");  // strides are positive, and images complete
    Sparse far_c(8 * (h.columns - 1) * h.ldc + 8 * h.columns, "C");
    for (int64_t k = 0; k < h.rows; ++k)
      for (int64_t i = 0; i < h.columns; ++i)
        std::memcpy(far_data.data() + offset(k, i), data.data() + (k * h.columns + i) * size, size);
    for (int64_t i = 0; i < h.columns; ++i)
      std::memcpy(far_c.data() + 8 * i * h.ldc, c.doubles() + i * h.columns, 8 * h.columns);
    const std::string message = run(h, far_data.data(), shift, reinterpret_cast<double*>(far_c.data()), total);
    for (int64_t i = 0; i < h.columns; ++i)
      std::memcpy(c.doubles() + i * h.columns, far_c.data() + 8 * i * h.ldc, 8 * h.columns);
    return message;
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases<Header, 0>(argc, argv, [](const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total,
                                             std::array<int64_t, 0>&) {
    return h.far ? run_far(h, data, shift, c, total) : run(h, data.data(), shift, c.doubles(), total);
  });
}
