#include "ops/backend.h"

#include <chrono>

namespace tessera {

void Backend::upload_all(std::span<const Piece> pieces) {
  for (const Piece& piece : pieces)
    upload(piece.host, Tensor(piece.device, DType::kU8, {static_cast<int64_t>(piece.bytes)}));
}

void Backend::run_captured(uint64_t, std::span<const Piece> up, const std::function<void()>& record) {
  upload_all(up);
  record();
}

void Backend::download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn) {
  download(device, static_cast<char*>(host) + static_cast<size_t>(*turn.ptr<int32_t>()) * pitch);
}

void Backend::mark(int which) {
  marks_.at(static_cast<size_t>(which)) =
      std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Backend::seconds_between(int from, int to) {
  return marks_.at(static_cast<size_t>(to)) - marks_.at(static_cast<size_t>(from));
}

Buffer make_vector(Backend& backend, const WeightSource* source, int64_t count, Allocator& allocator, MemoryLine line,
                   const std::string& name) {
  Buffer buffer = allocator.allocate(DType::kF32, {count}, line, name);
  if (buffer.data()) {
    TESSERA_CHECK(source != nullptr, name + ": no source");
    std::vector<float> host(static_cast<size_t>(count));
    source->read(0, 0, 1, DType::kF32, host.data());
    backend.upload(host.data(), buffer.tensor(DType::kF32, {count}));
    backend.synchronize();
  }
  return buffer;
}

}  // namespace tessera
