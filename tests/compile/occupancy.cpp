// NVIDIA's occupancy calculator as a filter. A line in: compute capability (major, minor), warps and shared memory of a
// multiprocessor; threads, registers and shared memory of a kernel. A line out: blocks at once, or -1.
#define __CUDA_OCC_NO_CUDA 1
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int major, minor, warps, shared_sm, threads, registers, shared;
  while (scanf("%d %d %d %d %d %d %d", &major, &minor, &warps, &shared_sm, &threads, &registers, &shared) == 7) {
    cudaOccDeviceProp p = {};
    p.computeMajor = major, p.computeMinor = minor, p.warpSize = 32, p.numSms = 1;
    p.maxThreadsPerBlock = 1024, p.maxThreadsPerMultiprocessor = 32 * warps;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.sharedMemPerBlock = 48 << 10, p.sharedMemPerMultiprocessor = shared_sm;
    p.sharedMemPerBlockOptin = shared_sm - 1024, p.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes f = {};
    f.maxThreadsPerBlock = 1024, f.numRegs = registers, f.sharedSizeBytes = 0;
    f.partitionedGCConfig = PARTITIONED_GC_OFF, f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    f.maxDynamicSharedSizeBytes = shared_sm - 1024, f.numBlockBarriers = 1;
    cudaOccDeviceState s = {};
    s.cacheConfig = CACHE_PREFER_SHARED, s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult r;
    const auto error = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared);
    printf("%d\n", error == CUDA_OCC_SUCCESS ? r.activeBlocksPerMultiprocessor : -1);
  }
}
