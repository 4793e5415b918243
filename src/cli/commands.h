#pragma once

#include <span>
#include <string>

namespace tessera::cli {

/// One subcommand: its arguments (after its own name) in, the process's exit code out. One file each.
using CommandFunction = int (*)(std::span<const std::string> args);

struct Command {
  const char* name;
  const char* summary;
  CommandFunction run;
};

/// All subcommands, in the order of the usage text.
std::span<const Command> commands();

int run_command(std::span<const std::string> args);
int chat_command(std::span<const std::string> args);
int plan_command(std::span<const std::string> args);
int doctor_command(std::span<const std::string> args);
int bench_command(std::span<const std::string> args);
int tile_command(std::span<const std::string> args);
int serve_command(std::span<const std::string> args);
int tokenize_command(std::span<const std::string> args);

}  // namespace tessera::cli
