#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/tokenize_item.h"
#include "core/json.h"
#include "models/checkpoint.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace tessera::cli {
namespace {

struct TokenizeOptions {
  std::string model;
  std::optional<std::string> text;
  std::optional<std::string> input;
  bool json = false;
  bool parse_special = false;
};

// One token a line: its id and its bytes as a JSON string; control tokens by their names.
void print_table(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  for (const int32_t id : ids)
    std::printf("%8d  %s%s\n", id, Json(replace_invalid_utf8(tokenizer.token_bytes(id))).dump().c_str(),
                tokenizer.is_control(id) ? "  control" : "");
  std::printf("%zu tokens\n", ids.size());
}

void print_item(const TokenizeItem& item, const TokenizeOptions& options, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids = item.ids;
  if (item.text) ids = options.parse_special ? tokenizer.encode_with_special(*item.text) : tokenizer.encode(*item.text);
  if (options.json) {
    const std::string line = tokenize_result(item, ids, tokenizer).dump() + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
  } else {
    print_table(ids, tokenizer);
  }
}

Status process_file(const TokenizeOptions& options, const Tokenizer& tokenizer) {
  std::ifstream in(*options.input, std::ios::binary);
  if (!in) return invalid_input("cannot read " + *options.input + "; check the path given to --input");
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const Result<TokenizeItem> item = parse_tokenize_item(line, tokenizer);
    if (!item.ok())
      return item.status().with_context(*options.input + ", line " + std::to_string(number));
    print_item(*item, options, tokenizer);
  }
  if (in.bad()) return invalid_input("cannot read " + *options.input);
  return {};
}

Status run_tokenize(const TokenizeOptions& options) {
  if (options.text.has_value() == options.input.has_value())
    return invalid_input("give either --text or --input");
  if (options.text && !is_valid_utf8(*options.text)) return invalid_input("--text is not valid UTF-8");
  TESSERA_ASSIGN_OR_RETURN(const ModelLocation location, locate_model(options.model));
  TESSERA_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::load(location.directory));
  if (options.input) TESSERA_RETURN_IF_ERROR(process_file(options, *tokenizer));
  if (options.text) print_item({.text = options.text, .ids = {}}, options, *tokenizer);
  return {};
}

}  // namespace

int tokenize_command(std::span<const std::string> args) {
  ArgParser parser("tessera tokenize", "Prints token ids and pieces.",
                   "Text is plain: nothing in it becomes a control token, and no BOS or EOS is added.\n"
                   "FILE.jsonl holds {\"text\": T} or {\"ids\": [...]} a line.");
  TokenizeOptions options;
  parser.positional("MODEL", &options.model, "checkpoint directory, or one that holds only tokenizer files");
  parser.option("--text", &options.text, "the text to encode");
  parser.option("--input", &options.input, "a JSONL file of texts to encode and ids to decode");
  parser.flag("--json", &options.json, "one JSON object a line instead of a table");
  parser.flag("--parse-special", &options.parse_special, "recognise added and control tokens in the text");
  if (auto code = parser.parse(args)) return *code;
  const Status status = run_tokenize(options);
  if (status.ok()) return 0;
  std::fflush(stdout);
  std::fprintf(stderr, "tessera tokenize: %s\n", status.message().c_str());
  return status.code() == StatusCode::kInvalidInput ? 2 : 1;
}

}  // namespace tessera::cli
