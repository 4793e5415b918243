#pragma once

#include "core/json.h"
#include "models/config.h"

namespace tessera {

/// The part of llm_config / text_config that all supported decoders share: sizes, norm epsilon, tied flag, rope.
/// The architecture's own configure() calls it first and adds what is its own. Errors name the key, its value and what
/// would do.
Status read_decoder_config(const JsonReader& text, LanguageConfig& config);

/// Rope in any of its spellings: rope_theta with rope_scaling {type | rope_type}, or rope_parameters.
Status read_rope(const JsonReader& text, LanguageConfig& config);

/// Refuses a flag that is set, when the computation that it asks for is not there.
Status refuse_flag(const JsonReader& text, std::string_view key);

}  // namespace tessera
