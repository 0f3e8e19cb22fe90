// Comparisons and conversions.
#pragma once

#include "numbers.h"

namespace ptx {

// ---- comparisons ----

enum class Compare { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
template <Compare c, bool ftz = false, class T>
inline bool compare(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if constexpr (c == Compare::eq) return a == b;
    if constexpr (c == Compare::ne) return a != b;
    if constexpr (c == Compare::lt) return a < b;
    if constexpr (c == Compare::le) return a <= b;
    if constexpr (c == Compare::gt) return a > b;
    if constexpr (c == Compare::ge) return a >= b;
  } else {
    const double x = in<Mode{.ftz = ftz}>(a), y = in<Mode{.ftz = ftz}>(b);
    const bool unordered = std::isnan(x) || std::isnan(y);
    if constexpr (c == Compare::num) return !unordered;
    if constexpr (c == Compare::nan) return unordered;
    if (unordered) return c >= Compare::equ;
    if constexpr (c == Compare::eq || c == Compare::equ) return x == y;
    if constexpr (c == Compare::ne || c == Compare::neu) return x != y;
    if constexpr (c == Compare::lt || c == Compare::ltu) return x < y;
    if constexpr (c == Compare::le || c == Compare::leu) return x <= y;
    if constexpr (c == Compare::gt || c == Compare::gtu) return x > y;
    if constexpr (c == Compare::ge || c == Compare::geu) return x >= y;
  }
}

// ---- conversions ----

enum class Whole { no, rni, rzi, rmi, rpi };
template <Whole w>
inline double to_whole(double x) {
  if constexpr (w == Whole::rni) return std::nearbyint(x);
  if constexpr (w == Whole::rmi) return std::floor(x);
  if constexpr (w == Whole::rpi) return std::ceil(x);
  return std::trunc(x);
}

template <class To, class From, Mode m = Mode{}, Whole whole = Whole::no, bool finite = false>
inline To convert(From a) {
  if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    if constexpr (m.sat) {
      using Limits = std::numeric_limits<To>;
      if (__int128(a) < __int128(Limits::min())) return Limits::min();
      if (__int128(a) > __int128(Limits::max())) return Limits::max();
    }
    return static_cast<To>(a);
  } else if constexpr (std::is_integral_v<To>) {
    const double x = to_whole<whole>(in<m>(a));
    constexpr bool wide = sizeof(To) == 8 || sizeof(From) == 8;
    if (std::isnan(x)) return wide ? static_cast<To>(uint64_t(1) << (8 * sizeof(To) - 1)) : To(0);
    using Limits = std::numeric_limits<To>;
    if (x <= double(Limits::min())) return Limits::min();
    if (x >= double(Limits::max())) return Limits::max();  // of 64 bits: 2^63 or 2^64, so not below
    return static_cast<To>(x);
  } else if constexpr (std::is_integral_v<From>) {
    if constexpr (is_small<To>) {
      const From low = a & 0xFFFFFFFF, high = a - low;  // both are exact as doubles
      return out<m>(To::from(add_to_odd(double(high), double(low)), m.round));
    } else if constexpr (m.round == rn) return out<m>(static_cast<To>(a));
    else {
      const volatile From u = a;
      return out<m>(directed(m.round, [&] { return static_cast<To>(u); }));
    }
  } else {
    a = in<m>(a);
    if constexpr (whole != Whole::no) return out<m>(number<To>(to_whole<whole>(double(a))));
    else if constexpr (is_small<To>) return out<m>(To::from(double(a), m.round, finite));
    else if constexpr (sizeof(To) >= sizeof(From)) return out<m>(static_cast<To>(double(a)));
    else if constexpr (m.round == rn) return out<m>(static_cast<To>(a));
    else {
      const volatile From u = a;
      return out<m>(directed(m.round, [&] { return static_cast<To>(u); }));
    }
  }
}
template <class To, Mode m, bool finite = false>
inline To convert_pair(float high, float low) {
  using N = std::remove_reference_t<decltype(To{}.x[0])>;
  return {{convert<N, float, m, Whole::no, finite>(low), convert<N, float, m, Whole::no, finite>(high)}};
}
template <Rounding r>
inline uint32_t to_tf32(float a) {
  return encode<8, 10>(a, r) << 13;
}

}  // namespace ptx
