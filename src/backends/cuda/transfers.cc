#include "backends/cuda/backend.h"
#include "backends/cuda/copy.h"

// The parts of CudaBackend that move bytes between host and device.
namespace tessera::cuda {

// The integers of a step go by a kernel, which reads or writes the pinned memory itself: handing a copy to a copy engine
// and waiting for it takes longer than these few bytes.
bool CudaBackend::by_kernel(const Piece& piece) const {
  constexpr size_t kMost = size_t{64} << 10;
  const auto places = reinterpret_cast<uintptr_t>(piece.device) | reinterpret_cast<uintptr_t>(piece.host);
  return piece.bytes <= kMost && (piece.bytes | places) % 4 == 0 && host_allocator_.owns(piece.host, piece.bytes);
}

void CudaBackend::upload(const void* host, const Tensor& device) {
  const size_t row = static_cast<size_t>(device.row_elements()) * size_of(device.dtype);
  if (device.bytes() == 0) return;
  if (device.contiguous() && by_kernel({host, device.data, device.bytes()})) {
    copy_words(*stream_, host, device.data, device.bytes());
  } else if (device.contiguous()) {
    check(cudaMemcpyAsync(device.data, host, device.bytes(), cudaMemcpyHostToDevice, stream_handle_.get()), "upload");
  } else {
    check(cudaMemcpy2DAsync(device.data, static_cast<size_t>(device.row_stride) * size_of(device.dtype), host, row, row,
                            static_cast<size_t>(device.rows()), cudaMemcpyHostToDevice, stream_handle_.get()),
          "upload");
  }
}

/// All but what one kernel copies.
CopyPieces CudaBackend::upload_most(std::span<const Piece> pieces) {
  CopyPieces small;
  for (const Piece& piece : pieces) {
    if (!by_kernel(piece)) {
      upload(piece.host, Tensor(piece.device, DType::kU8, {static_cast<int64_t>(piece.bytes)}));
      continue;
    }
    if (small.count == kMaxCopyPieces) {
      copy_pieces(*stream_, small);
      small.count = 0;
    }
    small.add(piece.host, piece.device, piece.bytes);
  }
  return small;
}

void CudaBackend::upload_all(std::span<const Piece> pieces) { copy_pieces(*stream_, upload_most(pieces)); }

void CudaBackend::download(const Tensor& device, void* host) {
  const size_t row = static_cast<size_t>(device.row_elements()) * size_of(device.dtype);
  if (device.bytes() == 0) return;
  if (device.contiguous() && by_kernel({host, device.data, device.bytes()})) return copy_words(*stream_, device.data, host, device.bytes());
  check(cudaMemcpy2DAsync(host, row, device.data,
                          device.contiguous() ? row : static_cast<size_t>(device.row_stride) * size_of(device.dtype),
                          row, static_cast<size_t>(device.rows()), cudaMemcpyDeviceToHost, stream_handle_.get()),
        "download");
}

void CudaBackend::download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn) {
  if (device.bytes() == 0) return;
  TESSERA_CHECK(device.contiguous() && device.bytes() % 4 == 0 && pitch % 4 == 0 && host_allocator_.owns(host, device.bytes()),
                "download_in_turn: not words of pinned memory");
  copy_words(*stream_, device.data, host, device.bytes(), {.turn = turn.ptr<int>(), .pitch = pitch});
}

void CudaBackend::fill_zero(const Tensor& device) {
  if (device.bytes() == 0) return;
  TESSERA_CHECK(device.contiguous(), "fill_zero: " + device.describe() + " is not contiguous");
  check(cudaMemsetAsync(device.data, 0, device.bytes(), stream_handle_.get()), "fill_zero");
}

}  // namespace tessera::cuda
