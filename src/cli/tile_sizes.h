#pragma once

#include <string>
#include <string_view>

#include "core/result.h"

namespace tessera::cli {

/// The table of `tessera tile --sizes`: each line of `text` holds `width height image_size min_num max_num
/// use_thumbnail`, tab-separated integers; the result has every line again with `columns rows tiles`
/// appended. Errors (kInvalidInput) name the line.
Result<std::string> tile_sizes_table(std::string_view text);

}  // namespace tessera::cli
