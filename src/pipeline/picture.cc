#include "pipeline/picture.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/memory_info.h"

namespace tessera {
namespace {

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

PicturePreparer::PicturePreparer(const ModelConfig& config, const EngineOptions& options, TileStore& store)
    : store_(store) {
  defaults_.image_size = static_cast<int>(config.vision.image_size);
  defaults_.min_tiles = static_cast<int>(options.min_dynamic_patch.value_or(config.min_dynamic_patch));
  defaults_.max_tiles = static_cast<int>(options.max_dynamic_patch.value_or(config.max_dynamic_patch));
  defaults_.use_thumbnail = config.use_thumbnail;
  defaults_.dynamic = config.dynamic_image_size;
  limits_.max_pixels = options.max_image_pixels;
  limits_.max_side = options.max_image_side;
  limits_.max_bytes = static_cast<size_t>(options.max_image_bytes);
  exif_ = options.exif_apply ? ExifOrientation::kApply : ExifOrientation::kIgnore;
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

Result<ImageHeader> PicturePreparer::header(const ImageInput& input) const {
  auto header = probe_image(bytes_of(input), limits_);
  if (!header.ok()) return unreadable(input, header.status());
  return header;
}

Result<int64_t> PicturePreparer::count_tiles(const ImageInput& input) const {
  TESSERA_ASSIGN_OR_RETURN(TilingOptions options, tiling(input));
  TESSERA_ASSIGN_OR_RETURN(ImageHeader seen, header(input));
  const bool turned = exif_ == ExifOrientation::kApply && seen.orientation >= 5;
  const TileGrid grid = turned ? choose_tile_grid(seen.height, seen.width, options)
                               : choose_tile_grid(seen.width, seen.height, options);
  return int64_t{grid.tiles};
}

int64_t PicturePreparer::decoding_bytes(std::span<const ImageInput> inputs) const {
  int64_t most = 0;
  for (const ImageInput& input : inputs) {
    const auto seen = header(input);
    const auto tiles = count_tiles(input);
    if (!seen.ok() || !tiles.ok()) continue;
    const int64_t cut = seen->width * seen->height * 3 + *tiles * static_cast<int64_t>(store_.tile_bytes());
    most = std::max({most, seen->decoding_bytes(exif_), cut});  // the decoder's memory is back before the picture is cut
  }
  return most;
}

Digest PicturePreparer::source_key(const ImageInput& input, const TilingOptions& tiling, const std::string& salt) const {
  DigestBuilder source;
  add_context(source, tiling, exif_, salt);
  source.update(input.bytes.data(), input.bytes.size());
  return source.finish();
}

Result<std::vector<PreparedPicture>> PicturePreparer::prepare(std::span<const ImageInput> inputs, const std::string& salt,
                                                              const std::function<bool()>& given_up) {
  std::vector<TilingOptions> cuts;
  std::vector<TileStore::Wanted> wanted;
  for (const ImageInput& input : inputs) {
    TESSERA_ASSIGN_OR_RETURN(cuts.emplace_back(), tiling(input));
    TESSERA_ASSIGN_OR_RETURN(const int64_t tiles, count_tiles(input));
    wanted.push_back({.source = source_key(input, cuts.back(), salt), .tiles = tiles});
  }
  TESSERA_ASSIGN_OR_RETURN(TileStore::Room room, store_.take(wanted, given_up));
  std::vector<PreparedPicture> pictures;
  std::map<Digest, size_t> made;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!room[i].slots.empty())
      if (const Status made_it = fill(inputs[i], cuts[i], salt, wanted[i].source, room[i]); !made_it.ok())
        return unreadable(inputs[i], made_it);
    const size_t first = made.emplace(wanted[i].source, i).first->second;  // the same picture twice in one request
    pictures.push_back(first < i ? pictures[first] : std::move(room[i].picture));
  }
  return pictures;
}

// One picture alone may pass the memory set aside for preparing; it must not pass the machine's.
Status PicturePreparer::check_memory(const ImageInput& input) const {
  const int64_t needed = decoding_bytes({&input, 1});
  const int64_t there = available_memory_bytes();
  if (needed <= there) return {};
  return does_not_fit("decoding it takes " + std::to_string(needed >> 20) + " MiB; " + std::to_string(there >> 20) +
                      " MiB are available: send it smaller");
}

Status PicturePreparer::fill(const ImageInput& input, const TilingOptions& options, const std::string& salt,
                             const Digest& source, TileStore::Place& place) {
  TESSERA_RETURN_IF_ERROR(check_memory(input));
  TESSERA_ASSIGN_OR_RETURN(Image image, decode_image(bytes_of(input), limits_, exif_));
  TESSERA_ASSIGN_OR_RETURN(TiledImage tiled, cut_tiles(image, options));
  TESSERA_CHECK(tiled.tiles.size() == place.slots.size() * store_.tile_bytes(),
                "a picture's header and its pixels disagree about the tiles");
  DigestBuilder digest;
  add_context(digest, options, exif_, salt);
  digest.update(tiled.tiles.data(), tiled.tiles.size());
  for (size_t i = 0; i < place.slots.size(); ++i)
    std::memcpy(store_.slot(place.slots[i]), tiled.tiles.data() + i * store_.tile_bytes(), store_.tile_bytes());
  store_.publish(place, source, {tiled.width, tiled.height, tiled.grid.columns, tiled.grid.rows, tiled.grid.tiles},
                 digest.finish());
  return {};
}

}  // namespace tessera
