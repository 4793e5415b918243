#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "models/config.h"
#include "pipeline/picture.h"
#include "pipeline/worker_pool.h"
#include "runtime/token_engine.h"
#include "tessera/engine.h"
#include "tessera/options.h"
#include "text/chat_template.h"
#include "text/json_grammar.h"
#include "text/tokenizer.h"

namespace tessera {

/// What a model needs besides its weights: words and pictures. Immutable, shared by all requests.
struct ModelWords {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat;
  std::vector<int32_t> stop_ids;  ///< the template's and generation_config.json's
  std::vector<int32_t> holes;     ///< ids below vocab_size() without a piece: never generated
  size_t longest_piece = 1;       ///< bytes
};

/// Reads tokenizer and template of a checkpoint directory and checks that they fit the model's vocabulary.
Result<ModelWords> load_words(const std::string& directory, const ModelConfig& config);

/// Host memory for pictures, as planned.
struct HostMemory {
  uint8_t* tiles = nullptr;       ///< [tile_slots, 3, side, side]; the engine's, outlives the ChatEngine
  int64_t tile_slots = 0;
  int64_t preparation_bytes = 0;  ///< encoded pictures that wait, and decoding them
};

/// The public engine: text and pixels in, text out. Worker threads prepare (decode, cut, render, tokenize); the token
/// engine computes on its own thread; answers become text on that thread.
class ChatEngine : public Engine {
 public:
  ChatEngine(ModelInfo info, ModelConfig config, ModelWords words, const EngineOptions& options,
             std::unique_ptr<Backend> backend, std::unique_ptr<TokenEngine> engine, const HostMemory& host);
  ~ChatEngine() override;

  std::pair<RequestId, Status> submit(Request request, std::shared_ptr<Listener> listener) override;
  void cancel(RequestId id) override;
  ModelInfo model() const override { return info_; }
  EngineStats stats() const override;
  std::pair<std::vector<int32_t>, Status> tokenize(const Request& request) override;
  std::pair<std::string, Status> detokenize(const std::vector<int32_t>& ids) override;
  std::string piece(int32_t id) override;

 private:
  struct Prepared {
    TokenRequest tokens;
    PromptInfo prompt;
    DecodeOptions decode;
  };
  // A request between submit() and its end.
  struct Ticket {
    std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
    std::optional<uint64_t> token_id;  ///< once the token engine has it
  };
  // A request on its way through the workers.
  struct Job {
    RequestId id = 0;
    Request request;
    std::shared_ptr<Listener> listener;
    std::shared_ptr<const std::atomic<bool>> cancelled;
    double submitted_s = 0;
    /// Why it needs no preparing any more: cancelled, or past its deadline. Ok: it does.
    Status given_up() const;
  };

  Result<RenderedPrompt> render(const Request& request, std::vector<int64_t>* tiles) const;
  Result<Prepared> prepare(const Job& job);
  Status check_text(const Request& request) const;
  Status check_length(const Request& request, int64_t prompt_tokens, int64_t tiles) const;
  Status add_pictures(const Job& job, const RenderedPrompt& rendered, Prepared* out);
  Status add_constraint(const Request& request, TokenRequest* tokens);
  std::shared_ptr<const GrammarVocabulary> grammar_vocabulary();
  void run(const Job& job, bool stopping);
  void start(const Job& job, Prepared prepared, double preprocess_s);
  void forget(RequestId id);

  ModelInfo info_;
  ModelConfig config_;
  ModelWords words_;
  TileStore tiles_;
  PicturePreparer pictures_;
  std::unique_ptr<Backend> backend_;  ///< outlives the engine that uses its memory
  std::unique_ptr<TokenEngine> engine_;
  mutable std::mutex mutex_;
  std::map<RequestId, Ticket> tickets_;
  std::once_flag vocabulary_once_;
  std::shared_ptr<const GrammarVocabulary> vocabulary_;  ///< made when the first answer is kept to a grammar
  std::atomic<RequestId> next_id_{1};
  std::atomic<uint64_t> failed_before_start_{0};
  std::atomic<int64_t> preprocess_us_{0};
  WorkerPool workers_;  ///< last: its threads use everything above
};

}  // namespace tessera
