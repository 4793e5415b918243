#include "server/media.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "server/ascii_text.h"
#include "server/media_fetch.h"

namespace tessera::server {
namespace {

bool below(const std::string& path, const std::string& root) {
  return path.size() > root.size() && path.compare(0, root.size(), root) == 0 &&
         (root == "/" || path[root.size()] == '/');
}

// One answer for absent, forbidden and outside, so that nobody can map the file system with it.
Status no_local_file() {
  return invalid_input("file URL does not name a readable file below --allowed-local-media-path");
}

Result<std::string> file_path(std::string_view url) {
  url.remove_prefix(std::string_view("file:").size());
  if (url.substr(0, 2) == "//") {
    url.remove_prefix(2);
    const size_t slash = url.find('/');
    const std::string_view host = url.substr(0, slash);
    if (slash == std::string_view::npos || !(host.empty() || host == "localhost")) return no_local_file();
    url.remove_prefix(slash);
  }
  const auto path = percent_decoded(url);
  if (!path || path->empty() || (*path)[0] != '/' || path->find('\0') != std::string::npos)
    return no_local_file();
  return *path;
}

struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};

// Resolves, checks, opens, and checks again what was opened: a link that is swapped in between changes
// nothing.
Result<std::string> load_local(const std::string& url, const MediaPolicy& policy) {
  if (policy.local_path.empty())
    return invalid_input(
        "file URLs are not allowed; send a data URL, or serve with --allowed-local-media-path");
  TESSERA_ASSIGN_OR_RETURN(const std::string path, file_path(url));
  char resolved[PATH_MAX];
  if (!::realpath(path.c_str(), resolved) || !below(resolved, policy.local_path)) return no_local_file();
  File file{::open(resolved, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW)};
  struct stat info {};
  if (file.fd < 0 || ::fstat(file.fd, &info) != 0 || !S_ISREG(info.st_mode)) return no_local_file();
  const ssize_t length =
      ::readlink(("/proc/self/fd/" + std::to_string(file.fd)).c_str(), resolved, sizeof resolved - 1);
  if (length <= 0 || !below(std::string(resolved, static_cast<size_t>(length)), policy.local_path))
    return no_local_file();
  if (static_cast<uint64_t>(info.st_size) > policy.max_bytes)
    return invalid_input("file has " + std::to_string(info.st_size) + " bytes; at most " +
                         std::to_string(policy.max_bytes));
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t got = ::read(file.fd, bytes.data() + have, bytes.size() - have);
    if (got <= 0) return no_local_file();
    have += static_cast<size_t>(got);
  }
  return bytes;
}

std::string origin(const MediaUrl& url) {
  return std::string(url.https ? "https" : "http") + "://" + url.host;
}

Status check_allowed(const MediaUrl& url, const MediaPolicy& policy) {
  if (domain_allowed(url, policy.domains)) return {};
  return invalid_input("pictures from " + url.host + ":" + std::to_string(url.port) +
                       " are not allowed; send a data URL, or serve with --allowed-media-domains");
}

Result<MediaUrl> redirected(const MediaUrl& from, const std::string& location) {
  const bool absolute = location.find("://") != std::string::npos;
  const bool path = !location.empty() && location[0] == '/' && location.substr(0, 2) != "//";
  if (!absolute && !path)
    return invalid_input(origin(from) + " redirects to something that is no http(s) URL");
  if (path) {
    MediaUrl next = from;
    TESSERA_ASSIGN_OR_RETURN(const MediaUrl checked, parse_media_url("http://host" + location));
    next.target = checked.target;
    return next;
  }
  TESSERA_ASSIGN_OR_RETURN(MediaUrl next, parse_media_url(location));
  if (from.https && !next.https) return invalid_input(origin(from) + " redirects from https to http");
  return next;
}

Result<std::string> load_remote(const std::string& text, const MediaPolicy& policy) {
  if (policy.domains.empty())
    return invalid_input(
        "pictures from other hosts are not allowed; send a data URL, or serve with --allowed-media-domains");
  TESSERA_ASSIGN_OR_RETURN(MediaUrl url, parse_media_url(text));
  const auto deadline = std::chrono::steady_clock::now() + policy.timeout;
  for (int hop = 0; hop <= policy.max_redirects; ++hop) {
    TESSERA_RETURN_IF_ERROR(check_allowed(url, policy));
    TESSERA_ASSIGN_OR_RETURN(FetchedMedia answer, fetch_media(url, policy, deadline));
    if (answer.location.empty()) return std::move(answer.body);
    TESSERA_ASSIGN_OR_RETURN(url, redirected(url, answer.location));
  }
  return invalid_input("picture URL redirects more than " + std::to_string(policy.max_redirects) + " times");
}

}  // namespace

