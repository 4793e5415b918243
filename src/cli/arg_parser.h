#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace tessera::cli {

/// Command-line options of one subcommand, with `--help`, defaults and ranges in the help, and errors that name
/// the nearest known option. Values are written through the pointers given; they must outlive parse().
/// Names are as CLI users write them: "--top-k", "-n,--max-new-tokens".
class ArgParser {
 public:
  /// `program` is what usage shows, e.g. "tessera run"; `description` one line; `footer` may hold examples.
  ArgParser(std::string program, std::string description, std::string footer = {});
  ~ArgParser();

  /// Starts a titled group in the help; the options that follow belong to it.
  void group(const std::string& title);

  void positional(const std::string& name, std::string* value, const std::string& help, bool required = true);
  void positional_list(const std::string& name, std::vector<std::string>* values, const std::string& help,
                       bool required = true);
  void flag(const std::string& names, bool* value, const std::string& help);
  void option(const std::string& names, std::string* value, const std::string& help);
  void option(const std::string& names, std::optional<std::string>* value, const std::string& help);
  /// A word of a fixed set.
  void choice(const std::string& names, std::string* value, const std::vector<std::string>& choices,
              const std::string& help);
  void option(const std::string& names, int64_t* value, int64_t minimum, int64_t maximum,
              const std::string& help);
  void option(const std::string& names, std::optional<int64_t>* value, int64_t minimum, int64_t maximum,
              const std::string& help);
  void option(const std::string& names, double* value, double minimum, double maximum, const std::string& help);
  void option(const std::string& names, std::optional<double>* value, double minimum, double maximum,
              const std::string& help);
  /// May be repeated; one value each time.
  void list(const std::string& names, std::vector<std::string>* values, const std::string& help);
  /// Bytes, with an optional suffix KiB, MiB, GiB, KB, MB, GB.
  void bytes(const std::string& names, std::optional<int64_t>* value, const std::string& help);

  /// The option that an argument too many is most likely for: its message names it.
  void stray_belongs_to(const std::string& option);

  /// Parses the arguments after the subcommand's name. Returns the exit code to leave with (0 after --help,
  /// 2 after a usage error, which has been printed as one line on stderr), or nullopt to go on.
  std::optional<int> parse(std::span<const std::string> args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The word of `known` that is nearest to `word` by edit distance, or "" when none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& known);

}  // namespace tessera::cli
