// Context switch: a fibre is a stack of its own that runs until it switches back. One fibre per CUDA thread.
//
// AddressSanitizer and ThreadSanitizer are told of every switch. To ThreadSanitizer each fibre is a thread, ordered
// with the others only where the emulated program synchronises, so it finds races although nothing runs in parallel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__)
#error "the context switch is written for x86-64"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define EMULATE_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define EMULATE_UNWATCHED
#endif

namespace emulate {

#if defined(__SANITIZE_THREAD__)
// Everything that happens before release(x) in one thread is seen after acquire(x) in another.
inline void release(void* order) { __tsan_release(order); }
inline void acquire(void* order) { __tsan_acquire(order); }
// While one lives, ThreadSanitizer does not watch: the emulator's own books are not the program's memory.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
inline void release(void*) {}
inline void acquire(void*) {}
struct Unwatched {
  Unwatched() {}
};
#endif

// Where execution can be resumed.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* logical = nullptr;     // ThreadSanitizer's
};

// Saves the callee-saved registers and the stack, and continues where `load` was saved.
__attribute__((naked, noinline, unused)) static void switch_stack(void** /*save*/, void* /*load*/) {
  asm(R"(
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret)");
}

EMULATE_UNWATCHED inline void switch_to(Context& from, Context& to, bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.logical, 1);  // 1: no order follows from the switch itself
#endif
  (void)last;
  switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The scheduler's own context: the stack that this thread of the operating system has anyway.
inline void adopt_current(Context& context) {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* bottom;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &context.size);
  pthread_attr_destroy(&attributes);
  context.bottom = bottom;
#elif defined(__SANITIZE_THREAD__)
  context.logical = __tsan_get_current_fiber();
#endif
  (void)context;
}

// A stack. Kept for the next fibre, except where a sanitizer must see it die.
class Stack {
 public:
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr size_t kBytes = 256 << 10;
#else
  static constexpr size_t kBytes = 64 << 10;
#endif

  Stack() {
    if (!spare().empty()) {
      memory_ = spare().back();
      spare().pop_back();
    } else if (!(memory_ = static_cast<char*>(std::aligned_alloc(64, kBytes)))) {
      std::abort();
    }
    *mark() = kMark;
  }
  Stack(const Stack&) = delete;
  ~Stack() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    std::free(memory_);
#else
    spare().push_back(memory_);
#endif
  }
  bool overflowed() const { return *mark() != kMark; }

  // A context that starts `entry` on this stack; `entry` never returns.
  void start(Context& context, void (*entry)()) {
    void** top = reinterpret_cast<void**>(memory_ + kBytes);
    *--top = nullptr;  // ends backtraces, and keeps the alignment that a call leaves behind
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context = {top, memory_, kBytes, nullptr, nullptr};
#if defined(__SANITIZE_THREAD__)
    context.logical = __tsan_create_fiber(0);
#endif
  }
  static void finish(Context& context) {
#if defined(__SANITIZE_THREAD__)
    if (context.logical) __tsan_destroy_fiber(context.logical);
#endif
    context.logical = nullptr;
  }

 private:
  static constexpr uint64_t kMark = 0x5AFE57AC4B0770AFull;
  uint64_t* mark() const { return reinterpret_cast<uint64_t*>(memory_); }
  struct Spare : std::vector<char*> {
    ~Spare() {
      for (char* memory : *this) std::free(memory);
    }
  };
  static std::vector<char*>& spare() {
    static Spare stacks;
    return stacks;
  }
  char* memory_;
};

// First thing on a new stack.
EMULATE_UNWATCHED inline void entered_new_stack() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace emulate
