// Checkpoints that cannot be run, each refused in one line that names the place and says what to do.

#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/models/checkpoint_folder.h"
#include "tests/models/hf_twin.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

constexpr const char* kQwen = "models/qwen2-opengvlab";

CheckpointFolder qwen() { return CheckpointFolder::read(fixture_path(kQwen)); }

/// The message of opening and (when that works) loading; "loaded" when both work.
std::string refusal(const std::string& directory) {
  auto opened = Checkpoint::open_directory(directory);
  Status status = opened.status();
  if (opened.ok()) {
    const auto backend = open_cpu();
    status = load_model(*opened, *backend, backend->allocator(), {.compute = DType::kF32}).status();
    if (status.ok()) return "loaded";
  }
  EXPECT_EQ(status.code(), StatusCode::kInvalidInput);
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  std::string message = status.message();
  for (size_t at; (at = message.find(directory)) != std::string::npos;) message.replace(at, directory.size(), "DIR");
  return message;
}

std::string refusal(const CheckpointFolder& folder) { return refusal(folder.write(DType::kBF16)); }

std::string with_config(const std::function<void(CheckpointFolder&)>& change) {
  CheckpointFolder folder = qwen();
  change(folder);
  return refusal(folder);
}

TEST(Refusals, TheUnchangedFolderLoads) { EXPECT_EQ(refusal(qwen()), "loaded"); }

// ---- directories and files

TEST(Refusals, DirectoriesThatAreNone) {
  const std::string empty = scratch_dir();
  EXPECT_EQ(refusal(empty), "DIR has no config.json; give the directory of a checkpoint as downloaded");
  EXPECT_EQ(Checkpoint::open("/no/such/model").status().message(),
            "model /no/such/model is no directory; give a checkpoint directory, or demo");
  write_text(empty + "/file", "");
  EXPECT_EQ(Checkpoint::open(empty + "/file").status().message(),
            "model " + empty + "/file is a file; give the checkpoint's directory");
  EXPECT_EQ(Checkpoint::open("").status().message(),
            "the model's name is empty; give a checkpoint directory, or demo");
}

TEST(Refusals, DirectoryWithoutPermission) {
  const std::string directory = qwen().write(DType::kBF16);
  ::chmod(directory.c_str(), 0);
  // Root may read everything: as root, this thread looks at files as a user without rights.
  constexpr uid_t kNobody = 65534;
  const auto own = static_cast<uid_t>(::setfsuid(kNobody));
  const std::string message = refusal(directory);
  ::setfsuid(own);
  ::chmod(directory.c_str(), 0700);
  EXPECT_EQ(message, "cannot open the checkpoint directory DIR: Permission denied");
}

TEST(Refusals, WeightsInOtherForms) {
  const std::string directory = qwen().write(DType::kBF16);
  std::filesystem::remove(directory + "/model.safetensors");
  EXPECT_EQ(refusal(directory), "DIR holds no weights: neither model.safetensors nor model.safetensors.index.json");
  write_text(directory + "/pytorch_model.bin", "x");
  EXPECT_EQ(refusal(directory),
            "DIR: the weights are in pickle form (pytorch_model.bin), which is not read; take the safetensors files of "
            "the same release, or save the model again with save_pretrained(safe_serialization=True)");
}

TEST(Refusals, AdapterAlone) {
  const std::string directory = scratch_dir();
  write_text(directory + "/adapter_config.json", "{}");
  EXPECT_EQ(refusal(directory),
            "DIR holds a LoRA adapter (adapter_config.json), not a model; merge it into its base model and load the "
            "result");
}

TEST(Refusals, BrokenConfigJson) {
  const std::string directory = qwen().write(DType::kBF16);
  write_text(directory + "/config.json", "{\"model_type\": ");
  EXPECT_NE(refusal(directory).find("DIR/config.json: not valid JSON"), std::string::npos);
  write_text(directory + "/config.json", "[1]");
  EXPECT_EQ(refusal(directory), "[DIR/config.json] is no JSON object");
}

TEST(Refusals, TruncatedWeights) {
  const std::string directory = qwen().write(DType::kBF16);
  const std::string path = directory + "/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_NE(refusal(directory).find("the file is truncated or its header wrong"), std::string::npos);
  std::filesystem::resize_file(path, 100);
  EXPECT_NE(refusal(directory).find("DIR/model.safetensors is truncated: its header takes"), std::string::npos);
}

