// What the emulator promises, one small program each: right results under every schedule, and wrong programs refused
// with the right words. Prints "NAME: ok" or "NAME: what was seen".
#include <cstdio>
#include <map>
#include <vector>

#include "cuda_runtime.h"

namespace {

using emulate::launch;
using emulate::Schedule;

const char* const kSchedules[] = {"lockstep", "reverse", "warps", "warps-reverse", "random:1", "random:2+early"};
std::map<std::string, std::string (*)()>& checks() {
  static std::map<std::string, std::string (*)()> all;
  return all;
}
// Defines and registers a check; it returns what is wrong, or nothing.
#define CHECK(name)                                                           \
  std::string name();                                                         \
  [[maybe_unused]] const bool name##_registered = (checks()[#name] = name, true); \
  std::string name()

// Under every schedule: the program ends well and `right` holds.
template <class F, class G>
std::string always(dim3 grid, dim3 block, size_t shared, F body, G right) {
  for (const char* schedule : kSchedules) {
    emulate::current_schedule() = Schedule::parse(schedule);
    try {
      launch("k", grid, block, shared, body);
    } catch (const std::exception& e) {
      return std::string(schedule) + ": " + e.what();
    }
    if (!right()) return std::string(schedule) + ": wrong result";
  }
  return "";
}

// Under every schedule (or only the one named): refused, with `words` in the message.
template <class F>
std::string never(const char* words, dim3 grid, dim3 block, size_t shared, F body, const char* only = nullptr) {
  for (const char* schedule : kSchedules) {
    if (only) schedule = only;
    emulate::current_schedule() = Schedule::parse(schedule);
    try {
      launch("k", grid, block, shared, body);
      return std::string(schedule) + ": accepted";
    } catch (const std::exception& e) {
      if (!std::strstr(e.what(), words)) return std::string(schedule) + ": " + e.what();
    }
  }
  return "";
}

unsigned lane() { return threadIdx.x % 32; }

// ---- launches ----

CHECK(every_thread_runs_once_with_its_indices) {
  static unsigned count[2 * 3 * 4][5 * 7 * 2];
  std::memset(count, 0, sizeof count);
  unsigned runs = 0;
  return always({2, 3, 4}, {5, 7, 2}, 0,
                [] {
                  const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
                  ++count[b][threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)];
                },
                [&] {
                  ++runs;
                  for (auto& block : count)
                    for (unsigned n : block)
                      if (n != runs) return false;
                  return true;
                });
}
CHECK(empty_grid_is_refused) { return never("no such grid", 0, 32, 0, [] {}); }
CHECK(tall_grid_is_refused) { return never("no such grid", {1, 65536}, 32, 0, [] {}); }
CHECK(large_block_is_refused) { return never("no such block", 1, 1025, 0, [] {}); }
CHECK(too_much_shared_memory_is_refused) { return never("shared memory", 1, 32, (227 << 10) + 1, [] {}); }
CHECK(failure_names_kernel_block_and_thread) {
  return never("kernel k, block (1,0,0), thread (33,0,0): no 7", 2, 64, 0, [] {
    if (blockIdx.x == 1 && threadIdx.x == 33) emulate::fail("no %d", 7);
  });
}
CHECK(a_launch_after_a_failure_is_clean) {
  never("", 1, 64, 0, [] { __syncthreads(); emulate::fail("first"); });
  int sum = 0;
  return always(1, 64, 0, [&] { __syncthreads(); atomicAdd(&sum, 1); }, [&] { return std::exchange(sum, 0) == 64; });
}
CHECK(endless_loop_is_noticed) {
  return never("endless", 1, 1, 0, [] { for (;;) emulate::count_step(); }, "lockstep");
}
CHECK(wait_for_a_block_that_cannot_start_is_noticed) {
  int flag = 0;
  return never("still running", 2, 1, 0, [&] {
    if (blockIdx.x == 0) while (atomicAdd(&flag, 0) == 0) {}
    else atomicAdd(&flag, 1);
  }, "lockstep");
}

// ---- barriers ----

