#include "cli/arg_parser.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <limits>
#include <sstream>

namespace tessera::cli {
namespace {

std::string range_text(double minimum, double maximum) {
  std::ostringstream out;
  out.precision(15);
  if (maximum >= 1e18)
    out << minimum << " or more";
  else
    out << minimum << ".." << maximum;
  return out.str();
}

std::string bound_error(const std::string& text, const std::string& range) {
  return "is " + text + "; expected a number, " + range;
}

// CLI11's own Range prints less than our messages promise (the value and the limit).
void check_number(CLI::Option* option, double minimum, double maximum, bool integer) {
  const std::string range = range_text(minimum, maximum);
  option->type_name(range)->check(CLI::Validator(
      [=](std::string& text) -> std::string {
        char* end = nullptr;
        errno = 0;
        const double value = std::strtod(text.c_str(), &end);
        const bool whole = !integer || text.find_first_not_of("+-0123456789") == std::string::npos;
        const bool hexadecimal = text.find_first_of("xXpP") != std::string::npos;
        if (text.empty() || *end != '\0' || !whole || hexadecimal || !(value >= minimum) || !(value <= maximum))
          return bound_error(text, range);
        return {};
      },
      ""));
}

}  // namespace

struct ArgParser::Impl {
  explicit Impl(const std::string& description) : app(description) {}
  CLI::App app;
  std::string group = "Options";
  std::string stray_option;

  CLI::Option* grouped(CLI::Option* option) { return option->group(group); }
  std::vector<std::string> option_names() const {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    return names;
  }
  // The first argument that looks like a long option and is none. Looked for before CLI11 parses, which would rather
  // complain about a missing positional.
  std::string unknown_option(std::span<const std::string> args) const {
    const auto known = option_names();
    for (const std::string& arg : args) {
      if (arg == "--") break;
      const std::string name = arg.substr(0, arg.find('='));
      const bool shaped = name.size() > 2 && name.rfind("--", 0) == 0 &&
                          name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-_", 2) == std::string::npos;
      if (shaped && std::find(known.begin(), known.end(), name) == known.end()) return name;
    }
    return {};
  }
};

ArgParser::ArgParser(std::string program, std::string description, std::string footer)
    : impl_(std::make_unique<Impl>(description)) {
  impl_->app.name(program);
  impl_->app.footer(footer);
  impl_->app.option_defaults()->always_capture_default();
  impl_->app.get_formatter()->column_width(36);
}

ArgParser::~ArgParser() = default;

void ArgParser::group(const std::string& title) { impl_->group = title; }

void ArgParser::positional(const std::string& name, std::string* value, const std::string& help, bool required) {
  impl_->app.add_option(name, *value, help)->required(required);
}

void ArgParser::positional_list(const std::string& name, std::vector<std::string>* values, const std::string& help,
                                bool required) {
  impl_->app.add_option(name, *values, help)->required(required);
}

void ArgParser::flag(const std::string& names, bool* value, const std::string& help) {
  impl_->grouped(impl_->app.add_flag(names, *value, help));
}

void ArgParser::option(const std::string& names, std::string* value, const std::string& help) {
  impl_->grouped(impl_->app.add_option(names, *value, help))->type_name("TEXT");
}

void ArgParser::option(const std::string& names, std::optional<std::string>* value, const std::string& help) {
  impl_->grouped(impl_->app.add_option_function<std::string>(
                     names, [value](const std::string& v) { *value = v; }, help))
      ->type_name("TEXT");
}

void ArgParser::choice(const std::string& names, std::string* value, const std::vector<std::string>& choices,
                       const std::string& help) {
  std::string joined;
  for (const std::string& word : choices) joined += (joined.empty() ? "" : "|") + word;
  auto valid = CLI::Validator(
      [choices, joined](std::string& text) -> std::string {
        if (std::find(choices.begin(), choices.end(), text) != choices.end()) return {};
        return "is \"" + text + "\"; expected one of " + joined;
      },
      "");
  impl_->grouped(impl_->app.add_option(names, *value, help))->check(valid)->type_name(joined);
}

void ArgParser::option(const std::string& names, int64_t* value, int64_t minimum, int64_t maximum,
                       const std::string& help) {
  check_number(impl_->grouped(impl_->app.add_option(names, *value, help)), static_cast<double>(minimum),
               static_cast<double>(maximum), true);
}

void ArgParser::option(const std::string& names, std::optional<int64_t>* value, int64_t minimum, int64_t maximum,
                       const std::string& help) {
  auto store = [value](const int64_t& v) { *value = v; };
  check_number(impl_->grouped(impl_->app.add_option_function<int64_t>(names, store, help)),
               static_cast<double>(minimum), static_cast<double>(maximum), true);
}

void ArgParser::option(const std::string& names, double* value, double minimum, double maximum,
                       const std::string& help) {
  check_number(impl_->grouped(impl_->app.add_option(names, *value, help)), minimum, maximum, false);
}

void ArgParser::option(const std::string& names, std::optional<double>* value, double minimum, double maximum,
                       const std::string& help) {
  auto store = [value](const double& v) { *value = v; };
  check_number(impl_->grouped(impl_->app.add_option_function<double>(names, store, help)), minimum, maximum, false);
}

void ArgParser::list(const std::string& names, std::vector<std::string>* values, const std::string& help) {
  impl_->grouped(impl_->app.add_option(names, *values, help))
      ->type_size(1)
      ->expected(1, std::numeric_limits<int>::max())
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false)
      ->type_name("TEXT")
      ->default_str("");
}

