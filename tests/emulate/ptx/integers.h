// Integers and bits, and what is asked of a number's class.
#pragma once

#include "numbers.h"

namespace ptx {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
inline T add_integer(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); }
template <class T>
inline T subtract_integer(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }
template <class T>
inline T multiply_low(T a, T b) {
  return T(uint64_t(Unsigned<T>(a)) * uint64_t(Unsigned<T>(b)));
}
template <class T>
inline T multiply_high(T a, T b) {
  using W = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T((W(a) * W(b)) >> (8 * sizeof(T)));
}
template <class W, class T>
inline W multiply_wide(T a, T b) { return W(a) * W(b); }
// The ISA leaves division by zero undefined; hardware returns all ones.
template <class T>
inline T divide_integer(T a, T b) {
  if (b == 0) return T(-1);
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return subtract_integer(T(0), a);
  return a / b;
}
template <class T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return a % b;
}
template <class T>
inline T shift_left(T a, uint32_t n) { return n >= 8 * sizeof(T) ? T(0) : T(Unsigned<T>(a) << n); }
template <class T>
inline T shift_right(T a, uint32_t n) {
  if (n >= 8 * sizeof(T)) return a < 0 ? T(-1) : T(0);
  return T(a >> n);
}
template <bool left, bool wrap>
inline uint32_t funnel(uint32_t low, uint32_t high, uint32_t n) {
  n = wrap ? n & 31 : std::min(n, 32u);
  const uint64_t both = uint64_t(high) << 32 | low;
  return left ? uint32_t((n == 32 ? both << 32 : both << n) >> 32) : uint32_t(n == 32 ? high : both >> n);
}
// bfe: bits [position, position + length), beyond the top filled up with the sign (signed) or zeros.
template <class T>
inline T extract(T a, uint32_t position, uint32_t length) {
  constexpr unsigned top = 8 * sizeof(T) - 1;
  position &= 0xFF, length &= 0xFF;
  if (length == 0) return 0;
  const unsigned sign_at = std::min(position + length - 1, top);
  const bool sign = std::is_signed_v<T> && (Unsigned<T>(a) >> sign_at & 1);
  Unsigned<T> result = 0;
  for (unsigned i = 0; i <= top; ++i) {
    const bool bit = i < length && position + i <= top ? Unsigned<T>(a) >> (position + i) & 1 : sign;
    result |= Unsigned<T>(bit) << i;
  }
  return T(result);
}
template <class T>
inline T insert(T a, T b, uint32_t position, uint32_t length) {
  position &= 0xFF, length &= 0xFF;
  T result = b;
  for (unsigned i = 0; i < length && position + i < 8 * sizeof(T); ++i) {
    result &= ~(T(1) << (position + i));
    result |= (a >> i & 1) << (position + i);
  }
  return result;
}
template <class T>
inline uint32_t find_top(T a, bool shift_amount) {
  if (std::is_signed_v<T> && a < 0) a = ~a;
  if (a == 0) return 0xFFFFFFFF;
  const uint32_t at = 63 - __builtin_clzll(Unsigned<T>(a));
  return shift_amount ? 8 * sizeof(T) - 1 - at : at;
}
template <class T>
inline T reverse_bits(T a) {
  T r = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) r |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
  return r;
}
template <class T>
inline T logic3(T a, T b, T c, unsigned table) {
  T r = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
enum class Permute { index, f4e, b4e, rc8, ecl, ecr, rc16 };
template <Permute mode>
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  const unsigned k = c & 3;
  for (unsigned i = 0; i < 4; ++i) {
    unsigned from = c >> (4 * i) & 15;
    if constexpr (mode == Permute::f4e) from = k + i;
    if constexpr (mode == Permute::b4e) from = (k + 8 - i) & 7;
    if constexpr (mode == Permute::rc8) from = k;
    if constexpr (mode == Permute::ecl) from = std::max(k, i);
    if constexpr (mode == Permute::ecr) from = std::min(k, i);
    if constexpr (mode == Permute::rc16) from = (k & 1) * 2 + (i & 1);
    uint32_t byte = both >> (8 * (from & 7)) & 0xFF;
    if (mode == Permute::index && from & 8) byte = byte & 0x80 ? 0xFF : 0;
    r |= byte << (8 * i);
  }
  return r;
}
enum class Test { finite, infinite, number, notanumber, normal, subnormal };
template <Test t, class T>
inline bool test(T x) {
  if constexpr (t == Test::finite) return std::isfinite(x);
  if constexpr (t == Test::infinite) return std::isinf(x);
  if constexpr (t == Test::number) return !std::isnan(x);
  if constexpr (t == Test::notanumber) return std::isnan(x);
  if constexpr (t == Test::normal) return std::isnormal(x);
  return std::fpclassify(x) == FP_SUBNORMAL;
}

}  // namespace ptx
