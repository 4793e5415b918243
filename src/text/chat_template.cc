#include "text/chat_template.h"

#include <algorithm>
#include <filesystem>

#include "core/file.h"
#include "core/json.h"
#include "text/prompt_builder.h"
#include "text/unicode.h"

namespace tessera {
namespace {
namespace fs = std::filesystem;

constexpr const char* kPlaceholder = "<image>";
constexpr const char* kMarkupWords[] = {"ref", "box", "quad"};

// The published default system texts, byte for byte.
constexpr const char* kSystemInternVl2 =
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。";
constexpr const char* kSystemInternVl25 =
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。";

// A template is what stands before and after each turn's text.
struct TemplateForm {
  const char* name;
  const char* system;     // control token that opens the system turn
  const char* user;
  const char* assistant;
  bool role_names;        // "system", "user", "assistant" follow the opening token as text
  const char* end;        // control token that ends a turn, and the answer
  const char* after_end;  // text behind it
  const char* default_system;
};

constexpr TemplateForm kForms[] = {
    {"internlm2-chat", "<|im_start|>", "<|im_start|>", "<|im_start|>", true, "<|im_end|>", "", kSystemInternVl2},
    {"Hermes-2", "<|im_start|>", "<|im_start|>", "<|im_start|>", true, "<|im_end|>", "", kSystemInternVl2},
    {"phi3-chat", "<|system|>", "<|user|>", "<|assistant|>", false, "<|end|>", "", kSystemInternVl2},
    {"internvl2_5", "<|im_start|>", "<|im_start|>", "<|im_start|>", true, "<|im_end|>", "\n", kSystemInternVl25},
};
constexpr TemplateForm kHfForm = {"chatml", "<|im_start|>", "<|im_start|>", "<|im_start|>", true, "<|im_end|>", "\n", nullptr};

// The chat_template.jinja of the -hf checkpoints; older ones have "<image>" where newer have "<IMG_CONTEXT>".
std::string published_hf_template(const std::string& placeholder) {
  return "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string "
         "%}{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' "
         "%}{{ '" +
         placeholder +
         "\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}{{ "
         "content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt "
         "%}{{'<|im_start|>assistant\n' }}{% endif %}";
}

// Line breaks inside Jinja strings are written as themselves or as \n.
std::string canonical_template(std::string text) {
  for (size_t at = 0; (at = text.find("\\n", at)) != std::string::npos; ++at) text.replace(at, 2, 1, '\n');
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

struct TemplateTokens {
  int32_t system = 0, user = 0, assistant = 0, end = 0;
  int32_t image_begin = 0, image_end = 0, image_context = 0;
};

struct MarkupToken {
  std::string content;
  int32_t id;
};

Result<TemplateTokens> resolve_tokens(const Tokenizer& tokenizer, const TemplateForm& form) {
  TemplateTokens tokens;
  std::string missing;
  const auto resolve = [&](const char* content, int32_t* id) {
    const auto found = tokenizer.token_id(content);
    if (found && tokenizer.is_control(*found))
      *id = *found;
    else if (missing.find(content) == std::string::npos)
      missing += (missing.empty() ? "" : ", ") + std::string(content);
  };
  resolve(form.system, &tokens.system);
  resolve(form.user, &tokens.user);
  resolve(form.assistant, &tokens.assistant);
  resolve(form.end, &tokens.end);
  resolve("<img>", &tokens.image_begin);
  resolve("</img>", &tokens.image_end);
  resolve("<IMG_CONTEXT>", &tokens.image_context);
  if (!missing.empty())
    return invalid_input("[tokenizer] lacks the control tokens " + missing + ", which template \"" + form.name +
                         "\" needs; take the tokenizer files of the same checkpoint");
  return tokens;
}

int64_t count_of(std::string_view text, std::string_view word) {
  int64_t count = 0;
  for (size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + word.size())) ++count;
  return count;
}

std::string message_name(size_t index, const ChatMessage& message) {
  return "messages[" + std::to_string(index) + "] (" + message.role + ")";
}

class FormTemplate : public ChatTemplate {
 public:
  FormTemplate(const Tokenizer& tokenizer, const TemplateForm& form, const TemplateTokens& tokens,
               std::optional<std::string> system)
      : tokenizer_(tokenizer), form_(form), tokens_(tokens), system_(std::move(system)) {}

