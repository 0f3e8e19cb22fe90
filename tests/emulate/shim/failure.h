// How a wrong program is reported: fail() throws out of the CUDA thread, and launch() hands the message to its caller.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace emulate {

// what() names the kernel, the block and the thread.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string where();  // scheduler.h

inline std::string text(const char* format, va_list arguments) {
  char buffer[1024];
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  return buffer;
}

[[noreturn]] __attribute__((format(printf, 1, 2), cold, noinline)) inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string message = text(format, arguments);
  va_end(arguments);
  throw Failure(where() + message);
}

}  // namespace emulate
