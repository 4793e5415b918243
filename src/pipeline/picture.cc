#include "pipeline/picture.h"

#include <algorithm>
#include <span>
#include <utility>

namespace tessera {
namespace {

constexpr size_t kDefaultCacheBytes = size_t{256} << 20;

std::span<const std::byte> bytes_of(const ImageInput& input) {
  return std::as_bytes(std::span(input.bytes.data(), input.bytes.size()));
}

std::string name_of(const ImageInput& input) { return input.name.empty() ? "picture" : input.name; }

// The decoders call damage, bombs and unknown formats invalid input; in a request that is well-formed they are its
// content's fault, not its form's.
Status unreadable(const ImageInput& input, const Status& status) {
  const std::string message = name_of(input) + ": " + status.message();
  return status.code() == StatusCode::kInvalidInput ? unprocessable(message) : Status(status.code(), message);
}

// How a picture is cut and whose it is: in front of its bytes in both keys.
void add_context(DigestBuilder& digest, const TilingOptions& tiling, ExifOrientation exif, const std::string& salt) {
  const int64_t words[] = {tiling.image_size,    tiling.min_tiles,                tiling.max_tiles,
                           tiling.dynamic,       tiling.use_thumbnail,            exif == ExifOrientation::kApply,
                           static_cast<int64_t>(salt.size())};
  digest.update(words, sizeof words);
  digest.update(salt.data(), salt.size());
}

}  // namespace

PicturePreparer::PicturePreparer(const ModelConfig& config, const EngineOptions& options) {
  defaults_.image_size = static_cast<int>(config.vision.image_size);
  defaults_.min_tiles = static_cast<int>(options.min_dynamic_patch.value_or(config.min_dynamic_patch));
  defaults_.max_tiles = static_cast<int>(options.max_dynamic_patch.value_or(config.max_dynamic_patch));
  defaults_.use_thumbnail = config.use_thumbnail;
  defaults_.dynamic = config.dynamic_image_size;
  limits_.max_pixels = options.max_image_pixels;
  limits_.max_side = options.max_image_side;
  limits_.max_bytes = static_cast<size_t>(options.max_image_bytes);
  exif_ = options.exif_apply ? ExifOrientation::kApply : ExifOrientation::kIgnore;
  cache_bytes_ = options.tile_cache_bytes ? static_cast<size_t>(*options.tile_cache_bytes) : kDefaultCacheBytes;
}

Result<TilingOptions> PicturePreparer::tiling(const ImageInput& input) const {
  TilingOptions tiling = defaults_;
  if (input.max_dynamic_patch) {
    tiling.max_tiles = static_cast<int>(*input.max_dynamic_patch);
    if (!input.min_dynamic_patch) tiling.min_tiles = std::min(tiling.min_tiles, tiling.max_tiles);
  }
  if (input.min_dynamic_patch) tiling.min_tiles = static_cast<int>(*input.min_dynamic_patch);
  if (tiling.min_tiles > tiling.max_tiles)
    return invalid_input(name_of(input) + ": min_dynamic_patch " + std::to_string(tiling.min_tiles) +
                         " exceeds max_dynamic_patch " + std::to_string(tiling.max_tiles));
  return tiling;
}

Result<int64_t> PicturePreparer::count_tiles(const ImageInput& input) const {
  TESSERA_ASSIGN_OR_RETURN(TilingOptions options, tiling(input));
  auto header = probe_image(bytes_of(input), limits_);
  if (!header.ok()) return unreadable(input, header.status());
  const bool turned = exif_ == ExifOrientation::kApply && header->orientation >= 5;
  const TileGrid grid = turned ? choose_tile_grid(header->height, header->width, options)
                               : choose_tile_grid(header->width, header->height, options);
  return int64_t{grid.tiles};
}

Result<PreparedPicture> PicturePreparer::prepare(const ImageInput& input, const std::string& salt) {
  TESSERA_ASSIGN_OR_RETURN(TilingOptions options, tiling(input));
  DigestBuilder source;
  add_context(source, options, exif_, salt);
  source.update(input.bytes.data(), input.bytes.size());
  const Digest key = source.finish();
  {
    std::lock_guard lock(mutex_);
    if (auto found = index_.find(key); found != index_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      ++hits_;
      return found->second->picture;
    }
  }
  auto picture = decode(input, options, salt);
  if (!picture.ok()) return unreadable(input, picture.status());
  remember(key, *picture);
  return picture;
}

Result<PreparedPicture> PicturePreparer::decode(const ImageInput& input, const TilingOptions& options,
                                                const std::string& salt) const {
  TESSERA_ASSIGN_OR_RETURN(Image image, decode_image(bytes_of(input), limits_, exif_));
  TESSERA_ASSIGN_OR_RETURN(TiledImage tiled, cut_tiles(image, options));
  PreparedPicture picture;
  picture.info = {tiled.width, tiled.height, tiled.grid.columns, tiled.grid.rows, tiled.grid.tiles};
  DigestBuilder digest;
  add_context(digest, options, exif_, salt);
  digest.update(tiled.tiles.data(), tiled.tiles.size());
  picture.key = digest.finish();
  picture.tiles = std::make_shared<const std::vector<uint8_t>>(std::move(tiled.tiles));
  return picture;
}

void PicturePreparer::remember(const Digest& source, const PreparedPicture& picture) {
  std::lock_guard lock(mutex_);
  if (picture.tiles->size() > cache_bytes_ || index_.count(source)) return;
  entries_.push_front({source, picture});
  index_[source] = entries_.begin();
  bytes_ += picture.tiles->size();
  while (bytes_ > cache_bytes_) {
    bytes_ -= entries_.back().picture.tiles->size();
    index_.erase(entries_.back().source);
    entries_.pop_back();
  }
}

uint64_t PicturePreparer::cache_hits() const {
  std::lock_guard lock(mutex_);
  return hits_;
}

}  // namespace tessera
