#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "text/tokenizer.h"

namespace tessera::testing {

/// Reads a whole file; throws where there is none.
std::string file_content(const std::string& path);
void write_file(const std::string& path, const std::string& content);
/// The content of an .xz file.
std::string xz_content(const std::string& path);
/// One JSON value a line. Lines end with \n alone.
std::vector<Json> json_lines(const std::string& path);

std::vector<int32_t> ids_of(const Json& list);

/// A tokenizer of fixtures/tokenizers as a directory in one of its layouts ("tokenizer.json", "vocab.json",
/// "tokenizer.model"), with InternVL's nine tokens added. Written once a test program, then shared.
std::string tokenizer_directory(const std::string& name, const std::string& layout);
/// The same, loaded; shared by all tests of the program.
const Tokenizer& fixture_tokenizer(const std::string& name, const std::string& layout);

struct TokenizerFixture {
  std::string name;
  std::vector<std::string> layouts;
};
std::vector<TokenizerFixture> tokenizer_fixtures();

/// A small byte-level tokenizer.json (letters a..e, a few merges) to be damaged by tests.
Json small_tokenizer_json();
/// Writes files into a new directory and loads a tokenizer from it.
Result<std::unique_ptr<Tokenizer>> load_files(const std::vector<std::pair<std::string, std::string>>& files);

/// A SentencePiece model of BPE type: 256 byte pieces after the three control pieces, then `pieces` (spelling, score,
/// type), as protobuf bytes. `normalizer` and `trainer` are appended raw fields.
struct ModelPieceSpec {
  std::string spelling;
  float score;
  int type;
};
std::string sentencepiece_bytes(const std::vector<ModelPieceSpec>& pieces, bool dummy_prefix,
                                const std::string& extra_fields = {});

}  // namespace tessera::testing
