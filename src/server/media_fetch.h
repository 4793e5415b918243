#pragma once

#include <chrono>
#include <string>

#include "server/media.h"

namespace tessera::server {

struct FetchedMedia {
  std::string body;
  std::string location;  ///< of a redirect, else ""
};

/// One GET, without following redirects. Connects only to addresses that the policy allows.
Result<FetchedMedia> fetch_media(const MediaUrl& url, const MediaPolicy& policy,
                                 std::chrono::steady_clock::time_point deadline);

}  // namespace tessera::server
