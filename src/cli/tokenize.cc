#include "cli/arg_parser.h"
#include "cli/commands.h"

namespace tessera::cli {

int tokenize_command(std::span<const std::string> args) {
  ArgParser parser("tessera tokenize", "Prints token ids and pieces.");
  std::string model;
  parser.positional("MODEL", &model, "checkpoint or tokenizer directory");
  if (auto code = parser.parse(args)) return *code;
  return 1;
}

}  // namespace tessera::cli