CHECK(barrier_separates_writes_from_reads) {
  bool right = true;
  return always(3, 96, 96 * sizeof(int), [&] {
    int* const s = reinterpret_cast<int*>(emulate::this_block().dynamic_shared);
    for (int round = 0; round < 4; ++round) {
      s[threadIdx.x] = static_cast<int>(threadIdx.x) * round;
      __syncthreads();
      right &= s[95 - threadIdx.x] == static_cast<int>(95 - threadIdx.x) * round;
      __syncthreads();
    }
  }, [&] { return right; });
}
// Every schedule that lets some thread run ahead sees the stale or the poisoned value.
CHECK(missing_barrier_shows) {
  for (const char* schedule : kSchedules) {
    int wrong = 0;
    emulate::current_schedule() = Schedule::parse(schedule);
    launch("k", 1, 96, 96 * sizeof(int), [&] {
      int* const s = reinterpret_cast<int*>(emulate::this_block().dynamic_shared);
      s[threadIdx.x] = 1;
      wrong += s[95 - threadIdx.x] != 1;
    });
    if (!wrong) return schedule;
  }
  return "";
}
CHECK(barrier_in_a_branch_is_a_deadlock) {
  return never("deadlock: barrier 0", 1, 64, 0, [] { if (threadIdx.x < 32) __syncthreads(); });
}
CHECK(barriers_of_two_branches_do_not_meet) {
  return never("divergent barrier", 1, 64, 0, [] {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  });
}
CHECK(named_barrier_holds_some_warps) {
  int sum = 0;
  bool right = true;
  return always(1, 96, 0, [&] {
    if (threadIdx.x >= 64) return;
    atomicAdd(&sum, 1);
    emulate::barrier(3, 64);
    right &= sum == 64;
  }, [&] { return right && std::exchange(sum, 0) == 64; });
}
CHECK(producers_arrive_and_do_not_wait) {
  int value = 0;
  bool right = true;
  return always(1, 64, 0, [&] {
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) value = 5;
      emulate::barrier(1, 64, {}, false);
    } else {
      emulate::barrier(1, 64);
      right &= value == 5;
    }
  }, [&] { return right && std::exchange(value, 0) == 5; });
}
CHECK(barrier_for_half_a_warp_is_refused) {
  return never("multiple of 32", 1, 64, 0, [] { emulate::barrier(1, 48); });
}
CHECK(disagreeing_barrier_is_refused) {
  return never("barrier 1", 1, 64, 0, [] { emulate::barrier(1, threadIdx.x < 32 ? 64 : 32); });
}

// ---- warps ----

CHECK(shuffles) {
  bool right = true;
  return always(1, 64, 0, [&] {
    const int l = lane(), base = 10 * static_cast<int>(threadIdx.x / 32);
    const auto is = [&](int got, int from) { right &= got == base + 100 * from; };
    const int v = base + 100 * l;
    is(__shfl_xor_sync(~0u, v, 5), l ^ 5);
    is(__shfl_down_sync(~0u, v, 3), l + 3 < 32 ? l + 3 : l);
    is(__shfl_up_sync(~0u, v, 3), l >= 3 ? l - 3 : l);
    is(__shfl_sync(~0u, v, 7), 7);
    is(__shfl_sync(~0u, v, 9, 8), l / 8 * 8 + 1);  // the lane wraps within its segment of 8
    is(__shfl_down_sync(~0u, v, 3, 8), l % 8 + 3 < 8 ? l + 3 : l);
    is(__shfl_up_sync(~0u, v, 3, 8), l % 8 >= 3 ? l - 3 : l);
    is(__shfl_xor_sync(~0u, v, 16, 16), l < 16 ? l : l - 16);  // as on a device: upper segments may read lower ones
    right &= __shfl_xor_sync(~0u, 1.5 * l, 1) == 1.5 * (l ^ 1);
    bool inside = false;
    emulate::shuffle(emulate::Shuffle::down, ~0u, v, 3, 31, &inside);
    right &= inside == (l + 3 < 32);
    emulate::shuffle(emulate::Shuffle::up, ~0u, v, 3, 0, &inside);
    right &= inside == (l >= 3);
  }, [&] { return right; });
}
CHECK(shuffles_in_parts_of_a_warp) {
  bool right = true;
  return always(1, 32, 0, [&] {
    const unsigned mask = lane() < 10 ? 0x3ffu : ~0x3ffu;
    for (int i = 0; i < 5; ++i) {
      right &= __shfl_sync(mask, static_cast<int>(lane()), lane() < 10 ? 4 : 20) == (lane() < 10 ? 4 : 20);
      if (lane() < 10) __syncwarp(mask);
    }
  }, [&] { return right; });
}
CHECK(a_lane_outside_the_mask_reads_as_poison) {
  bool right = true;
  return always(1, 32, 0, [&] {
    if (lane() < 16) right &= std::isnan(__shfl_xor_sync(0xffffu, 1.0f, 16));
  }, [&] { return right; });
}
CHECK(votes_matches_and_reductions) {
  bool right = true;
  return always(1, 32, 0, [&] {
    const unsigned l = lane();
    right &= __ballot_sync(~0u, l % 3 == 0) == 0x49249249u;
    right &= __any_sync(~0u, l == 31) && !__all_sync(~0u, l != 31) && __all_sync(~0u, 1) && !__any_sync(~0u, 0);
    right &= emulate::match_any(~0u, l / 8) == 0xffu << (l / 8 * 8);
    right &= emulate::match_all(~0u, 4.0) == ~0u && emulate::match_all(~0u, l) == 0;
    using emulate::Reduce;
    const int v = static_cast<int>(l) - 7;
    right &= emulate::reduce(Reduce::add, ~0u, v) == 31 * 16 - 7 * 32;
    right &= emulate::reduce(Reduce::min, ~0u, v) == -7 && emulate::reduce(Reduce::max, ~0u, v) == 24;
    right &= emulate::reduce(Reduce::min, ~0u, static_cast<unsigned>(v)) == 0;
    right &= emulate::reduce(Reduce::and_, ~0u, l | 64) == 64 && emulate::reduce(Reduce::or_, ~0u, l) == 31;
    right &= emulate::reduce(Reduce::xor_, ~0u, l) == 0;
  }, [&] { return right; });
}
CHECK(lane_outside_its_own_mask_is_refused) {
  return never("lacks lane", 1, 32, 0, [] { __shfl_xor_sync(0xffffu, 1, 1); });
}
CHECK(missing_lane_is_a_deadlock) {
  return never("which never came", 1, 32, 0, [] { if (lane() < 31) __shfl_xor_sync(~0u, 1, 1); });
}
CHECK(different_warp_instructions_do_not_meet) {
  return never("meets", 1, 32, 0, [] {
    if (lane() < 16) __shfl_xor_sync(~0u, 1, 1);
    else __ballot_sync(~0u, 1);
  });
}

