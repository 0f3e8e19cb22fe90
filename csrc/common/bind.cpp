// Python's entry to the memory of common/pages.h, as DLPack tensors.
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "common/pages.h"

namespace py = pybind11;

namespace fastrank {
namespace {

// The version-0 structures of the DLPack standard (https://dmlc.github.io/dlpack), which torch.from_dlpack takes.
struct DLTensor {
  void* data;
  struct { int32_t type, id; } device;
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

struct Owner {
  DLManagedTensor managed{};
  std::vector<int64_t> shape;
  int64_t bytes;

  ~Owner() {
    if (managed.tensor.data) give_pages(managed.tensor.data, bytes);
  }
};

py::capsule empty(py::tuple shape, int code, int bits) {
  auto owner = std::make_unique<Owner>();
  int64_t count = 1;
  for (py::handle size : shape) owner->shape.push_back(size.cast<int64_t>()), count *= owner->shape.back();
  owner->bytes = count * bits / 8;
  void* pages = nullptr;
  try {
    pages = take_pages(owner->bytes);
  } catch (const std::bad_alloc&) {
    owner->managed.tensor.data = nullptr;
    PyErr_Format(PyExc_MemoryError, "no memory for a result of %lld bytes", static_cast<long long>(owner->bytes));
    throw py::error_already_set();
  }
  owner->managed.tensor = {pages, {1, 0},  // on the CPU
                           static_cast<int32_t>(owner->shape.size()),
                           {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1},
                           owner->shape.data(), nullptr, 0};
  owner->managed.manager = owner.get();
  owner->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Owner*>(self->manager); };
  // A capsule that nobody took in keeps its name, and its tensor is still the capsule's to delete.
  return py::capsule(&owner.release()->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

}  // namespace

void bind_common(py::module_& m) {
  m.def("empty", &empty,
        "DLPack capsule of an uninitialised contiguous tensor on the CPU, in memory that is kept for the next one when\n"
        "it is freed. code: 2 for floats, 4 for bfloat16.");
  m.def("idle_bytes", &idle_pages, "What is kept for the next one, in bytes.");
  m.def("drop_idle", &drop_pages, "Gives what is kept back to the system.");
}

}  // namespace fastrank
