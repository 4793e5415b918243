#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "models/config.h"
#include "pipeline/tile_store.h"
#include "tessera/options.h"
#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera {

/// Decodes and cuts pictures as the model's configuration and the options say, into a TileStore, which knows those that
/// were sent before. Thread-safe.
class PicturePreparer {
 public:
  PicturePreparer(const ModelConfig& config, const EngineOptions& options, TileStore& store);

  /// The cutting for one picture: the request's limits, else the options', else the model's.
  Result<TilingOptions> tiling(const ImageInput& input) const;

  /// Number of tiles from the header alone, nothing decoded.
  Result<int64_t> count_tiles(const ImageInput& input) const;

  /// Bytes of host memory, beside the store, that the largest of these pictures takes while it is made into tiles; 0 where
  /// no header can be read. Nothing is decoded.
  int64_t decoding_bytes(std::span<const ImageInput> inputs) const;

  /// All pictures of a request, in order; waits for the room that they take. `salt` goes into both keys: pictures are
  /// shared only between requests with equal salts. Errors carry the picture's name; kCancelled once `given_up()`.
  Result<std::vector<PreparedPicture>> prepare(std::span<const ImageInput> inputs, const std::string& salt,
                                               const std::function<bool()>& given_up);

 private:
  Result<ImageHeader> header(const ImageInput& input) const;
  Digest source_key(const ImageInput& input, const TilingOptions& tiling, const std::string& salt) const;
  Status check_memory(const ImageInput& input) const;
  Status fill(const ImageInput& input, const TilingOptions& tiling, const std::string& salt, const Digest& source,
              TileStore::Place& place);

  TilingOptions defaults_;
  DecodeLimits limits_;
  ExifOrientation exif_;
  TileStore& store_;
};

}  // namespace tessera
