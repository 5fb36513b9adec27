// The host's side of device.h: launches, and what the device can hold.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "device.h"

namespace lstmkern {
namespace cuda {

// --- launching ---

constexpr int64_t kMaxGridY = 65535;         // grid.y; kernels loop over the remaining rows
constexpr int64_t kProductBytes = 16 << 20;  // fp32 sums before they are rounded to 16 bits; small enough for L2

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("lstmkern: ") + what + ": " + cudaGetErrorString(error));
}

struct Launch {
  Index grid, block;
  Stream stream = nullptr;
  size_t shared = 0;         // bytes of dynamic shared memory
  unsigned cluster = 1;      // blocks along x that form a cluster
  bool cooperative = false;  // all blocks must be resident together, or the launch fails
};

// Sets the attributes that the kernel needs for this launch and describes the launch in CUDA's terms.
template <class... P>
struct Prepared {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};

  Prepared(const char* name, void (*kernel)(P...), const Launch& requested) {
    if (requested.shared > 48 * 1024)
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(requested.shared)),
          name);
    if (requested.cluster > 8)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
    unsigned count = 0;
    if (requested.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim.x = requested.cluster;
      attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
      ++count;
    }
    if (requested.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count].val.cooperative = 1;
      ++count;
    }
    config.gridDim = dim3(requested.grid.x, requested.grid.y, requested.grid.z);
    config.blockDim = dim3(requested.block.x, requested.block.y, requested.block.z);
    config.dynamicSmemBytes = requested.shared;
    config.stream = static_cast<cudaStream_t>(requested.stream);
    config.attrs = attributes;
    config.numAttrs = count;
  }
};

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& requested, const A&... arguments) {
  const Prepared<P...> prepared(name, kernel, requested);
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
  auto attribute = [device](cudaDeviceAttr what) {
    int value;
    check(cudaDeviceGetAttribute(&value, what, device), "device attribute");
    return value;
  };
  return {device, attribute(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

// The version (90 for compute capability 9.0) of the code that was loaded for a kernel, compiled by nvcc or from PTX by
// the driver; 0 if there is none for this device. A kernel that needs 9.0 has an empty body in older code, even on a
// newer device.
template <class... P>
int code_version(void (*kernel)(P...)) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion;
  cudaGetLastError();  // clears the error, so that the next call does not return it
  return 0;
}

// How many blocks of this launch can be resident together; with clusters, whole clusters. For kernels that need compute
// capability 9.0; 0 if the kernel cannot run.
template <class... P>
int resident_blocks(const char* name, void (*kernel)(P...), const Launch& requested) {
  if (code_version(kernel) < 90) return 0;
  int count = 0;
  cudaError_t error;
  const Prepared<P...> prepared(name, kernel, requested);
  if (requested.cluster > 1) {
    error = cudaOccupancyMaxActiveClusters(&count, kernel, &prepared.config);
    count *= static_cast<int>(requested.cluster);
  } else {
    const int threads = static_cast<int>(requested.block.x * requested.block.y * requested.block.z);
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, requested.shared);
    count *= chip().multiprocessors;
  }
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // clears the error, so that the next call does not return it
  return 0;
}

}  // namespace cuda
}  // namespace lstmkern
