#include "cli/commands.h"

namespace tessera::cli {

std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"run", "answer one question about pictures, or a batch of requests", run_command},
      {"chat", "a talk in the terminal, with history and pictures", chat_command},
      {"serve", "answer OpenAI's HTTP API, with a chat page and metrics", serve_command},
      {"plan", "print what each device will hold, before anything is loaded", plan_command},
      {"doctor", "devices, limits, and which kernel serves which operator", doctor_command},
      {"bench", "encode, prefill, decode and serving figures beside the hardware's floor", bench_command},
      {"tile", "show and write the tiles that the model would see", tile_command},
      {"tokenize", "print token ids and pieces", tokenize_command},
  };
  return kCommands;
}

}  // namespace tessera::cli
