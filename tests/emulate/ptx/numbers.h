// Registers, and arithmetic of floating-point numbers as the instructions round it.
#pragma once

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx {

// ---- registers: bags of bits ----

// The register's low bits as a T. A register is at least as wide as the instruction's type.
template <class T, class R>
inline T as(R r) {
  if constexpr (std::is_same_v<T, bool> || std::is_same_v<R, bool>) {
    static_assert(std::is_same_v<T, R>, "a predicate is no number");
    return r;
  } else {
    static_assert(sizeof(T) <= sizeof(R), "register narrower than the instruction's type");
    T t;
    std::memcpy(&t, &r, sizeof t);
    return t;
  }
}

// A value into a register that may be wider: sign- or zero-extended by the value's type.
template <class R, class T>
inline void set(R& r, T value) {
  if constexpr (sizeof(R) == sizeof(T)) {
    std::memcpy(&r, &value, sizeof r);
  } else if constexpr (std::is_integral_v<T>) {
    static_assert(sizeof(R) > sizeof(T), "register narrower than the instruction's type");
    r = static_cast<R>(value);
  } else {
    static_assert(sizeof(R) > sizeof(T), "register narrower than the instruction's type");
    r = 0;
    std::memcpy(&r, &value, sizeof value);
  }
}

// ---- numbers ----

enum Rounding { rn, rz, rm, rp, rna };
struct Mode {
  Rounding round = rn;
  bool ftz = false, sat = false, relu = false, nan = false, xorsign = false, abs = false;
};

inline int host_rounding(Rounding r) {
  return r == rz ? FE_TOWARDZERO : r == rm ? FE_DOWNWARD : r == rp ? FE_UPWARD : FE_TONEAREST;
}

// f() rounded as asked; f must read its operands through volatile.
template <class F>
__attribute__((noinline)) auto directed(Rounding r, F f) {
  const int old = std::fegetround();
  std::fesetround(host_rounding(r));
  asm volatile("" ::: "memory");
  const volatile auto result = f();
  asm volatile("" ::: "memory");
  std::fesetround(old);
  return static_cast<std::remove_cv_t<decltype(f())>>(result);
}

// x + y in double with the last bit set if anything was cut off ("round to odd"): rounding that to 24 bits or fewer is
// the correct rounding of the exact sum.
inline double add_to_odd(double x, double y) {
  const volatile double s = x + y;
  if (!std::isfinite(s)) return s;
  const volatile double back = s - x;
  const volatile double error = (x - (s - back)) + (y - back);
  double result = s;
  if (error != 0 && !(std::bit_cast<uint64_t>(result) & 1))
    result = std::nextafter(result, error > 0 ? HUGE_VAL : -HUGE_VAL);
  return result;
}

// x rounded to E exponent bits and M bits after the point, as the bits of that format.
template <int E, int M>
uint32_t encode(double x, Rounding round, bool saturate_finite = false) {
  constexpr int bias = (1 << (E - 1)) - 1;
  constexpr uint32_t sign_bit = 1u << (E + M), infinity = ((1u << E) - 1) << M;
  const uint32_t sign = std::signbit(x) ? sign_bit : 0;
  if (std::isnan(x)) return sign_bit - 1;  // canonical: all ones but the sign
  if (std::isinf(x)) return sign | (saturate_finite ? infinity - 1 : infinity);
  x = std::fabs(x);
  int exponent = x == 0 ? 1 - bias : std::max(std::ilogb(x), 1 - bias);
  const double scaled = std::scalbn(x, M - exponent);  // exact: in units of the last place
  double whole = std::floor(scaled);
  const double rest = scaled - whole;
  const bool up = round == rn    ? rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) != 0)
                  : round == rna ? rest >= 0.5
                  : round == rp  ? rest > 0 && !sign
                  : round == rm  ? rest > 0 && sign
                                 : false;
  whole += up;
  // Subnormal numbers have exponent field 0, the others start at 2^M: adding the fields carries as it should.
  const uint64_t bits = static_cast<uint64_t>(whole) + (static_cast<uint64_t>(exponent + bias - 1) << M);
  if (bits < infinity) return sign | static_cast<uint32_t>(bits);
  const bool to_infinity = round == rn || round == rna || (round == rp && !sign) || (round == rm && sign);
  return sign | (to_infinity && !saturate_finite ? infinity : infinity - 1);
}

template <int E, int M>
struct Small {  // fp16 is 5, 10; bf16 is 8, 7
  uint16_t bits;
  static Small from(double x, Rounding r = rn, bool finite = false) {
    return {static_cast<uint16_t>(encode<E, M>(x, r, finite))};
  }
  operator double() const {
    const int exponent = bits >> M & ((1 << E) - 1), fraction = bits & ((1 << M) - 1), bias = (1 << (E - 1)) - 1;
    double x = exponent == (1 << E) - 1 ? fraction ? std::nan("") : HUGE_VAL
               : exponent               ? std::scalbn(double((1 << M) + fraction), exponent - bias - M)
                                        : std::scalbn(double(fraction), 1 - bias - M);
    return bits >> (E + M) ? -x : x;
  }
};
using f16 = Small<5, 10>;
using bf16 = Small<8, 7>;

template <class T>
struct Pair {  // x[0] is the low half
  T x[2];
};
using f16x2 = Pair<f16>;
using bf16x2 = Pair<bf16>;
using f32x2 = Pair<float>;
template <class T>
constexpr bool is_pair = false;
template <class T>
constexpr bool is_pair<Pair<T>> = true;
template <class T>
constexpr bool is_small = std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// f on a number, or on both halves.
template <class T, class F, class... More>
inline T each(F f, T a, More... more) {
  if constexpr (is_pair<T>) return {{f(a.x[0], more.x[0]...), f(a.x[1], more.x[1]...)}};
  else return f(a, more...);
}