TEST(Refusals, ShardsThatDoNotFitTheIndex) {
  const std::string directory = qwen().write(DType::kBF16, 2);
  const std::string index = directory + "/model.safetensors.index.json";
  EXPECT_EQ(refusal(directory), "loaded");
  std::filesystem::rename(directory + "/model-2-of-2.safetensors", directory + "/aside");
  EXPECT_EQ(refusal(directory),
            "DIR/model-2-of-2.safetensors, which model.safetensors.index.json names, is missing; download it again");
  std::filesystem::copy(directory + "/model-1-of-2.safetensors", directory + "/model-2-of-2.safetensors");
  EXPECT_NE(refusal(directory).find("is also in DIR/model-1-of-2.safetensors"), std::string::npos);
  write_text(index, R"({"weight_map": {"a": "../x.safetensors"}})");
  EXPECT_EQ(refusal(directory),
            "DIR/model.safetensors.index.json: the file of tensor \"a\" is \"../x.safetensors\"; expected a file name "
            "without folders");
  write_text(index, R"({"weight_map": {"a": "model-1-of-2.safetensors"}})");
  EXPECT_EQ(refusal(directory),
            "DIR/model.safetensors.index.json: tensor \"a\" is not in model-1-of-2.safetensors, where the index has it");
  write_text(index, R"({"weight_map": {}})");
  EXPECT_EQ(refusal(directory), "DIR/model.safetensors.index.json: weight_map is empty");
}

// ---- tensors

TEST(Refusals, TensorAbsent) {
  CheckpointFolder folder = qwen();
  folder.take("language_model.model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(refusal(folder),
            "DIR: tensor language_model.model.layers.1.mlp.up_proj.weight is absent; the model needs it with shape "
            "[200, 192]");
}

TEST(Refusals, TensorOfWrongShape) {
  CheckpointFolder folder = qwen();
  auto& item = folder.at("mlp1.1.weight");
  std::swap(item.shape[0], item.shape[1]);
  EXPECT_EQ(refusal(folder),
            "DIR: DIR/model.safetensors: tensor mlp1.1.weight is BF16[512, 192]; config.json asks for shape [192, 512]");
}

TEST(Refusals, TensorOfWrongDtype) {
  const std::string directory = qwen().write(DType::kBF16);
  std::string file = read_file(directory + "/model.safetensors", size_t{1} << 30).value();
  const size_t name = file.find("\"language_model.model.norm.weight\"");
  file.replace(file.find("\"BF16\"", name), 6, "\"I16\" ");  // as many bytes
  write_text(directory + "/model.safetensors", file);
  EXPECT_EQ(refusal(directory),
            "DIR: DIR/model.safetensors: tensor language_model.model.norm.weight is I16[192]; expected BF16, F16 or F32 "
            "(quantized checkpoints are not supported)");
}

TEST(Refusals, HeadAbsentAndNotTied) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path("models/llama3-6b-vit-opengvlab"));
  folder.take("language_model.lm_head.weight");
  EXPECT_EQ(refusal(folder),
            "DIR: the head's tensor (language_model.lm_head.weight or lm_head.weight) is absent, and config.json does "
            "not say tie_word_embeddings; download the weights again");
}

TEST(Refusals, TensorsThatHaveNoPlace) {
  CheckpointFolder folder = qwen();
  folder.section("llm_config").set("num_hidden_layers", 2);
  EXPECT_NE(refusal(folder).find("tensor language_model.model.layers.2."), std::string::npos);
  folder = qwen();
  folder.items.push_back({"language_model.model.layers.0.self_attn.o_proj.bias", {192}, std::vector<float>(192)});
  EXPECT_EQ(refusal(folder),
            "DIR: tensor language_model.model.layers.0.self_attn.o_proj.bias has no place in a Qwen2ForCausalLM of the "
            "shape that config.json gives; config and weights do not belong together");
}

// ---- not ready to run

TEST(Refusals, Quantized) {
  const std::string expected =
      "[DIR/config.json] quantization_config (\"awq\") says that the weights are quantized, which is not supported; "
      "take the release without it (the name without -AWQ)";
  Json awq = Json::object();
  awq.set("quant_method", "awq");
  EXPECT_EQ(with_config([&](auto& f) { f.config.set("quantization_config", awq); }), expected);
  EXPECT_NE(with_config([&](auto& f) { f.section("llm_config").set("quantization_config", awq); })
                .find("config.json: llm_config] quantization_config (\"awq\")"),
            std::string::npos);
  EXPECT_NE(with_config([&](auto& f) {
              f.items.push_back({"language_model.model.layers.0.mlp.up_proj.qweight", {1}, {0}});
            }).find("is quantized, which is not supported"),
            std::string::npos);
}

