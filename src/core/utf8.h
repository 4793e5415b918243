#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace tessera {

/// The offset of the first byte that is no part of well-formed UTF-8 (Unicode table 3-7: no surrogates, no overlong
/// forms, nothing above U+10FFFF), or nullopt.
std::optional<size_t> first_invalid_utf8(std::string_view text);

}  // namespace tessera
