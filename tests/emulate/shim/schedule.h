// In which order CUDA threads run, and when asynchronous copies land: every order the hardware might choose must give
// the same result, so a test runs several. No single one finds every mistake.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace emulate {

struct Schedule {
  enum Order {
    lockstep,        // thread 0, 1, 2, ... each as far as its next barrier or exchange; blocks in order
    reverse,         // the same from the last thread to the first, and from the last block to the first
    warps,           // each warp as far as it can go before the next one starts
    warps_reverse,   // the same from the last warp to the first
    random,          // any ready warp, any lane, as far as it can or not; several blocks at once, in any order
  } order = lockstep;
  uint64_t seed = 0;
  bool early = false;  // cp.async lands at once (else: as late as the program's own waits allow)

  // "lockstep", "reverse", "warps", "warps-reverse" or "random:SEED", each with "+early" or without.
  static Schedule parse(const std::string& text) {
    Schedule s;
    std::string name = text;
    if (const size_t plus = name.find('+'); plus != std::string::npos) {
      if (name.substr(plus) != "+early") throw std::invalid_argument("unknown schedule: " + text);
      s.early = true;
      name.resize(plus);
    }
    if (name.rfind("random:", 0) == 0) {
      s.order = random;
      s.seed = std::strtoull(name.c_str() + 7, nullptr, 10);
      return s;
    }
    const char* const names[] = {"lockstep", "reverse", "warps", "warps-reverse"};
    for (int i = 0; i < 4; ++i)
      if (name == names[i]) {
        s.order = static_cast<Order>(i);
        return s;
      }
    throw std::invalid_argument("unknown schedule: " + text);
  }
};

// splitmix64: small, and good enough to choose who runs next.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

}  // namespace emulate