Result<std::string> load_media(const std::string& url, const MediaPolicy& policy) {
  const std::string scheme = lower_case(url.substr(0, std::min(url.find(':'), size_t{8})));
  if (url.find(':') == std::string::npos || (scheme != "file" && scheme != "http" && scheme != "https"))
    return invalid_input("picture URL is neither data: nor http(s): nor file:");
  if (scheme == "file") return load_local(url, policy);
  return load_remote(url, policy);
}

Status prepare_media_policy(MediaPolicy* policy) {
  if (!policy->local_path.empty()) {
    char resolved[PATH_MAX];
    struct stat info {};
    if (!::realpath(policy->local_path.c_str(), resolved) || ::stat(resolved, &info) != 0 ||
        !S_ISDIR(info.st_mode))
      return invalid_input("[serve] --allowed-local-media-path " + policy->local_path +
                           " is not a directory");
    policy->local_path = resolved;
  }
  for (std::string& domain : policy->domains) {
    domain = lower_case(domain);
    if (domain.empty() || domain.find_first_of("/@ ") != std::string::npos)
      return invalid_input("[serve] --allowed-media-domains has \"" + domain +
                           "\"; expected host, *.host or host:port");
  }
  return {};
}

Result<MediaUrl> parse_media_url(std::string_view text) {
  const Status bad = invalid_input("picture URL is malformed");
  for (char c : text)
    if (static_cast<unsigned char>(c) <= 0x20 || static_cast<unsigned char>(c) >= 0x7F || c == '\\')
      return bad;
  MediaUrl url;
  const size_t scheme_end = text.find("://");
  if (scheme_end == std::string_view::npos) return bad;
  const std::string scheme = lower_case(text.substr(0, scheme_end));
  if (scheme != "http" && scheme != "https") return invalid_input("picture URL is neither http nor https");
  url.https = scheme == "https";
  url.port = url.https ? 443 : 80;
  text.remove_prefix(scheme_end + 3);
  text = text.substr(0, text.find('#'));
  const size_t authority_end = std::min(text.find_first_of("/?"), text.size());
  std::string_view authority = text.substr(0, authority_end);
  url.target = std::string(text.substr(authority_end));
  if (url.target.empty() || url.target[0] != '/') url.target.insert(url.target.begin(), '/');
  if (authority.empty() || authority.find('@') != std::string_view::npos) return bad;
  size_t port_at = std::string_view::npos;
  if (authority[0] == '[') {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad;
    url.host = lower_case(authority.substr(1, close - 1));
    if (close + 1 < authority.size()) port_at = close + 1;
  } else {
    port_at = authority.find(':');
    url.host = lower_case(authority.substr(0, port_at));
    if (url.host.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.-_") != std::string::npos)
      return bad;
  }
  if (port_at != std::string_view::npos) {
    const std::string port(authority.substr(port_at + 1));
    if (authority[port_at] != ':' || port.empty() || port.size() > 5 ||
        port.find_first_not_of("0123456789") != std::string::npos)
      return bad;
    url.port = std::stoi(port);
  }
  if (url.host.empty() || url.port < 1 || url.port > 65535) return bad;
  return url;
}

bool domain_allowed(const MediaUrl& url, const std::vector<std::string>& domains) {
  for (std::string_view domain : domains) {
    const size_t colon = domain.rfind(':');
    const bool has_port = colon != std::string_view::npos && domain.find(':') == colon;
    const std::string_view name = has_port ? domain.substr(0, colon) : domain;
    const bool port_fits = has_port ? std::string(domain.substr(colon + 1)) == std::to_string(url.port)
                                    : url.port == 80 || url.port == 443;
    if (!port_fits) continue;
    if (name == url.host) return true;
    if (name.substr(0, 2) != "*.") continue;
    const std::string_view suffix = name.substr(1);
    if (url.host.size() > suffix.size() &&
        std::string_view(url.host).substr(url.host.size() - suffix.size()) == suffix)
      return true;
  }
  return false;
}

}  // namespace tessera::server
