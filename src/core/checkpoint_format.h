#pragma once

#include <cstdint>

namespace tessera {

/// The two public forms of an InternVL checkpoint.
enum class CheckpointFormat : uint8_t {
  kOpenGvlab,  ///< `internvl_chat`: templates by name, default system texts
  kHf,         ///< `internvl`: transformers' own names, ChatML by chat_template.jinja, no default system text
};

}  // namespace tessera