TEST(Refusals, UnmergedLora) {
  EXPECT_NE(with_config([](auto& f) { f.config.set("use_llm_lora", 16); })
                .find("use_llm_lora is 16: the LoRA is not merged into the weights; merge it first"),
            std::string::npos);
  for (const char* name : {"language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
                           "language_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"})
    EXPECT_NE(with_config([&](auto& f) { f.items.push_back({name, {1}, {0}}); })
                  .find("belongs to a LoRA that is not merged; merge it first"),
              std::string::npos);
}

TEST(Refusals, FlashRouter) {
  EXPECT_NE(with_config([](auto& f) { f.config.set("flash_mode", true); })
                .find("flash_mode: InternVL3.5-Flash's visual router is not supported"),
            std::string::npos);
  EXPECT_NE(with_config([](auto& f) { f.items.push_back({"mlp2.0.weight", {1}, {0}}); })
                .find("belongs to InternVL3.5-Flash's visual router"),
            std::string::npos);
}

TEST(Refusals, UnknownModelsByName) {
  EXPECT_EQ(with_config([](auto& f) { f.config.set("model_type", "qwen2_vl"); }),
            "[DIR/config.json] model_type is \"qwen2_vl\"; supported are internvl_chat (OpenGVLab's InternVL format) "
            "and internvl (the -hf format)");
  const auto architecture = [](const char* name) {
    return with_config([&](auto& f) {
      f.section("llm_config").set("architectures", Json(Json::Array{Json(name)}));
    });
  };
  EXPECT_EQ(architecture("MistralForCausalLM"),
            "[DIR/config.json: llm_config] architectures is \"MistralForCausalLM\", which is not supported; supported "
            "are Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, InternLM2ForCausalLM, LlamaForCausalLM, "
            "Phi3ForCausalLM");
  EXPECT_EQ(architecture("GptOssForCausalLM"),
            "[DIR/config.json: llm_config] architectures is \"GptOssForCausalLM\": GPT-OSS language models are not "
            "supported; take another release");
}

// ---- values

struct Value {
  const char* section;  ///< "" for the top level
  const char* key;
  Json value;
  const char* message;  ///< a part of it
};

TEST(Refusals, ConfigValues) {
  const std::vector<Value> values = {
      {"llm_config", "hidden_size", 0, "hidden_size is 0; expected an integer in [1, 65536]"},
      {"llm_config", "hidden_size", -192, "hidden_size is -192; expected an integer in [1, 65536]"},
      {"llm_config", "hidden_size", "192", "hidden_size is \"192\"; expected an integer in [1, 65536]"},
      {"llm_config", "hidden_size", 190, "hidden_size 190 is no multiple of num_attention_heads 3"},
      {"llm_config", "num_hidden_layers", 0, "num_hidden_layers is 0; expected an integer in [1, 1024]"},
      {"llm_config", "num_hidden_layers", 1000000000, "num_hidden_layers is 1000000000; expected"},
      {"llm_config", "num_attention_heads", 0, "num_attention_heads is 0; expected"},
      {"llm_config", "num_key_value_heads", 2, "num_attention_heads 3 is no multiple of num_key_value_heads 2"},
      {"llm_config", "head_dim", 65, "head_dim 65 is odd; rotary embedding needs pairs"},
      {"llm_config", "vocab_size", 0, "vocab_size is 0; expected an integer in [1, 4194304]"},
      {"llm_config", "vocab_size", 1e30, "vocab_size is 1e+30; expected"},
      {"llm_config", "max_position_embeddings", 0, "max_position_embeddings is 0; expected"},
      {"llm_config", "rms_norm_eps", 0, "rms_norm_eps is 0; expected a number in"},
      {"llm_config", "rope_theta", -1, "rope_theta is -1; expected a number in"},
      {"llm_config", "hidden_act", "relu", "hidden_act is \"relu\"; expected \"silu\""},
      {"llm_config", "use_sliding_window", true, "use_sliding_window is true, which is not supported"},
      {"llm_config", "tie_word_embeddings", 1, "tie_word_embeddings is 1; expected true or false"},
      {"vision_config", "num_attention_heads", 3, "hidden_size 128 is no multiple of num_attention_heads 3"},
      {"vision_config", "patch_size", 0, "patch_size is 0; expected an integer in [1, 256]"},
      {"vision_config", "patch_size", 15, "image_size 224 is no multiple of patch_size 15"},
      {"vision_config", "image_size", 1 << 30, "image_size is 1073741824; expected an integer in [1, 8192]"},
      {"vision_config", "norm_type", "batch_norm", "norm_type is \"batch_norm\"; expected layer_norm or rms_norm"},
      {"vision_config", "num_channels", 4, "num_channels is 4; expected 3"},
      {"", "force_image_size", 230, "the tile side 230 is no multiple of patch_size 14"},
      {"", "force_image_size", 210, "a tile has 15 patches a side, which downsample_ratio 0.5 does not divide"},
      {"", "downsample_ratio", 0.25, "downsample_ratio is 0.25; expected 0.5"},
      {"", "downsample_ratio", 0, "downsample_ratio is 0; expected a number in"},
      {"", "select_layer", -4, "the vision tower has 2 layers; select_layer (vision_feature_layer) -4 is not among them"},
      {"", "select_layer", 3, "select_layer (vision_feature_layer) 3 is not among them"},
      {"", "ps_version", "v3", "ps_version is \"v3\"; expected v1 or v2"},
      {"", "max_dynamic_patch", 0, "max_dynamic_patch is 0; expected an integer in [1, 128]"},
      {"", "min_dynamic_patch", 13, "min_dynamic_patch 13 exceeds max_dynamic_patch 12"},
      {"", "torch_dtype", "float8", "torch_dtype is \"float8\"; expected bfloat16, float16 or float32"},
      {"", "template", 7, "template is 7; expected a string"},
      {"", "vision_config", 1, "vision_config is missing or no object"},
  };
  const std::string weights = qwen().write(DType::kBF16);
  for (const Value& value : values) {
    Json config = qwen().config;
    Json* target = &config;
    for (auto& [key, section] : config.as_object())
      if (key == value.section) target = &section;
    target->set(value.key, value.value);
    write_text(weights + "/config.json", config.dump());
    EXPECT_NE(refusal(weights).find(value.message), std::string::npos) << value.message << "\n  " << refusal(weights);
  }
}

