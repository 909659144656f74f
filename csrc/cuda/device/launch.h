// The real grid. Bodies include <launch.h> by name: nvcc finds this file, the tests an emulated grid.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace secateur::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kBlocksPerMultiprocessor = 16;  // twice what fits: a block that ends early is replaced

struct CudaThread {
  __device__ __forceinline__ int64_t block() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t blocks() const { return gridDim.x; }
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int threads() const { return kThreads; }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }
  __device__ __forceinline__ void sync_block() const { __syncthreads(); }
  // *at = min(*at, value); both are >= 0, so the order of unsigned numbers is theirs.
  __device__ __forceinline__ void lower(int64_t* at, int64_t value) const {
    atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
  }
};

template <class Body>
__global__ void __launch_bounds__(kThreads) run(const Body body) {
  __shared__ typename Body::Shared shared;
  body.run(CudaThread{}, shared);
}

inline Failure failure_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// At least `threads` threads, or as many as keep the device full: bodies stride over the grid.
template <class Body>
Failure launch(const Body& body, int64_t threads, Queue queue) {
  if (threads <= 0) return nullptr;
  // This library has its own CUDA runtime (linked statically); the device is said to it too.
  if (Failure failed = failure_of(cudaSetDevice(queue.device))) return failed;
  int multiprocessors = 0;
  if (Failure failed =
          failure_of(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, queue.device)))
    return failed;
  const int64_t wanted = threads / kThreads + (threads % kThreads != 0);
  const int64_t most = int64_t{multiprocessors} * kBlocksPerMultiprocessor;
  const unsigned blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  run<<<blocks, kThreads, 0, static_cast<cudaStream_t>(queue.stream)>>>(body);
  return failure_of(cudaGetLastError());
}

inline Failure fill_bytes(void* at, int byte, size_t bytes, Queue queue) {
  if (Failure failed = failure_of(cudaSetDevice(queue.device))) return failed;
  return failure_of(cudaMemsetAsync(at, byte, bytes, static_cast<cudaStream_t>(queue.stream)));
}

// Waits: the value is there on return.
inline Failure fetch(void* host, const void* device, size_t bytes, Queue queue) {
  const cudaStream_t stream = static_cast<cudaStream_t>(queue.stream);
  if (Failure failed = failure_of(cudaSetDevice(queue.device))) return failed;
  if (Failure failed = failure_of(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream))) return failed;
  return failure_of(cudaStreamSynchronize(stream));
}

}  // namespace secateur::cuda