  Result<RenderedPrompt> render(std::span<const ChatMessage> messages, std::span<const int64_t> image_tokens,
                                const RenderOptions& options) const override {
    TESSERA_RETURN_IF_ERROR(check(messages, image_tokens));
    Rendering r{PromptBuilder(tokenizer_), {}, image_tokens, {}};
    TESSERA_ASSIGN_OR_RETURN(r.markup, markup(options.markup_tokens));
    const bool own_system = messages[0].role == "system";
    if (system_ && !own_system) {
      open_turn("system", &r.builder);
      r.builder.text(*system_);
      close_turn(&r.builder);
    }
    for (size_t i = 0; i < messages.size(); ++i) {
      TESSERA_RETURN_IF_ERROR(
          render_message(messages[i], options.image_placeholders, &r).with_context(message_name(i, messages[i])));
    }
    if (options.generation_prompt) open_turn("assistant", &r.builder);
    return RenderedPrompt{r.builder.take(), std::move(r.images)};
  }

  std::vector<int32_t> stop_ids() const override { return {tokens_.end}; }
  int32_t image_context_id() const override { return tokens_.image_context; }

  Result<std::vector<int32_t>> markup_ids(std::span<const std::string> words) const override {
    TESSERA_ASSIGN_OR_RETURN(const auto found, markup(words));
    std::vector<int32_t> ids;
    for (const MarkupToken& token : found) ids.push_back(token.id);
    return ids;
  }

 private:
  struct Rendering {
    PromptBuilder builder;
    std::vector<ImageSpan> images;
    std::span<const int64_t> image_tokens;
    std::vector<MarkupToken> markup;
  };

  bool opengvlab() const { return system_.has_value(); }

  Status check(std::span<const ChatMessage> messages, std::span<const int64_t> image_tokens) const {
    if (messages.empty()) return invalid_input("messages is empty; give at least one");
    for (size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role != "system" && message.role != "user" && message.role != "assistant")
        return invalid_input("messages[" + std::to_string(i) + "] has the role \"" + message.role +
                             "\"; expected system, user or assistant");
      const std::string name = message_name(i, message);
      if (message.role == "system" && i > 0)
        return invalid_input(name + " is not the first message; a system message has to be");
      bool empty = true;
      for (const ContentPart& part : message.content) {
        if (part.image >= static_cast<int>(image_tokens.size()))
          return invalid_input(name + " refers to picture " + std::to_string(part.image) + " of " +
                               std::to_string(image_tokens.size()));
        if (part.image < 0 && !is_valid_utf8(part.text)) return invalid_input(name + " is not valid UTF-8");
        empty = empty && part.image < 0 && part.text.empty();
      }
      if (empty && message.role == "user") return invalid_input(name + " is empty; give a text or a picture");
    }
    return {};
  }

  void open_turn(const std::string& role, PromptBuilder* builder) const {
    builder->token(role == "system" ? tokens_.system : role == "user" ? tokens_.user : tokens_.assistant);
    builder->text(form_.role_names ? role + "\n" : "\n");
  }

  void close_turn(PromptBuilder* builder) const {
    builder->token(tokens_.end);
    builder->text(form_.after_end);
  }

  Result<std::vector<MarkupToken>> markup(std::span<const std::string> words) const {
    std::vector<MarkupToken> found;
    for (const std::string& word : words) {
      if (std::find(std::begin(kMarkupWords), std::end(kMarkupWords), word) == std::end(kMarkupWords))
        return invalid_input("markup_tokens: \"" + word + "\" is unknown; expected ref, box or quad");
      for (const std::string& content : {"<" + word + ">", "</" + word + ">"}) {
        const auto id = tokenizer_.token_id(content);
        if (!id) return invalid_input("markup_tokens: this model's tokenizer lacks " + content);
        found.push_back({content, *id});
      }
    }
    return found;
  }

  // A person's text: plain, but for the markup tokens that were asked for.
  void add_text(std::string_view text, Rendering* r) const {
    size_t done = 0;
    for (size_t at = text.find('<'); at < text.size() && !r->markup.empty(); at = text.find('<', at)) {
      const auto token = std::find_if(r->markup.begin(), r->markup.end(), [&](const MarkupToken& candidate) {
        return text.substr(at, candidate.content.size()) == candidate.content;
      });
      if (token == r->markup.end()) {
        ++at;
        continue;
      }
      r->builder.text(text.substr(done, at - done));
      r->builder.token(token->id);
      done = at += token->content.size();
    }
    r->builder.text(text.substr(done));
  }

  void add_image(int image, Rendering* r) const {
    const int64_t count = r->image_tokens[static_cast<size_t>(image)];
    r->builder.token(tokens_.image_begin);
    const int64_t first = r->builder.repeat(tokens_.image_context, count);
    r->builder.token(tokens_.image_end);
    r->images.push_back({image, first, count});
  }

