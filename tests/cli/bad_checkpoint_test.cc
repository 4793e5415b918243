// Checkpoints that cannot be run, as a user meets them: exit code 2 and one line that names the place and says what to do.
// (tests/models/refusals_test.cc has every message; here the whole way from the command line is gone for each kind.)
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "core/file.h"
#include "core/json.h"
#include "tests/support/fixtures.h"
#include "tests/support/program.h"

namespace tessera {
namespace {

using testing::fixture_path;

/// A copy of a checkpoint folder, to be damaged.
class Folder {
 public:
  Folder() : directory_(testing::scratch_dir()) {
    for (const auto& file : std::filesystem::directory_iterator(fixture_path("models/qwen2-opengvlab")))
      std::filesystem::copy_file(file.path(), path(file.path().filename().string()));
  }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  const std::string& directory() const { return directory_; }

  void remove(const std::string& name) const { std::filesystem::remove(path(name)); }
  void write(const std::string& name, const std::string& text) const { ASSERT_TRUE(write_file(path(name), text).ok()); }
  std::string read(const std::string& name) const { return read_file(path(name), size_t{1} << 30).value(); }
  void resize(const std::string& name, int by) const {
    std::filesystem::resize_file(path(name), std::filesystem::file_size(path(name)) + static_cast<uintmax_t>(by));
  }
  /// Puts words of the same length in the place of others, wherever they stand in a file.
  void replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = read(name);
    ASSERT_NE(text.find(from), std::string::npos) << name << " has no " << from;
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
    write(name, text);
  }
  /// Sets a value of config.json; `section` "" is the top.
  void set(const std::string& section, const std::string& key, Json value) const {
    Json config = Json::parse_file(path("config.json")).value();
    Json* at = &config;
    for (auto& [name, child] : config.as_object())
      if (name == section) at = &child;
    at->set(key, std::move(value));
    write("config.json", config.dump());
  }

 private:
  std::string directory_;
};

constexpr const char* kFirst = "model-00001-of-00002.safetensors";

/// A safetensors file of this header and as many bytes of data.
std::string safetensors(const std::string& header, size_t data_bytes) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return length + header + std::string(data_bytes, '\1');
}

struct Damage {
  const char* name;
  std::function<void(const Folder&)> apply;
  const char* message;  ///< a part of the line
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class BadCheckpoint : public ::testing::TestWithParam<Damage> {};

TEST_P(BadCheckpoint, IsOneLineAndExitCode2) {
  const Folder folder;
  GetParam().apply(folder);
  const auto result = testing::run_program({TESSERA_BINARY, "run", folder.directory(), "--device", "cpu", "--prompt", "x"});
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_EQ(testing::line_count(result.err), 1u) << result.err;
  EXPECT_NE(result.err.find(GetParam().message), std::string::npos) << result.err;
  EXPECT_EQ(result.out, "");
}

INSTANTIATE_TEST_SUITE_P(
    Program, BadCheckpoint,
    ::testing::Values(
        Damage{"missing_weights", [](const Folder& f) { f.remove(kFirst); }, "is missing; download it again"},
        Damage{"truncated_weights", [](const Folder& f) { f.resize(kFirst, -1); },
               "the file is truncated or its header wrong"},
        Damage{"oversized_weights", [](const Folder& f) { f.resize(kFirst, 1); }, "its tensors end at byte"},
        Damage{"overlapping_tensors",
               [](const Folder& f) {
                 f.write(kFirst, safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                             12));
               },
               "tensor b overlaps the one before it"},
        Damage{"wrong_shape", [](const Folder& f) { f.set("llm_config", "intermediate_size", 208); },
               "config.json asks for shape"},
        Damage{"wrong_dtype", [](const Folder& f) { f.replace(kFirst, "\"BF16\"", "\"I16\" "); },
               "expected BF16, F16 or F32"},
        Damage{"tensor_absent",
               [](const Folder& f) {
                 f.replace("model.safetensors.index.json", "mlp1.1.weight", "mlp1.7.weight");
                 for (const char* shard : {kFirst, "model-00002-of-00002.safetensors"})
                   if (f.read(shard).find("mlp1.1.weight") != std::string::npos)
                     f.replace(shard, "mlp1.1.weight", "mlp1.7.weight");
               },
               "tensor mlp1.1.weight is absent"},
        Damage{"unknown_architecture",
               [](const Folder& f) {
                 f.set("llm_config", "architectures", Json(Json::Array{Json("MistralForCausalLM")}));
               },
               "\"MistralForCausalLM\", which is not supported; supported are Qwen2ForCausalLM"},
        Damage{
            "gpt_oss",
            [](const Folder& f) { f.set("llm_config", "architectures", Json(Json::Array{Json("GptOssForCausalLM")})); },
            "GPT-OSS language models are not supported; take another release"},
        Damage{"flash_router", [](const Folder& f) { f.set("", "flash_mode", true); },
               "take the release without -Flash"},
        Damage{"quantized",
               [](const Folder& f) {
                 f.set("", "quantization_config", Json::parse(R"({"quant_method": "awq"})").value());
               },
               "take the release without it (the name without -AWQ)"},
        Damage{"unmerged_lora", [](const Folder& f) { f.set("", "use_llm_lora", 16); },
               "the LoRA is not merged into the weights; merge it first"},
        Damage{"pickled_weights",
               [](const Folder& f) {
                 for (const char* file : {kFirst, "model-00002-of-00002.safetensors", "model.safetensors.index.json"})
                   f.remove(file);
                 f.write("pytorch_model.bin", "x");
               },
               "the weights are in pickle form (pytorch_model.bin)"},
        Damage{"unknown_template", [](const Folder& f) { f.set("", "template", "vicuna"); },
               "template \"vicuna\" is not supported; expected one of"},
        Damage{"value_zero", [](const Folder& f) { f.set("llm_config", "num_hidden_layers", 0); },
               "num_hidden_layers is 0; expected an integer in"},
        Damage{"value_negative", [](const Folder& f) { f.set("llm_config", "hidden_size", -192); },
               "hidden_size is -192; expected"},
        Damage{"value_absurd", [](const Folder& f) { f.set("llm_config", "vocab_size", 1e30); },
               "vocab_size is 1e+30; expected"},
        Damage{"values_at_odds", [](const Folder& f) { f.set("llm_config", "num_attention_heads", 5); },
               "is no multiple of num_attention_heads 5"},
        Damage{"no_config", [](const Folder& f) { f.remove("config.json"); }, "has no config.json"},
        Damage{"tokenizer_without_image_tokens",
               [](const Folder& f) {
                 for (const auto& file : std::filesystem::directory_iterator(f.directory())) {
                   const std::string name = file.path().filename().string();
                   if (name.find("token") != std::string::npos && f.read(name).find("<IMG_CONTEXT>") != std::string::npos)
                     f.replace(name, "<IMG_CONTEXT>", "<IMG_CONTENT>");
                 }
               },
               "lacks the control token"},
        Damage{"no_tokenizer", [](const Folder& f) { f.remove("vocab.json"); }, "holds no tokenizer.json"}),
    [](const auto& info) { return info.param.name; });

TEST(GoodCheckpoint, TheUndamagedFolderAnswers) {
  const Folder folder;
  const auto result =
      testing::run_program({TESSERA_BINARY, "run", folder.directory(), "--device", "cpu", "--prompt", "x", "-n", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

}  // namespace
}  // namespace tessera
