#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "text/grammar_number.h"

namespace tessera {

/// One place of a compiled schema: what a value there may be.
struct SchemaNode {
  enum Kind : uint8_t { kChoice, kLiterals, kNumber, kString, kArray, kObject };
  struct Property {
    std::string name;
    std::string literal;  ///< the name as a JSON string
    int32_t node = 0;
    bool required = false;
    bool operator==(const Property&) const = default;
  };
  Kind kind = kChoice;
  std::vector<int32_t> choices;       ///< kChoice: nodes of the other kinds
  std::vector<std::string> literals;  ///< kLiterals: JSON texts, sorted, no two equal
  NumberRange number;
  int32_t minimum = 0;                ///< code points, items
  int32_t maximum = 0;
  std::vector<int32_t> prefix;        ///< kArray: the first items
  int32_t rest = -1;                  ///< kArray: later items; kObject: other properties; -1: none allowed
  std::vector<Property> properties;   ///< kObject, sorted by literal
  int32_t height = 0;                 ///< containers nested in the smallest value, itself included
  bool operator==(const SchemaNode&) const = default;
};

/// No value nests deeper; strings and arrays without a bound of their own end here, too.
inline constexpr int32_t kMaxGrammarDepth = 32;
inline constexpr int32_t kMaxGrammarString = 1 << 20;
inline constexpr int32_t kMaxGrammarItems = 1 << 20;
inline constexpr int32_t kMaxGrammarKey = 64;  ///< code points of a name that the schema does not give
inline constexpr size_t kMaxGrammarProperties = 128;

struct CompiledSchema {
  std::vector<SchemaNode> nodes;
  int32_t root = 0;
};

/// Any JSON object (`response_format` json_object).
CompiledSchema any_object_schema();

/// Compiles a JSON Schema: type, properties, required, additionalProperties, items, prefixItems, enum, const, anyOf,
/// $defs/definitions with $ref, minLength, maxLength, minItems, maxItems, minimum, maximum and the exclusive bounds;
/// title, description, default, examples, $schema, $id and $comment say nothing about values. Everything else is
/// refused by name (kInvalidInput), as are schemas that no value satisfies and places with more than 64 alternatives.
Result<CompiledSchema> compile_schema(const Json& schema);

}  // namespace tessera
