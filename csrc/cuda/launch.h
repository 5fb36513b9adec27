// The host's side of device.h: launches, and what the device can hold.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "device.h"

namespace lstmkern {
namespace cuda {

// --- launching ---

constexpr int64_t kMostBlocksDown = 65535;   // of grid.y; kernels loop over what is more
constexpr int64_t kProductBytes = 16 << 20;  // of fp32 sums on their way to 16 bits: they stay in L2

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("lstmkern: ") + what + ": " + cudaGetErrorString(error));
}

struct Launch {
  Index grid, block;
  Stream stream = nullptr;
  size_t shared = 0;         // bytes of dynamic shared memory
  unsigned cluster = 1;      // blocks along x that form a cluster
  bool cooperative = false;  // all blocks resident at once, or refused
};

// What a launch needs allowed first, and its description in CUDA's terms.
template <class... P>
struct Prepared {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};

  Prepared(const char* name, void (*kernel)(P...), const Launch& how) {
    if (how.shared > 48 * 1024)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared)),
            name);
    if (how.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
    unsigned count = 0;
    if (how.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim.x = how.cluster;
      attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
      ++count;
    }
    if (how.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count].val.cooperative = 1;
      ++count;
    }
    config.gridDim = dim3(how.grid.x, how.grid.y, how.grid.z);
    config.blockDim = dim3(how.block.x, how.block.y, how.block.z);
    config.dynamicSmemBytes = how.shared;
    config.stream = static_cast<cudaStream_t>(how.stream);
    config.attrs = attributes;
    config.numAttrs = count;
  }
};

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& how, const A&... arguments) {
  const Prepared<P...> prepared(name, kernel, how);
  check(cudaLaunchKernelEx(&prepared.config, kernel, static_cast<P>(arguments)...), name);
}

// --- what the device can hold ---

struct Chip {
  int device, multiprocessors;
  size_t shared_per_block;
};

inline Chip chip() {
  int device;
  check(cudaGetDevice(&device), "device");
  auto ask = [device](cudaDeviceAttr what) {
    int value;
    check(cudaDeviceGetAttribute(&value, what, device), "device attribute");
    return value;
  };
  return {device, ask(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

// The version (90: compute capability 9.0) of the code that was loaded for a kernel, compiled by nvcc or from PTX by
// the driver; 0: there is none for this device. A kernel for 9.0 is empty in older code, whatever the device can do.
template <class... P>
int code_version(void (*kernel)(P...)) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion;
  cudaGetLastError();  // not to be found by the next call
  return 0;
}

// Blocks of this launch, of a kernel for 9.0, that can be resident together: whole clusters where it has clusters. 0
// where it cannot run.
template <class... P>
int resident_blocks(const char* name, void (*kernel)(P...), const Launch& how) {
  if (code_version(kernel) < 90) return 0;
  int count = 0;
  cudaError_t error;
  const Prepared<P...> prepared(name, kernel, how);
  if (how.cluster > 1) {
    error = cudaOccupancyMaxActiveClusters(&count, kernel, &prepared.config);
    count *= static_cast<int>(how.cluster);
  } else {
    const int threads = static_cast<int>(how.block.x * how.block.y * how.block.z);
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, how.shared);
    count *= chip().multiprocessors;
  }
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // not to be found by the next call
  return 0;
}

}  // namespace cuda
}  // namespace lstmkern
