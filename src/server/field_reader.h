#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "server/api_error.h"

namespace tessera::server {

/// What becomes of members that nobody asked for.
struct UnknownFields {
  std::vector<std::string>* ignored = nullptr;  ///< their places are appended here; null: the first is an error
  std::string advice = "leave it out";          ///< the end of that error
};

/// Reads the members of one JSON object of a request. Every read checks type and bounds and notes the name;
/// finish() then refuses each member that nobody asked for. The first error stays in `error` and turns later
/// reads into no-ops, so that a parser reads as a plain list of its fields. A null member counts as absent.
class FieldReader {
 public:
  /// `path` is the object's place, such as "messages[0]", or "" for the body. Requires: object.is_object().
  FieldReader(const Json& object, std::string path, ApiError* error)
      : object_(&object), path_(std::move(path)), error_(error) {}

  /// The member, noted as known; nullptr when it is absent or null.
  const Json* find(std::string_view name);
  bool has(std::string_view name) const;

  std::optional<double> number(std::string_view name, double minimum, double maximum);
  std::optional<int64_t> integer(std::string_view name, int64_t minimum, int64_t maximum);
  std::optional<uint64_t> seed(std::string_view name);
  std::optional<bool> boolean(std::string_view name);
  std::optional<std::string> string(std::string_view name, size_t max_characters);

  /// Accepted without effect, as documented.
  void accept(std::string_view name) { known_.emplace_back(name); }
  /// Refuses the member unless it is absent or null.
  void refuse(std::string_view name, const std::string& reason);

  /// Call last.
  void finish(const UnknownFields& unknown);

  void fail(std::string_view name, const std::string& message, const std::string& code = "invalid_value");
  bool failed() const { return error_->failed(); }
  std::string place(std::string_view name) const;

 private:
  const Json* object_;
  std::string path_;
  ApiError* error_;
  std::vector<std::string> known_;
};

/// Code points of valid UTF-8.
size_t character_count(std::string_view text);

/// What a value is, for messages: its JSON text when short, else its type.
std::string shown(const Json& value);

}  // namespace tessera::server
