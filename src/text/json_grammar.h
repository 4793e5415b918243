#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "core/token_constraint.h"
#include "text/grammar_vocabulary.h"

namespace tessera {

/// Keeps an answer to JSON: to any object, or to the values of a schema. Between two JSON tokens stands at most one
/// space, strings are valid UTF-8 with proper escapes, numbers have at most 15 (integers 18) digits, nothing nests
/// deeper than 32, properties come in any order and none twice. Immutable; thread-safe; constraints keep it alive.
class JsonGrammar : public std::enable_shared_from_this<JsonGrammar> {
 public:
  /// `response_format` json_object.
  static std::shared_ptr<const JsonGrammar> any_object(std::shared_ptr<const GrammarVocabulary> vocabulary);
  /// `response_format` json_schema; which keywords there are says text/grammar_schema.h. Errors: kInvalidInput.
  static Result<std::shared_ptr<const JsonGrammar>> from_schema(const Json& schema,
                                                                std::shared_ptr<const GrammarVocabulary> vocabulary);
  ~JsonGrammar();

  /// A constraint for one answer. `end_ids` (the stop ids) are allowed when the value is whole, and only then.
  std::unique_ptr<TokenConstraint> start(std::vector<int32_t> end_ids) const;

 private:
  friend class JsonConstraint;
  struct Impl;
  explicit JsonGrammar(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
