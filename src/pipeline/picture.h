#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/digest.h"
#include "core/result.h"
#include "models/config.h"
#include "tessera/options.h"
#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera {

/// A picture ready for the vision tower.
struct PreparedPicture {
  ImageInfo info;
  Digest key{};  ///< of the decoded pixels' tiles and their cutting: equal keys, equal embeddings
  std::shared_ptr<const std::vector<uint8_t>> tiles;  ///< u8 [tiles, 3, side, side]
};

/// Decodes and cuts pictures as the model's configuration and the options say, and keeps what it made, found again by
/// the digest of the encoded bytes, so that a repeated upload is not decoded again. Least recently used pictures leave
/// when the cache is over its bytes. Thread-safe.
class PicturePreparer {
 public:
  PicturePreparer(const ModelConfig& config, const EngineOptions& options);

  /// The cutting for one picture: the request's limits, else the options', else the model's.
  Result<TilingOptions> tiling(const ImageInput& input) const;

  /// Number of tiles from the header alone, nothing decoded.
  Result<int64_t> count_tiles(const ImageInput& input) const;

  /// `salt` goes into both keys: pictures are shared only between requests with equal salts. Errors carry the
  /// picture's name.
  Result<PreparedPicture> prepare(const ImageInput& input, const std::string& salt);

  uint64_t cache_hits() const;

 private:
  struct Entry {
    Digest source{};
    PreparedPicture picture;
  };

  Result<PreparedPicture> decode(const ImageInput& input, const TilingOptions& tiling,
                                 const std::string& salt) const;
  void remember(const Digest& source, const PreparedPicture& picture);

  TilingOptions defaults_;
  DecodeLimits limits_;
  ExifOrientation exif_;
  size_t cache_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  ///< most recently used first
  std::map<Digest, std::list<Entry>::iterator> index_;
  size_t bytes_ = 0;
  uint64_t hits_ = 0;
};

}  // namespace tessera
