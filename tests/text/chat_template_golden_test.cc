#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/fixtures.h"
#include "tests/text/text_fixtures.h"
#include "text/chat_template.h"

namespace tessera {
namespace {
namespace fs = std::filesystem;
using testing::fixture_path;
using testing::ids_of;

constexpr int64_t kTokensPerTile = 64;

std::vector<std::string> model_folders() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(fixture_path("models")))
    if (fs::exists(entry.path() / "golden.json") && fs::exists(entry.path() / "tokenizer_config.json"))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<ChatMessage> messages_of(const Json& list) {
  std::vector<ChatMessage> messages;
  int image = 0;
  for (const Json& from : list.as_array()) {
    ChatMessage message{from.find("role")->as_string(), {}};
    const Json& content = *from.find("content");
    if (content.is_string()) {
      message.content.push_back({.text = content.as_string()});
    } else {
      for (const Json& part : content.as_array()) {
        if (part.find("type")->as_string() == "text")
          message.content.push_back({.text = part.find("text")->as_string()});
        else
          message.content.push_back({.text = "", .image = image++});
      }
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

class PromptGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(PromptGolden, PromptIdsAndImageSpans) {
  const std::string directory = fixture_path("models/" + GetParam());
  const Json golden = Json::parse_file(directory + "/golden.json").value();
  const auto tokenizer = Tokenizer::load(directory).value();
  const std::string kind = golden.find("reference")->find("format")->as_string();
  const auto format = kind == "internvl" ? CheckpointFormat::kHf : CheckpointFormat::kOpenGvlab;
  const auto chat = ChatTemplate::load(*tokenizer, directory, format).value();
  for (const Json& test : golden.find("cases")->as_array()) {
    std::vector<int64_t> image_tokens;
    for (const Json& tiles : test.find("tiles")->as_array()) image_tokens.push_back(tiles.as_int64() * kTokensPerTile);
    const auto prompt = chat->render(messages_of(*test.find("messages")), image_tokens);
    const std::string name = test.find("name")->as_string();
    ASSERT_TRUE(prompt.ok()) << name << ": " << prompt.status().message();
    EXPECT_EQ(prompt->ids, ids_of(*test.find("prompt_ids"))) << name;

    const Json::Array& runs = test.find("image_token_positions")->as_array();
    ASSERT_EQ(prompt->images.size(), runs.size()) << name;
    for (size_t i = 0; i < runs.size(); ++i) {
      EXPECT_EQ(prompt->images[i].first, runs[i].as_array()[0].as_int64()) << name;
      EXPECT_EQ(prompt->images[i].count, runs[i].as_array()[1].as_int64()) << name;
      EXPECT_EQ(prompt->images[i].image_index, static_cast<int>(i)) << name;
      EXPECT_EQ(prompt->ids[static_cast<size_t>(prompt->images[i].first)], chat->image_context_id());
    }
    // The text of the greedy continuation, the ending id left out.
    EXPECT_EQ(tokenizer->decode(ids_of(*test.find("greedy_ids"))), test.find("text")->as_string()) << name;
  }
  const auto eos = ids_of(*golden.find("eos_ids"));
  for (const int32_t id : chat->stop_ids()) EXPECT_NE(std::find(eos.begin(), eos.end(), id), eos.end());
}

INSTANTIATE_TEST_SUITE_P(All, PromptGolden, ::testing::ValuesIn(model_folders()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
});

}  // namespace
}  // namespace tessera
