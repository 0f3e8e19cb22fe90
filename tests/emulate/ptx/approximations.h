// Instructions that PTX calls approximate.
#pragma once

#include "emulate.h"
#include "numbers.h"

namespace ptx {

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

}  // namespace ptx
