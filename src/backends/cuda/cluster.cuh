#pragma once

// The barrier of a cluster's threads in two halves (sm_90). It orders execution, not memory: what blocks send each other, barriers
// count. (A release waits for all of the multiprocessor's traffic.)

namespace tessera::cuda {

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

}  // namespace tessera::cuda