template <class T>
inline T flush(T x) {  // subnormal numbers to zero, sign kept
  if constexpr (std::is_same_v<T, float>) return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  else if constexpr (std::is_same_v<T, f16>) return (x.bits & 0x7C00) ? x : T{uint16_t(x.bits & 0x8000)};
  else return x;
}
template <Mode m, class T>
inline T in(T x) {
  if constexpr (m.ftz) return flush(x);
  else return x;
}
template <class T>
inline T number(double x, Rounding r = rn) {
  if constexpr (is_small<T>) return T::from(x, r);
  else return static_cast<T>(x);
}
template <Mode m, class T>
inline T out(T x) {
  if constexpr (m.ftz) x = flush(x);
  if constexpr (m.sat) x = double(x) > 0 ? double(x) < 1 ? x : number<T>(1) : number<T>(0);  // NaN becomes 0
  if constexpr (m.relu) x = double(x) < 0 ? number<T>(0) : x;
  return x;
}

template <Mode m, class T>
inline T add(T a, T b) {
  return each([](auto x, auto y) -> decltype(x) {
    using N = decltype(x);
    x = in<m>(x), y = in<m>(y);
    if constexpr (is_small<N>) return out<m>(N::from(add_to_odd(x, y), m.round));
    else if constexpr (m.round == rn) return out<m>(static_cast<N>(x + y));
    else {
      const volatile N u = x, v = y;
      return out<m>(directed(m.round, [&] { return static_cast<N>(u + v); }));
    }
  }, a, b);
}
template <class T>
inline T negate(T a) {
  return each([](auto x) -> decltype(x) {
    if constexpr (is_small<decltype(x)>) return {uint16_t(x.bits ^ 0x8000)};
    else return -x;
  }, a);
}
template <Mode m, class T>
inline T subtract(T a, T b) {
  return add<m>(a, negate(b));
}
template <Mode m, class T>
inline T multiply(T a, T b) {
  return each([](auto x, auto y) -> decltype(x) {
    using N = decltype(x);
    x = in<m>(x), y = in<m>(y);
    if constexpr (is_small<N>) return out<m>(N::from(double(x) * double(y), m.round));
    else if constexpr (m.round == rn) return out<m>(static_cast<N>(x * y));
    else {
      const volatile N u = x, v = y;
      return out<m>(directed(m.round, [&] { return static_cast<N>(u * v); }));
    }
  }, a, b);
}
template <Mode m, class T>
inline T fused_multiply_add(T a, T b, T c) {
  return each([](auto x, auto y, auto z) -> decltype(x) {
    using N = decltype(x);
    x = in<m>(x), y = in<m>(y), z = in<m>(z);
    if constexpr (is_small<N>) return out<m>(N::from(add_to_odd(double(x) * double(y), z), m.round));
    else if constexpr (m.round == rn) return out<m>(static_cast<N>(std::fma(x, y, z)));
    else {
      const volatile N u = x, v = y, w = z;
      return out<m>(directed(m.round, [&] { return static_cast<N>(std::fma(N(u), N(v), N(w))); }));
    }
  }, a, b, c);
}
template <Mode m, class T>
inline T divide(T a, T b) {
  a = in<m>(a), b = in<m>(b);
  if constexpr (m.round == rn) return out<m>(static_cast<T>(a / b));
  const volatile T u = a, v = b;
  return out<m>(directed(m.round, [&] { return static_cast<T>(u / v); }));
}
template <Mode m, class T>
inline T square_root(T a) {
  a = in<m>(a);
  if constexpr (m.round == rn) return out<m>(static_cast<T>(std::sqrt(a)));
  const volatile T u = a;
  return out<m>(directed(m.round, [&] { return static_cast<T>(std::sqrt(T(u))); }));
}
template <Mode m, class T>
inline T absolute(T a) {
  return each([](auto x) -> decltype(x) {
    x = in<m>(x);
    if constexpr (is_small<decltype(x)>) return {uint16_t(x.bits & 0x7FFF)};
    else return std::fabs(x);
  }, a);
}
template <class T>
inline T canonical_nan() {
  if constexpr (std::is_same_v<T, float>) return std::bit_cast<float>(0x7FFFFFFFu);
  else return number<T>(std::nan(""));
}
// Of a NaN and a number the number, unless .NaN; -0 is below +0.
template <Mode m, bool maximum, class T>
inline T extreme(T a, T b) {
  return each([](auto x, auto y) -> decltype(x) {
    using N = decltype(x);
    x = in<m>(x), y = in<m>(y);
    if constexpr (m.abs) x = absolute<Mode{}>(x), y = absolute<Mode{}>(y);
    const bool flip = m.xorsign && (std::signbit(double(x)) != std::signbit(double(y)));
    if constexpr (m.xorsign) x = absolute<Mode{}>(x), y = absolute<Mode{}>(y);
    const double u = x, v = y;
    N result;
    if (std::isnan(u) || std::isnan(v)) result = m.nan || (std::isnan(u) && std::isnan(v)) ? canonical_nan<N>() : std::isnan(u) ? y : x;
    else if (u == v) result = std::signbit(u) == maximum ? y : x;
    else result = (u > v) == maximum ? x : y;
    return out<m>(flip ? negate(result) : result);
  }, a, b);
}
template <class T>
inline T copy_sign(T sign_from, T value) {
  return std::copysign(value, sign_from);
}

}  // namespace ptx
