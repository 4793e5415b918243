#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "server/name_resolver.h"

namespace tessera::server {

/// True for an address that the public internet routes: not loopback, private, link-local, shared, multicast,
/// documentation, or one that embeds another address. Text form, without zone.
bool is_public_address(const std::string& address);

/// How the outside is reached. The defaults are what is served with, and no option sets others: tests bring names,
/// an address rule and a certificate authority of their own, so that they need no network.
struct MediaNetwork {
  std::function<bool(const std::string& address)> may_connect = is_public_address;
  std::shared_ptr<NameResolver> names = std::make_shared<NameResolver>();  ///< of all copies together
  std::string trusted_pem;  ///< certificates to trust in place of the system's
};

/// Which pictures a request may name instead of carrying them. The default allows none.
struct MediaPolicy {
  std::string local_path;  ///< --allowed-local-media-path: file: URLs below it, links resolved
  std::vector<std::string>
      domains;  ///< --allowed-media-domains: "host", "*.host", each with an optional ":port"
  size_t max_bytes = size_t{64} << 20;  ///< of one picture
  int max_redirects = 3;
  std::chrono::milliseconds timeout{10'000};  ///< of one picture, redirects included
  MediaNetwork network;
};

/// The bytes that `url` names. Blocks for up to policy.timeout; call it on a worker. Whatever the policy does not allow is
/// kInvalidInput; kUnavailable: see NameResolver. An http(s) URL: host and port must be allowed, and the address that is
/// connected to must be public; both hold for each redirect, and https never becomes http. Certificates are verified.
/// Errors never tell what lies behind a refused address.
Result<std::string> load_media(const std::string& url, const MediaPolicy& policy);

/// Makes local_path canonical and checks that it is a directory.
Status prepare_media_policy(MediaPolicy* policy);

/// An http(s) URL taken apart. Anything unusual (user names, control characters, backslashes) is refused.
struct MediaUrl {
  bool https = false;
  std::string host;  ///< lower case; an IPv6 address without brackets
  int port = 0;
  std::string target;  ///< path and query, percent-encoded as given
};
Result<MediaUrl> parse_media_url(std::string_view url);

/// True when an entry of `domains` allows host and port. Entries without a port mean 80 and 443.
bool domain_allowed(const MediaUrl& url, const std::vector<std::string>& domains);

}  // namespace tessera::server