// ---- atomics ----

CHECK(atomics) {
  struct Totals { float f; double d; int i; unsigned u; unsigned long long w; int least; long long most; } t = {};
  return always(4, 64, 0, [&] {
    const int me = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
    atomicAdd(&t.f, 1.0f), atomicAdd(&t.d, 0.5), atomicAdd(&t.i, -1), atomicAdd(&t.u, 1u), atomicAdd(&t.w, 1ull << 40);
    atomicMin(&t.least, -me), atomicMax(&t.most, static_cast<long long>(me) << 33);
  }, [&] {
    const Totals got = std::exchange(t, {});
    return got.f == 256 && got.d == 128 && got.i == -256 && got.u == 256 && got.w == 256ull << 40 &&
           got.least == -255 && got.most == 255ll << 33;
  });
}
CHECK(atomic_bits_exchange_and_wrap) {
  unsigned bits = 0, word = 7, counter = 0;
  double d = 1.0;
  bool right = true;
  return always(1, 32, 0, [&] {
    using emulate::Atomic;
    emulate::atomic<Atomic::or_>(&bits, 1u << lane());
    __syncwarp();
    right &= bits == ~0u;
    __syncwarp();
    emulate::atomic<Atomic::and_>(&bits, ~(1u << lane()));
    emulate::atomic<Atomic::increment>(&counter, 3u);  // 0 1 2 3 0 ...: 32 of them end at 0
    if (lane() == 0) {
      right &= atomicExch(&d, 2.0) == 1.0 && atomicExch(&d, 1.0) == 2.0;
      right &= atomicCAS(&word, 7u, 9u) == 7 && atomicCAS(&word, 7u, 11u) == 9 && word == 9;
      word = 7;
      unsigned down = 0;
      right &= emulate::atomic<Atomic::decrement>(&down, 5u) == 0 && down == 5;
      right &= emulate::atomic<Atomic::xor_>(&down, 1u) == 5 && down == 4;
    }
  }, [&] { return right && bits == 0 && counter == 0; });
}
// A lost update needs another block between the read and the write: the random schedules have one.
CHECK(read_modify_write_that_is_not_atomic_shows) {
  int lost = 0;
  for (int seed = 0; seed < 8; ++seed) {
    int count = 0;
    emulate::current_schedule() = Schedule::parse("random:" + std::to_string(seed));
    launch("k", 8, 32, 0, [&] {
      const int seen = count;
      __threadfence();
      count = seen + 1;
    });
    lost += count != 256;
  }
  return lost == 8 ? "" : "only " + std::to_string(lost) + " of 8 seeds lost an update";
}
CHECK(blocks_start_in_more_than_one_order) {
  std::vector<unsigned> order;
  std::map<std::vector<unsigned>, int> seen;
  for (int seed = 0; seed < 8; ++seed) {
    order.clear();
    emulate::current_schedule() = Schedule::parse("random:" + std::to_string(seed));
    launch("k", 5, 1, 0, [&] { order.push_back(blockIdx.x); });
    ++seen[order];
  }
  return seen.size() >= 6 ? "" : "only " + std::to_string(seen.size()) + " orders";
}
CHECK(flags_between_resident_blocks_work) {
  int flag = 0;
  emulate::current_schedule() = Schedule::parse("random:3");
  launch("k", 2, 32, 0, [&] {
    if (blockIdx.x == 0)
      while (threadIdx.x == 0 && atomicAdd(&flag, 0) == 0) {}
    else if (threadIdx.x == 0)
      atomicExch(&flag, 1);
  });
  return "";
}

