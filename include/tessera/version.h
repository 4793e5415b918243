#pragma once

namespace tessera {

/// The program's version, as `tessera --version` and `GET /version` print it.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace tessera