  // Literal placeholders take the message's pictures in order. Text parts that touch are one text.
  void add_text_with_images(const ChatMessage& message, Rendering* r) const {
    std::string text;
    std::vector<int> images;
    for (const ContentPart& part : message.content) {
      if (part.image >= 0)
        images.push_back(part.image);
      else
        text += part.text;
    }
    size_t at = 0;
    for (const int image : images) {
      const size_t found = text.find(kPlaceholder, at);
      add_text(std::string_view(text).substr(at, found - at), r);
      add_image(image, r);
      at = found + std::string_view(kPlaceholder).size();
    }
    add_text(std::string_view(text).substr(at), r);
  }

  Status render_message(const ChatMessage& message, bool placeholders, Rendering* r) const {
    int64_t pictures = 0;
    std::string text;
    for (const ContentPart& part : message.content) {
      pictures += part.image >= 0;
      if (part.image < 0) text += part.text;
    }
    // The -hf template's placeholder is a control token; a literal `<image>` is plain text there.
    const int64_t literal = opengvlab() && placeholders && pictures > 0 ? count_of(text, kPlaceholder) : 0;
    if (literal > 0 && literal != pictures)
      return invalid_input("has " + std::to_string(literal) + " <image> placeholders and " +
                           std::to_string(pictures) + " pictures; give as many of both, or no placeholder");
    open_turn(message.role, &r->builder);
    if (opengvlab() && pictures == 0 && text.empty() && message.role == "assistant")
      return {};  // the reference leaves a turn without text open
    if (literal > 0) {
      add_text_with_images(message, r);
    } else {
      for (const ContentPart& part : message.content) {
        if (part.image < 0) {
          add_text(part.text, r);
        } else {
          add_image(part.image, r);
          r->builder.text("\n");
        }
      }
    }
    close_turn(&r->builder);
    return {};
  }

  const Tokenizer& tokenizer_;
  const TemplateForm& form_;
  TemplateTokens tokens_;
  std::optional<std::string> system_;  // of the OpenGVLab format; -hf has none
};

Result<std::unique_ptr<ChatTemplate>> create_form(const Tokenizer& tokenizer, const TemplateForm& form,
                                                  std::optional<std::string> system) {
  TESSERA_ASSIGN_OR_RETURN(const TemplateTokens tokens, resolve_tokens(tokenizer, form));
  return std::unique_ptr<ChatTemplate>(
      std::make_unique<FormTemplate>(tokenizer, form, tokens, std::move(system)));
}

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

// The first of the places where a -hf checkpoint may keep its template.
Result<std::string> read_hf_template(const std::string& directory) {
  const fs::path root(directory);
  std::error_code ignored;
  if (fs::exists(root / "chat_template.jinja", ignored))
    return read_file((root / "chat_template.jinja").string(), kMaxTemplateBytes);
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    if (!fs::exists(root / name, ignored)) continue;
    TESSERA_ASSIGN_OR_RETURN(const Json json, Json::parse_file((root / name).string()));
    const Json* text = json.find("chat_template");
    if (text && text->is_string()) return text->as_string();
  }
  return invalid_input("[chat template] " + directory +
                       " has no chat_template.jinja, and no chat_template in chat_template.json or tokenizer_config.json");
}

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::create(const Tokenizer& tokenizer, const std::string& name,
                                                           std::optional<std::string> system_message) {
  std::string known;
  for (const TemplateForm& form : kForms) {
    if (name == form.name) return create_form(tokenizer, form, system_message.value_or(form.default_system));
    known += (known.empty() ? "" : ", ") + std::string(form.name);
  }
  return invalid_input("[config.json] template \"" + name + "\" is not supported; expected one of " + known);
}

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::create_hf(const Tokenizer& tokenizer,
                                                              const std::string& chat_template) {
  const std::string text = canonical_template(chat_template);
  if (text != published_hf_template("<IMG_CONTEXT>") && text != published_hf_template("<image>"))
    return invalid_input("[chat template] is not InternVL's published ChatML template (" +
                         std::to_string(chat_template.size()) +
                         " bytes given); other templates are not supported, restore the checkpoint's own");
  return create_form(tokenizer, kHfForm, std::nullopt);
}

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::load(const Tokenizer& tokenizer, const std::string& directory,
                                                         CheckpointFormat format) {
  if (format == CheckpointFormat::kHf) {
    TESSERA_ASSIGN_OR_RETURN(const std::string text, read_hf_template(directory));
    return create_hf(tokenizer, text);
  }
  TESSERA_ASSIGN_OR_RETURN(const Json config, Json::parse_file((fs::path(directory) / "config.json").string()));
  const JsonReader reader(config, "config.json");
  TESSERA_ASSIGN_OR_RETURN(const std::string name, reader.string("template"));
  std::optional<std::string> system;
  if (const Json* text = config.find("system_message"); text && !text->is_null()) {
    TESSERA_ASSIGN_OR_RETURN(system, reader.string("system_message"));
  }
  return create(tokenizer, name, std::move(system));
}

}  // namespace tessera
