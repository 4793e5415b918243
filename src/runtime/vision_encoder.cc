#include "runtime/vision_encoder.h"

#include <algorithm>
#include <cstring>

namespace tessera {

void VisionEncoder::want(EmbeddedPicture* picture, const Pixels& pixels) {
  if (picture->tiles_started == static_cast<int64_t>(picture->slots.size())) return;
  for (const Queued& queued : queue_)
    if (queued.pin.get() == picture) return;
  queue_.push_back({cache_.share(picture), pixels});
}

void VisionEncoder::prune() {
  const auto unwanted = [&](const Queued& queued) {
    int64_t own = 1;
    for (const PassTile& tile : pass_) own += tile.pin.get() == queued.pin.get();
    return queued.pin->pins == own;
  };
  for (auto it = queue_.begin(); it != queue_.end();) it = unwanted(*it) ? queue_.erase(it) : it + 1;
}

VisionView VisionEncoder::view() const {
  VisionView view{.pass_tiles = static_cast<int64_t>(pass_.size()),
                  .layers = memory_.model->vision_layers(),
                  .max_tiles = memory_.shape.vision_batch};
  view.layers_left = pass_.empty() ? 0 : view.layers - layers_done_;
  for (const Queued& queued : queue_)
    view.waiting_tiles += static_cast<int64_t>(queued.pin->slots.size()) - queued.pin->tiles_started;
  return view;
}

bool VisionEncoder::encoding(const EmbeddedPicture* picture) const {
  return std::any_of(pass_.begin(), pass_.end(), [&](const PassTile& tile) { return tile.pin.get() == picture; });
}

void VisionEncoder::take_tiles(int64_t tiles) {
  std::vector<Pixels>& uploading = uploading_[static_cast<size_t>(memory_.step.turn())];
  while (static_cast<int64_t>(pass_.size()) < tiles) {
    Queued& next = queue_.front();
    const int64_t tile = next.pin->tiles_started++;
    memory_.step.upload_tile(backend_, static_cast<int64_t>(pass_.size()), next.pixels->tiles[static_cast<size_t>(tile)]);
    if (uploading.empty() || uploading.back() != next.pixels) uploading.push_back(next.pixels);
    pass_.push_back({cache_.share(next.pin.get()), tile});
    if (next.pin->tiles_started == static_cast<int64_t>(next.pin->slots.size())) queue_.pop_front();
  }
  layers_done_ = 0;
}

Tensor VisionEncoder::upload_destination() {
  const int64_t rows = memory_.model->config().tokens_per_tile();
  int32_t* destination = memory_.step.destination();
  for (const PassTile& tile : pass_)
    for (int64_t row = 0; row < rows; ++row)
      *destination++ = static_cast<int32_t>(tile.pin->slots[static_cast<size_t>(tile.tile)] * rows + row);
  return memory_.step.upload_destination(backend_, static_cast<int64_t>(pass_.size()) * rows);
}

// A whole pass is the same calls for every picture of as many tiles: one capture. A language step's keys are larger.
void VisionEncoder::whole_pass(int64_t tiles, const Tensor& destination) {
  backend_.run_captured(static_cast<uint64_t>(tiles), [&] {
    Model& model = *memory_.model;
    model.vision_begin(backend_.context(), memory_.step.tiles(tiles));
    model.vision_run(backend_.context(), 0, model.vision_layers());
    model.vision_finish(backend_.context(), destination, memory_.embedding_rows);
  });
}

void VisionEncoder::run(int64_t layers) {
  Model& model = *memory_.model;
  const auto tiles = static_cast<int64_t>(pass_.size());
  if (layers == model.vision_layers()) {
    whole_pass(tiles, upload_destination());
    return finished();
  }
  if (layers_done_ == 0) model.vision_begin(backend_.context(), memory_.step.tiles(tiles));
  model.vision_run(backend_.context(), layers_done_, layers);
  layers_done_ += layers;
  if (layers_done_ < model.vision_layers()) return;
  model.vision_finish(backend_.context(), upload_destination(), memory_.embedding_rows);
  finished();
}

void VisionEncoder::finished() {
  for (const PassTile& tile : pass_) ++tile.pin->tiles_done;
  tiles_encoded_ += static_cast<uint64_t>(pass_.size());
  ++passes_;
  pass_.clear();
}

double VisionEncoder::warm_up() {
  constexpr int64_t kMostTiles = 13;  // a picture's, by default
  const int64_t rows = memory_.model->config().tokens_per_tile(), most = memory_.shape.vision_batch;
  std::fill_n(memory_.step.destination(), most * rows, -1);
  backend_.fill_zero(memory_.step.tiles(most));
  const auto pass = [&](int64_t tiles) {
    backend_.mark(0);
    whole_pass(tiles, memory_.step.upload_destination(backend_, tiles * rows));
    backend_.mark(1);
    return backend_.seconds_between(0, 1);
  };
  for (int64_t tiles = 1; tiles <= most; tiles = tiles < kMostTiles ? tiles + 1 : std::max(tiles + 1, most))
    for (int run = 0; run < 2; ++run) pass(tiles);  // the second of a number of tiles is captured
  return pass(most) / static_cast<double>(most * memory_.model->vision_layers());
}

void VisionEncoder::abandon() {
  for (auto it = queue_.begin(); it != queue_.end();) it = encoding(it->pin.get()) ? queue_.erase(it) : it + 1;
  pass_.clear();
}

}  // namespace tessera
