#include "core/check.h"

#include <cstring>

namespace tessera {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  const char* slash = std::strrchr(file, '/');
  throw CheckFailure(std::string(slash ? slash + 1 : file) + ":" + std::to_string(line) + ": " + message +
                     " (" + condition + ")");
}

}  // namespace tessera
