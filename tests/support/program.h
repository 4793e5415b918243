#pragma once

#include <string>
#include <vector>

namespace tessera::testing {

/// What a run of a program left behind.
struct ProgramResult {
  int exit_code = -1;  ///< 128 + the signal's number when a signal ended it
  std::string out, err;
};

struct ProgramOptions {
  std::string input;             ///< standard input
  std::string directory;         ///< working directory; "" keeps this one
  long max_file_bytes = -1;      ///< files cannot grow past this (a full disk); -1: no limit
  bool obey_permissions = false;   ///< files that root may read or write by privilege alone are closed to it
  bool terminal = false;           ///< standard error is a terminal
  /// Sends SIGINT each time that one of these has come in the output, behind the one before ("" is any byte). Standard
  /// input goes on waiting for more until the last was sent.
  std::vector<std::string> interrupt_after;
};

/// Runs a program to its end and collects its output.
ProgramResult run_program(const std::vector<std::string>& command, const ProgramOptions& options = {});

/// Number of lines in a text.
size_t line_count(const std::string& text);

}  // namespace tessera::testing
