// Vectors of the instruction set this file is compiled for: loads of every dtype, exp, log, horizontal sums.
//
// GCC's vector extension (Clang has it too) gives the arithmetic; intrinsics appear only where it has no word for
// the operation (masked access, half precision).
#pragma once

#include <stdint.h>

#include "common/simd.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FASTRANK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTRANK_VECTOR_BYTES 32
#else
#define FASTRANK_VECTOR_BYTES 16
#endif
#define FASTRANK_INLINE inline __attribute__((always_inline))

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {

struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };

// ---- one accumulator type and its vectors ----

template <class A> struct Lanes;
template <> struct Lanes<float> {
  static constexpr int width = FASTRANK_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(FASTRANK_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(FASTRANK_VECTOR_BYTES)));
};
template <> struct Lanes<double> {
  static constexpr int width = FASTRANK_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(FASTRANK_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(FASTRANK_VECTOR_BYTES)));
};
template <class A> using Vec = typename Lanes<A>::V;
template <class A> using Int = typename Lanes<A>::I;
typedef uint16_t Halves __attribute__((vector_size(FASTRANK_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(FASTRANK_VECTOR_BYTES)));

// The accumulator type of a storage type.
template <class S> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <class S> using Acc = typename AccOf<S>::type;

// The same bits under another type.
template <class To, class From> FASTRANK_INLINE To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "as: sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class A> FASTRANK_INLINE Vec<A> splat(A a) { return a - Vec<A>{}; }

template <class A> FASTRANK_INLINE Int<A> iota() {
  Int<A> lanes;
  for (int i = 0; i < Lanes<A>::width; ++i) lanes[i] = i;
  return lanes;
}

// Vec where mask (all ones or all zeros per lane), else 0.
template <class A> FASTRANK_INLINE Vec<A> keep(Int<A> mask, Vec<A> v) { return mask ? v : Vec<A>{}; }

// Over the lanes, by halves: a chain as long as their logarithm.
template <class A> FASTRANK_INLINE A sum(Vec<A> v) {
  for (int half = Lanes<A>::width / 2; half; half /= 2) v += __builtin_shuffle(v, iota<A>() ^ half);
  return v[0];
}
template <class A> FASTRANK_INLINE A largest(Vec<A> v) {
  for (int half = Lanes<A>::width / 2; half; half /= 2) {
    const Vec<A> other = __builtin_shuffle(v, iota<A>() ^ half);
    v = other > v ? other : v;
  }
  return v[0];
}

template <class A> FASTRANK_INLINE bool any(Int<A> mask) {
  for (int half = Lanes<A>::width / 2; half; half /= 2) mask |= __builtin_shuffle(mask, iota<A>() ^ half);
  return mask[0] != 0;
}

// ---- scalars of each storage type ----

FASTRANK_INLINE double widen(double x) { return x; }
FASTRANK_INLINE float widen(float x) { return x; }
FASTRANK_INLINE float widen(Bf16 x) {
  return as<float>(static_cast<uint32_t>(x.bits) << 16);
}
FASTRANK_INLINE float widen(F16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Exponent and mantissa move up by 13 bits; the product with 2^112 rebiases, and makes subnormals exact.
  uint32_t bits = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  bits = bits >= 0x0f800000 ? bits | 0x7f800000 : as<uint32_t>(as<float>(bits) * 0x1p112f);  // first: infinity, NaN
  return as<float>(bits | static_cast<uint32_t>(x.bits & 0x8000) << 16);
#endif
}

// Round to nearest, ties to even.
template <class S> FASTRANK_INLINE S narrow(Acc<S> x) { return x; }
template <> FASTRANK_INLINE Bf16 narrow<Bf16>(float x) {
  const uint32_t bits = as<uint32_t>(x);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <> FASTRANK_INLINE F16 narrow<F16>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits = as<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above round to infinity
  if (bits < 0x38800000)  // below 2^-14: adding 0.5 rounds at the last place of a subnormal, 2^-24
    return {static_cast<uint16_t>(sign | (as<uint32_t>(as<float>(bits) + 0.5f) - 0x3f000000))};
  bits += 0xfff + ((bits >> 13) & 1) - (112u << 23);
  return {static_cast<uint16_t>(sign | (bits >> 13))};
#endif
}

// ---- vectors of each storage type, as acc ----

template <class V, class S> FASTRANK_INLINE V load_bits(const S* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
FASTRANK_INLINE Vec<double> load(const double* p) { return load_bits<Vec<double>>(p); }
FASTRANK_INLINE Vec<float> load(const float* p) { return load_bits<Vec<float>>(p); }
FASTRANK_INLINE Vec<float> load(const Bf16* p) {
  const Words words = __builtin_convertvector(load_bits<Halves>(p), Words) << 16;
  return as<Vec<float>>(words);
}
FASTRANK_INLINE Vec<float> load(const F16* p) {
#if defined(__AVX512F__)
  // The zero-masking forms: GCC 12 warns about its own header in the plain ones.
  return as<Vec<float>>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return as<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int i = 0; i < Lanes<float>::width; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

// The first `count` lanes from memory (nothing beyond is touched), `fill` in the others.
template <class S> FASTRANK_INLINE Vec<Acc<S>> load_some(const S* p, int count, Acc<S> fill) {
  S buffer[Lanes<Acc<S>>::width] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return iota<Acc<S>>() < count ? load(buffer) : splat(fill);
}
#if defined(__AVX512F__)
template <> FASTRANK_INLINE Vec<float> load_some<float>(const float* p, int count, float fill) {
  return as<Vec<float>>(
      _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), p));
}
#endif

FASTRANK_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof v); }
FASTRANK_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof v); }
FASTRANK_INLINE void store(Bf16* p, Vec<float> v) {
  const Words bits = as<Words>(v);
  const Words rounded = v == v ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7fc0;
  const Halves halves = __builtin_convertvector(rounded, Halves);
  __builtin_memcpy(p, &halves, sizeof halves);
}
FASTRANK_INLINE void store(F16* p, Vec<float> v) {
#if defined(__AVX512F__)
  const auto halves = _mm512_maskz_cvtps_ph(0xffff, as<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &halves, sizeof halves);
#elif defined(__AVX2__)
  const auto halves = _mm256_cvtps_ph(as<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &halves, sizeof halves);
#else
  for (int i = 0; i < Lanes<float>::width; ++i) p[i] = narrow<F16>(v[i]);
#endif
}
template <class S> FASTRANK_INLINE void store_some(S* p, Vec<Acc<S>> v, int count) {
  S buffer[Lanes<Acc<S>>::width];
  store(buffer, v);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
}
#if defined(__AVX512F__)
template <> FASTRANK_INLINE void store_some<float>(float* p, Vec<float> v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), as<__m512>(v));
}
#endif

