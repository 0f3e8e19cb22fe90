// What PTX instructions compute, as C++ functions: code made by translate.py calls these. Semantics are those of the
// PTX ISA, including results for NaN, shifts beyond the width and saturation. See also shim/emulate.h: memory,
// barriers and exchanges within a warp are the shim's.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "emulate.h"

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

// ---- approximations ----

// The ISA bounds the error of these and promises no bits. With error_seed = 0 they are rounded correctly; else each
// result is moved by as much as its bound allows, up or down depending on operand and seed.
inline uint64_t error_seed = 0;

inline double pushed(double exact, double bound, uint64_t operand) {
  if (!error_seed) return exact;
  return emulate::Random(operand ^ error_seed * 0x9E3779B97F4A7C15ull).below(2) ? exact + bound : exact - bound;
}
// The float nearest to `exact` or, if errors are asked for, one at most `bound` away. At 0, infinity and NaN exact.
inline float approximate(double exact, double bound, uint64_t operand) {
  const float nearest = static_cast<float>(exact);
  if (!error_seed || exact == 0 || !std::isfinite(exact) || std::isinf(nearest)) return nearest;
  float result = static_cast<float>(pushed(exact, bound, operand));
  for (int i = 0; i < 2 && std::fabs(double(result) - exact) > bound; ++i) result = std::nextafter(result, nearest);
  return result;
}
inline double ulp(double x) {  // of a float of that size
  return std::scalbn(1.0, std::max(std::ilogb(x), -126) - 23);
}
inline uint64_t bits(float x) { return std::bit_cast<uint32_t>(x); }

template <Mode m>
inline float exp2_approx(float a) {  // 2 ulp; exact at 0 and at infinities
  a = in<m>(a);
  if (std::fabs(a) < std::numeric_limits<float>::min()) return 1.0f;
  const double exact = std::exp2(double(a));
  return out<m>(approximate(exact, 2 * ulp(exact), bits(a)));
}
template <Mode m>
inline float log2_approx(float a) {  // 2^-22 absolute for a in (0.5, 2), else 2^-22 relative
  a = in<m>(a);
  const double exact = std::log2(double(a));
  return out<m>(approximate(exact, 0x1p-22 * (a > 0.5f && a < 2.0f ? 1.0 : std::fabs(exact)), bits(a)));
}
template <Mode m>
inline float reciprocal_approx(float a) {  // 1 ulp
  a = in<m>(a);
  const double exact = 1.0 / double(a);
  return out<m>(approximate(exact, ulp(exact), bits(a)));
}
template <Mode m>
inline float sqrt_approx(float a) {  // 2^-23 relative
  a = in<m>(a);
  const double exact = std::sqrt(double(a));
  return out<m>(approximate(exact, 0x1p-23 * exact, bits(a)));
}
template <Mode m>
inline float rsqrt_approx(float a) {  // 2^-22.4 relative, the larger of the bounds that editions of the ISA give
  a = in<m>(a);
  const double exact = 1.0 / std::sqrt(double(a));
  return out<m>(approximate(exact, 0x1.83p-23 * exact, bits(a)));
}
// 2 ulp; .approx (but not .full) gives 0 for |b| in (2^126, 2^128), where a reciprocal would be flushed.
template <Mode m, bool full>
inline float divide_approx(float a, float b) {
  a = in<m>(a), b = in<m>(b);
  if (!full && std::fabs(b) > 0x1p126f && std::isfinite(b))
    return std::isinf(a) ? std::nanf("") : std::copysign(0.0f, std::signbit(a) == std::signbit(b) ? 1.0f : -1.0f);
  const double exact = double(a) / double(b);
  return out<m>(approximate(exact, 2 * ulp(exact), bits(a) << 32 | bits(b)));
}
template <Mode m>
inline float tanh_approx(float a) {  // 2^-11 relative
  const double exact = std::tanh(double(in<m>(a)));
  return out<m>(approximate(exact, 0x1p-11 * std::fabs(exact), bits(a)));
}
template <Mode m>
inline float sin_approx(float a) {  // 2^-20.5 absolute for |a| <= 2 pi
  const double exact = std::sin(double(in<m>(a)));
  return out<m>(approximate(exact, 0x1.6ap-21, bits(a)));
}
template <Mode m>
inline float cos_approx(float a) {
  const double exact = std::cos(double(in<m>(a)));
  return out<m>(approximate(exact, 0x1.6ap-21, bits(a)));
}
// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 look at the upper half of the operand and fill the upper half of the
// result: some 20 bits.
inline double upper_half(double x) { return std::bit_cast<double>(std::bit_cast<uint64_t>(x) & 0xFFFFFFFF00000000ull); }
inline double gross(double exact, double operand) {
  if (exact == 0 || !std::isfinite(exact)) return exact;
  if (std::fabs(exact) < std::numeric_limits<double>::min()) return std::copysign(0.0, exact);
  return upper_half(pushed(exact, 0x1p-20 * std::fabs(exact), std::bit_cast<uint64_t>(operand)));
}
inline double flush_double(double x) {
  return std::fabs(x) < std::numeric_limits<double>::min() ? std::copysign(0.0, x) : x;
}
inline double reciprocal_gross(double a) { return gross(1.0 / upper_half(flush_double(a)), a); }
inline double rsqrt_gross(double a) { return gross(1.0 / std::sqrt(upper_half(flush_double(a))), a); }

