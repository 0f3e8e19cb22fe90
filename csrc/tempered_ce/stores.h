// Reading ahead and writing past the caches: for rows that are many times what a cache holds.
#pragma once

#include "tempered_loss/math.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Asks for a cache line that is needed soon; any address will do.
FASTRANK_INLINE void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }
// The same for one that will be overwritten. A store asks for its line too, but only once the gradient is at hand: so the
// memory works while the exponentials are computed.
FASTRANK_INLINE void fetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }

#if defined(__x86_64__)
FASTRANK_INLINE void stream_bytes(void* p, const void* v, int64_t bytes) {
#if defined(__AVX512F__)
  if (bytes == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), _mm512_loadu_si512(v));
#endif
#if defined(__AVX2__)
  if (bytes == 32)
    return _mm256_stream_si256(static_cast<__m256i*>(p), _mm256_loadu_si256(static_cast<const __m256i*>(v)));
#endif
  if (bytes == 16)
    _mm_stream_si128(static_cast<__m128i*>(p), _mm_loadu_si128(static_cast<const __m128i*>(v)));
  else
    __builtin_memcpy(p, v, static_cast<size_t>(bytes));
}
// Makes streamed stores visible before those that follow.
FASTRANK_INLINE void fence() { _mm_sfence(); }
#else
FASTRANK_INLINE void stream_bytes(void* p, const void* v, int64_t bytes) { __builtin_memcpy(p, v, bytes); }
FASTRANK_INLINE void fence() {}
#endif

// Writes a row of value(j, count) without reading its memory first: whole vectors at aligned addresses, and what is
// before and after them as usual.
template <class G, class Value> FASTRANK_INLINE void stream_row(G* row, int64_t c, Value value) {
  constexpr int width = Lanes<Acc<G>>::width;
  constexpr int64_t bytes = width * sizeof(G);
  const int64_t off = static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(row) % bytes) % bytes / sizeof(G));
  int64_t j = off < c ? off : c;
  if (j > 0) store_some(row, value(0, static_cast<int>(j)), static_cast<int>(j));
  for (; j + width <= c; j += width) {
    G buffer[width];
    store(buffer, value(j, width));
    stream_bytes(row + j, buffer, bytes);
  }
  if (j < c) store_some(row + j, value(j, static_cast<int>(c - j)), static_cast<int>(c - j));
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
