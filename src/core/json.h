#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/result.h"

namespace tessera {

/// Bounds that a parse enforces before memory is spent on them.
struct JsonLimits {
  int max_depth = 64;
  size_t max_bytes = size_t{256} << 20;
  size_t max_values = SIZE_MAX;  ///< a value takes up to thirty times the memory of its text ("0,", "{},")
};

/// A JSON value. Objects keep their members in the order of the text; a repeated key is a parse error.
/// Strings are valid UTF-8 by construction of the parser (invalid input is refused). An unpaired surrogate
/// escape is refused, or becomes U+FFFD with `parse_lenient_surrogates`.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;                          // null
  Json(std::nullptr_t) {}                    // NOLINT
  Json(bool v) : value_(v) {}                // NOLINT
  Json(int v) : value_(int64_t{v}) {}        // NOLINT
  Json(int64_t v) : value_(v) {}             // NOLINT
  Json(uint64_t v) : value_(v) {}            // NOLINT
  Json(double v) : value_(v) {}              // NOLINT
  Json(const char* v) : value_(std::string(v)) {}    // NOLINT
  Json(std::string v) : value_(std::move(v)) {}      // NOLINT
  Json(std::string_view v) : value_(std::string(v)) {}  // NOLINT
  Json(Array v) : value_(std::move(v)) {}            // NOLINT
  Json(Object v) : value_(std::move(v)) {}           // NOLINT

  static Json array() { return Json(Array{}); }
  static Json object() { return Json(Object{}); }

  /// Parses exactly one JSON text. Errors carry the byte offset and what was wrong there.
  static Result<Json> parse(std::string_view text, const JsonLimits& limits = {});
  /// As parse, with unpaired surrogate escapes read as U+FFFD.
  static Result<Json> parse_lenient_surrogates(std::string_view text, const JsonLimits& limits = {});
  /// Reads and parses a file; errors name it.
  static Result<Json> parse_file(const std::string& path, const JsonLimits& limits = {});

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  /// A number without fraction or exponent that fits int64_t or uint64_t.
  bool is_integer() const {
    return std::holds_alternative<int64_t>(value_) || std::holds_alternative<uint64_t>(value_);
  }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  /// The value; Requires: the matching is_...(). as_int64 also requires that the value fits.
  bool as_bool() const;
  int64_t as_int64() const;
  uint64_t as_uint64() const;  ///< requires a value of at least 0
  double as_double() const;
  const std::string& as_string() const;
  const Array& as_array() const;
  Array& as_array();
  const Object& as_object() const;
  Object& as_object();

  /// True when the value is an integer within int64_t.
  bool fits_int64() const;

  /// The member named `key`, or nullptr (also when this is no object). Linear for small objects; for large
  /// ones iterate as_object().
  const Json* find(std::string_view key) const;
  /// Sets or replaces a member; a null value becomes an object first.
  void set(std::string key, Json value);
  /// Appends; a null value becomes an array first.
  void push_back(Json value);

  /// Compact JSON text, valid UTF-8, non-finite doubles as null; `indent` > 0 pretty-prints.
  std::string dump(int indent = 0) const;

 private:
  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, Array, Object> value_;
};

/// Typed reading of one member with the file's name in the error: `[config.json] vision_config.hidden_size
/// is "x"; expected an integer in [1, 65536]`. A missing or null member yields `fallback` when there is one.
class JsonReader {
 public:
  JsonReader(const Json& object, std::string path) : object_(&object), path_(std::move(path)) {}

  const Json* find(std::string_view key) const;
  Result<int64_t> integer(std::string_view key, int64_t minimum, int64_t maximum) const;
  Result<int64_t> integer_or(std::string_view key, int64_t fallback, int64_t minimum, int64_t maximum) const;
  Result<double> number(std::string_view key, double minimum, double maximum) const;
  Result<double> number_or(std::string_view key, double fallback, double minimum, double maximum) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;
  Result<std::string> string(std::string_view key) const;
  Result<std::string> string_or(std::string_view key, std::string fallback) const;
  const std::string& path() const { return path_; }

 private:
  Status bad(std::string_view key, const std::string& expected) const;

  const Json* object_;
  std::string path_;
};

}  // namespace tessera