template <class P> FASTRANK_INLINE Vec<Acc<P>> load_up_to(const P* p, int count, Acc<P> fill = 0) {
  return count == Lanes<Acc<P>>::width ? load(p) : load_some(p, count, fill);
}
template <class P> FASTRANK_INLINE void store_up_to(P* p, Vec<Acc<P>> v, int count) {
  count == Lanes<Acc<P>>::width ? store(p, v) : store_some(p, v, count);
}

// A value that is rounded here, whatever product or sum follows: of v * a - b * c a compiler may fuse either product,
// and not the same one at every place.
template <class V> FASTRANK_INLINE V rounded(V v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

// ---- exp for x <= 0 ----
//
// x = k ln 2 + r with |r| <= ln(2)/2; exp(r) = 1 + r + r^2 q(r), q interpolated at Chebyshev nodes (relative error of
// the whole 1.0e-8 in float, 1.7e-17 in double). Together with rounding below 1 ulp where the set has FMA, 1.5 ulp
// where not. Results below the smallest normal number become 0. NaN stays NaN.

FASTRANK_INLINE Vec<float> exp_of_nonpositive(Vec<float> x) {
  using V = Vec<float>;
  const V magic = splat(0x1.8p23f);  // adding it rounds to an integer and leaves that in the low bits
  const V shifted = x * 1.44269504f + magic;
  const V k = shifted - magic;
#if defined(__FMA__)
  const V r = x - k * 0.693147182f;  // fused: what ln 2 lacks in float, 2e-9 |k|, is below x's own rounding
#else
  const V r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
#endif
  V q = splat(1.392632606e-03f);
  q = q * r + 8.363292553e-03f;
  q = q * r + 4.166655242e-02f;
  q = q * r + 1.666657627e-01f;
  q = q * r + 5.0e-01f;
  const V p = (q * r + 1.0f) * r + 1.0f;
  const Int<float> e = as<Int<float>>(p) + (as<Int<float>>(shifted) << 23);  // the exponent, added in place
  return as<V>(x < -87.3365f ? Int<float>{} : e);
}

FASTRANK_INLINE Vec<double> exp_of_nonpositive(Vec<double> x) {
  using V = Vec<double>;
  const V magic = splat(0x1.8p52);
  const V shifted = x * 1.4426950408889634 + magic;
  const V k = shifted - magic;
  const V r = (x - k * 6.93145751953125e-1) - k * 1.42860682030941723212e-6;
  V q = splat(2.5100569275813683e-08);
  q = q * r + 2.762032742826824e-07;
  q = q * r + 2.75572680728901e-06;
  q = q * r + 2.4801520792572694e-05;
  q = q * r + 0.00019841269863303223;
  q = q * r + 0.0013888888917538296;
  q = q * r + 0.008333333333330011;
  q = q * r + 0.04166666666662348;
  q = q * r + 0.16666666666666669;
  q = q * r + 0.5;
  const V p = (q * r) * r + r + 1.0;
  const Int<double> power = (as<Int<double>>(shifted) + 1023) << 52;
  const V e = p * as<V>(power);
  return x < -708.396 ? V{} : e;
}

// The same x, or one whose exponential is 0 as well: 0 * x of a class at -inf would be NaN.
template <class A> FASTRANK_INLINE Vec<A> bounded(Vec<A> x) { return x > A(-1000) ? x : splat(A(-1000)); }

// ---- log(1 + r) for r >= 0 ----
//
// 1 + r = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); where k = 0, f is r itself and a small r keeps its digits.
// log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), s = f / (A(2) + f), R = 2 atanh(s) / s - 2, interpolated in s^2 at Chebyshev
// nodes (relative error of R 1.7e-9 in float, 3.1e-18 in double). About 1 ulp. NaN stays NaN.

template <class A> struct Log;
template <> struct Log<float> {
  static constexpr int32_t root_half = 0x3f3504f3, one = 0x3f800000, fraction = 0x7fffff, digits = 23;
  static constexpr float ln2_high = 6.9313812256e-01f, ln2_low = 9.0580006145e-06f;
  static constexpr float R[] = {0.66666667f, 0.40000122f, 0.28550821f, 0.23330467f};
};
template <> struct Log<double> {
  static constexpr int64_t root_half = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000, fraction = 0xfffffffffffff,
                           digits = 52;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double R[] = {0.6666666666666666646, 0.4000000000000087698, 0.2857142857080361181,
                                 0.2222222239171391744, 0.1818179564013290628, 0.1538623970281465819,
                                 0.1326877313865688518, 0.1308662614784010214};
};

template <class A> FASTRANK_INLINE Vec<A> log_of_one_plus(Vec<A> r) {
  using V = Vec<A>;
  using L = Log<A>;
  const V u = A(1) + r;
  const Int<A> bits = as<Int<A>>(u) + (L::one - L::root_half);
  const Int<A> exponent = (bits >> L::digits) - (L::one >> L::digits);
  const V k = __builtin_convertvector(exponent, V);
  const V f = exponent == 0 ? r : as<V>((bits & L::fraction) + L::root_half) - A(1);
  const V lost = exponent == 0 ? V{} : (r < A(1) ? r - (u - A(1)) : A(1) - (u - r)) / u;  // what 1 + r rounded away
  const V s = f / (A(2) + f), z = s * s, half = f * f * A(0.5);
  constexpr int terms = sizeof(L::R) / sizeof(A);
  V R = splat(L::R[terms - 1]);
  for (int i = terms - 2; i >= 0; --i) R = R * z + L::R[i];
  return k * L::ln2_high + (f - (half - (s * (half + R * z) + (k * L::ln2_low + lost))));
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