// ---- shared memory ----

#if !defined(__SANITIZE_ADDRESS__)
CHECK(shared_memory_starts_poisoned_in_every_block) {
  bool right = true;
  return always(4, 32, 64, [&] {
    __shared__ float fixed[8];
    __shared__ double more;
    const float* const dynamic = reinterpret_cast<const float*>(emulate::this_block().dynamic_shared);
    right &= std::isnan(dynamic[lane() % 16]) && std::isnan(fixed[lane() % 8]) && std::isnan(more);
    __syncwarp();
    fixed[lane() % 8] = 1.0f, more = 2.0;
  }, [&] { return right; });
}
CHECK(blocks_that_take_turns_keep_their_shared_memory) {
  bool right = true;
  return always(6, 64, 0, [&] {
    __shared__ unsigned mine[64];
    mine[threadIdx.x] = 1000 * blockIdx.x + threadIdx.x;
    for (int round = 0; round < 10; ++round) {
      __threadfence();
      __syncthreads();
      right &= mine[63 - threadIdx.x] == 1000 * blockIdx.x + 63 - threadIdx.x;
    }
  }, [&] { return right; });
}
#endif

// ---- checked memory ----

char global_bytes[64] __attribute__((aligned(16)));
uint64_t at(int offset) { return reinterpret_cast<uint64_t>(global_bytes) + offset; }
template <class F>
std::string with_buffers(F check) {
  emulate::register_buffer(global_bytes, 20, true, "out");
  emulate::register_buffer(global_bytes + 32, 8, false, "in");
  const std::string result = check();
  emulate::forget_buffers();
  return result;
}
using emulate::Access;
CHECK(accesses_inside_are_accepted) {
  return with_buffers([] {
    return always(1, 1, 40, [] {
      emulate::global(at(0), 16, Access::store), emulate::global(at(16), 4, Access::load);
      emulate::global(at(32), 8, Access::load), emulate::shared(32, 8, Access::store);
      emulate::generic(at(16), 4, Access::store);
      emulate::generic(reinterpret_cast<uint64_t>(emulate::this_block().dynamic_shared) + 36, 4, Access::load);
    }, [] { return true; });
  });
}
#define REFUSED(name, words, body) \
  CHECK(name) { return with_buffers([] { return never(words, 1, 1, 40, [] { body; }); }); }
REFUSED(global_beyond_the_end, "out+16 of 20", emulate::global(at(16), 8, Access::load))
REFUSED(global_before_the_start, "out-4 of 20", emulate::global(at(-4), 4, Access::load))
REFUSED(global_between_buffers, "out of bounds", emulate::global(at(24), 4, Access::store))
REFUSED(store_to_an_input, "read-only", emulate::global(at(32), 8, Access::store))
REFUSED(misaligned_global, "not aligned to 8", emulate::global(at(4), 8, Access::load))
REFUSED(shared_beyond_the_end, "at 40 of 40", emulate::shared(40, 4, Access::load))
REFUSED(shared_wraps_around, "out of bounds", emulate::shared(~0ull - 3, 4, Access::load))
REFUSED(misaligned_shared, "not aligned to 16", emulate::shared(8, 16, Access::store))
REFUSED(generic_shared_beyond_the_end, "out of bounds",
        emulate::generic(reinterpret_cast<uint64_t>(emulate::this_block().dynamic_shared) + 36, 8, Access::load, 4))

