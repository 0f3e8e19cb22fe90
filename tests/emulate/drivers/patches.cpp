// Runs the patch launches of csrc/gram/patches.cu (linked with this file) on cases read from a file, once per schedule:
//   patches CASES RESULTS SCHEDULE...
// Formats: see patch_cases.py.
#include "gram/patches.h"
#include "buffers.h"

namespace {

using namespace fastrank::gram;
using namespace drivers;

struct Header {
  int64_t far, dtype, fast, way, images, groups, channels, stride_image, stride_channel, stride[2];
  int64_t size[2], kernel[2], step[2], pad[2], dilation[2], start;
  int64_t data_bytes, shift_bytes, c_bytes, ldc, total_bytes;
};

using Plan = std::array<int64_t, 3>;  // workspace, depths

std::string run(const Header& h, unsigned char* data, Guarded& shift, double* c, Guarded& total, Plan& plan) {
  try {
    const Patches p = {data + h.start, static_cast<DType>(h.dtype), h.images, h.groups, h.channels, h.stride_image,
                       h.stride_channel, {h.stride[0], h.stride[1]}, {h.size[0], h.size[1]},
                       {h.kernel[0], h.kernel[1]}, {h.step[0], h.step[1]}, {h.pad[0], h.pad[1]},
                       {h.dilation[0], h.dilation[1]}};
    const auto way = static_cast<PatchWay>(h.way);
    const Depth depth = depth_patches_cuda(p, h.fast, way);
    plan[0] = workspace_patches_cuda(p, h.fast, way), plan[1] = depth.before, plan[2] = depth.adds;
    Guarded workspace(nullptr, 8 * plan[0], "the workspace");
    patches_cuda(p, shift.size() ? shift.doubles() : nullptr, c, h.ldc, total.size() ? total.doubles() : nullptr,
                 h.fast, workspace.doubles(), nullptr, way);
    return workspace.damage();
  } catch (const std::exception& error) {
    return error.what();
  }
}

// `data` is x [images, groups * channels, rows, columns] and `c` is C without gaps; the kernels see them with strides.
std::string run_far(const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total, Plan& plan) {
  const int64_t shape[] = {h.images, h.groups * h.channels, h.size[0], h.size[1]};
  const int64_t strides[] = {h.stride_image, h.stride_channel, h.stride[0], h.stride[1]};
  const int64_t count = shape[0] * shape[1] * shape[2] * shape[3], size = data.size() / count;
  const int64_t columns = h.channels * h.kernel[0] * h.kernel[1];
  const auto offset = [&](int64_t n) {
    int64_t at = 0;
    for (int axis = 3; axis >= 0; --axis) at += n % shape[axis] * strides[axis], n /= shape[axis];
    return size * at;
  };
  try {
    Sparse far_data(offset(count - 1) + size, "X");  // strides are positive
    Sparse far_c(8 * (columns - 1) * h.ldc + 8 * columns, "C");
    for (int64_t n = 0; n < count; ++n) std::memcpy(far_data.data() + offset(n), data.data() + n * size, size);
    for (int64_t i = 0; i < columns; ++i)
      std::memcpy(far_c.data() + 8 * i * h.ldc, c.doubles() + i * columns, 8 * columns);
    const std::string message =
        run(h, far_data.data(), shift, reinterpret_cast<double*>(far_c.data()), total, plan);
    for (int64_t i = 0; i < columns; ++i)
      std::memcpy(c.doubles() + i * columns, far_c.data() + 8 * i * h.ldc, 8 * columns);
    return message;
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases<Header, 3>(argc, argv, [](const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total,
                                             Plan& plan) {
    return h.far ? run_far(h, data, shift, c, total, plan) : run(h, data.data(), shift, c.doubles(), total, plan);
  });
}