// ---- integers ----

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

// ---- memory ----

template <class T>
inline T load(const char* p, int i) {
  T t;
  std::memcpy(&t, p + i * sizeof t, sizeof t);
  return t;
}
template <class T>
inline void store(char* p, int i, T value) {
  std::memcpy(p + i * sizeof value, &value, sizeof value);
}
inline uint64_t shared_base() { return reinterpret_cast<uint64_t>(emulate::this_block().dynamic_shared); }
inline uint64_t generic_to_shared(uint64_t address) {
  if (!emulate::is_shared(address)) emulate::fail("cvta.to.shared of an address that is not in shared memory");
  return address - shared_base();
}

// A parameter read through a register that holds its address.
inline const char* parameter(const char* parameters, uint64_t size, uint64_t offset, unsigned bytes) {
  if (offset > size || bytes > size - offset) emulate::fail("ld.param of %u bytes at %llu of %llu", bytes,
                                                           (unsigned long long)offset, (unsigned long long)size);
  return parameters + offset;
}

// A thread's own memory; its addresses are the emulator's.
struct Local {
  char* begin;
  uint64_t size;
  bool holds(uint64_t address) const { return address - reinterpret_cast<uint64_t>(begin) < size; }
  char* at(uint64_t address, unsigned bytes) const {
    emulate::check_alignment(address, bytes, "local access");
    const uint64_t offset = address - reinterpret_cast<uint64_t>(begin);
    if (offset > size || bytes > size - offset) emulate::fail("local access of %u bytes out of bounds", bytes);
    return begin + offset;
  }
};
inline char* generic(const Local& local, uint64_t address, unsigned bytes, emulate::Access access) {
  return local.holds(address) ? local.at(address, bytes) : emulate::generic(address, bytes, access);
}

// atom and red: `change` makes the new value of the old. Nothing else runs in between: threads are fibres.
template <class T, class F>
inline T read_modify_write(char* p, F change) {
  emulate::overtake();
  const T old = load<T>(p, 0);
  store(p, 0, change(old));
  return old;
}

// redux.sync on f32 (sm_100).
template <Mode m, bool maximum>
inline float reduce_float(uint32_t mask, float value) {
  return emulate::exchange(mask, maximum ? "redux.max.f32" : "redux.min.f32", value, [mask](auto get) {
    bool first = true;
    float result = 0;
    for (unsigned l = 0; l < 32; ++l)
      if (mask >> l & 1) result = first ? get(l) : extreme<m, maximum>(result, get(l)), first = false;
    if constexpr (m.abs) result = std::fabs(result);
    return result;
  });
}
inline bool elect(uint32_t mask, uint32_t& leader) {
  emulate::exchange(mask, "elect", 0, [](auto) { return 0; });
  leader = __builtin_ctz(mask);
  return leader == emulate::this_thread().lane();
}

// stmatrix.sync.aligned.m8n8: the inverse of ldmatrix.
template <int Count, bool Transposed>
inline void store_matrix(const uint32_t (&fragment)[Count], char* row) {
  struct Lane {
    uint32_t fragment[Count];
  } mine;
  std::memcpy(mine.fragment, fragment, sizeof mine.fragment);
  emulate::exchange(~0u, Transposed ? "stmatrix.trans" : "stmatrix", mine, [&](auto get) {
    const unsigned l = emulate::this_thread().lane();
    if (l >= 8 * Count) return 0;
    for (unsigned c = 0; c < 8; ++c) {
      const unsigned r = l % 8, owner = Transposed ? c * 4 + r / 2 : r * 4 + c / 2, e = Transposed ? r % 2 : c % 2;
      store<uint16_t>(row, c, uint16_t(get(owner).fragment[l / 8] >> (16 * e)));
    }
    return 0;
  });
}

// ---- mutants ----

// Which deliberate mistake is switched on (see mutants.py); 0 is none.
inline int mutant = 0;

}  // namespace ptx