// ---- cp.async ----

float source[8] __attribute__((aligned(16))) = {1, 2, 3, 4, 5, 6, 7, 8};
float* stage(int k) { return reinterpret_cast<float*>(emulate::this_block().dynamic_shared) + 4 * k; }
CHECK(async_copies_land_in_order_of_their_groups) {
  bool right = true;
  return always(1, 1, 64, [&] {
    emulate::copy_async(stage(0), source, 16, 16);
    emulate::commit_copies();
    emulate::copy_async(stage(1), source + 4, 16, 8);
    emulate::commit_copies();
    emulate::wait_copies(1);
    right &= stage(0)[3] == 4;
    right &= emulate::this_launch().schedule.early ? stage(1)[1] == 6 : std::isnan(stage(1)[1]);
    emulate::wait_copies(0);
    right &= stage(1)[1] == 6 && stage(1)[2] == 0;  // filled up with zeros
  }, [&] { return right; });
}
CHECK(uncommitted_copy_is_refused) {
  return never("never committed", 1, 1, 64, [] { emulate::copy_async(stage(0), source, 16, 16); }, "lockstep");
}
CHECK(copy_without_a_wait_is_refused) {
  return never("never waited for", 1, 1, 64, [] {
    emulate::copy_async(stage(0), source, 16, 16);
    emulate::commit_copies();
  }, "lockstep");
}
CHECK(misaligned_copy_is_refused) {
  return never("not aligned", 1, 1, 64, [] { emulate::copy_async(stage(0), source + 1, 16, 16); });
}
CHECK(copy_beyond_shared_memory_is_refused) {
  return never("shared memory", 1, 1, 8, [] { emulate::copy_async(stage(0), source, 16, 16); });
}
CHECK(copy_of_a_strange_size_is_refused) {
  return never("4, 8 or 16", 1, 1, 64, [] { emulate::copy_async(stage(0), source, 2, 2); });
}
#if !defined(__SANITIZE_ADDRESS__)
CHECK(copy_to_global_memory_is_refused) {
  return never("not in shared memory", 1, 1, 64, [] { emulate::copy_async(source, source + 4, 16, 16); });
}
#endif

// ---- tensor cores ----

CHECK(ldmatrix_lays_rows_and_columns_out) {
  bool right = true;
  return always(1, 32, 4 * 8 * 16, [&] {
    auto* const m = reinterpret_cast<uint16_t*>(emulate::this_block().dynamic_shared);
    for (unsigned e = lane(); e < 256; e += 32) m[e] = static_cast<uint16_t>(e);  // matrix e / 64, row e / 8 % 8
    __syncwarp();
    const unsigned l = lane(), r = l / 4, c = l % 4 * 2;
    uint32_t four[4], two[2], one[1];
    emulate::load_matrix<4, false>(four, m + l * 8);
    for (unsigned k = 0; k < 4; ++k) right &= four[k] == (64 * k + 8 * r + c) + ((64 * k + 8 * r + c + 1) << 16);
    emulate::load_matrix<2, true>(two, l < 16 ? m + l * 8 : nullptr);
    for (unsigned k = 0; k < 2; ++k) right &= two[k] == (64 * k + 8 * c + r) + ((64 * k + 8 * (c + 1) + r) << 16);
    emulate::load_matrix<1, false>(one, l < 8 ? m + 64 + l * 8 : nullptr);
    right &= one[0] == (64 + 8 * r + c) + ((64 + 8 * r + c + 1) << 16);
  }, [&] { return right; });
}
CHECK(misaligned_ldmatrix_is_refused) {
  return never("not aligned to 16", 1, 32, 1024, [] {
    uint32_t r[1];
    emulate::load_matrix<1, false>(r, emulate::this_block().dynamic_shared + lane() * 8);
  });
}
CHECK(tensor_instruction_in_a_branch_is_a_deadlock) {
  return never("which never came", 1, 32, 0, [] {
    double d[2] = {};
    if (lane() < 16) emulate::mma_m8n8k4(d, {1.0}, {1.0});
  });
}

}  // namespace

int main() {
  emulate::limits = {1 << 20, 1 << 20};
  for (const auto& [name, check] : checks()) {
    const std::string seen = check();
    std::printf("%s: %s\n", name.c_str(), seen.empty() ? "ok" : seen.c_str());
    std::fflush(stdout);
  }
}
