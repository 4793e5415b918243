#pragma once

// The barrier of a cluster's threads in two halves, and stores to each other's shared memory (sm_90). The barrier orders execution, not
// memory: what blocks send each other, barriers count. (A release waits for all of the multiprocessor's traffic.)

namespace tessera::cuda {

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

/// Where what lies at `at` in this block's shared memory lies in that of block `rank` of the cluster, maybe this one.
__device__ __forceinline__ uint32_t place_in_block(uint32_t at, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
/// To a place in a block, whose barrier `counts` counts the bytes. Requires: that block runs until it has seen them.
__device__ __forceinline__ void store_in_block(uint32_t there, float4 v, uint32_t counts) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
               "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)), "r"(__float_as_uint(v.w)), "r"(counts)
               : "memory");
}

}  // namespace tessera::cuda
