#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "tessera/version.h"

namespace tessera::cli {
namespace {

void print_usage(std::FILE* out) {
  std::fputs("usage: tessera COMMAND [options]\n\ncommands:\n", out);
  for (const Command& command : commands()) std::fprintf(out, "  %-10s %s\n", command.name, command.summary);
  std::fputs("\n'tessera COMMAND --help' shows a command's options; 'tessera --version' the version.\n", out);
}

int run(const std::vector<std::string>& args) {
  if (args.empty()) {
    print_usage(stderr);
    return 2;
  }
  if (args[0] == "--version" || args[0] == "version") {
    std::printf("tessera %s\n", kVersion);
    return 0;
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_usage(stdout);
    return 0;
  }
  std::vector<std::string> names = {"--version", "--help"};
  for (const Command& command : commands()) {
    names.emplace_back(command.name);
    if (args[0] == command.name) return command.run(std::span(args).subspan(1));
  }
  const std::string near = nearest_word(args[0], names);
  std::fprintf(stderr, "tessera: unknown command \"%s\"%s (see tessera --help)\n", args[0].c_str(),
               near.empty() ? "" : ("; did you mean " + near + "?").c_str());
  return 2;
}

/// Standard output is buffered: what failed to be written (a full disk, a closed pipe) is known here at the latest.
int flushed(int code) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  if (code != 0) return code;  // has said why already
  std::fputs("tessera: cannot write to standard output\n", stderr);
  return 2;
}

}  // namespace
}  // namespace tessera::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write, reported as such
  try {
    return tessera::cli::flushed(tessera::cli::run(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const std::bad_alloc&) {
    std::fputs("tessera: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tessera: internal error: %s\n", error.what());
  }
  return 1;
}