TEST(Refusals, RopeValues) {
  const std::string weights = qwen().write(DType::kBF16);
  const auto scaling = [&](const char* text) {
    Json config = qwen().config;
    for (auto& [key, section] : config.as_object())
      if (key == "llm_config") section.set("rope_scaling", Json::parse(text).value());
    write_text(weights + "/config.json", config.dump());
    return refusal(weights);
  };
  EXPECT_EQ(scaling(R"({"type": "yarn", "factor": 4.0})"),
            "[DIR/config.json: llm_config.rope_scaling] type is \"yarn\"; supported are default, dynamic, su and longrope");
  EXPECT_NE(scaling(R"({"type": "dynamic", "factor": 0.5})").find("factor is 0.5; expected a number in"), std::string::npos);
  EXPECT_NE(scaling(R"({"type": "su", "original_max_position_embeddings": 4096, "short_factor": [1], "long_factor": [1]})")
                .find("short_factor is not a list of 32 numbers (head_dim / 2)"),
            std::string::npos);
  EXPECT_NE(scaling("[1]").find("rope_scaling is no object"), std::string::npos);
  EXPECT_EQ(scaling(R"({"rope_type": "default"})"), "loaded");
}

TEST(Refusals, HfValues) {
  const CheckpointFolder twin = hf_twin(qwen(), /*newer=*/true);
  const std::string weights = twin.write(DType::kBF16);
  const auto changed = [&](const char* key, Json value) {
    Json config = twin.config;
    config.set(key, std::move(value));
    write_text(weights + "/config.json", config.dump());
    return refusal(weights);
  };
  EXPECT_NE(changed("image_seq_length", 256)
                .find("image_seq_length is 256, but a tile of 224 pixels gives 64 tokens"),
            std::string::npos);
  EXPECT_NE(changed("vision_feature_select_strategy", "full").find("expected \"default\""), std::string::npos);
  EXPECT_NE(changed("projector_hidden_act", "relu").find("expected \"gelu\""), std::string::npos);
  write_text(weights + "/preprocessor_config.json", R"({"size": {"height": 224, "width": 448}})");
  EXPECT_NE(changed("image_seq_length", 64).find("size is 224 x 448; tiles must be square"), std::string::npos);
  write_text(weights + "/preprocessor_config.json", R"({"min_patches": 9, "max_patches": 3})");
  EXPECT_NE(changed("image_seq_length", 64).find("min_dynamic_patch 9 exceeds max_dynamic_patch 3"), std::string::npos);
}

TEST(Refusals, GenerationConfig) {
  const std::string directory = qwen().write(DType::kBF16);
  write_text(directory + "/generation_config.json", R"({"eos_token_id": [3, -1]})");
  EXPECT_EQ(refusal(directory), "[DIR/generation_config.json] eos_token_id holds -1; expected ids in [0, 1114)");
}

}  // namespace
}  // namespace tessera::testing