void ArgParser::bytes(const std::string& names, std::optional<int64_t>* value, const std::string& help) {
  auto apply = [value](const std::string& text) {
    static const std::pair<const char*, double> kUnits[] = {{"", 1},
                                                            {"B", 1},
                                                            {"KiB", 1024.0},
                                                            {"MiB", 1048576.0},
                                                            {"GiB", 1073741824.0},
                                                            {"KB", 1e3},
                                                            {"MB", 1e6},
                                                            {"GB", 1e9}};
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    for (const auto& [unit, factor] : kUnits)
      if (end != text.c_str() && std::string(end) == unit && number >= 0 && number * factor < 9e18) {
        *value = static_cast<int64_t>(number * factor);
        return true;
      }
    return false;
  };
  impl_->grouped(impl_->app.add_option(
                     names,
                     [apply, names](const CLI::results_t& results) {
                       if (apply(results.at(0))) return true;
                       throw CLI::ValidationError(names, "is " + results.at(0) +
                                                             "; expected bytes such as 512MiB or 24GiB");
                     },
                     help))
      ->type_name("BYTES");
}

void ArgParser::stray_belongs_to(const std::string& option) { impl_->stray_option = option; }

std::optional<int> ArgParser::parse(std::span<const std::string> args) {
  if (const std::string unknown = impl_->unknown_option(args); !unknown.empty()) {
    const std::string near = nearest_word(unknown, impl_->option_names());
    std::fprintf(stderr, "%s: unknown option %s%s (see --help)\n", impl_->app.get_name().c_str(), unknown.c_str(),
                 near.empty() ? "" : ("; did you mean " + near + "?").c_str());
    return 2;
  }
  std::vector<std::string> reversed(args.rbegin(), args.rend());  // as CLI::App::parse(vector) wants them
  try {
    impl_->app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    std::fputs(impl_->app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> extra = impl_->app.remaining();
    const std::string word = extra.empty() ? "" : "\"" + extra.front() + "\"";
    std::fprintf(stderr, "%s: unexpected argument %s%s (see --help)\n", impl_->app.get_name().c_str(), word.c_str(),
                 impl_->stray_option.empty() ? "" : ("; did you mean " + impl_->stray_option + " " + word + "?").c_str());
    return 2;
  } catch (const CLI::ArgumentMismatch& error) {
    const std::string what = error.what();  // "--prompt: At Most 1 required but received 2"
    std::fprintf(stderr, "%s: %s needs one value, and once (see --help)\n", impl_->app.get_name().c_str(),
                 what.substr(0, what.find(':')).c_str());
    return 2;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s (see --help)\n", impl_->app.get_name().c_str(), error.what());
    return 2;
  }
  return std::nullopt;
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  const size_t mark = std::min(word.find_first_not_of("-/"), word.size());  // what all words begin with is no resemblance
  size_t best_distance = (word.size() - mark + 1) / 2 + 1;                  // as far as this is none
  for (const std::string& candidate : known) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t substitute = diagonal + (word[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace tessera::cli
