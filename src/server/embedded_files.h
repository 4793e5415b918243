#pragma once

#include <span>
#include <string_view>

namespace tessera::server {

/// A file that is part of the binary: the chat page's parts and openapi.json.
struct EmbeddedFile {
  std::string_view name;
  std::string_view text;
};

std::span<const EmbeddedFile> embedded_files();

/// The text of one, or "" when there is none of that name.
inline std::string_view embedded_file(std::string_view name) {
  for (const EmbeddedFile& file : embedded_files())
    if (file.name == name) return file.text;
  return {};
}

}  // namespace tessera::server
