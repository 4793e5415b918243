#include "cli/arg_parser.h"
#include "cli/commands.h"

namespace tessera::cli {

int tile_command(std::span<const std::string> args) {
  ArgParser parser("tessera tile", "Shows and writes the tiles that the model would see.");
  std::string image;
  parser.positional("IMAGE", &image, "the picture");
  if (auto code = parser.parse(args)) return *code;
  return 1;
}

}  // namespace tessera::cli
